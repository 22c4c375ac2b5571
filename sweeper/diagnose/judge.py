"""Puts together what is wrong with a case: why it ended, then how it trained.

Guarantees: pure, but for the clock of a run that is still going; the likeliest cause comes first; a cause is told once.
"""

from __future__ import annotations

import time

from sweeper.diagnose import failed, training
from sweeper.diagnose.cases import RUNNING, Case, Finding


def diagnose(case: Case, now: float | None = None) -> list[Finding]:
    """Everything that happened to the case; empty: nothing is wrong with it.

    Args:
        case: as `cases.read` gives it.
        now: Unix time; by default the clock's.
    """
    ends = failed.findings(case)
    trains = training.findings(case)
    # A training that left the numbers shows it in its metrics before anything raises: the first line is the cause.
    if any(f.cause == "nan" for f in trains) and any(f.cause == "nan" for f in ends):
        ends = [f for f in ends if f.cause != "nan"]
    still = training.stalled(case, time.time() if now is None else now) if case.state in RUNNING else []
    found: dict[str, Finding] = {}
    for finding in (*ends, *still, *trains):
        found.setdefault(finding.cause, finding)
    return list(found.values())
