"""What happened in a sweep, event by event, in `{store}/{sweep}/ledger.db`; its state is a fold over the events.

Guarantees: events are only ever appended (the database refuses UPDATE and DELETE); one controller writes at a time, a
second is refused with the name of the first; anyone reads at any time; a writer killed at any instant leaves exactly
the events whose `append` had returned, perhaps plus the one (of `append_all`: all of them) in flight. Only the standard
library is imported.

WAL with `synchronous=NORMAL`: a commit is in the file when `append` returns, so a SIGKILL loses nothing; no fsync is
waited for, so after a power cut the last events may be missing, never torn. Then a trial is taken up from an earlier
state, which is safe: attempt folders are never reused. FULL would cost an fsync an event for that.

Kinds of event and what their data holds:
    sweep_started    overrides, mode (`max`, `min`: which score is best), planned (candidates, or null), arms, search:
                     what a resumed sweep must agree with (sweeper/search/request.py)
    sweep_extended   overrides, planned: from now on, instead of those that it was started with
    trial_planned    label, varied, fingerprint, arm, candidate, seed, params, kind, number, refused
    trial_reused     sweep, trial, folder, and the summary and scores of the finished trial that stands for this one
    trial_forked     donor (a trial), step, params: the next attempt goes on from that checkpoint with these values;
                     adopted: whether it got the donor's checkpoint (else it keeps its own)
    trial_retired    state, reason: it will not run again, although no attempt of it ended just now
    attempt_started  folder, nodes (places in the cluster), changed (placement that differs from the plan's, in words)
    placement_flagged  step, mismatch, above, attempt, placement: the numerics guard found that it changes the numbers
    progress         step, score, reward: milestones only (validations, every so many steps); metrics.jsonl has all
    attempt_ended    state, exit_code, reason, step, best_score, final_score, failure (kind, signature), stop (reason,
                     detail, evidence), elapsed_s, gpu_hours, tokens_per_s. The state is the trial's from then on:
                     finished, pruned (ended early, with a typed stop), failed, stopped (by the user), paused, or
                     waiting (it is tried again)
    sweep_ended      state
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sweeper.errors import Problem, RequestError
from sweeper.trial.records import RecordsError, cannot_write, number, store_flag, to_json

APPLICATION_ID = 0x5357454C
"""`SWEL`: in the file's header, so that another program's database is known from ours."""
SCHEMA = 2
"""`PRAGMA user_version`; a newer one is refused."""

KINDS = frozenset(
    {
        "sweep_started", "sweep_extended", "trial_planned", "trial_reused", "trial_forked", "trial_retired",
        "attempt_started", "placement_flagged", "progress", "attempt_ended", "sweep_ended",
    }
)  # fmt: skip

DONE = frozenset({"finished", "pruned"})
"""States of a trial that has done what was wanted of it."""

_TABLES = f"""
BEGIN IMMEDIATE;
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    trial TEXT,
    attempt INTEGER,
    kind TEXT NOT NULL,
    data TEXT NOT NULL
);
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_remain BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA};
COMMIT;
"""

_HEADER = 100
"""Bytes that every SQLite file begins with (sqlite.org/fileformat2.html, 1.3)."""
_INSERT = "INSERT INTO events (time, trial, attempt, kind, data) VALUES (?, ?, ?, ?, ?)"


class LedgerBusy(RequestError):  # noqa: N818 - the name says the state
    """Another controller runs this sweep now."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    seq: int
    time: float
    """Unix time."""
    kind: str
    trial: str | None
    attempt: int | None
    data: Mapping[str, Any]


@dataclass(slots=True)
class TrialState:
    """What the events say of one trial."""

    id: str
    state: str = "waiting"
    """`waiting`, `running`, `paused`, `finished`, `pruned`, `failed`, `stopped`; `interrupted`: it ran, or runs on,
    under a controller that has died."""
    attempts: int = 0
    last_step: int | None = None
    best_score: float | None = None
    final_score: float | None = None
    """The latest score of the latest attempt that has one."""
    fingerprint: str = ""
    label: str = ""
    elapsed_s: float = 0.0
    """Seconds of all its attempts that have ended."""
    gpu_hours: float = 0.0
    """Likewise; ranks where there is no GPU."""
    reason: str = ""
    """Why its last attempt ended: the stop's or the failure's reason, else what the cluster said."""
    folder: str = ""
    """Of its latest attempt."""
    arm: str = "0"
    candidate: str = ""
    seed: int | None = None
    kind: str = "search"
    params: Mapping[str, Any] = field(default_factory=dict)
    reused: str = ""
    """`{sweep}/{trial}` of the trial that stands for it."""
    forked: bool = False
    """Whether it went on from another trial's checkpoint, so that its fingerprint does not tell what it is."""
    flagged: Mapping[str, Any] = field(default_factory=dict)
    """What the numerics guard found of its placement (sweeper/search/guard.py, Flag); empty: nothing."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Ledger:
    """The writer's side; `Ledger.read` and `Ledger.history` need no lock."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int) -> None:
        """Use `Ledger.open`."""
        self.path = path
        self._db, self._lock = connection, lock

    @classmethod
    def open(cls, path: Path, *, create: bool) -> Ledger:
        """Open for writing; `create`: a new one, else one that is there.

        Raises:
            LedgerBusy: a controller that is alive holds it.
            RequestError: it is missing (or there already, with `create`), it is no ledger of ours, or its events were
                lost: it has none, and there are attempts.
            RecordsError: it cannot be written.
        """
        _not_lost(path)
        if not create and not path.exists():
            raise _missing(path)
        lock = _acquire(path)
        try:
            if create:
                if path.exists():
                    raise RequestError(Problem(f"there is a ledger at {path} already", valid="a new sweep name"))
                path.touch()
            with _errors(path):
                db = sqlite3.connect(path, timeout=30, isolation_level=None)
                try:
                    if _empty(db):
                        db.execute("PRAGMA journal_mode = WAL")
                        db.executescript(_TABLES)
                    _check(path, db)
                    if not db.execute("SELECT 1 FROM events LIMIT 1").fetchone():
                        _not_beside_attempts(path)
                    db.execute("PRAGMA synchronous = NORMAL")
                except BaseException:
                    db.close()
                    raise
        except OSError as error:
            _release(lock)
            raise cannot_write(path, error) from error
        except BaseException:
            _release(lock)
            raise
        return cls(path, db, lock)

    def append(
        self, kind: str, *, trial: str | None = None, attempt: int | None = None, data: Mapping[str, Any] | None = None
    ) -> int:
        """Write one event; it is in the file when this returns. Returns its number.

        Raises:
            RecordsError: the disk is full or the file cannot be written.
        """
        with _errors(self.path):
            cursor = self._db.execute(_INSERT, _row(kind, trial, attempt, data or {}))
        return int(cursor.lastrowid or 0)

    def append_all(self, events: Iterable[tuple[str, str | None, Mapping[str, Any]]]) -> None:
        """Write several events, each (kind, trial, data), at once: all of them are in the file or none is.

        A sweep's start and its planned trials belong together: half a plan would be resumed as if it were whole.

        Raises:
            RecordsError: the disk is full or the file cannot be written.
        """
        rows = [_row(kind, trial, None, data) for kind, trial, data in events]
        with _errors(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(_INSERT, rows)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite ends it by itself after some errors, a full disk among them
                    self._db.execute("ROLLBACK")
                raise

    def events(self, after: int = 0, *, kinds: Sequence[str] = ()) -> Iterator[Event]:
        """Every event with a number above `after`, in order; `kinds`: only those."""
        where = f"kind IN ({', '.join('?' * len(kinds))})" if kinds else "1"
        return _events(self.path, self._db, after, where, kinds)

    def trials(self) -> dict[str, TrialState]:
        """The state of every trial, in the order they were planned."""
        return fold(self.events())

    def close(self) -> None:
        """Let others write; may be called twice."""
        if self._lock >= 0:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            _release(self._lock)
            self._lock = -1

    @classmethod
    def read(cls, path: Path) -> dict[str, TrialState]:
        """The state of every trial, without a lock; what runs under no living controller is `interrupted`.

        Raises:
            RequestError: it is missing, no ledger of ours, or empty beside attempts.
        """
        _not_lost(path)
        if not path.exists():
            raise _missing(path)
        with _errors(path), contextlib.closing(_reader(path)) as db:
            if _empty(db):
                return {}
            _check(path, db)
            # An attempt's end says all that its progress said: of thousands only what runs is read in full.
            ended = list(_events(path, db, 0, "kind != 'progress'"))
            running = [t for t, s in fold(ended).items() if s.state == "running"]
            known = ", ".join("?" * len(running))
            rest = _events(path, db, 0, f"kind = 'progress' AND trial IN ({known})", running) if running else ()
            trials = fold(sorted([*ended, *rest], key=lambda e: e.seq))
        if holder(path) is None:
            for state in trials.values():
                if state.state == "running":
                    state.state = "interrupted"
        return trials

    @classmethod
    def history(cls, path: Path, after: int = 0) -> list[Event]:
        """Every event with a number above `after`, without a lock.

        Raises:
            RequestError: it is missing, no ledger of ours, or empty beside attempts.
        """
        _not_lost(path)
        if not path.exists():
            raise _missing(path)
        with _errors(path), contextlib.closing(_reader(path)) as db:
            if _empty(db):
                return []
            _check(path, db)
            return list(_events(path, db, after))


def _row(kind: str, trial: str | None, attempt: int | None, data: Mapping[str, Any]) -> tuple[Any, ...]:
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of event: {', '.join(sorted(KINDS))}")
    return time.time(), trial, attempt, kind, to_json(data)


def fold(events: Iterable[Event]) -> dict[str, TrialState]:
    """The state of every trial after these events."""
    trials: dict[str, TrialState] = {}
    started: dict[str, float] = {}
    lowest = False
    for event in events:
        if event.kind == "sweep_started":
            lowest = event.data.get("mode") == "min"
        if event.trial is None:
            continue
        state = trials.setdefault(event.trial, TrialState(event.trial))
        data = event.data
        match event.kind:
            case "trial_planned":
                state.label, state.fingerprint = str(data.get("label", "")), str(data.get("fingerprint", ""))
                state.arm, state.kind = str(data.get("arm", "0")), str(data.get("kind", "search"))
                state.candidate = str(data.get("candidate") or event.trial)
                state.seed, state.params = data.get("seed"), data.get("params") or {}
                if state.state == "finished" and data.get("again"):
                    state.state, state.reused = "waiting", ""  # extended: it goes on from its last checkpoint
            case "trial_reused":
                state.state, state.reused = "finished", f"{data.get('sweep')}/{data.get('trial')}"
                state.folder, state.flagged = str(data.get("folder", "")), data.get("flagged") or {}
                _take(state, data, lowest)
            case "trial_forked":
                state.forked, state.params = True, data.get("params") or {}
            case "placement_flagged":
                state.flagged = data
            case "trial_retired":
                state.state, state.reason = str(data.get("state", "pruned")), str(data.get("reason", ""))
            case "attempt_started":
                state.state, state.folder = "running", str(data.get("folder", ""))
                state.attempts += 1
                started[event.trial] = event.time
            case "progress" | "attempt_ended":
                _take(state, data, lowest)
                if event.kind == "attempt_ended":
                    state.state = str(data.get("state", "failed"))
                    state.reason = _why(data)
                    since = started.pop(event.trial, event.time)
                    # The event may be written long after the attempt's end, by a controller that came later.
                    state.elapsed_s += float(data.get("elapsed_s", max(0.0, event.time - since)))
                    state.gpu_hours += float(data.get("gpu_hours") or 0.0)
    return trials


def _why(data: Mapping[str, Any]) -> str:
    for inside, key in (("stop", "reason"), ("failure", "kind")):
        found = data.get(inside)
        if found:
            return str(found.get(key, ""))
    return str(data.get("reason", ""))


def _take(state: TrialState, data: Mapping[str, Any], lowest: bool) -> None:
    if data.get("step") is not None:
        state.last_step = int(data["step"])
    score = number(data.get("final_score", data.get("score")))
    if score is not None:
        state.final_score = score
    for value in (score, number(data.get("best_score"))):
        if value is None or value != value:  # noqa: PLR0124 - NaN is never the best
            continue
        best = state.best_score
        if best is None or (value < best if lowest else value > best):
            state.best_score = value


def _missing(path: Path) -> RequestError:
    return RequestError(Problem(f"there is no ledger at {path}", fix=f"sweeper status{store_flag(path.parent.parent)}"))


def _not_lost(path: Path) -> None:
    """Before SQLite opens it: beside an empty file it would delete the log of what was not written back yet, and a file
    that is shorter than its header it takes for an empty one."""
    size = path.stat().st_size if path.exists() else 0
    if not size:
        _not_beside_attempts(path)
    elif size < _HEADER:
        raise RequestError(Problem(f"{path} is damaged or no ledger: it has {size} bytes", fix=_instead(path)))


def _not_beside_attempts(path: Path) -> None:
    """The ledger has no event. Taken for a new sweep, what is finished or running would be started once more."""
    if any(path.parent.glob("trials/*/attempt-*")):
        what = "is missing" if not path.exists() else "has no events"
        raise RequestError(Problem(f"{path} {what}, and there are attempts beside it", fix=_instead(path)))


def _instead(path: Path) -> str:
    """What to do without the ledger."""
    return (
        "restore it from a backup; or start anew under another name: "
        f"what was typed is in {path.with_name('sweep.json')}, and its attempts can be read without the ledger"
    )


def _events(
    path: Path, db: sqlite3.Connection, after: int, where: str = "1", values: Sequence[str] = ()
) -> Iterator[Event]:
    with _errors(path):
        rows = db.execute(
            f"SELECT seq, time, kind, trial, attempt, data FROM events WHERE seq > ? AND ({where}) ORDER BY seq",
            (after, *values),
        )
        for seq, moment, kind, trial, attempt, data in rows:
            yield Event(seq, moment, kind, trial, attempt, _data(path, seq, data))


def _data(path: Path, seq: int, text: Any) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (TypeError, ValueError):
        data = None
    if not isinstance(data, dict):
        raise RequestError(Problem(f"{path} is damaged: what event {seq} says cannot be read", fix=_instead(path)))
    return data


def _reader(path: Path) -> sqlite3.Connection:
    """Read-only. What a read-only connection cannot do is done for it: a writer killed in the middle of a transaction
    leaves a journal that only a writing connection may roll back, and in a folder that cannot be written, where WAL's
    index cannot be made, the file is read as an immutable one."""
    uri = path.absolute().as_uri()
    db = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=30)
    try:
        db.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        db.close()
        how = "mode=rw" if os.access(path.parent, os.W_OK) else "immutable=1"
        db = sqlite3.connect(f"{uri}?{how}", uri=True, timeout=30)
        db.execute("SELECT 1 FROM sqlite_master").fetchone()
        db.execute("PRAGMA query_only = ON")
    return db


def _empty(db: sqlite3.Connection) -> bool:
    """Whether its writer was killed between making the file and making the tables (in one transaction)."""
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return not tables and not db.execute("PRAGMA application_id").fetchone()[0]


def _check(path: Path, db: sqlite3.Connection) -> None:
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise RequestError(Problem(f"{path} is a database, but not a ledger of sweeper", fix=_instead(path)))
    if version > SCHEMA:
        raise RequestError(
            Problem(
                f"{path} was written by a newer sweeper (ledger version {version}, this one reads up to {SCHEMA})",
                fix="git pull && make setup   (in the checkout of sweeper)",
            )
        )


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """SQLite's errors in words for the user."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise cannot_write(path, OSError(28, "No space left on device")) from error
        raise RecordsError(f"{path} could not be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise RequestError(Problem(f"{path} is damaged or no ledger: {error}", fix=_instead(path))) from error


# --- the lock ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Holder:
    """The controller that writes a ledger."""

    host: str
    pid: int
    started: float
    """Unix time at which it took the lock."""
    born: int
    """The process's start in clock ticks since boot, where the system says it: tells a reused pid."""


def holder(path: Path) -> Holder | None:
    """Who writes this ledger now; None when nobody does. On another host it is believed to be alive."""
    try:
        found = Holder(**json.loads(_lock_path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    if found.host != socket.gethostname():
        return found
    alive = Path(f"/proc/{found.pid}").exists() if Path("/proc/self").exists() else _signalled(found.pid)
    return found if alive and _born(found.pid) == found.born else None


def _signalled(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _born(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])  # proc_pid_stat(5), field 22; the name may hold spaces


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _acquire(path: Path) -> int:
    """Take the lock file; the kernel lets it go when its holder dies, so a dead one never stands in the way."""
    lock = _lock_path(path)
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise cannot_write(lock, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        me = Holder(socket.gethostname(), os.getpid(), time.time(), _born(os.getpid()))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(me)).encode(), 0)
    except BlockingIOError:
        os.close(descriptor)
        raise LedgerBusy(_busy(path)) from None
    except OSError as error:
        os.close(descriptor)
        raise cannot_write(lock, error) from error
    return descriptor


def _release(descriptor: int) -> None:
    """Say that nobody holds it, then let go. The file stays: removing it would race with the next to take it."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that another thread forks just now has a copy until it execs
    os.close(descriptor)


def _busy(path: Path) -> Problem:
    who = holder(path)
    since = time.strftime("%H:%M:%S", time.localtime(who.started)) if who else ""
    by = f"process {who.pid} on {who.host}, since {since}" if who else "another process"
    name = path.parent.name
    return Problem(
        f"the sweep {name} is running already: {by}",
        valid="one controller a sweep",
        fix=f"sweeper status {name}{store_flag(path.parent.parent)}   (or wait for it to end)",
    )
