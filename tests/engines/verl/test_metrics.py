"""Lines as verl 0.9.1 wrote them, and what is read from them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sweeper.engines.verl.metrics import progress
from sweeper.search.stops import Health

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
    assert math.isnan(found.metrics["actor/nothing"])


def test_what_is_no_number_is_seen_in_what_verl_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By verl's own logger, whose JSON has no NaN."""
    from verl.utils.tracking import FileLogger

    path = tmp_path / "metrics.jsonl"
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(path))
    for name, called in {"critic/score/mean": "reward", "actor/pg_loss": "loss", "actor/entropy": "entropy"}.items():
        logger = FileLogger("p", "e")
        logger.log({"critic/score/mean": 0.5, "actor/pg_loss": 0.1, "actor/entropy": 0.4, name: math.nan}, 1)
        logger.finish()
        found = progress(json.loads(path.read_text()), config())
        assert found is not None
        stop = Health({"nan": True, "patience": 5}).see(found)
        assert stop is not None
        assert (stop.reason, stop.detail) == ("nan", f"{called} is nan at step 1")


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


def test_what_is_no_metric_is_left_out() -> None:
    found = progress(json.loads('{"step": 1, "data": {"note": "text", "x": true}}'), config())
    assert found is not None
    assert found.metrics == {}


def signals(data: dict[str, Any], **actor: Any) -> dict[str, float]:
    found = progress({"step": 1, "data": data}, {**config(), "actor_rollout_ref": {"actor": actor}})
    assert found is not None
    return dict(found.signals)


@pytest.mark.parametrize("run", ["grpo", "ppo"])
def test_a_real_step_has_every_signal(run: str) -> None:
    line = json.loads((Path(__file__).parent / "runs" / f"{run}.jsonl").read_text().splitlines()[1])
    found = signals(line["data"], loss_agg_mode="token-mean")
    judged = {"loss", "grad_norm", "entropy", "kl", "reward_spread", "saturated", "mismatch"}
    assert set(found) == judged | {"rollout_s", "response_tokens", "imbalance"}
    assert found["loss"] == line["data"]["actor/pg_loss"]
    assert 0.3 < found["entropy"] < 3
    assert abs(found["kl"]) < 0.1
    assert found["reward_spread"] == 1
    assert 0 <= found["saturated"] <= 1
    assert found["mismatch"] < 1e-5


def test_a_validation_has_no_signals() -> None:
    assert signals({"val-core/gsm8k/acc/mean@1": 0.2}) == {}


def test_a_signal_that_is_not_a_number_is_kept_as_that() -> None:
    line = json.loads(
        '{"actor/pg_loss": NaN, "critic/score/max": NaN, "critic/score/min": 0, "actor/entropy": Infinity}'
    )
    found = signals(line)
    assert math.isnan(found["loss"])
    assert math.isnan(found["reward_spread"])
    assert found["entropy"] == math.inf


@pytest.mark.parametrize(
    ("mode", "value"),
    [("token-mean", 0.5), ("seq-mean-token-mean", 0.5), ("seq-mean-token-sum", 5.0), ("seq-mean-token-sum-norm", 0.25)],
)
def test_entropy_is_per_token_however_verl_adds_it_up(mode: str, value: float) -> None:
    data = {"actor/entropy": value, "response_length/mean": 10.0, "response_length/max": 20.0}
    assert signals(data, loss_agg_mode=mode)["entropy"] == pytest.approx(0.5)
    if mode.endswith("norm"):
        assert signals(data, loss_agg_mode=mode, loss_scale_factor=40)["entropy"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("mode", "value"),
    [("token-mean", 0.5), ("seq-mean-token-mean", 0.5), ("seq-mean-token-sum", 5.0), ("seq-mean-token-sum-norm", 0.25)],
)
def test_kl_to_the_reference_is_that_of_the_open_gate_a_token(mode: str, value: float) -> None:
    length = {"response_length/mean": 10.0, "response_length/max": 20.0}
    assert "kl_ref" not in signals({"actor/ppo_kl": 0.1, **length}, loss_agg_mode=mode), "no gate is open"
    assert signals({"actor/kl_loss": value, **length}, loss_agg_mode=mode)["kl_ref"] == pytest.approx(0.5)
    in_reward = {"actor/reward_kl_penalty": 0.3, **length}
    assert signals(in_reward, loss_agg_mode=mode)["kl_ref"] == 0.3, "a mean over tokens whatever the loss is"
    both = {"actor/kl_loss": value, **in_reward}
    assert signals(both, loss_agg_mode=mode)["kl_ref"] == pytest.approx(0.5), "the larger"
    assert math.isnan(signals({**both, "actor/reward_kl_penalty": math.nan}, loss_agg_mode=mode)["kl_ref"])


def test_an_entropy_over_an_unknown_number_of_tokens_is_left_out() -> None:
    assert "entropy" not in signals({"actor/entropy": 9.0}, loss_agg_mode="token-sum")
    assert "kl_ref" not in signals({"actor/kl_loss": 9.0}, loss_agg_mode="token-sum")
