"""A plan on the screen, as text or JSON.

Guarantees: plain text when the output is no terminal; problems are grouped, each with the trials it concerns; rich is
not imported (printing a plan must stay as quick as composing it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

from sweeper.config.dims import shown
from sweeper.engines.base import Shape
from sweeper.errors import Problem
from sweeper.plan.arms import ArmPlan, Sized
from sweeper.plan.plan import Plan
from sweeper.trial.records import to_json

if TYPE_CHECKING:
    from sweeper.search.placement import Probing

FIXED = 3
"""The first columns are always there; one of the others only where a trial has something in it."""
SHOWN = 40
"""Rows printed before the rest is counted; `--json` always has all."""
REASONS = 4
"""Reasons printed why points of a space cannot run."""


def text(plan: Plan, out: TextIO, probes: Sequence[Probing] = ()) -> None:
    """Print the plan; `probes`: what is run before its first trial."""
    shapes = [*dict.fromkeys(plan.shapes.values())]
    where = f" on {_shape(shapes[0])}" if len(shapes) == 1 else " on several clusters" if shapes else ""
    print(f"plan: {_count(plan.total, 'trial')}{where}", file=out)
    for line in _search(plan):
        print(line, file=out)
    head = ["trial", "varies", "needs", "steps", "responses/step", "memory/rank", "GPU-hours", ""]
    body = [_row(s) for s in plan.sized[:SHOWN]]
    if plan.search.samples:
        head[0] = "arm"
        body = [[arm.id, arm.label, *_row(arm.example)[2:]] for arm in plan.arms[:SHOWN] if arm.example]
    shown = [i for i in range(len(head)) if i < FIXED or any(r[i] for r in body)]
    head, body = [head[i] for i in shown], [[r[i] for i in shown] for r in body]
    widths = [max(len(r[i]) for r in [head, *body]) for i in range(len(head))]
    for r in [head, *body]:
        print("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip(), file=out)
    listed = len(plan.arms if plan.search.samples else plan.sized)
    if listed > SHOWN:
        print(f"... and {listed - SHOWN} more (all with --json)", file=out)
    if plan.gpu_hours is not None:
        print(f"about {_hours(plan.gpu_hours)} GPU-hours in all, an estimate from above on tokens", file=out)
    if plan.expected_gpu_hours is not None:
        print(
            f"about {_hours(plan.expected_gpu_hours)} of them once {plan.search.scheduler} ends trials early "
            f"({plan.pruned:.0%} of the search's steps, by arithmetic)",
            file=out,
        )
    for line in _probes(probes):
        print(line, file=out)
    for note in (*plan.notes, *(note for shape in shapes for note in shape.notes)):
        print(f"note: {note}", file=out)
    problems(plan.problems, out, total=len(plan.sized))


def _probes(probes: Sequence[Probing]) -> list[str]:
    """The runs that choose a placement, one line for those that turn the same knobs."""
    same: dict[tuple[tuple[str, ...], int], list[Probing]] = {}
    for each in probes:
        same.setdefault((each.knobs, each.steps), []).append(each)
    lines = []
    for (knobs, steps), several in same.items():
        hours = [each.gpu_hours for each in several if each.gpu_hours is not None]
        cost = f", about {_hours(sum(hours))} GPU-hours besides" if hours else ""
        runs = _count(sum(each.runs for each in several), "probe")
        lines.append(f"before the first trial at most {runs} of {_count(steps, 'step')} for its placement{cost}:")
        lines.append(f"  {', '.join(knobs)}; placement.probe=false runs none")
    return lines


def _search(plan: Plan) -> list[str]:
    """How it searches: budget, sampler and scheduler, and the space of each arm; nothing of a plain list of arms."""
    search = plan.search
    if search.sampler == "none" and search.scheduler == "none" and not search.final_seeds:
        return []
    lines = [
        f"budget     {_budget(plan)}",
        f"search     {search.sampler}{_options({**search.options, 'sampler_seed': search.sampler_seed})}",
        f"scheduler  {search.scheduler}{_options(search.scheduler_options)}",
    ]
    if search.objectives != ("score",):
        lines.append(f"objectives {', '.join(search.objectives)}")
    lines += [f"constraint {text}" for text in search.constraints]
    spaces: dict[tuple[str, ...], list[str]] = {}
    for arm in plan.arms:
        if arm.dims:
            spaces.setdefault(tuple(_space(arm)), []).append(arm.label)
    for space, labels in spaces.items():
        several = f"{', '.join(labels[:6])}{', ...' if len(labels) > 6 else ''}"
        lines += [f"space      {several}" if labels != ["default"] else "space", *space]
    return lines


def _budget(plan: Plan) -> str:
    search = plan.search
    budgets = {arm.budget for arm in plan.arms}
    points = f"{budgets.pop()} point" if len(budgets) == 1 else f"{min(budgets)} to {max(budgets)} point"
    parts = [_count(len(plan.arms), "arm"), points + ("" if points == "1 point" else "s")]
    if len(search.seeds) > 1:
        parts.append(_count(len(search.seeds), "seed"))
    text = " x ".join(parts)
    if search.final_seeds:
        text += f" + {_count(len(plan.arms), 'best point')} x {_count(len(search.final_seeds), 'final seed')}"
    return f"{text} = {_count(plan.total, 'trial')}"


def _options(options: Mapping[str, Any]) -> str:
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    return f" ({', '.join(given)})" if given else ""


def _space(arm: ArmPlan) -> list[str]:
    """The dims of an arm, and what of its space cannot run."""
    width = max(len(dim.name) for dim in arm.dims)
    lines = [f"  {dim.name.ljust(width)}  {shown(dim)}" for dim in arm.dims]
    gone = sum(r.points for r in arm.removed)
    if arm.size is not None and arm.looked == arm.size:
        counted = f"{_count(arm.size, 'point')}"
    else:
        of = "endless" if arm.size is None else f"{arm.size:,}"
        counted = f"{_count(arm.looked, 'point')} looked at, of {of}"
    if gone:
        reasons = "; ".join(f"{r.why} ({r.points:,})" for r in arm.removed[:REASONS])
        more = len(arm.removed) - REASONS
        counted += f", {gone:,} removed: {reasons}{f'; {more:,} reasons more' if more > 0 else ''}"
    lines.append(f"  {counted}")
    if arm.points:
        lines.append(f"  {_count(len(arm.points), 'known point')} first")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


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


def as_json(plan: Plan, probes: Sequence[Probing] = ()) -> dict[str, Any]:
    """The plan for machines; the schema is in docs/events.md."""
    return {
        "event": "plan",
        "arms": [_arm(arm, plan) for arm in plan.arms],
        "search": {
            "sampler": plan.search.sampler,
            "options": dict(plan.search.options),
            "scheduler": plan.search.scheduler,
            "scheduler_options": dict(plan.search.scheduler_options),
            "trials": plan.search.trials,
            "seeds": [seed for seed in plan.search.seeds if seed is not None],
            "final_seeds": list(plan.search.final_seeds),
            "objectives": list(plan.search.objectives),
            "metric": plan.search.metric,
            "mode": plan.search.mode,
            "constraints": list(plan.search.constraints),
        },
        "planned": plan.total,
        "trials": [
            {
                "trial": s.trial.id,
                "arm": s.trial.arm,
                "candidate": s.trial.candidate,
                "seed": s.trial.seed,
                "params": dict(s.trial.params),
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
        "expected_gpu_hours": plan.expected_gpu_hours,
        "expected_share": plan.pruned,
        "probes": [asdict(each) for each in probes],
        "notes": list(plan.notes),
    }


def print_json(plan: Plan, out: TextIO, probes: Sequence[Probing] = ()) -> None:
    """Print the plan as one line of JSON."""
    print(to_json(as_json(plan, probes)), file=out)


def _arm(arm: ArmPlan, plan: Plan) -> dict[str, Any]:
    sized = arm.example
    return {
        "arm": arm.id,
        "label": arm.label,
        "varied": dict(arm.point.varied),
        "cluster": plan.shapes[arm.id].name,
        "dims": [
            {
                "key": dim.key,
                "values": list(dim.values) if dim.values is not None else None,
                "low": dim.low if dim.values is None else None,
                "high": dim.high if dim.values is None else None,
                "log": dim.log,
                "integer": dim.integer,
                "when": {key: list(values) for key, values in dim.when.items()},
            }
            for dim in arm.dims
        ],
        "budget": arm.budget,
        "points": [dict(point) for point in arm.points],
        "size": arm.size,
        "looked": arm.looked,
        "removed": [{"why": r.why, "points": r.points} for r in arm.removed],
        "gpus": sized.gang.gpus if sized and sized.gang else None,
        "steps": sized.work.steps if sized and sized.work else None,
        "gpu_hours_per_trial": sized.cost.gpu_hours if sized and sized.cost else None,
    }


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
    hours = _hours(s.cost.gpu_hours) if s.cost and s.cost.gpu_hours is not None else ""
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


def _hours(hours: float) -> str:
    """Little is little, and not nothing."""
    return f"{hours:,.1f}" if hours >= 0.1 or not hours else f"{hours:.1g}"


def _which(trials: list[str], total: int) -> str:
    if len(trials) == total:
        return "" if total == 1 else "all trials: "
    if len(trials) > 4:
        return f"{len(trials)} trials ({', '.join(trials[:3])}, ...): "
    return f"{', '.join(trials)}: "
