"""`sweeper stop` of a sweep that ends, or has ended, by itself. Controllers that run: tests/real/test_search.py."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import ROOT

from sweeper.cli.main import main
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import SweepFolder

ENDS = """
import signal, sys, time
from pathlib import Path
from sweeper.trial.ledger import Ledger
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
ledger = Ledger.open(Path(sys.argv[1]), create=False)
print("holds", flush=True)
while not told: time.sleep(0.01)
ledger.append("sweep_ended", data={"state": sys.argv[2]})
ledger.close()
"""


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a sweep `s` that was started."""
    monkeypatch.chdir(tmp_path)
    folder = SweepFolder.create(tmp_path / "runs", "s", ["lr=1e-4"])
    made = Ledger.open(folder.path / "ledger.db", create=True)
    made.append("sweep_started", data={"overrides": [], "mode": "max"})
    made.close()
    return folder.path / "ledger.db"


def ended(ledger: Path, state: str) -> None:
    opened = Ledger.open(ledger, create=False)
    opened.append("sweep_ended", data={"state": state})
    opened.close()


def test_a_sweep_that_has_finished_is_no_error(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(ledger, "finished")
    assert main(["stop", "s"]) == 0
    assert capsys.readouterr().out == "s has already finished\n"


@pytest.mark.parametrize(
    ("state", "says"), [("finished", "s has already finished"), ("stopped", "s was stopped; sweeper resume s goes on")]
)
def test_a_controller_that_finishes_as_it_is_asked(
    ledger: Path, capsys: pytest.CaptureFixture[str], state: str, says: str
) -> None:
    words = [sys.executable, "-c", ENDS, str(ledger), state]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as controller:
        assert controller.stdout is not None and controller.stdout.readline() == "holds\n"
        assert main(["stop", "s"]) == 0
    assert capsys.readouterr().out.startswith(says)


def test_a_lock_that_is_just_being_let_go_is_waited_for(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As by a process that the controller forked, which has a copy of it until it runs its program."""
    ended(ledger, "finished")
    with ledger.with_name("ledger.db.lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.truncate(0)

        def let_go() -> None:
            time.sleep(0.5)
            fcntl.flock(held, fcntl.LOCK_UN)

        letting = threading.Thread(target=let_go)
        letting.start()
        assert main(["stop", "s"]) == 0
        letting.join()
    assert capsys.readouterr().out == "s has already finished\n"


def test_a_sweep_that_was_extended_since_has_not_finished(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(ledger, "finished")
    opened = Ledger.open(ledger, create=False)
    opened.append("sweep_extended", data={"overrides": [], "planned": 4})
    opened.close()
    assert main(["stop", "s"]) == 0
    assert capsys.readouterr().out == "nothing of s runs\n"
