"""A simulator of parallel training on an event heap: schedulers meet weeks of it in milliseconds. All of it is fake.

A candidate's quality grows by `gain(params)` a step; a validation tells the quality; a checkpoint is kept at each.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeper.search.base import Scheduler, Verdict

Call = tuple[Any, ...]


@dataclass
class Runner:
    """One candidate."""

    id: str
    params: dict[str, Any]
    state: str = "waiting"
    step: int = 0
    quality: float = 0.0
    saved: dict[int, float] = field(default_factory=lambda: {0: 0.0})
    life: int = 0
    """Events of an earlier life are void."""
    used: int = 0
    """Steps that it trained, forks included."""


@dataclass
class Race:
    """What happened."""

    runners: dict[str, Runner]
    calls: list[Call]
    """What the scheduler was told, in order."""
    answers: list[dict[str, Verdict]]
    """What it said to each of these."""
    peak: int = 0

    @property
    def used(self) -> int:
        return sum(r.used for r in self.runners.values())

    def states(self) -> dict[str, str]:
        return {r.id: r.state for r in self.runners.values()}

    def verdicts(self, action: str) -> list[tuple[str, Verdict]]:
        return [(c, v) for answer in self.answers for c, v in answer.items() if v.action == action]


def race(
    scheduler: Scheduler,
    points: Sequence[Mapping[str, Any]],
    *,
    gain: Callable[[Mapping[str, Any]], float],
    validations: Sequence[int],
    total: int,
    slots: int = 4,
    pace: Callable[[int], float] = lambda n: 1.0 + 0.13 * (n % 5),
    fails: Mapping[str, int] | None = None,
    blind: Iterable[tuple[str, int]] = (),
    dry: bool = False,
) -> Race:
    """Run all `points`, `slots` at once.

    `pace`: seconds a step of the n-th; `fails`: candidate -> step at which it fails; `blind`: (candidate, step) whose
    score is no number; `dry`: tell the scheduler after the last point that no other will come.
    """
    runners = {f"{n:03d}": Runner(f"{n:03d}", dict(p)) for n, p in enumerate(points)}
    stops = sorted({*(v for v in validations if v > 0), total})
    out = Race(runners, [], [])
    new, heap, fails, unseen = list(runners), [], dict(fails or {}), set(blind)
    now, order = 0.0, 0

    def tell(*call: Any) -> dict[str, Verdict]:
        out.calls.append(call)
        answer = getattr(scheduler, call[0])(*call[1:]) or {}
        out.answers.append(answer)
        return answer

    def launch(r: Runner) -> None:
        nonlocal order
        r.state, r.life, order = "running", r.life + 1, order + 1
        at = min(next(s for s in stops if s > r.step), fails.get(r.id, total))
        heapq.heappush(heap, (now + (at - r.step) * pace(int(r.id)), order, r.id, r.life, at))

    def end(r: Runner, state: str) -> None:
        r.state = state
        apply(tell("ended", r.id))

    def apply(answer: Mapping[str, Verdict]) -> None:
        for candidate, verdict in answer.items():
            r = runners[candidate]
            assert r.state in ("running", "paused"), (candidate, r.state, verdict)
            r.life += 1
            if verdict.action == "stop":
                end(r, "pruned")
            elif verdict.action == "pause":
                r.state = "paused"
            elif verdict.action == "fork":
                assert verdict.fork is not None
                donor, step = runners[verdict.fork.donor], verdict.fork.step
                assert step is not None
                r.step, r.quality, r.params = step, donor.saved[step], dict(verdict.fork.params)
                r.saved[step] = r.quality
                launch(r)

    def start() -> None:
        nonlocal dry
        while sum(r.state == "running" for r in runners.values()) < slots:
            if new:
                r = runners[new.pop(0)]
                tell("added", r.id, r.params)
                launch(r)
            elif dry:
                dry = False
                apply(tell("closed"))
            elif ready := scheduler.resumable([r.id for r in runners.values() if r.state == "paused"]):
                launch(runners[ready[0]])
            else:
                return

    start()
    while heap:
        out.peak = max(out.peak, sum(r.state == "running" for r in runners.values()))
        now, _, candidate, life, at = heapq.heappop(heap)
        r = runners[candidate]
        if life != r.life or r.state != "running":
            continue
        r.used += at - r.step
        r.quality += gain(r.params) * (at - r.step)
        r.step = at
        if fails.get(candidate) == at:
            end(r, "failed")
        else:
            r.saved[at] = r.quality
            if at in validations:
                apply(tell("result", candidate, at, math.nan if (candidate, at) in unseen else r.quality))
            if r.state == "running" and r.life == life:
                if at >= total:
                    end(r, "finished")
                else:
                    launch(r)
        start()
    return out


def again(scheduler: Scheduler, calls: Sequence[Call]) -> list[dict[str, Verdict]]:
    """The same calls to another scheduler: what it says to each."""
    return [getattr(scheduler, call[0])(*call[1:]) or {} for call in calls]
