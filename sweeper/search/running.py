"""An attempt that a controller follows: what is known of it while it runs, and what its end says.

Guarantees: durations are taken from the clock that stands still while the machine sleeps; a failure always has a line
that says what was seen, and where the log is when the log says nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeper.clusters.base import Attempt, Exit
from sweeper.engines.base import Engine, Failure, Job
from sweeper.search.base import Fork, Stop
from sweeper.search.outcome import Outcome
from sweeper.search.stops import Health
from sweeper.trial.records import AttemptFolder, Tail


@dataclass(slots=True)
class Running:
    """An attempt that a controller follows."""

    outcome: Outcome
    job: Job
    attempt: Attempt
    folder: AttemptFolder
    tail: Tail
    number: int
    started: float
    """Unix time."""
    nodes: tuple[int, ...]
    health: Health
    recorded: int = -1
    """The last step of this attempt that is in the ledger."""
    since: float = field(default_factory=time.monotonic)
    """When we began to follow it, and below, when its latest step was seen: on the clock that stands still in sleep."""
    progressed: float | None = None
    steps_s: list[float] = field(default_factory=list)
    intent: str = ""
    """Why we asked it to end: `pruned`, `paused`, `fork`, `stalled`, or nothing of the kind."""
    reason: Stop | None = None
    fork: Fork | None = None
    stalled: str = ""
    waits: str = ""
    """Why it waited, when that was last said."""
    silent: str = ""
    """Which of its nodes are not heard from."""
    until: int | None = None
    """The step that it trains to, where that is not the trial's any more: it was extended meanwhile."""


def explain(r: Running, ended: Exit, engine: Engine) -> Failure:
    """Why it failed, by our own intent, by its logs, by how it ended."""
    log = r.folder.path / "log.txt"
    # What the other nodes of a gang wrote (the stacks of a stalled one) comes before the trainer's own last words.
    logs = [*sorted((r.folder.path / "gang").glob("[0-9]*.log")), log]
    text = "".join(path.read_text(errors="replace")[-2_000_000:] for path in logs if path.exists())
    step = r.outcome.curve.step
    at = "without a single step" if step is None else f"at step {step} of {r.job.total_steps}"
    if r.intent == "stalled":
        hung = engine.hung_at(text)
        return Failure("stalled", f"stalled {hung[0] if hung else ''}".strip(), (f"{r.stalled}, {at}", *hung))
    if ended.reason == "stopped":  # by nobody of us
        return Failure("preempted", "preempted", (f"it was ended from outside {at}",))
    failure = engine.failure(text, ended.reason, ended.code, ended.detail)
    if ended.code == 0:
        said = f"the trainer ended {at} (its log: {log})"
        return Failure(failure.kind, failure.signature, (said, *failure.lines))
    if not failure.lines:
        what = f"the trainer ended with code {ended.code} and said nothing (its log: {log})"
        return Failure(failure.kind, failure.signature, (what,))
    return failure


def there(folder: AttemptFolder, *names: str) -> list[Path]:
    """Those of its files that exist."""
    return [path for name in names if (path := folder.path / name).exists()]


def scores(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the lineage record has of a curve's summary."""
    return {"score": summary.get("final_score"), "best_score": summary.get("best_score"), "step": summary.get("step")}
