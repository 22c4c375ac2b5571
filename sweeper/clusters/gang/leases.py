"""Who holds which rank of this machine, among all sweeps of this user.

Guarantees: a rank (a GPU by its UUID, or a number on a CPU) is held by at most one attempt, whatever sweep it belongs
to; a gang's ranks are taken all or none; a rank is free exactly when no process keeps its lock, so a death of any kind
frees it, and nothing has to be cleaned up. Each rank is a lock file (flock(2)); its content says who holds it and is
for people.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

RUNTIME = "SWEEPER_RUNTIME"
"""Environment variable: the folder of the locks. For containers that share GPUs but not /tmp."""
BUSY_S = 1.0
"""How long we wait for another controller to have taken its ranks, which takes it less than a millisecond."""


def root() -> Path:
    """The folder of the locks, made if needed. Not below TMPDIR, which two jobs of a batch system do not share.

    Raises:
        OSError: It cannot be made, or is somebody else's.
    """
    ours = Path(os.environ.get(RUNTIME) or f"/tmp/sweeper-{os.getuid()}")
    ranks = ours / "ranks"
    ranks.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.environ.get(RUNTIME) and ours.lstat().st_uid != os.getuid():
        # Anybody can make folders in /tmp, and could lead our writes elsewhere.
        raise PermissionError(f"{ours} belongs to another user; set {RUNTIME} to a folder of yours")
    return ranks


def take(names: Sequence[str], ranks: int, holder: str) -> dict[str, int] | None:
    """Take the first free ranks among `names`: name -> the descriptor that holds it. None if there are too few.

    `holder` is for people: who asks, in a line. A lock lasts as long as any process has its descriptor open.

    Raises:
        OSError: The folder of the locks cannot be used.
    """
    with _alone() as alone:
        taken: dict[str, int] = {}
        for name in names if alone else ():
            if len(taken) == ranks:
                break
            if (lock := _lock(name)) is not None:
                taken[name] = lock
        if len(taken) < ranks:
            for lock in taken.values():
                os.close(lock)
            return None
        for lock in taken.values():
            os.truncate(lock, 0)
            os.pwrite(lock, json.dumps({"holder": holder, "since": time.time()}).encode(), 0)
        return taken


def free(names: Sequence[str]) -> list[str]:
    """Which of them nobody holds now.

    Raises:
        OSError: The folder of the locks cannot be used.
    """
    found = []
    with _alone() as alone:
        for name in names if alone else ():
            if (lock := _lock(name)) is not None:
                os.close(lock)
                found.append(name)
    return found


def holder(name: str) -> str:
    """Who took it last, as `take` was told; empty if nobody ever did."""
    try:
        return str(json.loads((root() / f"{name}.lock").read_text())["holder"])
    except (OSError, ValueError, KeyError):
        return ""


def _lock(name: str) -> int | None:
    """The descriptor of the rank's lock, or None if it is held."""
    lock = os.open(root() / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


@contextlib.contextmanager
def _alone() -> Iterator[bool]:
    """Nobody else takes or looks meanwhile; False if somebody stays at it (a controller that was suspended)."""
    lock = os.open(root() / "taking", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + BUSY_S
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.001)
            else:
                yield True
                return
    finally:
        os.close(lock)
