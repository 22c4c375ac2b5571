"""How far a trial is that has not ended: its ledger has milestones only, its metrics have every step.

Guarantees: only the end of a file is read, for one of a long training is large; what is missing, half-written or no
metrics leaves the trial at what its ledger says.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from sweeper.trial.ledger import TrialState

END = 262_144
"""Bytes that are read: verl writes a few thousand a step."""


def brought_up(trials: dict[str, TrialState]) -> dict[str, TrialState]:
    """The same, where those that run, or ran when their controller died, are at the last step that was trained."""
    for trial in trials.values():
        if trial.state in ("running", "interrupted") and trial.folder:
            newest = _newest(Path(trial.folder) / "metrics.jsonl")
            if newest is not None and (trial.last_step is None or newest > trial.last_step):
                trial.last_step = newest
    return trials


def _newest(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - END))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines[:-1]):  # what is after the last line's end is half-written
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(step, int):
            return step
    return None
