"""Which run a user means: an MLflow run id, SWEEP/TRIAL[/ATTEMPT] of a store, or a lineage.json.

Guarantees: nothing is changed where the runs are; what MLflow has is fetched into the cache, so that a run is found
although its records are gone, with the steps of all its attempts; a name that fits several runs or none is refused with
those that are there, exit code 2. MLflow is imported only for an MLflow id.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweeper import cache
from sweeper.errors import Problem, RequestError
from sweeper.lineage import document
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import SweepFolder, attempt_number, store_flag

RECORD, METRICS, PATCH = document.NAME, "metrics.jsonl", document.PATCH
SHOWN = 12
"""Candidates that are listed before the rest is counted."""
_MLFLOW_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Found:
    """A run and what is known of it."""

    path: Path
    """Its lineage.json; absolute."""
    document: Mapping[str, Any]
    metrics: tuple[Path, ...]
    """The metrics files of the trial's attempts up to this one, oldest first; they may not be there."""
    earlier: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """Steps of attempts whose metrics file is not among `metrics`, as MLflow has them: a zero without its sign."""
    earlier_scores: Mapping[int, float] = field(default_factory=dict)
    """Likewise the validation scores."""

    @property
    def name(self) -> str:
        """`SWEEP/TRIAL/ATTEMPT`."""
        run = self.document["run"]
        return f"{run['sweep']}/{run['trial']}/{run['attempt']}"


def find(run: str, store: Path, uri: str | None = None) -> Found:
    """The run that a user names.

    Args:
        run: a path to a lineage.json or to the folder of an attempt or trial; an MLflow run id; `SWEEP/TRIAL/ATTEMPT`,
            `SWEEP/TRIAL` (its latest attempt), or a trial or sweep alone where only one run fits.
        uri: of MLflow, for a run id; by default `$MLFLOW_TRACKING_URI`, else `sqlite:///mlflow.db` here.

    Raises:
        RequestError: There is no such run, or several; the record is none of ours, or of a newer version.
    """
    path = Path(run).expanduser()
    if path.is_file():
        return load(path)
    if _MLFLOW_ID.fullmatch(run):
        return _from_mlflow(run, uri)
    if path.is_dir() and (inside := _record_of(path)):
        return load(inside)
    if path.is_dir() and (path / "sweep.json").is_file():  # as a shell completes it: runs/NAME
        run, store = path.absolute().name, path.absolute().parent
    fits = list(_fitting(run.strip("/"), store))
    if len(fits) == 1:
        return load(fits[0])
    if fits:
        raise RequestError(
            Problem(f"{run} fits several runs", valid=_listed([_name(p) for p in fits], ", "), key="RUN")
        )
    raise _unknown(run, store)


def load(path: Path) -> Found:
    """The run of a lineage.json.

    Raises:
        RequestError: The record is none of ours, or of a newer version.
    """
    path = path.absolute()
    read = document.read(path)
    folder = path.parent
    number = attempt_number(folder)
    beside = SweepFolder(folder.parents[2]).attempts(folder.parent.name) if number and len(folder.parents) > 2 else []
    earlier = [p / METRICS for p in beside if attempt_number(p) < number]
    return Found(path, read, (*earlier, folder / METRICS))


# --- in a store ---


def _record_of(folder: Path) -> Path | None:
    """The record in an attempt's folder, or the latest of a trial's."""
    if (folder / RECORD).is_file():
        return folder / RECORD
    numbered = sorted((attempt_number(p), p) for p in folder.glob("attempt-*"))
    found = [p / RECORD for number, p in numbered if number and (p / RECORD).is_file()]
    return found[-1] if found else None


def _fitting(run: str, store: Path) -> Iterator[Path]:
    """The records that a name fits."""
    parts = run.split("/")
    if len(parts) > 3 or not all(parts):
        return
    if len(parts) == 1:
        yield from _alone(run, store)
        return
    sweep, trial = SweepFolder(store / parts[0]), parts[1]
    if len(parts) == 3:
        path = sweep.trial(trial) / f"attempt-{parts[2].removeprefix('attempt-')}" / RECORD
        found = path if path.is_file() else None
    else:
        found = _record_of(sweep.trial(trial)) or _reused(sweep, trial, store)
    if found:
        yield found


def _alone(name: str, store: Path) -> Iterator[Path]:
    """A trial's id in any sweep, or a sweep's name: all its trials."""
    for sweep in _sweeps(store):
        for trial in sweep.trial_ids():
            if name in (trial, sweep.name) and (found := _record_of(sweep.trial(trial))):
                yield found


def _reused(sweep: SweepFolder, trial: str, store: Path) -> Path | None:
    """The record of the trial that stands for one that was not run."""
    ledger = sweep.path / "ledger.db"
    state = Ledger.read(ledger).get(trial) if ledger.exists() else None
    if state is None or not state.reused:
        return None
    other, _, its = state.reused.partition("/")
    return _record_of(SweepFolder(store / other).trial(its))


def _sweeps(store: Path) -> list[SweepFolder]:
    return [SweepFolder(p.parent) for p in sorted(store.glob("*/sweep.json"))]


def _name(record: Path) -> str:
    """`SWEEP/TRIAL` of a record in a store."""
    return f"{record.parents[3].name}/{record.parents[1].name}"


def _unknown(run: str, store: Path) -> RequestError:
    there = [f"{s.name}/{t}" for s in _sweeps(store) for t in s.trial_ids() if _record_of(s.trial(t))]
    sweep, _, rest = run.partition("/")
    ours = [name for name in there if name.partition("/")[0] == sweep]
    bare = SweepFolder(store / sweep)
    if rest and not ours and bare.trial(rest.partition("/")[0]).is_dir():
        what = f"{run} has no {RECORD}: it was run before there were lineage records, or it was deleted"
        return RequestError(
            Problem(what, valid=_listed(there, ", "), fix=f"sweeper status{store_flag(store)}", key="RUN")
        )
    return RequestError(
        Problem(
            f"there is no run {run} in {store}",
            valid=_listed(ours or there, ", ") or "there is none yet; an MLflow run id or the path of a lineage.json",
            fix=f"sweeper status{f' {sweep}' * bool(ours)}{store_flag(store)}" if there else "--store FOLDER",
            key="RUN",
        )
    )


def _listed(names: Sequence[str], between: str) -> str:
    more = f"{between}and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return between.join(names[-SHOWN:] if more else names) + more


# --- in MLflow ---


def _from_mlflow(run: str, uri: str | None) -> Found:
    """Fetch the record, the patch and the metrics of an MLflow run into the cache; the same run is fetched anew.

    The file of metrics is that of its latest attempt. Steps of those before it are only among the run's own metrics.
    """
    from sweeper.tracking.address import address, shown, sqlite_file
    from sweeper.tracking.store import quiet, reason

    at = address(uri)
    file = sqlite_file(at)
    if file is not None and not file.exists():  # MLflow would make one
        raise _no_run(run, f"there is no {file}", "--uri URI   (or run it where mlflow.db is)")
    quiet()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    target = cache.root() / "lineage" / run
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{run}.", dir=target.parent))
    try:
        client: Any = MlflowClient(tracking_uri=at)
        try:
            info = client.get_run(run)
            names = {item.path for item in client.list_artifacts(run)}
        except MlflowException as error:
            gone = error.error_code == "RESOURCE_DOES_NOT_EXIST"
            what = f"it is not in {shown(at)}" if gone else f"{shown(at)} does not answer ({reason(error)})"
            raise _no_run(run, what, "--uri URI" if gone else "start it, or name the run as SWEEP/TRIAL") from None
        if RECORD not in names:
            kind = info.data.tags.get("sweeper.kind")
            what = "it is a whole sweep; its trials are below it" if kind == "sweep" else f"it has no {RECORD}"
            sync = info.data.tags.get("sweeper.sweep")
            raise _no_run(run, what, f"sweeper sync {sync}" if sync and kind != "sweep" else "the id of a trial's run")
        for name in sorted(names & {RECORD, METRICS, PATCH}):
            client.download_artifacts(run, name, str(aside))
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        found = load(target / RECORD)
        whole = found.document["run"]["attempt"] == 1 and METRICS in names
        return found if whole else _with_earlier(found, client, run, sorted(info.data.metrics))
    except (MlflowException, OSError) as error:
        raise _no_run(run, f"what it has cannot be read ({reason(error)})", "--uri URI") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _with_earlier(found: Found, client: Any, run: str, metrics: Sequence[str]) -> Found:
    """The run with the steps up to the first one of its metrics file, of MLflow's own metrics of those names.

    Only steps that were sent whole: the marker is the last value of a step.
    """
    from sweeper import engines
    from sweeper.lineage import curves
    from sweeper.search.history import Curve
    from sweeper.tracking import names
    from sweeper.tracking.store import MARKER

    engine = engines.get(str(found.document["environment"]["engine"]["name"]))
    own = curves.read(found.metrics, engine, found.document["config"])
    first = min(own, default=math.inf)
    trainers = {name for values in own.values() for name in values}
    said = {names.encode(name): name for name in trainers}  # a name that was cut cannot be decoded
    ours = {MARKER, "score", "reward", *Curve().summary()} - trainers
    whole = {point.step for point in client.get_metric_history(run, MARKER)} if MARKER in metrics else set()
    steps: dict[int, dict[str, float]] = {step: {} for step in sorted(whole) if step <= first}
    scores: dict[int, float] = {}
    for name in metrics:
        key = said.get(name) or names.decode(name)
        for point in client.get_metric_history(run, name):
            if point.step not in steps:
                continue
            # MLflow's database has no infinities: they are its largest number.
            value = math.copysign(math.inf, point.value) if abs(point.value) == sys.float_info.max else point.value
            if key not in ours:
                steps[point.step].setdefault(key, value)
            if key == "score":
                scores.setdefault(point.step, value)
    return replace(found, earlier=steps, earlier_scores=scores)


def _no_run(run: str, why: str, fix: str) -> RequestError:
    return RequestError(Problem(f"no MLflow run {run} can be read: {why}", fix=fix, key="RUN"))
