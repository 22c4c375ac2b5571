"""Why a run ended that was not to end yet.

Guarantees: the kind of failure is the engine's (`Engine.failure`, as the controller judged it); a sign in the log only
says more precisely what that kind was, and the exception that ended the run weighs more than any other line; what
happens to others when a process dies is told only where nothing else is found.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from sweeper.clusters.base import RECORD
from sweeper.diagnose.cases import LOG, STATUS, Case, Evidence, Finding, Log
from sweeper.diagnose.causes import CAUSES
from sweeper.diagnose.signs import SIGNS, Sign
from sweeper.engines.base import Failure, Raised

MOST_LINES = 4
"""Of evidence for one finding."""

_BY_KIND = {
    "preempted": "preempted",
    "node-lost": "node-lost",
    "out-of-memory": "host-memory",
    "stalled": "stalled",
    "nan": "nan",
    "data": "data-schema",
    "disk": "disk-full",
    "launch": "launch",
    "bug": "bug",
}
"""engines.base.Failure.kind -> the cause where no sign says more."""
_MISSING = frozenset({"FileNotFoundError", "IsADirectoryError", "OSError", "PermissionError", "DataFilesNotFoundError"})
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
_CRASHED = frozenset(code for fault in _FAULTS for code in (-fault, 128 + fault))
"""Exit codes of a process that was ended by its own fault: as its parent sees it, and as a shell says it."""
_BY_CODE = ("crash", "worker-lost")
"""Causes that the exit code tells, whatever was logged before."""
_REFUSALS = frozenset(
    {
        "ConfigAttributeError",
        "ConfigKeyError",
        "ConfigCompositionException",
        "InstantiationException",
        "ValidationError",
    }
)


def findings(case: Case) -> list[Finding]:
    """Why it failed, the likeliest cause first; empty where it ended well or has not ended."""
    if not case.failed:
        return []
    reason = case.ended.reason if case.ended else str(case.status.get("reason") or "exit")
    code = case.ended.code if case.ended else case.status.get("exit_code")
    detail = case.ended.detail if case.ended else str(case.status.get("detail") or "")
    if case.status.get("failure") == "stalled":
        return [_stalled(case)]
    failure = case.engine.failure(case.log.text, reason, code, detail)
    if failure.raised is not None and failure.raised.part == "reward":
        return [_by_kind(case, failure, reason, code, detail)]  # whatever it raised, it is the reward that is to mend
    found = list(_by_sign(case, failure, detail))
    if not found or (failure.kind == "preempted" and not any(f.cause == "preempted" for f in found)):
        found.insert(0, _by_kind(case, failure, reason, code, detail))
    return found


def _by_sign(case: Case, failure: Failure, detail: str) -> Iterator[Finding]:
    """What the lines of the log, of its Ray's log and of the exit record say."""
    told = f"{failure.raised.type}: {failure.raised.message}" if failure.raised else ""
    of_end = [s for s in SIGNS if s.pattern.search(told)] if told else []
    # Once the run's own last exception is known, other lines may have been caught and gone on from.
    candidates: Iterable[Sign] = of_end if told else SIGNS
    sure: dict[str, tuple[Sign, list[Evidence]]] = {}
    after: dict[str, tuple[Sign, list[Evidence]]] = {}
    for sign in candidates:
        lines = [*_lines(case.log, sign), *_lines(case.ray, sign), *_of_detail(case, sign, detail)]
        if lines:
            target = after if sign.consequence else sure
            target.setdefault(sign.cause, (sign, []))[1].extend(lines)
    for cause, (sign, lines) in (sure or after).items():
        yield finding(case, cause, lines, source=sign.source)


def _lines(log: Log, sign: Sign) -> list[Evidence]:
    """The last ones that it fits, in order."""
    found = [i for i in range(len(log.lines)) if sign.pattern.search(log.plain(i))]
    return [log.at(i) for i in found[-MOST_LINES:]]


def _of_detail(case: Case, sign: Sign, detail: str) -> list[Evidence]:
    file = case.folder / (RECORD if case.ended else STATUS)
    return [Evidence(file, 0, line.strip()) for line in detail.splitlines() if sign.pattern.search(line)]


def _by_kind(case: Case, failure: Failure, reason: str, code: int | None, detail: str) -> Finding:
    """The engine's verdict, where no sign is finer than it."""
    raised = failure.raised
    cause = _BY_KIND.get(failure.kind, "unknown")
    if raised is not None and raised.part == "reward":
        cause = "reward-raises"
    elif failure.kind == "bug" and raised is not None:
        cause = "data-schema" if raised.part == "data" else "refused-config" if raised.type in _REFUSALS else "bug"
    elif failure.kind == "data" and raised is not None:
        cause = "data-missing" if raised.type in _MISSING else "data-schema"
    elif failure.kind == "node-lost" and reason == "exit":
        cause = "worker-lost"
    elif failure.kind == "bug" and reason == "exit" and code in _CRASHED:
        cause = "crash"
    elif failure.kind == "bug" and not any(line.strip() for line in case.log.lines):
        cause = "unknown"
    lines = [e for e in [_of_exception(case.log, raised)] if e] if raised else []
    lines += [e for line in failure.lines if (e := case.log.holding(line.strip().removeprefix("also: ")))]
    if (not lines or cause in _BY_CODE) and (ended := _how(case, reason, code, detail)):
        lines = [ended, *lines]
    said = f"{CAUSES[cause].what}: {_said(raised, failure)}" if failure.lines and cause != "crash" else ""
    return finding(case, cause, lines, what=said, source="engine's failure rules")


def _said(raised: Raised | None, failure: Failure) -> str:
    if raised is None:
        return failure.lines[0].splitlines()[0]
    where = f", at {raised.place}" if raised.place else ""
    return f"{raised.type}{f': {raised.message}' if raised.message else ''}{where}"


def _of_exception(log: Log, raised: Raised) -> Evidence | None:
    index = raised.line - 1
    return log.at(index) if 0 <= index < len(log.lines) else None


def _how(case: Case, reason: str, code: int | None, detail: str) -> Evidence | None:
    if case.ended is None and not case.status:
        return None
    file: Path = case.folder / (RECORD if case.ended else STATUS)
    first = next((line.strip() for line in detail.splitlines() if line.strip()), "")
    return Evidence(file, 0, first or f"{reason}, exit code {code}")


def _stalled(case: Case) -> Finding:
    """The controller gave it up: its reason, and where its processes were."""
    said = [str(line) for line in case.status.get("root_cause") or ()]
    hung = case.engine.hung_at(case.log.text)
    lines = [Evidence(case.folder / STATUS, 0, line) for line in said[:1]]
    lines += [Evidence(case.folder / LOG, 0, line) for line in hung[: MOST_LINES - 1]]
    return finding(case, "stalled", lines, what=said[0] if said else "", source="sweeper/trial/failures.py Stalls")


def finding(case: Case, cause: str, lines: Iterable[Evidence], *, what: str = "", source: str = "") -> Finding:
    """A finding with what can be changed against it."""
    known = CAUSES[cause]
    general = [line.format(sweep=case.sweep) for line in known.change]
    change = [*case.engine.remedies(cause, case.config), *general]
    shown = tuple(dict.fromkeys(lines))[:MOST_LINES]
    return Finding(cause, what or known.what, shown, tuple(dict.fromkeys(change)), source)
