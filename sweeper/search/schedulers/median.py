"""The median stopping rule: Tune's MedianStoppingRule.

Guarantees: a candidate is stopped when its best score is worse than the median of the means of those that came as far;
a mean with a score that is no number in it is left out; nobody is paused to let others catch up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

from sweeper.search.base import Verdict
from sweeper.search.schedulers import rules
from sweeper.search.schedulers.adaptor import SCORE, STEP, Stand, TuneScheduler, shown


class Median(TuneScheduler):
    """Golovin et al., 2017, by Ray Tune."""

    name = "median"

    def __init__(self, settings: Mapping[str, Any], steps: rules.Steps, mode: str, seed: int) -> None:
        tune = MedianStoppingRule(
            time_attr=STEP,
            metric=SCORE,
            mode=mode,
            grace_period=rules.grace(settings, steps),
            min_samples_required=int(settings["min_samples"]),
        )
        super().__init__(tune, steps, mode, seed)

    def number(self, score: float) -> float:
        """Infinitely bad: Tune leaves such means out."""
        return score if math.isfinite(score) else (-math.inf if self.mode == "max" else math.inf)

    def judge(self, stand: Stand, step: int, score: float) -> tuple[str, Verdict]:
        """Tune's decision; it is asked for the figures again only where it stops."""
        action = self.ask(stand, step, self.number(score))
        if action != TrialScheduler.STOP:
            return action, Verdict("go")
        others = [t for t in self.tune._trials_beyond_time(step) if t is not stand]
        means = [m for m in (float(self.tune._running_mean(t, step)) for t in others) if math.isfinite(m)]
        median, best = float(np.median(means)), float(self.tune._best_result(stand))
        given = {"score": score, "step": step, "best": best, "median": median, "candidates": len(means)}
        text = (
            f"its best until step {step}, {shown(best)}, is worse than {shown(median)}, the median of the means of "
            f"{len(means)} others"
        )
        return action, self.stop(text, given)

    def last(self, stand: Stand, step: int, score: float) -> None:
        """Others are compared with it from now on."""
        self.tune.on_trial_complete(self.desk, stand, {STEP: step, SCORE: self.number(score)})

    def removed(self, stand: Stand) -> None:
        """What it had until then stays in the means, for the steps it came to."""
