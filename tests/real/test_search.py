"""Searches with real verl on the CPU: real samplers, real schedulers, a real kill of the controller."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import left_over, sweeper, wait_for

from sweeper.trial.ledger import Event, Ledger

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
SWEEP = [sys.executable, str(ROOT / "sweep.py"), "-m", "cluster.device=cpu", "tracking=none", "name=s"]
STEPS = ["trainer.test_freq=1", "trainer.save_freq=1", "trainer.val_before_train=false"]


def run(folder: Path, *arguments: str, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SWEEP, *arguments], cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )


def events(folder: Path) -> list[Event]:
    return Ledger.history(folder / "runs/s/ledger.db")


def lines(folder: Path, trial: str, attempt: int, sweep: str = "s") -> dict[int, dict[str, Any]]:
    text = (folder / f"runs/{sweep}/trials/{trial}/attempt-{attempt}/metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return {line["step"]: line["data"] for line in found if "actor/lr" in line["data"]}


def test_tpe_with_asha_ends_the_worse_ones_early_and_says_why(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "lr=tag(log,interval(1e-5,1e-1))",
        "search=tpe",
        "search.trials=3",
        "search.points=[{lr: 2e-4}, {lr: 1e-2}]",
        "max_concurrent=1",
        "scheduler=asha",
        "scheduler.grace_period=1",
        "scheduler.reduction_factor=2",
        "trainer.total_training_steps=3",
        *STEPS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    states = Ledger.read(tmp_path / "runs/s/ledger.db")
    assert len(states) == 3
    assert {s.state for s in states.values()} <= {"finished", "pruned"}
    assert states["000"].params == {"lr": 2e-4}, "the known point came first"
    pruned = [json.loads(Path(s.folder, "status.json").read_text()) for s in states.values() if s.state == "pruned"]
    assert states["001"].params == {"lr": 1e-2} and states["001"].state == "pruned", "it destroys the policy"
    for status in pruned:
        assert status["stop"]["reason"] in ("worse", "nan", "entropy-collapse", "no-reward-variance", "kl-blow-up")
        assert status["stop"]["detail"] in done.stdout or status["stop"]["reason"] in done.stdout
    import optuna

    study = tmp_path / "runs/s/studies/0.journal"
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(study)))
    trials = optuna.load_study(study_name=None, storage=storage).trials
    assert len(trials) == 3
    assert all(t.state.is_finished() for t in trials), "none is left running"


@pytest.mark.long
@pytest.mark.parametrize(
    ("scheduler", "option", "rates", "steps"),
    [
        ("median", "scheduler.min_samples=2", [2e-4, 1e-4, 1e-2], 4),
        # Two candidates fill the bracket that halves nobody, the other two the one that halves after the first step.
        ("hyperband", "scheduler.reduction_factor=2", [2e-4, 1e-4, 3e-4, 1e-2], 2),
    ],
)
def test_other_schedulers_end_the_worst_and_let_the_best_finish(
    tmp_path: Path, scheduler: str, option: str, rates: list[float], steps: int
) -> None:
    """A rate of 1e-2 destroys the policy, which the first validation shows."""
    points = f"search.points=[{', '.join(f'{{lr: {rate}}}' for rate in rates)}]"
    done = run(
        tmp_path, "lr=tag(log,interval(1e-5,1e-1))", "search=random", f"search.trials={len(rates)}", points,
        f"scheduler={scheduler}", option, f"trainer.total_training_steps={steps}", "max_concurrent=1", *STEPS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    states = Ledger.read(tmp_path / "runs/s/ledger.db")
    assert [s.params["lr"] for s in states.values()] == rates
    *others, worst = states.values()
    assert worst.state == "pruned"
    stop = json.loads(Path(worst.folder, "status.json").read_text())["stop"]
    assert stop["reason"] == "worse"
    assert scheduler in stop["detail"]
    assert {(s.state, s.last_step) for s in others} == {("finished", steps)}, "also one that was paused on the way"
    for trial, state in states.items():
        made = [step for n in range(1, state.attempts + 1) for step in lines(tmp_path, trial, n)]
        assert sorted(made) == list(range(1, (state.last_step or 0) + 1)), "no step twice, none missing"


@pytest.mark.long
def test_scores_are_over_seeds_and_the_best_is_run_again_under_others(tmp_path: Path) -> None:
    done = run(
        tmp_path, "lr=choice(1e-5,2e-4)", "search=grid", "search.seeds=2", "search.final_seeds=2",
        "trainer.total_training_steps=2", "trainer.test_freq=2", "trainer.val_before_train=false",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    states = Ledger.read(tmp_path / "runs/s/ledger.db")
    assert {s.state for s in states.values()} == {"finished"}
    assert len(states) == 2 * 2 + 2
    seeds: dict[float, list[int]] = {}
    for state in states.values():
        record = json.loads(Path(state.folder, "lineage.json").read_text())
        seeds.setdefault(state.params["lr"], []).append(record["seeds"]["seed"])
    best, other = sorted(seeds, key=lambda lr: len(seeds[lr]), reverse=True)
    assert sorted(seeds[other]) == [1, 2]
    assert sorted(seeds[best])[:2] == [1, 2]
    assert len(set(seeds[best])) == 4, "nothing was chosen by the final seeds"
    means = {lr: [s.final_score or 0.0 for s in states.values() if s.params["lr"] == lr] for lr in seeds}
    assert sum(means[best][:2]) >= sum(means[other]), "the best by its mean over the seeds of the search"


@pytest.mark.long
@pytest.mark.parametrize("scheduler", ["pbt", "pb2"])
def test_a_population_takes_over_a_checkpoint_and_trains_at_the_new_rate(tmp_path: Path, scheduler: str) -> None:
    done = run(
        tmp_path,
        "lr=tag(log,interval(1e-6,1e-2))",
        "search=random",
        "search.trials=2",
        "search.points=[{lr: 2e-4}, {lr: 1e-2}]",
        f"scheduler={scheduler}",
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

    verified = sweeper(tmp_path, "verify", f"s/{trial}/{started[0].attempt}", "--json", "--name", "again")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    report = json.loads(verified.stdout)
    assert (report["verdict"], report["tier"]) == ("pass", "exact"), "a fork is run again from where it was forked"
    assert report["steps"] >= len(after)
    assert min(lines(tmp_path, "000", 1, sweep="again")) == step + 1


def test_a_killed_controller_is_resumed_to_the_attempts_that_still_run(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    with out.open("w") as stream:
        command = [*SWEEP, "seed=1", "trainer.total_training_steps=5", *STEPS]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=stream, stderr=stream)
        wait_for(out, "step 1 of 5", process)
        process.kill()
        process.wait()
    assert left_over(tmp_path), "the attempts outlive their controller"
    done = sweeper(tmp_path, "resume", "s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "followed again" in done.stdout
    states = Ledger.read(tmp_path / "runs/s/ledger.db")
    assert {t: (s.state, s.attempts) for t, s in states.items()} == {"000": ("finished", 1)}
    assert sorted(lines(tmp_path, "000", 1)) == [1, 2, 3, 4, 5]
    assert left_over(tmp_path) == []

    extended = sweeper(tmp_path, "extend", "s", "--steps", "7")
    assert extended.returncode == 0, extended.stdout + extended.stderr
    assert sorted(lines(tmp_path, "000", 2)) == [6, 7], "more steps, from the last checkpoint"
    assert {s.last_step for s in Ledger.read(tmp_path / "runs/s/ledger.db").values()} == {7}

    other = sweeper(tmp_path, "resume", "s", "lr=1e-3")
    assert other.returncode == 2
    assert "actor_rollout_ref.actor.optim.lr: 0.0002 -> 0.001" in other.stderr

    forked = sweeper(tmp_path, "resume", "s", "--fork", "f", "seed=1", "trainer.total_training_steps=7")
    assert forked.returncode == 0, forked.stdout + forked.stderr
    assert "s/000" in forked.stdout, "what is the same is reused and shown as reused"


@pytest.mark.long
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
