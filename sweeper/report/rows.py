"""What a report is made from: one ended (or waiting) trial, and what the sweep was asked for.

Guarantees: a report reads these and nothing else; no controller, tracker or engine is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sweeper.search.base import Stop
from sweeper.search.guard import Flag
from sweeper.search.history import Curve
from sweeper.trial.spec import Trial

LOWER_IS_BETTER = frozenset({"gpu_hours"})
"""Objectives that are costs. `score` follows `objective.mode`."""


class Ended(Protocol):
    """How one trial stands; `search.controller.Outcome` is one. Properties, so that plain attributes fit."""

    @property
    def trial(self) -> Trial: ...

    @property
    def state(self) -> str:
        """`finished`, `pruned`, `failed`, `stopped`, `paused`, `running`, `waiting`."""
        ...

    @property
    def curve(self) -> Curve: ...

    @property
    def elapsed_s(self) -> float:
        """Of all its attempts."""
        ...

    @property
    def gpu_hours(self) -> float:
        """Ranks held times hours, of all its attempts. On a CPU cluster a rank stands where a GPU would."""
        ...

    @property
    def tokens_per_s(self) -> float | None:
        """Median over its steps, over all ranks."""
        ...

    @property
    def root_cause(self) -> tuple[str, ...]: ...

    @property
    def failure(self) -> str:
        """The kind of its last failure (engines.base.Failure.kind); empty when there was none."""
        ...

    @property
    def stop(self) -> Stop | None:
        """Why it was ended early."""
        ...

    @property
    def folder(self) -> Path | None: ...

    @property
    def run_id(self) -> str | None: ...

    @property
    def reused(self) -> str:
        """`sweep/trial` that it was taken from; empty when it was run here."""
        ...

    @property
    def flagged(self) -> Flag | None:
        """What the numerics guard found of its placement."""
        ...


@dataclass(frozen=True, slots=True)
class Alike:
    """Arms that differ from each other in placement only."""

    common: str
    """The label of what varies in the sweep and is the same in all of them: `algorithm=grpo`; empty: nothing is."""
    values: Mapping[str, Mapping[str, Any]]
    """Arm id -> what it differs in: key as typed -> value."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the sweep was asked for, as far as a report needs it."""

    mode: str = "max"
    """Whether the best score is the `max` or the `min`."""
    objectives: tuple[str, ...] = ("score",)
    """`score`, `gpu_hours`; two make a Pareto front."""
    arms: Mapping[str, str] = field(default_factory=dict)
    """Arm id -> its label (`algorithm=grpo`); an arm that is missing is named by its id."""
    placement: tuple[str, ...] = ()
    """Names of the searched dims that are placement (`tp`): they are not quality, and reported apart."""
    alike: tuple[Alike, ...] = ()
    """Groups of arms that are compared by their placement, as the values of such a dim are."""
    device: str = "cuda"
    """`cpu`: hours are rank-hours, not GPU-hours."""

    @property
    def modes(self) -> tuple[str, ...]:
        """`max` or `min` of each objective."""
        return tuple("min" if name in LOWER_IS_BETTER else self.mode for name in self.objectives)
