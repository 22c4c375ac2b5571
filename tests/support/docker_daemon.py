"""A real Docker daemon for tests, of its own in one folder, with an image that is made here: nothing is pulled.

The image has no system: it is what names users and has the folders onto which this machine's `/usr`, its Python and
this checkout are mounted, read-only. Namespaces, users and the image's root are real; the network is the host's, as
`cluster.docker` has it too. Needs root and Debian's docker.io.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from sweeper import clusters
from sweeper.clusters.base import Attempt, Cluster
from sweeper.engines.base import Job, Shape

ROOT = Path(__file__).resolve().parents[2]
OURS = "SWEEPER_TEST_DOCKER"
"""Variable: the folder of the daemon that `make` started, also for the processes that a test starts."""
IMAGE = "sweeper-test:1"
PYTHON = str(Path(sys.prefix, "bin", "python"))
"""The trainer's interpreter in the container: this one, at the same path."""
SYS_ADMIN = 21
"""The capability without which there are no namespaces and no mounts."""


def why_not() -> str:
    """Why there can be no Docker daemon here; empty where there can."""
    missing = [tool for tool in ("dockerd", "docker", "containerd", "runc", "docker-init") if _which(tool) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install docker.io"
    if os.geteuid() != 0:
        return "a Docker daemon of one's own needs root"
    fields = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    if not int(fields["CapEff"], 16) >> SYS_ADMIN & 1 or not os.access("/sys/fs/cgroup", os.W_OK):
        return "a Docker daemon needs to make namespaces and cgroups (a container without privileges cannot)"
    return ""


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Daemon:
    """A daemon, in its folder. What is asked of it by `docker` goes over its own socket."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def program(self) -> str:
        """`docker` of this daemon, for `cluster.docker.program`: one path, whoever runs it and in what environment."""
        return str(self.base / "docker")

    def docker(self, *words: str, stdin: bytes | None = None) -> str:
        """What the program says; fails the test if it fails."""
        done = subprocess.run([self.program, *words], input=stdin, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr.decode(errors='replace')}"
        return done.stdout.decode()

    def containers(self) -> list[dict[str, Any]]:
        """All there are, running or not, as `docker inspect` says them."""
        names = self.docker("ps", "--all", "--quiet", "--no-trunc").split()
        found: list[dict[str, Any]] = []
        for name in names:  # one of them may go meanwhile
            said = subprocess.run([self.program, "inspect", name], capture_output=True, timeout=60, check=False)
            found += json.loads(said.stdout or b"[]")
        return found

    def emptied(self, timeout_s: float = 15) -> bool:
        """Whether there is no container any more: the program that ran it removes it once its processes are gone."""
        deadline = time.monotonic() + timeout_s
        while self.containers():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def digest(self) -> str:
        """The image's, as Docker names it."""
        return self.docker("image", "inspect", "--format", "{{.Id}}", IMAGE).strip()

    def start(self) -> None:
        """Start it and make its image; it serves when this returns."""
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        program = Path(self.program)
        program.write_text(f'#!/bin/sh\nexec {_which("docker")} --host unix://{self.base}/sock "$@"\n')
        program.chmod(0o755)
        words = ["--data-root", "data", "--exec-root", "exec", "--pidfile", "pid"]
        words = [word if word.startswith("-") else str(self.base / word) for word in words]
        words += ["--host", f"unix://{self.base}/sock", "--storage-driver", "vfs"]
        words += ["--bridge", "none", "--iptables=false", "--ip6tables=false"]  # the host's network is not touched
        with (self.base / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_which("dockerd") or "dockerd", *words],
                env={**os.environ, "PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # it ends its containers by itself, not at a terminal's Ctrl+C
            )
        deadline = time.monotonic() + 60
        while subprocess.run([self.program, "version"], capture_output=True, timeout=60, check=False).returncode:
            assert self._process.poll() is None, self._said()
            assert time.monotonic() < deadline, self._said()
            time.sleep(0.1)
        self.docker("import", "-", IMAGE, stdin=_image())

    def _said(self) -> str:
        return (self.base / "log").read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """End every container, then the daemon with all that it started, and remove its folder."""
        if self._process is None:
            return
        if self._process.poll() is None:
            for container in self.containers():
                subprocess.run([self.program, "rm", "--force", container["Id"]], capture_output=True, check=False)
        started = psutil.Process(self._process.pid).children(recursive=True) if self._process.poll() is None else []
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _, left = psutil.wait_procs(started, timeout=10)
        for process in left:
            process.kill()
        for line in Path("/proc/mounts").read_text().splitlines():  # it leaves its network's namespace mounted
            if (at := line.split()[1]).startswith(f"{self.base}/"):
                subprocess.run(["umount", at], check=False)
        shutil.rmtree(self.base, ignore_errors=True)


def _image() -> bytes:
    """A tar of a root without a system. `/sbin` is a folder of its own, since Docker mounts its init there."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:

        def add(name: str, kind: bytes, mode: int = 0o755, link: str = "", text: str = "") -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.linkname, entry.size = kind, mode, link, len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))

        for folder in ("etc", "usr", "sbin", "proc", "sys", "dev", "run", "var", "root"):
            add(folder, tarfile.DIRTYPE)
        add("tmp", tarfile.DIRTYPE, 0o1777)
        for name in ("bin", "lib", "lib64"):
            add(name, tarfile.SYMTYPE, link=f"usr/{name}")
        add("etc/passwd", tarfile.REGTYPE, 0o644, text="root:x:0:0:root:/root:/bin/sh\n")
        add("etc/group", tarfile.REGTYPE, 0o644, text="root:x:0:\n")
        add("etc/in-the-image", tarfile.REGTYPE, 0o644, text="yes\n")
    return made.getvalue()


def mounts() -> list[str]:
    """What takes the place of an image's system, trainer and data; read-only."""
    places = ["/usr", sys.base_prefix, sys.prefix, str(ROOT)]
    return [f"{place}:{place}:ro" for place in dict.fromkeys(places) if not place.startswith("/usr/")]


@contextmanager
def running() -> Iterator[Daemon]:
    """A daemon, and nothing of it afterwards."""
    daemon = Daemon(_folder())
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()


def _folder() -> Path:
    """A short path: a socket's has at most 107 bytes."""
    return Path(tempfile.mkdtemp(prefix="dkr-", dir="/tmp"))


def overrides(daemon: Daemon) -> list[str]:
    """What a user types for a trial in the image."""
    listed = ",".join(f"'{mount}'" for mount in mounts())
    return [
        f"engine.image={IMAGE}",
        f"engine.python={PYTHON}",
        f"cluster.docker.program={daemon.program}",
        f"cluster.docker.mounts=[{listed}]",
    ]


class InImage:
    """A cluster whose jobs run in the image: the contract's jobs say none."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.shape: Shape = cluster.shape

    def start(self, job: Job, folder: Path, nodes: tuple[int, ...]) -> Attempt | None:
        return self._cluster.start(replace(job, image=IMAGE, python=PYTHON), folder, nodes)

    def free(self) -> tuple[int, ...]:
        return self._cluster.free()

    def attach(self, folder: Path) -> Attempt | None:
        return self._cluster.attach(folder)

    def each(self, argv: Sequence[str], stdin: str, timeout_s: float) -> Any:
        return self._cluster.each(argv, stdin, timeout_s)

    def close(self) -> None:
        self._cluster.close()


def make(**changes: Any) -> Any:
    """`cluster=local` for jobs in the image, with two CPU ranks, over a daemon that lives as long as the process that
    first asks for one."""
    if OURS not in os.environ:
        daemon, owner = Daemon(_folder()), os.getpid()
        atexit.register(lambda: daemon.stop() if os.getpid() == owner else None)
        daemon.start()
        os.environ[OURS] = str(daemon.base)
    docker: Mapping[str, Any] = {"program": Daemon(Path(os.environ[OURS])).program, "mounts": mounts()}
    group = {"kind": "local", "name": "local", "join_s": 60, "docker": docker, **changes}
    return InImage(clusters.get(group, Shape(name="here", device="cpu", nodes=1, gpus_per_node=2, gpu_memory_gib=4)))
