"""One arm's search: proposes its candidates, gathers their scores over the seeds, judges, tells.

Guarantees: never more candidates than the budget; a candidate is told to the sampler exactly once in a process, when
its last trial has ended; what it decides follows from the order of the calls alone, so that replaying the ledger's
events gives a killed search its state back. No process is started and nothing is written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeper.search.base import Ask, Past, Refuse, Sampler, Scheduler, Told, Verdict
from sweeper.search.stats import mean


@dataclass(slots=True)
class Candidate:
    """A point of the arm under all its seeds."""

    id: str
    arm: str
    ask: Ask
    trials: list[str]
    """Ids, one a seed."""
    scores: dict[str, dict[int, float]] = field(default_factory=dict)
    """Trial -> step -> validated score."""
    ended: dict[str, str] = field(default_factory=dict)
    """Trial -> state, of those that will not run any more."""
    hours: float = 0.0
    """GPU-hours of all its trials."""
    judged: int = -1
    """The last step that the scheduler has seen."""
    held: bool = False
    """Whether it was decided to end, pause or fork it: what its trainers still say until then is not judged."""
    params: dict[str, Any] = field(default_factory=dict)
    """The values that it has now: a fork changes them, its ask stays."""

    @property
    def state(self) -> str | None:
        """How it ended as a whole: `finished`, `pruned` or `failed`; None while a trial of it is to run or runs."""
        if len(self.ended) < len(self.trials):
            return None
        states = set(self.ended.values())
        return "failed" if "failed" in states else "pruned" if "pruned" in states else "finished"

    def final(self, trial: str) -> float | None:
        """The latest score of a trial."""
        scores = self.scores.get(trial)
        return scores[max(scores)] if scores else None

    @property
    def score(self) -> float | None:
        """The mean of the trials' latest scores; None while one of them has none."""
        finals = [self.final(trial) for trial in self.trials]
        known = [f for f in finals if f is not None]
        return mean(known) if known and len(known) == len(finals) else None

    def means(self) -> dict[int, float]:
        """Step -> mean score, of the steps at which every trial has one."""
        curves = [self.scores.get(trial, {}) for trial in self.trials]
        if len(curves) == 1:
            return dict(sorted(curves[0].items()))
        shared = set.intersection(*(set(c) for c in curves)) if curves else set()
        return {step: mean([c[step] for c in curves]) for step in sorted(shared)}


class ArmSearch:
    """The search of one arm."""

    def __init__(
        self,
        arm: str,
        *,
        sampler: Sampler,
        scheduler: Scheduler,
        refuse: Refuse,
        budget: int | None,
        objectives: Sequence[str],
        name: Callable[[int], str],
        seeds: Sequence[int | None],
        mode: str,
    ) -> None:
        """`budget` None: as many as the sampler has. `name` gives the id of the arm's n-th candidate."""
        self.arm, self._sampler, self._scheduler, self.refuse = arm, sampler, scheduler, refuse
        self.budget, self._objectives, self._name, self.seeds, self.mode = budget, objectives, name, seeds, mode
        self.candidates: dict[str, Candidate] = {}
        self.exhausted = False
        """Whether the sampler has no point left."""
        self.last_refusal = ""
        """Why the latest point that cannot run was refused."""

    @property
    def more(self) -> bool:
        """Whether another candidate may be proposed."""
        return not self.exhausted and (self.budget is None or len(self.candidates) < self.budget)

    def propose(self) -> Candidate | None:
        """The next candidate; None when there is none."""
        if not self.more:
            return None
        ask = self._sampler.ask(self._refused)
        if ask is None:
            self.exhausted = True
            return None
        return self._add(ask, self._name(len(self.candidates)))

    def _refused(self, params: Mapping[str, Any]) -> str:
        why = self.refuse(params)
        self.last_refusal = why or self.last_refusal
        return why

    def closed(self) -> dict[str, Verdict]:
        """The sampler has no point left, although the budget had more: what the scheduler makes of it."""
        return self._held(self._scheduler.closed())

    def _add(self, ask: Ask, candidate_id: str) -> Candidate:
        trials = [trial_id(candidate_id, seed, len(self.seeds)) for seed in self.seeds]
        found = Candidate(candidate_id, self.arm, ask, trials, params=dict(ask.params))
        self.candidates[candidate_id] = found
        self._scheduler.added(candidate_id, found.params)
        return found

    def remember(self, ask: Ask, candidate_id: str) -> Candidate:
        """A candidate of the ledger, in the order of the asks; `recall` comes after the last of them."""
        return self._add(ask, candidate_id)

    def recall(self) -> None:
        """Give the sampler the memory of the candidates that were remembered, in the state that they are in."""
        self._sampler.replay(Past(c.ask, self._told(c)) for c in self.candidates.values())

    def scored(self, candidate_id: str, trial: str, step: int, score: float) -> dict[str, Verdict]:
        """A trial's validated score; what the scheduler decides once all trials of the candidate have one there."""
        candidate = self.candidates[candidate_id]
        candidate.scores.setdefault(trial, {})[step] = score
        verdicts: dict[str, Verdict] = {}
        if candidate.state is not None:
            return verdicts
        for at, middle in candidate.means().items():
            if at > candidate.judged and not candidate.held:
                candidate.judged = at
                verdicts.update(self._held(self._scheduler.result(candidate_id, at, middle)))
        return verdicts

    def _held(self, verdicts: dict[str, Verdict]) -> dict[str, Verdict]:
        for name, verdict in verdicts.items():
            self.candidates[name].held |= verdict.action != "go"
        return verdicts

    def trial_ended(self, candidate_id: str, trial: str, state: str, *, tell: bool = True) -> dict[str, Verdict]:
        """A trial that will not run any more. With its last trial the candidate is told; `tell=False` in a replay."""
        candidate = self.candidates[candidate_id]
        candidate.ended[trial] = state
        if candidate.state is None:
            return {}
        told = self._told(candidate)
        if tell and told is not None:
            self._sampler.tell(candidate.ask.number, told)
        return self._held(self._scheduler.ended(candidate_id))

    def forked(self, candidate_id: str, params: Mapping[str, Any]) -> None:
        """The candidate goes on with other values."""
        self.candidates[candidate_id].params = dict(params)
        self.candidates[candidate_id].held = False

    def revive(self, candidate_id: str, trial: str) -> None:
        """A trial that had failed is tried afresh, so the scheduler hears of its candidate as of a new one."""
        candidate = self.candidates[candidate_id]
        over = candidate.state is not None
        candidate.ended.pop(trial, None)
        candidate.held = False
        if over:
            self._scheduler.added(candidate_id, candidate.params)

    def goes_on(self, candidate_id: str) -> None:
        """A candidate that was paused runs again."""
        self.candidates[candidate_id].held = False

    def resumable(self, paused: Sequence[str]) -> list[str]:
        """Paused candidates that may go on."""
        return self._scheduler.resumable(paused) if paused else []

    def _told(self, candidate: Candidate) -> Told | None:
        state = candidate.state
        if state is None:
            return None
        score = candidate.score
        if state == "failed" or (score is None and state == "finished"):
            return Told("failed")
        values = {"score": math.nan if score is None else score, "gpu_hours": candidate.hours}
        return Told(state, tuple(values[o] for o in self._objectives), candidate.means())

    def best(self) -> Candidate | None:
        """The finished candidate with the best score."""
        sign = 1 if self.mode == "max" else -1
        done = [c for c in self.candidates.values() if c.state == "finished"]
        scored = [(sign * c.score, c) for c in done if c.score is not None and not math.isnan(c.score)]
        return max(scored, key=lambda pair: pair[0])[1] if scored else None


def trial_id(candidate: str, seed: int | None, seeds: int) -> str:
    """The id of a candidate's trial under a seed: its own where there is one seed only."""
    return candidate if seeds == 1 else f"{candidate}-s{seed}"


def final_id(candidate: str, seed: int) -> str:
    """The id of a final trial, which repeats a candidate under a seed that nothing was chosen by."""
    return f"{candidate}-final-s{seed}"
