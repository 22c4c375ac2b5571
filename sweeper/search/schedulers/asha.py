"""Asynchronous successive halving: Tune's ASHAScheduler.

Guarantees: a candidate is compared with those that were at its rung before it, once a rung; a score that is no
number is worse than any other and moves no bound but by being one more; nobody is stopped at the last step; while
others are known to come, the first `bootstrap` candidates at the first rung go no further, whatever their score.

Tune lets whoever comes to a rung first pass, where the paper promotes nobody before a best share can be told (Li et
al., 2020, algorithm 2). `bootstrap` is Optuna's answer (SuccessiveHalvingPruner's bootstrap_count), for searches of few
trials, in which one or two bad ones trained to their end cost much of the budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from sweeper.search.base import Verdict
from sweeper.search.schedulers import rules
from sweeper.search.schedulers.adaptor import SCORE, STEP, Stand, TuneScheduler, share, shown


class Asha(TuneScheduler):
    """Li et al., 2020, by Ray Tune."""

    name = "asha"

    def __init__(
        self, settings: Mapping[str, Any], steps: rules.Steps, mode: str, seed: int, candidates: int | None
    ) -> None:
        self.factor = float(settings["reduction_factor"])
        self.bootstrap = int(settings.get("bootstrap", 0))
        tune = ASHAScheduler(
            time_attr=STEP,
            metric=SCORE,
            mode=mode,
            max_t=steps.total,
            grace_period=rules.grace(settings, steps),
            reduction_factor=self.factor,
            brackets=int(settings["brackets"]),
            # With True, Tune would compare a score of a late step with those of an earlier rung that was skipped.
            stop_last_trials=False,
        )
        super().__init__(tune, steps, mode, seed, candidates)

    def judge(self, stand: Stand, step: int, score: float) -> tuple[str, Verdict]:
        """Tune's decision, and the bound it was made by."""
        bracket = self.tune._trial_info[stand.trial_id]
        before: dict[str, float] = next((there for milestone, there in bracket._rungs if step >= milestone), {})
        others = [value for trial, value in before.items() if trial != stand.trial_id]
        bound = bracket.cutoff(dict(enumerate(others))) if others else None
        first = bool(bracket._rungs) and before is bracket._rungs[-1][1] and stand.trial_id not in before
        action = self.ask(stand, step, self.number(score))
        if first and len(others) < self.bootstrap and self.more:
            given = {"score": score, "step": step, "before": len(others)}
            text = (
                f"{shown(score)} at step {step} is one of the first {self.bootstrap}, which the others are measured by"
            )
            return TrialScheduler.STOP, self.stop(text, given)
        if action != TrialScheduler.STOP or bound is None:
            return action, Verdict("go")
        sign = 1.0 if self.mode == "max" else -1.0
        given = {"score": score, "step": step, "bound": sign * float(bound), "before": len(others)}
        text = (
            f"{shown(score)} at step {step} is worse than {shown(given['bound'])}, the bound of the best "
            f"{share(self.factor)} of the {len(others)} that were there before"
        )
        return action, self.stop(text, given)
