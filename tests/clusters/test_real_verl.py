"""Real verl on this machine, through the cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sweeper import engines, prepare
from sweeper.clusters.gang import janitor
from sweeper.clusters.local import LocalAttempt, LocalCluster
from sweeper.clusters.machine import detect
from sweeper.config.hydra_app import initialized
from sweeper.engines.base import AttemptPaths
from sweeper.plan import plan


@pytest.mark.real
@pytest.mark.long  # in CI, the main command (tests/real/test_sweep.py) shows the same
def test_two_trials_at_once_train_and_leave_nothing(tmp_path: Path) -> None:
    cluster = LocalCluster(detect(device="cpu"))
    with initialized():
        made = plan.make(["algorithm=grpo,ppo", "trainer.total_training_steps=2", "trainer.val_before_train=false"])
    assert not made.problems
    configs = [trial.config for trial in made.trials]
    if builds := prepare.missing(configs):
        subprocess.run(prepare.command(builds, sys.executable), env=prepare.environment(), check=True)
    attempts = []
    for trial in made.trials:
        folder = tmp_path / trial.id / "attempt-1"
        folder.mkdir(parents=True)
        engine = engines.get("verl")
        job = engine.job(dict(trial.config), AttemptPaths(folder, tmp_path / trial.id / "checkpoints"))
        assert job.preload  # with the fork server: the way in which trials run by default
        attempt = cluster.start(job, folder, (0,))
        assert isinstance(attempt, LocalAttempt)
        attempts.append(attempt)
    for attempt in attempts:
        ended = attempt.wait(400)
        log = (attempt.folder / "log.txt").read_text(errors="replace")
        assert (ended.code, ended.reason) == (0, "exit"), log[-4000:]
        steps = [json.loads(line)["step"] for line in (attempt.folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == [1, 2]
        assert "modules ready after" in log
        assert attempt.den is not None
        assert not attempt.den.exists()
        assert janitor.marked(attempt.den.name.removeprefix(janitor.PREFIX)) == []
