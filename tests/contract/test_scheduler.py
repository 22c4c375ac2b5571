"""What every scheduler must do, whoever decides in it."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from race import Race, again, race

from sweeper.search import schedulers
from sweeper.search.base import Dim, Scheduler

NAMES = ("none", "asha", "median", "hyperband", "pbt", "pb2")
VALIDATIONS, TOTAL = tuple(range(5, 46, 5)), 45
LR = Dim("lr", low=1e-6, high=1e-3, log=True)
LONG = {"pb2": {"interval": 30}}
"""A model is fitted for each of its forks but the first, about a second each: most tests do with those."""
POINTS = [{"lr": 10 ** (-6 + 3 * ((7 * n) % 20) / 19)} for n in range(20)]  # neither rising nor falling


def gain(params: dict[str, Any]) -> float:
    """Best at 1e-4."""
    return 1.0 - abs(math.log10(params["lr"]) + 4) / 3


def settings(name: str, **changed: Any) -> dict[str, Any]:
    return {**yaml.safe_load(Path(f"conf/scheduler/{name}.yaml").read_text()), **LONG.get(name, {}), **changed}


def points(name: str) -> list[dict[str, Any]]:
    return POINTS[:8] if name == "pb2" else POINTS


def make(name: str, mode: str = "max", *, candidates: int | None = -1, seed: int = 1, **changed: Any) -> Scheduler:
    return schedulers.make(
        settings(name, **changed),
        [LR],
        mode=mode,
        validations=VALIDATIONS,
        total_steps=TOTAL,
        seed=seed,
        candidates=len(points(name)) if candidates == -1 else candidates,
    )


def run(name: str, mode: str = "max", *, candidates: int | None = -1, **how: Any) -> Race:
    sign = 1 if mode == "max" else -1
    them = how.pop("points", points(name))
    made = make(name, mode, candidates=len(them) if candidates == -1 else candidates)
    return race(made, them, gain=lambda p: sign * gain(p), validations=VALIDATIONS, total=TOTAL, **how)


every = pytest.mark.parametrize("name", NAMES)
both = pytest.mark.parametrize("mode", ["max", "min"])


@every
def test_the_options_of_the_config_group_have_no_problem(name: str) -> None:
    steps = range(1, TOTAL + 1)
    assert (
        schedulers.check(settings(name), validations=VALIDATIONS, total_steps=TOTAL, dims=[LR], checkpoints=steps) == []
    )


@every
@both
@pytest.mark.parametrize("slots", [1, 4])
def test_every_candidate_ends_and_the_best_one_finishes(name: str, mode: str, slots: int) -> None:
    done = run(name, mode, slots=slots)
    assert set(done.states().values()) <= {"finished", "pruned"}
    assert done.peak <= slots
    finished = [r for r in done.runners.values() if r.state == "finished"]
    best = max(finished, key=lambda r: r.quality if mode == "max" else -r.quality)
    assert abs(best.quality) >= TOTAL * 0.9 * max(map(gain, points(name)))


@every
def test_whoever_is_ended_or_changed_is_told_why_in_figures(name: str) -> None:
    done = run(name)
    told = [v for action in ("stop", "pause", "fork") for _, v in done.verdicts(action)]
    assert bool(told) is (name != "none")
    for verdict in told:
        assert verdict.why.startswith(f"{name}: ")
        assert "\n" not in verdict.why
        assert f"{verdict.evidence['step']}" in verdict.why
        assert all(isinstance(v, int | float) and not math.isnan(v) for v in verdict.evidence.values())


@every
@both
def test_the_same_calls_give_the_same_decisions(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LONG, "pb2", {"interval": 15})
    fails = {"003": 7, "007": 20}
    done = run(name, mode, fails=fails, blind=[("005", 5), ("006", 15)])
    assert again(make(name, mode), done.calls) == done.answers
    # Killed in the middle, the search goes on as if nothing had been.
    cut = len(done.calls) // 2
    other = make(name, mode)
    assert again(other, done.calls[:cut]) == done.answers[:cut]
    assert again(other, done.calls[cut:]) == done.answers[cut:]


@every
def test_what_may_go_on_is_the_same_after_a_replay_and_asking_changes_nothing(name: str) -> None:
    done = run(name)
    for cut in range(0, len(done.calls), 29):
        one, other = make(name), make(name)
        again(one, done.calls[:cut])
        again(other, done.calls[:cut])
        known = [call[1] for call in done.calls[:cut] if call[0] == "added"]
        assert one.resumable(known) == one.resumable(known) == other.resumable(known)
        assert again(one, done.calls[cut : cut + 7]) == done.answers[cut : cut + 7]


@every
def test_candidates_that_fail_block_nobody(name: str) -> None:
    dice = random.Random(7)
    count = len(points(name))
    for _ in range(2 if name == "pb2" else 4):
        fails = {f"{n:03d}": dice.randrange(1, TOTAL) for n in dice.sample(range(count), count // 2)}
        done = run(name, fails=fails, slots=dice.choice([1, 3, 8]))
        states = done.states()
        assert set(states.values()) <= {"finished", "pruned", "failed"}
        assert "finished" in states.values()


@every
def test_when_all_fail_nothing_is_left(name: str) -> None:
    done = run(name, fails={f"{n:03d}": 12 for n in range(20)})
    assert set(done.states().values()) <= {"failed", "pruned"}


@every
@pytest.mark.parametrize("count", [1, 2, 7, 23])
def test_any_number_of_candidates_ends_known_or_not(name: str, count: int) -> None:
    for known, dry in ((count, False), (None, False), (count + 5, True)):
        done = run(name, candidates=known, points=(POINTS * 2)[:count], dry=dry)
        assert set(done.states().values()) <= {"finished", "pruned"}, (known, dry)
        assert "finished" in done.states().values()


@every
@both
def test_a_score_that_is_no_number_is_the_worst_and_spoils_nothing(name: str, mode: str) -> None:
    blind = [(f"{n:03d}", step) for n in (1, 4, 6) for step in VALIDATIONS]
    done = run(name, mode, blind=blind)
    assert set(done.states().values()) <= {"finished", "pruned"}
    assert not {v.fork.donor for _, v in done.verdicts("fork") if v.fork} & {"001", "004", "006"}
    finished = [r for r in done.runners.values() if r.state == "finished" and r.id not in ("001", "004", "006")]
    assert max(abs(r.quality) for r in finished) >= TOTAL * 0.8 * max(map(gain, points(name)))
    if name in ("asha", "median"):  # the rule must have gone on working
        assert sum(state == "pruned" for state in done.states().values()) >= 5


@every
@both
def test_if_no_score_is_ever_a_number_the_search_still_ends(name: str, mode: str) -> None:
    done = run(name, mode, blind=[(f"{n:03d}", s) for n in range(20) for s in VALIDATIONS])
    assert set(done.states().values()) <= {"finished", "pruned"}


@every
def test_nobody_is_stopped_at_its_last_step(name: str) -> None:
    done = run(name)
    at = [c[2] for c, answer in zip(done.calls, done.answers, strict=True) if c[0] == "result" and c[1] in answer]
    assert TOTAL not in at
    made = make(name)
    made.added("000", POINTS[0])
    assert made.result("000", TOTAL, -1e9) == {}


@every
def test_what_comes_after_the_end_of_a_candidate_is_nothing(name: str) -> None:
    made = make(name)
    for n in range(6):
        made.added(f"{n:03d}", POINTS[n])
    assert made.ended("000") == made.ended("000") == {}
    assert made.result("000", 10, 1.0) == {}
    assert "000" not in made.resumable(["000"]) or name == "none"


@every
def test_the_random_numbers_of_the_process_are_left_as_they_were(name: str) -> None:
    made = make(name)  # loading Ray may draw
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.random()
    random.seed(3)
    np.random.seed(3)
    race(made, points(name), gain=gain, validations=VALIDATIONS, total=TOTAL)
    assert (random.random(), np.random.random()) == expected


@pytest.mark.parametrize("name", ["asha", "median", "hyperband"])
@both
def test_those_that_stop_candidates_save_steps(name: str, mode: str) -> None:
    assert run(name, mode).used < 0.8 * run("none", mode).used


@pytest.mark.parametrize("name", ["pbt", "pb2"])
@both
def test_those_that_fork_end_better_than_without(name: str, mode: str) -> None:
    poor = [p for p in POINTS if gain(p) < 0.75][:10]
    sign = 1 if mode == "max" else -1
    mean = {
        n: np.mean(
            [sign * r.quality for r in run(n, mode, points=poor, candidates=len(poor), slots=20).runners.values()]
        )
        for n in ("none", name)
    }
    assert mean[name] > mean["none"]
