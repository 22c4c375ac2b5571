"""A real Ray cluster of several raylets on this machine, each with an address of its own, with Ray's token auth."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from sweeper.clusters.gang import agent, janitor
from sweeper.errors import RequestError


class Raylets:
    """Started by `with`; ended with all that they started."""

    def __init__(self, nodes: int = 2, cpus: int = 2) -> None:
        self.token = secrets.token_hex(32)
        self.addresses = [f"127.0.0.{2 + rank}" for rank in range(nodes)]
        self._cpus = cpus
        self._processes: list[subprocess.Popen[bytes]] = []
        self._dens: list[janitor.Den] = []
        self.address = ""

    @property
    def env(self) -> dict[str, str]:
        """What a driver needs."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def __enter__(self) -> Raylets:
        for rank, host in enumerate(self.addresses):
            self._processes.append(self._start(rank, host))
            if rank == 0:
                self._wait()
        return self

    def _start(self, rank: int, host: str) -> subprocess.Popen[bytes]:
        den = janitor.make_den()  # a short name, which Ray's sockets need
        self._dens.append(den)
        ports = [agent.free_port(host) for _ in range(3)]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={host}"]
        command += [f"--temp-dir={den.path}", f"--num-cpus={self._cpus}", "--num-gpus=0", "--disable-usage-stats"]
        command += ["--object-store-memory=80000000", "--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--dashboard-agent-listen-port={ports[0]}"]
        if rank == 0:
            self.address = f"{host}:{ports[1]}"
            command += ["--head", f"--port={ports[1]}", f"--ray-client-server-port={ports[2]}"]
            command += ["--include-dashboard=false", "--no-monitor"]
        else:
            command += [f"--address={self.address}"]
        env = {**os.environ, **self.env, janitor.MARKER: den.marker, "RAY_enable_worker_prestart": "false"}
        env["RAY_worker_niceness"] = "0"  # else what runs below is starved on a busy machine
        with (den.path / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + 120
        while not agent.accepts(self.address):
            assert time.monotonic() < deadline, (self._dens[0].path / "log").read_text()
            time.sleep(0.1)

    def join(self, host: str) -> None:
        """One more raylet."""
        self.addresses.append(host)
        self._processes.append(self._start(len(self._processes), host))

    def connect(self) -> None:
        """Be a driver, once all raylets are there; of this cluster alone."""
        import ray

        from sweeper.clusters import ray as kind

        if connected() == self.address:
            return
        deadline = time.monotonic() + 200
        login(self.token)
        while True:
            try:
                kind.connect(self.address)
                break
            except RequestError:
                assert time.monotonic() < deadline, (self._dens[0].path / "log").read_text()
                time.sleep(0.5)
        while sum(node["Alive"] for node in ray.nodes()) != len(self.addresses):
            assert time.monotonic() < deadline, "the raylets did not find each other"
            time.sleep(0.1)

    def processes(self, rank: int) -> list[int]:
        """The pids of all that runs on a node, with those of attempts below its actors, parents first."""
        found = [psutil.Process(pid) for pid in janitor.marked(self._dens[rank].marker)]
        below = {child.pid for process in found for child in process.children(recursive=True)}
        return [self.raylet(rank), *sorted({*below, *(process.pid for process in found)} - {self.raylet(rank)})]

    def raylet(self, rank: int) -> int:
        """The pid of a node's raylet."""
        for pid in janitor.marked(self._dens[rank].marker):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet":
                return pid
        raise AssertionError(f"node {rank} has no raylet")

    def __exit__(self, *_exc: object) -> None:
        if connected() == self.address:  # Ray ends a process whose cluster is gone for a minute
            import ray

            ray.shutdown()
            for name in self.env:
                os.environ.pop(name, None)
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for den in self._dens:
            den.close()
            janitor.end(den.path)
            shutil.rmtree(den.path, ignore_errors=True)


def connected() -> str:
    """The address of the cluster that this process is a driver of, if it is one."""
    if "ray" not in sys.modules:
        return ""
    import ray

    return ray.get_runtime_context().gcs_address if ray.is_initialized() else ""


def login(token: str) -> None:
    """Leave the cluster that we are a driver of, and have the token of another one."""
    import ray
    from ray._private.authentication_test_utils import reset_auth_token_state

    ray.shutdown()
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token})
    reset_auth_token_state()  # Ray reads these once in a process, and another test may have imported it


def loopback() -> bool:
    """Whether this machine has the addresses."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.3", 0))
        except OSError:
            return False
    return True


CLUSTER = "SWEEPER_TEST_RAY"
"""Variable: where the cluster is and its token, for a process that is started by the one that started it."""


def config(address: str, **changes: Any) -> dict[str, Any]:
    """A whole `cluster` group."""
    return {
        "name": "ray",
        "kind": "ray",
        "device": "cpu",
        "nodes": 1,
        "gpus_per_node": None,
        "gpu": None,
        "gpu_memory_gib": None,
        "max_ranks": None,
        "join_s": 120,
        "python": sys.executable,
        "ray": {"address": address},
        **changes,
    }


def make() -> Any:
    """`cluster=ray` on one raylet of two ranks, which lives as long as the process that first asks for it."""
    from sweeper import clusters

    if CLUSTER not in os.environ:
        raylets = Raylets(1, 2)
        raylets.__enter__()
        owner = os.getpid()
        atexit.register(lambda: raylets.__exit__() if os.getpid() == owner else None)
        raylets.connect()
        os.environ[CLUSTER] = f"{raylets.address} {raylets.token}"
    address, token = os.environ[CLUSTER].split()
    if connected() != address:
        login(token)
    found = config(address)
    return clusters.get(found, clusters.shape(found))
