"""One sweep in an MLflow store, written call by call.

Guarantees: every call may be repeated (a run is found by the tags `sweeper.id` and `sweeper.trial`, a step that is
there is not sent again, a parameter is logged once); an experiment or a run that was deleted is restored when the store
is opened, not while it is open; what of a lineage record is refused takes nothing else with it; MLflow is imported by
this package only when a store is opened, and prints nothing. Not thread-safe: one thread owns a store.

A step is there when its `elapsed_s` is: it is the last value of a step's batch. Where a later attempt repeats steps of
an earlier one the values that came first stay; each attempt's own metrics.jsonl has them all.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeper.errors import SweeperError
from sweeper.lineage import document
from sweeper.tracking import lineage, names, views
from sweeper.tracking.address import sqlite_file
from sweeper.tracking.models import Models
from sweeper.tracking.spool import Call

MARKER = "elapsed_s"
"""Seconds from the attempt's start to the step: a metric for people, and the mark of a step that is whole."""
STATUS = {
    "finished": "FINISHED",
    "pruned": "FINISHED",  # it has done what was wanted of it; the tag `sweeper.state` tells
    "failed": "FAILED",
    "stopped": "KILLED",
    "interrupted": "KILLED",
}
MAX_METRICS = 1000
"""MLflow's limit for one batch."""
NO_REGISTRY = ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED", "FEATURE_DISABLED", "PERMISSION_DENIED", "NOT_FOUND")
"""Errors that say there is no model registry here, or none for us."""
MAX_PARAMS = 100
"""Likewise, for parameters and for tags."""
LOG_TAIL = 1_000_000
"""Bytes of a longer log that are uploaded: its end."""
OPENING_S = 60.0
"""How long to wait for another process that opens the same database file."""

Point = tuple[int, Mapping[str, float], float]
"""Step, values, Unix time."""


class StoreGone(Exception):  # noqa: N818 - a state of the store, mended by opening it again
    """The database file that was opened is not there any more, or is another one."""


class Store:
    """An open store with the sweep's experiment and parent run in it."""

    def __init__(self, uri: str, sweep: Call, starts: dict[str, Call]) -> None:
        """Open it and find or make the experiment and the parent run.

        Args:
            uri: an MLflow tracking URI.
            sweep: the sweep's `sweep_started` call, with its `id`.
            starts: the latest `trial_started` of each trial so far; kept up to date here.

        Raises:
            Exception: whatever MLflow raises when the store cannot be used.
        """
        quiet()
        from mlflow import MlflowClient

        self._file = sqlite_file(uri)
        with _alone(self._file):
            self.client: Any = MlflowClient(tracking_uri=_fresh(uri))
            self.experiment = self._experiment(str(sweep["project"]))
        self.runs: dict[str, str] = {}
        """Trial -> run id, of the runs that were found or made so far."""
        self.missed: list[str] = []
        """What could not be stored, with the reason."""
        self._sweep, self._starts = sweep, starts
        self._logged: dict[str, set[int]] = {}
        self._uploaded: set[tuple[str, str, int]] = set()
        self._models = Models(self.client, self.experiment)
        self.parent = self._parent()
        self._inode = self._stat()

    def apply(self, call: Call) -> None:
        """Take a call of the tracker's."""
        match call["call"]:
            case "sweep_started":
                self.client.update_run(self.parent, status="RUNNING")
            case "trial_started":
                self._trial_started(call)
            case "tagged":
                self._tags(self.run(str(call["trial"])), call["tags"])
            case "trial_ended":
                self._trial_ended(call)
            case "best":
                self._best(call)
            case "sweep_ended":
                self._end(self.parent, str(call["state"]), call["time"])

    def check(self) -> None:
        """Raises StoreGone when the database file was removed or replaced: SQLite itself would not notice."""
        if self._file and self._stat() != self._inode:
            raise StoreGone(f"{self._file} was removed or replaced")

    def points(self, trial: str, points: Iterable[Point]) -> int:
        """Log steps, in batches of whole steps, but for those that were there when the run was opened.

        Returns how many were logged.
        """
        from mlflow.entities import Metric

        run = self.run(trial)
        started = float(self._starts[trial]["time"])
        batch: list[Any] = []
        sent = 0
        for step, values, moment in points:
            if step in self._logged[trial]:
                continue
            stamp = int(moment * 1000)
            line = [Metric(names.encode(k), float(v), stamp, step) for k, v in values.items()]
            line.append(Metric(MARKER, max(0.0, moment - started), stamp, step))
            while len(line) > MAX_METRICS:  # the marker goes with the rest
                self.client.log_batch(run, metrics=line[:MAX_METRICS])
                line = line[MAX_METRICS:]
            if len(batch) + len(line) > MAX_METRICS:
                self.client.log_batch(run, metrics=batch)
                batch = []
            batch += line
            sent += 1
        if batch:
            self.client.log_batch(run, metrics=batch)
        return sent

    def run(self, trial: str) -> str:
        """The id of the trial's run, found or made."""
        if trial not in self.runs:
            found = self._find(trial)
            run = found.info.run_id if found else self._make(trial)
            known = set(found.data.params) if found else set()
            self._log_params(run, names.params(self._starts[trial]["params"]), known)
            self._logged[trial] = {m.step for m in self.client.get_metric_history(run, MARKER)} if found else set()
            self.runs[trial] = run
            if not found:  # here and not with the call: a store that was replaced in between gets them too
                self._artifacts(run, self._starts[trial]["artifacts"])
        return self.runs[trial]

    def begin(self, call: Call) -> str:
        """A later attempt of a trial may have started: look again at what is there. Returns the run's id."""
        trial = str(call["trial"])
        self._starts[trial] = call
        self.runs.pop(trial, None)
        return self.run(trial)

    def ended(self, call: Call) -> bool:
        """Whether this end of an attempt is in the store; it is written after everything else of the attempt."""
        found = self._find(str(call["trial"]))
        return found is not None and found.data.tags.get("sweeper.ended") == _ended(call)

    # --- calls ---

    def _trial_started(self, call: Call) -> None:
        known = self._find(str(call["trial"])) is not None
        run = self.begin(call)
        self.client.update_run(run, status="RUNNING")
        self._tags(run, {**call["tags"], "sweeper.state": "running"})
        if known:
            self._artifacts(run, call["artifacts"])

    def _trial_ended(self, call: Call) -> None:
        from mlflow.entities import Metric

        run, stamp = self.run(str(call["trial"])), int(call["time"] * 1000)
        summary = {k: float(v) for k, v in call["summary"].items()}
        step = int(summary.get("step", 0))
        if summary:
            self.client.log_batch(run, metrics=[Metric(names.encode(k), v, stamp, step) for k, v in summary.items()])
        whole = self._artifacts(run, call["artifacts"]) and self._checkpoints(run, call["artifacts"])
        self._end(run, str(call["state"]), call["time"])
        if whole:
            self._tags(run, {"sweeper.ended": _ended(call)})

    def _best(self, call: Call) -> None:
        """A store without a registry, or one that refuses it, still has the run and its models."""
        from mlflow.exceptions import MlflowException

        try:
            self._models.register(
                str(self._sweep["project"]),
                str(self._sweep["name"]),
                self.run(str(call["trial"])),
                {**call, "id": self._sweep["id"]},
                document.load(Path(call["artifacts"][0])),
            )
        except (MlflowException, NotImplementedError, LookupError, SweeperError) as error:
            if isinstance(error, MlflowException) and passing(error) and error.error_code not in NO_REGISTRY:
                raise
            self.missed.append(f"the best checkpoint in the model registry: {reason(error)}")

    def _end(self, run: str, state: str, moment: float) -> None:
        self._tags(run, {"sweeper.state": state})
        self.client.set_terminated(run, status=STATUS.get(state, "FAILED"), end_time=int(moment * 1000))

    # --- what is in the store ---

    def _experiment(self, project: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(project)
        if found is None:
            beside = self._file.parent / "mlruns" if self._file and self._file.parent != Path.cwd() else None
            # beside the database, as MLflow does for one in the current folder
            location = (beside / re.sub(r"[^\w.-]", "_", project)).as_uri() if beside else None
            try:
                return str(self.client.create_experiment(project, location, views.tags()))
            except MlflowException as error:
                found = self.client.get_experiment_by_name(project)
                if found is None:  # not another sweep that was faster
                    raise error from None
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        for key, value in views.tags().items():
            own = key == views.KIND and key in found.tags  # the user may have said what kind it is
            if found.tags.get(key) != value and not own:
                self.client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def _parent(self) -> str:
        sweep = self._sweep
        found = self._search(f"tags.`sweeper.id` = '{sweep['id']}' and tags.`sweeper.kind` = 'sweep'")
        if found:
            run = str(found.info.run_id)
        else:
            run = self._create(str(sweep["name"]), sweep["time"], {"sweeper.kind": "sweep"})
        self._tags(run, {**sweep["tags"], "sweeper.sweep": sweep["name"], "sweeper.state": "running"})
        known = set(found.data.params) if found else set()
        self._log_params(run, {names.encode(k): names.value(v) for k, v in sweep["params"].items()}, known)
        return run

    def _find(self, trial: str) -> Any:
        return self._search(f"tags.`sweeper.id` = '{self._sweep['id']}' and tags.`sweeper.trial` = '{trial}'")

    def _search(self, where: str) -> Any:
        from mlflow.entities import ViewType

        found = self.client.search_runs(
            [self.experiment],
            where,
            run_view_type=ViewType.ALL,
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        if found and found[0].info.lifecycle_stage == "deleted":
            self.client.restore_run(found[0].info.run_id)
        return found[0] if found else None

    def _make(self, trial: str) -> str:
        call = self._starts[trial]
        tags = {
            **call["tags"],
            "sweeper.kind": "trial",
            "sweeper.trial": trial,
            "sweeper.sweep": self._sweep["name"],
            "sweeper.state": "running",
            "mlflow.parentRunId": self.parent,
        }
        return self._create(str(call["label"]), call["time"], tags)

    def _create(self, name: str, moment: float, tags: Mapping[str, Any]) -> str:
        own = {"sweeper.id": self._sweep["id"], "mlflow.source.name": "sweeper", "mlflow.source.type": "LOCAL"}
        with contextlib.suppress(KeyError, OSError):  # a user id without a name, as in many containers
            own["mlflow.user"] = getpass.getuser()
        run = self.client.create_run(
            self.experiment,
            start_time=int(moment * 1000),
            tags={k: _tag(v) for k, v in {**own, **tags}.items()},
            run_name=name if len(name) <= names.MAX_KEY else name[: names.MAX_KEY - 3] + "...",
        )
        return str(run.info.run_id)

    def _log_params(self, run: str, params: Mapping[str, str], known: set[str]) -> None:
        """MLflow refuses to change a parameter; what the first attempt logged stays."""
        from mlflow.entities import Param

        new = [Param(k, v) for k, v in params.items() if k not in known]
        for i in range(0, len(new), MAX_PARAMS):
            self.client.log_batch(run, params=new[i : i + MAX_PARAMS])

    def _tags(self, run: str, tags: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run, tags=[RunTag(names.encode(k), _tag(v)) for k, v in tags.items()])

    def _artifacts(self, run: str, paths: Iterable[str]) -> bool:
        """An artifact store may be away or want credentials while the metrics go on; the records have the files."""
        before = len(self.missed)
        for path in map(Path, paths):
            try:
                same = (run, str(path), path.stat().st_mtime_ns) if path.exists() else None
                if same in self._uploaded:
                    continue
                if path.suffix in (".txt", ".log") and path.stat().st_size > LOG_TAIL:
                    with tempfile.TemporaryDirectory() as folder:
                        tail = Path(folder) / path.name
                        with path.open("rb") as log:
                            log.seek(-LOG_TAIL, os.SEEK_END)
                            tail.write_bytes(log.read().partition(b"\n")[2])
                        self.client.log_artifact(run, str(tail))
                elif path.exists():
                    self.client.log_artifact(run, str(path))
                    if path.name == document.NAME:
                        self._lineage(run, document.load(path))
                if same:
                    self._uploaded.add(same)
            except Exception as error:
                self.missed.append(f"{path.name}: {reason(error)}")
        return len(self.missed) == before

    def _lineage(self, run: str, record: lineage.Record) -> None:
        """What a record says, where MLflow looks for it."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        tags = lineage.tags(record)
        own = (record["run"]["sweep"], record["run"]["trial"])
        if parent := next((p for p in record["parents"] if (p["sweep"], p["trial"]) != own), None):
            found = self.client.search_runs(
                [self.experiment],
                f"tags.`sweeper.sweep` = '{parent['sweep']}' and tags.`sweeper.trial` = '{parent['trial']}'",
                max_results=1,
            )
            if found:
                tags["sweeper.parent_run"] = found[0].info.run_id
        self._tags(run, tags)
        inputs = [
            DatasetInput(
                Dataset(d.name, d.digest, "local", d.source, profile=d.profile),
                [InputTag("mlflow.data.context", d.role), InputTag("sha256", d.sha256)],
            )
            for d in lineage.datasets(record)
        ]
        if inputs:
            self.client.log_inputs(run, inputs)

    def _checkpoints(self, run: str, paths: Iterable[str]) -> bool:
        """At the end only, after the scores: what is sent late finds the whole record at the start already."""
        try:
            for path in map(Path, paths):
                if path.name == document.NAME and path.exists():
                    self._models.log(run, document.load(path))
        except Exception as error:
            self.missed.append(f"checkpoints: {reason(error)}")
            return False
        return True

    def _stat(self) -> int:
        try:
            return self._file.stat().st_ino if self._file else 0
        except OSError:
            return -1


@contextlib.contextmanager
def _alone(file: Path | None) -> Iterator[None]:
    """No other sweep opens that database meanwhile: two that make MLflow's tables at once break each other's.

    The lock is on the folder, so that nothing is left behind; where it cannot be had, we go on without.
    """
    try:
        descriptor = os.open(file.parent, os.O_RDONLY | os.O_CLOEXEC) if file else -1
    except OSError:
        descriptor = -1  # MLflow will say why
    try:
        end = time.monotonic() + (OPENING_S if descriptor >= 0 else 0.0)
        while time.monotonic() < end:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


_opened: dict[str, int] = {}


def _fresh(uri: str) -> str:
    """MLflow keeps an engine for each SQLite URI of a process, with a connection to the file that was there when it was
    made: after that file was replaced the same file must be asked for under another spelling."""
    file = sqlite_file(uri)
    if file is None:
        return uri
    times = _opened[uri] = _opened.get(uri, -1) + 1
    return uri.replace(f"/{file.name}", "/." * times + f"/{file.name}", 1)


def reason(error: BaseException) -> str:
    """The line of an error that says why; MLflow and SQLAlchemy wrap it in much else."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if found := re.search(r"sqlite3\.\w+\) (.+)", text):
        text = found[1]
    if "Max retries exceeded" in text or "Connection refused" in text:
        text = "no answer"
    return text[:200]


def passing(error: BaseException) -> bool:
    """Whether trying again can help; a value that MLflow refuses is refused for ever."""
    code = getattr(error, "error_code", None)
    return code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS") and not isinstance(
        error, TypeError | ValueError | KeyError | AttributeError
    )


def _ended(call: Call) -> str:
    return f"{call['attempt']} {call['state']}"


def _tag(value: Any) -> str:
    text = str(value)
    return text if len(text) <= names.MAX_TAG else text[: names.MAX_TAG - 3] + "..."


def quiet() -> None:
    """MLflow neither prints, logs, counts its users nor retries for minutes, unless the user said otherwise."""
    for name, setting in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_CONFIGURE_LOGGING": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # we try again ourselves, and keep the rest going
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }.items():
        os.environ.setdefault(name, setting)
    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
