"""From a gang granted to its trainer's first line, on one node and on two; and how long a stop and a lost node take.

Real Ray: two raylets on this machine are the cluster, each attempt brings up a Ray cluster of its own over its nodes;
the trainer is a fake that connects to it and prints a line. Medians. Targets: two nodes at most 10 s more than one; a
stop frees the gang in 5 s; a lost node is noticed in 15 s.

    python benchmarks/gang_start.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import ray_cluster

from sweeper import clusters
from sweeper.clusters.gang import janitor
from sweeper.engines.base import Gang, Job

FAKE = "import ray, time; ray.init(log_to_driver=False); print('up', flush=True); time.sleep(3600)"


def job(nodes: int) -> Job:
    """A trainer that only says that it runs."""
    return Job(
        argv=(sys.executable, "-c", FAKE),
        env={},
        inherit=(),
        files={},
        gang=Gang(nodes, 1),
        python=sys.executable,
        metrics="metrics.jsonl",
        total_steps=1,
        ray_cpus_per_node=2,
        object_store_bytes=80_000_000,
    )


def until(what: Any) -> float:
    """Seconds until it is so."""
    began = time.perf_counter()
    while not what():
        time.sleep(0.01)
    return time.perf_counter() - began


def started(cluster: Any, folder: Path, nodes: int) -> tuple[Any, float]:
    """An attempt whose trainer runs, and how long that took."""
    folder.mkdir(parents=True)
    attempt = cluster.start(job(nodes), folder, tuple(range(nodes)))
    log = folder / "log.txt"
    return attempt, until(lambda: log.exists() and "up\n" in log.read_text())


def lose(folder: Path) -> None:
    """Kill every process of the gang's second node."""
    den = Path(json.loads((folder / "gang" / "1.json").read_text())["temp_dir"])
    for pid in janitor.marked(den.name.removeprefix(janitor.PREFIX)):
        os.kill(pid, signal.SIGKILL)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    took: dict[str, list[float]] = {}
    with ray_cluster.Raylets(2, 4) as raylets, tempfile.TemporaryDirectory() as place:
        raylets.connect()
        config = ray_cluster.config(raylets.address)
        cluster = clusters.get(config, clusters.shape(config))
        for number in range(repeats):
            for nodes in (1, 2):
                attempt, first = started(cluster, Path(place) / f"start-{nodes}-{number}", nodes)
                took.setdefault(f"first line, {nodes} node{'s' * (nodes > 1)}", []).append(first)
                attempt.stop()
                took.setdefault(f"stop, {nodes} node{'s' * (nodes > 1)}", []).append(until(attempt.poll))
            folder = Path(place) / f"lost-{number}"
            attempt, _ = started(cluster, folder, 2)
            lose(folder)
            took.setdefault("a lost node, to the gang's end", []).append(until(attempt.poll))
        cluster.close()
    for what, seconds in took.items():
        print(f"{what:<34} {statistics.median(seconds):6.2f} s   (worst of {repeats}: {max(seconds):.2f})")


if __name__ == "__main__":
    main()
