"""Values of the wrong kind are named before anything starts."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sweeper.config import tree
from sweeper.engines.verl import kinds
from sweeper.engines.verl.base_config import load


def config_with(key: str, value: object) -> dict[str, Any]:
    config: dict[str, Any] = {**copy.deepcopy(load("dp")), "lr": None, "tp": None, "seed": 1}
    tree.put(config, key, value)
    return config


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("lr", "abc", "rate"),
        ("lr", 0, "rate"),
        ("lr", -1e-6, "rate"),
        ("tp", 1.5, "whole number"),
        ("tp", 0, "whole number"),
        ("seed", "one", "whole number"),
        ("actor_rollout_ref.actor.optim.lr", "abc", "not a number"),
        ("data.train_batch_size", "many", "not a number"),
        ("actor_rollout_ref.actor.use_kl_loss", "maybe", "neither true nor false"),
    ],
)
def test_what_cannot_be_meant_is_named(key: str, value: object, word: str) -> None:
    (problem,) = kinds.check(config_with(key, value))
    assert problem.what.startswith(f"{key}={value}")
    assert word in problem.what
    assert problem.key == key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 1e-6),
        ("lr", None),
        ("tp", 2),
        ("seed", 0),
        ("actor_rollout_ref.actor.entropy_coeff", 0.01),  # verl's default is the whole number 0
        ("actor_rollout_ref.actor.use_kl_loss", True),
        ("trainer.total_training_steps", 10),  # verl's default is null
        ("trainer.project_name", 5),
        ("not.a.key.of.verl", "text"),
    ],
)
def test_what_can_be_meant_passes(key: str, value: object) -> None:
    assert kinds.check(config_with(key, value)) == []
