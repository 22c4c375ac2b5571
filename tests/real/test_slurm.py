"""Real verl on a real Slurm: slurmctld, munge and four slurmd on this machine, one rank a node on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm_cluster
from processes import left_over

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(slurm_cluster.why_not()), reason=slurm_cluster.why_not()),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def real() -> Iterator[slurm_cluster.Slurm]:
    with slurm_cluster.running(nodes=4, cpus=16) as running:
        yield running


def sweep(real: slurm_cluster.Slurm, store: Path, *overrides: str) -> subprocess.Popen[str]:
    """Trials of two nodes with a rank on each; half as many at once as `cluster.nodes` says."""
    ours = ["algorithm=grpo", "cluster=slurm", "cluster.device=cpu", "cluster.gpus_per_node=1", "trainer.nnodes=2"]
    ours += [f"cluster.python={sys.executable}", "cluster.slurm.poll_s=1", f"store={store}", "name=s"]
    ours += ["trainer.val_before_train=false", "tracking=none", "failures.first_step_s=1800"]
    return started(real, store, [sys.executable, "sweep.py", "-m", *ours, *overrides])


def resume(real: slurm_cluster.Slurm, store: Path) -> subprocess.Popen[str]:
    return started(real, store, [sys.executable, "-m", "sweeper.cli.main", "resume", "--store", str(store), "s"])


def started(real: slurm_cluster.Slurm, store: Path, command: list[str]) -> subprocess.Popen[str]:
    log = (store.parent / "sweep.log").open("a")
    return subprocess.Popen(command, cwd=ROOT, env=real.env(), stdout=log, stderr=log, text=True)


def ended(process: subprocess.Popen[str], store: Path, timeout_s: float = 1500) -> None:
    code = process.wait(timeout_s)
    logs = "".join(p.read_text(errors="replace")[-3000:] for p in store.rglob("log.txt"))
    assert code == 0, (store.parent / "sweep.log").read_text() + logs


def steps(*attempts: Path) -> dict[int, dict[str, Any]]:
    """What a trial measured at each step, over those attempts; what measures the machine is left out."""
    found: dict[int, dict[str, Any]] = {}
    for path in (attempt / "metrics.jsonl" for attempt in attempts):
        for line in path.read_text().splitlines() if path.exists() else []:
            read = json.loads(line)
            kept = {k: v for k, v in read["data"].items() if not k.startswith("timing") and "perf/" not in k}
            found.setdefault(read["step"], {}).update(kept)
    return found


def until(what: Any, process: subprocess.Popen[str], store: Path, timeout_s: float = 1200) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert process.poll() is None, (store.parent / "sweep.log").read_text()
        assert time.monotonic() < deadline, (store.parent / "sweep.log").read_text()
        time.sleep(0.5)


@pytest.mark.long  # in CI, verl over two nodes is shown by cluster=ray, and this cluster by its contract
def test_two_trials_train_over_two_nodes_each_at_once(real: slurm_cluster.Slurm, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    process = sweep(real, store, "cluster.nodes=4", "lr=1e-5,2e-5", "trainer.total_training_steps=2")
    until(lambda: len(real.jobs("RUNNING")) == 2, process, store)
    ended(process, store)
    trials = sorted((store / "s" / "trials").iterdir())
    assert len(trials) == 2
    for trial in trials:
        (attempt,) = trial.glob("attempt-*")
        assert list(steps(attempt)) == [1, 2]
        nodes = [json.loads((attempt / f"gang/{rank}.json").read_text())["host"] for rank in (0, 1)]
        assert len(set(nodes)) == 2
    assert [state for _, state, _ in real.jobs()] == ["COMPLETED"] * 2
    assert left_over(store) == []


@pytest.mark.long
def test_at_the_time_limit_a_checkpoint_is_saved_and_a_new_job_goes_on(
    real: slurm_cluster.Slurm, tmp_path: Path
) -> None:
    """Five minutes a job, which are too few for the first checkpoint and the first validation that are due."""
    store = tmp_path / "runs"
    process = sweep(
        real, store, "cluster.nodes=2", "cluster.slurm.time=5", "cluster.slurm.lead_s=10",
        "trainer.save_freq=10000", "trainer.total_training_steps=10000", "trainer.test_freq=10000",
    )  # fmt: skip
    trial = store / "s" / "trials" / "000"
    until(lambda: steps(trial / "attempt-2"), process, store)
    process.terminate()
    process.wait(60)
    record = json.loads((trial / "attempt-1" / "exit.json").read_text())
    assert record["reason"] == "preempted"
    assert "time limit" in record["detail"]
    before, after = steps(trial / "attempt-1"), steps(trial / "attempt-2")
    assert "nearly over" in (trial / "attempt-1" / "log.txt").read_text()
    assert 1 < min(after) <= max(before) + 1
    assert len(real.jobs()) == 2


@pytest.mark.long
@pytest.mark.parametrize("v1", ["true", "false"])
def test_a_preempted_job_saves_in_its_grace_and_a_new_one_goes_on(v1: str, tmp_path: Path) -> None:
    """It is preempted long before the first checkpoint that is due."""
    store = tmp_path / "runs"
    patient = slurm_cluster.GRACE.replace(f"={slurm_cluster.GRACE_S}", "=300")
    with slurm_cluster.running(nodes=2, cpus=16, track="pgid", more=patient) as real:
        process = sweep(
            real, store, "cluster.nodes=2", "cluster.slurm.partition=patient", "cluster.slurm.grace_s=300",
            "trainer.save_freq=10000", "trainer.total_training_steps=10000", "trainer.test_freq=10000",
            f"trainer.use_v1={v1}",
        )  # fmt: skip
        trial = store / "s" / "trials" / "000"
        until(lambda: len(steps(trial / "attempt-1")) >= 2, process, store)
        real.run("sbatch", "-p", "urgent", "-N2", "-c16", "--wrap=sleep 1", "-o/dev/null")
        preempted = time.monotonic()
        until((trial / "attempt-1" / "exit.json").exists, process, store)
        print(f"over after {time.monotonic() - preempted:.1f} s")
        until(lambda: steps(trial / "attempt-2"), process, store)
        process.terminate()
        process.wait(60)
        record = json.loads((trial / "attempt-1" / "exit.json").read_text())
        assert (record["reason"], "was preempted" in record["detail"]) == ("preempted", True)
        before, after = steps(trial / "attempt-1"), steps(trial / "attempt-2")
        assert min(after) == max(before) + 1  # what was saved is the last step that was trained
    assert left_over(store) == []


@pytest.mark.long
def test_a_node_that_dies_costs_the_steps_since_the_last_checkpoint_and_nothing_else(
    real: slurm_cluster.Slurm, tmp_path: Path
) -> None:
    """And the controller was killed before, and another took the attempt up."""
    store, whole = tmp_path / "runs", tmp_path / "whole" / "runs"
    whole.parent.mkdir()
    settings = ["cluster.nodes=2", "trainer.total_training_steps=5", "trainer.save_freq=1"]
    process = sweep(real, store, *settings)
    trial = store / "s" / "trials" / "000"
    until(lambda: steps(trial / "attempt-1"), process, store)
    process.kill()
    process.wait()
    process = resume(real, store)
    until(lambda: len(steps(trial / "attempt-1")) >= 2, process, store)
    dies = int(json.loads((trial / "attempt-1/gang/1.json").read_text())["host"].removeprefix("node"))
    real.kill_node(dies)
    killed = time.monotonic()
    until((trial / "attempt-1" / "gang" / "0.exit.json").exists, process, store)
    print(f"the first node knew after {time.monotonic() - killed:.1f} s")
    until((trial / "attempt-1" / "exit.json").exists, process, store)
    print(f"the sweep knew after {time.monotonic() - killed:.1f} s")
    assert json.loads((trial / "attempt-1" / "exit.json").read_text())["reason"] == "lost"
    real.start_node(dies)
    ended(process, store)
    assert not (trial / "attempt-3").exists()
    ended(sweep(real, whole, *settings), whole)
    there = steps(trial / "attempt-1", trial / "attempt-2")
    uninterrupted = steps(whole / "s" / "trials" / "000" / "attempt-1")
    assert sorted(there) == sorted(uninterrupted) == [1, 2, 3, 4, 5]
    for step, values in uninterrupted.items():
        assert {"critic/score/mean", "actor/grad_norm", "actor/pg_loss"} <= values.keys(), step
        assert {k: there[step].get(k) for k in values} == values, step


def state(real: slurm_cluster.Slurm, job: str) -> str:
    return next(said for number, said, _ in real.jobs() if number == job)


@pytest.mark.long
def test_a_whole_sweep_in_one_job(real: slurm_cluster.Slurm, tmp_path: Path) -> None:
    """The script that plan=true shows, submitted as it is; and again, when all is done."""
    lines = ["algorithm=grpo", "lr=1e-5,2e-5", "cluster=slurm", "cluster.slurm.mode=allocation", "cluster.device=cpu"]
    lines += ["cluster.nodes=2", "cluster.gpus_per_node=1", f"cluster.python={sys.executable}", "trainer.nnodes=1"]
    lines += [f"store={tmp_path / 'runs'}", "name=s", "tracking=none", "trainer.total_training_steps=2"]
    lines += ["trainer.val_before_train=false", "failures.first_step_s=1800", "cluster.slurm.cpus_per_node=16"]
    command = [sys.executable, "sweep.py", "-m", *lines, "plan=true"]
    shown = subprocess.run(command, cwd=ROOT, env=real.env(), capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    path = tmp_path / "sweep.sbatch"
    path.write_text(shown.stdout[shown.stdout.index("#!/bin/bash") :].partition("\ndone\n")[0] + "\ndone\n")
    for _ in range(2):
        number = real.run("sbatch", "--parsable", f"--output={tmp_path}/sweep.log", str(path)).strip()
        real.wait(lambda job=number: state(real, job) not in ("PENDING", "RUNNING", "COMPLETING"), 1500)  # type: ignore[misc]
        assert state(real, number) == "COMPLETED", (tmp_path / "sweep.log").read_text()
    assert len([*(tmp_path / "runs" / "s").glob("trials/*/attempt-*")]) == 2
    trials = sorted((tmp_path / "runs" / "s" / "trials").iterdir())
    assert [list(steps(trial / "attempt-1")) for trial in trials] == [[1, 2], [1, 2]]
    hosts = {json.loads((trial / "attempt-1/gang/0.json").read_text())["host"] for trial in trials}
    assert len(hosts) == 2
    assert left_over(tmp_path / "runs") == []
