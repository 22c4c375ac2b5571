"""Real verl on the CPU: every algorithm trains, a seed is a run, a resumed run is the uninterrupted one."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from trained import ALGORITHMS, HALF, STEPS, Place, overrides

from sweeper.checkpoints import manifest

sys.path.insert(0, str(Path(__file__).parent))
import launch

pytestmark = pytest.mark.real

VARIANTS = ["dapo", "gspo", "dr_grpo", "reinforce_plus_plus_baseline", "opo"]

Trained = dict[str, launch.Run]


@pytest.fixture(scope="module")
def trained(place: Place) -> Trained:
    """Each algorithm's run."""
    return {name: launch.read(place.trial(name)) for name in ALGORITHMS}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_trains(trained: Trained, algorithm: str) -> None:
    import torch
    from safetensors.torch import load_file

    from sweeper.config.hydra_app import initialized
    from sweeper.plan import plan

    run = trained[algorithm]
    assert run.code == 0, run.log[-4000:]
    steps = [line for line in run.lines if "actor/pg_loss" in line["data"]]
    assert len(steps) == STEPS
    for line in steps:
        assert all(math.isfinite(v) for v in line["data"].values() if isinstance(v, float))
        assert line["data"]["actor/grad_norm"] > 0
        if "training/rollout_probs_diff_max" in line["data"]:  # the rollout's probabilities are the trainer's
            assert line["data"]["training/rollout_probs_diff_max"] < 1e-5
    scores = [v for line in run.lines for k, v in line["data"].items() if k.startswith("val-core/")]
    assert len(scores) >= 2
    assert all(0 <= score <= 1 for score in scores)
    written = [made.step for made in manifest.listed(run.checkpoints)]
    assert written == [HALF, STEPS], "each has a manifest, the V0 trainer's too"
    assert [manifest.verify(run.checkpoints, step) for step in written] == [[], []]
    saved = run.checkpoints / f"global_step_{HALF}/actor/model_world_size_1_rank_0.pt"
    after = torch.load(saved, weights_only=False)
    with initialized():
        model = plan.make([]).trials[0].config["actor_rollout_ref"]["model"]["path"]
    before = load_file(Path(model) / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(getattr(after[name], "_local_tensor", after[name]), before[name])


@pytest.mark.long  # in CI, `sweeper verify` of both (test_verify.py) shows the same
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_same_seed_is_the_same_run(trained: Trained, algorithm: str, tmp_path: Path) -> None:
    first = trained[algorithm]
    again = launch.run(tmp_path / "again", *overrides(algorithm, "trainer.save_freq=-1", steps=HALF))
    assert again.code == 0, again.log[-4000:]
    expected = first.by_step()
    got = again.by_step()
    assert sorted(got) == list(range(HALF + 1))
    for step, line in got.items():
        assert line == expected[step]


@pytest.mark.long
def test_another_seed_is_another_run(trained: Trained, tmp_path: Path) -> None:
    first = trained["grpo"]
    other = launch.run(tmp_path / "other", *overrides("grpo", "seed=2", "trainer.save_freq=-1", steps=1))
    assert other.code == 0, other.log[-4000:]
    assert other.by_step()[1] != first.by_step()[1]


@pytest.mark.long  # in CI, GRPO's is shown by test_sweep.py, which interrupts it, and PPO's by test_fork.py
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_resumed_run_is_the_uninterrupted_one(trained: Trained, algorithm: str, tmp_path: Path) -> None:
    first = trained[algorithm]
    resumed = launch.run(
        tmp_path / "resumed",
        *overrides(
            algorithm,
            "trainer.resume_mode=resume_path",
            f"trainer.resume_from_path={first.checkpoints}/global_step_{HALF}",
            "trainer.val_before_train=false",
        ),
    )
    assert resumed.code == 0, resumed.log[-4000:]
    expected, got = first.by_step(), resumed.by_step()
    assert sorted(got) == list(range(HALF + 1, STEPS + 1))
    for step, line in got.items():
        assert line == expected[step]


def test_two_ranks_train_as_one_does(tmp_path: Path) -> None:
    def ranks(count: int) -> launch.Run:
        # One update a step: verl lays responses out over ranks by their lengths, so that which of them are in the first
        # of two updates depends on the ranks.
        asked = overrides(
            "grpo", f"cluster.gpus_per_node={count}", "updates_per_step=1", "trainer.save_freq=-1", steps=1
        )
        made = launch.run(tmp_path / str(count) / "run", *asked)
        assert made.code == 0, made.log[-4000:]
        return made

    one, two = ranks(1), ranks(2)
    # Sums over ranks round differently, and a rank's responses are the same ones.
    for key in ("critic/score/mean", "actor/entropy", "actor/pg_loss", "actor/grad_norm"):
        assert two.series(key) == [pytest.approx(found, rel=1e-3, abs=1e-6) for found in one.series(key)]
        assert one.series(key)


@pytest.mark.long
def test_the_variants_train_side_by_side_in_one_sweep(tmp_path: Path) -> None:
    import json

    command = [
        sys.executable,
        str(Path(__file__).resolve().parents[2] / "sweep.py"),
        "--json",
        "tracking=none",
        "cluster.device=cpu",
    ]
    command += [f"algorithm={','.join(VARIANTS)}", "trainer.total_training_steps=1", "trainer.test_freq=1"]
    command += ["data.val_max_samples=64", "trainer.save_freq=-1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    events = [json.loads(line) for line in done.stdout.splitlines()]  # nothing else is on the screen
    assert {"sweep_started", "trial_started", "progress", "trial_ended"} <= {e["event"] for e in events}
    assert events[-1]["event"] == "sweep_ended"
    rows = events[-1]["trials"]
    assert {r["label"] for r in rows} == {f"algorithm={v}" for v in VARIANTS}
    assert {r["state"] for r in rows} == {"finished"}
    assert all(r["step"] == 1 and r["final_score"] is not None for r in rows)
