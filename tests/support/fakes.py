"""An engine, a cluster, a tracker, a sampler's arm without processes, for tests of what stands between them. All are
fakes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeper.clusters.base import Exit
from sweeper.engines.base import AttemptPaths, Failure, Gang, Job, Knob, Progress, Saved, Shape, Sound
from sweeper.search.arm import ArmSearch, Candidate
from sweeper.search.base import Ask, Past, Refuse, Told
from sweeper.trial.spec import Point, Trial


def fake_config(**does: Any) -> dict[str, Any]:
    """What a fake run does: `steps` lines, exit `code`, `hold` until stopped, `short` of its last step, `log` text,
    `scores` by step, `ranks`, `queued` for so many polls."""
    return {"ranks": 1, "code": 0, "steps": 4, "hold": False, "engine": {"name": "fake"}, **does}


def fake_trial(index: int, *, arm: str = "0", params: Mapping[str, Any] | None = None, **does: Any) -> Trial:
    """A trial whose fake run writes `steps` lines and ends with `code`; `hold` makes it run until it is stopped."""
    return Trial(
        f"{index:03d}",
        Point((f"x={index}",), {"x": index, **(params or {})}),
        fake_config(x=index, **does),
        arm=arm,
        candidate=f"{index:03d}",
        params=params or {},
    )


class FakeEngine:
    """Reads lines of `{"step": n, "score": s}`; explains, relieves and forks by what the config says."""

    name = "fake"
    steps_key, validation_key, saving_key = "steps", "validate", "save"

    def __init__(self) -> None:
        self.adopted: list[tuple[int, str]] = []

    def gang(self, config: Mapping[str, Any]) -> Gang:
        return Gang(config.get("nodes", 1), config["ranks"])

    def job(self, config: Mapping[str, Any], paths: AttemptPaths) -> Job:
        return Job(
            argv=("fake", json.dumps({**config, "checkpoints": str(paths.checkpoints)})),
            env={},
            inherit=(),
            files={"trainer.yaml": "fake: true\n"},
            gang=self.gang(config),
            python="python",
            metrics="metrics.jsonl",
            total_steps=config["steps"],
        )

    def progress(self, line: Mapping[str, Any], config: Mapping[str, Any]) -> Progress | None:
        score = line["score"]
        return Progress(
            line["step"], {"score": score}, reward=score, score=score, step_s=0.1, signals=line.get("signals") or {}
        )

    def exact(self, config: Mapping[str, Any]) -> bool:
        return True

    def placements(self, config: Mapping[str, Any], shape: Shape, typed: Any = ()) -> list[Knob]:
        return [Knob("tp", ({"rollout.tensor_model_parallel_size": config.get("tp", 1)},))]

    def of_machine(self, metric: str) -> bool:
        return metric.startswith("time")

    def failure(self, log: str, reason: str, code: int | None, detail: str) -> Failure:
        lines = tuple(line for line in log.splitlines() if "Error" in line)
        kind = "node-lost" if reason == "lost" else "launch" if reason == "launch" else "bug"
        for word, other in (("MemoryError", "out-of-memory"), ("NanError", "nan")):
            kind = other if word in log else kind
        return Failure(kind, f"{kind} {lines[0] if lines else ''}", lines)

    def knobs(self, config: Mapping[str, Any]) -> dict[str, float]:
        return {name: config[name] for name in ("lr", "kl", "tp") if config.get(name) is not None}

    def hung_at(self, log: str) -> list[str]:
        return [line for line in log.splitlines() if line.startswith("File ")]

    def remedies(self, cause: str, config: Mapping[str, Any]) -> list[str]:
        return []

    def relieve(self, config: Mapping[str, Any], times: int) -> tuple[dict[str, Any], str] | None:
        left = config.get("relief", 0)
        return ({**config, "code": 0, "micro": 8 >> times}, f"micro {8 >> times}") if times <= left else None

    def forkable(self, key: str) -> bool:
        return key != "model"

    def checkpoint(self, folder: Path, step: int | None = None) -> Saved | None:
        found = sorted(int(p.name) for p in folder.glob("[0-9]*"))
        if step in found:
            return Saved(step, folder / str(step))
        return Saved(found[-1], folder / str(found[-1])) if found else None

    def sound(self, folder: Path, step: int | None = None) -> Sound:
        said = []
        while (saved := self.checkpoint(folder, step)) and saved.path.read_text() == "corrupted":
            saved.path.rename(folder / f"corrupt-{saved.step}")
            said.append(f"{saved.path} is corrupted")
        return Sound(saved, tuple(said))

    def kept(self, folder: Path) -> list[Saved]:
        return [Saved(int(p.name), p) for p in sorted(folder.glob("[0-9]*"), key=lambda p: int(p.name))]

    def leftovers(self, folder: Path) -> list[tuple[Path, str]]:
        return [(path, "left over") for path in folder.glob("aside-*")]

    def adopt(self, saved: Saved, folder: Path) -> None:
        self.adopted.append((saved.step, folder.parent.name))
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("[0-9]*"):
            old.unlink()
        (folder / str(saved.step)).write_text(saved.path.read_text())


class FakeAttempt:
    """Writes all its lines on its second poll, from the step after its newest checkpoint; saves every second step."""

    nodes = (0,)

    def __init__(self, job: Job, folder: Path, cluster: FakeCluster) -> None:
        self.folder, self._cluster = folder, cluster
        self.gang = job.gang
        self._does = json.loads(job.argv[1])
        self._polls = 0
        self._exit: Exit | None = None
        self.dumped = False

    def poll(self) -> Exit | None:
        self._polls += 1
        if self._polls == 2 + self._does.get("queued", 0) and self._exit is None:
            self._run()
        if self._exit and self in self._cluster.running:
            self._cluster.running.remove(self)
            self._cluster.ended.append(self.folder.parent.name)
        return self._exit

    def _run(self) -> None:
        does, checkpoints = self._does, Path(self._does["checkpoints"])
        first = max((int(p.name) for p in checkpoints.glob("[0-9]*")), default=0) + 1
        codes = does["code"] if isinstance(does["code"], list) else [does["code"]]
        attempt = int(self.folder.name.rpartition("-")[2])
        code = codes[min(attempt, len(codes)) - 1]
        last = does["steps"] - bool(does.get("short"))
        with (self.folder / "metrics.jsonl").open("a") as out:
            for step in range(first, last + 1):
                score = (does.get("scores") or {}).get(str(step), step / 10 + does.get("bonus", 0.0))
                out.write(json.dumps({"step": step, "score": score, "signals": does.get("signals") or {}}) + "\n")
                if step % 2 == 0:
                    checkpoints.mkdir(parents=True, exist_ok=True)
                    (checkpoints / str(step)).write_text(json.dumps({"x": does.get("x")}))
        if code:
            (self.folder / "log.txt").write_text(does.get("log", "noise\nValueError: planted\n"))
        if not does["hold"]:
            reason = "lost" if code == "lost" else "exit"
            self._exit = Exit(None if reason == "lost" else code, reason, "", time.time())

    def waiting(self) -> str:
        return "(Priority)" if self._polls < 2 + self._does.get("queued", 0) and "queued" in self._does else ""

    def silent(self) -> str:
        return "host1: no answer" if self._polls in self._does.get("silent", ()) else ""

    def stop(self, *, dump: bool = False) -> None:
        self.dumped = self.dumped or dump
        if dump:
            (self.folder / "log.txt").write_text("File train.py, line 3, in wait_for_rollout\n")
        self._exit = self._exit or Exit(-15, "stopped", "", time.time())

    def kill(self) -> None:
        self.stop()


class FakeCluster:
    """Nodes with ranks; remembers the order of starts and the most ranks in use at once."""

    def __init__(self, ranks: int, nodes: int = 1) -> None:
        self.shape = Shape("fake", "cpu", nodes, ranks)
        self.started: list[str] = []
        self.ended: list[str] = []
        self.running: list[FakeAttempt] = []
        self.peak = 0
        self.taken = 0
        """Ranks of node 0 that another sweep holds."""
        self.left: dict[str, FakeAttempt] = {}
        """Attempts that an earlier controller left running, by folder."""

    def free(self) -> tuple[int, ...]:
        used = sum(a.gang.gpus for a in self.running)
        return (self.shape.gpus_per_node - used - self.taken,) + (self.shape.gpus_per_node,) * (self.shape.nodes - 1)

    def start(self, job: Job, folder: Path, nodes: tuple[int, ...]) -> FakeAttempt | None:
        if job.gang.gpus > self.free()[nodes[0]]:
            return None
        self.started.append(folder.parent.name)
        for name, text in job.files.items():
            (folder / name).write_text(text)
        attempt = FakeAttempt(job, folder, self)
        self.running.append(attempt)
        self.peak = max(self.peak, sum(a.gang.gpus for a in self.running))
        return attempt

    def attach(self, folder: Path) -> FakeAttempt | None:
        return self.left.get(str(folder))


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

    def event(self, kind: str, /, **data: Any) -> None:
        self.events.append({"event": kind, **data})

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == kind]

    def close(self) -> None: ...


class ListSampler:
    """Proposes given points in order; remembers what it was told."""

    def __init__(self, points: Sequence[Mapping[str, Any]]) -> None:
        self._points = list(points)
        self._asked = 0
        self.told: dict[int, Told] = {}

    def ask(self, refuse: Refuse) -> Ask | None:
        if self._asked >= len(self._points):
            return None
        self._asked += 1
        return Ask(self._asked - 1, self._points[self._asked - 1])

    def tell(self, number: int, told: Told) -> None:
        self.told[number] = told

    def replay(self, past: Any) -> None:
        known: list[Past] = list(past)
        self._asked = len(known)
        self.told = {p.ask.number: p.told for p in known if p.told is not None}


class NoScheduler:
    """Decides nothing."""

    def added(self, candidate: str, params: Mapping[str, Any]) -> None: ...

    def result(self, candidate: str, step: int, score: float) -> dict[str, Any]:
        return {}

    def ended(self, candidate: str) -> dict[str, Any]:
        return {}

    def closed(self) -> dict[str, Any]:
        return {}

    def resumable(self, paused: Any) -> list[str]:
        return list(paused)


@dataclass
class FakeArm:
    """An arm of given trials, one a candidate, or of points that `make` turns into trials."""

    trials: Sequence[Trial] = ()
    scheduler: Any = field(default_factory=NoScheduler)
    seeds: Sequence[int | None] = (None,)
    arm: str = "0"
    mode: str = "max"
    objectives: Sequence[str] = ("score",)
    budget: int | None = None

    def search(self) -> ArmSearch:
        self.sampler = ListSampler([dict(t.params) for t in self.trials])
        names = [t.candidate for t in self.trials]
        return ArmSearch(
            self.arm,
            sampler=self.sampler,
            scheduler=self.scheduler,
            refuse=lambda _params: "",
            budget=self.budget,
            objectives=self.objectives,
            name=lambda n: names[n] if n < len(names) else f"{n:03d}",
            seeds=self.seeds,
            mode=self.mode,
        )


def fake_size(trials: Sequence[Trial]) -> Callable[[Candidate, int | None, str, str], Trial]:
    """The trials of those candidates, under whatever seed and id they are asked for."""
    by = {t.candidate: t for t in trials}

    def size(candidate: Candidate, seed: int | None, trial_id: str, kind: str) -> Trial:
        t = by[candidate.id]
        return Trial(
            trial_id,
            Point(t.point.overrides, {**t.point.varied, **({} if seed is None else {"seed": seed})}),
            {**t.config, **candidate.params, **({} if seed is None else {"seed": seed})},
            arm=candidate.arm,
            candidate=candidate.id,
            seed=seed,
            params=dict(candidate.params),
            kind=kind,
        )

    return size
