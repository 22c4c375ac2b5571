"""A trial: one point of an arm under one seed, fully composed; what is run and recorded.

Guarantees: plain immutable data, no imports beyond the standard library; a trial's id is its place in the sweep's
order, so the same request gives the same ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeper.errors import Problem


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of choices, before it is composed."""

    overrides: tuple[str, ...]
    """Hydra override lines of this point alone (no commas left), in the order they were typed."""
    varied: Mapping[str, Any]
    """What differs between the points of the sweep: key as typed -> value."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A point with its composed config and all that is known to be wrong with it."""

    id: str
    """Its place in the sweep, zero-padded: `000`."""
    point: Point
    config: Mapping[str, Any]
    """The whole resolved config: our keys and the engine's, names bound."""
    problems: tuple[Problem, ...] = field(default=())
    arm: str = "0"
    """The arm's id: its place among the arms."""
    candidate: str = ""
    """The id of the point, the same under all its seeds; a trial of a single seed has it as its own."""
    seed: int | None = None
    """None: the config's own, which nothing varies."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """What was searched: name of the dim -> value."""
    kind: str = "search"
    """`search`, or `final`: run after the search, under seeds that nothing was chosen by."""

    @property
    def label(self) -> str:
        """What varies, in one line: `algorithm=grpo lr=0.0003`; `default` when nothing does."""
        return " ".join(f"{k}={short(v)}" for k, v in self.point.varied.items()) or "default"


def key_of(line: str) -> str:
    """The key or group of an override line, without its `+`, `++` or `~` and without a package: `++a.b=1` is `a.b`."""
    return line.lstrip("+~").partition("=")[0].partition("@")[0]


def short(value: Any) -> str:
    """A value in a label, as it is typed; a float with six digits."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
