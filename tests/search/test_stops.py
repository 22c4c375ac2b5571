"""When a training is ended early, and that a healthy one never is."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sweeper.engines.base import Progress
from sweeper.search.base import Stop
from sweeper.search.stops import Health, check

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS: dict[str, Any] = yaml.safe_load((ROOT / "conf/config.yaml").read_text())["stop"]
CURVES = ROOT / "tests/search/health_curves.csv"


def line(step: int, reward: float | None = 0.3, **signals: float) -> Progress:
    return Progress(step, {}, reward=reward, signals=signals)


def first_stop(lines: list[Progress], **settings: Any) -> Stop | None:
    health = Health({**DEFAULTS, **settings})
    return next((stop for p in lines if (stop := health.see(p))), None)


def real(name: str) -> list[Progress]:
    """The signals of a real training: verl 0.9.1 on two CPU cores, `algorithm=grpo,ppo`, with and without `lr=1e-2`."""
    with CURVES.open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["run"] == name]
    return [
        Progress(
            int(r["step"]),
            {},
            reward=float(r["reward"]),
            signals={k: float(r[k]) for k in ("loss", "grad_norm", "entropy", "kl", "reward_spread", "saturated")},
        )
        for r in rows
    ]


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_no_default_bound_stops_a_real_healthy_training_even_without_patience(name: str) -> None:
    assert len(real(name)) == 30
    assert first_stop(real(name)) is None
    assert first_stop(real(name), patience=1) is None


@pytest.mark.parametrize("name", ["grpo lr=1e-2", "ppo lr=1e-2"])
def test_a_real_training_that_a_rate_of_1e_2_destroys_is_recognised(name: str) -> None:
    stop = first_stop(real(name))
    assert stop is not None
    assert stop.step is not None and stop.step < 30
    assert stop.detail


@pytest.mark.parametrize(
    ("signals", "reason"),
    [
        ({"entropy": 1e-5}, "entropy-collapse"),
        ({"entropy": 2.0}, "entropy-blow-up"),
        ({"kl": 1.5}, "kl-blow-up"),
        ({"kl_ref": 2.5}, "kl-blow-up"),
        ({"reward_spread": 0.0}, "no-reward-variance"),
        ({"saturated": 1.0}, "length-saturation"),
    ],
)
def test_a_bound_has_to_be_broken_for_patience_steps_on_end(signals: dict[str, float], reason: str) -> None:
    well = {"entropy": 0.6, "kl": 0.01, "kl_ref": 0.1, "reward_spread": 1.0, "saturated": 0.1}
    start = [line(1, **well)]
    bad = [line(step, **signals) for step in range(2, 7)]
    stop = first_stop(start + bad)
    assert stop is not None and (stop.reason, stop.step) == (reason, 6)
    assert "5 steps on end (2 to 6)" in stop.detail and "\n" not in stop.detail
    assert next(iter(signals.values())) in stop.evidence.values(), "the value"
    assert any(key in DEFAULTS and stop.evidence[key] == DEFAULTS[key] for key in stop.evidence), "the bound"
    assert first_stop(start + bad[:4]) is None
    assert first_stop([*start, *bad[:4], line(6, **well), *[line(s, **signals) for s in range(7, 11)]]) is None


@pytest.mark.parametrize(
    "key", ["entropy_below", "entropy_above", "kl_above", "kl_ref_above", "reward_spread_below", "saturated_above"]
)
def test_null_switches_a_rule_off(key: str) -> None:
    signals = {
        "entropy_below": {"entropy": 0.0},
        "entropy_above": {"entropy": 9.0},
        "kl_above": {"kl": 9.0},
        "kl_ref_above": {"kl_ref": 9.0},
        "reward_spread_below": {"reward_spread": 0.0},
        "saturated_above": {"saturated": 1.0},
    }[key]
    lines = [line(1, entropy=0.5, saturated=0.0), *(line(step, **signals) for step in range(2, 20))]
    assert first_stop(lines) is not None
    assert first_stop(lines, **{key: None}) is None


def test_the_two_measures_of_kl_are_counted_apart_and_the_evidence_names_the_one_that_was_broken() -> None:
    lines = [line(s, kl=0.001, kl_ref=0.2 * s) for s in range(1, 30)]
    stop = first_stop(lines)
    assert stop is not None and (stop.reason, stop.step) == ("kl-blow-up", 15), "above 2 from step 11 on"
    assert stop.evidence == {"kl_ref": 3.0, "kl_ref_above": 2.0}
    assert "KL to the reference policy" in stop.detail
    updates = first_stop([line(s, kl=1.5, kl_ref=0.1) for s in range(1, 30)])
    assert updates is not None and updates.evidence == {"kl": 1.5, "kl_above": 1.0}
    # Each is well while the other is not: neither holds `patience` steps on end.
    turns = [line(s, kl=1.5 if s % 2 else 0.0, kl_ref=0.0 if s % 2 else 2.5) for s in range(1, 30)]
    assert first_stop(turns) is None


def test_a_policy_that_has_solved_the_task_is_not_too_far_from_its_reference() -> None:
    # 0.74 nats a token: the tiny model's own probabilities of all right answers (docs/search.md)
    assert first_stop([line(s, kl_ref=0.74, reward=1.0) for s in range(1, 30)], patience=1) is None


@pytest.mark.parametrize("signal", ["loss", "entropy", "kl", "kl_ref"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stops_at_once(signal: str, value: float) -> None:
    stop = first_stop([line(1, **{signal: value})])
    assert stop is not None and (stop.reason, stop.step) == ("nan", 1)
    assert signal in stop.detail and signal in stop.evidence
    assert first_stop([line(1, **{signal: value})], nan=False) is None


def test_a_reward_that_is_no_number_stops_at_once() -> None:
    stop = first_stop([line(3, reward=math.nan)])
    assert stop is not None and stop.reason == "nan"


def test_a_gradient_that_is_no_number_now_and_then_is_skipped_by_the_trainer_and_stops_nothing() -> None:
    assert first_stop([line(s, grad_norm=math.inf if s % 2 else 1.0) for s in range(1, 30)]) is None
    stop = first_stop([line(s, grad_norm=math.inf) for s in range(1, 30)])
    assert stop is not None and (stop.reason, stop.step) == ("nan", 5)


def test_a_signal_that_a_trainer_does_not_write_stops_nothing() -> None:
    assert first_stop([line(step, reward=None) for step in range(1, 100)]) is None


def test_steps_that_come_again_after_a_resume_count_once() -> None:
    lines = [line(1, entropy=0.5), *(line(s, entropy=0.0) for s in (2, 3, 4, 3, 4, 3, 4, 5))]
    assert first_stop(lines) is None
    assert first_stop([*lines, line(6, entropy=0.0)]) is not None


def test_the_validation_before_training_is_no_training_step() -> None:
    lines = [line(0, entropy=9.0), *(line(s, entropy=0.5) for s in range(1, 10))]
    assert first_stop(lines) is None, "the first step's entropy is that of step 1"
    assert first_stop([line(0, entropy=0.1), *(line(s, entropy=0.5) for s in range(1, 10))]) is None


def test_a_task_that_is_solved_is_not_ended_for_having_no_spread() -> None:
    solved = [line(1, reward=0.2, reward_spread=1.0), *(line(s, reward=1.0, reward_spread=0.0) for s in range(2, 30))]
    assert first_stop(solved) is None
    never = [line(s, reward=0.0, reward_spread=0.0) for s in range(1, 30)]
    stop = first_stop(never)
    assert stop is not None and stop.reason == "no-reward-variance" and "reward is 0, at first 0" in stop.detail


def test_a_limit_that_is_the_length_of_an_answer_stops_nothing() -> None:
    assert first_stop([line(s, saturated=1.0) for s in range(1, 30)]) is None


numbers = st.floats(allow_nan=True, allow_infinity=True)
steps = st.builds(
    line,
    st.integers(0, 12),
    st.none() | numbers,
    loss=numbers,
    grad_norm=numbers,
    entropy=numbers,
    kl=numbers,
    kl_ref=numbers,
    reward_spread=numbers,
    saturated=numbers,
)


@given(st.lists(steps, max_size=20))
def test_the_same_lines_give_the_same_answer_again_and_evidence_is_numbers(lines: list[Progress]) -> None:
    stop = first_stop(lines)
    again = first_stop(lines)
    assert repr(again) == repr(stop)  # repr: NaN equals nothing
    if stop:
        assert all(isinstance(v, float | int) for v in stop.evidence.values())


@given(st.lists(st.builds(line, st.integers(0, 50), st.floats(0, 1), entropy=st.floats(0.2, 0.5)), max_size=40))
def test_values_within_the_bounds_never_stop(lines: list[Progress]) -> None:
    assert first_stop(lines) is None


def test_settings_that_cannot_be_meant_are_named() -> None:
    assert check(DEFAULTS) == []
    wrong = {"patience": 0, "nan": "often", "kl_above": "high", "entropy_below": -1, "saturation": 1}
    assert [p.key for p in check(wrong)] == [f"stop.{key}" for key in wrong]
    assert check({key: None for key in DEFAULTS if key != "patience"}) == []
