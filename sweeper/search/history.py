"""The curve of one trial: what its progress lines add up to.

Guarantees: a step seen twice (after a resume) counts once, with its latest value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sweeper.engines.base import Progress


@dataclass(slots=True)
class Curve:
    """Scores and rewards by step."""

    scores: dict[int, float] = field(default_factory=dict)
    rewards: dict[int, float] = field(default_factory=dict)
    step: int | None = None
    """The last step seen; None before the first line."""

    def add(self, progress: Progress) -> None:
        """Take in one line."""
        self.step = progress.step if self.step is None else max(self.step, progress.step)
        if progress.score is not None:
            self.scores[progress.step] = progress.score
        if progress.reward is not None:
            self.rewards[progress.step] = progress.reward

    @property
    def first_score(self) -> float | None:
        """The score before training, or the earliest there is."""
        return self.scores[min(self.scores)] if self.scores else None

    @property
    def final_score(self) -> float | None:
        """The score of the latest validation."""
        return self.scores[max(self.scores)] if self.scores else None

    @property
    def final_reward(self) -> float | None:
        """The training reward of the last step."""
        return self.rewards[max(self.rewards)] if self.rewards else None

    def best(self, mode: str = "max") -> tuple[int, float] | None:
        """Step and value of the best score; `mode` is max or min."""
        if not self.scores:
            return None
        sign = 1 if mode == "max" else -1
        numbers = [item for item in self.scores.items() if not math.isnan(item[1])] or list(self.scores.items())
        return max(numbers, key=lambda item: (sign * item[1], -item[0]))

    def summary(self, mode: str = "max") -> dict[str, float | None]:
        """What records and tables show of it."""
        best = self.best(mode)
        return {
            "step": self.step,
            "first_score": self.first_score,
            "final_score": self.final_score,
            "best_score": best[1] if best else None,
            "best_step": best[0] if best else None,
            "final_reward": self.final_reward,
        }
