"""What is done about a failed attempt, and when an attempt that says nothing is given up.

Guarantees: pure, with no clock and no files; the same failures in the same order give the same decisions, so a
controller that was killed gets its counts back by telling them again.

What is done, by kind (engines.base.Failure.kind):
    preempted, node-lost   again, and it does not count: the trial did nothing wrong. After `FRUITLESS` of them in a row
                           without a new step the trial is given up, for then something else is wrong.
    out-of-memory          again, but only with less memory needed (`Engine.relieve`): unchanged it would fail again
    launch, stalled        again, while `retries` last
    nan, data, disk, bug   never: the same would happen again, and on a full disk it would happen to every trial
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeper.engines.base import Failure
from sweeper.errors import Problem

UNCOUNTED = frozenset({"preempted", "node-lost"})
COUNTED = frozenset({"launch", "stalled"})
RELIEVED = "out-of-memory"
OF_THE_POINT = frozenset({"nan"})
"""Kinds that say something of a trial's values and nothing of the sweep: a search over learning rates will see many a
divergence, all with one signature, and goes on."""
FRUITLESS = 20
"""Uncounted failures in a row without a new step after which a trial is given up."""

KEYS = ("retries", "same", "stalled", "stalled_min_s", "first_step_s")


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done about one failure."""

    retry: bool
    why: str
    """In one line: `attempt 2 of 3`, `the same would happen again`."""
    change: str = ""
    """What the next attempt does differently; empty when nothing."""
    config: Mapping[str, Any] | None = None
    """The next attempt's config, where it is another one."""
    end_sweep: str = ""
    """Why the sweep should start nothing more; empty when it should go on."""


@dataclass(slots=True)
class _Counts:
    counted: int = 0
    relieved: int = 0
    fruitless: int = 0
    step: int = 0


@dataclass(slots=True)
class Policy:
    """Remembers the failures of one sweep."""

    settings: Mapping[str, Any]
    """The config's `failures`, checked by `check`."""
    _trials: dict[str, _Counts] = field(default_factory=dict)
    _given_up: dict[str, list[str]] = field(default_factory=dict)

    def failed(
        self,
        trial: str,
        failure: Failure,
        *,
        step: int | None,
        relieve: Callable[[int], tuple[Mapping[str, Any], str] | None],
    ) -> Decision:
        """Decide about a failed attempt.

        Args:
            trial: whose attempt it was.
            failure: why it failed.
            step: the last step that the trial has reached in all its attempts; None without one.
            relieve: `engine.relieve` of the trial's config: called with how often it ran out of memory, from 1, and
                only then.
        """
        counts = self._trials.setdefault(trial, _Counts())
        if (step or 0) > counts.step:
            counts.step, counts.fruitless = step or 0, 0
        decision = self._decide(counts, failure, relieve)
        return decision if decision.retry else self._give_up(trial, failure, decision.why)

    def forget(self, trial: str) -> None:
        """The trial is tried afresh, by a user who may have mended what was wrong."""
        self._trials.pop(trial, None)
        for alike in self._given_up.values():
            if trial in alike:
                alike.remove(trial)

    def _decide(
        self,
        counts: _Counts,
        failure: Failure,
        relieve: Callable[[int], tuple[Mapping[str, Any], str] | None],
    ) -> Decision:
        kind = failure.kind
        if kind in UNCOUNTED:
            counts.fruitless += 1
            again = counts.fruitless < FRUITLESS
            why = "does not count" if again else f"{FRUITLESS} times in a row without a new step"
            return Decision(again, f"{kind} {why}")
        if kind == RELIEVED:
            counts.relieved += 1
            if relief := relieve(counts.relieved):
                return Decision(True, "needs less memory now", change=relief[1], config=relief[0])
            return Decision(False, "out of memory, and nothing is left that would need less of it")
        if kind not in COUNTED:
            return Decision(False, "the same would happen again")
        counts.counted += 1
        retries = int(self.settings.get("retries") or 0)
        again = counts.counted <= retries
        return Decision(
            again, f"retry {counts.counted} of {retries}" if again else f"{kind}, and {retries} retries are used up"
        )

    def _give_up(self, trial: str, failure: Failure, why: str) -> Decision:
        same = self.settings.get("same")
        if same is None or failure.kind in OF_THE_POINT or not failure.signature:
            return Decision(False, why)
        alike = self._given_up.setdefault(failure.signature, [])
        if trial not in alike:
            alike.append(trial)
        if len(alike) < int(same):
            return Decision(False, why)
        named = ", ".join(alike[:5]) + (f" and {len(alike) - 5} more" if len(alike) > 5 else "")
        line = failure.lines[0] if failure.lines else failure.signature
        trials = f"{len(alike)} trial{'s' * (len(alike) > 1)} failed in the same way"
        return Decision(False, why, end_sweep=f"{trials} ({failure.kind}; {named}): {line}")


class Stalls:
    """Says when an attempt is taken for dead: no step for so many times its usual step, or no first one."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings`: the config's `failures`."""
        self._times = settings.get("stalled")
        self._least = float(settings.get("stalled_min_s") or 0.0)
        self._first = settings.get("first_step_s")

    def limit_s(self, steps_s: Sequence[float]) -> float:
        """Seconds that it may go without a step, given those its latest steps took; infinite where the rule is off."""
        usual = [s for s in steps_s if math.isfinite(s) and s >= 0]
        if not usual:
            return math.inf if self._first is None else float(self._first)
        return math.inf if self._times is None else max(float(self._times) * statistics.median(usual), self._least)

    def stalled(self, *, started: float, progressed: float | None, steps_s: Sequence[float], now: float) -> str:
        """Why the attempt counts as stalled, in one line; empty while it does not.

        Args:
            started: when this attempt was started, or taken up again by a new controller.
            progressed: when its latest step was seen; None before the first of this attempt, which may have a model
                to load and a validation to run, whatever earlier attempts took for a step.
            steps_s: seconds of its latest steps.
            now: all three on one clock that stands still while the machine sleeps, or a laptop's lid would end it
                (`time.monotonic` on Linux).
        """
        known = steps_s if progressed is not None else ()
        limit, quiet = self.limit_s(known), now - (started if progressed is None else progressed)
        if quiet <= limit:
            return ""
        if progressed is None:
            return f"no first step after {quiet:.0f} s (failures.first_step_s={limit:.0f})"
        usual = f"a step usually takes {statistics.median(known):.3g} s, " if known else ""
        return f"no step for {quiet:.0f} s; {usual}the limit is {limit:.0f} s"


def check(settings: Mapping[str, Any]) -> list[Problem]:
    """Everything that is wrong with the config's `failures`."""
    return list(_problems(settings))


def _problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    for key, value in settings.items():
        name = f"failures.{key}"
        if key not in KEYS:
            yield Problem(f"{name} is not known", valid=", ".join(KEYS), key=name)
        elif key in ("retries", "same"):
            least = 0 if key == "retries" else 1
            off = key == "same" and value is None
            if not off and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                also = "; null: never" if key == "same" else ""
                yield Problem(f"{name}={value} is no count", valid=f"a whole number from {least}{also}", key=name)
        elif value is not None and (
            not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0
        ):
            yield Problem(f"{name}={value} is no time", valid="a number from 0; null switches it off", key=name)
