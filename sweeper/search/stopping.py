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
from sweeper.trial.ledger import Ledger, holder
from sweeper.trial.records import SweepFolder

PATIENCE_S = 90.0
"""For a controller to end its attempts, send what is left to the tracking store and go."""
POLL_S = 0.05


def end(store: Path, name: str) -> str:
    """End the sweep; returns a line that says what was ended.

    Raises:
        RequestError: There is no such sweep, or its controller runs on another host.
        SweeperError: Its controller does not end.
    """
    folder = SweepFolder.existing(store, name)
    path = folder.path / "ledger.db"
    who = holder(path)
    if who is not None:
        if who.host != socket.gethostname():
            raise RequestError(
                Problem(
                    f"{name} is run by process {who.pid} on {who.host}",
                    fix=f"sweeper stop {folder.typed}   (on {who.host})",
                )
            )
        try:
            with contextlib.suppress(ProcessLookupError):
                os.kill(who.pid, signal.SIGTERM)
        except PermissionError:
            raise RequestError(Problem(f"{name} is run by process {who.pid} of another user")) from None
        deadline = time.monotonic() + PATIENCE_S
        while holder(path) is not None:
            if time.monotonic() > deadline:
                raise SweeperError(f"the controller of {name} (process {who.pid}) was asked to end and has not yet")
            time.sleep(POLL_S)
        return f"{name} was stopped; sweeper resume {folder.typed} goes on with it"
    return _without_controller(folder, path)


def _without_controller(folder: SweepFolder, path: Path) -> str:
    """The ledger stays as it is: how those attempts ended is in their folders, and `resume` reads it there."""
    ledger = Ledger.open(path, create=False)  # nobody resumes it meanwhile
    try:
        running = [Path(state.folder) for state in ledger.trials().values() if state.state == "running"]
        attempts = [a for at in running if (a := clusters.attach(at)) is not None and a.poll() is None]
        for attempt in attempts:
            attempt.stop()
        while any(attempt.poll() is None for attempt in attempts):
            time.sleep(POLL_S)
    finally:
        ledger.close()
    if not attempts:
        return f"nothing of {folder.name} runs"
    ended = f"{len(attempts)} trial{'s' * (len(attempts) != 1)}"
    return f"{ended} of {folder.name} stopped; sweeper resume {folder.typed} goes on"
