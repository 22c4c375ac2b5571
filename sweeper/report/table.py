"""The end of a sweep in words and figures: the leaderboard of the arms, the best candidates, what was ended and why.

Guarantees: every trial is counted, and every failure named, however many there are; the best finished candidate is
marked (`*`), and so is what the numerics guard flagged (`!`, with a note each); where arms cannot be told apart it is
said, with how many more seeds would do; final scores and the search's own are apart; a sweep of one arm, or of arms of
one trial each, is one simple table; plain text without a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from sweeper.report.events import duration
from sweeper.report.rows import Ended, Request
from sweeper.report.standings import Candidate, Effect, Standings, Versus, as_dict, reason_of, standings
from sweeper.search.stats import Mean, order, summarise

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAX_ROWS = 60
"""Longer tables show the best rows and every failure; the ledger has them all."""
MAX_CANDIDATES = 20
MAX_DETAILS = 10

STYLES = {"finished": "green", "failed": "red", "stopped": "yellow", "pruned": "magenta", "waiting": "dim"}


def rows(outcomes: Iterable[Ended], request: Request) -> list[dict[str, object]]:
    """One plain mapping a trial: the finished by their scores, best first, then the others."""
    ordered = sorted(
        outcomes, key=lambda o: (o.state != "finished", *order(o.curve.final_score, request.mode), o.trial.id)
    )
    return [
        {
            "trial": o.trial.id,
            "label": o.trial.label,
            **dict(o.trial.point.varied),
            "arm": o.trial.arm,
            "candidate": o.trial.candidate or o.trial.id,
            "seed": o.trial.seed,
            "kind": o.trial.kind,
            "params": dict(o.trial.params),
            "state": o.state,
            "reason": reason_of(o),
            "evidence": dict(o.stop.evidence) if o.stop else {},
            **o.curve.summary(request.mode),
            "elapsed_s": round(o.elapsed_s, 1),
            "gpu_hours": o.gpu_hours,
            "tokens_per_s": o.tokens_per_s,
            "reused": o.reused,
            "flagged": o.flagged.as_dict() if o.flagged else None,
            "folder": str(o.folder) if o.folder else None,
            "run_id": o.run_id,
            "root_cause": list(o.root_cause),
        }
        for o in ordered
    ]


def summary(outcomes: Iterable[Ended], request: Request) -> dict[str, Any]:
    """What the tables say, for JSON: `arms`, `comparisons`, `placement`, `front` (docs/events.md)."""
    return as_dict(standings(outcomes, request))


def render(outcomes: Iterable[Ended], out: TextIO, request: Request) -> None:
    """Print it all."""
    from rich.console import Console

    console = Console(file=out, highlight=False, width=None if out.isatty() else 160)
    trials = list(outcomes)
    found = standings(trials, request)
    console.print()
    if not any(len(arm.trials) > 1 for arm in found.arms):
        _simple(console, trials, found)
    else:
        _arms(console, found)
        _candidates(console, found)
        _ended_early(console, trials)
    for line in lines(found):
        console.print(line, style="dim", markup=False, soft_wrap=True)


def lines(found: Standings) -> list[str]:
    """What the figures mean, a sentence each."""
    said = [*_flagged([t for arm in found.arms for t in arm.trials]), *(_versus(v) for v in found.versus)]
    if any(v.chosen for v in found.versus):
        said.append(
            "these scores are of the seeds that the best candidates were chosen by, so they are on the high side; "
            "search.final_seeds=5 measures them again"
        )
    said += _placement(found.effects)
    if len(found.request.objectives) > 1:
        front = [c.id for c in found.candidates if c.front]
        shown = ", ".join(front) or f"none, for {_no_front(found)}"
        said.append(f"^ on the Pareto front of {', '.join(found.request.objectives)}: {shown}")
    return said


def _no_front(found: Standings) -> str:
    """Why no candidate is on it. Costs are always known, so that it is the end or the score that is missing."""
    if any(c.complete for c in found.candidates):
        return "no candidate that finished has a score that is a number"
    seeds = " under all its seeds" if any(len(c.trials) > 1 for c in found.candidates) else ""
    return f"no candidate has finished{seeds}"


def _simple(console: Console, trials: Sequence[Ended], found: Standings) -> None:
    """A row a trial: arms of a single trial each."""
    from rich.markup import escape

    data = rows(trials, found.request)
    shown = data if len(data) <= MAX_ROWS else [r for i, r in enumerate(data) if i < MAX_ROWS or r["state"] == "failed"]
    table = _table("trial", "", "state", "score>", "before>", "best>", "at step>", "reward>", "steps>", "time>")
    for r in shown:
        star = "*" if found.best and r["trial"] == found.best.trials[0].trial.id and len(data) > 1 else " "
        table.add_row(
            f"{r['trial']}{star}{'!' if r['flagged'] else ' '}",
            escape(str(r["label"])),
            _state(str(r["state"]), str(r["reason"]), str(r["reused"])),
            _num(r["final_score"]),
            _num(r["first_score"]),
            _num(r["best_score"]),
            _int(r["best_step"]),
            _num(r["final_reward"]),
            _int(r["step"]),
            duration(float(str(r["elapsed_s"]))),
        )
    console.print(table)
    if len(shown) < len(data):
        console.print(f"... and {len(data) - len(shown)} more trials", style="dim")


def _arms(console: Console, found: Standings) -> None:
    from rich.markup import escape

    final = any(arm.final_scores for arm in found.arms)
    heads = ["arm", *(["final score>", "seeds>"] if final else []), "score of the search>", "seeds>", "best", "params"]
    hours = "rank-hours>" if found.request.device == "cpu" else "GPU-hours>"
    table = _table(*heads, "finished>", "pruned>", "failed>", "other>", "steps>", hours)
    for arm in found.arms:
        states = arm.states
        known = [states[s] for s in ("finished", "pruned", "failed")]
        finals, tuning = summarise(arm.final_scores), summarise(arm.tuning_scores)
        table.add_row(
            escape(arm.label),
            *([_mean(finals), _seeds(finals)] if final else []),
            _mean(tuning),
            _seeds(tuning),
            arm.best.id if arm.best else "-",
            escape(arm.best.label) if arm.best else "",
            *(str(n) for n in known),
            str(sum(states.values()) - sum(known)),
            f"{arm.steps:,}",
            f"{arm.hours:.3g}",
        )
    console.print(table)
    console.print()


def _candidates(console: Console, found: Standings) -> None:
    from rich.markup import escape

    many = len(found.arms) > 1
    front = any(c.front for c in found.candidates)
    arms = {arm.id: arm.label for arm in found.arms}
    heads = ["candidate", *(["arm"] if many else []), "", "state", "score>", "seeds>", "before>", "best>"]
    hours = "rank-hours>" if found.request.device == "cpu" else "GPU-hours>"
    table = _table(*heads, "tokens/s>", "steps>", hours)
    for c in found.candidates[:MAX_CANDIDATES]:
        mark = "*" if c is found.best and len(found.candidates) > 1 else " "
        finished = sum(t.state == "finished" for t in c.trials)
        reused = ", ".join(t.reused for t in c.trials if t.reused)
        table.add_row(
            f"{c.id}{mark}{'^' if c.front else ' ' if front else ''}{'!' if any(t.flagged for t in c.trials) else ' '}",
            *([escape(arms[c.arm])] if many else []),
            escape(c.label),
            _state(c.state, c.reason, reused),
            _mean(c.mean),
            str(len(c.trials)) if c.complete else f"{finished} of {len(c.trials)}",
            _num(_average(c, "first_score")),
            _num(_average(c, "best_score", found.request.mode)),
            "-" if c.tokens_per_s is None else f"{c.tokens_per_s:,.0f}",
            _int(max((t.curve.step or 0 for t in c.trials), default=None)),
            f"{c.hours:.3g}",
        )
    console.print(table)
    if len(found.candidates) > MAX_CANDIDATES:
        console.print(f"... and {len(found.candidates) - MAX_CANDIDATES} more candidates", style="dim")


def _ended_early(console: Console, trials: Sequence[Ended]) -> None:
    for state in ("pruned", "failed"):
        why: dict[str, list[str]] = {}
        for t in (t for t in trials if t.state == state):
            why.setdefault(reason_of(t) or "no reason given", []).append(t.trial.id)
        if why:
            # Failures by name, for someone has to look at them; of what was pruned the number is what matters.
            named = {r: f" ({', '.join(ids)})" if state == "failed" else "" for r, ids in why.items()}
            by_number = sorted(why, key=lambda r: -len(why[r]))
            counts = ", ".join(f"{len(why[r])} {r}{named[r]}" for r in by_number)
            console.print(f"{state}: {counts}", markup=False, style="dim", soft_wrap=True)
    unhealthy = [(t.trial.id, t.stop) for t in trials if t.state == "pruned" and t.stop and t.stop.reason != "worse"]
    for trial, stop in unhealthy[:MAX_DETAILS]:
        console.print(f"  {trial} {stop.reason}: {stop.detail}", markup=False, style="dim", soft_wrap=True)
    if len(unhealthy) > MAX_DETAILS:
        console.print(f"  ... and {len(unhealthy) - MAX_DETAILS} more by a health rule", style="dim")


def _flagged(trials: Sequence[Ended]) -> list[str]:
    found = sorted(((t.trial.id, t.flagged) for t in trials if t.flagged), key=lambda each: each[0])
    said = [f"! {trial}, {flag.text}" for trial, flag in found[:MAX_DETAILS]]
    return [*said, *([f"! ... and {len(found) - MAX_DETAILS} more flagged trials"] if found[MAX_DETAILS:] else [])]


def _versus(v: Versus) -> str:
    d, ahead, other = v.difference, v.ahead.label, v.other.label
    counts = [len(a.final_scores if v.kind == "final" else a.tuning_scores) for a in (v.ahead, v.other)]
    if d.low is None or d.high is None or d.p is None:
        what, key = ("final seed", "final_seeds") if v.kind == "final" else ("seed", "seeds")
        return (
            f"{ahead} and {other}: {abs(d.mean):.3g} between them, but one {what} says nothing of how far seeds "
            f"differ; search.{key}=3 would begin to"
        )
    seeds = f"{counts[0]} and {counts[1]} {'final ' if v.kind == 'final' else ''}seeds"
    figures = f"difference {d.mean:.3g}, 95% interval {d.low:.3g} to {d.high:.3g}, Welch's p {d.p:.2g}, {seeds}"
    if d.told_apart:
        return f"{ahead} and {other} differ: {figures}"
    if d.low > 0 or d.high < 0:
        figures += " (so few seeds make the interval too narrow; the t-test allows for that)"
    if d.mean == 0:
        more = "they have the same mean"
    elif d.further is None:
        more = "a difference that small would take more than a thousand seeds"
    else:
        more = f"if it is as it looks, about {d.further} more seeds each would tell (80% of the time)"
    return f"{ahead} and {other} cannot be told apart: {figures}; {more}"


def _placement(effects: Sequence[Effect]) -> list[str]:
    said = []
    for e in effects:
        speed = "no throughput known"
        if e.tokens_per_s:
            n = e.tokens_per_s.n
            speed = f"{e.tokens_per_s.mean:,.0f} tokens/s over {n} candidate{'s' * (n != 1)}"
            if e.first and e.first.tokens_per_s and e.first.tokens_per_s.mean > 0:
                speed += f", {e.tokens_per_s.mean / e.first.tokens_per_s.mean:.2f} x that of {e.dim}={e.first.value}"
        score = f"score {_mean(e.score)}"
        if e.first and e.against:
            apart = e.against.told_apart
            score += f", {'not the same as' if apart else 'not told apart from'} {e.dim}={e.first.value}"
        within = f" in {e.within}" if e.within else ""
        said.append(f"placement {e.dim}={e.value}{within}: {speed}; {score}")
    return said


def _table(*heads: str) -> Table:
    """`>` at the end of a head: figures, set to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        right, free = head.endswith(">"), head in ("", "params", "arm")
        table.add_column(head.rstrip(">"), justify="right" if right else "left", no_wrap=not free)
    return table


def _state(state: str, reason: str, reused: str) -> str:
    text = f"{state}: {reason}" if reason else f"{state} ({reused})" if reused else state
    return f"[{STYLES.get(state, 'default')}]{text}[/]"


def _mean(mean: Mean | None) -> str:
    if mean is None:
        return "-"
    return _num(mean.mean) + ("" if mean.low is None else f" ({mean.low:.3f} to {mean.high:.3f})")


def _seeds(mean: Mean | None) -> str:
    return "-" if mean is None else str(mean.n)


def _average(candidate: Candidate, what: str, mode: str = "max") -> float | None:
    values = [v for t in candidate.trials if (v := t.curve.summary(mode)[what]) is not None]
    return sum(values) / len(values) if values else None


def _num(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else ("-" if value is None else str(value))


def _int(value: object) -> str:
    return "-" if value is None else str(value)
