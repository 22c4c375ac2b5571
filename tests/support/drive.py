"""A controller in a process of its own that a test may kill: real ledger, real cluster of this machine, real samplers;
the engine is a fake whose trainer is a small script that saves and resumes.

    python drive.py STORE NAME SAMPLER CANDIDATES CONCURRENCY [SCHEDULER]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fakes import FakeDisplay, FakeEngine

from sweeper.clusters import machine
from sweeper.clusters.local import LocalCluster
from sweeper.engines.base import AttemptPaths, Gang, Job, Progress, Saved
from sweeper.errors import RequestError
from sweeper.search import controller as module
from sweeper.search import replay, samplers, schedulers
from sweeper.search.arm import ArmSearch, Candidate
from sweeper.search.base import Dim
from sweeper.search.controller import Controller, Settings
from sweeper.tracking.base import NoTracker
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import SweepFolder
from sweeper.trial.spec import Point, Trial

STEPS = 6
DIMS = (Dim("lr", low=1e-5, high=1e-1, log=True), Dim("kl", values=(0, 0.001, 0.01)))

TRAINER = """
import json, math, pathlib, sys, time
lr, kl, steps, checkpoints = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4])
checkpoints.mkdir(parents=True, exist_ok=True)
saved = sorted(int(p.name) for p in checkpoints.glob("[0-9]*"))
start = saved[-1] if saved else 0
runs = checkpoints.parent / "steps.txt"
with open("metrics.jsonl", "a") as out:
    for step in range(start + 1, steps + 1):
        time.sleep(0.03)
        score = step / steps - abs(math.log10(lr) + 3) / 10 - kl
        out.write(json.dumps({"step": step, "score": score}) + "\\n")
        out.flush()
        with runs.open("a") as f:
            f.write(f"{step}\\n")
        temp = checkpoints / f".{step}"  # at every step, as a scheduler that pauses asks for
        temp.write_text(str(lr))
        temp.rename(checkpoints / str(step))
"""


class ScriptEngine(FakeEngine):
    """A fake: the trainer is TRAINER, run by this interpreter."""

    def gang(self, config: Mapping[str, Any]) -> Gang:
        return Gang(1, 1)

    def job(self, config: Mapping[str, Any], paths: AttemptPaths) -> Job:
        argv = (sys.executable, "-I", "-S", str(paths.folder / "trainer.py"))
        values = (str(config["lr"]), str(config["kl"]), str(STEPS), str(paths.checkpoints))
        return Job(
            argv=(*argv, *values),
            env={},
            inherit=(),
            files={"trainer.py": TRAINER},
            gang=Gang(1, 1),
            python=sys.executable,
            metrics="metrics.jsonl",
            total_steps=STEPS,
            ray=False,
        )

    def progress(self, line: Mapping[str, Any], config: Mapping[str, Any]) -> Progress | None:
        return Progress(line["step"], {"score": line["score"]}, score=line["score"], step_s=0.03)

    def checkpoint(self, folder: Path, step: int | None = None) -> Saved | None:
        found = sorted(int(p.name) for p in folder.glob("[0-9]*"))
        at = step if step in found else (found[-1] if found else None)
        return None if at is None else Saved(at, folder / str(at))


def size(candidate: Candidate, seed: int | None, trial_id: str, kind: str) -> Trial:
    params = candidate.params
    config = {"engine": {"name": "fake"}, **params}
    point = Point((), dict(params))
    return Trial(trial_id, point, config, (), candidate.arm, candidate.id, seed, dict(params), kind)


def build(store: Path, name: str, sampler: str, count: int, concurrency: int, scheduler: str = "none") -> Controller:
    """The controller of that sweep, new or taken up again."""
    module.POLL_S = 0.01
    existing = (store / name / "ledger.db").exists()
    made = (store / name).exists()
    folder = SweepFolder(store / name) if made else SweepFolder.create(store, name, [])
    ledger = Ledger.open(folder.path / "ledger.db", create=not existing)
    (folder.path / "studies").mkdir(exist_ok=True)
    settings = {"name": scheduler, "grace_period": None, "reduction_factor": 2, "brackets": 1}
    validations = list(range(1, STEPS + 1))
    extra = {
        "pbt": {"interval": 2, "quantile": 0.5, "resample": 0.25},
        "pb2": {"interval": 2, "quantile": 0.5},
        "median": {"min_samples": 2},
    }.get(scheduler, {})
    arm = ArmSearch(
        "0",
        sampler=samplers.make(sampler, DIMS, seed=7, options={}, journal=folder.path / "studies" / "0.journal"),
        scheduler=schedulers.make(
            {**settings, **extra},
            DIMS,
            mode="max",
            validations=validations,
            total_steps=STEPS,
            seed=7,
            candidates=count,
        ),
        refuse=lambda p: "too much of both" if p["lr"] > 1e-2 and p["kl"] == 0.01 else "",
        budget=count,
        objectives=("score",),
        name=lambda n: f"{n:03d}",
        seeds=(None,),
        mode="max",
    )
    controller = Controller(
        arms=[arm],
        size=size,
        engine=ScriptEngine(),  # type: ignore[arg-type]
        cluster=LocalCluster(replace(machine.detect("local", "cpu", None), gpus_per_node=2)),
        folder=folder,
        ledger=ledger,
        tracker=NoTracker(),
        display=FakeDisplay(),
        facts=lambda o: (dict(o.trial.params), {"sweeper.fingerprint": o.fingerprint}),
        fingerprint=lambda t: json.dumps(dict(t.params), sort_keys=True),
        settings=Settings(
            stop={"patience": 3, "nan": True},
            failures={"retries": 2, "same": 3, "stalled": 20, "stalled_min_s": 60, "first_step_s": 60},
            max_concurrent=concurrency,
            known=False,
        ),
    )
    if existing:
        replay.take_up(controller, ledger, folder)
    return controller


def main() -> None:
    store, name, sampler, count, concurrency, *scheduler = sys.argv[1:]
    try:
        controller = build(Path(store), name, sampler, int(count), int(concurrency), *scheduler)
    except RequestError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    outcomes = controller.run()
    print(json.dumps({t: o.state for t, o in outcomes.items()}), time.time())


if __name__ == "__main__":
    main()
