"""How one trial of a sweep stands: what the controller keeps of it, and a report reads.

Guarantees: plain data; of a trial that is done only what varies is kept, not its config, so that thousands fit in
memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from sweeper.engines.base import Gang
from sweeper.lineage.record import Donor
from sweeper.search.base import Stop
from sweeper.search.guard import Flag
from sweeper.search.history import Curve
from sweeper.trial.spec import Trial

SPEEDS = 50
"""Of so many latest steps the median speed is taken."""


@dataclass(slots=True)
class Outcome:
    """One trial (report.rows.Ended)."""

    trial: Trial
    fingerprint: str = ""
    state: str = "waiting"
    """`waiting`, `starting`, `running`, `paused`, `finished`, `pruned`, `failed`, `stopped`."""
    curve: Curve = field(default_factory=Curve)
    elapsed_s: float = 0.0
    """Of all its attempts that have ended."""
    gpu_hours: float = 0.0
    """Ranks held times hours, likewise."""
    attempts: int = 0
    speeds: list[float] = field(default_factory=list)
    root_cause: tuple[str, ...] = ()
    failure: str = ""
    stop: Stop | None = None
    folder: Path | None = None
    run_id: str | None = None
    reused: str = ""
    """`sweep/trial` of a finished trial that stands for it."""
    forked: bool = False
    donor: Donor | None = None
    """Whose checkpoint its next attempt goes on from, where that is not its own."""
    gang: Gang | None = None
    """What its next attempt needs, once it was asked."""
    reliefs: int = 0
    """How often it ran out of memory and was given less to hold."""
    flagged: Flag | None = None
    """What the numerics guard found of its placement."""

    @property
    def done(self) -> bool:
        """Whether it will not run any more."""
        return self.state in ("finished", "pruned", "failed")

    @property
    def tokens_per_s(self) -> float | None:
        """Median over its latest steps, over all ranks."""
        return median(self.speeds) if self.speeds else None

    def slim(self) -> None:
        """Forget its config."""
        self.trial = replace(self.trial, config={})
