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

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sweeper.clusters import leases
from sweeper.clusters.base import Attempt, Exit
from sweeper.clusters.gang import janitor
from sweeper.clusters.machine import accelerators, cores
from sweeper.engines.base import Job, Shape
from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.trial.records import RecordsError, write_text

GANG = Path(__file__).resolve().parent / "gang"
RECORD = "exit.json"
STARTED = "attempt.json"
"""What a later controller needs: {"host", "temp_dir", "ranks", "started"}."""
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
    """The environment that the guard starts with; the agent adds `job.env`. `devices`: ids of GPUs; none on a CPU."""
    env = {name: os.environ[name] for name in (*PASSED, *job.inherit) if name in os.environ}
    if devices:
        env |= {"CUDA_VISIBLE_DEVICES": ",".join(devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # nvidia-smi's order
    # Every interpreter writes the stacks of its threads when it gets SIGABRT: `stop(dump=True)`.
    return {"PYTHONFAULTHANDLER": "1", **env, janitor.MARKER: marker}


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
            self._ended = self._recorded() or self._lost()
        return self._ended

    def _recorded(self) -> Exit | None:
        try:
            return Exit(**json.loads((self.folder / RECORD).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _clean(self, den: Path) -> None:
        """The guard was killed, or never came. End what it left, off the caller's thread."""
        self._cleaner = threading.Thread(target=janitor.sweep, args=(den,), daemon=True)
        self._cleaner.start()

    def _lost(self) -> Exit:
        how = "was killed" if self._guard is None else f"ended with code {self._guard.returncode}"
        ended = Exit(None, "lost", f"the attempt's guard {how} and left no record", time.time())
        record(ended, self.folder)
        return ended

    def wait(self, timeout_s: float | None = None) -> Exit:
        """Block until it ended; TimeoutError after `timeout_s`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (ended := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.folder} still runs after {timeout_s} s")
            time.sleep(0.02)
        return ended

    def stop(self, *, dump: bool = False) -> None:
        """SIGTERM to all of it, SIGKILL two seconds later. `dump`: first the stacks of its Python processes."""
        self._ask(b"d" if dump else b"s")

    def kill(self) -> None:
        """SIGKILL to all of it."""
        self._ask(b"k")

    def _ask(self, what: bytes) -> None:
        if self.den is not None and self._ended is None:
            janitor.ask(self.den, what)

    @classmethod
    def of(cls, folder: Path) -> LocalAttempt | None:
        """The attempt of that folder, whose controller is gone. None: nothing was ever started there.

        Raises:
            SweeperError: It was started on another host, or its `attempt.json` cannot be read, so that nobody can tell
                from here whether it runs.
        """
        folder = folder.resolve()
        path = folder / STARTED
        try:
            started = json.loads(path.read_text())
            host, den, ranks = str(started["host"]), Path(started["temp_dir"]), len(started["ranks"])
        except FileNotFoundError:
            failed = cls(folder)
            return failed if (folder / RECORD).exists() and failed.poll() else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SweeperError(
                f"{path} cannot be read ({error}): whether the attempt still runs is not known"
            ) from error
        attempt = cls(folder, den=den, ranks=ranks)
        if host != socket.gethostname() and not (folder / RECORD).exists():
            raise RequestError(
                Problem(
                    f"the attempt in {folder} was started on {host}, and this is {socket.gethostname()}",
                    fix=f"resume on {host}; or, if that machine is gone, remove {path}",
                    key="cluster",
                )
            )
        return attempt


def record(ended: Exit, folder: Path) -> None:
    """Write the exit record of an attempt whose guard could not, if it can be written."""
    with contextlib.suppress(OSError):
        partial = folder / f"{RECORD}.partial"
        partial.write_text(json.dumps(asdict(ended)))
        partial.replace(folder / RECORD)


class LocalCluster:
    """This machine. `shape` comes from `machine.detect`."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        gpus = accelerators() if shape.device == "cuda" else []
        # Which ranks of the machine there are, by the names that all sweeps know them by; the shape says how many of
        # them we may hold at once. On a CPU what another sweep holds is gone from our shape already (its memory is).
        self._ids = {f"gpu-{gpu.uuid or gpu.id}": gpu.id for gpu in gpus} or {
            f"cpu-{rank}": "" for rank in range(max(cores(), shape.gpus_per_node))
        }
        self._running: list[LocalAttempt] = []
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

    @staticmethod
    def _failed(folder: Path, error: Exception) -> LocalAttempt:
        ended = Exit(None, "launch", str(error), time.time())
        record(ended, folder)
        return LocalAttempt(folder, ended=ended)

    def _launch(self, job: Job, folder: Path, taken: Mapping[str, int]) -> LocalAttempt:
        """Write the files and start the guard, which inherits the locks.

        Raises:
            OSError, RecordsError: It could not be started; nothing of it remains but files in its folder.
        """
        write_files(job.files, folder)
        (folder / RECORD).unlink(missing_ok=True)
        den = janitor.make_den()
        guard = None
        try:
            agent_job = den.path / "job.json"
            agent_job.write_text(json.dumps(self._agent_job(job, folder, den.path)))
            started = {
                "host": socket.gethostname(),
                "temp_dir": str(den.path),
                "ranks": list(taken),
                "started": time.time(),
            }
            write_text(folder / STARTED, json.dumps(started, indent=2) + "\n")
            held = [den.control, den.lock, *taken.values()]
            script = [sys.executable, "-I", "-S", str(GANG / "guard.py"), str(folder / RECORD), str(den.path)]
            agent = [sys.executable, "-I", "-S", str(GANG / "agent.py"), str(agent_job)]
            with (folder / "log.txt").open("ab") as log:
                guard = subprocess.Popen(
                    [*script, ",".join(map(str, held)), "--", *agent],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    env=environment(job, den.marker, tuple(i for i in map(self._ids.__getitem__, taken) if i)),
                    cwd=folder,
                    start_new_session=True,
                    pass_fds=held,
                )
        finally:
            den.close()
            if guard is None:
                janitor.sweep(den.path)
        return LocalAttempt(folder, den=den.path, ranks=len(taken), guard=guard)

    @staticmethod
    def _agent_job(job: Job, folder: Path, den: Path) -> dict[str, Any]:
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
            "folder": str(folder),
            "temp_dir": str(den),
            "preload": list(job.preload),
            "fork_argv": list(job.fork_argv),
            "ray": ray if job.ray else None,
        }

    def attach(self, folder: Path) -> Attempt | None:
        """The attempt of that folder; see `LocalAttempt.of`."""
        attempt = LocalAttempt.of(folder)
        if attempt is not None and attempt.poll() is None:
            self._running.append(attempt)
        return attempt
