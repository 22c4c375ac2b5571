"""Real verl over two nodes of a real Ray cluster, through the commands that a user types."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import Raylets, loopback

from sweeper.clusters.gang import janitor

pytestmark = [pytest.mark.real, pytest.mark.skipif(not loopback(), reason="no address 127.0.0.3")]

ROOT = Path(__file__).resolve().parents[2]
LONG_S = 1500.0
STEPS = 6  # long enough to be taken up again before it ends


@pytest.fixture(scope="module")
def raylets() -> Iterator[Raylets]:
    with Raylets(2, 4) as running:
        wait_for(lambda: _nodes(running) == "2")  # the second raylet has joined the first
        yield running


def _nodes(raylets: Raylets) -> str:
    ask = "import ray; ray.init(log_to_driver=False); print(len(ray.nodes()))"
    env = {**os.environ, **raylets.env, "RAY_ADDRESS": raylets.address}
    return subprocess.run(
        [sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=False
    ).stdout.strip()


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG_S
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def sweep(raylets: Raylets, folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """A sweep of a trial over two nodes, one rank each."""
    request = ["algorithm=grpo", "cluster=ray", "cluster.device=cpu", "cluster.nodes=2", "cluster.gpus_per_node=1"]
    request += [f"cluster.ray.address={raylets.address}", "deterministic=true", "placement.probe=false"]
    request += [f"trainer.total_training_steps={STEPS}", "trainer.test_freq=2", "trainer.save_freq=1"]
    command = [sys.executable, str(ROOT / "sweep.py"), "-m", *request, "tracking=none", "name=two", *overrides]
    return run(raylets, folder, command)


def run(raylets: Raylets, folder: Path, command: list[str]) -> subprocess.Popen[str]:
    env = {**os.environ, **raylets.env}
    return subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def steps(folder: Path) -> dict[int, dict[str, Any]]:
    """What the trial measured at each step, over its attempts; what measures the machine is left out."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted((folder / "runs" / "two" / "trials" / "000").glob("attempt-*/metrics.jsonl")):
        for line in path.read_text().splitlines():
            read = json.loads(line)
            kept = {k: v for k, v in read["data"].items() if not k.startswith("timing") and "perf/" not in k}
            found.setdefault(read["step"], {}).update(kept)
    return found


def attempt(folder: Path, number: int = 1) -> Path:
    return folder / "runs" / "two" / "trials" / "000" / f"attempt-{number}"


def test_two_trials_at_once_over_two_nodes_and_a_killed_controller_and_node_cost_no_result(
    raylets: Raylets, tmp_path: Path
) -> None:
    """The same trial in two stores, side by side: one is left alone, the other loses its controller, then a node."""
    whole, struck = tmp_path / "whole", tmp_path / "struck"
    whole.mkdir(), struck.mkdir()
    processes = [sweep(raylets, folder, "lr=1e-4") for folder in (whole, struck)]
    try:
        metrics = attempt(struck) / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 1)
        processes[1].send_signal(signal.SIGKILL)
        processes[1].wait()
        again = run(raylets, struck, [str(Path(sys.executable).parent / "sweeper"), "resume", "two"])
        processes.append(again)
        wait_for(lambda: metrics.read_text().count("\n") >= 2)
        den = Path(json.loads((attempt(struck) / "gang" / "1.json").read_text())["temp_dir"])
        for pid in janitor.marked(den.name.removeprefix(janitor.PREFIX)):
            os.kill(pid, signal.SIGKILL)
        for process in (again, processes[0]):
            out, _ = process.communicate(timeout=LONG_S)
            assert process.returncode == 0, out
    finally:
        for process in processes:
            process.kill()

    log = (attempt(whole) / "log.txt").read_text(errors="replace")
    assert "2 nodes are ready" in log
    assert "ip=127.0.0.3" in log
    begun = [json.loads((attempt(f) / "attempt.json").read_text())["started"] for f in (whole, struck)]
    ended = [json.loads((attempt(f) / "exit.json").read_text())["ended"] for f in (whole, struck)]
    assert max(begun) < min(ended), "both at once"
    assert json.loads((attempt(struck) / "exit.json").read_text())["reason"] == "lost"
    assert attempt(struck, number=2).exists()
    mine, theirs = steps(struck), steps(whole)
    assert sorted(step for step in theirs if step) == list(range(1, STEPS + 1))
    assert mine.keys() == theirs.keys()
    for step, values in theirs.items():
        assert {k: mine[step].get(k) for k in values} == values, step  # a resumed run validates once more
