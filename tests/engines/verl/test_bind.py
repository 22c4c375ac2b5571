"""What a user types in the shell's folder means the same in the attempt's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeper.config.compose import compose_points
from sweeper.config.hydra_app import initialized
from sweeper.config.space import read
from sweeper.engines.base import Shape
from sweeper.engines.verl.engine import VerlEngine
from sweeper.errors import Problem

CPU = Shape(name="local", device="cpu", nodes=1, gpus_per_node=2)
CLIP = "actor_rollout_ref.actor.clip_ratio"


def bound(*overrides: str) -> tuple[dict[str, Any], list[Problem]]:
    with initialized():
        (composed,) = compose_points(read(list(overrides)).arms)
    return composed.config, VerlEngine().bind(composed.config, composed.explicit, CPU)


def test_relative_paths_are_where_they_were_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("t.jsonl", "v.jsonl", "r.py"):
        (tmp_path / name).touch()
    config, problems = bound(
        "data.train_files=[t.jsonl]", "data.val_files=v.jsonl", "reward.custom_reward_function.path=r.py"
    )
    assert problems == []
    assert config["data"]["train_files"] == [str(tmp_path / "t.jsonl")]
    assert config["data"]["val_files"] == str(tmp_path / "v.jsonl")
    assert config["reward"]["custom_reward_function"]["path"] == str(tmp_path / "r.py")


def test_ids_of_a_hub_and_addresses_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, _ = bound("actor_rollout_ref.model.path=Qwen/Qwen2.5-7B-Instruct", "data.train_files=hdfs://a/t.parquet")
    assert config["actor_rollout_ref"]["model"]["path"] == "Qwen/Qwen2.5-7B-Instruct"
    assert config["data"]["train_files"] == "hdfs://a/t.parquet"


def test_a_typed_clip_ratio_is_what_verl_clips_at() -> None:
    config, problems = bound(f"{CLIP}=0.1")
    assert problems == []
    actor = config["actor_rollout_ref"]["actor"]
    assert (actor["clip_ratio"], actor["clip_ratio_low"], actor["clip_ratio_high"]) == (0.1, 0.1, 0.1)


def test_a_clip_ratio_that_an_algorithm_would_ignore_is_named() -> None:
    _, (problem,) = bound("algorithm=dapo", f"{CLIP}=0.1")
    assert "would do nothing" in problem.what
    config, problems = bound("algorithm=dapo", f"{CLIP}=0.1", f"{CLIP}_high=0.3")
    assert problems == []
    assert config["actor_rollout_ref"]["actor"]["clip_ratio_high"] == 0.3


@pytest.mark.parametrize("override", ["trainer=null", "critic=3", "algorithm.kl_ctrl=null"])
def test_a_section_that_is_gone_is_named_instead_of_stumbled_over(override: str) -> None:
    config, problems = bound(override)
    assert [p.key for p in problems] == [override.partition("=")[0]]
    assert VerlEngine().check(config, CPU) == problems
