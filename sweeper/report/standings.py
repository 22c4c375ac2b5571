"""Who is ahead: candidates and arms over their seeds, which arms can be told apart, what a placement did.

Guarantees: computed from the trials alone, the same figures every time; a candidate is ranked by seeds that all
finished, before any that ended early, for a score from fewer steps or seeds is another score; scores of final seeds
and of the search's own seeds are never averaged or compared with each other; what a reused trial once cost is not
counted as spent here. Intervals are reckoned only for what is shown: they take scipy's time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeper.report.rows import Ended, Request
from sweeper.search.stats import Difference, Mean, among, compare, mean, order, summarise
from sweeper.trial.spec import short

DONE = frozenset({"finished", "pruned", "failed"})


@dataclass(slots=True)
class Candidate:
    """A point under all its seeds."""

    id: str
    arm: str
    label: str
    """Its searched values, or what varies."""
    trials: list[Ended] = field(default_factory=list)
    """Of the search; final ones are the arm's."""
    front: bool = False
    """Whether no other candidate of the sweep is better in one objective and as good in the others."""

    @property
    def complete(self) -> bool:
        """Whether every seed finished."""
        return all(t.state == "finished" for t in self.trials)

    @property
    def state(self) -> str:
        """One word for all its seeds: what is worst of them."""
        states = {t.state for t in self.trials}
        for state in ("failed", "stopped", "pruned", "running", "starting", "paused", "waiting"):
            if state in states:
                return state
        return "finished"

    @property
    def reason(self) -> str:
        """Why it ended early or failed: `worse`, `kl-blow-up`, `out-of-memory`; empty for others."""
        reasons = [reason_of(t) for t in self.trials]
        return next((r for r in reasons if r), "")

    @property
    def scores(self) -> list[float]:
        """Last score of each seed that has one; of those that finished, where some did."""
        finished = [t for t in self.trials if t.state == "finished"] or self.trials
        return [s for t in finished if (s := t.curve.final_score) is not None]

    @property
    def score(self) -> float | None:
        """The mean of `scores`."""
        return mean(self.scores) if self.scores else None

    @property
    def mean(self) -> Mean | None:
        """With its interval."""
        return summarise(self.scores)

    @property
    def hours(self) -> float:
        """Of all its seeds."""
        return math.fsum(t.gpu_hours for t in self.trials)

    @property
    def tokens_per_s(self) -> float | None:
        """The mean over its seeds."""
        speeds = [s for t in self.trials if (s := t.tokens_per_s) is not None]
        return mean(speeds) if speeds else None

    def values(self, objectives: Sequence[str]) -> tuple[float, ...] | None:
        """One an objective, means over the seeds; None while one is missing or no number."""
        found = {"score": self.score, "gpu_hours": self.hours / len(self.trials)}
        known = [v for name in objectives if (v := found[name]) is not None and not math.isnan(v)]
        return tuple(known) if len(known) == len(objectives) else None


@dataclass(slots=True)
class Arm:
    """An arm with its candidates, best first."""

    id: str
    label: str
    candidates: list[Candidate] = field(default_factory=list)
    finals: list[Ended] = field(default_factory=list)

    @property
    def best(self) -> Candidate | None:
        """The best of those that finished; None when none did or has a score."""
        first = self.candidates[0] if self.candidates else None
        return first if first and first.complete and first.scores else None

    @property
    def trials(self) -> list[Ended]:
        """All, final ones too."""
        return [*(t for c in self.candidates for t in c.trials), *self.finals]

    @property
    def final_scores(self) -> list[float]:
        """Of the best candidate, under seeds that nothing was chosen by. (Another may have been the best before.)"""
        mine = [t for t in self.finals if self.best is not None and t.trial.candidate == self.best.id]
        return [s for t in mine if t.state == "finished" and (s := t.curve.final_score) is not None]

    @property
    def tuning_scores(self) -> list[float]:
        """Of the best candidate, under the seeds that it was chosen by."""
        return self.best.scores if self.best else []

    @property
    def states(self) -> Counter[str]:
        """How many trials are in each state."""
        return Counter(t.state for t in self.trials)

    @property
    def steps(self) -> int:
        """Training steps that were run here."""
        return sum(t.curve.step or 0 for t in self.trials if not t.reused)

    @property
    def hours(self) -> float:
        """That were spent here."""
        return math.fsum(t.gpu_hours for t in self.trials if not t.reused)


@dataclass(frozen=True, slots=True)
class Versus:
    """The arm that is ahead, against another."""

    ahead: Arm
    other: Arm
    kind: str
    """`final` or `tuning`: which scores are compared; the same of both."""
    difference: Difference
    chosen: bool
    """Whether they are scores that a best of several candidates was chosen by, so too good."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What one value of a placement did: of a dim within an arm, or of one that tells arms apart."""

    within: str
    """The arm's label; of arms that differ in placement only what they have in common, empty where nothing is."""
    arms: tuple[Arm, ...]
    """Those with that value."""
    dim: str
    value: Any
    tokens_per_s: Mean | None
    score: Mean | None
    """Over the finished candidates with that value, whatever their other values; likewise the throughput."""
    first: Effect | None
    """What the first value did; None for the first."""
    against: Difference | None
    """Scores, against the first value; None for the first."""


@dataclass(frozen=True, slots=True)
class Standings:
    """All of it."""

    request: Request
    arms: list[Arm]
    """Best first."""
    candidates: list[Candidate]
    """Of all arms, best first."""
    versus: list[Versus]
    effects: list[Effect]

    @property
    def best(self) -> Candidate | None:
        """The best of the search; None when none finished with a score."""
        first = self.candidates[0] if self.candidates else None
        return first if first and first.complete and first.scores else None


def standings(outcomes: Iterable[Ended], request: Request) -> Standings:
    """Rank the trials of a sweep."""
    arms: dict[str, Arm] = {}
    candidates: dict[tuple[str, str], Candidate] = {}
    for o in outcomes:
        trial = o.trial
        arm = arms.setdefault(trial.arm, Arm(trial.arm, request.arms.get(trial.arm, f"arm {trial.arm}")))
        if trial.kind == "final":
            arm.finals.append(o)
            continue
        key = (trial.arm, trial.candidate or trial.id)
        if key not in candidates:
            candidates[key] = Candidate(key[1], trial.arm, label_of(o))
        candidates[key].trials.append(o)
    ranked = sorted(candidates.values(), key=lambda c: (not c.complete, *order(c.score, request.mode), c.id))
    for candidate in ranked:
        arms[candidate.arm].candidates.append(candidate)
    _mark_front(ranked, request)
    ordered = sorted(arms.values(), key=lambda a: _place(a, request.mode))
    return Standings(request, ordered, ranked, list(_versus(ordered)), list(_effects(ordered, request)))


def label_of(outcome: Ended) -> str:
    """What a candidate is called: its searched values, or all that varies but the seed."""
    point = outcome.trial.params or {k: v for k, v in outcome.trial.point.varied.items() if k != "seed"}
    return " ".join(f"{k}={short(v)}" for k, v in point.items()) or "default"


def reason_of(outcome: Ended) -> str:
    """Why a trial ended early or failed, in one typed word; empty where it did neither."""
    if outcome.state == "pruned" and outcome.stop:
        return outcome.stop.reason
    return outcome.failure if outcome.state == "failed" else ""


def _place(arm: Arm, mode: str) -> tuple[Any, ...]:
    for index, scores in enumerate((arm.final_scores, arm.tuning_scores)):
        if scores:
            return (index, *order(mean(scores), mode), arm.id)
    return (2, arm.id)


def _mark_front(candidates: Sequence[Candidate], request: Request) -> None:
    if len(request.objectives) < 2:
        return
    from sweeper.search.pareto import pareto

    known = [(c, v) for c in candidates if c.complete and (v := c.values(request.objectives)) is not None]
    for index in pareto([v for _, v in known], request.modes):
        known[index][0].front = True


def _versus(arms: Sequence[Arm]) -> Iterable[Versus]:
    if len(arms) < 2:
        return
    ahead, *others = arms
    final = [other for other in others if ahead.final_scores and other.final_scores]
    for kind, group in (("final", final), ("tuning", [other for other in others if other not in final])):
        scores = [arm.final_scores if kind == "final" else arm.tuning_scores for arm in (ahead, *group)]
        for other, difference in zip(group, among(scores), strict=True):
            if difference is not None:
                chosen = kind == "tuning" and any(len(a.candidates) > 1 for a in (ahead, other))
                yield Versus(ahead, other, kind, difference, chosen)


def _effects(arms: Sequence[Arm], request: Request) -> Iterable[Effect]:
    for arm in arms:
        for dim in request.placement:
            # Of candidates, not of their trials: seeds of one point are not so many points.
            points = ((c, c.trials[0].trial.params) for c in arm.candidates)
            yield from _effect(arm.label, dim, [(arm, c, params[dim]) for c, params in points if dim in params])
    for group in request.alike:
        there = [arm for arm in arms if arm.id in group.values]
        for dim in dict.fromkeys(key for values in group.values.values() for key in values):
            yield from _effect(
                group.common, dim, [(arm, c, group.values[arm.id].get(dim)) for arm in there for c in arm.candidates]
            )


def _effect(within: str, dim: str, found: Sequence[tuple[Arm, Candidate, Any]]) -> Iterable[Effect]:
    """One a value, in the order of the values."""
    groups: dict[str, list[tuple[Arm, Candidate, Any]]] = {}
    for each in found:
        groups.setdefault(str(each[2]), []).append(each)
    first: Effect | None = None
    before: list[float] = []
    for members in sorted(groups.values(), key=lambda of: _natural(of[0][2])):
        speeds = [s for _, c, _ in members if (s := c.tokens_per_s) is not None]
        scores = [s for _, c, _ in members if c.complete and (s := c.score) is not None]
        arms = tuple({arm.id: arm for arm, _, _ in members}.values())
        against = compare(scores, before) if first else None
        made = Effect(within, arms, dim, members[0][2], summarise(speeds), summarise(scores), first, against)
        first, before = first or made, before if first else scores
        yield made


def _natural(value: Any) -> tuple[bool, float, str]:
    """Numbers in their order, then everything else by its text."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (not number, float(value) if number else 0.0, str(value))


def as_dict(found: Standings) -> dict[str, Any]:
    """For JSON: `arms`, `comparisons`, `placement`, `front`."""
    return {
        "arms": [
            {
                "arm": a.id,
                "label": a.label,
                "best": a.best.id if a.best else None,
                "params": dict(a.best.trials[0].trial.params) if a.best else None,
                "tuning_score": _mean(summarise(a.tuning_scores)),
                "final_score": _mean(summarise(a.final_scores)),
                "candidates": len(a.candidates),
                "states": dict(a.states),
                "steps": a.steps,
                "gpu_hours": a.hours,
            }
            for a in found.arms
        ],
        "comparisons": [
            {"ahead": v.ahead.id, "other": v.other.id, "scores": v.kind, **_difference(v.difference)}
            for v in found.versus
        ],
        "placement": [
            {
                "arm": e.arms[0].id,
                "arms": [arm.id for arm in e.arms],
                "dim": e.dim,
                "value": e.value,
                "tokens_per_s": _mean(e.tokens_per_s),
                "score": _mean(e.score),
                "against_first": _difference(e.against) if e.against else None,
            }
            for e in found.effects
        ],
        "front": [c.id for c in found.candidates if c.front],
    }


def _mean(mean: Mean | None) -> Mapping[str, Any] | None:
    return None if mean is None else {"n": mean.n, "mean": mean.mean, "low": mean.low, "high": mean.high}


def _difference(d: Difference) -> dict[str, Any]:
    return {
        "difference": d.mean,
        "low": d.low,
        "high": d.high,
        "p": d.p,
        "told_apart": d.told_apart,
        "further_seeds": d.further,
    }
