"""What is said to be emitted against what real runs of verl wrote (runs/: three steps each, on a CPU)."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from sweeper.config import hydra_app
from sweeper.config.compose import compose_points
from sweeper.config.space import read
from sweeper.engines.base import Config, Shape
from sweeper.engines.verl.engine import VerlEngine

RUNS = Path(__file__).parent / "runs"
CPU = Shape(name="local", device="cpu", nodes=1, gpus_per_node=4)


def bound(*overrides: str) -> Config:
    with hydra_app.initialized():
        (composed,) = compose_points(read(list(overrides)).arms)
    assert VerlEngine().bind(composed.config, composed.explicit, CPU) == []
    return composed.config


def emits(*overrides: str) -> list[str]:
    return VerlEngine().emits(bound(*overrides))


def written(name: str) -> set[str]:
    lines = [json.loads(line) for line in (RUNS / f"{name}.jsonl").read_text().splitlines()]
    return {metric for line in lines for metric in line["data"]}


@pytest.mark.parametrize(
    ("run", "overrides"),
    [("grpo", ["algorithm=grpo"]), ("ppo", ["algorithm=ppo"])],
)
def test_a_real_run_wrote_what_is_listed_and_nothing_that_counts_besides(run: str, overrides: list[str]) -> None:
    listed, real = emits(*overrides), written(run)
    missing = [name for name in listed if not any(fnmatchcase(metric, name) for metric in real)]
    assert missing == [], "every name that is listed was written"
    unlisted = [metric for metric in real if not any(fnmatchcase(metric, name) for name in listed)]
    assert unlisted == [], "nothing was written that is not listed"


def test_validation_names_of_our_own_data_are_spelled_out() -> None:
    core = [name for name in emits("trainer.test_freq=5") if name.startswith("val-core/")]
    assert core == ["val-core/sweeper/arithmetic/acc/mean@1"]


def test_more_answers_a_prompt_have_more_statistics() -> None:
    sampled = emits(
        "actor_rollout_ref.rollout.val_kwargs.n=4",
        "actor_rollout_ref.rollout.val_kwargs.do_sample=true",
        "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
    )
    at = "sweeper/arithmetic/acc"
    assert {f"val-core/{at}/mean@4", f"val-core/{at}/best@4/mean", f"val-aux/{at}/best@2/mean"} <= set(sampled)
    assert f"val-aux/{at}/std@4" in sampled


def test_what_a_config_switches_off_is_not_listed() -> None:
    plain = emits("algorithm=grpo", "kl=0", "trainer.test_freq=-1", "trainer.val_before_train=false")
    assert not [n for n in plain if re.match(r"val-|critic/(values|vf_|loss)|actor/(kl_|reward_kl)", n)]
    assert "actor/kl_loss" in emits("algorithm=grpo", "kl=0.01")
    assert "actor/reward_kl_penalty" in emits("algorithm=ppo", "kl=0.01")
    assert "critic/vf_loss" in emits("algorithm=ppo")
    assert "training/num_turns/mean" not in emits("algorithm=remax"), "V0 does not write it"


def test_data_and_rewards_of_the_users_own_leave_room() -> None:
    names = emits("data.train_files=/data/a.parquet", "data.val_files=/data/b.parquet")
    assert "val-core/*/*/mean@1" in names
