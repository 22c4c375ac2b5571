"""Guarantees that when an attempt ends, for whatever reason, no process of it remains, and that its end is on record.

    python -I -S guard.py RECORD TEMP_DIR CONTROL,LOCK,RANK,... -- COMMAND...

Runs COMMAND (the agent) and waits for the first of: the agent ends; somebody asks for the end (SIGTERM, or a byte on
the control pipe: `s` stop, `k` kill now, `d` write the stacks of all Python processes into the log, then stop). Then it
ends every descendant: SIGTERM, a grace period, SIGKILL, until waitpid says that no child is left. A process cannot
escape by forking, by `setsid` or by outliving its parent, because the guard is its subreaper (prctl(2)). Then the exit
record is written by rename, the attempt's temp-dir is removed and its ranks are free.

Where it was bound to who started it (node.py) and that one dies, this is a loss and no stop: all is killed at once.

Where a node is taken back with notice (SWEEPER_GRACE_S), SIGTERM is that notice, and so is a byte `p`: the trainer is
told by a file and may end by itself, until another SIGTERM, or until the time is nearly over. It was `preempted` then.

The guard does not need who started it: the controller may die, and another takes over by the control pipe, a FIFO in
the temp-dir. It comes with open file descriptors that nobody else keeps, so that the kernel releases with its death
what they stand for: the control pipe (what was written before we ran is not lost), the lock of the temp-dir (held: the
guard lives) and the locks of the ranks (held: they are taken). It must be in a session of its own, out of reach of a
terminal's signals, and because Ray 2.60 kills the process group of a worker that died.

The agent says how the trainer ended by one line of JSON on its stdout: {"code", "reason", "detail"}.
If the guard itself is killed, the agent gets SIGKILL from the kernel (PR_SET_PDEATHSIG) and `janitor` finds the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import stat
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
DUMP_S, DUMP_EACH_S = 5.0, 1.0
"""What writing stacks may take: all processes together, and one of them."""
DUMP_LIMIT = 200_000
"""Bytes of one process's stacks: faulthandler writes at most 100 frames of at most 100 threads."""
GRACE = "SWEEPER_GRACE_S"
"""Variable: seconds from the notice until the node is taken back; without it there is none."""
TAKEN_BACK = "SWEEPER_TAKEN_BACK"
"""Variable of the attempt's processes: the file that is there once the notice came; its folder is the gang's."""
END_S = 5.0
"""What is left of the notice when a trainer that has not ended is ended: it has STOP_GRACE_S, the records the rest."""
TOUCH_S = 3600.0
"""Between two touches of our files: what looks unused for days is removed from /tmp on some machines."""
LOCK = "lock"
"""Its name in the temp-dir."""
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 2, 36


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
                fields = (entry / "stat").read_bytes()
            except OSError:  # it ended meanwhile
                continue
            # The second field, the name in parentheses, may hold blanks and parentheses itself.
            parent = int(fields[fields.rindex(b")") + 2 :].split()[1])
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


def status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status; empty when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def command_line(pid: int) -> list[str]:
    """The words that it was started with; empty when it is gone."""
    try:
        return [w.decode(errors="replace") for w in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if w]
    except OSError:
        return []


RAYS_OWN = (
    "ray/dashboard/", "runtime_env/agent", "ray.scripts.scripts", "log_monitor.py", "ray.util.client.server",
    "ray::RuntimeEnvAgent", "ray::DashboardAgent", "ray::IDLE",
)  # fmt: skip
"""Words of Ray's own Python processes: they serve, and hang nowhere."""


def writes_stacks(pid: int) -> bool:
    """Whether SIGABRT makes it write its stacks: an interpreter that has faulthandler on, and so catches the signal.

    Raylets catch it too, but their stacks say nothing about the trainer.
    """
    try:
        executable = Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return False
    caught = int(status(pid).get("SigCgt", "0"), 16)
    words = " ".join(command_line(pid))
    return (
        executable.startswith("python")
        and bool(caught >> (signal.SIGABRT - 1) & 1)
        and not any(own in words for own in RAYS_OWN)
    )


def over(pid: int) -> bool:
    """Whether it ended, reaped or not."""
    return status(pid).get("State", "Z").startswith(("Z", "X"))


class Log:
    """Where a process's stderr goes, if that is a file of its own and not the attempt's log."""

    def __init__(self, pid: int) -> None:
        self.path = Path(f"/proc/{pid}/fd/2")
        self.file: int | None = None
        with contextlib.suppress(OSError):
            self.path = self.path.readlink()
            theirs, ours = self.path.stat(), os.fstat(2)
            if stat.S_ISREG(theirs.st_mode) and (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
                self.file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                os.lseek(self.file, 0, os.SEEK_END)

    def copy(self) -> None:
        """Copy what was written since into the attempt's log: a Ray worker's own is removed with the temp-dir."""
        if self.file is not None:
            with contextlib.suppress(OSError):
                os.write(2, os.read(self.file, DUMP_LIMIT))
            os.close(self.file)


class Guard:
    """One attempt's guard; see the module. Its stderr is the attempt's log."""

    def __init__(self, record: Path, temp_dir: Path, held: list[int], command: list[str]) -> None:
        self.record, self.temp_dir = record, temp_dir
        self.control, self.lock, *self.ranks = held
        for fd in held:
            os.set_inheritable(fd, False)
        os.set_blocking(self.control, False)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        # Every signal writes its number into a pipe: one select() waits for signals and for the control pipe.
        self.signals, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for signum in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(signum, lambda *_: None)
        for signum in (signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        self.grace_s = float(os.environ.get(GRACE) or 0)
        self.parent, self.told = os.getppid(), 0.0
        sent = ctypes.c_int()
        ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(sent), 0, 0, 0)
        self.bound = sent.value == signal.SIGTERM
        self.taken_back = record.with_name("taken-back")
        if self.grace_s:
            os.environ[TAKEN_BACK] = str(self.taken_back)
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

    def asked(self) -> bytes:
        """What is on the control pipe; empty when nothing is."""
        try:
            return os.read(self.control, 64)
        except BlockingIOError:
            return b""

    def wait_for_end(self) -> tuple[str, float]:
        """Wait until something ends the attempt. Returns the reason and the grace period in seconds."""
        touch_at, end_at = time.monotonic() + TOUCH_S, float("inf")
        while True:
            timeout_s = max(0.0, min(touch_at, end_at) - time.monotonic())
            ready, _, _ = select.select([self.control, self.signals], [], [], timeout_s)
            if time.monotonic() >= touch_at:
                touch_at = time.monotonic() + TOUCH_S
                for fd in (self.control, self.lock, *self.ranks):
                    os.utime(fd)
            terminated = self.signals in ready and signal.SIGTERM in os.read(self.signals, 4096)
            self.reap()
            if self.agent_code is not None:
                return "exit", EXIT_GRACE_S
            if asked := self.asked():
                if b"k" in asked:
                    return "stopped", 0.0
                if b"d" in asked:
                    self.dump()
                if asked.strip(b"p"):
                    return "stopped", STOP_GRACE_S
            if terminated and self.orphaned():
                return "lost", 0.0  # without a farewell, so that the rest of the gang knows it for a loss
            now = terminated and (self.told or not self.grace_s)
            if now or time.monotonic() >= end_at:
                return "preempted" if self.told else "stopped", STOP_GRACE_S
            if (terminated or asked) and not self.told:
                self.tell()
                end_at = self.told + self.grace_s - END_S

    def orphaned(self) -> bool:
        """Whether who started this node's part has died, where we end with it (node.py)."""
        return self.bound and os.getppid() != self.parent

    def tell(self) -> None:
        """Tell the trainer that the node is taken back."""
        self.told = time.monotonic()
        with contextlib.suppress(OSError):  # a trainer that is not told trains as long as it may
            self.taken_back.touch()
            os.write(2, f"sweeper: the node is taken back in {self.grace_s:g} s, and the trainer is told\n".encode())

    def dump(self) -> None:
        """Make every Python process write the stacks of its threads into the log. It ends by that.

        All are frozen first, so that none reacts to the end of another before its own stacks are written, and one
        writes at a time, children first, because a parent's end may end them.
        """
        deadline = time.monotonic() + DUMP_S
        frozen: list[int] = []
        while new := [pid for pid in descendants() if pid not in frozen]:
            send(new, signal.SIGSTOP)
            frozen += new
        for pid in reversed(frozen):
            words = command_line(pid)
            serves = any(word.endswith("forkserver.py") for word in words)  # but its forks look like it
            if not writes_stacks(pid) or (serves and status(pid).get("PPid") == str(self.agent)):
                continue
            log = Log(pid)
            os.write(2, f"\nsweeper: stacks of process {pid} ({' '.join(words)[:200]}):\n".encode())
            with contextlib.suppress(OSError, ValueError):
                # No core file: less than the smallest. 0 would not hold where cores are piped to a program.
                resource.prlimit(pid, resource.RLIMIT_CORE, (1, resource.prlimit(pid, resource.RLIMIT_CORE)[1]))
            send([pid], signal.SIGABRT)
            send([pid], signal.SIGCONT)
            patience = min(deadline, time.monotonic() + DUMP_EACH_S)
            while not over(pid) and time.monotonic() < patience:
                time.sleep(0.005)
            log.copy()
        send(frozen, signal.SIGCONT)

    def end_all(self, grace: float) -> None:
        """Return when no descendant is left."""
        deadline = time.monotonic() + grace
        if grace:
            send(descendants(), signal.SIGTERM)
        while not self.reap():
            if time.monotonic() >= deadline:
                send(descendants(), signal.SIGKILL)  # again and again: a process may fork while it is being killed
            elif b"k" in self.asked():
                deadline = 0.0
            time.sleep(0.02)

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
        had = time.monotonic() - self.told
        self.end_all(grace)
        said = self.said()
        ended = time.time()
        if reason == "exit":
            reason = said.get("reason", "lost")
            if self.told and said.get("code") != 0:  # one that had finished has finished
                reason = "preempted"
        detail = said.get("detail", "") if said else ""
        if reason == "preempted":
            detail = "; ".join(filter(None, [f"it ended {had:.0f} s after it was told", detail]))
        if reason == "lost" and self.orphaned():
            detail = "what had started this node's part died"
        if reason == "lost" and not detail:
            detail = f"the agent ended with code {self.agent_code} and no report"
        self.write({"code": said.get("code"), "reason": reason, "detail": detail, "ended": ended})
        self.leave()

    def write(self, record: dict[str, Any]) -> None:
        """Leave the exit record; a reader sees all of it or nothing."""
        partial = self.record.with_name(self.record.name + ".partial")
        partial.write_text(json.dumps(record))
        partial.replace(self.record)

    def leave(self) -> None:
        """Remove the temp-dir and free the ranks. The lock goes last: whoever does not find it knows that we are done,
        with the record written and the ranks free."""
        for path in self.temp_dir.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        for fd in self.ranks:
            os.close(fd)
        (self.temp_dir / LOCK).unlink(missing_ok=True)
        shutil.rmtree(self.temp_dir, ignore_errors=True)


def main() -> None:
    """Parse the command line and guard."""
    record, temp_dir, held, _, *command = sys.argv[1:]
    Guard(Path(record), Path(temp_dir), [int(fd) for fd in held.split(",")], command).run()


if __name__ == "__main__":
    main()
