"""What a sweep or a trial says, from its files: `sweeper logs`.

Guarantees: nothing but the files is needed, so it works while the sweep runs, after it, and from any machine that sees
the store; bytes are passed on as they are; following ends when nothing more can come.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.trial.ledger import Ledger, holder
from sweeper.trial.records import CONTROLLER_LOG, SweepFolder, read_json, store_flag

TRIAL_LOG = "log.txt"
POLL_S = 0.3
BLOCK = 1 << 16


def show(store: Path, run: str, *, lines: int, follow: bool) -> None:
    """Write the last lines of what RUN (SWEEP, SWEEP/TRIAL or SWEEP/TRIAL/ATTEMPT) said to standard output.

    `follow`: and all that comes, of a trial's later attempts too, until it cannot go on any more.

    Raises:
        RequestError: There is no such sweep, trial or attempt, or the sweep was not detached and has no log itself.
    """
    name, _, of_trial = run.strip("/").partition("/")
    folder = SweepFolder.existing(store, name)
    trial, _, attempt = of_trial.partition("/")
    path = _of_trial(folder, trial, attempt) if trial else _of_sweep(folder)
    while True:
        with path.open("rb") as log:
            log.seek(_last(log, lines))
            _pass_on(log)
            while follow:
                over = _over(folder, trial)  # asked first: what it wrote before its end is still passed on
                if not _pass_on(log) and (over or _next(folder, trial, attempt, path)):
                    break
                time.sleep(POLL_S)
        later = _next(folder, trial, attempt, path) if follow else None
        if later is None:
            return
        path, lines = later, sys.maxsize
        print(f"\n=== {path.parent.name} ===", flush=True)


def _of_sweep(folder: SweepFolder) -> Path:
    path = folder.path / CONTROLLER_LOG
    if not path.is_file():
        where = store_flag(folder.path.parent)
        raise RequestError(
            Problem(
                f"{folder.name} ran in a terminal, and what it said is there",
                valid=f"its trials: {', '.join(f'{folder.name}/{t}' for t in folder.trial_ids()[:12]) or 'none yet'}",
                fix=f"sweeper logs {folder.name}/TRIAL{where}, or sweeper status {folder.name}{where}",
            )
        )
    return path


def _of_trial(folder: SweepFolder, trial: str, attempt: str) -> Path:
    made = {path.name: path for path in folder.attempts(trial)}
    found = made.get(f"attempt-{attempt.removeprefix('attempt-')}") if attempt else next(reversed(made.values()), None)
    if found is None:
        there = [f"{folder.name}/{trial}/{name.removeprefix('attempt-')}" for name in made]
        raise RequestError(
            Problem(
                f"there is no attempt {attempt} of {folder.name}/{trial}"
                if made
                else f"nothing of {folder.name}/{trial} has run",
                valid=", ".join(there or [f"{folder.name}/{t}" for t in folder.trial_ids()[:12]]) or "nothing yet",
                fix=f"sweeper status {folder.typed}",
            )
        )
    if not (found / TRIAL_LOG).is_file():
        raise RequestError(
            Problem(
                f"{found.name} of {folder.name}/{trial} has written nothing yet", fix=f"sweeper status {folder.typed}"
            )
        )
    return found / TRIAL_LOG


def _next(folder: SweepFolder, trial: str, attempt: str, path: Path) -> Path | None:
    """The log of the attempt after that one, once there is one; an attempt that was asked for has none."""
    if not trial or attempt:
        return None
    made = folder.attempts(trial)
    return next((p / TRIAL_LOG for p in made[made.index(path.parent) + 1 :] if (p / TRIAL_LOG).is_file()), None)


def _over(folder: SweepFolder, trial: str) -> bool:
    """Whether nothing more can be written: nobody runs the sweep, or the trial has come to its end."""
    ledger = folder.path / "ledger.db"
    if holder(ledger) is None:
        return True
    latest = folder.latest_attempt(trial) if trial else None
    if latest is None:
        return False
    try:
        if read_json(latest / "status.json").get("state") in ("starting", "running"):
            return False
        return Ledger.read(ledger)[trial].state not in ("running", "waiting")
    except (SweeperError, KeyError, OSError):
        return False


def _last(log: BinaryIO, lines: int) -> int:
    """Where the last so many lines begin."""
    end = at = log.seek(0, 2)
    seen = b""
    while at > 0 and seen.count(b"\n") <= lines:
        start = max(0, at - BLOCK)
        log.seek(start)
        seen = log.read(at - start) + seen
        at = start
    kept = seen.splitlines(keepends=True)[-lines:] if lines else []
    return end - sum(map(len, kept))


def _pass_on(log: BinaryIO) -> bool:
    """Write what is new; whether there was anything."""
    some = False
    for block in _blocks(log):
        sys.stdout.buffer.write(block)
        some = True
    sys.stdout.buffer.flush()
    return some


def _blocks(log: BinaryIO) -> Iterator[bytes]:
    while block := log.read(BLOCK):
        yield block
