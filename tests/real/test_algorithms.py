"""Real verl on the CPU: every algorithm trains, a seed is a run, a resumed run is the uninterrupted one."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeper.checkpoints import manifest

sys.path.insert(0, str(Path(__file__).parent))
import launch

pytestmark = pytest.mark.real

STEPS = 4  # of GRPO and PPO; the others train half of them. Each saves at half of its own.
HALF = STEPS // 2
ALGORITHMS = {
    "grpo": ["kl=0"],
    "ppo": ["kl=0.01"],  # brings the reference model in
    "rloo": ["kl=0"],
    "reinforce_plus_plus": ["kl=0"],
    "remax": ["kl=0"],
}
IN_CI = ("grpo", "ppo")
RESUMED = [a if a in IN_CI else pytest.param(a, marks=pytest.mark.long) for a in ALGORITHMS]
VARIANTS = ["dapo", "gspo", "dr_grpo", "reinforce_plus_plus_baseline", "opo"]

Trained = Callable[[str], tuple[Path, launch.Run]]


def steps_of(algorithm: str) -> int:
    return STEPS if algorithm in IN_CI else HALF


def overrides(algorithm: str, *more: str, steps: int | None = None) -> list[str]:
    total = steps or steps_of(algorithm)
    return [
        f"algorithm={algorithm}",
        *ALGORITHMS[algorithm],
        "data.val_max_samples=64",
        f"trainer.total_training_steps={total}",
        f"trainer.save_freq={steps_of(algorithm) // 2}",
        f"trainer.test_freq={HALF}",
        "trainer.max_actor_ckpt_to_keep=null",
        "trainer.max_critic_ckpt_to_keep=null",
        *more,
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Each algorithm's run, made once: (folder, run)."""
    made: dict[str, tuple[Path, launch.Run]] = {}

    def get(algorithm: str) -> tuple[Path, launch.Run]:
        if algorithm not in made:
            folder = tmp_path_factory.mktemp(algorithm)
            made[algorithm] = folder, launch.run(folder / "first", *overrides(algorithm))
        return made[algorithm]

    return get


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_trains(trained: Trained, algorithm: str) -> None:
    import torch
    from safetensors.torch import load_file

    from sweeper.config.hydra_app import initialized
    from sweeper.plan import plan

    _, run = trained(algorithm)
    assert run.code == 0, run.log[-4000:]
    steps = [line for line in run.lines if "actor/pg_loss" in line["data"]]
    assert len(steps) == steps_of(algorithm)
    for line in steps:
        assert all(math.isfinite(v) for v in line["data"].values() if isinstance(v, float))
        assert line["data"]["actor/grad_norm"] > 0
        if "training/rollout_probs_diff_max" in line["data"]:  # the rollout's probabilities are the trainer's
            assert line["data"]["training/rollout_probs_diff_max"] < 1e-5
    scores = [v for line in run.lines for k, v in line["data"].items() if k.startswith("val-core/")]
    assert len(scores) >= 2
    assert all(0 <= score <= 1 for score in scores)
    written = [made.step for made in manifest.listed(run.checkpoints)]
    assert written == [steps_of(algorithm) // 2, steps_of(algorithm)], "each has a manifest, the V0 trainer's too"
    assert [manifest.verify(run.checkpoints, step) for step in written] == [[], []]
    saved = run.checkpoints / f"global_step_{HALF}/actor/model_world_size_1_rank_0.pt"
    after = torch.load(saved, weights_only=False)
    with initialized():
        model = plan.make([]).trials[0].config["actor_rollout_ref"]["model"]["path"]
    before = load_file(Path(model) / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(getattr(after[name], "_local_tensor", after[name]), before[name])


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_same_seed_is_the_same_run(trained: Trained, algorithm: str, tmp_path: Path) -> None:
    _, first = trained(algorithm)
    again = launch.run(tmp_path / "again", *overrides(algorithm, "trainer.save_freq=-1", steps=HALF))
    assert again.code == 0, again.log[-4000:]
    expected = first.by_step()
    got = again.by_step()
    assert sorted(got) == list(range(HALF + 1))
    for step, line in got.items():
        assert line == expected[step]


def test_another_seed_is_another_run(trained: Trained, tmp_path: Path) -> None:
    _, first = trained("grpo")
    other = launch.run(tmp_path / "other", *overrides("grpo", "seed=2", "trainer.save_freq=-1", steps=1))
    assert other.code == 0, other.log[-4000:]
    assert other.by_step()[1] != first.by_step()[1]


@pytest.mark.parametrize("algorithm", RESUMED)
def test_a_resumed_run_is_the_uninterrupted_one(trained: Trained, algorithm: str, tmp_path: Path) -> None:
    _, first = trained(algorithm)
    half = steps_of(algorithm) // 2
    resumed = launch.run(
        tmp_path / "resumed",
        *overrides(
            algorithm,
            "trainer.resume_mode=resume_path",
            f"trainer.resume_from_path={first.checkpoints}/global_step_{half}",
            "trainer.val_before_train=false",
        ),
    )
    assert resumed.code == 0, resumed.log[-4000:]
    expected, got = first.by_step(), resumed.by_step()
    assert sorted(got) == list(range(half + 1, steps_of(algorithm) + 1))
    for step, line in got.items():
        assert line == expected[step]


def test_two_ranks_train_as_one_does(trained: Trained, tmp_path: Path) -> None:
    _, one = trained("grpo")
    two = launch.run(tmp_path / "two", *overrides("grpo", "cluster.gpus_per_node=2", steps=HALF))
    assert two.code == 0, two.log[-4000:]
    # Sums over ranks round differently, and a rank's responses are the same ones.
    for key in ("critic/score/mean", "actor/entropy", "actor/grad_norm"):
        assert two.series(key)[0] == pytest.approx(one.series(key)[0], rel=1e-3)


def test_the_variants_train_side_by_side_in_one_sweep(tmp_path: Path) -> None:
    import json
    import subprocess

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
    rows = json.loads(done.stdout.splitlines()[-1])["trials"]
    assert {r["label"] for r in rows} == {f"algorithm={v}" for v in VARIANTS}
    assert {r["state"] for r in rows} == {"finished"}
    assert all(r["step"] == 1 and r["final_score"] is not None for r in rows)
