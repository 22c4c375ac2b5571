"""What sweeps found and what they spent: a table, a plot and a line for each.

    python experiments/search_vs_grid/collect.py STORE [MACHINE SWEEP ...]

MACHINE names the files, results-MACHINE.csv and spent-MACHINE.png: seeds give other digits on another processor, so
sweeps are compared with those of the same one. The sweeps that are in the store take the place of their rows in the
table; the rows of the others stay. A trial that was taken from an earlier sweep counts as if it had been trained again.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

from sweeper.trial.ledger import Ledger

HERE = Path(__file__).parent
FIRST = ("first", "grid", "tpe", "tpe_known", "tpe_2")
FIELDS = ("sweep", "trial", "lr", "kl", "state", "reason", "steps", "final_score", "best_score")


def main() -> None:
    """Read the ledgers of the store; write beside this file."""
    from matplotlib.figure import Figure

    store = Path(sys.argv[1])
    machine, *sweeps = sys.argv[2:] or FIRST
    table = HERE / f"results-{machine}.csv"
    before = list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []
    found = {s: read(store / s) if (store / s).is_dir() else [r for r in before if r["sweep"] == s] for s in sweeps}
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(row for rows in found.values() for row in rows)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for sweep, rows in found.items():
        if not rows:
            continue
        spent, best, at = 0, 0.0, 0
        curve = [(0, 0.0)]
        for row in rows:  # in the order they ended
            spent += int(row["steps"])
            if row["state"] == "finished" and float(row["final_score"]) > best:
                best, at = float(row["final_score"]), spent
            curve.append((spent, best))
        axes.step([x for x, _ in curve], [y for _, y in curve], where="post", label=sweep)
        print(f"{sweep}: {len(rows)} trials, {spent} steps, best finished score {best:.4f} after {at} steps")
    axes.set_xlabel("training steps, all trials together")
    axes.set_ylabel("best score of a finished trial")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(HERE / f"spent-{machine}.png", dpi=100)


def read(sweep: Path) -> list[dict[str, Any]]:
    """The rows of a sweep, in the order its trials ended."""
    states = Ledger.read(sweep / "ledger.db")
    ended = [
        str(e.trial)
        for e in Ledger.history(sweep / "ledger.db")
        if e.kind == "trial_reused" or (e.kind == "attempt_ended" and e.data["state"] in ("finished", "pruned"))
    ]
    return [
        {
            "sweep": sweep.name,
            "trial": s.id,
            "lr": s.params.get("lr"),
            "kl": s.params.get("kl"),
            "state": s.state,
            "reason": s.reason if s.state == "pruned" else "",
            "steps": s.last_step or 0,
            "final_score": s.final_score,
            "best_score": s.best_score,
        }
        for s in (states[trial] for trial in ended)
    ]


if __name__ == "__main__":
    main()
