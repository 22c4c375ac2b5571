"""Which waiting gangs start now, and on which nodes: whole gangs only, packed well, and nobody starves.

Guarantees: pure arithmetic on what it is given, so the same calls give the same answers; never more ranks of a node
than are free; a gang starts whole (`gang.nodes` different nodes with `gang.gpus_per_node` free ranks each) or not at
all, so two gangs never hold a part each of what both need; a gang that fits an idle cluster starts in the end.

The rules. Large gangs first, because small ones fill the gaps that they leave; of equal ones the longest, then the one
that has waited longest. Each goes where it leaves the smallest gap (best fit). Who gave the order of what waits meant
something by it (arms take turns), so how far it may be changed is bounded: once gangs from further back with together
more than `patience` times the cluster's ranks started past a gang, that gang is *overdue*. Overdue gangs come before
all others, in the order in which they became so, and the first of them that does not fit gets a *reservation*: nodes
are set aside for it, and what is free or gets free there stays free until it has enough. So it starts at the latest
when the work that ran on those nodes at that moment has ended. Others still start on the ranks that it does not need,
and (EASY backfilling: Lifka, "The ANL/IBM SP scheduling system", 1995) on those set aside, if they are expected to
have ended by when it can start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sweeper.engines.base import Gang

PATIENCE = 4.0
"""Times the ranks of the cluster that may start past a gang from behind it, before it is overdue."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A gang that wants to start."""

    key: str
    """Its name, the same from call to call: the trial's id."""
    gang: Gang
    expected_s: float | None = None
    """How long it is expected to run, in seconds; None: not known."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a running gang of ours holds."""

    nodes: tuple[int, ...]
    ranks: int
    """On each of the nodes."""
    left_s: float | None = None
    """In how many seconds it is expected to end; None: not known. Negative counts as 0."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start this one now, on those nodes."""

    key: str
    nodes: tuple[int, ...]


def never(gang: Gang, capacity: Sequence[int]) -> str:
    """Why the gang can never start on nodes with so many ranks each, with what is there; empty when it can."""
    raise NotImplementedError


class Admission:
    """The memory of one controller's admission: how much started past what waits, and what is reserved."""

    def __init__(self, capacity: Sequence[int], *, patience: float = PATIENCE) -> None:
        """`capacity`: ranks of each node, whoever holds them."""
        raise NotImplementedError

    def choose(self, waiting: Sequence[Waiting], free: Sequence[int], held: Iterable[Held] = ()) -> list[Start]:
        """What to start now, in this order.

        `waiting`: all that may start, the one whose turn it is first; what never fits is not in it (`never`). `free`:
        free ranks of each node (`Cluster.free()`). `held`: what runs now, of this controller; with durations it makes
        better reservations, without any the answer is still right.
        A start that failed because another sweep was quicker (`Cluster.start` gave None) needs nothing but to be in
        `waiting` again. Costs O(n log n) for n waiting, and next to nothing while no rank is free.
        """
        raise NotImplementedError
