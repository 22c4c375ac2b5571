"""What an experiment's file sets counts like what is typed, and gives way to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from sweeper.config import hydra_app, tree
from sweeper.config.compose import compose_points
from sweeper.config.space import read
from sweeper.engines.verl.names import LR, TP
from sweeper.plan.plan import make

FILE = """# @package _global_
defaults:
  - override /algorithm: ppo
  - _self_
hydra: {sweeper: {params: {seed: "1,2"}}}
tp: 1
engine: {env: {SOME: thing}}
actor_rollout_ref:
  actor: {optim: {lr: 5.0e-5}}
trainer:
  logger: [console, file]
"""


@pytest.fixture(autouse=True, scope="module")
def _hydra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    conf = tmp_path_factory.mktemp("checkout") / "conf"
    shutil.copytree(hydra_app.CONF, conf)
    (conf / "experiment" / "ours.yaml").write_text(FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra_app, "CONF", conf)
        with hydra_app.initialized():
            yield


def planned(*typed: str) -> dict[str, Any]:
    plan = make(["experiment=ours", "seed=1", *typed])
    assert not plan.problems, plan.problems
    return dict(plan.trials[0].config)


def test_a_verl_key_in_the_file_wins_over_the_models_default() -> None:
    assert tree.get(planned(), LR) == 5e-5


@pytest.mark.parametrize("line", ["lr=3e-4", f"{LR}=3e-4"])
def test_what_is_typed_wins_over_the_file_by_name_or_by_key(line: str) -> None:
    assert tree.get(planned(line), LR) == 3e-4


def test_a_name_in_the_file_gives_way_to_a_verl_key_that_is_typed() -> None:
    (item,) = compose_points(read(["experiment=ours", "seed=1", f"{TP}=2"]).arms)
    assert item.explicit[TP] == 2 and "tp" not in item.explicit


def test_lists_of_the_file_are_one_value() -> None:
    (item,) = compose_points(read(["experiment=ours", "seed=1"]).arms)
    assert item.explicit["trainer.logger"] == ["console", "file"]
    assert not any(key.startswith(("hydra", "defaults")) for key in item.explicit)


def test_the_choices_it_brings_along_are_no_values() -> None:
    assert len(make(["experiment=ours"]).trials) == 2
