"""A real Slurm on this machine for tests: munge, slurmctld and a slurmd a node, on loopback addresses and free ports.

Needs root (fake GPUs are device files) and Debian's slurm-wlm and munge. Nothing of the system's own Slurm or munge is
touched; everything is in one folder and ended by pid.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from sweeper import clusters

ROOT = Path(__file__).parents[2]
OURS = "SWEEPER_TEST_SLURM"
"""Variable: the slurm.conf of the one that `make` started, also for the processes that a test starts."""

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
PARTITIONS = """
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=small Nodes=node1 MaxTime=10 MaxNodes=1 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
PartitionName=spare Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL
"""
GRACE_S = 15
GRACE = f"PartitionName=patient Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={GRACE_S}\n"
"""For `Slurm(more=...)`: a partition from which a job is taken back with notice."""


def why_not() -> str:
    """Why there can be no Slurm here; empty where there can."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [tool for tool in NEEDED if shutil.which(tool, path=path) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "the fixture's fake GPUs need root"


def free_ports(count: int) -> list[int]:
    """Ports next to each other that nobody listens on now, below the ephemeral ones."""
    for first in range(20_000 + os.getpid() % 8_000, 32_000 - count, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for port, probe in enumerate(sockets, first):
                probe.bind(("0.0.0.0", port))
        except OSError:
            continue
        else:
            return list(range(first, first + count))
        finally:
            for probe in sockets:
                probe.close()
    raise RuntimeError("no free ports")


class Slurm:
    """A running cluster of nodes node1, node2, ..., at 127.0.0.2, 127.0.0.3, ..."""

    def __init__(
        self, nodes: int = 2, gpus: int = 8, cpus: int = 8, *, track: str = "linuxproc", more: str = ""
    ) -> None:
        """`track`: who gets a signal: `linuxproc` all processes of a step, `pgid` its tasks alone, as with `cgroup` (in
        which two clusters on this machine would meet). `more`: lines of slurm.conf."""
        self.nodes, self.gpus, self.cpus = nodes, gpus, cpus
        self.track, self.more = track, more
        self.base = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.base.chmod(0o755)
        self.conf = self.base / "slurm.conf"
        self.ports = free_ports(nodes + 1)

    def run(self, *command: str) -> str:
        """A command's output; fails the test if the command fails."""
        done = subprocess.run(command, env=self.env(), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def env(self) -> dict[str, str]:
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        return {**os.environ, "PATH": path, "SLURM_CONF": str(self.conf)}

    def start(self) -> None:
        """Start all of it; returns when every node is idle."""
        for name in ("state", "log", "run", "munge", "munge-run", "gpu", *self._spools()):
            (self.base / name).mkdir(mode=0o755)
        (self.base / "munge").chmod(0o700)
        key = self.base / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        for gpu in range(self.gpus):
            os.mknod(self.base / "gpu" / f"nvidia{gpu}", 0o666 | 0o020000, os.makedev(1, 3))
        self._write_conf()
        munge = ["--force", f"--key-file={key}", f"--socket={self.base}/munge-run/munge.sock", "--num-threads=2"]
        munge += [f"--pid-file={self.base}/munge/munged.pid", f"--log-file={self.base}/munge/munged.log"]
        self.run("munged", *munge, f"--seed-file={self.base}/munge/munged.seed")
        self.run("slurmctld", "-f", str(self.conf))
        for node in range(1, self.nodes + 1):
            self.start_node(node)
        self.wait(lambda: self.idle() == self.nodes, 60)

    def _spools(self) -> list[str]:
        return [f"spool.node{node}" for node in range(1, self.nodes + 1)]

    def _write_conf(self) -> None:
        base, first = self.base, self.ports[1]
        nodes, last = f"node[1-{self.nodes}]", self.ports[-1]
        self.conf.write_text(f"""
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge-run/munge.sock,cred_expire=5
CredType=cred/munge
SlurmctldPort={self.ports[0]}
SlurmdPort={first}
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool.%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd.%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd.%n.log
ProctrackType=proctrack/{self.track}
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
GresTypes=gpu
PropagateResourceLimits=NONE
CommunicationParameters=NoCtldInAddrAny
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=6
SlurmctldTimeout=10
KillWait=2
MinJobAge=300
InactiveLimit=0
NodeName={nodes} NodeHostname=localhost NodeAddr=127.0.0.[2-{self.nodes + 1}] Port={first}-{last} CPUs={self.cpus} \
RealMemory=16000 Gres=gpu:{self.gpus} State=UNKNOWN
{PARTITIONS}{self.more}""")
        gpus = f"{base}/gpu/nvidia[0-{self.gpus - 1}]"
        (base / "gres.conf").write_text(f"AutoDetect=off\nNodeName={nodes} Name=gpu File={gpus}\n")

    def start_node(self, node: int) -> None:
        """Start the daemon of a node."""
        self.run("slurmd", "-f", str(self.conf), "-N", f"node{node}")

    def idle(self) -> int:
        """How many nodes are idle."""
        answer = subprocess.run(
            ["sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D"],
            env=self.env(), capture_output=True, text=True, timeout=30, check=False,
        ).stdout  # fmt: skip
        return sum(int(line) for line in answer.split())

    def wait(self, what: Callable[[], object], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not what():
            if time.monotonic() > deadline:
                logs = "\n".join(p.read_text(errors="replace")[-2000:] for p in sorted((self.base / "log").iterdir()))
                raise AssertionError(f"it did not happen within {timeout_s} s; Slurm's logs:\n{logs}")
            time.sleep(0.1)

    def jobs(self, states: str = "all") -> list[tuple[str, str, str]]:
        """(number, state, name) of every job that Slurm remembers."""
        answer = self.run("squeue", "-h", f"--states={states}", "-o", "%i|%T|%j")
        return [tuple(line.split("|", 2)) for line in answer.splitlines()]  # type: ignore[misc]

    def kill_node(self, node: int) -> None:
        """As if the node had lost its power: its daemon and everything that runs on it is gone at once."""
        sockets = f"{self.base}/spool.node{node}/"  # other clusters on this machine have nodes of that name, too
        steps = [p for p in psutil.process_iter() if _name(p) == "slurmstepd" and _listens_below(p, sockets)]
        theirs = [child for step in steps for child in _children(step)]
        daemon = self._pid(f"slurmd.node{node}.pid")
        for pid in [*([daemon] if daemon else []), *(p.pid for p in steps), *(p.pid for p in theirs)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _pid(self, name: str) -> int | None:
        for folder in ("run", "munge"):
            path = self.base / folder / name
            if path.exists() and path.read_text().strip():
                return int(path.read_text())
        return None

    def stop(self) -> None:
        """End every job, then every daemon, by pid."""
        env = self.env()
        for full in ([], ["--signal=KILL"]):
            subprocess.run(["scancel", "--user=root", *full], env=env, capture_output=True, timeout=30, check=False)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            left = subprocess.run(["squeue", "-h"], env=env, capture_output=True, text=True, timeout=30, check=False)
            if not left.stdout.strip():
                break
            time.sleep(0.2)
        names = [f"slurmd.node{node}.pid" for node in range(1, self.nodes + 1)]
        for name in [*names, "slurmctld.pid", "munged.pid"]:
            if pid := self._pid(name):
                _end(pid)
        shutil.rmtree(self.base, ignore_errors=True)


def _listens_below(process: psutil.Process, folder: str) -> bool:
    try:
        return any(str(c.laddr).startswith(folder) for c in process.net_connections(kind="unix"))
    except psutil.Error:
        return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _end(pid: int) -> None:
    """SIGTERM, then SIGKILL; a zombie is dead."""
    try:
        process = psutil.Process(pid)
        process.terminate()
        for _ in range(80):
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return
            time.sleep(0.1)
        process.kill()
    except psutil.Error:
        return


@contextmanager
def running(nodes: int = 2, gpus: int = 8, cpus: int = 8, **how: str) -> Iterator[Slurm]:
    """A cluster, and nothing of it afterwards."""
    slurm = Slurm(nodes, gpus, cpus, **how)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()


def config(**changes: Any) -> dict[str, Any]:
    """A whole `cluster` group for a cluster of two nodes with CPU ranks."""
    said: dict[str, Any] = yaml.safe_load((ROOT / "conf/cluster/slurm.yaml").read_text())
    said |= {"device": "cpu", "nodes": 2, "gpus_per_node": 2, "python": sys.executable, "join_s": 120}
    said["slurm"]["poll_s"] = 0.5
    for key, value in changes.items():
        where, _, name = key.rpartition("__")
        (said[where] if where else said)[name] = value
    return said


def make(**changes: Any) -> Any:
    """`cluster=slurm` over a Slurm that lives as long as the process that first asks for one."""
    if OURS not in os.environ:
        slurm, owner = Slurm(), os.getpid()
        atexit.register(lambda: slurm.stop() if os.getpid() == owner else None)
        slurm.start()
        os.environ[OURS] = str(slurm.conf)
    os.environ["SLURM_CONF"] = os.environ[OURS]
    group = config(**changes)
    return clusters.get(group, clusters.shape(group))
