"""What a proposal costs: our samplers beside Optuna's own plain in-memory study, in one run.

Ours: ask + tell, with refusals checked, everything derived again for each ask, and the arm's study written to a file.
Optuna's: `study.ask(ranges)` + `study.tell` with the same sampler and options, kept from ask to ask. Same space (two
intervals, two choices), same objective, taking turns. Prints ms of processor time a trial over the trials up
to 10, 100 and 1,000 (gp: 10 and 30), the ratio, and the seconds to replay 10,000 past candidates. A sampler that used
up its seconds is cut, and the number of trials until then is shown.

    python benchmarks/samplers.py [--seconds 12]
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from sweeper.search import samplers
from sweeper.search.base import Ask, Dim, Past, Told

DIMS = (
    Dim("lr", low=1e-7, high=1e-3, log=True),
    Dim("clip", low=0.1, high=0.4),
    Dim("kl", values=(0, 1e-4, 1e-3, 1e-2)),
    Dim("loss", values=("token", "sequence")),
)
RANGES: dict[str, BaseDistribution] = {
    "lr": optuna.distributions.FloatDistribution(1e-7, 1e-3, log=True),
    "clip": optuna.distributions.FloatDistribution(0.1, 0.4),
    "kl": optuna.distributions.IntDistribution(0, 3),
    "loss": optuna.distributions.CategoricalDistribution((0, 1)),
}
COUNTS = {"gp": (10, 30)}


def score(params: Mapping[str, Any]) -> float:
    """Best at lr=1e-5, clip=0.2."""
    return float(-abs(math.log10(params["lr"]) + 5) - abs(params["clip"] - 0.2))


def theirs(kind: str) -> Callable[[], None]:
    """A step of Optuna's."""
    made: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "random": lambda: optuna.samplers.RandomSampler(seed=1),
        "qmc": lambda: optuna.samplers.QMCSampler(seed=1, scramble=True),
        "tpe": lambda: optuna.samplers.TPESampler(seed=1),
        "gp": lambda: optuna.samplers.GPSampler(seed=1),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=1, population_size=20),
    }
    study = optuna.create_study(direction="maximize", sampler=made[kind]())

    def step() -> None:
        trial = study.ask(RANGES)
        study.tell(trial, score(trial.params))

    return step


def ours(kind: str, folder: Path) -> Callable[[], None]:
    """A step of ours."""
    sampler = samplers.make(kind, DIMS, seed=1, journal=folder / f"{kind}.log")

    def step() -> None:
        asked = sampler.ask(lambda _: "")
        if asked is None:
            raise SystemExit(f"{kind}: no more points")
        sampler.tell(asked.number, Told("finished", (score(asked.params),)))

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12, help="of a sampler, at most; then it is cut")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'':8} {'trials':>6} {'ours':>9} {'Optuna':>9} {'ratio':>6}")
        for kind in ("random", "qmc", "tpe", "nsga2", "gp"):
            steps = (ours(kind, Path(folder)), theirs(kind))
            spent, began = [0.0, 0.0], time.process_time()
            for trial in range(1, COUNTS.get(kind, (1000,))[-1] + 1):
                for who, step in enumerate(steps):
                    start = time.process_time()
                    step()
                    spent[who] += time.process_time() - start
                late = time.process_time() - began > args.seconds
                if trial in COUNTS.get(kind, (10, 100, 1000)) or late:
                    mine, other = (1000 * s / trial for s in spent)
                    print(f"{kind:8} {trial:6} {mine:6.2f} ms {other:6.2f} ms {mine / other:6.2f}", flush=True)
                if late:
                    break
        for kind in ("random", "qmc", "tpe"):
            fresh = samplers.make("random", DIMS, seed=1)
            past = []
            for _ in range(10_000):
                asked = fresh.ask(lambda _: "")
                assert isinstance(asked, Ask)
                past.append(Past(asked, Told("finished", (score(asked.params),), {10: 0.5})))
            sampler = samplers.make(kind, DIMS, seed=1, journal=Path(folder) / "replay.log")
            start = time.process_time()
            sampler.replay(past)
            replayed = time.process_time() - start
            start = time.process_time()
            for _ in range(5):
                asked = sampler.ask(lambda _: "")
                assert asked is not None
                sampler.tell(asked.number, Told("finished", (0.5,)))
            each = (time.process_time() - start) / 5
            print(f"{kind:8} replay of 10,000: {replayed:.2f} s; a trial after them: {1000 * each:.2f} ms")


if __name__ == "__main__":
    main()
