"""What is done about a failed attempt, and when an attempt counts as stalled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sweeper.engines.base import Failure
from sweeper.trial.failures import FRUITLESS, Decision, Policy, Stalls, check

DEFAULTS: dict[str, Any] = yaml.safe_load((Path(__file__).resolve().parents[2] / "conf/config.yaml").read_text())[
    "failures"
]
KINDS = ("preempted", "node-lost", "out-of-memory", "stalled", "nan", "data", "disk", "launch", "bug")


def policy(**settings: Any) -> Policy:
    return Policy({**DEFAULTS, **settings})


def fail(p: Policy, kind: str, trial: str = "000", *, step: int | None = None, reliefs: int = 0) -> Decision:
    def relieve(times: int) -> tuple[dict[str, Any], str] | None:
        return ({"micro": 8 >> times}, f"micro-batch {8 >> times}") if times <= reliefs else None

    return p.failed(trial, Failure(kind, f"{kind}!", (f"what {kind} says",)), step=step, relieve=relieve)


@pytest.mark.parametrize("kind", ["preempted", "node-lost"])
def test_a_lost_machine_does_not_count_against_a_trial(kind: str) -> None:
    p = policy(retries=0)
    assert all(fail(p, kind, step=step).retry for step in range(1, 200)), "as long as it gets on"


@pytest.mark.parametrize("kind", ["preempted", "node-lost"])
def test_but_it_does_not_go_on_for_ever_without_a_step(kind: str) -> None:
    p = policy()
    decisions = [fail(p, kind, step=7) for _ in range(FRUITLESS + 1)]
    assert [d.retry for d in decisions[:FRUITLESS]] == [True] * (FRUITLESS - 1) + [False]
    assert "without a new step" in decisions[FRUITLESS - 1].why
    assert fail(p, kind, step=8).retry, "a new step starts the count anew"


@pytest.mark.parametrize("kind", ["launch", "stalled"])
def test_what_may_pass_is_tried_again_so_many_times(kind: str) -> None:
    p = policy(retries=2)
    assert [fail(p, kind).retry for _ in range(3)] == [True, True, False]
    assert fail(p, kind, "001").retry, "each trial has its own"
    assert not fail(policy(retries=0), kind).retry


@pytest.mark.parametrize("kind", ["nan", "data", "disk", "bug", "something new"])
def test_what_would_happen_again_is_not_tried_again(kind: str) -> None:
    assert not fail(policy(), kind).retry


def test_out_of_memory_is_never_tried_again_unchanged() -> None:
    p = policy(retries=0)
    first, second, third = (fail(p, "out-of-memory", reliefs=2) for _ in range(3))
    assert (first.retry, first.config, first.change) == (True, {"micro": 4}, "micro-batch 4")
    assert (second.retry, second.config) == (True, {"micro": 2})
    assert (third.retry, third.config) == (False, None)
    assert "nothing is left" in third.why
    assert not fail(p, "out-of-memory", "001", reliefs=0).retry


def test_the_sweep_ends_after_so_many_trials_failed_in_the_same_way() -> None:
    p = policy(same=3)
    ends = [fail(p, "bug", trial).end_sweep for trial in ("000", "001", "001", "002")]
    assert ends[:3] == ["", "", ""], "a trial counts once"
    assert ends[3] == "3 trials failed in the same way (bug; 000, 001, 002): what bug says"
    assert not fail(policy(same=None), "bug").end_sweep
    assert fail(policy(same=1), "bug").end_sweep.startswith("1 trial failed")


def test_other_signatures_and_failures_that_were_got_over_end_nothing() -> None:
    p = policy(same=2)
    assert not fail(p, "bug", "000").end_sweep
    assert not fail(p, "data", "001").end_sweep
    assert not fail(p, "stalled", "002").end_sweep
    assert not fail(p, "stalled", "003").end_sweep, "both are tried again"


def test_points_that_diverge_are_an_answer_and_do_not_end_a_search() -> None:
    p = policy(same=2)
    assert not any(fail(p, "nan", str(i)).end_sweep for i in range(10))


failures = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 3), st.none() | st.integers(0, 9)), max_size=60)


@given(failures, st.integers(0, 3))
def test_the_same_failures_told_again_give_the_same_decisions(told: list[tuple[str, int, int | None]], r: int) -> None:
    def all_of(p: Policy) -> list[Decision]:
        return [fail(p, kind, str(trial), step=step, reliefs=1) for kind, trial, step in told]

    decisions = all_of(policy(retries=r))
    assert decisions == all_of(policy(retries=r))
    for (kind, _, _), decision in zip(told, decisions, strict=True):
        assert decision.why
        if decision.retry:
            assert kind in ("preempted", "node-lost", "out-of-memory", "launch", "stalled")
            assert (kind == "out-of-memory") == (decision.config is not None)
            assert not decision.end_sweep


@given(st.lists(st.sampled_from(KINDS), min_size=400, max_size=400))
def test_a_trial_that_only_fails_comes_to_an_end(kinds: list[str]) -> None:
    p = policy()
    count = next((i for i, kind in enumerate(kinds) if not fail(p, kind, reliefs=3).retry), None)
    assert count is not None and count <= FRUITLESS + DEFAULTS["retries"] + 3


def test_an_attempt_is_stalled_when_it_takes_many_times_its_usual_step() -> None:
    stalls = Stalls({"stalled": 20, "stalled_min_s": 100, "first_step_s": 3600})
    slow = {"started": 0.0, "progressed": 1000.0, "steps_s": [60, 50, 70, 900]}  # one validation took long
    assert stalls.stalled(**slow, now=1000 + 20 * 65) == ""  # type: ignore[arg-type]
    why = stalls.stalled(**slow, now=1001 + 20 * 65)  # type: ignore[arg-type]
    assert "no step for 1301 s" in why and "usually takes 65 s" in why
    quick = {"started": 0.0, "progressed": 1000.0, "steps_s": [0.1]}
    assert stalls.stalled(**quick, now=1099) == "", "and at least so long"  # type: ignore[arg-type]
    assert stalls.stalled(**quick, now=1101) != ""  # type: ignore[arg-type]


def test_the_first_step_of_an_attempt_has_its_own_limit_whatever_earlier_ones_took() -> None:
    stalls = Stalls({"stalled": 20, "stalled_min_s": 600, "first_step_s": 30})
    assert stalls.stalled(started=10.0, progressed=None, steps_s=[1.0], now=39.0) == ""
    assert "failures.first_step_s=30" in stalls.stalled(started=10.0, progressed=None, steps_s=[1.0], now=41.0)


def test_a_trainer_that_does_not_say_how_long_a_step_takes_has_the_first_steps_limit() -> None:
    stalls = Stalls(DEFAULTS)
    assert stalls.limit_s([]) == stalls.limit_s([math.nan]) == DEFAULTS["first_step_s"]
    assert stalls.stalled(started=0.0, progressed=10.0, steps_s=[], now=3700.0)


def test_null_switches_the_rules_off() -> None:
    stalls = Stalls({"stalled": None, "stalled_min_s": 600, "first_step_s": None})
    assert stalls.stalled(started=0.0, progressed=None, steps_s=[], now=1e9) == ""
    assert stalls.stalled(started=0.0, progressed=1.0, steps_s=[1.0], now=1e9) == ""


def test_settings_that_cannot_be_meant_are_named() -> None:
    assert check(DEFAULTS) == []
    wrong = {"retries": -1, "same": 0, "stalled": "long", "first_step_s": -5, "retry": 1}
    assert [p.key for p in check(wrong)] == [f"failures.{key}" for key in wrong]
