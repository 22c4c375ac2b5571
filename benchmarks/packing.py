"""How well mixed gangs are packed: makespan over its lower bound, first-come-first-served and Ray itself beside us.

    python benchmarks/packing.py [--gangs 200] [--seed 1] [--skip-ray]

First on real Ray: 4 raylets with 8 fake GPUs each; each gang is a placement group (its nodes one bundle each), in which
tasks sleep for the gang's duration, 5 to 30 s (a trial takes minutes). In one run, on one cluster, the same gangs in
the same order:
    ours    sweeper.search.admission says what starts where, without knowing durations; Ray reserves it
    fcfs    a gang is asked for when the one before it has been reserved; Ray chooses the nodes
    ray     all are asked for at once; Ray chooses order and nodes
That no fake GPU was used twice at a time is checked afterwards from what the tasks saw. Then simulations: the same
policy with an event heap, and durations unknown and known.

The lower bound is the larger of work / GPUs and the longest gang.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.engines.base import Gang
from sweeper.search.admission import Admission, Held, Start, Waiting

CAPACITY = (8,) * 4
MIX = {Gang(1, 1): 40, Gang(1, 2): 25, Gang(1, 4): 15, Gang(1, 8): 12, Gang(2, 8): 8}
SHORTEST_S, LONGEST_S = 5.0, 30.0
"""Of a gang. Ray starts a process for each task, at about a second of a core: shorter ones would measure that."""
POLL_S = 0.005
LOOKED_AT = 1_000
"""Of what waits, so many are looked at in a simulation."""
Policy = Callable[[Sequence[Waiting], Sequence[int], Iterable[Held]], list[Start]]


@dataclass(frozen=True, slots=True)
class Load:
    """A gang and how long it runs."""

    key: str
    gang: Gang
    seconds: float


def loads(count: int, seed: int) -> list[Load]:
    """Mixed gangs in the order in which they come."""
    chance = random.Random(seed)
    gangs = chance.choices(list(MIX), list(MIX.values()), k=count)
    return [Load(str(i), gang, chance.uniform(SHORTEST_S, LONGEST_S)) for i, gang in enumerate(gangs)]


def bound(work: Sequence[Load]) -> float:
    """The least makespan there can be, in seconds."""
    return max(sum(w.gang.gpus * w.seconds for w in work) / sum(CAPACITY), *(w.seconds for w in work))


def fcfs(waiting: Sequence[Waiting], free: Sequence[int], _held: Iterable[Held]) -> list[Start]:
    """First come, first served, for the simulation: the first that does not fit keeps all behind it waiting."""
    left, starts = list(free), []
    for w in waiting:
        fits = sorted((ranks, node) for node, ranks in enumerate(left) if ranks >= w.gang.gpus_per_node)
        if len(fits) < w.gang.nodes:
            break
        nodes = tuple(node for _, node in fits[: w.gang.nodes])
        for node in nodes:
            left[node] -= w.gang.gpus_per_node
        starts.append(Start(w.key, nodes))
    return starts


def simulate(work: Sequence[Load], policy: Policy, known: bool) -> float:
    """The makespan, if starting cost nothing."""
    by_key = {w.key: w for w in work}
    waiting = [Waiting(w.key, w.gang, w.seconds if known else None) for w in work]
    free, now = list(CAPACITY), 0.0
    running: list[tuple[float, str, tuple[int, ...]]] = []
    while waiting or running:
        held = [
            Held(nodes, by_key[k].gang.gpus_per_node, end - now if known else None) for end, k, nodes in sorted(running)
        ]
        starts = policy(waiting[:LOOKED_AT], free, held)
        for start in starts:
            for node in start.nodes:
                free[node] -= by_key[start.key].gang.gpus_per_node
            heapq.heappush(running, (now + by_key[start.key].seconds, start.key, start.nodes))
        if started := {start.key for start in starts}:
            waiting = [w for w in waiting if w.key not in started]
        now, key, nodes = heapq.heappop(running)
        for node in nodes:
            free[node] += by_key[key].gang.gpus_per_node
    return now


class Nodes:
    """A real Ray cluster on this machine, with fake GPUs."""

    def __init__(self) -> None:
        os.environ.update(RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_DEDUP_LOGS="0", RAY_USAGE_STATS_ENABLED="0")
        import ray
        from ray.cluster_utils import Cluster

        self.temp_dir = tempfile.mkdtemp(prefix="pk", dir="/tmp")
        head = {"include_dashboard": False, "temp_dir": self.temp_dir}
        self.cluster = Cluster(initialize_head=True, head_node_args={**self.resources(0), **head})
        for node in range(1, len(CAPACITY)):
            self.cluster.add_node(**self.resources(node))
        ray.init(address=self.cluster.address, log_to_driver=False)

        # max_calls=0: the process is used again. Ray's default for tasks with GPUs is a new one for each, to have the
        # GPU's memory freed, which nobody uses here.
        @ray.remote(max_calls=0)  # type: ignore[untyped-decorator]
        def sleep(seconds: float) -> tuple[str, list[str], float, float]:
            start = time.time()
            time.sleep(seconds)
            node = ray.get_runtime_context().get_node_id()
            return node, [str(gpu) for gpu in ray.get_gpu_ids()], start, time.time()

        self.sleep: Any = sleep
        self.ray: Any = ray

        # As many processes as there can be tasks at once, before anything is timed: each waits until all are there.
        @ray.remote(max_calls=0)  # type: ignore[untyped-decorator]
        def meet(me: int, folder: str, others: int) -> None:
            (Path(folder) / f"met-{me}").touch()
            while len(list(Path(folder).glob("met-*"))) < others:
                time.sleep(0.2)

        places = [node for node, ranks in enumerate(CAPACITY) for _ in range(ranks)]
        ray.get(
            [
                meet.options(num_gpus=1, num_cpus=1, resources={f"node{node}": 0.01}).remote(
                    me, self.temp_dir, len(places)
                )
                for me, node in enumerate(places)
            ]
        )

    @staticmethod
    def resources(node: int) -> dict[str, Any]:
        """What `Cluster.add_node` takes. The resource of its own name is how we say which node is meant."""
        ranks = CAPACITY[node]
        return {
            "num_cpus": ranks,
            "num_gpus": ranks,
            "resources": {f"node{node}": 1},
            "object_store_memory": 80_000_000,
        }

    def reserve(self, gang: Gang, nodes: tuple[int, ...] | None) -> Any:
        """Ask for a gang's placement group; None: on whatever nodes Ray finds."""
        from ray.util.placement_group import placement_group

        bundle = {"GPU": gang.gpus_per_node, "CPU": 1}
        where = [{f"node{node}": 0.01} for node in nodes] if nodes else [{}] * gang.nodes
        return placement_group(
            [{**bundle, **at} for at in where], strategy="STRICT_SPREAD" if gang.nodes > 1 else "STRICT_PACK"
        )

    def run(self, load: Load, group: Any) -> list[Any]:
        """Run the gang's tasks, one a node, in its group."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return [
            self.sleep.options(
                num_gpus=load.gang.gpus_per_node,
                num_cpus=1,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i),
            ).remote(load.seconds)
            for i in range(load.gang.nodes)
        ]

    def close(self) -> None:
        """End it."""
        self.ray.shutdown()
        self.cluster.shutdown()
        shutil.rmtree(self.temp_dir, ignore_errors=True)


class Follower:
    """What runs: gives groups back as their gangs end, and keeps what the tasks saw."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.running: dict[str, tuple[Load, Any, list[Any], tuple[int, ...]]] = {}
        self.seen: list[tuple[str, list[str], float, float]] = []

    def start(self, load: Load, group: Any, nodes: tuple[int, ...] = ()) -> None:
        """Run a gang in its group; the tasks wait for the group by themselves."""
        self.running[load.key] = (load, group, self.nodes.run(load, group), nodes)

    def ended(self, timeout_s: float) -> list[tuple[Load, tuple[int, ...]]]:
        """Wait for some of it to end, at most so long, and give its groups back."""
        from ray.util.placement_group import remove_placement_group

        refs = [ref for _, _, refs, _ in self.running.values() for ref in refs]
        done = set(self.nodes.ray.wait(refs, num_returns=1, timeout=timeout_s)[0]) if refs else set()
        done |= set(self.nodes.ray.wait(refs, num_returns=len(refs), timeout=0)[0]) if done else set()
        out = []
        for key, (load, group, mine, nodes) in list(self.running.items()):
            if done.issuperset(mine):
                del self.running[key]
                self.seen += self.nodes.ray.get(mine)
                remove_placement_group(group)
                out.append((load, nodes))
        return out


def ours(nodes: Nodes, work: Sequence[Load]) -> Follower:
    """Admission decides, Ray reserves."""
    by_key = {w.key: w for w in work}
    waiting = {w.key: Waiting(w.key, w.gang) for w in work}
    free, follower = list(CAPACITY), Follower(nodes)
    admission = Admission(CAPACITY)
    while waiting or follower.running:
        held = [Held(on, load.gang.gpus_per_node) for load, _, _, on in follower.running.values()]
        for start in admission.choose(list(waiting.values()), free, held):
            load = by_key[start.key]
            del waiting[start.key]
            for node in start.nodes:
                free[node] -= load.gang.gpus_per_node
            follower.start(load, nodes.reserve(load.gang, start.nodes), start.nodes)
        for load, on in follower.ended(1.0):
            for node in on:
                free[node] += load.gang.gpus_per_node
    return follower


def first_come(nodes: Nodes, work: Sequence[Load]) -> Follower:
    """Each gang is asked for when the one before it has its ranks."""
    follower, waiting = Follower(nodes), list(work)
    load = waiting.pop(0)
    group = nodes.reserve(load.gang, None)
    asked: Any = group.ready()
    while waiting or follower.running or asked is not None:
        if asked is not None and nodes.ray.wait([asked], timeout=0)[0]:
            follower.start(load, group)
            asked = None
            if waiting:
                load = waiting.pop(0)
                group = nodes.reserve(load.gang, None)
                asked = group.ready()
        else:
            follower.ended(POLL_S)
            if asked is not None and not follower.running:
                nodes.ray.wait([asked], timeout=POLL_S)
    return follower


def all_at_once(nodes: Nodes, work: Sequence[Load]) -> Follower:
    """Everything is asked for at once."""
    follower = Follower(nodes)
    for load in work:
        follower.start(load, nodes.reserve(load.gang, None))
    while follower.running:
        follower.ended(1.0)
    return follower


def check(follower: Follower, work: Sequence[Load]) -> None:
    """That every gang had all its GPUs, and no GPU two tasks at a time."""
    assert len(follower.seen) == sum(load.gang.nodes for load in work)
    assert sum(len(gpus) for _, gpus, _, _ in follower.seen) == sum(load.gang.gpus for load in work)
    used: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for node, gpus, start, end in follower.seen:
        for gpu in gpus:
            used.setdefault((node, gpu), []).append((start, end))
    assert len(used) <= sum(CAPACITY)
    for spans in used.values():
        spans.sort()
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans)), spans


def on_ray(count: int, seed: int) -> None:
    """Print the three makespans on a real cluster."""
    work = loads(count, seed)
    least = bound(work)
    print(f"real Ray, {len(CAPACITY)} nodes x {CAPACITY[0]} fake GPUs, {count} gangs, lower bound {least:.1f} s")
    nodes = Nodes()
    try:
        for name, way in {"ours": ours, "fcfs": first_come, "ray": all_at_once}.items():
            start = time.perf_counter()
            follower = way(nodes, work)
            took = time.perf_counter() - start
            check(follower, work)
            print(f"  {name:5} {took:6.1f} s   {took / least:.3f}", flush=True)
    finally:
        nodes.close()


def simulated(count: int, seeds: Sequence[int]) -> None:
    """Print the ratios of simulations: the median and the worst of some seeds."""
    ratios: dict[str, list[float]] = {}
    for seed in seeds:
        work = loads(count, seed)
        least = bound(work)
        ways: dict[str, tuple[Policy, bool]] = {
            "ours": (Admission(CAPACITY).choose, False),
            "ours, durations known": (Admission(CAPACITY).choose, True),
            "fcfs": (fcfs, False),
        }
        for name, (policy, known) in ways.items():
            ratios.setdefault(name, []).append(simulate(work, policy, known) / least)
    print(f"simulated, {count} gangs, {len(seeds)} seeds: median and worst")
    for name, found in ratios.items():
        print(f"  {name:21} {sorted(found)[len(found) // 2]:.3f} {max(found):.3f}", flush=True)


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gangs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--skip-ray", action="store_true", help="simulations only")
    args = parser.parse_args()
    if not args.skip_ray:
        on_ray(args.gangs, args.seed)
    simulated(200, range(15))
    simulated(1_000, range(5))
    simulated(10_000, range(1))


if __name__ == "__main__":
    main()
