"""Lines as verl 0.9.1 wrote them, and what is read from them."""

from __future__ import annotations

import json
from typing import Any

from sweeper.engines.verl.metrics import available, progress

STEP = {
    "step": 3,
    "data": {
        "critic/score/mean": 0.21875,
        "critic/rewards/mean": 0.2,
        "perf/total_num_tokens": 1180,
        "perf/time_per_step": 0.59,
        "perf/throughput": 1000.0,
        "val-core/sweeper/arithmetic/acc/mean@1": 0.44,
        "val-aux/sweeper/arithmetic/reward/mean@1": 0.4,
        "training/note": "text",
        "actor/nothing": None,
    },
}


def config(metric: str = "auto") -> dict[str, Any]:
    return {"objective": {"metric": metric, "mode": "max"}}


def test_a_step() -> None:
    found = progress(STEP, config())
    assert found is not None
    assert (found.step, found.reward, found.score, found.step_s) == (3, 0.21875, 0.44, 0.59)
    assert found.tokens_per_s == 2000.0, "over all ranks: perf/throughput is for one of two"
    assert "training/note" not in found.metrics
    assert "actor/nothing" not in found.metrics


def test_a_validation_before_training_has_a_score_and_no_reward() -> None:
    found = progress({"step": 0, "data": {"val-core/gsm8k/reward/mean@1": 0.19}}, config())
    assert found is not None
    assert (found.step, found.score, found.reward, found.tokens_per_s) == (0, 0.19, None, None)


def test_accuracy_is_taken_before_reward_and_means_before_the_best() -> None:
    data = {
        "val-core/a/reward/mean@4": 0.1,
        "val-core/b/acc/best@4/mean": 0.9,
        "val-core/b/acc/mean@4": 0.3,
        "val-core/b/acc/maj@4/mean": 0.8,
    }
    found = progress({"step": 1, "data": data}, config())
    assert found is not None
    assert found.score == 0.3


def test_an_objective_that_was_named() -> None:
    found = progress(STEP, config("critic/rewards/mean"))
    assert found is not None
    assert found.score == 0.2
    other = progress(STEP, config("val-core/nothing"))
    assert other is not None
    assert other.score is None


def test_lines_without_a_step_are_left_out() -> None:
    assert progress({}, config()) is None
    assert progress({"step": None, "data": {}}, config()) is None
    assert progress({"step": 1, "data": []}, config()) is None


def test_not_a_number_is_left_out() -> None:
    found = progress(json.loads('{"step": 1, "data": {"actor/pg_loss": null, "x": true}}'), config())
    assert found is not None
    assert found.metrics == {}


def test_names_that_an_objective_can_have() -> None:
    names = available([STEP, {"step": 4, "data": {"actor/lr": 1e-6}}])
    assert names == sorted([*(k for k, v in STEP["data"].items() if isinstance(v, float | int)), "actor/lr"])
