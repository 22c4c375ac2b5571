"""When verl validates and saves, as its loops decide it."""

from __future__ import annotations

from sweeper.config import hydra_app
from sweeper.config.compose import compose_points
from sweeper.config.space import read
from sweeper.engines.base import Config, Shape
from sweeper.engines.verl.engine import VerlEngine

CPU = Shape(name="local", device="cpu", nodes=1, gpus_per_node=4)
ENGINE = VerlEngine()


def bound(*overrides: str) -> Config:
    with hydra_app.initialized():
        (composed,) = compose_points(read(["trainer.total_training_steps=7", *overrides]).arms)
    assert ENGINE.bind(composed.config, composed.explicit, CPU) == []
    return composed.config


def test_every_so_often_and_at_the_end() -> None:
    config = bound("trainer.test_freq=3", "trainer.save_freq=2")
    assert ENGINE.validates(config) == [0, 3, 6, 7]
    assert ENGINE.saves(config) == [2, 4, 6, 7]


def test_switched_off() -> None:
    config = bound("trainer.test_freq=-1", "trainer.save_freq=-1")
    assert ENGINE.validates(config) == [0]
    assert ENGINE.saves(config) == []
    assert ENGINE.validates(bound("trainer.test_freq=7", "trainer.val_before_train=false")) == [7]


def test_the_old_trainer_does_not_save_while_it_warms_the_critic_up() -> None:
    warm = ["algorithm=ppo", "trainer.critic_warmup=3", "trainer.save_freq=1"]
    assert ENGINE.saves(bound(*warm)) == [1, 2, 3, 4, 5, 6, 7]
    assert ENGINE.saves(bound(*warm, "trainer.use_v1=false")) == [3, 4, 5, 6, 7]


def test_real_runs_did_so() -> None:
    """runs/*.jsonl: three steps, validated every second, saved every second."""
    import json
    from pathlib import Path

    config = bound("trainer.total_training_steps=3", "trainer.test_freq=2", "trainer.save_freq=2")
    for run in ("grpo", "ppo"):
        lines = [json.loads(s) for s in (Path(__file__).parent / "runs" / f"{run}.jsonl").read_text().splitlines()]
        scored = [n["step"] for n in lines if any(k.startswith("val-core/") for k in n["data"])]
        saved = [n["step"] for n in lines if "timing_s/save_checkpoint" in n["data"]]
        assert scored == ENGINE.validates(config)
        assert saved == ENGINE.saves(config)
