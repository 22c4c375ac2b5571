"""Curves of a sweep as a picture, drawn from its records alone.

Guarantees: one panel for the validation score and one for the training reward; trials that differ in nothing but their
seed share a colour, with their mean drawn through them; nothing but the records is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from sweeper import engines
from sweeper.errors import Problem, RequestError
from sweeper.search.history import Curve
from sweeper.trial.records import SweepFolder, Tail, read_json


def load(folder: SweepFolder) -> dict[str, tuple[Mapping[str, Any], Curve]]:
    """What varies and the curve, by trial; all attempts of a trial are one curve."""
    found: dict[str, tuple[Mapping[str, Any], Curve]] = {}
    for trial in folder.trial_ids():
        curve, varied = Curve(), {}
        for attempt in folder.attempts(trial):
            spec = read_json(attempt / "spec.json")
            varied = spec["varied"]
            engine = engines.get(spec["config"]["engine"]["name"])
            for line in Tail(attempt / spec["metrics"]).read():
                if progress := engine.progress(line, spec["config"]):
                    curve.add(progress)
        found[trial] = (varied, curve)
    return found


def curves(folder: SweepFolder, out: Path) -> Path:
    """Draw the sweep into `out` (its suffix says the format); returns it.

    Raises:
        RequestError: No trial of the sweep has a step yet.
    """
    trials = {t: (v, c) for t, (v, c) in load(folder).items() if c.step is not None}
    if not trials:
        raise RequestError(Problem(f"no trial of {folder.name} has a step yet", fix=f"sweeper status {folder.typed}"))
    draw(trials, folder.name, out)
    return out


def draw(trials: Mapping[str, tuple[Mapping[str, Any], Curve]], name: str, out: Path | BytesIO) -> None:
    """Draw what varies and the curve of each trial; `name`: what a trial is called of which nothing varies."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    groups: dict[str, list[Curve]] = {}
    for varied, curve in trials.values():
        called = " ".join(f"{k}={v}" for k, v in varied.items() if k != "seed") or name
        groups.setdefault(called, []).append(curve)
    figure = Figure(figsize=(10, 4), layout="constrained")
    score, reward = figure.subplots(1, 2)
    for index, (called, members) in enumerate(groups.items()):
        _lines(score, [c.scores for c in members], f"C{index % 10}", called)
        _lines(reward, [c.rewards for c in members], f"C{index % 10}", called)
    for axes, title in ((score, "validation score"), (reward, "training reward")):
        axes.set_title(title)
        axes.set_xlabel("training step")
        axes.grid(alpha=0.3)
    score.legend(fontsize="small")
    figure.savefig(out, dpi=120)


def _lines(axes: Any, members: list[dict[int, float]], colour: str, name: str) -> None:
    for values in members if len(members) > 1 else []:
        axes.plot(sorted(values), [values[s] for s in sorted(values)], color=colour, alpha=0.25, linewidth=1)
    shared = sorted(set.intersection(*(set(m) for m in members)))
    label = f"{name} (mean of {len(members)} seeds)" if len(members) > 1 else name
    axes.plot(shared, [sum(m[s] for m in members) / len(members) for s in shared], color=colour, label=label)
