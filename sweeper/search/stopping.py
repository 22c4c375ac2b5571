"""Ends a sweep from outside: through its controller where that lives, else attempt by attempt.

Guarantees: when it returns, nothing of the sweep runs on this machine; what was ended goes on
with `sweeper resume`; a sweep that does not run is left as it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

from sweeper import clusters
from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.trial.ledger import Holder, Ledger, LedgerBusy, holder
from sweeper.trial.records import SweepFolder

PATIENCE_S = 90.0
"""For a controller to end its attempts, send what is left to the tracking store and go."""
POLL_S = 0.05


def end(store: Path, name: str) -> str:
    """End the sweep; returns a line that says what was ended, or that it had ended already.

    Raises:
        RequestError: There is no such sweep, or its controller runs on another host.
        SweeperError: Its controller does not end.
    """
    folder = SweepFolder.existing(store, name)
    path = folder.path / "ledger.db"
    asked: int | None = None
    deadline = time.monotonic() + PATIENCE_S
    while True:
        who = holder(path)
        if who is None:
            try:
                ledger = Ledger.open(path, create=False)  # nobody resumes it meanwhile
                break
            except LedgerBusy:  # it is being taken or let go at this moment
                if time.monotonic() > deadline:
                    raise
        elif who.pid != asked:
            _ask(folder, who)
            asked = who.pid
        elif time.monotonic() > deadline:
            raise SweeperError(f"the controller of {name} (process {who.pid}) was asked to end and has not yet")
        time.sleep(POLL_S)
    try:
        return _ended(folder, ledger, by_us=asked is not None)
    finally:
        ledger.close()


def _ask(folder: SweepFolder, who: Holder) -> None:
    """Ask the controller to end. RequestError if it cannot be asked from here."""
    if who.host != socket.gethostname():
        raise RequestError(
            Problem(
                f"{folder.name} is run by process {who.pid} on {who.host}",
                fix=f"sweeper stop {folder.typed}   (on {who.host})",
            )
        )
    try:
        with contextlib.suppress(ProcessLookupError):
            os.kill(who.pid, signal.SIGTERM)
    except PermissionError:
        raise RequestError(Problem(f"{folder.name} is run by process {who.pid} of another user")) from None


def _ended(folder: SweepFolder, ledger: Ledger, *, by_us: bool) -> str:
    """End what a controller has left, and say what has ended.

    The ledger stays as it is: how those attempts ended is in their folders, and `resume` reads it there.
    """
    trials = ledger.trials().values()
    running = [Path(state.folder) for state in trials if state.state == "running"]
    attempts = [a for at in running if (a := clusters.attach(at)) is not None and a.poll() is None]
    for attempt in attempts:
        attempt.stop()
    while any(attempt.poll() is None for attempt in attempts):
        time.sleep(POLL_S)
    if attempts:
        ended = f"{len(attempts)} trial{'s' * (len(attempts) != 1)}"
        return f"{ended} of {folder.name} stopped; sweeper resume {folder.typed} goes on"
    said = list(ledger.events(kinds=("sweep_ended", "sweep_extended")))[-1:]
    if said and said[0].data.get("state") == "finished":
        return f"{folder.name} has already finished"
    if by_us:
        return f"{folder.name} was stopped; sweeper resume {folder.typed} goes on with it"
    return f"nothing of {folder.name} runs"
