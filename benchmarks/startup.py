"""What our launch costs beside plain verl: the same config three ways, taking turns, in one run.

    plain      bash command.sh: `python -m verl.trainer.main_ppo`, which starts its own Ray
    cluster    through sweeper.clusters.local, every process a new interpreter
    forked     the same with the fork server

Prints medians, and ratios to plain, of (a) seconds from launch to the first training step in the metrics file,
(b) seconds per step after the first, (c) seconds from launch until nothing is left. Targets: (a) <= 1.15, (b) <= 1.02.
Says as well whether all runs gave the same metrics, to the last bit, but for times, memory and speed.

    python benchmarks/startup.py [--repeats 3] [--steps 12] [OVERRIDE...]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from sweeper import engines, prepare
from sweeper.clusters.gang import janitor
from sweeper.clusters.local import LocalCluster
from sweeper.clusters.machine import detect
from sweeper.config.hydra_app import initialized
from sweeper.engines.base import AttemptPaths, Job
from sweeper.plan import plan

WAYS = ("plain", "cluster", "forked")
LIMIT_S = 900.0


@dataclasses.dataclass(frozen=True)
class Measured:
    """One run, in seconds."""

    first_step: float
    per_step: float
    total: float
    metrics: str
    """Every value that does not depend on the machine's speed."""


TIMES = ("first_step", "per_step", "total")
NOISE = ("timing", "perf/", "perf_", "throughput")


def prepared(overrides: list[str], folder: Path) -> Job:
    """The job of the one trial that the overrides describe, with what it needs built."""
    with initialized():
        made = plan.make(overrides)
    if made.problems:
        raise SystemExit("\n".join(line for problem, _ in made.problems for line in problem.lines()))
    (trial,) = made.trials
    builds = prepare.missing([trial.config])
    engine = engines.get(trial.config["engine"]["name"])
    job = engine.job(dict(trial.config), AttemptPaths(folder=folder, checkpoints=folder / "checkpoints"))
    if builds:
        subprocess.run(
            prepare.command(builds, job.python), env=prepare.environment(), stdout=subprocess.DEVNULL, check=True
        )
    return job


def steps(metrics: Path) -> list[dict[str, float]]:
    """The complete training lines of a metrics file."""
    try:
        text = metrics.read_text()
    except OSError:
        return []
    lines = [json.loads(line)["data"] for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if "timing_s/step" in line]


def run(way: str, overrides: list[str], folder: Path) -> Measured:
    """Run the trial one way."""
    folder.mkdir()
    job = prepared([*overrides, f"engine.fork_server={str(way == 'forked').lower()}"], folder)
    marker = f"benchmark-{os.getpid()}-{folder.name}"
    start = time.monotonic()
    if way == "plain":
        for name, text in job.files.items():
            (folder / name).write_text(text)
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                ["bash", str(folder / "command.sh")],
                env={**os.environ, "OUT": str(folder), janitor.MARKER: marker},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        poll = process.poll
    else:
        attempt = LocalCluster(detect(device="cpu")).start(job, folder, (0,))
        assert attempt is not None, "another sweep holds the ranks"

        def poll() -> int | None:
            ended = attempt.poll()
            return None if ended is None else (1 if ended.code is None else ended.code)

    first: float | None = None
    try:
        while (code := poll()) is None:
            if first is None and steps(folder / job.metrics):
                first = time.monotonic() - start
            if time.monotonic() - start > LIMIT_S:
                raise SystemExit(f"{way} takes more than {LIMIT_S:.0f} s, see {folder}/log.txt")
            time.sleep(0.02)
        total = time.monotonic() - start
    finally:
        for pid in janitor.marked(marker):  # plain verl leaves some of its Ray for a moment
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    lines = steps(folder / job.metrics)
    later = [line["timing_s/step"] for line in lines[1:]]
    if code or first is None or not later:
        raise SystemExit(f"{way} failed with code {code}, see {folder}/log.txt")
    same = [{k: v for k, v in line.items() if not any(word in k for word in NOISE)} for line in lines]
    return Measured(first, statistics.median(later), total, json.dumps(same, sort_keys=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    overrides = [
        f"trainer.total_training_steps={args.steps}",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "objective.metric=critic/score/mean",
        "trainer.save_freq=-1",
        *args.overrides,
    ]
    results: dict[str, list[Measured]] = {way: [] for way in WAYS}
    root = Path(tempfile.mkdtemp(prefix="startup-"))
    for turn in range(args.repeats):
        for way in WAYS[turn % 3 :] + WAYS[: turn % 3]:  # no way is always the first, whose files are not cached
            measured = run(way, overrides, root / f"{way}-{turn}")
            results[way].append(measured)
            print(
                f"{way:8} first step {measured.first_step:6.2f} s, "
                f"a step {measured.per_step:6.3f} s, in all {measured.total:6.2f} s",
                flush=True,
            )
    plain = {name: statistics.median(getattr(m, name) for m in results["plain"]) for name in TIMES}
    print(f"\nmedians of {args.repeats}, ratio to plain in brackets; records in {root}")
    for way in WAYS:
        cells = []
        for name, base in plain.items():
            value = statistics.median(getattr(m, name) for m in results[way])
            cells.append(f"{name} {value:7.3f} ({value / base:.3f})")
        print(f"{way:8} " + "   ".join(cells))
    kinds = len({m.metrics for runs in results.values() for m in runs})
    print("metrics: identical in all runs" if kinds == 1 else f"metrics: {kinds} different outcomes")


if __name__ == "__main__":
    main()
