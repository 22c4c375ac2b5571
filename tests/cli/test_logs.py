"""`sweeper logs`, by the files alone."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from sweeper.cli.main import main
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import CONTROLLER_LOG, SweepFolder


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder.create(tmp_path / "runs", "s", [])
    Ledger.open(folder.path / "ledger.db", create=True).close()
    return folder


def attempt(folder: SweepFolder, number: int, text: str, state: str) -> Path:
    path = folder.trial("000") / f"attempt-{number}"
    path.mkdir(parents=True)
    (path / "log.txt").write_text(text)
    (path / "status.json").write_text(json.dumps({"state": state}))
    return path


def logs(folder: SweepFolder, *words: str) -> int:
    return main(["logs", "--store", str(folder.path.parent), *words])


def test_a_trials_latest_attempt_is_shown_by_its_last_lines(
    sweep: SweepFolder, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    attempt(sweep, 1, "first\n", "failed")
    attempt(sweep, 2, "".join(f"line {i}\n" for i in range(100_000)) + "caf\xe9 without an end", "finished")
    assert logs(sweep, "s/000", "-n", "2") == 0
    assert capfdbinary.readouterr().out == "line 99999\ncaf\xe9 without an end".encode()
    assert logs(sweep, "s/000", "-n", "0") == 0
    assert capfdbinary.readouterr().out == b""
    assert logs(sweep, "s/000/1") == 0
    assert capfdbinary.readouterr().out == b"first\n"


def test_what_a_detached_controller_said_is_shown(
    sweep: SweepFolder, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (sweep.path / CONTROLLER_LOG).write_text("a\nb\n")
    assert logs(sweep, "s", "-f") == 0, "nobody runs it, so following ends"
    assert capfdbinary.readouterr().out == b"a\nb\n"


def test_following_goes_on_to_the_next_attempt_and_ends_with_the_trial(
    sweep: SweepFolder, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    ledger = Ledger.open(sweep.path / "ledger.db", create=False)  # we are the controller
    ledger.append("trial_planned", trial="000", data={"label": "default", "fingerprint": "f"})
    ledger.append("attempt_started", trial="000", attempt=1, data={"folder": "f"})
    first = attempt(sweep, 1, "one\n", "running")

    def go_on() -> None:
        time.sleep(0.5)
        with (first / "log.txt").open("a") as log:
            log.write("two\n")
        attempt(sweep, 2, "three\n", "running")
        time.sleep(0.5)
        ledger.close()

    writer = threading.Thread(target=go_on)
    writer.start()
    assert logs(sweep, "s/000", "-f") == 0
    writer.join()
    assert capfdbinary.readouterr().out == b"one\ntwo\n\n=== attempt-2 ===\nthree\n"


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ("t", "no sweep named t"),
        ("s", "s ran in a terminal"),
        ("s/7", "nothing of s/7 has run"),
        ("s/000/9", "there is no attempt 9 of s/000"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(
    sweep: SweepFolder, capfd: pytest.CaptureFixture[str], run: str, says: str
) -> None:
    attempt(sweep, 1, "one\n", "running")
    assert logs(sweep, run) == 2
    said = capfd.readouterr().err
    assert says in said and "valid:" in said and "Traceback" not in said
