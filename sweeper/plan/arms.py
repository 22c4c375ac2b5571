"""One arm of a plan: its space, what of it can run, and how one of its points becomes a trial.

Guarantees: a trial is composed, bound and checked the same way at plan time and while the sweep runs; nothing of an
arm changes once it is planned; the same params give the same trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sweeper.engines.base import Gang, Shape, Workload
from sweeper.plan.cost import Cost
from sweeper.search.base import Dim
from sweeper.trial.spec import Point, Trial

if TYPE_CHECKING:
    from sweeper.plan.maker import Maker


@dataclass(frozen=True, slots=True)
class Sized:
    """A trial with what it needs; that is not asked of a config that cannot run."""

    trial: Trial
    gang: Gang | None
    work: Workload | None
    cost: Cost | None


@dataclass(frozen=True, slots=True)
class Removed:
    """Points of an arm's space that cannot run."""

    why: str
    """The first reason of each: `tp=8 does not divide 28 heads`."""
    points: int
    """How many, of those that were looked at."""


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """An arm with its space; `sized` and `refuse` need Hydra to be initialized, as all composing does."""

    id: str
    """Its place among the arms: `0`."""
    point: Point
    """The arm alone: nothing that is searched, no seed that is varied."""
    label: str
    dims: tuple[Dim, ...]
    """Those that live in this arm."""
    shape: Shape
    """Of the cluster that it is planned for."""
    budget: int
    """Candidates it may have: `search.trials`, or fewer where the space has fewer points."""
    size: int | None
    """Points of the space, those that cannot run too; None where an interval makes them endless."""
    looked: int
    """Points that were checked before the start: all of a finite space up to 4096, else a sample."""
    removed: tuple[Removed, ...]
    """Why points among those cannot run, most frequent first."""
    points: tuple[Mapping[str, Any], ...]
    """The known points that can run here, first to be run: name of each dim of this arm -> value."""
    example: Sized | None
    """A point that can run, sized; its id is that of no trial. None: there is none (the plan then has problems)."""
    maker: Maker = field(repr=False, compare=False)
    planned: bool = False
    """Whether its points were planned by an earlier controller, and were not composed again."""

    @property
    def unable(self) -> int:
        """How many of the points that were looked at cannot run."""
        return sum(r.points for r in self.removed)

    def sized(
        self,
        params: Mapping[str, Any],
        *,
        seed: int | None,
        candidate: str,
        trial_id: str,
        kind: str = "search",
    ) -> Sized:
        """One trial, composed, bound, checked and sized; what is wrong with it is in its problems, not raised.

        `params` names every dim of this arm; `seed` None leaves the config's own.
        """
        return self.maker.sized(params, seed=seed, candidate=candidate, trial_id=trial_id, kind=kind)

    def refuse(self, params: Mapping[str, Any]) -> str:
        """Why a point cannot run: outside the space, a constraint, the first problem of its check. Empty: it can."""
        return self.maker.refuse(params)

    def identity(self) -> dict[str, Any]:
        """The identity leaves of this arm (sweeper/trial/identity.py), without those that dims or seeds change."""
        return self.maker.identity()
