"""`detach=true`: the sweep goes on without the terminal, and is found again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SWEEP = [sys.executable, str(ROOT / "sweep.py"), "detach=true", "name=s", "cluster.device=cpu", "tracking=none"]


def run(cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


def sweeper(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(cwd, sys.executable, "-m", "sweeper.cli.main", *words)


def test_a_wrong_request_is_refused_on_the_screen_and_leaves_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, *SWEEP, "lr=-1")
    assert done.returncode == 2
    assert "lr=-1" in done.stderr and "nothing was launched" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    sweeper(tmp_path, "stop", "s")  # it would outlive a test that fails, too


@pytest.mark.real
def test_a_detached_sweep_outlives_its_session_and_is_found_stopped_and_resumed(place: Path) -> None:
    steps = ["trainer.total_training_steps=40", "trainer.test_freq=1", "trainer.save_freq=1", "data.val_max_samples=32"]
    # A session of its own, as a login has, that is hung up on as at a logout.
    login = subprocess.Popen(
        [*SWEEP, *steps, "--json"], cwd=place, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    out, _ = login.communicate(timeout=300)
    assert login.returncode == 0
    about = json.loads(out)
    assert about["event"] == "detached"
    with contextlib.suppress(ProcessLookupError):  # nothing of the session is left
        os.killpg(login.pid, signal.SIGHUP)
    again = run(place, *SWEEP, *steps)
    assert again.returncode == 2 and "already in" in again.stderr
    log = place / "runs/s/controller.log"
    while "step 1 of 40" not in log.read_text():
        assert Path(f"/proc/{about['pid']}").exists(), log.read_text()
        time.sleep(0.2)
    assert "running" in sweeper(place, "status", "s").stdout
    second = sweeper(place, "resume", "s", "detach=true")
    assert second.returncode == 2 and f"process {about['pid']}" in second.stderr
    assert sweeper(place, "stop", "s").returncode == 0
    assert "stopped" in sweeper(place, "status", "s").stdout

    assert sweeper(place, "resume", "s", "detach=true").returncode == 0
    assert sweeper(place, "stop", "s").returncode == 0
    assert sweeper(place, "logs", "s").stdout == "".join(log.read_text().splitlines(keepends=True)[-40:])
