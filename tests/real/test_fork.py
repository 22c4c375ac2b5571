"""Real verl on the CPU: going on from another trial's checkpoint, with other rates; and from one's own, unchanged."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from trained import HALF, STEPS, Place, overrides

from sweeper import engines
from sweeper.engines.base import Saved
from sweeper.engines.verl import checkpoints

sys.path.insert(0, str(Path(__file__).parent))
import launch

pytestmark = pytest.mark.real

LR, KL = 2e-4, 0.01
"""The donor's: the tiny model's own rate, and what is asked for."""


@pytest.fixture(scope="module", params=[pytest.param("grpo", marks=pytest.mark.long), "ppo"])
def donor(request: pytest.FixtureRequest, place: Place) -> tuple[str, launch.Run]:
    return request.param, launch.read(place.trial(request.param))


def other_rates(algorithm: str) -> list[str]:
    """The donor's request, at ten times its rate and twenty times its KL coefficient."""
    same = [line for line in overrides(algorithm) if line != f"kl={KL}"]
    critic = [f"critic.optim.lr={50 * LR}"] if algorithm == "ppo" else []
    return [*same, "trainer.val_before_train=false", f"lr={10 * LR}", f"kl={20 * KL}", *critic]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_fork_goes_on_with_the_donors_weights_and_its_own_rates(
    donor: tuple[str, launch.Run], tmp_path: Path
) -> None:
    algorithm, run = donor
    before = bytes_of(run.checkpoints)
    saved = Saved(HALF, run.checkpoints / f"global_step_{HALF}")
    (tmp_path / "checkpoints").mkdir()
    engines.get("verl").adopt(saved, tmp_path / "checkpoints")
    fork = launch.run(tmp_path / "attempt", *other_rates(algorithm))
    assert fork.code == 0, fork.log[-4000:]

    steps = [step for step, _ in fork.series("actor/pg_loss")]
    assert steps == [3, 4], "it goes on, it does not start over"
    assert [v for _, v in fork.series("actor/lr")] == pytest.approx([10 * LR] * 2), "verl alone would keep 2e-4"
    assert [v for _, v in run.series("actor/lr")] == pytest.approx([LR] * 4)
    coefficient = "kl_coef" if algorithm == "grpo" else "actor/reward_kl_penalty_coeff"
    coefficient = next(k for line in fork.lines for k in line["data"] if k.endswith(coefficient))
    assert [v for _, v in fork.series(coefficient)] == pytest.approx([20 * KL] * 2)
    if algorithm == "ppo":
        assert [v for _, v in fork.series("critic/lr")] == pytest.approx([50 * LR] * 2)
    # The first step samples with the donor's weights and seeds, before anything was trained at the new rate.
    assert fork.series("critic/score/mean")[0] == run.series("critic/score/mean")[2]
    assert fork.series("actor/entropy")[0] == run.series("actor/entropy")[2]
    assert fork.series("actor/entropy")[1] != run.series("actor/entropy")[3]
    assert bytes_of(run.checkpoints) == before, "the donor's files are shared, not changed"
    found = checkpoints.newest(fork.checkpoints)
    assert found is not None
    assert found.step == STEPS


def test_a_torn_checkpoint_is_passed_over_and_the_rest_is_the_uninterrupted_run(
    donor: tuple[str, launch.Run], tmp_path: Path
) -> None:
    algorithm, run = donor
    shutil.copytree(run.checkpoints, tmp_path / "checkpoints")
    torn = tmp_path / f"checkpoints/global_step_{STEPS}/actor/optim_world_size_1_rank_0.pt"
    torn.write_bytes(torn.read_bytes()[:-100])
    resumed = launch.run(tmp_path / "attempt", *overrides(algorithm, "trainer.val_before_train=false"))
    assert resumed.code == 0, resumed.log[-4000:]
    expected, got = run.by_step(), resumed.by_step()
    assert sorted(got) == list(range(HALF + 1, STEPS + 1))
    for step, line in got.items():
        assert line == expected[step], "unchanged rates: not a bit differs"
    assert "resumed with another" not in resumed.log
