"""Ends what is left of attempts whose guard was killed. Guarantees that it never touches an attempt that has its guard.

An attempt's private temp-dir is made here, with a file that its guard holds a lock on (flock(2)) for as long as it
lives: the kernel releases the lock on any death. So "an orphan" is exact, whatever pid is reused in whatever container:
a temp-dir whose lock can be had. Its processes are found by the marker in their environment, which they inherited.
The temp-dir also has the control pipe by which any controller reaches the guard: a byte that is written there reaches
this guard or nobody, where a signal to a remembered pid might reach a stranger.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MARKER = "SWEEPER_ATTEMPT"
PREFIX = "swp-"
LONGEST_ROOT = 24
"""Ray puts sockets into a temp-dir at paths 65 bytes longer than its own; a Unix socket's path has at most 107."""
KILL_S = 10.0
UNFINISHED_S = 60.0
"""A temp-dir that is still hidden after so long was left by a controller that was killed while it made it."""


@dataclass(frozen=True)
class Den:
    """An attempt's private temp-dir, locked."""

    path: Path
    lock: int
    """The file descriptor to hand to the guard; the holder's death releases the lock."""
    control: int
    """The control pipe, to hand to the guard as well, so that nothing written before it runs is lost."""

    def close(self) -> None:
        """Close our copies of the descriptors."""
        os.close(self.lock)
        os.close(self.control)

    @property
    def marker(self) -> str:
        """The value of the marker variable of the attempt's processes."""
        return self.path.name.removeprefix(PREFIX)


def root() -> Path:
    """Where temp-dirs go: the user's, unless its name is too long for a socket."""
    chosen = Path(tempfile.gettempdir())
    return chosen if len(os.fsencode(chosen)) <= LONGEST_ROOT else Path("/tmp")


def make_den() -> Den:
    """A new temp-dir that only this user can enter. It appears under its name only once it is locked."""
    name = secrets.token_hex(5)
    hidden = root() / f".{PREFIX}{name}"
    hidden.mkdir(mode=0o700)
    lock = os.open(hidden / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.mkfifo(hidden / "control", 0o600)
    control = os.open(hidden / "control", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    return Den(hidden.rename(root() / f"{PREFIX}{name}"), lock, control)


def guarded(den: Path) -> bool:
    """Whether its guard lives (or is about to), or its orphans are being ended at this moment. False once it is gone.

    Looking disturbs nobody: it takes the lock shared, which only keeps a janitor away for that instant.
    """
    try:
        lock = os.open(den / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(lock)


def ask(den: Path, what: bytes) -> bool:
    """Write to the guard's control pipe (guard.py says what it understands); whether there is a guard to read it."""
    try:
        control = os.open(den / "control", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # removed, or nobody has it open: the guard is gone
        return False
    try:
        os.write(control, what)
    except OSError:
        return False
    finally:
        os.close(control)
    return True


def marked(marker: str) -> list[int]:
    """The processes of this user that carry the marker, but for this one."""
    needle = f"{MARKER}={marker}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it ended, or is somebody else's
                if needle in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def end(den: Path) -> int:
    """Kill what carries the temp-dir's marker until nothing does, then remove it. Returns how many were killed."""
    marker = den.name.removeprefix(PREFIX)
    killed: set[int] = set()
    deadline = time.monotonic() + KILL_S
    while (left := marked(marker)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        killed.update(left)
        time.sleep(0.02)
    shutil.rmtree(den, ignore_errors=True)
    return len(killed)


def sweep(only: Path | None = None) -> int:
    """End every orphan of this user (or only that temp-dir, if it is one). Returns how many processes were killed."""
    killed = 0
    if only is None:
        _remove_unfinished()
    for den in [only] if only else sorted(root().glob(f"{PREFIX}*")):
        try:
            if only is None and den.stat().st_uid != os.getuid():
                continue
            lock = os.open(den / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # removed meanwhile
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its guard lives
            continue
        else:
            killed += end(den)
        finally:
            os.close(lock)
    return killed


def _remove_unfinished() -> None:
    """Temp-dirs that never got their name. Nothing was ever started in one."""
    for hidden in root().glob(f".{PREFIX}*"):
        with contextlib.suppress(OSError):
            about = hidden.stat()
            if about.st_uid == os.getuid() and time.time() - about.st_mtime > UNFINISHED_S:
                shutil.rmtree(hidden, ignore_errors=True)
