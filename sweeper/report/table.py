"""The table at the end of a sweep, and the lines below it that say where everything is.

Guarantees: every trial has a row, also the failed; the best finished trial is marked; plain text without a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

from sweeper.report.events import duration
from sweeper.search.controller import Outcome

MAX_ROWS = 60
"""Longer tables show the best rows and every failure; the ledger has them all."""


def rows(outcomes: Iterable[Outcome], mode: str = "max") -> list[dict[str, object]]:
    """One plain mapping a trial, best first, then those without a score."""
    sign = -1 if mode == "max" else 1
    ordered = sorted(
        outcomes,
        key=lambda o: (
            o.curve.final_score is None,
            sign * (o.curve.final_score or 0.0),
            o.trial.id,
        ),
    )
    return [
        {
            "trial": o.trial.id,
            "label": o.trial.label,
            **dict(o.trial.point.varied),
            "state": o.state,
            **o.curve.summary(mode),
            "elapsed_s": round(o.elapsed_s, 1),
            "folder": str(o.folder) if o.folder else None,
            "run_id": o.run_id,
            "root_cause": list(o.root_cause),
        }
        for o in ordered
    ]


def render(outcomes: Iterable[Outcome], out: TextIO, mode: str = "max") -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    data = rows(outcomes, mode)
    shown = data if len(data) <= MAX_ROWS else [r for i, r in enumerate(data) if i < MAX_ROWS or r["state"] == "failed"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head, right in (
        ("trial", False), ("", False), ("state", False), ("score", True), ("before", True),
        ("best", True), ("at step", True), ("reward", True), ("steps", True), ("time", True),
    ):  # fmt: skip
        table.add_column(head, justify="right" if right else "left", no_wrap=head != "")
    best_done = next((r["trial"] for r in data if r["state"] == "finished" and r["final_score"] is not None), "")
    styles = {"finished": "green", "failed": "red", "stopped": "yellow", "waiting": "dim"}
    for r in shown:
        star = "*" if r["trial"] == best_done and len(data) > 1 else " "
        state = str(r["state"])
        table.add_row(
            f"{r['trial']}{star}",
            str(r["label"]),
            f"[{styles.get(state, 'default')}]{state}[/]",
            _num(r["final_score"]),
            _num(r["first_score"]),
            _num(r["best_score"]),
            _int(r["best_step"]),
            _num(r["final_reward"]),
            _int(r["step"]),
            duration(float(str(r["elapsed_s"]))),
        )
    console = Console(file=out, highlight=False, width=None if out.isatty() else 160)
    console.print()
    console.print(table)
    if len(shown) < len(data):
        console.print(f"... and {len(data) - len(shown)} more trials", style="dim")


def _num(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else ("-" if value is None else str(value))


def _int(value: object) -> str:
    return "-" if value is None else str(value)
