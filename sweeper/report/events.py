"""What happens in a sweep, as one stream of events, shown in one of three ways.

Guarantees: every display gets the same events in the same order; `json` prints each as one line on standard output and
nothing else; `plain` never uses terminal control codes; importing this module imports neither rich nor anything heavy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from sweeper.errors import Problem
from sweeper.trial.records import to_json

_ENDED = (
    "trial", "state", "step", "total", "score", "elapsed_s", "exit_code", "reason", "detail", "root_cause", "folder",
)  # fmt: skip

KINDS: Mapping[str, tuple[str, ...]] = {
    "sweep_started": ("name", "folder", "trials", "planned", "mode", "overrides"),
    "preparing": ("message",),
    "note": ("message",),
    "warning": ("message",),
    "points_refused": ("arm", "points", "why"),
    "sweep_waiting": ("message",),
    "trial_planned": ("trial", "label", "arm", "candidate", "seed", "params", "kind"),
    "trial_reused": ("trial", "score", "source"),
    "trial_started": ("trial", "label", "attempt", "total", "folder", "changed"),
    "attempt_reattached": ("trial", "label", "attempt", "total", "folder"),
    "node_silent": ("trial", "message"),
    "progress": ("trial", "step", "total", "reward", "score", "tokens_per_s", "elapsed_s", "eta_s"),
    "trial_retried": ("trial", "failure", "why", "change", "root_cause"),
    "trial_forked": ("trial", "donor", "step", "changed"),
    "trial_paused": _ENDED,
    "trial_ended": _ENDED,
    "sweep_ended": ("state", "trials", "arms", "comparisons", "placement", "front"),
}  # fmt: skip
"""Every kind of event of a running sweep and its fields; docs/events.md says what they mean."""


class Display(Protocol):
    """Shows the events of one sweep."""

    def event(self, kind: str, /, **data: Any) -> None:
        """One event of `KINDS`."""
        ...

    def close(self) -> None:
        """No event follows."""
        ...


class JsonDisplay:
    """One JSON object a line: `{"event": kind, "time": unix seconds, ...}`."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout

    def event(self, kind: str, /, **data: Any) -> None:
        """Print the event as one line."""
        record = {"event": kind, "time": round(time.time(), 3), **data}
        self._out.write(to_json(_plain(record)) + "\n")
        self._out.flush()

    def close(self) -> None:
        """Nothing to end."""


class PlainDisplay:
    """A line for each thing worth a line; for logs and pipes."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._labels: dict[str, str] = {}
        self._said: dict[str, int] = {}

    def event(self, kind: str, /, **data: Any) -> None:
        """Print the event, unless it is a progress event that says little new."""
        if kind == "sweep_started":
            self._labels = dict(data["trials"])
        elif "label" in data:
            self._labels[str(data["trial"])] = str(data["label"])
        line = self._line(kind, data)
        if kind == "trial_ended":  # thousands may follow
            self._labels.pop(str(data["trial"]), None)
            self._said.pop(str(data["trial"]), None)
        if line:
            self._out.write(f"{time.strftime('%H:%M:%S')} {line}\n")
            self._out.flush()

    def _line(self, kind: str, data: Mapping[str, Any]) -> str:  # noqa: PLR0911, PLR0912 - a line for each kind
        trial = str(data.get("trial", ""))
        name = f"{trial} {self._labels.get(trial, '')}".strip()
        match kind:
            case "sweep_started":
                return f"sweep {data['name']}: {planned(data)}, records in {data['folder']}"
            case "preparing" | "note" | "warning":
                return f"{kind}: {data['message']}"
            case "sweep_waiting":
                return f"waiting: {data['message']}"
            case "node_silent":
                return f"{name}: not heard from: {data['message']}"
            case "points_refused":
                return f"{data['points']} points refused: {data['why']}"
            case "trial_started":
                again = f", attempt {data['attempt']}" if data["attempt"] > 1 else ""
                changed = f", {data['changed']}" if data.get("changed") else ""
                return f"{name}: started{again}{changed}"
            case "attempt_reattached":
                return f"{name}: still running, followed again (attempt {data['attempt']})"
            case "trial_reused":
                source = f" as {data['source']}" if data.get("source") else ""
                return f"{name}: finished earlier{source}, score {_num(data.get('score'))}"
            case "progress":
                return self._progress(name, trial, data)
            case "trial_retried":
                change = f", with {data['change']}" if data.get("change") else ""
                cause = "".join(f"\n         {line}" for line in data.get("root_cause", ())[:1])
                return f"{name}: {data['failure']}, once more{change} ({data['why']}){cause}"
            case "trial_forked":
                return f"{name}: {forked(data)}"
            case "trial_paused":
                return f"{name}: paused at step {data['step']}{because(data)}"
            case "trial_ended":
                lines = [
                    f"{name}: {data['state']} after {duration(data['elapsed_s'])}, score {_num(data.get('score'))}, "
                    f"step {data['step']} of {data['total']}{because(data) if data['state'] == 'pruned' else ''}"
                ]
                lines += [f"         {line}" for line in data.get("root_cause", ())]
                return "\n".join(lines)
        return ""

    def _progress(self, name: str, trial: str, data: Mapping[str, Any]) -> str:
        # A line at each validation and at each tenth of the way; the rest is in metrics.jsonl.
        tenth = 10 * data["step"] // max(1, data["total"])
        if data.get("score") is None and self._said.get(trial) == tenth:
            return ""
        self._said[trial] = tenth
        parts = [f"{name}: step {data['step']} of {data['total']}"]
        for key, word in (("reward", "reward"), ("score", "score"), ("tokens_per_s", "tokens/s")):
            if data.get(key) is not None:
                parts.append(f"{word} {_num(data[key])}")
        if data.get("eta_s") is not None:
            parts.append(f"{duration(data['eta_s'])} left")
        return ", ".join(parts)

    def close(self) -> None:
        """Nothing to end."""


def choose(output: str, out: TextIO | None = None) -> Display:
    """The display for `output`: auto is the live table on a terminal and plain lines elsewhere."""
    stream = out or sys.stdout
    if output == "json":
        return JsonDisplay(stream)
    if output == "rich" or (output == "auto" and stream.isatty()):
        from sweeper.report.live import LiveDisplay

        return LiveDisplay(stream)
    return PlainDisplay(stream)


def count(trials: int) -> str:
    """`1 trial`, `2 trials`."""
    return f"{trials} trial{'s' * (trials != 1)}"


def planned(data: Mapping[str, Any]) -> str:
    """How many trials a sweep that starts will have, in words."""
    known = data.get("planned")
    return count(len(data["trials"]) if known is None else known)


def because(data: Mapping[str, Any]) -> str:
    """Why a trial was paused or pruned, to be appended: ` (worse: ...)`; empty when nothing is said."""
    said = ": ".join(str(data[key]) for key in ("reason", "detail") if data.get(key))
    return f" ({said})" if said else ""


def forked(data: Mapping[str, Any]) -> str:
    """What a fork does: `goes on from 003 at step 20 with lr=0.0001`."""
    values = " ".join(f"{k}={_num(v) if isinstance(v, float) else v}" for k, v in dict(data["changed"]).items())
    place = f"goes on from {data['donor']} at step {data['step']}" if data.get("donor") else "goes on"
    return f"{place} with {values or 'the same values'}"


def duration(seconds: float) -> str:
    """Seconds as people read them: `42s`, `3m07s`, `2h05m`."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    return f"{s // 3600}h{s % 3600 // 60:02d}m"


def _num(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _plain(value: Any) -> Any:
    if isinstance(value, Problem):
        return {k: v for k in value.__slots__ if (v := getattr(value, k))}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
