"""A job a trial: every attempt is submitted with sbatch, and Slurm decides where and when it runs.

Guarantees: an attempt is known to its folder before its job is submitted, so a controller may be killed at any instant;
a job that was given up does nothing when it starts; a retry is a new job, never a requeued one, so that no record is
overwritten; nothing here waits for Slurm (watch.py does).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeper import clusters
from sweeper.clusters import gangs
from sweeper.clusters.base import RECORD, Answer, Attempt, Ended
from sweeper.clusters.gang.guard import GRACE
from sweeper.clusters.slurm import each, script
from sweeper.clusters.slurm.attempt import SlurmAttempt, passed
from sweeper.clusters.slurm.commands import SlurmError, run, wrong_setting
from sweeper.clusters.slurm.settings import Settings
from sweeper.clusters.slurm.watch import Watched, watcher
from sweeper.engines.base import Job, Shape
from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.trial.records import RecordsError, write_text

KIND = "slurm"
JOB_SCRIPT = "job.sh"
SIGNALS = {"s": "TERM", "d": "USR2", "k": "INT"}
"""What the job script understands (script.py)."""


class JobAttempt(SlurmAttempt):
    """An attempt that is a job of its own: queued, running or ended. `nodes` and `gpus` are what it is counted at."""

    def __init__(self, folder: Path, started: Mapping[str, Any], *, find: bool = False) -> None:
        """`started`: its `attempt.json`. `find`: whether a job of it may exist whose number is not known."""
        self.started = dict(started)
        self.nodes, self.gpus = tuple(int(node) for node in started["nodes"]), int(started["gpus"])
        watched = Watched(str(started["tag"]), started.get("job"), find=find and started.get("job") is None)
        self.wrong: Problem | None = None
        """What of the request sbatch will always refuse; known before `poll` says that it did."""
        super().__init__(folder, watched, watcher(float(started["poll_s"])))

    @classmethod
    def of(cls, folder: Path, started: Mapping[str, Any]) -> JobAttempt:
        """The attempt of a folder whose controller is gone.

        Raises:
            SweeperError: Its `attempt.json` cannot be read.
        """
        try:
            attempt = cls(folder, started, find=True)
        except (KeyError, TypeError, ValueError) as error:
            path = folder / clusters.STARTED
            raise SweeperError(f"{path} cannot be read: whether the attempt still runs is not known") from error
        if attempt.poll() is None:
            attempt._watch.watch(attempt.watched)
        return attempt

    def pass_on(self, folder: Path, what: str) -> None:  # noqa: ARG002
        """By a signal to the job script; a job that waits is cancelled."""
        number = self.watched.job
        if number and not self.watched.over:
            # First the one, then the other: whether it waits or runs may change in between.
            run(["scancel", "--state=PENDING", number])
            run(["scancel", "--batch", f"--signal={SIGNALS[what]}", number])

    def submit(self, env: Mapping[str, str]) -> None:
        """Submit its script; in the watcher's thread."""
        job, path = self.watched, self.folder / JOB_SCRIPT
        if job.dropped:
            job.refused = "it was stopped before it was submitted"
            return
        try:
            answer = run(["sbatch", "--parsable", str(path)], env=env)
        except SlurmError as error:
            again = f"to see it again: sbatch {path}"
            if error.away:  # it may have been submitted all the same
                job.unanswered = f"sbatch was not answered, and Slurm has no such job: {error}\n{again}"
                job.find = True
                job.expect()
                return
            self.wrong = wrong_setting(error)
            fix = f"try: {self.wrong.fix}\n" if self.wrong else ""
            job.refused = f"sbatch refused the job: {error}\n{fix}{again}"
            return
        job.job = answer.strip().splitlines()[-1].partition(";")[0]
        job.expect()
        self.started["job"] = job.job
        try:
            gangs.started(self.folder, **self.started)
        except RecordsError:
            return  # it can be found by its tag


class JobCluster:
    """Slurm as a place where each trial is a job. `shape` comes from `slurm.shape`."""

    def __init__(self, config: Mapping[str, Any], shape: Shape, cpus_per_gpu: float | None) -> None:
        """`cpus_per_gpu`: cores that a node of the partition has for each of its GPUs."""
        self.shape = shape
        self.settings = Settings.of(config)
        self._python, self._join_s = str(config["python"]), float(config["join_s"])
        self._cpus_per_gpu = cpus_per_gpu
        self._max = int(config.get("max_ranks") or shape.gpus)
        self._running: list[JobAttempt] = []
        self._wrong: Problem | None = None
        self._watch = watcher(self.settings.poll_s)

    def free(self) -> tuple[int, ...]:
        """Ranks that this sweep may still ask for, on each of the nodes it counts with; Slurm knows which they are."""
        self._wrong = self._wrong or next((attempt.wrong for attempt in self._running if attempt.wrong), None)
        self._running = [attempt for attempt in self._running if attempt.poll() is None]
        return gangs.room(self.shape, self._max, ((a.nodes, a.gpus) for a in self._running))

    def start(self, job: Job, folder: Path, nodes: tuple[int, ...]) -> Attempt | None:
        """Submit the attempt's job; returns before Slurm has answered.

        Raises:
            RequestError: Slurm refused an earlier job for what all of them ask for.
        """
        folder = folder.resolve()
        free = self.free()
        if self._wrong:
            raise RequestError(self._wrong)
        if any(free[node] < job.gang.gpus_per_node for node in nodes):
            return None
        job = replace(job, inherit=(*job.inherit, script.ENDS_AT, GRACE))
        tag = secrets.token_hex(8)
        started: dict[str, Any] = {
            "kind": KIND, "mode": "job", "tag": tag, "job": None, "nodes": list(nodes),
            "gpus": job.gang.gpus_per_node, "poll_s": self.settings.poll_s,
        }  # fmt: skip
        try:
            unknown = [gangs.Node()] * job.gang.nodes  # Slurm chooses them; the job says which
            gangs.prepare(job, folder, unknown, shape=self.shape, leases=False, join_s=self._join_s, listen=True)
            (folder / RECORD).unlink(missing_ok=True)
            write_text(folder / JOB_SCRIPT, self._script(job, folder, tag), mode=0o755)
            gangs.started(folder, **started)
        except (OSError, RecordsError) as error:
            return Ended(folder, gangs.not_launched(folder, str(error)))
        attempt = JobAttempt(folder, started)
        env = submission_environment(os.environ)
        self._watch.do(lambda: attempt.submit(env))
        self._watch.watch(attempt.watched)
        self._running.append(attempt)
        return attempt

    def _script(self, job: Job, folder: Path, tag: str) -> str:
        scripts = gangs.scripts(folder)
        return script.of_attempt(
            script.Run((self._python, "-I", "-S", str(scripts / "node.py")), scripts / "slurm_nodes.py", folder),
            self.settings,
            job.gang,
            tag=tag,
            gpus=self.shape.device == "cuda",
            cpus=self._cpus(job),
            passed=passed(job, os.environ),
            image=job.image,
        )

    def _cpus(self, job: Job) -> int | None:
        if self.settings.cpus_per_node:
            return self.settings.cpus_per_node
        if self.shape.device == "cpu":
            return max(job.gang.cpus_per_node, job.gang.gpus_per_node)
        return max(1, int(self._cpus_per_gpu * job.gang.gpus_per_node)) if self._cpus_per_gpu else None

    def attach(self, folder: Path) -> Attempt | None:
        """The attempt of that folder; see `clusters.attach`."""
        return clusters.follow(folder, JobAttempt, self._running)

    def each(self, argv: Sequence[str], stdin: str, timeout_s: float) -> list[Answer]:
        """Run a command on as many nodes of the partition as the sweep may use: as one short job."""
        options = ["--job-name=sweeper-check", *script.placed(self.settings), *self.settings.sbatch]
        env = submission_environment(os.environ)
        return each.run_each(
            argv, stdin, timeout_s, nodes=self.shape.nodes, options=options, python=self._python, env=env
        )

    def close(self) -> None:
        """Nothing connects us: each command is a call of its own."""


def submission_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Our environment without what would overrule a script (SBATCH_*) or describes a job that we run in ourselves."""
    kept = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS")
    theirs = ("SLURM_", "SBATCH_", "SRUN_")
    return {name: value for name, value in environ.items() if name in kept or not name.startswith(theirs)}
