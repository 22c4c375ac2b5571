"""How a config is made ready for verl: cluster, model, data, loggers; and how fast."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from sweeper import engines
from sweeper.config import hydra_app
from sweeper.config.compose import compose_points
from sweeper.config.space import read
from sweeper.engines.base import Config, Shape
from sweeper.engines.verl.engine import VerlEngine
from sweeper.errors import RequestError

CPU = Shape(name="local", device="cpu", nodes=1, gpus_per_node=4)
GPUS = Shape(name="local", device="cuda", nodes=1, gpus_per_node=2, gpu="H100", gpu_memory_gib=79.6)


def bound(*overrides: str, shape: Shape = CPU) -> Config:
    with hydra_app.initialized():
        (composed,) = compose_points(read(list(overrides)).arms)
    assert VerlEngine().bind(composed.config, composed.explicit, shape) == []
    return composed.config


def test_a_cpu_trial_takes_one_rank_and_our_rollout() -> None:
    config = bound()
    assert config["trainer"]["n_gpus_per_node"] == 1
    assert config["trainer"]["device"] == "cpu"
    assert config["actor_rollout_ref"]["rollout"]["name"] == "hf_cpu"


def test_a_gpu_trial_takes_all_and_verls_own() -> None:
    config = bound("model=qwen0.5b", shape=GPUS)
    assert config["trainer"]["n_gpus_per_node"] == 2
    assert config["actor_rollout_ref"]["rollout"]["n_gpus_per_node"] == 2
    assert config["actor_rollout_ref"]["rollout"]["name"] == "vllm"
    assert config["trainer"]["device"] == "cuda"


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("actor_rollout_ref.actor.strategy=fsdp", ("actor_rollout_ref", "actor", "strategy"), "fsdp"),
        ("trainer.n_gpus_per_node=2", ("trainer", "n_gpus_per_node"), 2),
        ("actor_rollout_ref.rollout.agent.num_workers=3", ("actor_rollout_ref", "rollout", "agent", "num_workers"), 3),
        ("tp=2", ("actor_rollout_ref", "rollout", "tensor_model_parallel_size"), 2),
        ("trainer.project_name=mine", ("trainer", "project_name"), "mine"),
    ],
)
def test_what_was_typed_wins(typed: str, key: tuple[str, ...], value: Any) -> None:
    found: Any = bound(typed)
    for part in key:
        found = found[part]
    assert found == value


def test_the_built_model_and_data_are_named_before_they_exist(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path))
    config = bound("algorithm=ppo")
    assert str(config["actor_rollout_ref"]["model"]["path"]).startswith(f"{tmp_path}/tiny-")
    assert config["critic"]["model"]["path"] == config["actor_rollout_ref"]["model"]["path"]
    assert str(config["data"]["train_files"]).startswith(str(tmp_path))
    assert config["reward"]["custom_reward_function"]["name"] == "compute_score"
    assert VerlEngine().check(config, CPU) == []
    assert list(tmp_path.iterdir()) == [], "planning leaves nothing behind"


def test_typed_data_leaves_the_environment_aside() -> None:
    config = bound("data.train_files=/data/a.parquet")
    assert config["data"]["train_files"] == "/data/a.parquet"
    assert config["reward"]["custom_reward_function"]["path"] is None


def test_a_wrong_environment_is_named_beside_all_else() -> None:
    config = bound("environment.largest=1", "tp=3")
    keys = {p.key for p in VerlEngine().check(config, CPU)}
    assert {"environment.largest", "tp"} <= keys


def test_steps_end_with_the_epochs() -> None:
    config = bound("trainer.total_training_steps=null", "trainer.total_epochs=2")
    assert 0 < VerlEngine().workload(config, CPU).steps < 1000


def test_trials_of_five_algorithms_and_many_rates_have_no_problem() -> None:
    rates = ",".join(f"{i}e-6" for i in range(1, 21))
    with hydra_app.initialized():
        composed = compose_points(read([f"lr={rates}", "algorithm=grpo,ppo,rloo,remax,dapo"]).arms)
    engine = VerlEngine()
    problems = [p for c in composed for p in (*engine.bind(c.config, c.explicit, CPU), *engine.check(c.config, CPU))]
    assert problems == []


def test_an_unknown_engine_is_named_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="there is no engine vrl") as raised:
        engines.get("vrl")
    assert raised.value.problems[0].fix == "engine=verl"


def test_planning_imports_nothing_heavy() -> None:
    script = (
        "import sys; from sweeper import engines; engines.get('verl');"
        "print([m for m in ('torch', 'ray', 'verl', 'mlflow', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
