"""verl's own validate_config accepts every algorithm with every model on two nodes of eight, and every engine."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from sweeper.config.compose import compose_points
from sweeper.config.space import read
from sweeper.engines.base import Shape
from sweeper.engines.verl.engine import VerlEngine

SHAPE = Shape("two_nodes_8gpu", "cuda", nodes=2, gpus_per_node=8, gpu="H100", gpu_memory_gib=79.6)
COMMON = [
    "cluster=two_nodes_8gpu",
    "environment=gsm8k",
    "data.train_files=/d/train.parquet",
    "data.val_files=/d/val.parquet",
]


@pytest.mark.parametrize(
    "lines",
    [
        ["algorithm=glob(*)", "model=glob(*)"],
        ["model_engine=megatron,veomni,torchtitan", "algorithm=grpo,ppo", "model=qwen7b"],
        ["experiment=two_nodes_grpo"],
    ],
)
def test_verl_accepts(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config
    from verl.workers.config import model

    # It reads the model's folder or the hub; what is tested here are the rules.
    monkeypatch.setattr(model.HFModelConfig, "__post_init__", lambda self: None)
    for item in compose_points(read([*lines, *COMMON]).arms):
        assert VerlEngine().bind(item.config, item.explicit, SHAPE) == []
        config = OmegaConf.create(item.config)
        assert need_critic(config) == item.config["binding"]["critic"]
        validate_config(config, need_reference_policy(config), need_critic(config))
