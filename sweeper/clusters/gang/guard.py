"""Guarantees that when an attempt ends, for whatever reason, no process of it remains, and that its end is on record.

    python -I -S guard.py RECORD TEMP_DIR -- COMMAND...

Runs COMMAND (the agent) and waits for the first of: the agent ends; stdin, the lifeline, reaches its end (the kernel
closes it when the controller dies, even by SIGKILL); somebody asks for the end (SIGTERM, or the byte `s` (stop) or `k`
(kill) on the lifeline). Then it ends every descendant: SIGTERM, a grace period, SIGKILL, until waitpid says that no
child is left. A process cannot escape by forking, by `setsid` or by outliving its parent, because the guard is its
subreaper (prctl(2)). Then the attempt's temp-dir is removed, and the exit record is written by rename. The guard must
be in a session of its own: Ray 2.60 kills the process group of a worker that died.

The agent says how the trainer ended by one line of JSON on its stdout: {"code", "reason", "detail"}.
If the guard itself is killed, the agent gets SIGKILL from the kernel (PR_SET_PDEATHSIG) and `janitor` finds the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STOP_GRACE_S = 2.0
"""From SIGTERM to SIGKILL when the attempt is stopped. It must release its gang within 5 s."""
EXIT_GRACE_S = 0.5
"""The same after the trainer ended by itself: what is left has nothing to finish, and a raylet takes all it can get."""
REPORT_LIMIT = 65_536
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def prctl(option: int, value: int) -> None:
    """prctl(2), or OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def die_with_parent(parent: int) -> Callable[[], None]:
    """What a child calls before exec so that the kernel kills it with its parent, of which `parent` is the pid."""

    def before_exec() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return before_exec


def descendants() -> list[int]:
    """Every process below this one, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_bytes()
            except OSError:  # it ended meanwhile
                continue
            # The second field, the name in parentheses, may hold blanks and parentheses itself.
            parent = int(stat[stat.rindex(b")") + 2 :].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def send(pids: list[int], signum: int) -> None:
    """Signal all of them; those that are gone already do not matter."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signum)


class Guard:
    """One attempt's guard; see the module."""

    def __init__(self, record: Path, temp_dir: Path, command: list[str]) -> None:
        self.record, self.temp_dir = record, temp_dir
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        # Every signal writes its number into a pipe: one select() waits for signals and for the lifeline.
        self.signals, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for signum in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(signum, lambda *_: None)
        for signum in (signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        self.report, out = os.pipe2(os.O_CLOEXEC)
        self.agent_code: int | None = None
        self.agent = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            start_new_session=True,
            preexec_fn=die_with_parent(os.getpid()),  # noqa: PLW1509  (there is no other thread)
        ).pid
        os.close(out)

    def reap(self) -> bool:
        """Collect the dead; whether no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self.agent:
                self.agent_code = os.waitstatus_to_exitcode(status)

    def wait_for_end(self) -> tuple[str, float]:
        """Wait until something ends the attempt. Returns the reason and the grace period in seconds."""
        lifeline = [0]
        while True:
            ready, _, _ = select.select([*lifeline, self.signals], [], [])
            if self.signals in ready and signal.SIGTERM in os.read(self.signals, 4096):
                return "stopped", STOP_GRACE_S
            self.reap()
            if self.agent_code is not None:
                return "exit", EXIT_GRACE_S
            if 0 in ready:
                asked = os.read(0, 64)
                if not asked:
                    return "controller-gone", 0.0
                if b"k" in asked:
                    return "stopped", 0.0
                if b"s" in asked:
                    return "stopped", STOP_GRACE_S

    def end_all(self, grace: float) -> None:
        """Return when no descendant is left."""
        deadline = time.monotonic() + grace
        if grace:
            send(descendants(), signal.SIGTERM)
        while not self.reap():
            if time.monotonic() >= deadline:
                send(descendants(), signal.SIGKILL)  # again and again: a process may fork while it is being killed
            elif self.kill_asked():
                deadline = 0.0
            time.sleep(0.02)

    @staticmethod
    def kill_asked() -> bool:
        """Whether the controller, while we are in the grace period, wants the end now (or died)."""
        ready, _, _ = select.select([0], [], [], 0)
        return bool(ready) and os.read(0, 64) != b"s"

    def said(self) -> dict[str, Any]:
        """What the agent reported; empty when it could not."""
        os.set_blocking(self.report, False)
        with contextlib.suppress(OSError, ValueError):
            answer = json.loads(os.read(self.report, REPORT_LIMIT))
            if isinstance(answer, dict):
                return answer
        return {}

    def run(self) -> None:
        """From the start of the agent to the exit record."""
        reason, grace = self.wait_for_end()
        self.end_all(grace)
        said = self.said()
        ended = time.time()
        shutil.rmtree(self.temp_dir, ignore_errors=True)
        if reason == "exit":
            reason = said.get("reason", "lost")
        detail = said.get("detail", "") if said else ""
        if reason == "lost" and not detail:
            detail = f"the agent ended with code {self.agent_code} and no report"
        self.write({"code": said.get("code"), "reason": reason, "detail": detail, "ended": ended})

    def write(self, record: dict[str, Any]) -> None:
        """Leave the exit record; a reader sees all of it or nothing."""
        partial = self.record.with_name(self.record.name + ".partial")
        partial.write_text(json.dumps(record))
        partial.replace(self.record)


def main() -> None:
    """Parse the command line and guard."""
    record, temp_dir, _, *command = sys.argv[1:]
    Guard(Path(record), Path(temp_dir), command).run()


if __name__ == "__main__":
    main()
