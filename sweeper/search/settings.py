"""How a sweep searches: sampler, scheduler, budget, seeds, objectives; read from the composed config.

Guarantees: plain immutable data; nothing but the standard library is imported; what cannot be meant is a problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """The keys `search`, `scheduler` and `objective` of a config, with their defaults filled in."""

    sampler: str = "none"
    """`none`, `grid`, `random`, `tpe`, `gp`, `qmc` or `nsga2`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the sampler's own file has beside its name: `startup`, `population`."""
    scheduler: str = "none"
    """`none`, `asha`, `median`, `hyperband`, `pbt` or `pb2`."""
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    """What the scheduler's own file has beside its name."""
    trials: int | None = None
    """Points an arm; None: all of a grid. An arm may have fewer points: `ArmPlan.budget`."""
    seeds: tuple[int | None, ...] = (None,)
    """A candidate is run under each; `(None,)`: the config's own, which nothing varies."""
    final_seeds: tuple[int, ...] = ()
    """For the best candidate of each arm, after the search; none of them is in `seeds`."""
    objectives: tuple[str, ...] = ("score",)
    """`score`, `gpu_hours`: one or both."""
    metric: str = "auto"
    """Where the score is from: `auto`, or a metric of the engine."""
    mode: str = "max"
    constraints: tuple[str, ...] = ()
    """Expressions that must hold in every point (sweeper/search/constraints.py)."""

    @property
    def samples(self) -> bool:
        """Whether points are proposed while the sweep runs; else all are known before it starts."""
        return self.sampler not in ("none", "grid")
