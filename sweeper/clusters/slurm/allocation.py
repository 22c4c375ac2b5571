"""The whole sweep inside one allocation: each attempt is a step of the job that the sweep runs in.

Guarantees: a step holds exactly the GPUs and cores of its gang (srun --exact), on the nodes that we chose by our own
account, so several trials run side by side; a step outlives the controller, as long as the job does, and another
controller in the same job takes it up; a step that was given up does nothing when it starts.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sweeper import clusters
from sweeper.clusters import gangs
from sweeper.clusters.base import RECORD, Answer, Attempt, Ended, Exit
from sweeper.clusters.gang import slurm_nodes
from sweeper.clusters.slurm import each, script
from sweeper.clusters.slurm.attempt import SlurmAttempt, passed
from sweeper.clusters.slurm.commands import SlurmError, of_gres, run, unreachable
from sweeper.clusters.slurm.settings import Settings
from sweeper.clusters.slurm.states import State
from sweeper.clusters.slurm.watch import Watched, Watcher
from sweeper.engines.base import Job, Shape
from sweeper.errors import RequestError, SweeperError
from sweeper.trial.records import RecordsError

KIND = "slurm"


@dataclass(frozen=True, slots=True)
class Allocation:
    """The job that we run in."""

    job: str
    names: tuple[str, ...]
    gpus: int
    """GPUs that it has on the node with fewest."""
    cpus: int
    """Cores, likewise."""


def allocation() -> Allocation | None:
    """The job that this process runs in; None if it runs in none.

    Raises:
        RequestError: Slurm does not answer.
    """
    job, nodes = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_JOB_NODELIST")
    if not job or not nodes:
        return None
    try:
        names = run(["scontrol", "show", "hostnames", nodes]).split()
        record = run(["scontrol", "show", "job", job, "--details", "--oneliner"])
    except SlurmError as error:
        raise RequestError(unreachable(error)) from error
    gpus, cpus = per_node(record)
    return Allocation(job, tuple(names), gpus, cpus)


def per_node(record: str) -> tuple[int, int]:
    """(GPUs, cores) that a job has on the node with fewest, of `scontrol --details show job`."""
    gpus, cpus = [], []
    for ids, gres in re.findall(r"\bNodes=\S+ CPU_IDs=(\S*) Mem=\S* GRES=(\S*)", record):
        cpus.append(sum(_width(part) for part in ids.split(",") if part))
        gpus.append(sum(count for _, count in of_gres(gres)))
    return min(gpus, default=0), min(cpus, default=0)


def _width(part: str) -> int:
    first, _, last = part.partition("-")
    return int(last or first) - int(first) + 1


class Steps(Watcher):
    """Looks at the steps of our job, which Slurm lists while they run, by their names."""

    def __init__(self, job: str, poll_s: float) -> None:
        super().__init__(poll_s)
        self.job = job

    def look(self) -> None:
        """Ask about all steps at once."""
        jobs, now = [j for j in self._jobs if not j.over], time.monotonic()
        for step in jobs:
            if now > step.cancel_at and step.job:
                step.cancel_at = float("inf")
                with contextlib.suppress(SlurmError):
                    run(["scancel", step.job])
        if not jobs:
            return
        try:
            answer = run(["squeue", "--noheader", "--steps", f"--jobs={self.job}", "--format=%i|%j"])
        except SlurmError as error:
            self.trouble = str(error)
            return
        self.trouble, self.answered_at = "", now
        there = {name.strip(): number.strip() for number, _, name in (x.partition("|") for x in answer.splitlines())}
        for step in jobs:
            if step.tag in there:
                step.job, step.state = there[step.tag], State("RUNNING")
            elif step.job or step.find:
                step.state = State("", "the step is gone")


class StepAttempt(SlurmAttempt):
    """An attempt that is a step of the allocation, on `nodes` of it, with `gpus` ranks on each."""

    def __init__(
        self, folder: Path, started: Mapping[str, Any], watch: Steps, srun: subprocess.Popen[bytes] | None = None
    ) -> None:
        """`started`: its `attempt.json`. `srun`: the process that runs it, if it is our child."""
        self.started = dict(started)
        self.nodes, self.gpus = tuple(int(node) for node in started["nodes"]), int(started["gpus"])
        self._srun = srun
        super().__init__(folder, Watched(str(started["tag"]), find=srun is None), watch)

    def _look(self, now: float) -> Exit | None:
        if self._srun is not None and (code := self._srun.poll()) is not None:
            self.watched.state = State("", f"srun ended with code {code}")
            self._read()
            if code and not (self.watched.job or self._last_words or self._asked):
                said = script.said(self.folder)
                return gangs.not_launched(self.folder, f"srun could not start it (code {code}): {said}")
        return super()._look(now)

    def pass_on(self, folder: Path, what: str) -> None:
        """By a step beside it on the same nodes."""
        command = ["srun", f"--jobid={self.started['job']}", "--overlap", "--quiet", "--export=PATH"]
        command += [*_on(self.started["names"]), *self.started["node_py"], "ask", str(folder), "$SLURM_PROCID", what]
        try:
            _detached(command, folder / script.LOG, _without_limits(os.environ))
        except OSError as error:
            raise SlurmError(f"srun cannot be run: {error.strerror}") from error


def _on(names: Sequence[str]) -> list[str]:
    count = len(names)
    return [f"--nodelist={','.join(names)}", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"]


def _detached(command: Sequence[str], log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """In a session of its own: a terminal that closes, or we, do not end it."""
    with log.open("ab") as out:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(env), start_new_session=True
        )


_watchers: dict[str, Steps] = {}


def _steps(job: str, poll_s: float) -> Steps:
    """The watcher of that allocation; one a process."""
    return _watchers.setdefault(job, Steps(job, min(poll_s, 2.0)))


class AllocationCluster:
    """The nodes of the job that we run in. `shape` comes from `slurm.shape`."""

    def __init__(self, config: Mapping[str, Any], shape: Shape, inside: Allocation) -> None:
        self.shape, self.inside = shape, inside
        self.settings = Settings.of(config)
        self._python, self._join_s = str(config["python"]), float(config["join_s"])
        self._addresses = slurm_nodes.addresses(list(inside.names))
        self._max = int(config.get("max_ranks") or shape.gpus)
        self._running: list[StepAttempt] = []
        self._watch = _steps(inside.job, self.settings.poll_s)

    def free(self) -> tuple[int, ...]:
        """Ranks that none of our attempts holds, on each node of the allocation."""
        self._running = [attempt for attempt in self._running if attempt.poll() is None]
        free = [self.shape.gpus_per_node] * self.shape.nodes
        left = self._max
        for attempt in self._running:
            for node in attempt.nodes:
                free[node] -= attempt.gpus
                left -= attempt.gpus
        return tuple(max(0, min(ranks, left)) for ranks in free)

    def start(self, job: Job, folder: Path, nodes: tuple[int, ...]) -> Attempt | None:
        """Start the attempt as a step on those nodes of the allocation."""
        folder, nodes = folder.resolve(), tuple(sorted(nodes))  # ranks are in Slurm's order
        free = self.free()
        if any(free[node] < job.gang.gpus_per_node for node in nodes):
            return None
        job = replace(job, inherit=(*job.inherit, script.ENDS_AT))
        names = [self.inside.names[node] for node in nodes]
        where = [gangs.Node(name, self._addresses[node]) for name, node in zip(names, nodes, strict=True)]
        started: dict[str, Any] = {
            "kind": KIND, "mode": "allocation", "job": self.inside.job, "tag": secrets.token_hex(8),
            "names": names, "nodes": list(nodes), "gpus": job.gang.gpus_per_node, "poll_s": self.settings.poll_s,
            "node_py": [self._python, "-I", "-S", str(gangs.scripts(folder) / "node.py")],
        }  # fmt: skip
        try:
            gangs.prepare(job, folder, where, shape=self.shape, leases=False, join_s=self._join_s, listen=True)
            (folder / RECORD).unlink(missing_ok=True)
            gangs.started(folder, **started)
            own = {**gangs.secrets(job, gangs.new_token()), script.ENDS_AT: str(self._ends_at())}
            command = self._command(job, folder, started)
            srun = _detached(command, folder / script.LOG, {**_without_limits(os.environ), **own})
        except (OSError, RecordsError) as error:
            return Ended(folder, gangs.not_launched(folder, str(error)))
        attempt = StepAttempt(folder, started, self._watch, srun)
        self._watch.watch(attempt.watched)
        self._running.append(attempt)
        return attempt

    def _command(self, job: Job, folder: Path, started: Mapping[str, Any]) -> list[str]:
        """srun's command line. Without --overlap: two steps never get the same GPU."""
        gpus = [f"--gres={self.settings.gres}:{job.gang.gpus_per_node}"] if self.shape.device == "cuda" else []
        share = self.inside.cpus * job.gang.gpus_per_node // max(1, self.shape.gpus_per_node)
        cpus = self.settings.cpus_per_node or max(1, share)
        names = dict.fromkeys((*passed(job, os.environ), *script.OWN))
        return [
            "srun", f"--jobid={self.inside.job}", f"--job-name={started['tag']}", "--exact", "--mem=0",
            *_on(started["names"]), *gpus, f"--cpus-per-task={cpus}", "--kill-on-bad-exit=0", "--wait=20",
            f"--export={','.join(names)}", f"--chdir={folder}",
            *script.on_node(started["node_py"], job.image, self.settings, folder),
        ]  # fmt: skip

    def _ends_at(self) -> int:
        try:
            end = slurm_nodes.end_of(run(["scontrol", "show", "job", self.inside.job, "--oneliner"]))
        except SlurmError:
            end = float("inf")
        return int(min(end - self.settings.lead_s - slurm_nodes.EARLY_S, time.time() + slurm_nodes.YEAR_S))

    def attach(self, folder: Path) -> Attempt | None:
        """The attempt of that folder; see `clusters.attach`."""
        return clusters.follow(folder, StepAttempt, self._running)

    def each(self, argv: Sequence[str], stdin: str, timeout_s: float) -> list[Answer]:
        """Run a command on every node of the allocation, beside what runs there."""
        options = [f"--jobid={self.inside.job}", "--overlap", f"--nodelist={','.join(self.inside.names)}"]
        return each.run_each(
            argv, stdin, timeout_s, nodes=len(self.inside.names), options=options, python=self._python,
            env=_without_limits(os.environ),
        )  # fmt: skip

    def close(self) -> None:
        """Nothing connects us: each command is a call of its own."""


def _without_limits(env: Mapping[str, str]) -> dict[str, str]:
    """Without what sbatch or a step told us of our own resources, which srun would take for the step's."""
    drop = re.compile(
        r"SLURM_(NTASKS|NPROCS|TASKS_PER_NODE|NTASKS_PER_NODE|NNODES|NODELIST|CPUS_PER_TASK|MEM_PER_\w+|GPUS\w*|TRES\w*"
        r"|EXPORT_ENV|CPU_BIND\w*|DISTRIBUTION|STEP\w*|EXACT|OVERLAP|PROCID|LOCALID|NODEID|GTIDS|UMASK|JOB_NAME)"
    )
    return {k: v for k, v in env.items() if not drop.fullmatch(k)}


def attach(folder: Path, started: Mapping[str, Any]) -> StepAttempt:
    """The attempt of a folder whose controller is gone.

    Raises:
        SweeperError: Its `attempt.json` cannot be read.
    """
    try:
        attempt = StepAttempt(folder, started, _steps(str(started["job"]), float(started["poll_s"])))
    except (KeyError, TypeError, ValueError) as error:
        path = folder / clusters.STARTED
        raise SweeperError(f"{path} cannot be read: whether the attempt still runs is not known") from error
    if attempt.poll() is None:
        attempt._watch.watch(attempt.watched)
    return attempt
