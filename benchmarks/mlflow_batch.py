"""1,000 metric values to a real MLflow server: our tracker beside one `log_batch`, taking turns, in one run.

    log_batch   MlflowClient.log_batch with 1,000 metrics: the least that can be asked for
    store       the same values as 10 steps through sweeper.tracking.store: what our writing costs
    tracker     the same through the tracker of a sweep, from the first call until the last value is there

`mlflow server` with SQLite on the loopback, a run for each turn. Prints medians and ratios. Target: tracker <= 2.

    python benchmarks/mlflow_batch.py [--repeats 9]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from mlflow_store import Server, client

from sweeper.tracking.mlflow import MlflowTracker
from sweeper.tracking.store import Store

STEPS, NAMES = 10, 100
VALUES = {f"actor/metric_{i}": i / 7 for i in range(NAMES)}


def log_batch(uri: str) -> float:
    """Seconds of one call with all values."""
    from mlflow.entities import Metric

    reader = client(uri)
    run = reader.create_run(reader.get_experiment_by_name("p").experiment_id).info.run_id
    now = int(time.time() * 1000)
    metrics = [Metric(k, v, now + step, step) for step in range(STEPS) for k, v in VALUES.items()]
    began = time.perf_counter()
    reader.log_batch(run, metrics=metrics)
    return time.perf_counter() - began


def store(opened: Store, trial: str) -> float:
    """Seconds of our writing, batches and marks of whole steps included."""
    call = {"call": "trial_started", "trial": trial, "attempt": "1", "label": trial, "params": {}, "tags": {}}
    opened.apply({**call, "artifacts": [], "time": time.time()})
    now = time.time()
    began = time.perf_counter()
    opened.points(trial, [(step, VALUES, now + step) for step in range(STEPS)])
    return time.perf_counter() - began


def tracked(tracker: MlflowTracker, trial: str) -> float:
    """Seconds from the first call until the tracker has nothing left to send."""
    tracker.trial_started(trial, trial, {}, {"attempt": "1"}, [])
    while trial not in tracker.run_ids() or tracker._box:
        time.sleep(0.01)
    time.sleep(1.0)  # a step of training comes after a rest
    began = time.perf_counter()
    for step in range(STEPS):
        tracker.metrics(trial, step, VALUES, time.time())
    while tracker._box:
        time.sleep(0.002)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    took: dict[str, list[float]] = {"log_batch": [], "store": [], "tracker": []}
    with tempfile.TemporaryDirectory(prefix="mlflow-batch-") as name, Server(Path(name)) as server:
        tracker = MlflowTracker(server.uri, warn=sys.exit)
        tracker.sweep_started("tracker", "p", {}, {})
        sweep = {"call": "sweep_started", "id": "s", "name": "store", "project": "p", "time": time.time()}
        opened = Store(server.uri, {**sweep, "tags": {}, "params": {}}, {})
        for turn in range(repeats + 1):
            seconds = [log_batch(server.uri), store(opened, f"{turn:03d}"), tracked(tracker, f"{turn:03d}")]
            if turn:  # the first of each opens connections
                for kind, value in zip(took, seconds, strict=True):
                    took[kind].append(value)
                print("  ".join(f"{k} {v:.3f} s" for k, v in zip(took, seconds, strict=True)), flush=True)
        tracker.sweep_ended("finished")
        assert tracker.close(60)
        found = client(server.uri).get_run(tracker.run_ids()["001"]).data.metrics
        assert set(VALUES) <= set(found), "the values are there"
    base = statistics.median(took["log_batch"])
    print(f"\nmedians of {repeats}, {STEPS * NAMES} values")
    for kind, values in took.items():
        print(f"{kind:10} {statistics.median(values) * 1000:7.0f} ms   {statistics.median(values) / base:.2f}")


if __name__ == "__main__":
    main()
