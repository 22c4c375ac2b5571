"""The settings of each scheduler: their defaults, and why some cannot work.

Guarantees: arithmetic only, Ray is not imported, so that a plan can ask; every problem is found, not the first one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.errors import Problem
from sweeper.search.base import Dim

POPULATION = ("pbt", "pb2")
RESUMING = ("hyperband", *POPULATION)
"""Those that end a candidate's attempts and go on from a checkpoint."""


@dataclass(frozen=True, slots=True)
class Steps:
    """When the candidates of an arm are compared."""

    total: int
    """Training steps of a candidate that is left alone."""
    validated: tuple[int, ...]
    """Steps with a score, rising; the last one may be `total`. What is measured before training is not among them."""

    @classmethod
    def of(cls, validations: Iterable[int], total: int) -> Steps:
        """Those of the validations that are in training."""
        return cls(total, tuple(sorted({v for v in validations if 0 < v <= total})))

    @property
    def inner(self) -> tuple[int, ...]:
        """Those with training left after them: only there a decision saves anything."""
        return tuple(v for v in self.validated if v < self.total)

    def count(self, step: int) -> int:
        """Validations until that step, itself included."""
        return bisect_right(self.validated, step)


def grace(settings: Mapping[str, Any], steps: Steps) -> int:
    """asha: the first validation; median: the second, so that a mean is of more than one score."""
    given = settings.get("grace_period")
    return int(given) if given is not None else steps.inner[1 if settings["name"] == "median" else 0]


def interval(settings: Mapping[str, Any], steps: Steps) -> int:
    """pbt, pb2: every validation, unless given."""
    given = settings.get("interval")
    if given is not None:
        return int(given)
    return min(b - a for a, b in zip((0, *steps.inner), steps.inner, strict=False))


def asha_rungs(first: int, total: int, factor: float, bracket: int = 0) -> int:
    """How many rungs Tune makes, as it computes them (ray 2.60, tune/schedulers/async_hyperband.py `_Bracket`)."""
    return max(0, int(math.log(total / first) / math.log(factor) - bracket + 1))


def hyperband_rungs(validations: int, factor: float) -> list[list[int]]:
    """For each bracket the rungs at which it halves, as counts of validations (ray 2.60, tune/schedulers/hyperband.py).

    Tune's brackets go from no halving at all to as many as there are validations for.
    """
    brackets = []
    for s in range(round(math.log(validations) / math.log(factor)) + 1):
        rung = int(validations * factor**-s)
        if rung == 0:
            break
        rungs = []
        for _ in range(s):
            rungs.append(rung)
            rung = int(min(rung * factor, validations))
        brackets.append(rungs)
    return brackets


def decisions(settings: Mapping[str, Any], steps: Steps) -> list[int]:
    """The steps at which a candidate may be ended to go on from a checkpoint."""
    if settings["name"] == "hyperband":
        brackets = hyperband_rungs(len(steps.validated), float(settings["reduction_factor"]))
        return [s for s in steps.inner if any(steps.count(s) in rungs for rungs in brackets)]
    every, last, found = interval(settings, steps), 0, []
    for step in steps.inner:
        if step - last >= every:
            found.append(step)
            last = step
    return found


def check(
    settings: Mapping[str, Any],
    *,
    validations: Sequence[int],
    total_steps: int,
    dims: Sequence[Dim],
    checkpoints: Sequence[int],
    forkable: Callable[[str], bool] = lambda _: True,
) -> list[Problem]:
    """Why the scheduler of `settings` (the composed option of conf/scheduler) cannot work; empty when it can.

    `validations`: steps with a score; `checkpoints`: steps that are saved; `dims`: those of the arm; `forkable`:
    whether a checkpoint can be gone on from under another value of a key.
    """
    name = settings["name"]
    if name == "none":
        return []
    steps = Steps.of(validations, total_steps)
    found = _numbers(settings)
    if not steps.inner:
        found.append(
            Problem(
                f"scheduler={name} compares candidates while they train, and none of the {total_steps} steps before "
                "the last one is validated",
                valid=f"trainer.test_freq: 1 to {total_steps - 1}" if total_steps > 1 else "",
                fix=f"trainer.test_freq={max(1, total_steps // 4)}" if total_steps > 1 else "scheduler=none",
                key="scheduler",
            )
        )
    if found:  # what follows computes with these numbers
        return found
    found = _RULES[name](settings, steps)
    if name in POPULATION:
        found += _dims(name, dims)
        found += [_fixed(name, dim) for dim in dims if not forkable(dim.key)]
    if name in RESUMING and not found:
        saved = set(checkpoints)
        if lost := [s for s in decisions(settings, steps) if s not in saved]:
            some = ", ".join(map(str, lost[:5])) + (" ..." if len(lost) > 5 else "")
            every = math.gcd(*lost)
            found.append(
                Problem(
                    f"scheduler={name} goes on from the checkpoints of the steps at which it decides, and of these are "
                    f"not saved: {some}",
                    valid="a checkpoint at each of them",
                    fix=f"trainer.save_freq={every}",
                    key="trainer.save_freq",
                )
            )
    return found


def _numbers(settings: Mapping[str, Any]) -> list[Problem]:
    """Settings out of their range, whatever the run looks like."""
    name = settings["name"]
    whole = {"grace_period": 1, "brackets": 1, "min_samples": 1, "interval": 1, "bootstrap": 0}
    or_null = ("grace_period", "interval")
    ranges = {
        "reduction_factor": (2.0, math.inf, "2 or more") if name == "hyperband" else (1.0, math.inf, "more than 1"),
        "quantile": (0.0, 0.5, "more than 0, at most 0.5"),
        "resample": (0.0, 1.0, "0 to 1"),
    }
    found = []
    for key, value in settings.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        off = value is None and key in or_null
        if key in whole and not off and not (number and value == int(value) and value >= whole[key]):
            found.append(_wrong(name, key, value, f"a whole number, {whole[key]} or more"))
        if key in ranges:
            low, high, valid = ranges[key]
            above = number and (value > low or (value == low and (key == "resample" or name == "hyperband")))
            if not (above and value <= high):
                found.append(_wrong(name, key, value, valid))
    return found


def _wrong(name: str, key: str, value: object, valid: str, why: str = "", fix: str = "") -> Problem:
    said = "null" if value is None else value
    return Problem(
        f"scheduler={name}: {key}={said} {why or 'cannot be'}",
        valid=f"scheduler.{key}: {valid}",
        fix=fix or f"scheduler={name}",  # the option's own values work
        key=f"scheduler.{key}",
    )


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) if len(steps) <= 8 else f"{steps[0]}, {steps[1]}, ..., {steps[-1]}"


def _fixed(name: str, dim: Dim) -> Problem:
    arms = ",".join(map(str, dim.values)) if dim.values else "A,B"
    return Problem(
        f"scheduler={name} goes on from another candidate's checkpoint under other values, and no checkpoint can be "
        f"gone on from under another {dim.name}",
        valid="what a training can go on with: lr, kl, the coefficients of losses, sampling",
        fix=f"{dim.name}={arms}   (arms, each with a population of its own), or scheduler=asha",
        key=dim.name,
    )


def _asha(settings: Mapping[str, Any], steps: Steps) -> list[Problem]:
    first = grace(settings, steps)
    if first > steps.inner[-1]:
        return [_late("asha", first, steps)]
    brackets, factor = int(settings["brackets"]), float(settings["reduction_factor"])
    useful = [b for b in range(brackets) if first * factor**b <= steps.inner[-1]]
    if len(useful) < brackets:
        why = f"are more than can compare: from step {first} on, each starts {factor:g} times later than the one before"
        return [_wrong("asha", "brackets", brackets, f"1 to {len(useful)}", why, f"scheduler.brackets={len(useful)}")]
    return []


def _late(name: str, first: int, steps: Steps) -> Problem:
    why = f"leaves nothing to decide: the last validation before the end at {steps.total} is at {steps.inner[-1]}"
    return _wrong(name, "grace_period", first, f"1 to {steps.inner[-1]}, or null", why, "scheduler.grace_period=null")


def _median(settings: Mapping[str, Any], steps: Steps) -> list[Problem]:
    if len(steps.inner) < 2:
        return [
            Problem(
                "scheduler=median compares means of scores, and there is only one validation before the last step, at "
                f"{steps.inner[0]} of {steps.total}",
                valid="2 validations or more before the last step",
                fix=f"trainer.test_freq={max(1, steps.total // 4)}" if steps.total > 2 else "scheduler=asha",
                key="scheduler",
            )
        ]
    first = grace(settings, steps)
    return [_late("median", first, steps)] if first > steps.inner[-1] else []


def _hyperband(settings: Mapping[str, Any], steps: Steps) -> list[Problem]:
    factor, count = float(settings["reduction_factor"]), len(steps.validated)
    if any(hyperband_rungs(count, factor)):
        return []
    why = f"needs as many validations for one halving, and there are {count}"
    fix = "scheduler.reduction_factor=2" if count >= 2 else f"trainer.test_freq={max(1, steps.total // 9)}"
    return [_wrong("hyperband", "reduction_factor", f"{factor:g}", f"2 to {max(2, count)}", why, fix)]


def _population(settings: Mapping[str, Any], steps: Steps) -> list[Problem]:
    every = interval(settings, steps)
    if settings.get("interval") is None or every in steps.inner:
        return []
    why = "is not a step with a score"
    return [
        _wrong(settings["name"], "interval", every, f"{_listed(steps.inner)}, or null", why, "scheduler.interval=null")
    ]


def _dims(name: str, dims: Sequence[Dim]) -> list[Problem]:
    if not dims:
        return [
            Problem(
                f"scheduler={name} changes the values of the search's dims, and there is none",
                valid="a dim: lr=tag(log,interval(1e-7,1e-4))",
                fix="scheduler=asha",
                key="scheduler",
            )
        ]
    words = [d for d in dims if name == "pb2" and d.values is not None and not numeric(d.values)]
    return [
        Problem(
            f"scheduler=pb2 models scores over numbers, and {d.name} has others: {', '.join(map(str, d.values or ()))}",
            valid=f"{d.name}: an interval, or a choice of numbers",
            fix="scheduler=pbt",
            key=d.key,
        )
        for d in words
    ]


def numeric(values: Iterable[object]) -> bool:
    """Whether all are numbers."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


_RULES = {"asha": _asha, "median": _median, "hyperband": _hyperband, "pbt": _population, "pb2": _population}
