"""Which points of an arm's space can run: looked at before anything is spent.

Guarantees: a finite space of up to `MOST` points is looked at as a whole; of a larger one, or one with intervals, drawn
points, the same each time; what was looked at is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from sweeper.config import dims as space
from sweeper.errors import Problem
from sweeper.plan.arms import Removed
from sweeper.plan.maker import Maker
from sweeper.search.base import Dim

MOST = 4096
"""Points that are all looked at."""
FEW, SOME, SAMPLE = 32, 256, 1024
"""Points that are drawn from a space with more: where all of the first can run; where some of them cannot, so that the
share can be said; and before it is said that none can."""
SHOWN = 5
"""Reasons that are spelled out where no point can run."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found."""

    size: int | None
    """Points of the space; None where it has intervals of numbers."""
    points: int
    """Points that were looked at."""
    able: int
    """Of those, how many can run."""
    first: Mapping[str, Any] | None
    """The first of those that can run."""
    removed: tuple[Removed, ...]
    problems: tuple[Problem, ...]
    """The reasons as they were given, most frequent first."""

    @property
    def whole(self) -> bool:
        """Whether every point of the space was looked at."""
        return self.points == self.size


def look(maker: Maker, dims: Sequence[Dim]) -> Looked:
    """Check the points of a space."""
    size = space.size(dims)
    tally = Tally()
    if size is not None and size <= MOST:
        tally.of(maker, space.every(dims))
        return tally.looked(size)
    points = space.sample(dims, SAMPLE, seed=0)
    tally.of(maker, points[:FEW])
    if tally.able < FEW:
        tally.of(maker, points[FEW:SOME])
    if not tally.able:
        tally.of(maker, points[SOME:])
    if tally.able and space.corner_count(dims) <= MOST:
        # Bounds make an example that is easy to follow. They do not count: no sampler draws the bound of an interval.
        tally.first = next((p for p in space.corners(dims) if maker.first(p) is None), tally.first)
    return tally.looked(size)


class Tally:
    """Counts points and reasons."""

    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()
        self._problems: dict[str, Problem] = {}
        self.able = 0
        self.first: Mapping[str, Any] | None = None

    def of(self, maker: Maker, points: Iterable[Mapping[str, Any]]) -> None:
        """Check and count these."""
        for point in points:
            self.add(point, maker.first(point))

    def add(self, point: Mapping[str, Any], problem: Problem | None) -> None:
        """Count one point, with the first reason why it cannot run."""
        if problem is None:
            self.able += 1
            self.first = point if self.first is None else self.first
            return
        self._reasons[problem.what] += 1
        self._problems.setdefault(problem.what, problem)

    def looked(self, size: int | None) -> Looked:
        """What was counted."""
        ordered = self._reasons.most_common()
        return Looked(
            size,
            self.able + sum(self._reasons.values()),
            self.able,
            self.first,
            tuple(Removed(why, count) for why, count in ordered),
            tuple(self._problems[why] for why, _ in ordered),
        )


def none_left(looked: Looked, arm: str) -> list[Problem]:
    """What is wrong with a space of which no point can run: the reasons with their counts, then each with its cure."""
    if len(looked.problems) == 1 and looked.problems[0].key not in ("search.constraints", "search.space"):
        return [*looked.problems]  # no other point would help: it is not the space that is wrong
    of = f" of the {looked.points:,} points" if looked.whole else f" of {looked.points:,} points that were looked at"
    where = f" in arm {arm}" if arm != "default" else ""
    reasons = "; ".join(f"{r.why} ({r.points:,})" for r in looked.removed[:SHOWN])
    more = len(looked.removed) - SHOWN
    tail = f"; and {more:,} reasons more" if more > 0 else ""
    return [
        Problem(
            f"none{of} of the space can run{where}: {reasons}{tail}",
            valid="a space with a point that can run",
            fix="other values in the space, or what the reasons below say",
            key="search.space",
        ),
        *chain(looked.problems[:SHOWN]),
    ]
