"""Admission: simulated clusters, on which time is a number and nothing runs."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.engines.base import Gang
from sweeper.search.admission import PATIENCE, Admission, Held, Start, Waiting, never


@dataclass
class Simulation:
    """Jobs (gang, seconds) in the order in which they wait; `known`: whether admission is told how long they run."""

    capacity: tuple[int, ...]
    jobs: Sequence[tuple[Gang, float]]
    known: bool = False
    patience: float = PATIENCE
    stream: Iterator[tuple[Gang, float]] = field(default_factory=lambda: iter(()))
    """Jobs that come later: so many wait at any time that the cluster could be filled with them."""
    now: float = 0.0

    def __post_init__(self) -> None:
        self.free = list(self.capacity)
        self.all: dict[str, tuple[Gang, float]] = {}
        self.waiting: list[str] = []
        for job in self.jobs:
            self.add(job)
        self.running: dict[str, tuple[tuple[int, ...], float]] = {}
        self.began: dict[str, float] = {}
        self.admission = Admission(self.capacity, patience=self.patience)

    def add(self, job: tuple[Gang, float]) -> None:
        key = str(len(self.all))
        self.all[key] = job
        self.waiting.append(key)

    def look(self) -> list[Start]:
        """Ask what starts, check it and start it."""
        for job in self.stream:
            self.add(job)
            if len(self.waiting) >= 2 * sum(self.capacity):
                break
        waiting = [Waiting(k, self.all[k][0], self.all[k][1] if self.known else None) for k in self.waiting]
        held = [
            Held(nodes, self.all[k][0].gpus_per_node, end - self.now if self.known else None)
            for k, (nodes, end) in self.running.items()
        ]
        starts = self.admission.choose(waiting, tuple(self.free), held)
        for start in starts:
            gang, seconds = self.all[start.key]
            assert len(set(start.nodes)) == gang.nodes  # whole, or not at all
            for node in start.nodes:
                self.free[node] -= gang.gpus_per_node
                assert self.free[node] >= 0  # never more than there is
            self.waiting.remove(start.key)
            self.running[start.key] = (start.nodes, self.now + seconds)
            self.began[start.key] = self.now
        return starts

    def step(self) -> bool:
        """Let the next one end; False if nothing runs."""
        if not self.running:
            return False
        key = min(self.running, key=lambda k: (self.running[k][1], k))
        nodes, self.now = self.running.pop(key)
        for node in nodes:
            self.free[node] += self.all[key][0].gpus_per_node
        return True

    def run(self) -> float:
        """To the end; when the last one ended."""
        self.look()
        while self.step():
            self.look()
        assert not self.waiting
        return self.now

    def passed(self, key: str, until: float) -> int:
        """Ranks that started past it from behind until then."""
        later = (k for k in self.began if int(k) > int(key) and self.began[k] < until)
        return sum(self.all[k][0].gpus for k in later)


nodes = st.lists(st.integers(1, 8), min_size=1, max_size=5).map(tuple)
seconds = st.floats(0.5, 20.0)


@st.composite
def clusters_and_jobs(draw: st.DrawFn, most: int = 40) -> tuple[tuple[int, ...], list[tuple[Gang, float]]]:
    capacity = draw(nodes)
    gangs = st.builds(Gang, st.integers(1, len(capacity)), st.integers(1, 8)).filter(lambda g: not never(g, capacity))
    return capacity, draw(st.lists(st.tuples(gangs, seconds), max_size=most))


@given(clusters_and_jobs(), st.booleans(), st.sampled_from([0.0, 0.5, 4.0, float("inf")]))
def test_whatever_fits_starts_whole_and_within_what_is_free(
    given: tuple[tuple[int, ...], list[tuple[Gang, float]]], known: bool, patience: float
) -> None:
    capacity, jobs = given
    simulation = Simulation(capacity, jobs, known, patience)
    simulation.run()  # asserts at every start
    assert len(simulation.began) == len(jobs)


@given(clusters_and_jobs(12), st.booleans())
def test_the_same_calls_have_the_same_answers(
    given: tuple[tuple[int, ...], list[tuple[Gang, float]]], known: bool
) -> None:
    capacity, jobs = given
    one, two = Simulation(capacity, jobs, known), Simulation(capacity, jobs, known)
    assert (one.run(), one.began) == (two.run(), two.began)


@settings(max_examples=40)
@given(st.integers(2, 4), st.integers(1, 4), st.integers(0, 10**6), st.booleans(), st.sampled_from([0.5, 1.0, 4.0]))
def test_large_gangs_start_within_the_bound_under_an_endless_stream_of_small_ones(
    count: int, large: int, seed: int, known: bool, patience: float
) -> None:
    capacity, longest = (8,) * count, 5.0
    full = [(Gang(1, 1), 0.3 + (seed * i) % 7 * 0.5) for i in range(8 * count)]  # the cluster is full of small ones
    bigs = [(Gang(1 + (seed + i) % count, 8), longest) for i in range(large)]
    stream = ((Gang(1, 1 + (seed + i) % 2), 0.5 + (i * 37 + seed) % 10 * 0.5) for i in range(10**9))
    simulation = Simulation(capacity, full, known, patience)
    simulation.look()
    for big in bigs:
        simulation.add(big)
    simulation.stream = stream
    keys = [str(len(full) + i) for i in range(large)]
    bound = patience * sum(capacity)
    overdue: dict[str, float] = {}
    while not all(key in simulation.began for key in keys):
        simulation.look()
        for key in keys:
            if key not in simulation.began and key not in overdue and simulation.passed(key, float("inf")) >= bound:
                overdue[key] = simulation.now
        # Once overdue: what runs ends, and what became overdue before it has its turn.
        for turn, key in enumerate(overdue, 1):
            assert simulation.began.get(key, simulation.now) <= overdue[key] + (2 * turn - 1) * longest + 1e-6
        simulation.step()


def test_nothing_starts_past_a_gang_for_which_there_is_no_patience() -> None:
    admission = Admission((8,), patience=0.0)
    waiting = [Waiting("large", Gang(1, 8)), Waiting("small", Gang(1, 1))]
    admission.choose(waiting, (4,), [Held((0,), 4)])
    assert admission.choose(waiting, (7,), [Held((0,), 1)]) == []
    assert admission.choose(waiting, (8,), []) == [Start("large", (0,))]


def test_large_ones_come_first_and_small_ones_fill_the_gaps() -> None:
    waiting = [Waiting(f"small{i}", Gang(1, 1)) for i in range(3)] + [
        Waiting("eight", Gang(1, 8)),
        Waiting("six", Gang(1, 6)),
    ]
    starts = Admission((8, 8)).choose(waiting, (8, 8))
    assert starts == [Start("eight", (0,)), Start("six", (1,)), Start("small0", (1,)), Start("small1", (1,))]


def test_of_equal_ones_the_longest_and_then_the_first_starts() -> None:
    waiting = [Waiting("a", Gang(1, 4), 5.0), Waiting("b", Gang(1, 4), 9.0), Waiting("c", Gang(1, 4), 9.0)]
    assert [s.key for s in Admission((4,)).choose(waiting, (4,))] == ["b"]


def test_a_gang_goes_where_it_leaves_the_smallest_gap() -> None:
    assert Admission((8, 8, 8)).choose([Waiting("x", Gang(1, 2))], (8, 3, 2)) == [Start("x", (2,))]
    assert Admission((8, 8, 8)).choose([Waiting("x", Gang(2, 2))], (8, 3, 2)) == [Start("x", (1, 2))]


def test_two_gangs_over_nodes_never_get_a_part_each() -> None:
    waiting = [Waiting("a", Gang(2, 8)), Waiting("b", Gang(2, 8))]
    admission = Admission((8, 8))
    assert admission.choose(waiting, (8, 4)) == []
    assert admission.choose(waiting, (8, 8)) == [Start("a", (0, 1))]


def overdue_large(capacity: tuple[int, ...], large: Waiting) -> Admission:
    """An admission in which that gang is overdue."""
    admission = Admission(capacity, patience=1 / sum(capacity))
    free = tuple(1 if node == 0 else 0 for node in range(len(capacity)))
    assert admission.choose([large, Waiting("past", Gang(1, 1))], free) == [Start("past", (0,))]
    return admission


def test_a_reservation_drains_its_nodes_and_no_others() -> None:
    large, small = Waiting("large", Gang(1, 8)), [Waiting(f"s{i}", Gang(1, 2)) for i in range(9)]
    admission = overdue_large((8, 8), large)
    starts = admission.choose([large, *small], (4, 6), [Held((0,), 4), Held((1,), 2)])
    assert [s.nodes for s in starts] == [(0,), (0,)]  # node 1 has most free: it is set aside
    # It stays the same node, though the other one has more free now.
    assert admission.choose([large, *small[2:]], (0, 7), [Held((0,), 8), Held((1,), 1)]) == []
    assert admission.choose([large, *small[2:]], (0, 8), [Held((0,), 8)]) == [Start("large", (1,))]


def test_ranks_beside_a_reservation_are_used() -> None:
    large, small = Waiting("large", Gang(1, 4)), Waiting("s", Gang(1, 2))
    admission = overdue_large((8,), large)
    held = [Held((0,), 5)]
    assert admission.choose([large, small], (3,), held) == []
    assert admission.choose([large, small, Waiting("t", Gang(1, 1))], (5,), [Held((0,), 3)]) == [
        Start("large", (0,)),
        Start("t", (0,)),
    ]


def test_what_ends_before_a_reservation_can_start_may_use_its_ranks() -> None:
    large = Waiting("large", Gang(1, 8), 100.0)
    admission = overdue_large((8,), large)
    waiting = [large, Waiting("long", Gang(1, 2), 11.0), Waiting("short", Gang(1, 2), 9.0), Waiting("?", Gang(1, 2))]
    assert admission.choose(waiting, (4,), [Held((0,), 2, 3.0), Held((0,), 2, 10.0)]) == [Start("short", (0,))]


def test_no_duration_no_backfilling() -> None:
    large = Waiting("large", Gang(1, 8), 100.0)
    admission = overdue_large((8,), large)
    assert admission.choose([large, Waiting("short", Gang(1, 2), 1.0)], (4,), [Held((0,), 4)]) == []


def test_a_reservation_moves_when_another_sweep_sits_on_its_node() -> None:
    large, small = Waiting("large", Gang(1, 8)), Waiting("s", Gang(1, 2))
    admission = overdue_large((8, 8), large)
    assert admission.choose([large], (4, 6), [Held((0,), 4), Held((1,), 2)]) == []  # reserved: node 1
    starts = admission.choose([large, small], (6, 6), [Held((0,), 2)])  # two ranks of node 1 are not ours any more
    assert starts == [Start("s", (1,))]


def test_no_rank_is_set_aside_for_what_another_sweep_keeps_from_starting() -> None:
    large, small = Waiting("large", Gang(1, 8)), Waiting("s", Gang(1, 2))
    admission = overdue_large((8,), large)
    assert admission.choose([large, small], (3,), [Held((0,), 1)]) == [Start("s", (0,))]  # four are not ours
    assert admission.choose([large, small], (5,), [Held((0,), 3)]) == []  # they are given back: now it has its turn


def test_so_many_and_no_more() -> None:
    waiting = [Waiting(str(i), Gang(1, 1)) for i in range(4)]
    admission = Admission((8,), patience=1 / 8)
    assert admission.choose(waiting, (8,), most=0) == []
    assert [s.key for s in admission.choose([*waiting, Waiting("b", Gang(1, 2))], (8,), most=2)] == ["b", "0"]


def test_a_start_that_another_sweep_was_quicker_for_keeps_its_turn() -> None:
    large, small = Waiting("large", Gang(1, 2)), [Waiting(f"s{i}", Gang(1, 1)) for i in range(3)]
    admission = overdue_large((2,), large)
    assert admission.choose([large, *small], (2,)) == [Start("large", (0,))]
    assert admission.choose([large, *small], (1,), [Held((0,), 1)]) == []  # ranks are still kept for it


def test_a_full_cluster_or_nothing_waiting_starts_nothing() -> None:
    assert Admission((8,)).choose([Waiting("x", Gang(1, 1))], (0,)) == []
    assert Admission((8,)).choose([], (8,)) == []


@pytest.mark.parametrize(
    ("gang", "capacity", "said"),
    [
        (Gang(1, 8), (8, 4), ""),
        (Gang(2, 4), (8, 4), ""),
        (Gang(1, 9), (8, 4), "it needs a node with 9 ranks; of the cluster's nodes there are 1 with 8, 1 with 4"),
        (
            Gang(2, 8),
            (8, 4, 4),
            "it needs 2 nodes with 8 ranks each, at once; of the cluster's nodes there are 1 with 8, 2 with 4",
        ),
        (Gang(1, 1), (), "it needs a node with 1 rank; there is none"),
    ],
)
def test_what_never_fits_is_told_what_is_there(gang: Gang, capacity: tuple[int, ...], said: str) -> None:
    assert never(gang, capacity) == said


def test_mixed_sizes_are_packed_well() -> None:
    sizes = [(1, 1)] * 40 + [(1, 2)] * 25 + [(1, 4)] * 15 + [(1, 8)] * 12 + [(2, 8)] * 8
    jobs = [(Gang(*sizes[i * 37 % 100]), 0.5 + i * 53 % 100 / 40) for i in range(200)]
    work = sum(gang.gpus * seconds for gang, seconds in jobs) / 32
    assert Simulation((8,) * 4, jobs).run() <= 1.15 * work


def test_ten_thousand_waiting_are_looked_at_in_one_go() -> None:
    waiting = [Waiting(str(i), Gang(1, 1 + i % 4)) for i in range(10_000)]
    heap = [s.key for s in Admission((8,) * 4).choose(waiting, (8,) * 4)]
    assert heapq.nsmallest(8, map(int, heap)) == [3, 7, 11, 15, 19, 23, 27, 31]
