"""The live table of a running sweep: one row a trial, redrawn four times a second while the trainings run.

Guarantees: the terminal is left as it was found, also after an error; a warning is printed above the table and stays.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeper.report.events import count, duration

STYLES = {
    "finished": "green",
    "failed": "bold red",
    "stopped": "yellow",
    "running": "cyan",
    "starting": "blue",
    "waiting": "dim",
}
FULL_ROWS = 24
"""Beyond this many trials, finished and waiting rows are folded into one line each, so that the table fits a screen."""


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
        self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=4, transient=True)
        self._on = False

    def event(self, kind: str, **data: Any) -> None:
        """Update the rows; messages go above the table."""
        row = self._rows.get(str(data.get("trial", "")))
        match kind:
            case "sweep_started":
                self._rows = {t: _Row(label) for t, label in dict(data["trials"]).items()}
                self._console.print(f"sweep [bold]{data['name']}[/]: {count(self._rows)}, records in {data['folder']}")
                self._live.start()
                self._on = True
            case "preparing":
                self._console.print(Text(data["message"], style="dim"))
            case "note" | "warning":
                self._console.print(
                    Text(data["message"], style="yellow" if kind == "warning" else "dim"), soft_wrap=True
                )
            case "trial_started" if row:
                row.state, row.started, row.total = "starting", time.time(), data["total"]
            case "trial_reused" if row:
                row.state, row.score = "finished", data.get("score")
            case "progress" if row:
                row.state, row.step, row.total = "running", data["step"], data["total"]
                for key in ("reward", "score", "tokens_per_s"):
                    if data.get(key) is not None:
                        setattr(row, key, data[key])
                if row.first is None:
                    row.first = data.get("score")
                row.eta, row.eta_at = data.get("eta_s"), time.time()
            case "trial_ended" if row:
                row.state, row.elapsed, row.eta = data["state"], data["elapsed_s"], None
                for line in data.get("root_cause", ()):
                    self._console.print(Text(f"{data['trial']}: {line}", style="red"), soft_wrap=True)
            case "sweep_ended":
                self.close()

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
        table.add_column("trial", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("step", no_wrap=True)
        table.add_column("", width=12)
        for head in ("reward", "score", "tokens/s", "elapsed", "left"):
            table.add_column(head, justify="right", no_wrap=True)
        rows = list(self._rows.items())
        active = {t for t, r in rows if r.state in ("starting", "running", "failed")}
        folded = len(rows) > FULL_ROWS
        for trial, row in rows:
            if not folded or trial in active:
                self._add(table, trial, row)
        if folded:
            done = sum(r.state == "finished" for _, r in rows)
            table.add_row(Text(f"{done} finished, {len(rows) - done - len(active)} waiting or stopped", style="dim"))
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
