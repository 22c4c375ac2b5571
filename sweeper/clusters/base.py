"""What a cluster is: it starts a job as one gang, says how it ended, and leaves nothing of it behind.

Guarantees of every cluster: no process of an attempt outlives its end; an attempt outlives the controller that started
it, and another controller of the same sweep takes it up again (`attach`); a gang's ranks are its own, among all sweeps
of this cluster, from before it starts until no process of it remains; an attempt's folder, ports, temp-dir and Ray
token are its own; how it ended is written with an atomic rename before it is reported.
"""

from __future__ import annotations

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
    says why); `lost`: a process that held the gang died."""
    detail: str = ""
    ended: float = 0.0
    """Unix time."""


class Attempt(Protocol):
    """A running job. Its methods never block for longer than a moment, except `wait`."""

    folder: Path

    def poll(self) -> Exit | None:
        """How it ended, or None while any process of it remains."""
        ...

    def stop(self, *, dump: bool = False) -> None:
        """Ask it to end: SIGTERM, then SIGKILL after a few seconds. Returns at once; may be called twice.

        `dump`: first every Python process of it writes the stacks of its threads into the attempt's log.
        """
        ...

    def kill(self) -> None:
        """End it now."""
        ...


class Cluster(Protocol):
    """A place where gangs run."""

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
