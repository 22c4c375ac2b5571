"""Starts what an attempt consists of, side by side, and reports how the trainer ended.

    python -I -S agent.py JOB.json        (under guard.py, which ends whatever this leaves)

Starts at the same moment: the attempt's own Ray cluster (if the job wants one), the fork server (if the job preloads
modules) and the trainer: while the trainer still imports, Ray comes up, and `ray.init` waits for it. Guarantees: the
Ray cluster is reachable only with a random token that exists in the environment of the attempt's processes alone; its
ports are its own, and a port lost to somebody else between choice and use is replaced by another (the trainer, which
can have done nothing without Ray, is started anew). Prints one line of JSON: {"code", "reason", "detail"}.

Only the standard library: importing Ray here would cost what the start-up is to save.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RAY_TRIES = 3
RAY_READY_S = 120.0
"""For a head to accept connections. Takes 1-3 s on an idle machine."""
POLL_S = 0.02
PORTS = range(20_000, 32_000)
"""Below Linux's ephemeral ports (32768 up), so that no outgoing connection takes one of ours."""
PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> Callable[[], None]:
    """What a child calls before exec so that the kernel kills it with its parent, of which `parent` is the pid."""
    libc = ctypes.CDLL(None)

    def before_exec() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return before_exec


def free_port(host: str) -> int:
    """A port that nobody listens on now."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port


def accepts(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log; empty when there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


class LaunchError(Exception):
    """The attempt could not be started; the message says why."""


class Agent:
    """One attempt on one node; see the module. `job` is what clusters/local.py writes."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.folder, self.temp_dir = Path(job["folder"]), Path(job["temp_dir"])
        self.python: str = job["python"]
        self.ray: dict[str, Any] | None = job["ray"]
        # What the controller let through (an allow-list and the inherited secrets) is in our environment already.
        self.env: dict[str, str] = {**os.environ, **job["env"]}
        if self.ray:
            self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            # Workers started in advance would not come from the fork server, and nobody waits for them.
            self.env.setdefault("RAY_enable_worker_prestart", "false")
            self.env.setdefault("RAY_prestart_worker_first_driver", "false")

    def spawn(self, command: list[str], log: str, env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start a process of the attempt, in a session of its own."""
        with (self.folder / log).open("ab", buffering=0) as out:
            try:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=env,
                    cwd=self.folder,
                    start_new_session=True,
                    preexec_fn=die_with_parent(os.getpid()),  # noqa: PLW1509  (there is no other thread)
                )
            except OSError as error:
                raise LaunchError(f"cannot start {command[0]}: {error.strerror}") from error

    def start_fork_server(self) -> str | None:
        """Start it if the job preloads modules. Returns the executable that stands for the interpreter."""
        if not self.job["preload"]:
            return None
        path = self.temp_dir / "fork"
        self.spawn(
            [self.python, "-u", str(HERE / "forkserver.py"), str(path), *self.job["preload"]], "log.txt", self.env
        )
        # One word, because Ray pastes it into a shell command and Hydra into an override.
        client = self.temp_dir / "python"
        command = shlex.join([self.python, "-I", "-S", str(HERE / "forkclient.py"), str(path), self.python])
        client.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        client.chmod(0o700)
        if not os.access(client, os.X_OK):  # a temp-dir mounted noexec
            self.say(f"{self.temp_dir} does not allow programs; going on without the fork server")
            return None
        return str(client)

    def say(self, line: str) -> None:
        """A line of ours in the attempt's log."""
        with (self.folder / "log.txt").open("a") as log:
            log.write(f"sweeper: {line}\n")

    def start_ray(self) -> tuple[subprocess.Popen[bytes], int]:
        """Start the attempt's Ray head. Returns it and the port of its control store."""
        assert self.ray is not None
        host = self.ray["host"]
        ports = [free_port(host) for _ in range(3)]
        command = [self.python, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += [f"--node-ip-address={host}", f"--port={ports[0]}", f"--temp-dir={self.temp_dir}"]
        command += [f"--num-cpus={self.ray['cpus']}", f"--num-gpus={self.ray['gpus']}"]
        command += [f"--object-store-memory={self.ray['object_store_bytes']}"]
        # Ray's defaults for these are fixed numbers, on which two heads of one machine would meet.
        command += [f"--ray-client-server-port={ports[1]}", f"--dashboard-agent-listen-port={ports[2]}"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        command += ["--include-dashboard=false", "--no-monitor", "--disable-usage-stats"]
        return self.spawn(command, "ray.log", self.env), ports[0]

    def start_trainer(self, client: str | None, ray_port: int | None) -> subprocess.Popen[bytes]:
        """Start the trainer."""
        command = list(self.job["argv"])
        if client:
            command += [a.replace("{python}", client) for a in self.job["fork_argv"]]
            if command[0] == self.python:
                command[0] = client
        env = self.env
        if self.ray and ray_port:
            env = {**env, "RAY_ADDRESS": f"{self.ray['host']}:{ray_port}"}
        return self.spawn(command, "log.txt", env)

    def run(self) -> dict[str, Any]:
        """From the start to the trainer's end; what to report."""
        client = self.start_fork_server()
        if not self.ray:
            return self.follow(self.start_trainer(client, None), None)
        for _ in range(RAY_TRIES):
            head, port = self.start_ray()
            trainer = self.start_trainer(client, port)
            if self.ray_is_up(head, port, trainer):
                return self.follow(trainer, head)
            for process in (trainer, head):
                process.kill()
                process.wait()
        raise LaunchError(f"Ray did not start on {self.ray['host']}:\n{tail(self.folder / 'ray.log')}")

    def ray_is_up(self, head: subprocess.Popen[bytes], port: int, trainer: subprocess.Popen[bytes]) -> bool:
        """Wait until Ray serves (True), or died or takes too long (False). True as well once the trainer ended."""
        assert self.ray is not None
        deadline = time.monotonic() + RAY_READY_S
        while time.monotonic() < deadline:
            if head.poll() is not None:
                return False
            if trainer.poll() is not None or accepts(self.ray["host"], port):
                return True
            time.sleep(POLL_S)
        return False

    def follow(self, trainer: subprocess.Popen[bytes], head: subprocess.Popen[bytes] | None) -> dict[str, Any]:
        """Wait for the trainer to end, or for Ray to be lost."""
        while (code := trainer.poll()) is None:
            if head is not None and head.poll() is not None:
                # A trainer whose Ray died hangs or fails with noise: the loss is the cause worth reporting.
                detail = (
                    f"the attempt's Ray cluster ended with code {head.returncode}:\n{tail(self.folder / 'ray.log')}"
                )
                return {"code": None, "reason": "lost", "detail": detail}
            # Blocks until any child changes state, without reaping it.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            self.reap_others(trainer, head)
        return {"code": code, "reason": "exit", "detail": ""}

    @staticmethod
    def reap_others(trainer: subprocess.Popen[bytes], head: subprocess.Popen[bytes] | None) -> None:
        """Reap a child that is neither (a fork server that gave up), so that waitid blocks again."""
        with contextlib.suppress(ChildProcessError):
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if ended and ended.si_pid not in {trainer.pid, head.pid if head else 0}:
                os.waitpid(ended.si_pid, 0)


def main() -> None:
    """Run the job and report."""
    # The guard sends SIGTERM to everybody. If we died of it, the kernel would kill the trainer with us, but it is to
    # have its grace period: we end when it does. (A handler, because an ignored signal would stay so in the trainer.)
    signal.signal(signal.SIGTERM, lambda *_: None)
    job = json.loads(Path(sys.argv[1]).read_text())
    try:
        report = Agent(job).run()
    except (LaunchError, OSError) as error:
        report = {"code": None, "reason": "launch", "detail": str(error)}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
