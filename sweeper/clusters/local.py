"""One machine: attempts run as process trees of their own, each under a guard (gang/guard.py).

Guarantees: starting costs the controller a few milliseconds and never blocks on the trainer; an attempt whose
controller dies ends within seconds; GPUs are given out by exact id and are free again only when no process of their
attempt is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeper.clusters.base import Attempt, Exit
from sweeper.clusters.gang import janitor
from sweeper.clusters.machine import accelerators
from sweeper.engines.base import Gang, Job, Shape
from sweeper.trial.records import RecordsError, write_text

GANG = Path(__file__).resolve().parent / "gang"
RECORD = "exit.json"
HOST = "127.0.0.2"
"""Where an attempt's Ray listens. Ray replaces 127.0.0.1 by the machine's address, which other hosts reach and
which a change of network takes away; other loopback addresses are kept."""

PASSED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "TERM", "TMPDIR",
    "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME",
    "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES", "VIRTUAL_ENV", "CONDA_PREFIX",
)  # fmt: skip
"""What an attempt sees of the controller's environment. A list of what may pass, because what must not (tokens, RAY_*
of an outer cluster, the state of a launcher) cannot be listed."""


def environment(job: Job, marker: str, devices: tuple[str, ...]) -> dict[str, str]:
    """The environment that the guard starts with; the agent adds `job.env`."""
    env = {name: os.environ[name] for name in (*PASSED, *job.inherit) if name in os.environ}
    if devices:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return {**env, janitor.MARKER: marker}


def write_files(files: Mapping[str, str], folder: Path) -> None:
    """Write the job's files whole and without secrets; a script can be run by hand.

    Raises:
        RecordsError, OSError: One of them could not be written.
    """
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text, mode=0o755 if path.suffix == ".sh" else 0o644)


class LocalAttempt:
    """A running job on this machine."""

    def __init__(self, folder: Path, devices: tuple[str, ...]) -> None:
        self.folder = folder
        self.devices = devices
        self.ended: Exit | None = None
        self.guard: subprocess.Popen[bytes] | None = None
        self.den: Path | None = None
        self._cleaner: threading.Thread | None = None

    def launch(self, job: Job) -> None:
        """Start the guard, or end as a failed launch."""
        try:
            write_files(job.files, self.folder)
            (self.folder / RECORD).unlink(missing_ok=True)
            den = janitor.make_den()
        except (OSError, RecordsError) as error:
            self.ended = Exit(None, "launch", str(error), time.time())
            return
        self.den = den.path
        try:
            agent_job = den.path / "job.json"
            agent_job.write_text(json.dumps(self.agent_job(job)))
            script = [sys.executable, "-I", "-S", str(GANG / "guard.py"), str(self.folder / RECORD), str(den.path)]
            agent = [sys.executable, "-I", "-S", str(GANG / "agent.py"), str(agent_job)]
            with (self.folder / "log.txt").open("ab") as log:
                self.guard = subprocess.Popen(
                    [*script, "--", *agent],
                    stdin=subprocess.PIPE,  # the lifeline: close-on-exec, so that no other child keeps it open
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    env=environment(job, den.marker, self.devices),
                    cwd=self.folder,
                    start_new_session=True,
                    pass_fds=[den.lock],
                )
        except OSError as error:
            self.ended = Exit(None, "launch", str(error), time.time())
        finally:
            os.close(den.lock)
            if self.guard is None:
                janitor.sweep(den.path)

    def agent_job(self, job: Job) -> dict[str, Any]:
        """What gang/agent.py reads. It holds no secret and lives in the attempt's temp-dir."""
        ray = {
            "host": HOST,
            "cpus": job.ray_cpus_per_node,
            "gpus": job.gang.gpus_per_node,
            "object_store_bytes": job.object_store_bytes,
        }
        return {
            "argv": list(job.argv),
            "env": dict(job.env),
            "python": job.python,
            "folder": str(self.folder),
            "temp_dir": str(self.den),
            "preload": list(job.preload),
            "fork_argv": list(job.fork_argv),
            "ray": ray if job.ray else None,
        }

    def poll(self) -> Exit | None:
        """How it ended, or None while any process of it remains."""
        if self.ended is None and self.guard is not None and self.guard.poll() is not None:
            try:
                self.ended = Exit(**json.loads((self.folder / RECORD).read_text()))
            except (OSError, ValueError, TypeError):
                self._clean()
        return self.ended

    def _clean(self) -> None:
        """The guard left no record: it was killed, or could not write. Find its processes, off the caller's thread."""
        if self._cleaner is None:
            self._cleaner = threading.Thread(target=janitor.sweep, args=(self.den,), daemon=True)
            self._cleaner.start()
        elif not self._cleaner.is_alive():
            assert self.guard is not None
            detail = f"the guard ended with code {self.guard.returncode} and no record"
            self.ended = Exit(None, "lost", detail, time.time())
            record = {"code": None, "reason": "lost", "detail": detail, "ended": self.ended.ended}
            with contextlib.suppress(OSError):
                partial = self.folder / f"{RECORD}.partial"
                partial.write_text(json.dumps(record))
                partial.replace(self.folder / RECORD)

    def wait(self, timeout_s: float | None = None) -> Exit:
        """Block until it ended; TimeoutError after `timeout_s`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (ended := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.folder} still runs after {timeout_s} s")
            time.sleep(0.02)
        return ended

    def stop(self) -> None:
        """SIGTERM to all of it, SIGKILL two seconds later."""
        self._ask(b"s")

    def kill(self) -> None:
        """SIGKILL to all of it."""
        self._ask(b"k")

    def _ask(self, what: bytes) -> None:
        if self.guard is not None and self.guard.stdin is not None:
            with contextlib.suppress(OSError):  # it ended meanwhile
                os.write(self.guard.stdin.fileno(), what)


class LocalCluster:
    """This machine. `shape` comes from `machine.detect`."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        ids = [gpu.id for gpu in accelerators()] if shape.device == "cuda" else []
        self._devices = ids[: shape.gpus_per_node]
        self._running: list[LocalAttempt] = []
        # Attempts whose guard and controller were both killed (the machine's memory ran out) end here.
        threading.Thread(target=janitor.sweep, daemon=True).start()

    def fits(self, gang: Gang, running: list[Gang]) -> bool:
        """Whether its ranks are free."""
        return gang.nodes <= 1 and gang.gpus + sum(g.gpus for g in running) <= self.shape.gpus

    def start(self, job: Job, folder: Path) -> Attempt:
        """Start an attempt. ValueError if its GPUs are not free: ask `fits` first."""
        attempt = LocalAttempt(folder.resolve(), self._take(job.gang.gpus))
        attempt.launch(job)
        self._running.append(attempt)
        return attempt

    def _take(self, ranks: int) -> tuple[str, ...]:
        """Ids of free GPUs; none on a CPU."""
        if self.shape.device != "cuda":
            return ()
        self._running = [a for a in self._running if a.poll() is None]
        taken = {device for attempt in self._running for device in attempt.devices}
        free = [device for device in self._devices if device not in taken]
        if len(free) < ranks:
            raise ValueError(f"{ranks} GPUs were asked for, {len(free)} are free")
        return tuple(free[:ranks])
