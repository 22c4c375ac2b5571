"""Rollout sizes that are worth a probe."""

from __future__ import annotations

from typing import Any

from sweeper.config import hydra_app
from sweeper.config.compose import compose_points
from sweeper.config.space import read
from sweeper.engines.base import Shape
from sweeper.engines.verl.engine import VerlEngine

TP = "actor_rollout_ref.rollout.tensor_model_parallel_size"
SEVEN = ["model=qwen7b", "environment=gsm8k", "cluster=node_8gpu"]
CPU = Shape(name="local", device="cpu", nodes=1, gpus_per_node=4)
NODE = Shape("node_8gpu", "cuda", 1, 8, gpu="H100", gpu_memory_gib=79.6, launchable=False)


def placements(*overrides: str, shape: Shape = NODE) -> list[dict[str, Any]]:
    with hydra_app.initialized():
        (composed,) = compose_points(read(list(overrides)).arms)
    assert VerlEngine().bind(composed.config, composed.explicit, shape) == []
    return VerlEngine().placements(composed.config, shape)


def test_the_configs_own_first_then_what_heads_and_nodes_allow() -> None:
    assert placements(*SEVEN) == [{TP: 2}, {TP: 1}, {TP: 4}], "28 heads: 8 does not divide them"


def test_a_size_that_was_typed_is_not_questioned() -> None:
    assert placements(*SEVEN, "tp=4") == [{TP: 4}]
    assert placements(*SEVEN, f"{TP}=4") == [{TP: 4}]


def test_our_cpu_rollout_has_one_placement() -> None:
    assert placements(shape=CPU) == [{TP: 1}]
