"""What lineage costs: at a sweep's start, and a trial; beside the targets of 0.5 s and 1 % of a default trial (60 s).

    start     what a controller waits for until its first attempt has a record: code (git, patch, sources), packages,
              hashes of the inputs. `cold` has no memory of hashes, `warm` that of an earlier sweep; code and packages
              are found anew in both
    a trial   `Recorder.started` and `Recorder.ended`, on the whole config of the default trial
    hashing   a file and a folder of 64 files, MiB/s, never seen before; and again, seen

What MLflow takes is not in here: overhead.py has it, as the difference of two of its systems. Prints medians, and
processor time, which a busy machine changes less.

    python benchmarks/lineage.py [--trials 200] [--repeats 5] [OVERRIDE...]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sweeper import engines, prepare
from sweeper.config.hydra_app import initialized
from sweeper.lineage import environment, inputs
from sweeper.lineage.code import package_sha256
from sweeper.lineage.hashes import Hashes
from sweeper.lineage.record import Recorder
from sweeper.plan import plan
from sweeper.trial.records import AttemptFolder, SweepFolder
from sweeper.trial.spec import Trial

LARGE = 256 * 2**20
PER_TRIAL_S = 0.5
SHARE_S = 0.01 * 60


def default(overrides: list[str]) -> Trial:
    """The one trial that the overrides describe, with what it needs built."""
    with initialized():
        made = plan.make(overrides)
    if made.problems:
        raise SystemExit("\n".join(line for problem, _ in made.problems for line in problem.lines()))
    config = made.trials[0].config
    prepare.run(prepare.missing([config]), str(config["engine"]["python"] or sys.executable), print)
    return made.trials[0]


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def start(trial: Trial, folder: Path, memory: Path, after_s: float) -> float:
    """Seconds that a new controller spends on lineage before its first attempt; `after_s` with other things first."""
    environment._installed.cache_clear()
    environment._machine.cache_clear()
    package_sha256.cache_clear()
    inputs._rows.cache_clear()
    inputs._parsed.cache_clear()
    attempt = SweepFolder.create(folder, "s", []).new_attempt(trial.id)
    engine = engines.get(str(trial.config["engine"]["name"]))
    began = time.perf_counter()
    recorder = Recorder(engine, warn=lambda _text: None, exclude=[folder], hashes=Hashes(memory))
    spent = time.perf_counter() - began
    time.sleep(after_s)
    return spent + timed(lambda: recorder.started(trial, dict(trial.config), attempt, folder / "none"))


def trials(trial: Trial, folder: Path, memory: Path, count: int) -> tuple[list[float], list[float]]:
    """Seconds of each start and each end, in one controller."""
    sweep = SweepFolder.create(folder, "s", [])
    engine = engines.get(str(trial.config["engine"]["name"]))
    recorder = Recorder(engine, warn=lambda _text: None, exclude=[folder], hashes=Hashes(memory))
    begins, ends = [], []
    result = {"state": "finished", "reason": "exit", "exit_code": 0, "score": 0.5, "best_score": 0.5, "step": 12}
    for number in range(count + 1):
        attempt: AttemptFolder = sweep.new_attempt(f"{number:04d}")
        checkpoints = sweep.checkpoints(f"{number:04d}")
        begin = timed(lambda a=attempt, c=checkpoints: recorder.started(trial, dict(trial.config), a, c))  # type: ignore[misc]
        end = timed(lambda a=attempt, c=checkpoints: recorder.ended(a, c, result, started=0.0))  # type: ignore[misc]
        if number:  # the first waits for the code
            begins.append(begin)
            ends.append(end)
    return begins, ends


def hashing(folder: Path) -> None:
    """MiB/s of what was never seen, and milliseconds of what was."""
    big, many = folder / "big", folder / "many"
    block = os.urandom(2**20)
    with big.open("wb") as file:
        for _ in range(LARGE // len(block)):
            file.write(block)
    many.mkdir()
    for number in range(64):
        (many / str(number)).write_bytes(block * (LARGE // 64 // len(block)))
    time.sleep(0.2)  # so that they may be remembered
    memory = Hashes(folder / "hashes.db")
    for name, path in (("a file", big), ("a folder of 64 files", many)):
        first, again = timed(lambda p=path: memory.tree(p)), timed(lambda p=path: memory.tree(p))  # type: ignore[misc]
        print(f"hashing {name} of {LARGE >> 20} MiB: {LARGE / 2**20 / first:.0f} MiB/s, again {again * 1e3:.1f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    asked, overrides = parser.parse_known_args()
    trial = default(overrides)
    median = statistics.median
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        cold = [start(trial, folder / f"c{n}", folder / f"{n}.db", 0.0) for n in range(asked.repeats)]
        warm = [start(trial, folder / f"w{n}", folder / "0.db", 0.0) for n in range(asked.repeats)]
        beside = [start(trial, folder / f"b{n}", folder / "0.db", 1.0) for n in range(asked.repeats)]
        print(f"start, cold:   {median(cold) * 1e3:7.1f} ms")
        print(f"start, warm:   {median(warm) * 1e3:7.1f} ms")
        print(f"start, warm, when the first attempt comes a second later: {median(beside) * 1e3:.1f} ms")
        processor = time.process_time()
        begins, ends = trials(trial, folder / "t", folder / "0.db", asked.trials)
        processor = time.process_time() - processor
        each = [b + e for b, e in zip(begins, ends, strict=True)]
        print(f"a trial:       {median(each) * 1e3:7.1f} ms ({median(begins) * 1e3:.1f} + {median(ends) * 1e3:.1f})")
        print(f"processor time of a trial: {processor / asked.trials * 1e3:.1f} ms")
        worst = max(each)
        print(f"worst trial:   {worst * 1e3:7.1f} ms; targets {PER_TRIAL_S * 1e3:.0f} ms and {SHARE_S * 1e3:.0f} ms")
        hashing(folder)


if __name__ == "__main__":
    main()
