"""The whole pipeline from a fresh checkout with real verl, as a user runs it: killed, gone on with, twice, pulled by
another checkout, and as experiments."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checkout import Checkout

SMALL = {
    "lr: choice(2e-4,5e-4)": "lr: 2e-4",
    "search: grid": "search: none",
    "steps: 8": "steps: 2",
    "test_freq: 4": "test_freq: 2",
    "save_freq: 4": "save_freq: 1",
    "seeds: 3": "seeds: 2",
}


@pytest.mark.real
def test_from_a_fresh_checkout_to_the_report(tmp_path: Path) -> None:
    checkout = _small(tmp_path)
    _killed_in_the_sweep(checkout)
    said = checkout.dvc("repro")
    assert "Running stage 'sweep'" in said and "Running stage 'report'" in said
    sweep = checkout.path / "runs" / json.loads((checkout.path / "pipeline/sweep/sweep.json").read_text())["name"]
    assert len(list(sweep.glob("trials/*"))) == 1, "it went on with the sweep that was killed"
    assert [p.name for p in (checkout.path / "runs").glob("pipeline-*")] == [sweep.name]

    metrics = json.loads((checkout.path / "pipeline/metrics.json").read_text())
    assert metrics["test"]["seeds"] == 2 and 0 <= metrics["test"]["score"] <= 1
    assert metrics["test"]["low"] <= metrics["test"]["score"] <= metrics["test"]["high"]
    best = json.loads((checkout.path / "pipeline/best/best.json").read_text())
    assert best["step"] == 2 and (checkout.path / "pipeline/best/checkpoint/global_step_2/data.pt").is_file()
    assert str(checkout.path) not in (checkout.path / "pipeline/report/index.html").read_text()

    assert "Running" not in checkout.dvc("repro"), "nothing has changed"
    checkout.commit("the result")
    assert not checkout.git("status", "--porcelain")
    checkout.dvc("plots", "show")
    assert "validation score of the best trial" in (checkout.path / "dvc_plots/index.html").read_text()

    # Another checkout has what was pushed, and nothing to do.
    checkout.dvc("remote", "add", "-d", "store", str(tmp_path / "remote"))
    checkout.commit("a remote")
    assert "pushed" in checkout.dvc("push")
    other = Checkout(tmp_path / "other", checkout.env)
    checkout.git("clone", "-q", str(checkout.path), str(other.path))
    other.dvc("pull")
    assert "Running" not in other.dvc("repro")


@pytest.mark.real
@pytest.mark.long
def test_experiments_and_the_queue(tmp_path: Path) -> None:
    checkout = _small(tmp_path)
    checkout.dvc("repro")
    checkout.commit("the result")

    # An experiment, in a folder of its own: its records stay.
    checkout.dvc("exp", "run", "--temp", "-n", "other", "-S", "algorithm=rloo", "-S", "evaluate.seeds=1")
    assert len(list((checkout.path / "runs").glob("pipeline-*"))) == 2
    changes = [line.split() for line in checkout.dvc("params", "diff", "main", "other").splitlines()]
    assert ["params.yaml", "algorithm", "grpo", "rloo"] in changes
    assert "test.score" in checkout.dvc("metrics", "diff", "main", "other")

    # The same by the queue: the sweep is there already, and the evaluation alone is run.
    checkout.dvc("exp", "run", "--queue", "-n", "queued", "-S", "algorithm=rloo", "-S", "evaluate.seeds=1")
    checkout.dvc("queue", "start")
    try:
        _until(lambda: "Success" in checkout.dvc("queue", "status"), 900)
    finally:
        checkout.dvc("queue", "stop", "--kill")
    assert len(list((checkout.path / "runs").glob("pipeline-*"))) == 2
    assert "queued" in checkout.dvc("exp", "list")

    # An edit of conf/ is noticed by a plain repro, and makes nothing stale that it does not concern.
    checkout.replace("conf/algorithm/grpo.yaml", "clip_ratio_high: 0.2", "clip_ratio_high: 0.28")
    checkout.dvc("repro", "prepare", "model")
    stale = json.loads(checkout.dvc("status", "--json"))
    assert list(stale["sweep"][0]["changed deps"]) == ["pipeline/request/sweep.json"] and "prepare" not in stale


def _small(folder: Path) -> Checkout:
    """A fresh checkout whose pipeline is as short as it can be."""
    checkout = Checkout.make(folder / "checkout", folder / "home")
    for before, after in SMALL.items():
        checkout.replace("conf/pipeline/params.yaml", before, after)
    checkout.run("python", "-m", "sweeper.pipeline", "params")
    checkout.commit("small")
    return checkout


def _killed_in_the_sweep(checkout: Checkout) -> None:
    """Start the pipeline and kill DVC and the stage when the training has begun; the attempt outlives them."""
    process = subprocess.Popen(
        ["dvc", "repro"],
        cwd=checkout.path,
        env=dict(checkout.env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _until(lambda: bool(list(checkout.path.glob("runs/pipeline-*/trials/*/attempt-1/metrics.jsonl"))), 900)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (checkout.path / "pipeline/sweep").exists()


def _until(done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.5)
