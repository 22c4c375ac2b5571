"""What a `dvc repro` with nothing to do costs, beside DVC's own: taking turns, in one run.

    ours       `dvc repro` of this repository's seven stages, all of them up to date
    bare       `dvc repro` of seven stages of a line each, in a repository with nothing else

compose, prepare and model are run for real. What the later stages make is faked (files of a plausible size, committed
to DVC as it is), since a no-op compares hashes and does not read what they mean. Prints medians and the difference.
Target: ours at most 1 s more.

    python benchmarks/noop_repro.py [--repeats 7] [--checkpoint-mb 20]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from checkout import Checkout

STAGES = 7


def main() -> None:
    """Make both, let them take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--checkpoint-mb", type=int, default=20, help="of the fake best checkpoint")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        both = {"ours": ours(Path(folder), asked.checkpoint_mb), "bare": bare(Path(folder))}
        seconds: dict[str, list[float]] = {name: [] for name in both}
        for number in range(asked.repeats + 1):
            for name, checkout in both.items():
                before = time.perf_counter()
                said = checkout.dvc("repro")
                if number:  # the first fills the caches of both
                    seconds[name].append(time.perf_counter() - before)
                assert "Running" not in said, said
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name:5} {median:6.2f} s   ({min(seconds[name]):.2f} to {max(seconds[name]):.2f})")
    print(
        f"ours - bare: {medians['ours'] - medians['bare']:.2f} s (target 1), {medians['ours'] / medians['bare']:.2f} x"
    )


def ours(folder: Path, megabytes: int) -> Checkout:
    """This repository, its pipeline up to date."""
    checkout = Checkout.make(folder / "ours", folder / "home")
    checkout.dvc("repro", "model", "prepare")
    made = checkout.path / "pipeline"
    for name, size in {
        "sweep/sweep.json": 20_000,
        "best/best.json": 2_000,
        "best/checkpoint/global_step_8/model.pt": megabytes * 1_000_000,
        "plots/score.csv": 2_000,
        "plots/reward.csv": 2_000,
        "report/index.html": 50_000,
        "report/curves.png": 50_000,
    }.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(os.urandom(size))
    (made / "metrics.json").write_text('{"test": {"score": 0.5}}')
    checkout.dvc("commit", "--force")
    return checkout


def bare(folder: Path) -> Checkout:
    """As many stages, each of which writes a file."""
    path = folder / "bare"
    path.mkdir()
    checkout = Checkout(path, Checkout.environment(folder / "home"))
    checkout.git("init", "-q", "-b", "main")
    checkout.dvc("init", "-q")
    names = [f"s{number}" for number in range(STAGES)]
    (path / "dvc.yaml").write_text(
        "stages:\n" + "".join(f"  {n}: {{cmd: echo {n} > {n}, outs: [{n}]}}\n" for n in names)
    )
    checkout.dvc("repro")
    return checkout


if __name__ == "__main__":
    main()
