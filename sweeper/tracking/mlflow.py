"""A sweep in MLflow, written behind the back of the training.

Guarantees: no call waits for MLflow (its import and first connection, seconds, happen in a thread of the tracker's);
what a call said is in the store about a second later when the store answers; while it does not, the training goes on,
the user is told once, and it is tried again; `replay` (sweeper/tracking/replay.py) sends whatever is missing later.

The layout in the store: one experiment a project, a parent run a sweep, a child run a trial, a logged model a
checkpoint; one registered model a project, a version of it each sweep's best. `sweeper.id` ties the runs of a sweep
together: a name may be used again after its folder was deleted, an id never is.

`mlflow ui` 3.17 without options opens `sqlite:///mlflow.db` in the current folder, except where `./mlruns` is an old
file store, with a numbered folder that holds a meta.yaml (mlflow/tracking/_tracking_service/utils.py,
`_get_default_tracking_uri`): then it opens that, and `open_command` names our database.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sweeper.tracking import views
from sweeper.tracking.address import address, shown, sqlite_file
from sweeper.tracking.replay import replay
from sweeper.tracking.spool import Call, Spool
from sweeper.tracking.store import Point, Store, StoreGone, passing, reason
from sweeper.trial.records import RecordsError

__all__ = ["MlflowTracker", "replay"]

FLUSH_S = 0.7
"""From one sending to the next, at least: one batch a trial each time, however many steps came."""
GATHER_S = 0.05
"""What comes after a rest waits so long for what comes with it."""
MAX_PAUSE_S = 20.0
"""Longest pause between two tries while the store does not answer; they start at one second and double."""
MAX_VALUES = 200_000
"""Metric values kept in memory for a store that does not answer; what comes beyond is left to `replay`."""


class _Metrics(NamedTuple):
    trial: str
    point: Point


class MlflowTracker:
    """The tracker of `tracking=mlflow`."""

    def __init__(self, uri: str | None, *, warn: Callable[[str], None]) -> None:
        """Without a `uri`: `$MLFLOW_TRACKING_URI`, else `sqlite:///mlflow.db` in the current folder."""
        self.uri = address(uri)
        self._warn = warn
        self._box: deque[Call | _Metrics] = deque()  # append and popleft are atomic; only the thread takes out
        self._values = 0  # in the box, roughly: two threads count
        self._left_out = False
        self._spool = Spool(None)
        self._attempts: dict[str, Any] = {}
        self._ids: dict[str, str] = {}
        self._experiment = ""
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._thread: threading.Thread | None = None

    # --- the controller's side: nothing here waits ---

    def sweep_started(self, name: str, project: str, tags: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        folder = tags.get("sweeper.folder")
        self._spool = Spool(Path(str(folder)) if folder else None)
        calls = self._spool.calls()
        before = next((c for c in calls if c["call"] == "sweep_started"), None)
        # What an earlier controller started may still end, be named the best, or have to be made anew in the store.
        starts = {str(c["trial"]): c for c in calls if c["call"] == "trial_started"}
        sweep = self._say(
            "sweep_started",
            id=before["id"] if before else uuid.uuid4().hex,
            name=name,
            project=project,
            uri=shown(self.uri),
            tags=dict(tags),
            params=dict(params),
        )
        self._thread = threading.Thread(target=self._work, args=(sweep, starts), name="mlflow", daemon=True)
        self._thread.start()

    def trial_started(
        self,
        trial_id: str,
        label: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        artifacts: Sequence[Path],
    ) -> None:
        """See `Tracker`."""
        self._attempts[trial_id] = tags.get("attempt", "1")
        self._say(
            "trial_started",
            trial=trial_id,
            attempt=self._attempts[trial_id],
            label=label,
            params=dict(params),
            tags=dict(tags),
            artifacts=[str(p) for p in artifacts],
        )

    def metrics(self, trial_id: str, step: int, values: Mapping[str, float], time_s: float) -> None:
        """See `Tracker`."""
        self._keep({"call": "step", "trial": trial_id, "step": step, "time": time_s})
        if self._values < MAX_VALUES:
            self._values += len(values)
            self._box.append(_Metrics(trial_id, (step, values, time_s)))
            self._woken.set()
        else:
            self._left_out = True

    def tagged(self, trial_id: str, tags: Mapping[str, str]) -> None:
        """See `Tracker`."""
        self._say("tagged", trial=trial_id, tags=dict(tags))

    def trial_ended(self, trial_id: str, state: str, summary: Mapping[str, float], artifacts: Sequence[Path]) -> None:
        """See `Tracker`."""
        self._say(
            "trial_ended",
            trial=trial_id,
            attempt=self._attempts.get(trial_id, "1"),
            state=state,
            summary=dict(summary),
            artifacts=[str(p) for p in artifacts],
        )

    def best(self, trial_id: str, step: int, score: float, mode: str, record: Path) -> None:
        """See `Tracker`."""
        self._say("best", trial=trial_id, step=step, score=score, mode=mode, artifacts=[str(record)])

    def sweep_ended(self, state: str) -> None:
        """See `Tracker`."""
        self._say("sweep_ended", state=state)

    def close(self, timeout_s: float) -> bool:
        """See `Tracker`."""
        if self._thread is None:
            return True
        self._closing.set()
        self._woken.set()
        self._thread.join(timeout_s)
        self._given_up.set()
        return not self._thread.is_alive() and not self._box and not self._left_out

    def run_ids(self) -> dict[str, str]:
        """See `Tracker`."""
        return dict(self._ids)

    def open_command(self) -> str:
        """See `Tracker`."""
        if self.uri.startswith("http"):
            return shown(self.uri).rstrip("/") + (views.page(self._experiment) if self._experiment else "")
        mlflow = "mlflow"
        if not shutil.which(mlflow):  # run as .venv/bin/python, without activating it
            beside = Path(sys.executable).with_name(mlflow)
            with contextlib.suppress(ValueError):
                beside = beside.relative_to(Path.cwd())
            mlflow = shlex.quote(str(beside))
        if sqlite_file(self.uri) == Path.cwd() / "mlflow.db" and not any(Path("mlruns").glob("[0-9]*/meta.yaml")):
            return f"{mlflow} ui"
        return f"{mlflow} ui --backend-store-uri {shlex.quote(shown(self.uri))}"

    def page(self) -> str:
        """See `Tracker`."""
        if self.uri.startswith("http") or not self._experiment:
            return ""
        return "http://127.0.0.1:5000" + views.page(self._experiment)  # where `mlflow ui` listens

    def _say(self, call: str, **arguments: Any) -> Call:
        kept = self._keep({"call": call, **arguments, "time": time.time()})
        self._box.append(kept)
        self._woken.set()
        return kept

    def _keep(self, call: Call) -> Call:
        try:
            return self._spool.keep(call)
        except RecordsError as error:
            self._spool = Spool(None)
            self._warn(f"{error}\n`sweeper sync` will not know the rest of this sweep")
            return self._spool.keep(call)

    # --- the thread's side ---

    def _work(self, sweep: Call, starts: dict[str, Call]) -> None:
        """Send what comes, until everything is sent after `close`, or nobody waits any more."""
        store: Store | None = None
        told, pause = False, 1.0
        while not self._given_up.is_set():
            closing = self._closing.is_set()  # asked before the box is looked into: nothing comes after
            began = time.monotonic()
            try:
                store = store or Store(self.uri, sweep, starts)
                self._experiment = store.experiment
                store.check()
                self._send(store)
            except Exception as error:
                if not told:
                    self._warn(
                        f"MLflow at {shown(self.uri)} cannot be written ({reason(error)}); "
                        "training goes on, the records have everything, and it is tried again"
                    )
                if isinstance(error, StoreGone):
                    self._left_out = True  # what was in it is not in the next one
                store, told = None, True
                self._given_up.wait(min(pause, 1.0) if closing else pause)
                pause = min(2 * pause, MAX_PAUSE_S)
                continue
            told, pause = False, 1.0
            if closing and not self._box:
                return
            self._woken.wait()
            self._woken.clear()
            self._closing.wait(max(GATHER_S, began + FLUSH_S - time.monotonic()))

    def _send(self, store: Store) -> None:
        """Everything in the box, in order. What was sent is removed; what was refused is named and removed too."""
        while self._box and not self._given_up.is_set():
            head = self._box[0]
            metrics = _metrics_at_head(list(self._box))
            try:
                if isinstance(head, dict):
                    store.apply(head)
                for trial in dict.fromkeys(m.trial for m in metrics):
                    store.points(trial, [m.point for m in metrics if m.trial == trial])
            except Exception as error:
                if passing(error):
                    raise
                self._miss(f"MLflow refused a value ({reason(error)}); the records have it")
            for _ in range(len(metrics) or 1):
                self._box.popleft()
            self._values -= sum(len(m.point[1]) for m in metrics)
            self._ids.update(store.runs)
            if store.missed:
                self._miss(f"MLflow did not take everything ({'; '.join(store.missed)}); the records have it")
                store.missed.clear()

    def _miss(self, message: str) -> None:
        if not self._left_out:
            self._warn(message)
        self._left_out = True


def _metrics_at_head(box: list[Call | _Metrics]) -> list[_Metrics]:
    """What can be logged together: every step up to the next call."""
    found = []
    for item in box:
        if isinstance(item, dict):
            break
        found.append(item)
    return found
