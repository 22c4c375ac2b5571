"""Attempts in containers on this machine: `cluster=local` with an `engine.image`.

Guarantees: those of `hosts`, for the one host that is here; ranks are leased among containers and attempts without one,
because both lease them in the same place.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from sweeper.clusters import docker, local
from sweeper.clusters.base import Answer, Attempt
from sweeper.clusters.gang import devices
from sweeper.clusters.hosts import Hosts, HostsAttempt, HostsCluster
from sweeper.engines.base import Shape
from sweeper.errors import Problem

KIND = "docker"
"""In attempt.json."""


class Here:
    """This machine as a host that is reached: see `hosts.Reach`."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = (socket.gethostname(),)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="here")

    def submit(
        self, commands: Mapping[int, Sequence[str]], stdin: Mapping[int, str], timeout_s: float
    ) -> Future[dict[int, Answer]]:
        """Run it."""

        def run() -> dict[int, Answer]:
            return {p: local.run_here(self.names[p], argv, stdin.get(p, ""), timeout_s) for p, argv in commands.items()}

        try:
            return self._threads.submit(run)
        except RuntimeError:  # closed
            gone: Future[dict[int, Answer]] = Future()
            gone.set_result({p: Answer(self.names[p], None, err="closed") for p in commands})
            return gone

    def close(self) -> None:
        """Nothing connects us."""
        self._threads.shutdown(wait=False)


def shape(config: Mapping[str, Any]) -> Shape:
    """This machine as it is now."""
    return local.shape(config)


def problems(config: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with `cluster.docker`."""
    return docker.problems(config.get("docker"))


def open(config: Mapping[str, Any], shape: Shape) -> HostsCluster:
    """This machine, for attempts in containers."""
    ids = list(devices.ranks(shape.device, shape.gpus_per_node))
    hosts = Hosts(Here(), python=sys.executable)
    hosts.ids = [ids]
    return HostsCluster(
        shape,
        hosts,
        [local.HOST],
        limits=[shape.gpus_per_node],
        join_s=float(config["join_s"]),
        kind=KIND,
        started={"host": socket.gethostname()},
        containers=config.get("docker"),
        users=[(os.getuid(), os.getgid())],
    )


def attach(folder: Path, started: Mapping[str, Any]) -> Attempt | None:
    """The attempt of that folder. RequestError if it was started on another machine."""
    local.started_here(folder, str(started.get("host", "")))
    return HostsAttempt(folder, _attached(), [0], int(started.get("ranks", 0)))


@cache
def _attached() -> Hosts:
    """For attempts that are attached without a cluster: all of them by one question a second."""
    return Hosts(Here(), python=sys.executable)
