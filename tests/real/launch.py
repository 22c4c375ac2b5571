"""One trial on this machine, from override lines to its metrics, by the project's own parts and without a sweep."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper import engines, prepare
from sweeper.clusters.local import LocalCluster
from sweeper.clusters.machine import detect
from sweeper.config.hydra_app import initialized
from sweeper.engines.base import AttemptPaths
from sweeper.plan import plan
from sweeper.trial.records import Tail

NOISE = ("timing", "perf/", "perf_", "throughput")


@dataclass(frozen=True)
class Run:
    code: int | None
    log: str
    lines: list[dict[str, Any]]
    """The metrics file: {"step": n, "data": {...}} a line."""
    checkpoints: Path

    def series(self, key: str) -> list[tuple[int, float]]:
        return [(line["step"], line["data"][key]) for line in self.lines if key in line["data"]]

    def by_step(self) -> dict[int, dict[str, Any]]:
        """All values but those that measure time, memory or the machine."""
        return {
            line["step"]: {k: v for k, v in line["data"].items() if not any(n in k for n in NOISE)}
            for line in self.lines
        }


def run(folder: Path, *overrides: str, timeout: float = 900) -> Run:
    """Train to the end; `folder` takes the attempt and, beside it, the checkpoints."""
    with initialized():
        made = plan.make(["cluster.device=cpu", *overrides])
    assert not made.problems, made.problems
    config = dict(made.trials[0].config)
    prepare.run(prepare.missing([config]), sys.executable, print)
    folder.mkdir(parents=True)
    checkpoints = folder.parent / "checkpoints"
    job = engines.get("verl").job(config, AttemptPaths(folder=folder, checkpoints=checkpoints))
    attempt = LocalCluster(detect("local", "cpu", None)).start(job, folder, (0,))
    assert attempt is not None, "its ranks are held by another sweep"
    try:
        ended = attempt.wait(timeout)  # type: ignore[attr-defined]
    finally:
        attempt.kill()
    return _run(folder, checkpoints, ended.code)


def read(trial: Path) -> Run:
    """The run of a sweep's trial: its last attempt, for on a busy machine Ray may miss its own time to start in one."""
    folder = max(trial.glob("attempt-*"), key=lambda path: int(path.name.partition("-")[2]))
    code = json.loads((folder / "exit.json").read_text())["code"]
    return _run(folder, trial / "checkpoints", code)


def _run(folder: Path, checkpoints: Path, code: int | None) -> Run:
    log = (folder / "log.txt").read_text(errors="replace")
    return Run(code, log, Tail(folder / "metrics.jsonl").read(), checkpoints)
