"""Searches with real verl on the CPU: real samplers, real schedulers, a real kill of the controller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import left_over, wait_for

from sweeper.trial.ledger import Event, Ledger

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
SWEEP = [sys.executable, str(ROOT / "sweep.py"), "-m", "cluster.device=cpu", "tracking=none", "name=s"]
STEPS = ["trainer.test_freq=1", "trainer.save_freq=1", "trainer.val_before_train=false"]


def run(folder: Path, *arguments: str, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SWEEP, *arguments], cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )


def sweeper(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sweeper.cli.main", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def events(folder: Path) -> list[Event]:
    return Ledger.history(folder / "runs/s/ledger.db")


def lines(folder: Path, trial: str, attempt: int) -> dict[int, dict[str, Any]]:
    text = (folder / f"runs/s/trials/{trial}/attempt-{attempt}/metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return {line["step"]: line["data"] for line in found if "actor/lr" in line["data"]}


def test_tpe_with_asha_ends_the_worse_ones_early_and_says_why(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "lr=tag(log,interval(1e-5,1e-1))",
        "search=tpe",
        "search.trials=4",
        "search.points=[{lr: 2e-4}]",
        "scheduler=asha",
        "scheduler.grace_period=1",
        "scheduler.reduction_factor=2",
        "trainer.total_training_steps=3",
        *STEPS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    states = Ledger.read(tmp_path / "runs/s/ledger.db")
    assert len(states) == 4
    assert {s.state for s in states.values()} <= {"finished", "pruned"}
    assert states["000"].params == {"lr": 2e-4}, "the known point came first"
    pruned = [json.loads(Path(s.folder, "status.json").read_text()) for s in states.values() if s.state == "pruned"]
    for status in pruned:
        assert status["stop"]["reason"] in ("worse", "nan", "entropy-collapse", "no-reward-variance", "kl-blow-up")
        assert status["stop"]["detail"] in done.stdout or status["stop"]["reason"] in done.stdout
    import optuna

    study = tmp_path / "runs/s/studies/0.journal"
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(study)))
    trials = optuna.load_study(study_name=None, storage=storage).trials
    assert len(trials) == 4
    assert all(t.state.is_finished() for t in trials), "none is left running"


def test_pbt_takes_over_a_checkpoint_and_trains_at_the_new_rate(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "lr=tag(log,interval(1e-6,1e-2))",
        "search=random",
        "search.trials=2",
        "search.points=[{lr: 2e-4}, {lr: 1e-2}]",
        "scheduler=pbt",
        "scheduler.interval=2",
        "scheduler.quantile=0.5",
        "trainer.total_training_steps=6",
        *STEPS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    forks = [e for e in events(tmp_path) if e.kind == "trial_forked"]
    assert forks, "nobody took over anything:\n" + done.stdout
    fork = forks[0]
    trial, step, rate = str(fork.trial), int(fork.data["step"]), fork.data["params"]["lr"]
    started = [e for e in events(tmp_path) if e.kind == "attempt_started" and e.trial == trial and e.seq > fork.seq]
    after = lines(tmp_path, trial, int(started[0].attempt or 0))
    first = min(after)
    assert first == step + 1, "it goes on from the donor's checkpoint"
    assert after[first]["actor/lr"] == pytest.approx(rate), "and the new learning rate is the one in effect"


def test_a_killed_controller_is_resumed_to_the_attempt_that_still_runs(tmp_path: Path) -> None:

    out = tmp_path / "out.txt"
    with out.open("w") as stream:
        command = [*SWEEP, "seed=1,2", "max_concurrent=1", "trainer.total_training_steps=5", *STEPS]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=stream, stderr=stream)
        wait_for(out, "step 1 of 5", process)
        process.kill()
        process.wait()
    assert left_over(tmp_path), "the attempt outlives its controller"
    done = sweeper(tmp_path, "resume", "s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "followed again" in done.stdout
    states = Ledger.read(tmp_path / "runs/s/ledger.db")
    assert {t: (s.state, s.attempts) for t, s in states.items()} == {
        "000-s1": ("finished", 1),
        "000-s2": ("finished", 1),
    }
    assert sorted(lines(tmp_path, "000-s1", 1)) == [1, 2, 3, 4, 5]
    assert left_over(tmp_path) == []

    extended = sweeper(tmp_path, "extend", "s", "--steps", "7")
    assert extended.returncode == 0, extended.stdout + extended.stderr
    assert sorted(lines(tmp_path, "000-s1", 2)) == [6, 7], "more steps, from the last checkpoint"
    assert {s.last_step for s in Ledger.read(tmp_path / "runs/s/ledger.db").values()} == {7}

    other = sweeper(tmp_path, "resume", "s", "lr=1e-3")
    assert other.returncode == 2
    assert "actor_rollout_ref.actor.optim.lr: 0.0002 -> 0.001" in other.stderr

    forked = sweeper(tmp_path, "resume", "s", "--fork", "f", "seed=1", "trainer.total_training_steps=7")
    assert forked.returncode == 0, forked.stdout + forked.stderr
    assert "s/000-s1" in forked.stdout, "what is the same is reused and shown as reused"


def test_stop_ends_what_a_dead_controller_left(tmp_path: Path) -> None:

    out = tmp_path / "out.txt"
    with out.open("w") as stream:
        command = [*SWEEP, "trainer.total_training_steps=50", *STEPS]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=stream, stderr=stream)
        wait_for(out, "started", process)
        process.kill()
        process.wait()
    done = sweeper(tmp_path, "stop", "s")
    assert done.returncode == 0, done.stderr
    assert "1 trial of s stopped" in done.stdout
    assert left_over(tmp_path) == []
