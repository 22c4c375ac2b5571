"""A fake cluster of many nodes in simulated time, for the real controller, admission, policy, records and ledger.

A trial's trainer is a number: how many seconds it runs. Time stands still while the controller works, and when it
sleeps it jumps to the next thing that happens. What must never be is asserted where it would happen: a rank that two
hold, a gang that is not whole, a start on a node that is gone.
"""

from __future__ import annotations

import json
import math
import random
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakes import FakeArm, FakeDisplay, FakeEngine, FakeTracker, fake_size, fake_trial

from sweeper.clusters.base import Exit
from sweeper.engines.base import Gang, Job, Shape
from sweeper.search import controller as module
from sweeper.search.controller import Controller, Settings
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import SweepFolder

GRID_S = 5.0
"""What happens is noticed at multiples of this: fewer rounds to simulate."""
START = 1_700_000_000.0
MIX = {Gang(1, 1): 35, Gang(1, 2): 20, Gang(1, 4): 15, Gang(1, 8): 15, Gang(2, 8): 10, Gang(4, 8): 4, Gang(16, 8): 1}


class Clock(types.ModuleType):
    """Stands for the module `time` in the controller."""

    def __init__(self) -> None:
        super().__init__("time")
        self.now = 0.0
        self.cluster: SimCluster | None = None

    def time(self) -> float:
        return START + self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, _seconds: float) -> None:
        assert self.cluster is not None
        coming = self.cluster.next_event()
        assert coming < math.inf, "deadlock: the controller waits, and nothing will ever happen"
        self.now = max(self.now + GRID_S, math.ceil(coming / GRID_S) * GRID_S)
        self.cluster.happen()


@dataclass
class SimAttempt:
    """A fake: it has ended when its time has come."""

    folder: Path
    gang: Gang
    nodes: tuple[int, ...]
    started: float
    ends: float
    clock: Clock
    lost: str = ""
    reported: bool = False

    def poll(self) -> Exit | None:
        if self.lost:
            return Exit(None, "lost", self.lost, self.clock.time())
        return Exit(0, "exit", "", START + self.ends) if self.clock.now >= self.ends else None

    def waiting(self) -> str:
        return ""

    def silent(self) -> str:
        return ""

    def stop(self, *, dump: bool = False) -> None:
        self.ends = min(self.ends, self.clock.now)

    def kill(self) -> None:
        self.stop()


@dataclass
class SimCluster:
    """A fake cluster."""

    nodes: int
    ranks: int
    clock: Clock
    deaths: Sequence[tuple[float, int, float]] = ()
    """When, which node, and for how long."""
    running: list[SimAttempt] = field(default_factory=list)
    starts: int = 0
    losses: int = 0
    used_s: float = 0.0
    """Rank-seconds that attempts held."""

    def __post_init__(self) -> None:
        self.shape = Shape("simulated", "cuda", self.nodes, self.ranks)
        self.clock.cluster = self
        self._coming = sorted(self.deaths)
        self._gone: dict[int, float] = {}

    def next_event(self) -> float:
        ends = [a.ends for a in self.running if not a.lost]
        return min([*ends, *(at for at, _, _ in self._coming), *self._gone.values(), math.inf])

    def happen(self) -> None:
        now = self.clock.now
        while self._coming and self._coming[0][0] <= now:
            at, node, for_s = self._coming.pop(0)
            self._gone[node] = at + for_s
            for attempt in self.running:
                if node in attempt.nodes and attempt.ends > at:
                    attempt.lost = f"node {node} was lost"
                    self.losses += 1
        self._gone = {node: until for node, until in self._gone.items() if until > now}

    def _settle(self) -> None:
        for attempt in list(self.running):
            if attempt.poll() is not None:
                self.running.remove(attempt)
                self.used_s += attempt.gang.gpus * (self.clock.now - attempt.started)

    def free(self) -> tuple[int, ...]:
        self._settle()
        free = [0 if node in self._gone else self.ranks for node in range(self.nodes)]
        for attempt in self.running:
            for node in attempt.nodes:
                if node not in self._gone:
                    free[node] -= attempt.gang.gpus_per_node
        assert min(free) >= 0, "a rank is held twice"
        return tuple(free)

    def start(self, job: Job, folder: Path, nodes: tuple[int, ...]) -> SimAttempt | None:
        free = self.free()
        assert len(set(nodes)) == job.gang.nodes, "a gang starts whole"
        assert all(free[node] >= job.gang.gpus_per_node for node in nodes), "ranks that are not free"
        does = json.loads(job.argv[1])
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "score": does["score"]}) + "\n")
        self.starts += 1
        now = self.clock.now
        attempt = SimAttempt(folder, job.gang, nodes, now, now + does["seconds"], self.clock)
        self.running.append(attempt)
        return attempt

    def attach(self, folder: Path) -> None:
        return None

    def each(self, argv: Sequence[str], stdin: str, timeout_s: float) -> list[Any]:
        return []

    def close(self) -> None: ...


@dataclass(frozen=True)
class Result:
    """What came out."""

    states: dict[str, str]
    makespan_s: float
    bound_s: float
    """No schedule can be shorter: the work over all ranks, or the longest trial."""
    cluster: SimCluster
    attempts: dict[str, int]


def simulate(
    folder: Path,
    *,
    trials: int = 1000,
    nodes: int = 64,
    ranks: int = 8,
    seed: int = 1,
    deaths: Sequence[tuple[float, int, float]] = (),
    longest_s: float = 3600.0,
) -> Result:
    """Run a sweep of so many trials, of mixed gangs, from a tenth of `longest_s` to that long."""
    chance = random.Random(seed)
    kinds, weights = list(MIX), list(MIX.values())
    made, work, longest = [], 0.0, 0.0
    for index in range(trials):
        gang = chance.choices(kinds, weights)[0]
        seconds = chance.uniform(longest_s / 10, longest_s)
        made.append(
            fake_trial(
                index,
                steps=1,
                nodes=gang.nodes,
                ranks=gang.gpus_per_node,
                seconds=seconds,
                score=chance.random(),
            )
        )
        work, longest = work + seconds * gang.gpus, max(longest, seconds)
    clock = Clock()
    cluster = SimCluster(nodes, ranks, clock, deaths)
    arm = FakeArm(made)
    sweep = SweepFolder.create(folder, "simulated", [])
    ledger = Ledger.open(sweep.path / "ledger.db", create=True)
    controller = Controller(
        arms=[arm.search()],
        size=fake_size(made),
        engine=FakeEngine(),  # type: ignore[arg-type]
        cluster=cluster,
        folder=sweep,
        ledger=ledger,
        tracker=FakeTracker(),  # type: ignore[arg-type]
        display=FakeDisplay(),
        facts=lambda o: ({}, {}),
        fingerprint=lambda t: t.id,
        settings=Settings(
            stop={"nan": True, "patience": 2},
            failures={"retries": 1, "same": 3, "stalled": None, "stalled_min_s": 600, "first_step_s": None},
            mixed=True,
        ),
    )
    real = module.time
    module.time = clock  # type: ignore[assignment]
    try:
        outcomes = controller.run()
    finally:
        module.time = real
        ledger.close()
    cluster.free()
    return Result(
        {t: o.state for t, o in outcomes.items()},
        clock.now,
        max(work / (nodes * ranks), longest),
        cluster,
        {t: o.attempts for t, o in outcomes.items()},
    )
