"""Sends to MLflow what it has not got yet of a sweep, from the records: `sweeper sync NAME`.

Guarantees: only what is missing is sent, so that it may be repeated, stopped and repeated; steps carry the times at
which they were measured; the records are only read; a trial that the controller's death interrupted becomes KILLED.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.tracking.address import absolute, shown
from sweeper.tracking.base import measured
from sweeper.tracking.spool import NAME, Call, Spool
from sweeper.tracking.store import Point, Store, reason
from sweeper.trial.ledger import holder
from sweeper.trial.records import SweepFolder, Tail, read_json


@dataclass(slots=True)
class _Attempt:
    start: Call
    times: dict[int, float] = field(default_factory=dict)
    tags: list[Call] = field(default_factory=list)
    end: Call | None = None


def replay(sweep_folder: Path, uri: str | None) -> str:
    """Send what is missing; returns a line that says what was sent.

    Args:
        sweep_folder: the sweep's folder, wherever it is now.
        uri: tracking URI; None: the one that the sweep was run with.

    Raises:
        RequestError: the sweep has no calls to replay, or runs now and sends them itself.
        SweeperError: the store cannot be written.
    """
    calls = Spool(sweep_folder).calls()
    sweeps = [c for c in calls if c["call"] == "sweep_started"]
    if not sweeps:
        raise RequestError(
            Problem(f"{sweep_folder} has no {NAME}", valid="a sweep that was run with tracking=mlflow", key="name")
        )
    if who := holder(sweep_folder / "ledger.db"):
        raise RequestError(
            Problem(f"the sweep {sweep_folder.name} is running (process {who.pid} on {who.host}) and sends by itself")
        )
    target = absolute(uri or str(sweeps[0]["uri"]))
    calls = [_here(call, str(sweeps[0]["tags"].get("sweeper.folder", "")), sweep_folder) for call in calls]
    try:
        return _send(target, sweeps[-1], calls, sweep_folder)
    except SweeperError:
        raise
    except Exception as error:
        again = f"sweeper sync {SweepFolder(sweep_folder).typed}"
        raise SweeperError(
            f"MLflow at {shown(target)} cannot be written: {reason(error)}\n"
            f"  try:   {again}   (once it answers: what it has stays, nothing is lost; --uri URI for another store)"
        ) from error


def _send(uri: str, sweep: Call, calls: list[Call], folder: Path) -> str:
    store = Store(uri, sweep, {})
    trials, steps = _attempts(calls), 0
    for trial, attempts in trials.items():
        last = attempts[-1].end
        done = last is not None and store.ended(last)
        for attempt in attempts:
            store.begin(attempt.start)
            if not done:
                store.apply(attempt.start)
            steps += store.points(trial, _points(folder, trial, attempt))
            if not done:
                for tags in attempt.tags:
                    store.apply(tags)
                store.apply(attempt.end or _interrupted(attempt))
    for best in [c for c in calls if c["call"] == "best"][-1:]:
        store.apply(best)
    ends = [c for c in calls if c["call"] == "sweep_ended"]
    latest = max((c["time"] for c in calls), default=0.0)
    store.apply(ends[-1] if ends else {"call": "sweep_ended", "state": "interrupted", "time": latest})
    missed = f"; not taken: {', '.join(store.missed)}" if store.missed else ""
    many = "1 trial is" if len(trials) == 1 else f"{len(trials)} trials are"
    return f"{many} in {shown(uri)} ({steps} steps were missing){missed}"


def _attempts(calls: list[Call]) -> dict[str, list[_Attempt]]:
    found: dict[str, list[_Attempt]] = {}
    for call in calls:
        trial = str(call.get("trial", ""))
        if call["call"] == "trial_started":
            found.setdefault(trial, []).append(_Attempt(call))
        elif trial in found:
            if call["call"] == "step":
                found[trial][-1].times[int(call["step"])] = float(call["time"])
            elif call["call"] == "tagged":
                found[trial][-1].tags.append(call)
            elif call["call"] == "trial_ended":
                found[trial][-1].end = call
    return found


def _points(folder: Path, trial: str, attempt: _Attempt) -> Iterator[Point]:
    """The attempt's steps as its metrics file has them; values of one step together."""
    from sweeper import engines

    here = folder / "trials" / trial / f"attempt-{attempt.start['attempt']}"
    if not (here / "spec.json").exists():
        return
    spec = read_json(here / "spec.json")
    config: dict[str, Any] = attempt.start["params"].get("config") or spec["config"]
    engine = engines.get(str(spec["config"]["engine"]["name"]))
    steps: dict[int, dict[str, float]] = {}
    for line in Tail(here / str(spec["metrics"])).read():
        if progress := engine.progress(line, config):
            steps.setdefault(progress.step, {}).update(measured(progress))
    moment = float(attempt.start["time"])
    for step, values in steps.items():
        moment = attempt.times.get(step, moment)
        yield step, values, moment


def _interrupted(attempt: _Attempt) -> Call:
    return {
        "call": "trial_ended",
        "trial": attempt.start["trial"],
        "attempt": attempt.start["attempt"],
        "state": "interrupted",
        "summary": {},
        "artifacts": attempt.start["artifacts"],
        "time": max(attempt.times.values(), default=attempt.start["time"]),
    }


def _here(call: Call, before: str, now: Path) -> Call:
    """The call with the artifacts where they are now: the folder may have been moved."""
    if not before or "artifacts" not in call:
        return call
    moved = [str(now) + p.removeprefix(before) if p.startswith(before + "/") else p for p in call["artifacts"]]
    return {**call, "artifacts": moved}
