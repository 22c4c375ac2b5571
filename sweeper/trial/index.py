"""Which trials are finished anywhere in a store, by fingerprint: `{store}/index.db`.

Guarantees: it never says more than the sweeps' ledgers do, which stay the truth: a finished trial is taken from its
ledger, and counts while the folder of the attempt that finished it is there; a trial that went on from another one's
checkpoint (PBT) is never in it, for its values are not what made its result; any number of sweeps use it at once; it
is missing, damaged or out of date at no cost but time: it reads the ledgers that have changed since it last did. What
it cannot read or write is said in `problems` and never ends a sweep. Only the standard library is imported.

Folders are kept relative to the store, so that a store may be moved.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sweeper.errors import RequestError, SweeperError
from sweeper.trial.ledger import Event, Ledger
from sweeper.trial.records import SweepFolder

NAME = "index.db"
_APPLICATION_ID = 0x53574944  # `SWID`
_SCHEMA = 1
_TRIES = 10
"""How often what another one wrote meanwhile is looked at again; what is missed then is found the next time."""
_BATCH = 500
"""Fingerprints in one query; SQLite's oldest limit is 999."""

_TABLES = f"""
BEGIN IMMEDIATE;
CREATE TABLE finished (
    fingerprint TEXT NOT NULL,
    sweep TEXT NOT NULL,
    trial TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    time REAL NOT NULL,
    PRIMARY KEY (fingerprint, sweep, trial)
) WITHOUT ROWID;
CREATE TABLE seen (sweep TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_SCHEMA};
COMMIT;
"""


@dataclass(frozen=True, slots=True)
class Found:
    """A finished trial."""

    sweep: str
    trial: str
    folder: Path
    """Of the attempt that finished it; absolute."""

    def __str__(self) -> str:
        return f"{self.sweep}/{self.trial}"


class Index:
    """The finished trials of one store."""

    def __init__(self, store: Path, *, besides: str = "") -> None:
        """Open it, make it or make it anew, and read the ledgers that have changed.

        `besides`: the sweep that asks; it knows its own trials, so its ledger is not read and none of it is found.
        """
        self.store, self._besides = store.absolute(), besides
        self.path = self.store / NAME
        self.problems: list[str] = []
        """What could not be read or written, each in one line."""
        self._db: sqlite3.Connection | None = None
        try:
            try:
                self._open()
                self.refresh()
            except sqlite3.DatabaseError as error:
                if _busy(error):
                    raise
                self._replace()
                self.refresh()
        except (sqlite3.Error, OSError) as error:
            self.problems.append(f"{self.path} could not be used, so nothing is reused: {error}")
            self.close()

    def lookup(self, fingerprint: str) -> Found | None:
        """The trial with that fingerprint that finished first, if there is one."""
        return self.lookup_all([fingerprint]).get(fingerprint)

    def lookup_all(self, fingerprints: Iterable[str]) -> dict[str, Found]:
        """`lookup` of thousands, in a query for each few hundred."""
        wanted = list(dict.fromkeys(fingerprints))
        found: dict[str, Found] = {}
        try:
            for fingerprint, sweep, trial, attempt in self._rows(wanted):
                if fingerprint not in found and (folder := self._folder(sweep, trial, attempt)).is_dir():
                    found[fingerprint] = Found(sweep, trial, folder)
        except sqlite3.Error as error:
            self.problems.append(f"{self.path} could not be read, so nothing is reused: {error}")
            return {}
        return found

    def refresh(self) -> None:
        """Take in what the ledgers of the store have gained, and forget sweeps that are gone.

        Raises:
            sqlite3.Error: the index cannot be written.
        """
        for _ in range(_TRIES):
            if self._take_in():
                return

    def _take_in(self) -> bool:
        """Read what has changed once; False: another one wrote meanwhile, so that there may be more."""
        if self._db is None:
            return True
        whole = True
        known = dict(self._db.execute("SELECT sweep, state FROM seen"))
        there = {path.parent.name: path for path in self.store.glob("*/ledger.db")}
        for sweep in known.keys() - there.keys():
            whole &= self._write(sweep, known[sweep], None, ())
        for sweep, path in sorted(there.items()):
            state = _state(path)
            if sweep == self._besides or known.get(sweep) == state:
                continue
            try:
                rows = list(_finished(Ledger.history(path)))
            except (SweeperError, ValueError, sqlite3.Error) as error:  # that sweep's own trouble, not ours
                what = error.problems[0].what if isinstance(error, RequestError) else error
                self.problems.append(f"trials of the sweep {sweep} are not reused: {what}")
                continue
            whole &= self._write(sweep, known.get(sweep), state, rows)
        return whole

    def close(self) -> None:
        """May be called twice."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _rows(self, wanted: list[str]) -> Iterator[tuple[str, str, str, int]]:
        if self._db is None:
            return
        for start in range(0, len(wanted), _BATCH):
            part = wanted[start : start + _BATCH]
            marks = ", ".join("?" * len(part))
            yield from self._db.execute(
                f"SELECT fingerprint, sweep, trial, attempt FROM finished WHERE fingerprint IN ({marks})"
                " AND sweep != ? ORDER BY time, sweep, trial",
                (*part, self._besides),
            )

    def _folder(self, sweep: str, trial: str, attempt: int) -> Path:
        return SweepFolder(self.store / sweep).trial(trial) / f"attempt-{attempt}"

    def _write(
        self, sweep: str, before: str | None, state: str | None, rows: Iterable[tuple[str, str, int, float]]
    ) -> bool:
        """Replace what is known of one sweep; state None: forget it. False: it is not what it was `before`, since
        another one has written, and nothing is replaced: what was read may be older than that."""
        db = self._db
        assert db is not None
        db.execute("BEGIN IMMEDIATE")
        try:
            if db.execute("SELECT state FROM seen WHERE sweep = ?", (sweep,)).fetchone() != (before and (before,)):
                db.execute("ROLLBACK")
                return False
            db.execute("DELETE FROM finished WHERE sweep = ?", (sweep,))
            db.execute("DELETE FROM seen WHERE sweep = ?", (sweep,))
            if state is not None:
                db.executemany(
                    "INSERT OR REPLACE INTO finished (fingerprint, trial, attempt, time, sweep) VALUES (?, ?, ?, ?, ?)",
                    ((*row, sweep) for row in rows),
                )
                db.execute("INSERT INTO seen VALUES (?, ?)", (sweep, state))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return True

    def _open(self) -> None:
        with self._alone():
            fresh = not self.path.exists() or self.path.stat().st_size == 0
            self._db = db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            if fresh:
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(_TABLES)
            application = db.execute("PRAGMA application_id").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if (application, version) != (_APPLICATION_ID, _SCHEMA):
                raise sqlite3.DatabaseError("it is no index of this version")
            db.execute("PRAGMA synchronous = NORMAL")
            if db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("it is damaged")

    def _replace(self) -> None:
        """Put a new one in its place. Others that have the old one open go on with it and lose nothing but time."""
        self.close()
        with self._alone():
            for name in (NAME, f"{NAME}-wal", f"{NAME}-shm"):
                with contextlib.suppress(FileNotFoundError):
                    (self.store / name).unlink()
        self._open()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While it is made or replaced, one sweep at a time."""
        self.store.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.store / f"{NAME}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _finished(events: Iterable[Event]) -> Iterator[tuple[str, str, int, float]]:
    """Fingerprint, trial, attempt and time of every trial that finished by itself."""
    prints: dict[str, str] = {}
    forked: set[str] = set()
    done: list[tuple[str, str, int, float]] = []
    for event in events:
        if event.trial is None:
            continue
        match event.kind:
            case "trial_planned":  # a trial that is extended is planned again, under another fingerprint
                prints[event.trial] = str(event.data.get("fingerprint") or "")
            case "trial_forked":
                forked.add(event.trial)
            case "attempt_ended" if event.data.get("state") == "finished" and event.attempt:
                if fingerprint := prints.get(event.trial):
                    done.append((fingerprint, event.trial, event.attempt, event.time))
    return (row for row in done if row[1] not in forked)


def _state(ledger: Path) -> str:
    """Changes whenever the ledger does; its newest events may be in the journal beside it. An empty journal is only
    what a reader left."""
    parts = []
    for path in (ledger, ledger.with_name(ledger.name + "-wal")):
        try:
            facts = path.stat()
        except FileNotFoundError:
            continue
        if facts.st_size:
            parts.append(f"{facts.st_ino}:{facts.st_size}:{facts.st_mtime_ns}")
    return " ".join(parts)


def _busy(error: sqlite3.DatabaseError) -> bool:
    """Whether the file is whole and only cannot be used now (locked, full disk, no right to write)."""
    whole = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY)
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in (*whole, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
