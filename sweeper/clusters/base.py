"""What a cluster is: it starts a job as one gang, says how it ended, and leaves nothing of it behind.

Guarantees of every cluster: no process of an attempt outlives its end or the controller's death; an attempt's folder,
ports, temp-dir and Ray token are its own; how it ended is written with an atomic rename before it is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sweeper.engines.base import Gang, Job, Shape


@dataclass(frozen=True, slots=True)
class Exit:
    """How an attempt ended; reported only when no process of it remains."""

    code: int | None
    """The trainer's exit code (negative: the signal that killed it); None when it never started or was not reaped."""
    reason: str
    """`exit`: the trainer ended by itself; `stopped`: we were asked to; `controller-gone`: the lifeline broke;
    `launch`: it could not be started (the detail says why); `lost`: a process that held the gang died."""
    detail: str = ""
    ended: float = 0.0
    """Unix time."""


class Attempt(Protocol):
    """A running job. Its methods never block for longer than a moment, except `wait`."""

    folder: Path

    def poll(self) -> Exit | None:
        """How it ended, or None while any process of it remains."""
        ...

    def stop(self) -> None:
        """Ask it to end: SIGTERM, then SIGKILL after a few seconds. Returns at once; may be called twice."""
        ...

    def kill(self) -> None:
        """End it now."""
        ...


class Cluster(Protocol):
    """A place where gangs run."""

    shape: Shape

    def fits(self, gang: Gang, running: list[Gang]) -> bool:
        """Whether this gang can be started beside those that run."""
        ...

    def start(self, job: Job, folder: Path) -> Attempt:
        """Write the job's files, reserve its gang and start it. `folder` exists and is empty or holds records only."""
        ...
