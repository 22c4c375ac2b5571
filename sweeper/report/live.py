"""The live table of a running sweep, redrawn four times a second while the trainings run.

Guarantees: a row a trial while that fits a screen; with more, what runs and the best few, and of the rest how many are
in which state; the terminal is left as it was found, also after an error; a warning is printed above the table and
stays.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeper.report.events import because, count, duration, forked, planned
from sweeper.search.stats import order

STYLES = {
    "finished": "green",
    "failed": "bold red",
    "pruned": "magenta",
    "stopped": "yellow",
    "paused": "yellow",
    "running": "cyan",
    "starting": "blue",
    "waiting": "dim",
}
FULL_ROWS = 24
"""Up to so many trials each has a row; of more, at most so many that run."""
BEST_ROWS = 5
"""Finished trials that have a row among many."""


@dataclass(slots=True)
class _Row:
    label: str
    state: str = "waiting"
    step: int = 0
    total: int = 0
    reward: float | None = None
    score: float | None = None
    first: float | None = None
    tokens_per_s: float | None = None
    started: float | None = None
    elapsed: float | None = None
    eta: float | None = None
    eta_at: float = 0.0


class LiveDisplay:
    """A rich table that follows the events."""

    def __init__(self, out: TextIO) -> None:
        self._console = Console(file=out, highlight=False)
        self._rows: dict[str, _Row] = {}
        self._planned, self._mode = 0, "max"
        self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=4, transient=True)
        self._on = False

    def event(self, kind: str, /, **data: Any) -> None:
        """Update the rows; messages go above the table."""
        trial = str(data.get("trial", ""))
        if "label" in data:
            self._rows.setdefault(trial, _Row(str(data["label"])))
        row = self._rows.get(trial)
        match kind:
            case "sweep_started":
                self._rows = {t: _Row(label) for t, label in dict(data["trials"]).items()}
                self._planned, self._mode = data.get("planned") or 0, data.get("mode", "max")
                self._console.print(f"sweep [bold]{data['name']}[/]: {planned(data)}, records in {data['folder']}")
                self._live.start()
                self._on = True
            case "preparing" | "note":
                self._say(str(data["message"]))
            case "warning":
                self._say(str(data["message"]), "yellow")
            case "sweep_waiting":
                self._say(f"waiting: {data['message']}", "yellow")
            case "points_refused":
                self._say(f"{data['points']} points refused: {data['why']}")
            case "progress" if row:
                self._progress(row, data)
            case "sweep_ended":
                self.close()
            case _ if row:
                self._trial(kind, trial, row, data)

    def _trial(self, kind: str, trial: str, row: _Row, data: Mapping[str, Any]) -> None:
        match kind:
            case "trial_started" | "attempt_reattached":
                row.state, row.started, row.total, row.elapsed = "starting", time.time(), data["total"], None
            case "trial_reused":
                row.state, row.score = "finished", data.get("score")
            case "node_silent":
                self._say(f"{trial}: not heard from: {data['message']}", "yellow")
            case "trial_retried":
                row.state, row.eta = "waiting", None
                change = f", with {data['change']}" if data.get("change") else ""
                self._say(f"{trial}: {data['failure']}, once more{change} ({data['why']})", "yellow")
            case "trial_forked":
                row.state, row.eta = "waiting", None
                self._say(f"{trial}: {forked(data)}")
            case "trial_paused":
                row.state, row.elapsed, row.eta = "paused", data["elapsed_s"], None
            case "trial_ended":
                row.state, row.elapsed, row.eta = data["state"], data["elapsed_s"], None
                if row.state == "pruned" and data.get("reason") != "worse":
                    self._say(f"{trial}: pruned{because(data)}", "yellow")
                for line in data.get("root_cause", ()):
                    self._say(f"{trial}: {line}", "red")

    def _progress(self, row: _Row, data: Mapping[str, Any]) -> None:
        row.state, row.step, row.total = "running", data["step"], data["total"]
        for key in ("reward", "score", "tokens_per_s"):
            if data.get(key) is not None:
                setattr(row, key, data[key])
        if row.first is None:
            row.first = data.get("score")
        row.eta, row.eta_at = data.get("eta_s"), time.time()

    def _say(self, message: str, style: str = "dim") -> None:
        self._console.print(Text(message, style=style), soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
        table.add_column("trial", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("step", no_wrap=True)
        table.add_column("", width=12)
        for head in ("reward", "score", "tokens/s", "elapsed", "left"):
            table.add_column(head, justify="right", no_wrap=True)
        rows = dict(self._rows)
        total = max(self._planned, len(rows))
        if total <= FULL_ROWS:
            for trial, row in rows.items():
                self._add(table, trial, row)
            return table
        active = [t for t, r in rows.items() if r.state in ("starting", "running")]
        finished = [t for t, r in rows.items() if r.state == "finished" and r.score is not None]
        best = sorted(finished, key=lambda t: order(rows[t].score, self._mode))[:BEST_ROWS]
        for trial in (*active[:FULL_ROWS], *best):
            self._add(table, trial, rows[trial])
        states = Counter(r.state for r in rows.values())
        states["waiting"] += total - len(rows)
        table.caption = Text(f"{count(total)}: {', '.join(f'{n} {s}' for s, n in states.items() if n)}", style="dim")
        table.caption_justify = "left"
        return table

    def _add(self, table: Table, trial: str, row: _Row) -> None:
        now = time.time()
        elapsed = row.elapsed if row.elapsed is not None else (now - row.started if row.started else None)
        left = max(0.0, row.eta - (now - row.eta_at)) if row.eta is not None else None
        score = _num(row.score)
        if row.first is not None and row.score is not None and row.step > 0:
            score = f"{_num(row.first)} > {score}"
        table.add_row(
            f"{trial} {row.label}",
            Text(row.state, style=STYLES.get(row.state, "")),
            f"{row.step}/{row.total}" if row.total else "",
            ProgressBar(total=row.total, completed=row.step, width=12) if row.total else "",
            _num(row.reward),
            score,
            "" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}",
            "" if elapsed is None else duration(elapsed),
            "" if left is None else duration(left),
        )

    def close(self) -> None:
        """Draw the table a last time and give the terminal back."""
        if self._on:
            self._on = False
            self._live.stop()


def _num(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
