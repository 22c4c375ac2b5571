"""An engine, a cluster and a tracker without processes, for tests of what stands between them. All are fakes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeper.clusters.base import Exit
from sweeper.engines.base import AttemptPaths, Gang, Job, Progress, Shape
from sweeper.trial.spec import Point, Trial


def fake_trial(index: int, *, ranks: int = 1, code: int = 0, steps: int = 4, hold: bool = False) -> Trial:
    """A trial whose fake run writes `steps` lines and ends with `code`; `hold` makes it run until it is stopped."""
    config = {"ranks": ranks, "code": code, "steps": steps, "hold": hold, "engine": {"name": "fake"}}
    return Trial(f"{index:03d}", Point((f"x={index}",), {"x": index}), config)


class FakeEngine:
    """Reads lines of `{"step": n, "score": s}`."""

    name = "fake"

    def gang(self, config: Mapping[str, Any]) -> Gang:
        return Gang(1, config["ranks"])

    def job(self, config: Mapping[str, Any], paths: AttemptPaths) -> Job:
        return Job(
            argv=("fake", json.dumps({k: config[k] for k in ("code", "steps", "hold")} | {"short": "short" in config})),
            env={},
            inherit=(),
            files={"trainer.yaml": "fake: true\n"},
            gang=self.gang(config),
            python="python",
            metrics="metrics.jsonl",
            total_steps=config["steps"],
        )

    def progress(self, line: Mapping[str, Any], config: Mapping[str, Any]) -> Progress | None:
        return Progress(line["step"], {"score": line["score"]}, reward=line["score"], score=line["score"], step_s=0.1)

    def root_cause(self, log: str) -> list[str]:
        return [line for line in log.splitlines() if "Error" in line]


class FakeAttempt:
    """Writes all its lines on its second poll."""

    def __init__(self, job: Job, folder: Path, ended: list[str]) -> None:
        self.folder, self._ended = folder, ended
        self._does = json.loads(job.argv[1])
        self._polls = 0
        self._exit: Exit | None = None

    def poll(self) -> Exit | None:
        self._polls += 1
        if self._polls == 2:
            with (self.folder / "metrics.jsonl").open("a") as out:
                for step in range(1, self._does["steps"] + 1 - self._does["short"]):
                    out.write(json.dumps({"step": step, "score": step / 10}) + "\n")
            if self._does["code"]:
                (self.folder / "log.txt").write_text("noise\nValueError: planted\n")
            if not self._does["hold"]:
                self._exit = Exit(self._does["code"], "exit", "", time.time())
        if self._exit:
            self._ended.append(self.folder.parent.name)
        return self._exit

    def stop(self) -> None:
        self._exit = Exit(-15, "stopped", "", time.time())

    kill = stop


class FakeCluster:
    """A number of ranks; remembers the order of starts and the most ranks in use at once."""

    def __init__(self, ranks: int) -> None:
        self.shape = Shape("fake", "cpu", 1, ranks)
        self.started: list[str] = []
        self.ended: list[str] = []
        self.peak = 0

    def fits(self, gang: Gang, running: list[Gang]) -> bool:
        return gang.gpus + sum(g.gpus for g in running) <= self.shape.gpus

    def start(self, job: Job, folder: Path) -> FakeAttempt:
        self.started.append(folder.parent.name)
        for name, text in job.files.items():
            (folder / name).write_text(text)
        return FakeAttempt(job, folder, self.ended)


class FakeTracker:
    """Remembers every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.calls.append((name, args))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [args for called, args in self.calls if called == name]


class FakeDisplay:
    """Remembers every event."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def event(self, kind: str, **data: Any) -> None:
        self.events.append({"event": kind, **data})

    def close(self) -> None: ...
