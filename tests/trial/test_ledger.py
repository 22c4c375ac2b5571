"""The ledger: one writer, any number of readers, readable after any kill."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeper.errors import RequestError, SweeperError
from sweeper.trial.ledger import Event, Ledger, LedgerBusy, fold, holder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def test_state_is_what_the_events_add_up_to(path: Path) -> None:
    ledger = Ledger.open(path, create=True)
    ledger.append("sweep_started", data={"trials": 3})
    for trial in ("000", "001", "002"):
        ledger.append("trial_planned", trial=trial, data={"label": f"x={trial}", "fingerprint": trial * 2})
    ledger.append("attempt_started", trial="000", attempt=1, data={"folder": "/a"})
    ledger.append("progress", trial="000", attempt=1, data={"step": 10, "score": 0.8, "reward": 0.1})
    ledger.append("progress", trial="000", attempt=1, data={"step": 20, "score": 0.5, "reward": 0.1})
    ledger.append("attempt_started", trial="001", attempt=1)
    end = {"state": "failed", "exit_code": 1, "reason": "exit", "step": 3, "final_score": None, "best_score": None}
    ledger.append("attempt_ended", trial="001", attempt=1, data=end)
    ledger.append("attempt_started", trial="001", attempt=2)
    trials = ledger.trials()
    assert list(trials) == ["000", "001", "002"]
    first = trials["000"]
    assert (first.state, first.attempts, first.last_step) == ("running", 1, 20)
    assert (first.best_score, first.final_score) == (0.8, 0.5)
    assert (first.fingerprint, first.label, first.folder) == ("000000", "x=000", "/a")
    assert (trials["001"].state, trials["001"].attempts) == ("running", 2)
    assert trials["002"].state == "waiting"
    ledger.close()
    assert Ledger.read(path)["000"].state == "interrupted", "its controller is gone"
    assert json.dumps(first.as_dict())


PLAN: list[tuple[str, str | None, dict[str, object]]] = [
    ("sweep_started", None, {"trials": 2, "mode": "max"}),
    ("trial_planned", "000", {"label": "a"}),
    ("trial_planned", "001", {"label": "b"}),
]


def test_several_events_are_written_in_their_order(path: Path) -> None:
    ledger = Ledger.open(path, create=True)
    ledger.append_all(PLAN)
    assert [(e.kind, e.trial, e.data) for e in ledger.events()] == PLAN
    ledger.append("attempt_started", trial="000", attempt=1)
    ledger.close()
    assert len(Ledger.history(path)) == 4, "the transaction has ended: what comes after is written too"


@pytest.mark.parametrize("bad", [("no_such_kind", "002", {}), ("trial_planned", object(), {})])
def test_of_several_events_with_a_bad_one_none_is_written(path: Path, bad: tuple[str, str, dict[str, object]]) -> None:
    ledger = Ledger.open(path, create=True)
    # ValueError: refused by us before the transaction; RequestError and RecordsError: by SQLite in its middle
    with pytest.raises((ValueError, SweeperError, sqlite3.Error)):
        ledger.append_all([*PLAN[:2], bad, PLAN[2]])
    assert Ledger.history(path) == []
    ledger.append_all(PLAN)  # the failure left no transaction open
    ledger.close()
    assert len(Ledger.history(path)) == 3


def test_a_writer_killed_between_several_events_leaves_none_of_them(path: Path) -> None:
    code = (
        "import os, pathlib, sys\nfrom sweeper.trial import ledger\n"
        "book = ledger.Ledger.open(pathlib.Path(sys.argv[1]), create=True)\n"
        "book._db.create_function('die', 0, lambda: os.kill(os.getpid(), 9))\n"
        "book._db.execute('CREATE TEMP TRIGGER third AFTER INSERT ON main.events WHEN new.seq = 3 '\n"
        "                 'BEGIN SELECT die(); END')\n"
        "book.append_all([('sweep_started', None, {}), *(('trial_planned', str(i), {}) for i in range(4))])\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False).returncode == -9
    assert Ledger.history(path) == []


def test_nan_scores_survive_and_are_never_the_best(path: Path) -> None:
    ledger = Ledger.open(path, create=True)
    for score in (0.25, float("nan"), float("-inf")):
        ledger.append("progress", trial="0", attempt=1, data={"step": 1, "score": score})
    assert ledger.trials()["0"].best_score == 0.25
    assert ledger.trials()["0"].final_score == float("-inf")
    ledger.close()


def test_the_lowest_score_is_best_where_the_sweep_says_so() -> None:
    def event(seq: int, kind: str, **data: object) -> Event:
        return Event(seq, 0.0, kind, None if kind == "sweep_started" else "0", 1, data)

    events = [event(1, "sweep_started", mode="min")] + [
        event(i, "progress", step=i, score=s) for i, s in ((2, 3.0), (3, 1.0), (4, 2.0))
    ]
    assert fold(events)["0"].best_score == 1.0


def test_history_cannot_be_rewritten(path: Path) -> None:
    ledger = Ledger.open(path, create=True)
    ledger.append("sweep_started")
    ledger.close()
    db = sqlite3.connect(path)
    for statement in ("DELETE FROM events", "UPDATE events SET kind = 'x'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(statement)
    db.close()


def test_unknown_kinds_are_a_mistake_of_the_caller(path: Path) -> None:
    ledger = Ledger.open(path, create=True)
    with pytest.raises(ValueError, match="no kind of event"):
        ledger.append("trial_finished")
    ledger.close()


def test_readers_read_while_it_is_written(path: Path) -> None:
    ledger = Ledger.open(path, create=True)
    for i in range(20):
        ledger.append("trial_planned", trial=f"{i:03d}")
        assert len(Ledger.read(path)) == i + 1
    ledger.append("attempt_started", trial="000", attempt=1)
    assert Ledger.read(path)["000"].state == "running"
    assert len(Ledger.history(path, after=20)) == 1
    ledger.close()


def test_a_second_controller_is_refused_by_name(path: Path) -> None:
    ledger = Ledger.open(path, create=True)
    code = (
        "import sys; from pathlib import Path; from sweeper.trial.ledger import *\n"
        "try: Ledger.open(Path(sys.argv[1]), create=False)\n"
        "except LedgerBusy as e: print(e); sys.exit(7)"
    )
    refused = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 7, refused.stderr
    assert f"process {os.getpid()} on " in refused.stdout
    assert path.parent.name in refused.stdout
    ledger.close()
    assert holder(path) is None
    Ledger.open(path, create=False).close()


def test_a_dead_controllers_lock_is_taken_over(path: Path) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path; from sweeper.trial.ledger import *\n"
        "l = Ledger.open(Path(sys.argv[1]), create=True); l.append('trial_planned', trial='0')\n"
        "l.append('attempt_started', trial='0', attempt=1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    assert (path.with_name("ledger.db.lock")).read_text(), "it died holding it"
    assert holder(path) is None
    assert Ledger.read(path)["0"].state == "interrupted"
    ledger = Ledger.open(path, create=False)
    me = holder(path)
    assert me is not None
    assert me.pid == os.getpid()
    ledger.close()


def test_a_reused_pid_is_not_taken_for_the_controller(path: Path) -> None:
    lock = path.with_name("ledger.db.lock")
    Ledger.open(path, create=True).close()
    fields = {"host": os.uname().nodename, "pid": os.getpid(), "started": 0.0, "born": 1}
    lock.write_text(json.dumps(fields))
    assert holder(path) is None
    lock.write_text(json.dumps({**fields, "host": "elsewhere"}))
    assert holder(path) is not None, "what runs on another host cannot be seen from here"


@pytest.mark.parametrize(
    "content",
    [b"x", b"not a database at all, but long enough to look like a file" * 20, b"SQLite format 3\x00" + b"\x01" * 4096],
)
def test_a_damaged_ledger_is_a_clear_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(RequestError, match="damaged or no ledger"):
        Ledger.read(path)
    with pytest.raises(RequestError, match="damaged or no ledger"):
        Ledger.open(path, create=False)
    assert path.read_bytes() == content, "it was changed"


def test_another_programs_database_and_a_newer_ledger_are_refused(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE runs (id)")
    db.commit()
    with pytest.raises(RequestError, match="not a ledger"):
        Ledger.open(path, create=False)
    db.close()
    path.unlink()
    Ledger.open(path, create=True).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(RequestError, match="newer sweeper"):
        Ledger.read(path)


def test_missing_and_existing_are_told_apart(path: Path) -> None:
    with pytest.raises(RequestError, match="no ledger"):
        Ledger.open(path, create=False)
    with pytest.raises(RequestError, match="no ledger"):
        Ledger.read(path)
    Ledger.open(path, create=True).close()
    with pytest.raises(RequestError, match="already"):
        Ledger.open(path, create=True)
    with pytest.raises(SweeperError, match="could not be written"):
        Ledger.open(path / "inside" / "ledger.db", create=True)


def test_a_full_disk_stops_the_writer_and_spoils_nothing(path: Path) -> None:
    ledger = Ledger.open(path, create=True)
    ledger.append("trial_planned", trial="000")
    ledger._db.execute("PRAGMA max_page_count = 1")  # SQLite's own way to say that there is no room
    with pytest.raises(SweeperError, match="disk is full") as raised:
        for i in range(10_000):
            ledger.append("trial_planned", trial=f"{i:05d}", data={"label": "x" * 1000})
    assert str(path) in str(raised.value)
    ledger.close()
    assert "000" in Ledger.read(path)


WRITER = """
import sys
from pathlib import Path
from sweeper.trial.ledger import Ledger
path = Path(sys.argv[1])
ledger = Ledger.open(path, create=not path.exists())
n = sum(1 for _ in ledger.events())
print("ready", flush=True)
while True:
    seq = ledger.append("trial_planned", trial=f"{n:06d}", data={"label": "x" * (n % 700)})
    sys.stdout.write(f"{n}\\n"); sys.stdout.flush()
    n += 1
"""


def test_a_kill_at_any_instant_leaves_every_event_that_was_written(path: Path) -> None:
    """Each round kills the writer at another instant; what it had reported is there, in order, and it goes on."""
    seed = 20261121
    draw = random.Random(seed)
    written = 0
    for _ in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.0, 0.05))
        writer.send_signal(signal.SIGKILL)
        reported = [int(line) for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        writer.wait()
        events = Ledger.history(path)
        assert [e.trial for e in events] == [f"{i:06d}" for i in range(len(events))], f"seed {seed}"
        assert all(e.data["label"] == "x" * (i % 700) for i, e in enumerate(events)), f"seed {seed}"
        said = reported[-1] + 1 if reported else written
        assert said <= len(events) <= said + 1, f"seed {seed}: lost or invented"
        written = len(events)
    assert written > 100, "the writer hardly ran: the test would show nothing"


def test_a_kill_while_it_is_made_leaves_one_that_opens(path: Path) -> None:
    """Killed at instants over the whole of its making: whatever is there opens, empty or with its first events."""
    draw = random.Random(7)
    for round_ in range(10):
        target = path.with_name(f"{round_}.db")
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(target)], cwd=ROOT, stdout=subprocess.DEVNULL, text=True
        )
        while not target.exists():
            time.sleep(0.0002)
        time.sleep(draw.uniform(0.0, 0.004))
        writer.kill()
        writer.wait()
        before = len(Ledger.history(target))
        ledger = Ledger.open(target, create=False)
        ledger.append("sweep_ended")
        ledger.close()
        assert len(Ledger.history(target)) == before + 1


def test_busy_is_a_request_error() -> None:
    assert LedgerBusy.exit_code == 2


@pytest.mark.parametrize("text", ['{"state": "fin', "[1]", b"\xff\xfe"])
def test_an_event_that_cannot_be_read_is_a_clear_error(path: Path, text: str | bytes) -> None:
    ledger = Ledger.open(path, create=True)
    for trial in ("000", "001"):
        ledger.append("trial_planned", trial=trial, data={"arm": "0"})
    ledger.close()
    db = sqlite3.connect(path)
    db.execute("DROP TRIGGER events_stay")  # a bad disk asks for no leave
    assert db.execute("UPDATE events SET data = ? WHERE seq = 2", (text,)).rowcount == 1
    db.commit()
    db.close()
    for read in (Ledger.read, Ledger.history):
        with pytest.raises(RequestError, match="event 2 says cannot be read"):
            read(path)
