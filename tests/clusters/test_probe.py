"""What a gang's Ray cluster must be before the trainer starts: exactly its nodes, with exactly their GPUs. Ray is a
fake, which says the nodes that a test gives it; with a real one: tests/real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeper.clusters.gang import probe

FAKE_RAY = Path(__file__).resolve().parents[1] / "support" / "fake_ray"
A, B = ("10.0.0.1", 8), ("10.0.0.2", 8)


def says(path: Path, *nodes: tuple[str, float], dead: tuple[str, ...] = ()) -> None:
    there = [
        {"NodeManagerAddress": address, "Alive": address not in dead, "Resources": {"CPU": 9.0, "GPU": gpus}}
        for address, gpus in nodes
    ]
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(there))
    partial.replace(path)


def start(path: Path, seconds: float, *expected: tuple[str, int]) -> subprocess.Popen[str]:
    words = [probe.__file__, str(path), json.dumps(expected), str(seconds)]
    env = {**os.environ, "PYTHONPATH": str(FAKE_RAY)}
    return subprocess.Popen([sys.executable, *words], env=env, stdout=subprocess.PIPE, text=True)


def test_exactly_the_nodes_in_any_order_with_a_dead_one_beside(tmp_path: Path) -> None:
    says(ray := tmp_path / "ray", B, A, ("10.0.0.9", 8), dead=("10.0.0.9",))
    assert start(ray, 60, A, B).wait(60) == 0


@pytest.mark.parametrize(
    "there",
    [
        [A],
        [A, B, ("10.0.0.3", 8)],
        [A, ("10.0.0.3", 8)],
        [A, ("10.0.0.2", 7)],
        [A, ("10.0.0.2", 0)],
        [A, ("10.0.0.2", 9)],
    ],
)
def test_anything_else_is_said_and_is_no_gang(tmp_path: Path, there: list[tuple[str, float]]) -> None:
    says(ray := tmp_path / "ray", *there)
    process = start(ray, 0.2, A, B)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"{[A, B]} (address, ranks) were to be there within 0.2 s, and there is {there}" in said


def test_a_node_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    says(ray := tmp_path / "ray", A)
    process = start(ray, 60, A, B)
    time.sleep(1)
    assert process.poll() is None
    says(ray, A, B)
    assert process.wait(60) == 0
