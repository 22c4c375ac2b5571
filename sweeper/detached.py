"""A sweep that outlives its terminal: `detach=true`.

Guarantees: the request was planned and checked before, so a wrong one is refused on the screen as ever; its folder and
ledger are there and the ledger is held when the command returns, so that `sweeper status`, `logs` and `stop` find the
sweep from that moment on; what goes on in the background is `sweeper resume`, in a session of its own that no
terminal's end reaches, and what it says is in the sweep's folder. Nothing is handed over but the environment that the
command had.

What ends it all the same is a system that kills all of a user's processes at logout (`loginctl enable-linger` keeps
them), and it does not start again after a reboot: `sweeper resume NAME detach=true` does that.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from sweeper.errors import SweeperError
from sweeper.execute import claim
from sweeper.plan.plan import Plan
from sweeper.trial.ledger import holder
from sweeper.trial.records import CONTROLLER_LOG, cannot_write, to_json

POLL_S = 0.05
OF_THE_COMMAND = ("name", "detach", "output")
"""What the command that is typed has for itself."""


def start(plan: Plan, output: str, *, resume: bool) -> int:
    """Let the sweep of this plan run in the background; returns the exit code of the command, 0.

    Raises:
        RequestError: As `sweeper.execute.claim`.
        RecordsError: The store cannot be written.
        SweeperError: It ended before it had begun.
    """
    folder = claim(plan, resume=resume)
    overrides = [o for o in plan.overrides if o.split("=")[0].lstrip("+") not in OF_THE_COMMAND]
    command = [sys.executable, "-m", "sweeper.detached", *overrides, f"name={folder.name}", "output=plain"]
    log = folder.path / CONTROLLER_LOG
    try:
        with log.open("ab") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
    except OSError as error:
        raise cannot_write(log, error) from error
    # It plans again, which takes it a second; until then `sweeper stop` would not find it.
    while (who := holder(folder.path / "ledger.db")) is None or who.pid != process.pid:
        if process.poll() is not None:
            raise SweeperError(f"the sweep did not start: it ended with {process.returncode}; {log} says why")
        time.sleep(POLL_S)
    about = {"name": folder.name, "folder": str(folder.path), "log": str(log), "pid": process.pid}
    if output == "json":
        print(to_json({"event": "detached", **about, "host": socket.gethostname()}), flush=True)
    else:
        print(f"sweep {folder.name} goes on in the background, as process {process.pid} on {socket.gethostname()}")
        at = "" if str(plan.settings["store"]) == "runs" else f" --store {plan.settings['store']}"
        for verb, what in (
            ("status", "how far it is"),
            ("logs", "what it says; -f goes on reading"),
            ("stop", "end it; `resume` goes on with it"),
        ):
            print(f"  {f'sweeper {verb} {folder.name}{at}':<{max(40, 15 + len(folder.name + at))}} {what}")
    return 0


def main(overrides: Sequence[str]) -> int:
    """What runs in the background; returns the exit code as of `sweeper.app.run`."""
    from sweeper import app
    from sweeper.config.hydra_app import initialized

    with initialized():
        return app.run(overrides, resume=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
