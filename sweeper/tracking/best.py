"""Which checkpoint of a sweep is its best, kept from being freed and told to the tracker.

Guarantees: the best is the one that the tables show first (report/standings.py): of the candidate whose seeds all
finished and score best, the seed that scores best, at its latest checkpoint, for a candidate is ranked by its latest
score; it is pinned before anybody is told of it; a sweep without a finished trial or without checkpoints has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sweeper.checkpoints import pins
from sweeper.errors import SweeperError
from sweeper.lineage import document
from sweeper.report.rows import Ended, Request
from sweeper.report.standings import standings
from sweeper.search.stats import order
from sweeper.tracking.base import Tracker
from sweeper.trial.records import SweepFolder

PIN = "mlflow-best"
"""The pin's name in its trial's checkpoint folder."""


@dataclass(frozen=True, slots=True)
class Best:
    """A checkpoint, with what it is the best by."""

    trial: str
    step: int
    score: float
    path: Path
    record: Path
    """The `lineage.json` of the attempt that left it."""


def find(outcomes: Iterable[Ended], request: Request, folder: SweepFolder) -> Best | None:
    """The best checkpoint that is still there; None where there is none. One that stands for a trial of another sweep
    is that sweep's best, not this one's."""
    candidate = standings(outcomes, request).best
    if candidate is None:
        return None
    scored = [(o, s) for o in candidate.trials if (s := o.curve.final_score) is not None and not o.reused]
    for outcome, score in sorted(scored, key=lambda pair: order(pair[1], request.mode)):
        saved = [
            Best(outcome.trial.id, int(c["step"]), score, Path(c["path"]), attempt / document.NAME)
            for attempt in folder.attempts(outcome.trial.id)
            if (attempt / document.NAME).exists()
            for c in document.load(attempt)["checkpoints"]
            if Path(c["path"]).is_dir()
        ]
        if saved:
            return max(saved, key=lambda b: b.step)
    return None


def tell(
    outcomes: Iterable[Ended], request: Request, folder: SweepFolder, tracker: Tracker, warn: Callable[[str], None]
) -> Best | None:
    """Pin the best checkpoint and tell the tracker of it."""
    try:
        best = find(outcomes, request, folder)
        if best is None:
            return None
        pins.pin(best.path.parent, best.step, "mlflow", f"the best of the sweep {folder.name}", name=PIN)
    except SweeperError as error:
        warn(f"the best checkpoint was not registered: {error}")
        return None
    tracker.best(best.trial, best.step, best.score, request.mode, best.record)
    return best
