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
when the work that ran on those nodes at that moment has ended, and the n-th overdue one after at most 2n - 1 times the
longest run (as far as other sweeps leave the ranks to us). Others still start on the ranks that it does not need, and
(EASY backfilling: Lifka, "The ANL/IBM SP scheduling system", 1995) on those set aside, if they are expected to have
ended by when it can start.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
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
    if sum(ranks >= gang.gpus_per_node for ranks in capacity) >= gang.nodes:
        return ""
    ranks = f"{gang.gpus_per_node} rank{'s' * (gang.gpus_per_node > 1)}"
    asked = f"a node with {ranks}" if gang.nodes == 1 else f"{gang.nodes} nodes with {ranks} each, at once"
    there = ", ".join(f"{capacity.count(size)} with {size}" for size in sorted(set(capacity), reverse=True))
    return (
        f"it needs {asked}; of the cluster's nodes there are {there}" if there else f"it needs {asked}; there is none"
    )


class Admission:
    """The memory of one controller's admission: how much started past what waits, and what is reserved."""

    def __init__(self, capacity: Sequence[int], *, patience: float = PATIENCE) -> None:
        """`capacity`: ranks of each node, whoever holds them."""
        self._capacity = tuple(capacity)
        self._bound = patience * sum(capacity)
        self._passed: dict[str, int] = {}
        """Ranks that started past each gang that waits."""
        self._overdue: dict[str, int] = {}
        """Key -> how many became overdue before it."""
        self._turn = 0
        self._reserved: tuple[str, tuple[int, ...]] = ("", ())

    def choose(
        self, waiting: Sequence[Waiting], free: Sequence[int], held: Iterable[Held] = (), most: int | None = None
    ) -> list[Start]:
        """What to start now, in this order; `most` limits how many.

        `waiting`: all that may start, the one whose turn it is first; what never fits is not in it (`never`). `free`:
        free ranks of each node (`Cluster.free()`). `held`: what runs now, of this controller; with durations it makes
        better reservations, without any the answer is still right.
        A start that failed because another sweep was quicker (`Cluster.start` gave None) needs nothing but to be in
        `waiting` again. Costs O(n log n) for n waiting, and next to nothing while no rank is free.
        """
        if not waiting or not any(free):
            return []
        room = _Room(self._capacity, free, held)
        chosen: dict[str, Start] = {}
        refused: set[tuple[Gang, float | None]] = set()
        for w in self._ordered(waiting, room.left):
            if not room.left or len(chosen) == most:
                break
            kind = (w.gang, w.expected_s if room.claimed else None)
            nodes = room.fit(w) if kind not in refused else None
            if nodes is not None:
                room.take(w, nodes)
                chosen[w.key] = Start(w.key, nodes)
            elif w.key in self._overdue and not room.claimed:
                key, earlier = self._reserved
                nodes = room.reserve(w, earlier if key == w.key else ())
                if nodes:
                    self._reserved = (w.key, nodes)
                    refused.clear()
            else:
                refused.add(kind)
        self._count(waiting, chosen)
        return list(chosen.values())

    def _ordered(self, waiting: Sequence[Waiting], ranks: int) -> list[Waiting]:
        """The order to try them in: overdue ones, then large before small; only as many of a size as could start."""
        overdue = [w for w in waiting if w.key in self._overdue] if self._overdue else []
        overdue.sort(key=lambda w: self._overdue[w.key])
        sizes: dict[tuple[int, int], list[Waiting]] = {}
        for w in waiting:
            if w.key not in self._overdue:
                sizes.setdefault((w.gang.gpus, w.gang.gpus_per_node), []).append(w)
        ordered = overdue
        for size in sorted(sizes, reverse=True):
            # Where ranks are set aside, a short one may fit where a longer one of the same size does not.
            most = len(waiting) if overdue else ranks // max(1, size[0])
            # nsmallest is stable: of equal ones the first
            ordered += heapq.nsmallest(most, sizes[size], key=lambda w: -(w.expected_s or 0.0))
        return ordered

    def _count(self, waiting: Sequence[Waiting], chosen: Mapping[str, Start]) -> None:
        """Remember what started past what."""
        passed: dict[str, int] = {}
        behind = 0
        for w in reversed(waiting):
            if w.key in chosen:
                behind += w.gang.gpus
            elif total := self._passed.get(w.key, 0) + behind:
                passed[w.key] = total
        # A gang that was chosen keeps what it has: if its start fails, it waits again, with its turn.
        self._passed = passed | {key: self._passed[key] for key in chosen if key in self._passed}
        due = [w.key for w in waiting if self._passed.get(w.key, 0) >= self._bound]
        overdue = {key: self._overdue[key] for key in due if key in self._overdue}
        for key in due:
            if key not in overdue:
                self._turn += 1
                overdue[key] = self._turn
        self._overdue = overdue


class _Room:
    """What is free while one answer is made: ranks of each node, and those that are set aside."""

    def __init__(self, capacity: Sequence[int], free: Sequence[int], held: Iterable[Held]) -> None:
        self.capacity, self.free, self.held = capacity, list(free), list(held)
        self.left = sum(free)
        """Free ranks, set aside or not."""
        self.claimed: dict[int, int] = {}
        """Node -> ranks that are set aside there; free ones and those that get free."""
        self.ready_s = 0.0
        """When the claims can be met; infinite if not known."""

    def fit(self, w: Waiting) -> tuple[int, ...] | None:
        """The nodes where it leaves the smallest gaps, or None."""
        brief = w.expected_s is not None and w.expected_s <= self.ready_s < math.inf
        fits = []
        for node, free in enumerate(self.free):
            claimed = self.claimed.get(node, 0)
            if free - (0 if brief else claimed) >= w.gang.gpus_per_node:
                fits.append((claimed > 0, free, node))
        if len(fits) < w.gang.nodes:
            return None
        return tuple(sorted(node for _, _, node in sorted(fits)[: w.gang.nodes]))

    def take(self, w: Waiting, nodes: tuple[int, ...]) -> None:
        """It starts there."""
        for node in nodes:
            self.free[node] -= w.gang.gpus_per_node
        self.left -= w.gang.gpus
        self.held.append(Held(nodes, w.gang.gpus_per_node, w.expected_s))

    def reserve(self, w: Waiting, earlier: tuple[int, ...]) -> tuple[int, ...]:
        """Set nodes aside for it: those of its earlier reservation, unless another sweep holds too much of them now;
        else those where it can start first as far as is known, then those with most free. None are, where other sweeps
        hold so much that it could not start though all of our own ended: nobody knows for how long.
        """
        ready = {node: self._ready_s(node, w.gang.gpus_per_node) for node in range(len(self.capacity))}
        possible = {n for n in ready if self.capacity[n] - self._foreign(n) >= w.gang.gpus_per_node}
        nodes = earlier
        if not earlier or not possible.issuperset(earlier):
            nodes = tuple(sorted(sorted(possible, key=lambda n: (ready[n], -self.free[n], n))[: w.gang.nodes]))
        if len(nodes) < w.gang.nodes:
            return ()
        self.claimed = dict.fromkeys(nodes, w.gang.gpus_per_node)
        self.ready_s = max((ready[n] for n in nodes), default=0.0)
        return nodes

    def _foreign(self, node: int) -> int:
        """Ranks that others hold there."""
        return self.capacity[node] - self.free[node] - sum(h.ranks for h in self.held if node in h.nodes)

    def _ready_s(self, node: int, ranks: int) -> float:
        """In how many seconds so many ranks are free there; infinite if that cannot be known."""
        free = self.free[node]
        ends = sorted(
            (math.inf if h.left_s is None else max(0.0, h.left_s), h.ranks) for h in self.held if node in h.nodes
        )
        at = 0.0
        for left_s, more in ends:
            if free >= ranks:
                break
            free, at = free + more, left_s
        return at if free >= ranks else math.inf
