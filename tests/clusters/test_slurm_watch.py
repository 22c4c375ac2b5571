"""How often Slurm is asked. squeue is a fake that writes down each call; a real one: test_slurm_cluster.py."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from sweeper import clusters
from sweeper.clusters.slurm import watch
from sweeper.clusters.slurm.attempt import SlurmAttempt
from sweeper.clusters.slurm.jobs import JobAttempt
from sweeper.clusters.slurm.states import State
from sweeper.clusters.slurm.watch import Watched, Watcher

JOBS = 20
SQUEUE = """#!/bin/sh
echo "$*" >> {log}
for job in $(echo "$*" | sed -n 's/.*--jobs=\\([0-9,]*\\).*/\\1/p' | tr , ' '); do
    echo "$job|$(cat {state})|None|node1|"
done
"""


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def taken_up(folder: Path, job: int) -> JobAttempt:
    """An attempt that another controller submitted."""
    folder.mkdir()
    about = {"kind": "slurm", "mode": "job", "tag": f"t{job}", "job": str(job), "nodes": [0], "gpus": 1, "poll_s": 0.5}
    (folder / clusters.STARTED).write_text(json.dumps(about))
    attempt = clusters.attach(folder)
    assert isinstance(attempt, JobAttempt)
    return attempt


def test_twenty_jobs_are_one_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, state, fake = tmp_path / "log", tmp_path / "state", tmp_path / "bin" / "squeue"
    state.write_text("RUNNING")
    fake.parent.mkdir()
    fake.write_text(SQUEUE.format(log=log, state=state))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(watch, "_watcher", None)
    attempts = [taken_up(tmp_path / f"attempt-{job}", job) for job in range(101, 101 + JOBS)]
    until(lambda: all(attempt.watched.state for attempt in attempts))
    before = len(log.read_text().splitlines())
    end = time.monotonic() + 2
    while time.monotonic() < end:
        assert [attempt.poll() for attempt in attempts] == [None] * JOBS  # as often as a sweep likes
        time.sleep(0.02)
    asked = log.read_text().splitlines()[before:]
    every = ",".join(str(attempt.watched.job) for attempt in attempts)
    assert asked
    assert all(f"--jobs={every}" in call for call in asked)
    assert len(asked) <= 2 / watch.SOON_S + 2
    state.write_text("COMPLETED")
    until(lambda: all(attempt.watched.over for attempt in attempts))


class Answered:
    """A watcher of a Slurm that takes a node's word for nothing yet."""

    trouble, answered_at = "", 0.0

    def hurry(self, job: Watched) -> None:
        job.state = State("COMPLETING")

    def do(self, what: Callable[[], None]) -> None:
        """Nothing of it is passed on."""


@pytest.mark.parametrize("nodes_that_said_so", [1, 2])
@pytest.mark.parametrize(("reason", "within_s"), [("lost", 6.0), ("stopped", 11.0)])
def test_a_node_that_is_shut_down_is_not_waited_for_until_slurm_gives_it_up(
    reason: str, within_s: float, nodes_that_said_so: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that ends in good order tells its processes to stop, and its slurmd answers Slurm no more."""
    (gang := tmp_path / "gang").mkdir()
    (gang / "gang.json").write_text(json.dumps({"nodes": [{"name": "n0"}, {"name": "n1"}]}))
    for rank in range(nodes_that_said_so):
        said = {"code": None, "reason": reason, "detail": "node n1 was told to stop", "ended": time.time()}
        (gang / f"{rank}.exit.json").write_text(json.dumps(said))
    clock = time.monotonic()
    monkeypatch.setattr("sweeper.clusters.gangs.time.monotonic", lambda: clock)
    attempt = SlurmAttempt(tmp_path, Watched("tag", "7", State("COMPLETING")), cast("Watcher", Answered()))
    began = clock
    while (ended := attempt.poll()) is None:
        assert clock - began < within_s, "it waits for Slurm"
        clock += 0.5
    assert (ended.reason, ended.detail) == (reason, "node n1 was told to stop")
    assert clock - began > within_s - 2, "Slurm had no time to say that it was by it"


def test_a_job_that_is_refused_for_ever_says_what_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'sbatch: error: Invalid feature specification' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(watch, "_watcher", None)
    (folder := tmp_path / "attempt-1").mkdir()
    started = {"kind": "slurm", "mode": "job", "tag": "t", "nodes": [0], "gpus": 1, "poll_s": 0.5}
    attempt = JobAttempt(folder, started)
    attempt.submit(os.environ)
    assert attempt.watched.refused.splitlines()[:2] == [
        "sbatch refused the job: Invalid feature specification",
        "try: cluster.slurm.sbatch=...   (scontrol show node; scontrol show reservation shows it)",
    ]
