"""How often Slurm is asked. squeue is a fake that writes down each call; a real one: test_slurm_cluster.py."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeper import clusters
from sweeper.clusters.slurm import watch
from sweeper.clusters.slurm.jobs import JobAttempt

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
