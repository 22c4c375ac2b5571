"""Findings as people and machines read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sweeper.diagnose.cases import Case, Finding


def text(case: Case, found: Sequence[Finding]) -> Iterator[str]:
    """The lines of one case."""
    at = "no step" if case.step is None else f"step {case.step}{f' of {case.total_steps}' if case.total_steps else ''}"
    yield f"{case.name}: {case.state}, {at}"
    if not found:
        yield "  nothing found"
    for finding in found:
        yield f"  {finding.cause}: {finding.what}"
        yield from (f"    {line.place}: {line.text}" for line in finding.evidence)
        yield from (f"    try   {line}" for line in finding.change)
        if finding.source:
            yield f"    known by {finding.source}"


def as_dict(case: Case, found: Sequence[Finding]) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "run": case.name,
        "folder": str(case.folder),
        "state": case.state,
        "step": case.step,
        "total_steps": case.total_steps,
        "findings": [
            {
                "cause": f.cause,
                "what": f.what,
                "evidence": [{"file": str(e.file), "line": e.line, "text": e.text} for e in f.evidence],
                "change": list(f.change),
                "source": f.source,
            }
            for f in found
        ],
    }
