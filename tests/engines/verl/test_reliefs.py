"""Less memory, step by step: nothing but placement changes, and every config on the way can run."""

from __future__ import annotations

import copy

import pytest

from sweeper.config import hydra_app
from sweeper.config.compose import compose_points
from sweeper.config.space import read
from sweeper.engines.base import Config, Shape
from sweeper.engines.verl.engine import VerlEngine
from sweeper.trial.identity import fingerprint

CPU = Shape(name="local", device="cpu", nodes=1, gpus_per_node=4)
NODE = Shape("node_8gpu", "cuda", 1, 8, gpu="H100", gpu_memory_gib=79.6, launchable=False)
ENGINE = VerlEngine()
SEVEN = ["model=qwen7b", "environment=gsm8k", "cluster=node_8gpu"]


def bound(*overrides: str) -> tuple[Config, Shape]:
    shape = NODE if "cluster=node_8gpu" in overrides else CPU
    with hydra_app.initialized():
        (composed,) = compose_points(read(list(overrides)).arms)
    assert ENGINE.bind(composed.config, composed.explicit, shape) == []
    return composed.config, shape


def steps(config: Config) -> list[tuple[Config, str]]:
    found = []
    while step := ENGINE.relieve(config, len(found) + 1):
        found.append(step)
        assert len(found) < 50, "it comes to an end"
    return found


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["algorithm=ppo", "kl=0.01"],
        [*SEVEN, "algorithm=ppo", "kl=0.01"],
        [*SEVEN, "algorithm=grpo"],
        [*SEVEN, "model_engine=megatron"],
        ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=12", "cluster.gpus_per_node=2"],
    ],
    ids=" ".join,
)
def test_each_step_is_another_placement_of_the_same_trial_that_can_run(overrides: list[str]) -> None:
    config, shape = bound(*overrides)
    before, identity = copy.deepcopy(config), fingerprint(config)
    assert not [p for p in ENGINE.check(config, shape) if "micro_batch" not in p.key]
    broken = {p.key for p in ENGINE.check(config, shape)}
    found = steps(config)
    assert found
    seen = [config]
    for relieved, what in found:
        assert fingerprint(relieved) == identity, what
        assert {p.key for p in ENGINE.check(relieved, shape)} <= broken, what
        assert relieved not in seen
        assert "\n" not in what
        seen.append(relieved)
    assert config == before


def test_the_order_is_by_what_it_costs() -> None:
    config, _ = bound(*SEVEN, "algorithm=ppo", "actor_rollout_ref.model.enable_gradient_checkpointing=false")
    told = [what for _, what in steps(config)]
    firsts = [
        next(i for i, what in enumerate(told) if word in what)
        for word in ("micro-batches", "gradient_checkpointing", "optimizer_offload", "param_offload", "gpu_memory")
    ]
    assert firsts == sorted(firsts)
    assert "actor.ppo_max_token_len_per_gpu=8192" in told[0]


def test_a_response_always_fits() -> None:
    config, _ = bound(*SEVEN)
    last = steps(config)[-1][0]
    longest = last["data"]["max_prompt_length"] + last["data"]["max_response_length"]
    assert last["actor_rollout_ref"]["actor"]["ppo_max_token_len_per_gpu"] == longest


def test_micro_batches_end_at_one_response() -> None:
    config, _ = bound("actor_rollout_ref.actor.use_dynamic_bsz=false")
    last = steps(config)[-1][0]
    assert last["actor_rollout_ref"]["actor"]["ppo_micro_batch_size_per_gpu"] in (1, None)


def test_there_is_an_end() -> None:
    config, _ = bound()
    assert ENGINE.relieve(config, 60) is None
