"""Stage `sweep`: the sweep that the request stands for, run or gone on with; its records for the later stages.

Guarantees: a sweep's name is made of what it is (the request, the data, the models), so one that was stopped or killed
goes on where it was, also in another experiment that wants the same, and any change starts a new one, which takes the
trials that are the same from those that are finished. What is written holds times and hosts nowhere but in the records
of attempts, and paths relative to the store of sweeps. A record is handed on with all that reproducing it takes
(`hand_on`), so that a checkout which pulled it can.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper import app, engines
from sweeper.config.hydra_app import initialized
from sweeper.engines.base import Progress
from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.lineage import document
from sweeper.lineage.find import METRICS
from sweeper.pipeline import compose, held_out, params, places, prepare
from sweeper.report.rows import Request
from sweeper.search.history import Curve
from sweeper.search.outcome import Outcome
from sweeper.trial.ledger import Ledger, TrialState
from sweeper.trial.records import SweepFolder, Tail, number, read_json
from sweeper.trial.spec import Point, Trial

ABOUT, TRIALS = "sweep.json", "trials.json"
DIGITS = 12
CODE = "SWEEPER_TRAINER_CODE"
"""A variable of the trials, part of what they are: stands for our code inside the trainer."""


def run() -> int:
    """Run it to its end; returns the exit code: 1 while some trials are not done.

    Raises:
        SweeperError: It cannot run.
    """
    wanted, told = places.read(compose.SWEEP), params.read()
    asked = params.overrides(told)
    with initialized():
        plan = compose.checked(asked)
        now, config = compose.described(plan), next(compose.configs(plan))
    if now != wanted:
        raise RequestError(
            Problem(
                f"{compose.SWEEP} is not of this params.yaml, conf/ and code",
                fix="dvc repro   (all stages that are out of date, not this one alone)",
            )
        )
    prepare.restore()
    # Before anything is trained: what cannot be evaluated afterwards.
    held_out.seeds(
        told["evaluate"],
        {int(config["seed"]) if s is None else s for s in (*plan.search.seeds, *plan.search.final_seeds)},
    )
    held_out.data(told["evaluate"]["data"], config)
    name = f"pipeline-{identity(wanted)}"
    if wanted["code"]:  # identity, so that trials which other code trained do not stand for these
        asked = [*asked, f"+engine.env.{CODE}={places.digest(wanted['code'])[:DIGITS]}"]
    if code := execute(asked, name):
        return code
    collect(name, places.SWEEP)
    return 0


def identity(wanted: Mapping[str, Any]) -> str:
    """Hexadecimal digits that stand for the request with the very data and models."""
    taken = [wanted, places.files(places.DATA), places.files(places.MODEL)]
    if any("./" in text for text in _texts(wanted)):  # files of this checkout, which its trials name by their full path
        taken.append(str(Path.cwd()))
    return places.digest(taken)[:DIGITS]


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [value] if isinstance(value, str) and value.startswith("./") else []


def execute(asked: Sequence[str], name: str) -> int:
    """Run the sweep of that name, or go on with it where it was; returns the exit code."""
    lines = [*asked, f"name={name}", f"store={quoted(places.store())}"]
    told = bool(os.environ.get("MLFLOW_TRACKING_URI")) or any(line.startswith("tracking.uri=") for line in asked)
    if "tracking=mlflow" in asked and not told:
        # of the main checkout: an experiment's own folder is gone when it has ended
        lines.append(f"tracking.uri={quoted(f'sqlite:///{places.main_checkout()}/mlflow.db')}")
    with initialized():
        return app.run(lines, resume=(places.store() / name).is_dir())


def quoted(value: object) -> str:
    """A path as a value of an override, whatever characters it has."""
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def collect(name: str, out: Path) -> None:
    """Write what later stages need of a finished sweep: its trials with their curves, the records of their attempts.

    Raises:
        SweeperError: The records cannot be read.
    """
    store = places.store()
    ledger = store / name / "ledger.db"
    states = Ledger.read(ledger)
    first = next(e for e in Ledger.history(ledger) if e.kind == "sweep_started")
    arms = {str(arm["id"]): str(arm["label"]) for arm in first.data.get("arms") or ()}
    search = first.data.get("search") or {}
    about = {
        "name": name,
        "overrides": [o for o in first.data["overrides"] if o.split("=")[0] not in ("name", "store", "tracking.uri")],
        "mode": first.data.get("mode") or "max",
        "objectives": search.get("objectives") or ["score"],
        "seeds": [s for s in (*(search.get("seeds") or ()), *(search.get("final_seeds") or ())) if s is not None],
        "arms": arms,
    }
    with places.replaced(out) as folder:
        rows = [_row(store, name, state, folder) for state in states.values()]
        places.write(folder / ABOUT, about)
        places.write(folder / TRIALS, {"trials": rows})


def _row(store: Path, name: str, state: TrialState, out: Path) -> dict[str, Any]:
    """One trial, with the curve of all its attempts."""
    sweep, _, trial = (state.reused or f"{name}/{state.id}").partition("/")
    folder = SweepFolder(store / sweep)
    latest = folder.latest_attempt(trial)
    if latest is None:
        raise SweeperError(f"{folder.trial(trial)} has no records of an attempt\n  try:   sweeper status {name}")
    curve, spec = Curve(), read_json(latest / "spec.json")
    for attempt in folder.attempts(trial):
        of = read_json(attempt / "spec.json")
        engine = engines.get(of["config"]["engine"]["name"])
        for line in Tail(attempt / of["metrics"]).read():
            if progress := engine.progress(line, of["config"]):
                curve.add(progress)
    hand_on(folder, trial, SweepFolder(out).trial(state.id))
    return {
        "id": state.id,
        "label": state.label,
        "state": state.state,
        "reason": state.reason,
        "arm": state.arm,
        "candidate": state.candidate,
        "seed": state.seed,
        "kind": state.kind,
        "params": dict(state.params),
        "fingerprint": state.fingerprint,
        "varied": spec["varied"],
        "overrides": spec["overrides"],
        "reused": state.reused,
        "place": f"{sweep}/trials/{trial}",
        "attempt": latest.name,
        "step": curve.step,
        "scores": {str(step): value for step, value in sorted(curve.scores.items())},
        "rewards": {str(step): value for step, value in sorted(curve.rewards.items())},
    }


def hand_on(sweep: SweepFolder, trial: str, out: Path) -> None:
    """Copy what `sweeper verify` and `sweeper reproduce` need of a trial into a folder: the record, the patch and the
    metrics of each attempt, laid out as in its sweep. Nothing where there is no record (an older sweep).

    Raises:
        OSError: It cannot be copied.
    """
    for attempt in sweep.attempts(trial):
        if not (attempt / document.NAME).is_file():
            continue
        (out / attempt.name).mkdir(parents=True)
        for name in (document.NAME, document.PATCH, METRICS):
            if (attempt / name).is_file():
                shutil.copyfile(attempt / name, out / attempt.name / name)


def load(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `collect` wrote: about the sweep, and its trials.

    Raises:
        RequestError: It is not here.
    """
    return places.read(folder / ABOUT), list(places.read(folder / TRIALS)["trials"])


def outcomes(rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """The trials as a report reads them."""
    found = []
    for row in rows:
        trial = Trial(
            row["id"],
            Point(tuple(row["overrides"]), row["varied"]),
            {},
            arm=row["arm"],
            candidate=row["candidate"],
            seed=row["seed"],
            params=row["params"],
            kind=row["kind"],
        )
        made = Outcome(trial, row["fingerprint"], row["state"], reused=row["reused"])
        for step in sorted({*map(int, row["scores"]), *map(int, row["rewards"])}):
            score, reward = row["scores"].get(str(step)), row["rewards"].get(str(step))
            made.curve.add(Progress(step, {}, reward=number(reward), score=number(score)))
        found.append(made)
    return found


def asked_for(about: Mapping[str, Any]) -> Request:
    """What the sweep was asked for, as a report needs it."""
    return Request(about["mode"], tuple(about["objectives"]), about["arms"])
