"""What the sweeps found and what they spent: results.csv, spent.png and a line for each.

python experiments/search_vs_grid/collect.py STORE

A trial that was taken from an earlier sweep counts as if it had been trained again.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from sweeper.trial.ledger import Ledger

HERE = Path(__file__).parent
SWEEPS = ("grid", "tpe", "tpe_known")


def main() -> None:
    """Read both ledgers of the store; write beside this file."""
    from matplotlib.figure import Figure

    store = Path(sys.argv[1])
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    with (HERE / "results.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["sweep", "trial", "lr", "kl", "state", "reason", "steps", "final_score", "best_score"])
        for sweep in SWEEPS:
            spent, best = 0, 0.0
            curve = [(0, 0.0)]
            states = Ledger.read(store / sweep / "ledger.db")
            ended = [
                e.trial
                for e in Ledger.history(store / sweep / "ledger.db")
                if e.kind == "trial_reused" or (e.kind == "attempt_ended" and e.data["state"] in ("finished", "pruned"))
            ]
            for trial in ended:  # in the order they ended
                s = states[str(trial)]
                steps = s.last_step or 0
                spent += steps
                if s.state == "finished":
                    best = max(best, s.final_score or 0.0)
                curve.append((spent, best))
                row = [
                    sweep,
                    s.id,
                    s.params.get("lr"),
                    s.params.get("kl"),
                    s.state,
                    s.reason if s.state == "pruned" else "",
                ]
                writer.writerow([*row, steps, s.final_score, s.best_score])
            axes.step([x for x, _ in curve], [y for _, y in curve], where="post", label=sweep)
            print(f"{sweep}: {len(ended)} trials, {spent} training steps, best finished score {best:.4f}")
    axes.set_xlabel("training steps, all trials together")
    axes.set_ylabel("best score of a finished trial")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(HERE / "spent.png", dpi=120)


if __name__ == "__main__":
    main()
