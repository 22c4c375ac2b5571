"""Whole requests, from their words to their exit code, with a fake trainer: planned, checked, run, recorded and gone on
with as verl's; what is run is a small script that writes a score and a speed by its learning rate and its micro-batch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sweeper import engines, execute
from sweeper.cli.main import main
from sweeper.engines.base import AttemptPaths, Config, Job, Progress
from sweeper.engines.verl.engine import VerlEngine
from sweeper.search import controller
from sweeper.trial.ledger import Event, Ledger

REQUEST = ("cluster.device=cpu", "tracking=none", "output=plain", "placement.probe=false", "engine.fork_server=false")

TRAINER = """
import json, math, sys
lr, tokens, steps = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with open("metrics.jsonl", "a") as out:
    for step in (0, 1, steps):
        line = {"step": step, "score": step / steps - abs(math.log10(lr) + 4), "tokens_per_s": float(tokens)}
        out.write(json.dumps(line) + "\\n")
"""


class ScriptedVerl(VerlEngine):
    """A fake: all that is asked before and after a run is verl's own, and the trainer is TRAINER."""

    def job(self, config: Config, paths: AttemptPaths) -> Job:
        actor, steps = config["actor_rollout_ref"]["actor"], int(config["trainer"]["total_training_steps"])
        values = (actor["optim"]["lr"], actor["ppo_max_token_len_per_gpu"], steps)
        return Job(
            argv=(sys.executable, "-I", "-S", str(paths.folder / "trainer.py"), *map(str, values)),
            env={},
            inherit=(),
            files={"trainer.py": TRAINER},
            gang=self.gang(config),
            python=sys.executable,
            metrics="metrics.jsonl",
            total_steps=steps,
            ray=False,
        )

    def progress(self, line: Mapping[str, Any], config: Config) -> Progress | None:
        return Progress(line["step"], {}, score=line["score"], tokens_per_s=line["tokens_per_s"], step_s=0.01)


class NoRecorder:
    """Writes no lineage: it would hash a model and data that are not built here."""

    reproduces = None

    def __bool__(self) -> bool:
        return False


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request of the test is run by that engine."""
    engine = ScriptedVerl()
    monkeypatch.setattr(engines, "get", lambda _name: engine)
    monkeypatch.setattr(execute, "_prepare", lambda _trials, _display: None)
    monkeypatch.setattr(execute, "_recorder", lambda *_: NoRecorder())
    monkeypatch.setattr(controller, "POLL_S", 0.01)


def run(store: Path, name: str, *overrides: str) -> None:
    """A new sweep, to its end."""
    assert main(["run", *REQUEST, f"store={store}", f"name={name}", *overrides]) == 0


def events(store: Path, name: str, kind: str) -> list[Event]:
    """Those of its ledger, in order."""
    return [e for e in Ledger.history(store / name / "ledger.db") if e.kind == kind]
