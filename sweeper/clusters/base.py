"""What a cluster is: it starts a job as one gang, says how it ended, and leaves nothing of it behind.

Guarantees of every cluster: no process of an attempt outlives its end; an attempt outlives the controller that started
it, and another controller of the same sweep takes it up again (`attach`); a gang's ranks are its own, among all sweeps
of this cluster, from before it starts until no process of it remains; an attempt's folder, ports, temp-dir and Ray
token are its own; how it ended is written with an atomic rename before it is reported.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sweeper.engines.base import Job, Shape


@dataclass(frozen=True, slots=True)
class Exit:
    """How an attempt ended; reported only when no process of it remains."""

    code: int | None
    """The trainer's exit code (negative: the signal that killed it); None when it never started or was not reaped."""
    reason: str
    """`exit`: the trainer ended by itself; `stopped`: we were asked to; `launch`: it could not be started (the detail
    says why); `lost`: a process that held the gang died; `preempted`: who gave us the gang took it back (a time limit,
    a job of higher priority)."""
    detail: str = ""
    ended: float = 0.0
    """Unix time."""


POLL_S = 0.02
RECORD = "exit.json"
"""In an attempt's folder: its `Exit`, written when no process of it is left on any node."""


def recorded(folder: Path) -> Exit | None:
    """How the attempt of that folder ended, by its record; None if it has none that can be read."""
    try:
        return Exit(**json.loads((folder / RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None


class Attempt(Protocol):
    """A running job. Its methods never block for longer than a moment, except `wait`."""

    folder: Path

    def poll(self) -> Exit | None:
        """How it ended, or None while any process of it remains."""
        ...

    def waiting(self) -> str:
        """Why it does not run yet, in the words of the queue that it waits in; empty once it runs, or was started."""
        ...

    def silent(self) -> str:
        """Which of its nodes are not heard from, and why, while it is not known to have ended; empty if all are."""
        ...

    def stop(self, *, dump: bool = False) -> None:
        """Ask it to end: SIGTERM, then SIGKILL after a few seconds. Returns at once; may be called twice.

        `dump`: first every Python process of it writes the stacks of its threads into the attempt's log.
        """
        ...

    def kill(self) -> None:
        """End it now."""
        ...


class Started(ABC):
    """An attempt that a guard holds, which does what is asked of it by a byte (gang/guard.py)."""

    folder: Path

    @abstractmethod
    def poll(self) -> Exit | None:
        """How it ended, or None while any process of it remains."""

    @abstractmethod
    def _ask(self, what: bytes) -> None:
        """Pass `s`, `k` or `d` on to its guards, unless it ended. Returns at once."""

    def waiting(self) -> str:
        """It was started at once."""
        return ""

    def silent(self) -> str:
        """It is heard from."""
        return ""

    def wait(self, timeout_s: float | None = None) -> Exit:
        """Block until it ended; TimeoutError after `timeout_s`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (ended := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.folder} still runs after {timeout_s} s")
            time.sleep(POLL_S)
        return ended

    def stop(self, *, dump: bool = False) -> None:
        """SIGTERM to all of it, SIGKILL two seconds later. `dump`: first the stacks of its Python processes."""
        self._ask(b"d" if dump else b"s")

    def kill(self) -> None:
        """SIGKILL to all of it."""
        self._ask(b"k")


class Ended:
    """An attempt that ended, or never started, and of which only its record is left."""

    def __init__(self, folder: Path, ended: Exit) -> None:
        self.folder, self._ended = folder, ended

    def poll(self) -> Exit | None:
        """What the record says."""
        return self._ended

    def waiting(self) -> str:
        """It waits for nothing."""
        return ""

    def silent(self) -> str:
        """Nobody listens for it any more."""
        return ""

    def stop(self, *, dump: bool = False) -> None:
        """Nothing is left to stop."""

    def kill(self) -> None:
        """Nothing is left to kill."""

    @classmethod
    def of(cls, folder: Path) -> Ended | None:
        """By the folder's record; None if it has none."""
        ended = recorded(folder)
        return cls(folder, ended) if ended else None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command that ran on a node said."""

    node: str
    """The node's name, as the cluster calls it."""
    code: int | None
    """Its exit code; None: it could not be run, or not within the time, and `err` says why."""
    out: str = ""
    err: str = ""


class Cluster(Protocol):
    """A place where gangs run. Its methods are called from one thread."""

    shape: Shape

    def free(self) -> tuple[int, ...]:
        """Ranks that are free on each node now; those that other sweeps hold are not."""
        ...

    def start(self, job: Job, folder: Path, nodes: tuple[int, ...]) -> Attempt | None:
        """Reserve the job's gang on those nodes (places in `free`), all of it or nothing, write its files and start it.

        `folder` exists and is empty or holds records only. None: another sweep was quicker and nothing was done.
        """
        ...

    def attach(self, folder: Path) -> Attempt | None:
        """The attempt of that folder, started by a controller that is gone; its `poll` says whether it still runs.

        None: nothing was ever started there.
        """
        ...

    def each(self, argv: Sequence[str], stdin: str, timeout_s: float) -> list[Answer]:
        """Run a command on every node, side by side, `stdin` given to each; an answer a node, in the nodes' order.

        Never raises for what goes wrong on a node. `{python}` in `argv` stands for the node's `cluster.python`.
        """
        ...

    def close(self) -> None:
        """Close what connects us to it. Attempts go on."""
        ...
