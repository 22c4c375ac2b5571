"""`cluster=ssh` over the SSH servers of sshd.py, for a test and for the processes that it starts."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import sshd

from sweeper import clusters

SERVERS = "SWEEPER_TEST_SSHD"
"""Variable: where the servers are, for a process that is started by the one that started them."""


def config(section: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A whole `cluster` group."""
    return {
        "name": "hosts",
        "kind": "ssh",
        "device": "cpu",
        "nodes": None,
        "gpus_per_node": 2,
        "gpu": None,
        "gpu_memory_gib": 4,
        "max_ranks": None,
        "join_s": 120,
        "python": sys.executable,
        "ssh": section,
        **changes,
    }


def servers() -> dict[str, Any]:
    """`cluster.ssh` of servers that live as long as the process that first asks for them."""
    if SERVERS not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="sshd-"))
        stack = contextlib.ExitStack()
        running = stack.enter_context(sshd.serving(folder))
        owner = os.getpid()

        def end() -> None:
            if os.getpid() == owner:
                stack.close()
                shutil.rmtree(folder, ignore_errors=True)

        atexit.register(end)
        os.environ[SERVERS] = json.dumps(running.section())
    section: dict[str, Any] = json.loads(os.environ[SERVERS])
    return section


def make(**changes: Any) -> Any:
    """The cluster of two hosts with two CPU ranks each."""
    group = config(servers(), **changes)
    return clusters.get(group, clusters.shape(group))
