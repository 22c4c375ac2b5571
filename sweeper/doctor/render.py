"""A report as people and machines read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sweeper.doctor.asked import FAIL, OK, WARN
from sweeper.doctor.checkup import Report

SHOWN = 8
_MARKS = {OK: "ok", WARN: "warn", FAIL: "FAIL"}


def table(report: Report) -> Iterator[str]:
    """One line a check, with its fix below where it is not well."""
    many = len(report.nodes) > 1
    names = [*report.nodes[:SHOWN], *(["..."] if len(report.nodes) > SHOWN else [])]
    yield f"{report.cluster}: {len(report.nodes)} node{'s' * many} ({', '.join(names)})"
    name = max((len(c.name) for c in report.checks), default=0)
    node = max((len(c.node or "all") for c in report.checks), default=0) if many else 0
    for check in report.checks:
        where = f"{check.node or 'all':{node}}  " if many else ""
        yield f"  {_MARKS[check.state]:4}  {check.name:{name}}  {where}{check.said}"
        if check.fix and check.state != OK:
            yield f"        {'':{name}}  {'':{node}}{'  ' * many}try: {check.fix}"
    failed, warned = (sum(c.state == state for c in report.checks) for state in (FAIL, WARN))
    yield f"{failed} failed, {warned} to look at, {len(report.checks) - failed - warned} well"


def as_dict(report: Report) -> dict[str, Any]:
    """The same as JSON."""
    rows = [{k: v for k in c.__slots__ if (v := getattr(c, k))} for c in report.checks]
    return {"cluster": report.cluster, "nodes": list(report.nodes), "checks": rows, "failed": bool(report.code)}
