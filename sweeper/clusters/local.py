"""One machine: attempts run as process trees of their own, each under a guard (gang/guard.py).

Guarantees: starting costs the controller a few milliseconds and never blocks on the trainer; an attempt goes on when
its controller dies or its terminal is closed, and any later controller of this user on this machine can take it up;
ranks are given out by exact id among all sweeps of the machine (leases.py) and are free again only when no process of
their attempt is left.

Why a controller may be killed at any instant. `attempt.json`, which says where the attempt's temp-dir is, is written
before its guard is started, and the temp-dir is locked before that, by a descriptor that the guard inherits. So a
folder without that file was never started; with it, the lock is held exactly while the guard lives or is being
started; and a lock that is free with no exit record means that no guard will ever come: the attempt is lost, nothing
of it remains once the janitor has looked, and another may be started.

What ends attempts all the same is a system that kills all of a user's processes at logout (systemd's
KillUserProcesses=yes: `loginctl enable-linger`) or at the end of a batch job.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sweeper import clusters
from sweeper.clusters import STARTED, gangs, machine
from sweeper.clusters.base import RECORD, Answer, Attempt, Cluster, Exit, Started, recorded
from sweeper.clusters.gang import devices, janitor, leases, node
from sweeper.clusters.gangs import record, write_files
from sweeper.engines.base import Job, Shape
from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.trial.records import RecordsError

if TYPE_CHECKING:
    from sweeper.clusters.hosts import HostsAttempt, HostsCluster

HOST = "127.0.0.2"
"""Where an attempt's Ray listens. Ray replaces 127.0.0.1 by the machine's address, which other hosts reach and
which a change of network takes away; other loopback addresses are kept."""


class LocalAttempt(Started):
    """A job on this machine: started here, or by a controller that is gone."""

    def __init__(
        self,
        folder: Path,
        *,
        den: Path | None = None,
        ranks: int = 0,
        guard: subprocess.Popen[bytes] | None = None,
        ended: Exit | None = None,
    ) -> None:
        """`guard`: only if it is our child. `ended`: if it never started."""
        self.folder, self.den, self.ranks = folder, den, ranks
        self._guard, self._ended = guard, ended
        self._cleaner: threading.Thread | None = None

    def poll(self) -> Exit | None:
        """How it ended, or None while any process of it remains."""
        if self._ended is None and not (self._guard is not None and self._guard.poll() is None):
            if self._cleaner is not None and self._cleaner.is_alive():
                return None
            if self.den is not None and (self.den / "lock").exists():
                if not janitor.guarded(self.den):
                    self._clean(self.den)
                return None
            self._ended = recorded(self.folder) or self._lost()
        return self._ended

    def _clean(self, den: Path) -> None:
        """The guard was killed, or never came. End what it left, off the caller's thread."""
        self._cleaner = threading.Thread(target=janitor.sweep, args=(den,), daemon=True)
        self._cleaner.start()

    def _lost(self) -> Exit:
        how = "was killed" if self._guard is None else f"ended with code {self._guard.returncode}"
        ended = Exit(None, "lost", f"the attempt's guard {how} and left no record", time.time())
        record(ended, self.folder)
        return ended

    def _ask(self, what: bytes) -> None:
        if self.den is not None and self._ended is None:
            janitor.ask(self.den, what)

    @classmethod
    def of(cls, folder: Path, started: Mapping[str, Any]) -> LocalAttempt:
        """The attempt of that folder, whose controller is gone. `started` is its `attempt.json`.

        Raises:
            SweeperError: It was started on another host, or `started` is not what we wrote, so that nobody can tell
                from here whether it runs.
        """
        path = folder / STARTED
        try:
            host, den, ranks = str(started["host"]), Path(started["temp_dir"]), len(started["ranks"])
        except (ValueError, KeyError, TypeError) as error:
            raise SweeperError(
                f"{path} cannot be read ({error}): whether the attempt still runs is not known"
            ) from error
        started_here(folder, host)
        return cls(folder, den=den, ranks=ranks)


def started_here(folder: Path, host: str) -> None:
    """RequestError if it was started on another host and has not ended."""
    if host != socket.gethostname() and not (folder / RECORD).exists():
        raise RequestError(
            Problem(
                f"the attempt in {folder} was started on {host}, and this is {socket.gethostname()}",
                fix=f"resume on {host}; or, if that machine is gone, remove {folder / STARTED}",
                key="cluster",
            )
        )


class LocalCluster:
    """This machine. `shape` comes from `machine.detect`."""

    def __init__(self, shape: Shape, config: Mapping[str, Any] | None = None) -> None:
        """`config`: the `cluster` group, of which containers need `docker` and `join_s`."""
        self.shape, self._config = shape, {"join_s": 300, **(config or {})}
        self._contained: HostsCluster | None = None
        # Which ranks of the machine there are; the shape says how many of them we may hold at once. On a CPU what
        # another sweep holds is gone from our shape already (its memory is).
        self._ids = devices.ranks(shape.device, shape.gpus_per_node)
        self._running: list[LocalAttempt | HostsAttempt] = []
        # Attempts whose guard was killed, of whatever controller, end here.
        threading.Thread(target=janitor.sweep, daemon=True).start()

    def free(self) -> tuple[int, ...]:
        """Ranks that are free now.

        Raises:
            SweeperError: The locks of the machine's ranks cannot be used.
        """
        self._running = [attempt for attempt in self._running if attempt.poll() is None]
        allowed = self.shape.gpus_per_node - sum(attempt.ranks for attempt in self._running)
        try:
            return (max(0, min(allowed, len(leases.free(list(self._ids))))),)
        except OSError as error:
            raise SweeperError(f"which ranks of this machine are free cannot be found out: {error}") from error

    def start(self, job: Job, folder: Path, nodes: tuple[int, ...]) -> Attempt | None:
        """Start an attempt, or None if its ranks are not free any more. `nodes` can only be (0,)."""
        if nodes != (0,) or job.gang.nodes != 1:
            raise ValueError(f"one machine is one node, not {nodes} for a gang of {job.gang.nodes}")
        folder = folder.resolve()
        if self.free()[0] < job.gang.gpus:
            return None
        if job.image:
            return self._start_contained(job, folder)
        try:
            taken = leases.take(list(self._ids), job.gang.gpus, str(folder))
        except OSError as error:
            return self._failed(folder, error)
        if taken is None:
            return None
        try:
            attempt = self._launch(job, folder, taken)
        except (OSError, RecordsError) as error:
            return self._failed(folder, error)
        finally:
            for lock in taken.values():
                os.close(lock)
        self._running.append(attempt)
        return attempt

    def _start_contained(self, job: Job, folder: Path) -> Attempt | None:
        from sweeper.clusters import here
        from sweeper.clusters.hosts import HostsAttempt

        self._contained = self._contained or here.open(self._config, self.shape)
        attempt = self._contained.start(job, folder, (0,))
        if isinstance(attempt, HostsAttempt):
            self._running.append(attempt)
        return attempt

    @staticmethod
    def _failed(folder: Path, error: Exception) -> LocalAttempt:
        return LocalAttempt(folder, ended=gangs.not_launched(folder, str(error)))

    def _launch(self, job: Job, folder: Path, taken: Mapping[str, int]) -> LocalAttempt:
        """Write the files and start the guard, which inherits the locks.

        Raises:
            OSError, RecordsError: It could not be started; nothing of it remains but files in its folder.
        """
        write_files(job.files, folder)
        (folder / RECORD).unlink(missing_ok=True)
        (folder / node.GANG).mkdir(exist_ok=True)
        here = [gangs.Node(socket.gethostname(), HOST)]
        node.write_json(
            folder / node.GANG / "gang.json",
            gangs.describe(job, here, shape=self.shape, leases=True, join_s=0),
        )
        dens: list[Path] = []

        def tell(den: Path) -> None:
            gangs.started(folder, "local", host=socket.gethostname(), temp_dir=str(den), ranks=list(taken))
            dens.append(den)

        guard = node.start(
            folder, 0, inherit=job.inherit, ids=self._ids, taken=taken, record=folder / RECORD, tell=tell
        )
        return LocalAttempt(folder, den=dens[0], ranks=len(taken), guard=guard)

    def attach(self, folder: Path) -> Attempt | None:
        """The attempt of that folder; see `LocalAttempt.of`."""
        attempt = clusters.attach(folder)
        if attempt is not None and attempt.poll() is None and hasattr(attempt, "ranks"):
            self._running.append(cast("LocalAttempt | HostsAttempt", attempt))
        return attempt

    def each(self, argv: Sequence[str], stdin: str, timeout_s: float) -> list[Answer]:
        """Run a command here."""
        command = [sys.executable if word == "{python}" else word for word in argv]
        return [run_here(socket.gethostname(), command, stdin, timeout_s)]

    def close(self) -> None:
        """Nothing connects us but what looks after containers."""
        if self._contained is not None:
            self._contained.close()


def run_here(name: str, command: Sequence[str], stdin: str, timeout_s: float) -> Answer:
    """Run a command on this machine and answer in that node's name; all of it is ended after `timeout_s`."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Answer(name, None, err=f"cannot start {command[0]}: {error.strerror}")
    try:
        out, err = process.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return Answer(name, None, err=f"no answer within {timeout_s:g} s")
    return Answer(name, process.returncode, out, err)


def shape(config: Mapping[str, Any]) -> Shape:
    """This machine as it is now."""
    return machine.detect(config["name"], config["device"], config["max_ranks"])


def problems(config: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with `cluster.docker`; the schema checks the rest."""
    from sweeper.clusters import docker

    return docker.problems(config.get("docker"))


def open(config: Mapping[str, Any], shape: Shape) -> Cluster:
    """This machine, to run on."""
    return LocalCluster(shape, config)


def attach(folder: Path, started: Mapping[str, Any]) -> Attempt | None:
    """See `LocalAttempt.of`."""
    return LocalAttempt.of(folder, started)
