"""How much of a search's training a scheduler leaves, by arithmetic.

Guarantees: no measurement; an expectation over trials that keep their rank. A share of 1.0 is the whole.

    asha, hyperband   Successive halving (Li et al., 2020, section 3; 2018, algorithm 1): of the candidates that reach a
                      rung one in `reduction_factor` goes on. With rungs r1 < r2 < ... and R steps in all, a candidate
                      trains (r1 + (r2 - r1)/f + (r3 - r2)/f^2 + ... + (R - rk)/f^k) / R of its steps on average; the
                      mean over the brackets, which hyperband fills with ceil((s_max + 1) f^s / (s + 1)) candidates.
                      Asynchronous decisions let some more pass in the beginning, so real figures lie above.
    median            A candidate below the median is ended (Golovin et al., 2017, section 3.2.2): half of them, right
                      after the grace period g: (g + (R - g)/2) / R.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.search.schedulers.rules import Steps, asha_rungs, grace, hyperband_rungs


def share(settings: Mapping[str, Any], steps: Steps) -> float | None:
    """The expected share of all training steps; None where the scheduler ends nothing early (none, pbt, pb2).

    `settings`: the composed option of conf/scheduler, one that `rules.check` has no problem with.
    """
    name, total = settings["name"], steps.total
    if name == "median":
        first = grace(settings, steps)
        return (first + (total - first) / 2) / total
    if name == "asha":
        factor, first = float(settings["reduction_factor"]), grace(settings, steps)
        brackets = []
        for bracket in range(int(settings["brackets"])):
            count = asha_rungs(first, total, factor, bracket)
            brackets.append([first * factor ** (bracket + k) for k in range(count)])
        return sum(_halving(_at(steps, rungs), total, factor) for rungs in brackets) / len(brackets)
    if name == "hyperband":
        factor = float(settings["reduction_factor"])
        found = hyperband_rungs(len(steps.validated), factor)
        most = len(found) - 1
        sizes = [math.ceil((most + 1) * factor**s / (s + 1)) for s in range(len(found))]
        shares = [_halving([steps.validated[count - 1] for count in rungs], total, factor) for rungs in found]
        return sum(n * part for n, part in zip(sizes, shares, strict=True)) / sum(sizes)
    return None


def _at(steps: Steps, rungs: Sequence[float]) -> list[int]:
    """The validations at which rungs are noticed: the first at or after each, with training left after it."""
    found = (next((v for v in steps.inner if v >= rung), None) for rung in rungs)
    return sorted({v for v in found if v is not None})


def _halving(rungs: Sequence[int], total: int, factor: float) -> float:
    trained, before, left = 0.0, 0, 1.0
    for rung in rungs:
        trained += left * (rung - before)
        before, left = rung, left / factor
    return (trained + left * (total - before)) / total
