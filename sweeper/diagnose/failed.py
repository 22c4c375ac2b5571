"""Why a run ended that was not to end yet.

Guarantees: the kind of failure is the engine's (`Engine.failure`, as the controller judged it); a sign in the log only
says more precisely what that kind was, and the exception that ended the run weighs more than any other line; what
happens to others when a process dies, or a node, is told only where nothing else is found on any node.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeper.clusters.base import RECORD
from sweeper.clusters.gang.node import GANG
from sweeper.diagnose.cases import STATUS, Case, Evidence, Finding, Log
from sweeper.diagnose.causes import CAUSES
from sweeper.diagnose.signs import OURS, SIGNS, Sign
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
_GONE = ("lost", "launch")
"""Reasons of an end that is not the trainer's own: what it raised before may have been caught."""
_OF_START = frozenset({"port-clash", "ray-start"})
_RAY_IS_UP = "Ray runtime started."
"""Ends a line of `ray start`: what it said before was of a try that another one has replaced."""
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
    failure = case.engine.failure(case.text, reason, code, detail)
    if failure.raised is not None and failure.raised.part == "reward" and reason not in _GONE:
        return [_by_kind(case, failure, reason, code, detail)]  # whatever it raised, it is the reward that is to mend
    found = list(_by_sign(case, failure, reason, detail))
    if not found or (failure.kind == "preempted" and not any(f.cause == "preempted" for f in found)):
        found.insert(0, _by_kind(case, failure, reason, code, detail))
    return found


def _by_sign(case: Case, failure: Failure, reason: str, detail: str) -> Iterator[Finding]:
    """What the lines of its logs and of the exit records say."""
    logs = [(log, [log.plain(i) for i in range(len(log.lines))]) for log in case.logs]
    records = _records(case, reason, detail)
    # Once the run's own last exception is known, other lines may have been caught and gone on from.
    candidates = _of_end(failure) if failure.raised and reason not in _GONE else SIGNS
    # Of what happens to others, our own nodes know best what it was.
    tiers: tuple[_Found, _Found, _Found] = ({}, {}, {})
    for sign in candidates:
        found = [seen for log, lines in logs for seen in _logged(log, lines, sign)]
        found += [seen for record in records for seen in _recorded(record, sign)]
        if found:
            tiers[0 if not sign.consequence else 1 if sign.ours else 2].setdefault(sign.cause, []).extend(found)
    for cause, seen in _weighed(*tiers, gone=reason in _GONE).items():
        yield _told(case, cause, seen)


def _weighed(sure: _Found, own: _Found, after: _Found, *, gone: bool) -> _Found:
    """What is told of it, by cause: what is sure, else what our nodes say, else what happened to others.

    Where the attempt was gone and not the trainer ended, what our nodes say of that is told beside what explains it,
    for a line of a log may be of something that was caught long before; a sentence of ours that is sure explains it.
    """
    if gone and not any(seen.sign.ours for found in sure.values() for seen in found):
        return {**sure, **{cause: found for cause, found in own.items() if cause not in sure}} or after
    return sure or own or after


@dataclass(frozen=True, slots=True)
class _Seen:
    """A sign that fits a line."""

    sign: Sign
    match: re.Match[str]
    line: Evidence


_Found = dict[str, list[_Seen]]
"""By cause."""


def _of_end(failure: Failure) -> Iterable[Sign]:
    """The signs that fit the exception that ended the run; where it says nothing and the engine went by a line of the
    machine's memory, those of that line."""
    told = f"{failure.raised.type}: {failure.raised.message}" if failure.raised else ""
    found = [sign for sign in SIGNS if not sign.ours and sign.pattern.search(told)]
    by_line = failure.kind == "out-of-memory" and not found
    return [sign for sign in SIGNS if sign.cause == _BY_KIND[failure.kind]] if by_line else found


def _logged(log: Log, lines: Sequence[str], sign: Sign) -> list[_Seen]:
    """The last lines of a log that it fits, in order."""
    begin = _up(lines) if sign.cause in _OF_START else 0
    found = [
        _Seen(sign, match, log.at(i))
        for i, line in enumerate(lines)
        if i >= begin and (not sign.ours or line.startswith(OURS)) and (match := sign.pattern.search(line))
    ]
    return found[-MOST_LINES:]


def _up(lines: Sequence[str]) -> int:
    """The place behind Ray's last word that it is up; 0 where it never was."""
    return next((i + 1 for i in reversed(range(len(lines))) if lines[i].endswith(_RAY_IS_UP)), 0)


def _recorded(record: Sequence[Evidence], sign: Sign) -> Iterator[_Seen]:
    """The lines of a record that it fits, and the last one where they are about that."""
    for line in record:
        if match := sign.pattern.search(line.text):
            yield _Seen(sign, match, line)
            if sign.ours and line.text.endswith(":") and record[-1] is not line:
                yield _Seen(sign, match, record[-1])


def _records(case: Case, reason: str, detail: str) -> list[list[Evidence]]:
    """How it ended, and how the parts of other nodes did where that says more; each by its lines."""
    found = [(case.folder / (RECORD if case.ended else STATUS), detail.splitlines())]
    for rank, part in case.parts.items():
        # A node that lost the first one only says that this ended, unless the trainer did not end by itself.
        if part.reason == "launch" or (part.reason == "lost" and reason == "exit"):
            own = [line for line in part.detail.splitlines() if line not in detail]
            found.append((case.folder / GANG / f"{rank}.{RECORD}", own))
    return [[Evidence(file, 0, line.strip()) for line in lines if line.strip()] for file, lines in found]


def _told(case: Case, cause: str, seen: Sequence[_Seen]) -> Finding:
    """The finding of a cause whose signs were seen, with the nodes where they were."""
    said = [each.match for each in seen if each.sign.ours]
    told = "; ".join(list(dict.fromkeys(match[0].strip(" :") for match in said))[:MOST_LINES])
    where = ", ".join(list(dict.fromkeys(n for each in seen if (n := case.node_of(each.line.file))))[:MOST_LINES])
    what = CAUSES[cause].what
    what += f": {told}" if told else f", on {where}" if where else ""
    node = next((name for match in said if (name := match.groupdict().get("node"))), "")
    return finding(case, cause, (each.line for each in seen), what=what, source=seen[0].sign.source, node=node)


def _by_kind(case: Case, failure: Failure, reason: str, code: int | None, detail: str) -> Finding:
    """The engine's verdict, where no sign is finer than it."""
    raised = failure.raised if reason != "lost" else None
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
    lines = [e for e in [case.at(raised.line)] if e] if raised else []
    lines += [e for line in failure.lines if (e := case.holding(line.strip().removeprefix("also: ")))]
    if (not lines or cause in _BY_CODE or reason in _GONE) and (ended := _how(case, reason, code, detail)):
        lines = [ended, *lines]
    said = f"{CAUSES[cause].what}: {_said(raised, failure)}" if failure.lines and cause != "crash" else ""
    return finding(case, cause, lines, what=said, source="engine's failure rules")


def _said(raised: Raised | None, failure: Failure) -> str:
    if raised is None:
        return failure.lines[0].splitlines()[0]
    where = f", at {raised.place}" if raised.place else ""
    return f"{raised.type}{f': {raised.message}' if raised.message else ''}{where}"


def _how(case: Case, reason: str, code: int | None, detail: str) -> Evidence | None:
    if case.ended is None and not case.status:
        return None
    file: Path = case.folder / (RECORD if case.ended else STATUS)
    first = next((line.strip() for line in detail.splitlines() if line.strip()), "")
    return Evidence(file, 0, first or f"{reason}, exit code {code}")


def _stalled(case: Case) -> Finding:
    """The controller gave it up: its reason, and where its processes were."""
    said = [str(line) for line in case.status.get("root_cause") or ()]
    lines = [Evidence(case.folder / STATUS, 0, line) for line in said[:1]]
    lines += hung(case)[: MOST_LINES - 1]
    return finding(case, "stalled", lines, what=said[0] if said else "", source="sweeper/trial/failures.py Stalls")


def hung(case: Case) -> list[Evidence]:
    """Where its processes were when they wrote their stacks, on all nodes, the most telling first."""
    by_file = {log.file: case.engine.hung_at(log.text) for log in (case.log, *case.others) if log.lines}
    return [
        Evidence(next((f for f, own in by_file.items() if _place(line) in map(_place, own)), case.log.file), 0, line)
        for line in case.engine.hung_at(case.text)
    ]


def _place(line: str) -> str:
    """The place of `WHO: FILE:LINE in FUNCTION`."""
    return line.rpartition(": ")[2]


def finding(
    case: Case, cause: str, lines: Iterable[Evidence], *, what: str = "", source: str = "", node: str = ""
) -> Finding:
    """A finding with what can be changed against it. `node`: the one that is meant, as a sentence of ours calls it."""
    known = CAUSES[cause]
    words = {"sweep": case.sweep, "doctor": case.doctor, "log": case.log_of(node) if node else ""}
    general = [line.format(**words) for line in known.change if words["log"] or "{log}" not in line]
    change = [*case.engine.remedies(cause, case.config), *general]
    shown = tuple(dict.fromkeys(lines))[:MOST_LINES]
    return Finding(cause, what or known.what, shown, tuple(dict.fromkeys(change)), source)
