"""A checkpoint before the time of an attempt is over. Loaded by verl in the process that drives the training.

A cluster with time limits says in `SWEEPER_ENDS_AT` by when an attempt must be over (Unix time). verl's V0 trainer
saves after a step once no more is left than a minute and its longest step (trainer/ppo/ray_trainer.py:1693,
utils/checkpoint/checkpoint_manager.py:262) and reads the time from a variable that one provider sets: it is told there.
The V1 trainer has no such rule (trainer/ppo/v1/trainer_base.py:481): it gets the same, between a step and its own save.

Guarantees: nothing of ours ever ends or changes a training: an error is printed and the run goes on; without a limit,
or with `save_freq` off, nothing is done at all. Only the standard library is imported (an attempt's folder has a copy).
"""

from __future__ import annotations

import functools
import os
import time
from typing import Any

try:  # the copy beside this one, in an attempt
    import sweeper_resume as resume  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    from sweeper.engines.verl import resume

ENDS_AT = "SWEEPER_ENDS_AT"
THEIRS = "MLP_CURRENT_CAPACITY_BLOCK_EXPIRATION_TIMESTAMP"
"""Where verl's own rule reads it."""
V1 = "verl.trainer.ppo.v1.trainer_base"
SAVE_S = 60.0
"""What verl allows a save to take; `trainer.esi_redundant_time` is added."""


def due(ends_at: float, now: float, longest_s: float, more_s: float = 0.0) -> bool:
    """Whether this may be the last step whose checkpoint can still be written; verl's rule.

    Args:
        ends_at, now: Unix time.
        longest_s: seconds of the longest step so far; 0 after the first.
        more_s: further seconds that the user allows a save.
    """
    left = ends_at - now
    return longest_s > 0 and 0 < left <= SAVE_S + longest_s + more_s


class Clock:
    """Decides after each step of one trainer."""

    def __init__(self, ends_at: float) -> None:
        self.ends_at = ends_at
        self.longest_s = 0.0
        self._last: float | None = None

    def after_step(self, trainer: Any, now: float) -> None:
        """Save, if it is time to and verl does not do it anyway."""
        if self._last is not None:
            self.longest_s = max(self.longest_s, now - self._last)
        self._last = now
        said, step = trainer.config.trainer, int(trainer.global_steps)
        every = int(said.save_freq)
        if every <= 0 or step % every == 0 or step >= int(trainer.total_training_steps):
            return
        if due(self.ends_at, now, self.longest_s, float(said.get("esi_redundant_time", 0) or 0)):
            print(f"sweeper: saved at step {step}, since the attempt's time is nearly over", flush=True)
            trainer._save_checkpoint()


def patch(module: Any, ends_at: float) -> None:
    """Make the V1 trainer of that module save in time."""
    trainer = module.PPOTrainer
    original = trainer._stop_profiling  # what it calls between a step and its save
    clock = Clock(ends_at)

    @functools.wraps(original)
    def stop_profiling(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        try:
            clock.after_step(self, time.time())
        except Exception as error:
            print(f"sweeper: no checkpoint before the time is over: {error}", flush=True)
        return result

    trainer._stop_profiling = stop_profiling


def install() -> None:
    """Tell V0, patch V1 now or when it is imported; once. Nothing where the attempt has no end."""
    try:
        ends_at = float(os.environ[ENDS_AT])
    except (KeyError, ValueError):
        return
    os.environ.setdefault(THEIRS, os.environ[ENDS_AT])
    resume.when_imported(V1, lambda module: patch(module, ends_at))
