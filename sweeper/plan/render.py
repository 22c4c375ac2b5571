"""A plan on the screen, as text or JSON.

Guarantees: plain text when the output is no terminal; problems are grouped, each with the trials it concerns; rich is
not imported (printing a plan must stay as quick as composing it).
"""

from __future__ import annotations

from typing import Any, TextIO

from sweeper.engines.base import Shape
from sweeper.errors import Problem
from sweeper.plan.arms import Sized
from sweeper.plan.plan import Plan
from sweeper.trial.records import to_json

FIXED = 3
"""The first columns are always there; one of the others only where a trial has something in it."""
SHOWN = 40
"""Rows printed before the rest is counted; `--json` always has all."""


def text(plan: Plan, out: TextIO) -> None:
    """Print the plan."""
    shapes = [*dict.fromkeys(plan.shapes.values())]
    where = f" on {_shape(shapes[0])}" if len(shapes) == 1 else " on several clusters" if shapes else ""
    print(f"plan: {len(plan.sized)} trial{'s' * (len(plan.sized) != 1)}{where}", file=out)
    head = ["trial", "varies", "needs", "steps", "responses/step", "memory/rank", "GPU-hours", ""]
    body = [_row(s) for s in plan.sized[:SHOWN]]
    shown = [i for i in range(len(head)) if i < FIXED or any(r[i] for r in body)]
    head, body = [head[i] for i in shown], [[r[i] for i in shown] for r in body]
    widths = [max(len(r[i]) for r in [head, *body]) for i in range(len(head))]
    for r in [head, *body]:
        print("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip(), file=out)
    if len(plan.sized) > SHOWN:
        print(f"... and {len(plan.sized) - SHOWN} more (all with --json)", file=out)
    if plan.gpu_hours is not None:
        print(f"about {plan.gpu_hours:,.1f} GPU-hours in all, an estimate from above on tokens", file=out)
    for note in (*plan.notes, *(note for shape in shapes for note in shape.notes)):
        print(f"note: {note}", file=out)
    problems(plan.problems, out, total=len(plan.sized))


def problems(found: list[tuple[Problem, list[str]]], out: TextIO, total: int) -> None:
    """Print what is wrong and with which trials."""
    if not found:
        return
    bad = {t for _, trials in found for t in trials}
    count = f"{len(found)} problem{'s' * (len(found) != 1)}"
    print(f"\n{count} in {len(bad)} of {total} trial{'s' * (total != 1)}:", file=out)
    for problem, trials in found:
        print(f"- {_which(trials, total)}{problem.lines()[0]}", file=out)
        for line in problem.lines()[1:]:
            print(line, file=out)


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan for machines; the schema is in docs/events.md."""
    return {
        "event": "plan",
        "trials": [
            {
                "trial": s.trial.id,
                "varied": dict(s.trial.point.varied),
                "cluster": plan.shapes[s.trial.arm].name,
                "nodes": s.gang.nodes if s.gang else None,
                "gpus_per_node": s.gang.gpus_per_node if s.gang else None,
                "gpus": s.gang.gpus if s.gang else None,
                "steps": s.work.steps if s.work else None,
                "responses_per_step": s.work.responses_per_step if s.work else None,
                "memory_gib_per_rank": s.work.memory_gib if s.work else None,
                "tokens": s.cost.tokens if s.cost else None,
                "gpu_hours": s.cost.gpu_hours if s.cost else None,
                "runnable": not s.trial.problems,
                "problems": [_problem(p) for p in s.trial.problems],
            }
            for s in plan.sized
        ],
        "gpu_hours": plan.gpu_hours,
        "notes": list(plan.notes),
    }


def print_json(plan: Plan, out: TextIO) -> None:
    """Print the plan as one line of JSON."""
    print(to_json(as_json(plan)), file=out)


def _problem(p: Problem) -> dict[str, str]:
    return {k: getattr(p, k) for k in p.__slots__ if getattr(p, k)}


def _shape(shape: Shape) -> str:
    unit = shape.gpu or ("CPU rank" if shape.device == "cpu" else "GPU")
    each = f"{shape.gpus_per_node} x {unit}"
    memory = f", {shape.gpu_memory_gib:.0f} GiB each" if shape.gpu_memory_gib else ""
    return f"{shape.name} ({f'{shape.nodes} nodes of ' if shape.nodes > 1 else ''}{each}{memory})"


def _row(s: Sized) -> list[str]:
    cannot = "cannot run" if s.trial.problems else ""
    if not s.gang or not s.work:
        return [s.trial.id, s.trial.label, "", "", "", "", "", cannot]
    nodes = f"{s.gang.nodes} nodes x " if s.gang.nodes > 1 else ""
    hours = f"{s.cost.gpu_hours:,.1f}" if s.cost and s.cost.gpu_hours is not None else ""
    return [
        s.trial.id,
        s.trial.label,
        f"{nodes}{s.gang.gpus_per_node} rank{'s' * (s.gang.gpus_per_node != 1)}",
        str(s.work.steps),
        str(s.work.responses_per_step),
        f"~{s.work.memory_gib:.1f} GiB" if s.work.memory_gib is not None else "",
        hours,
        cannot,
    ]


def _which(trials: list[str], total: int) -> str:
    if len(trials) == total:
        return "" if total == 1 else "all trials: "
    if len(trials) > 4:
        return f"{len(trials)} trials ({', '.join(trials[:3])}, ...): "
    return f"{', '.join(trials)}: "
