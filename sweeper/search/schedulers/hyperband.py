"""HyperBand: Tune's HyperBandScheduler, whose brackets do not get stuck.

Guarantees: a bracket holds as many candidates as HyperBand says, in the order they come, whether they end early or not;
at a rung it waits for its last candidate, one that is still to come included, and for nothing else; however its
candidates end, those that are paused are in the end stopped or `resumable`; survivors run to their last step.

Tune's time is here the number of validations, not the step: rungs between two validations would be one and the same.
Three traps of Tune's class (ray 2.60, tune/schedulers/hyperband.py) are closed: a bracket that has halved once is never
looked at again when a trial of it fails (`is_being_processed` stays set); one whose trials are all past the next rung
when they are halved is never looked at again at all; a place in a bracket is free again when its trial has ended, so
that trials that come one after the other all land in the first bracket, which stops nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ray.tune.schedulers import HyperBandScheduler, TrialScheduler
from ray.tune.schedulers.hyperband import _Bracket

from sweeper.search.base import Verdict
from sweeper.search.schedulers import rules
from sweeper.search.schedulers.adaptor import PAUSED, RUNNING, SCORE, STEP, Desk, Stand, TuneScheduler, shown


class FairBracket(_Bracket):  # type: ignore[misc]
    """One place for each candidate that ever came."""

    def filled(self) -> bool:
        """Whether no other candidate will come."""
        return bool(len(self._all_trials) >= self._n0)

    def may_go(self, stand: Stand) -> bool:
        """Whether its candidate is short of the next rung, or there is none."""
        return bool(stand in self._live_trials and self.continue_trial(stand))


class Brackets(HyperBandScheduler):  # type: ignore[misc]
    """Tune's scheduler with such brackets."""

    waiting = False
    """Whether more candidates are known to come."""

    def _create_bracket(self, s: int) -> FairBracket:
        return FairBracket(
            time_attr=self._time_attr,
            max_trials=self._get_n0(s),
            init_t_attr=self._get_r0(s),
            max_t_attr=self._max_t_attr,
            eta=self._eta,
            s=s,
            stop_last_trials=self._stop_last_trials,
        )

    def _process_bracket(self, desk: Desk, bracket: FairBracket) -> str:
        if self.waiting and not bracket.filled():
            return str(TrialScheduler.PAUSE)
        action = str(super()._process_bracket(desk, bracket))
        while bracket._live_trials and bracket._halves > 0 and bracket.cur_iter_done():
            later = str(super()._process_bracket(desk, bracket))
            action = action if action == TrialScheduler.STOP else later
        bracket.is_being_processed = False
        return action

    def open_bracket(self) -> FairBracket | None:
        """The one that the next candidate comes to."""
        found: FairBracket | None = self._state["bracket"]
        return found


class HyperBand(TuneScheduler):
    """Li et al., 2018, by Ray Tune."""

    name = "hyperband"

    def __init__(
        self, settings: Mapping[str, Any], steps: rules.Steps, mode: str, seed: int, candidates: int | None
    ) -> None:
        tune = Brackets(
            time_attr=STEP,
            metric=SCORE,
            mode=mode,
            max_t=len(steps.validated),
            reduction_factor=float(settings["reduction_factor"]),
            stop_last_trials=False,  # the trainer ends by itself, at a step that may be after the last rung
        )
        super().__init__(tune, steps, mode, seed, candidates)

    def added(self, candidate: str, params: Mapping[str, Any]) -> None:
        """It takes the next place."""
        super().added(candidate, params)
        self.tune.waiting = self.more

    def judge(self, stand: Stand, step: int, score: float) -> tuple[str, Verdict]:
        """Paused at a rung until the bracket is there; the last one there decides for all."""
        bracket = self._bracket(stand)
        action = self.ask(stand, self.steps.count(step), self.number(score))
        if action == TrialScheduler.STOP:
            return action, self.why_stopped(stand)
        if action == TrialScheduler.PAUSE:
            there = sum(1 for t in bracket._live_trials if not bracket.may_go(t))
            given = {"score": score, "step": step, "there": there, "bracket": bracket._n0}
            text = f"{self.name}: waits at step {step} until its bracket is there ({there} of {self._awaited(bracket)})"
            return action, Verdict("pause", text, given)
        return action, Verdict("go")

    def _awaited(self, bracket: FairBracket) -> int:
        """How many candidates a bracket will have at its rung, if none fails."""
        coming = bracket._n0 - len(bracket._all_trials) if bracket is self.tune.open_bracket() and self.more else 0
        return len(bracket._live_trials) + coming

    def why_stopped(self, stand: Stand) -> Verdict:
        """Against the worst of those that go on: they are what is left of the bracket."""
        bracket = self._bracket(stand)
        step, score = self._last[stand.trial_id]
        left = [self._last[t.trial_id][1] for t in bracket._live_trials if t.trial_id in self._last and t is not stand]
        given: dict[str, float] = {"score": score, "step": step, "kept": len(left)}
        text = f"{shown(score)} at step {step} is not among the best {len(left)} of its bracket"
        if left:
            given["bound"] = min(left, key=self.number) if self.mode == "max" else max(left, key=self.number)
            text += f", the worst of which has {shown(given['bound'])}"
        return self.stop(text, given)

    def removed(self, stand: Stand) -> None:
        """The bracket waits for it no more."""
        self.tune.on_trial_error(self.desk, stand)

    def full(self) -> None:
        """The last bracket waits for nobody else."""
        self.tune.waiting = False
        bracket = self.tune.open_bracket()
        if bracket is not None and bracket._live_trials and bracket.cur_iter_done():
            self.tune._process_bracket(self.desk, bracket)

    def resumable(self, paused: Iterable[str]) -> list[str]:
        """In Tune's order: the bracket that is least far first. Paused by somebody else: may go on as well."""
        stands = [self.desk.stands[candidate] for candidate in paused]
        ready = [s for s in stands if not s.is_finished() and self._bracket(s).may_go(s)]
        before = {s: s.status for s in self.desk.stands.values()}
        unpaused = [(b, set(b.trials_to_unpause)) for band in self.tune._hyperbands for b in band if b is not None]
        for stand in self.desk.stands.values():
            stand.status = PAUSED if stand in ready else RUNNING
        for bracket, _ in unpaused:
            bracket.trials_to_unpause = set(ready)
        order = []
        while (chosen := self.tune.choose_trial_to_run(self.desk)) is not None:
            order.append(chosen.trial_id)
            chosen.status = RUNNING
        for stand, status in before.items():  # it was only a question
            stand.status = status
        for bracket, those in unpaused:
            bracket.trials_to_unpause = those
        return order

    def _bracket(self, stand: Stand) -> FairBracket:
        bracket: FairBracket = self.tune._trial_info[stand][0]
        return bracket
