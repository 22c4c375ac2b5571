"""A checkpoint before the time of an attempt is over. Loaded by verl in the process that drives the training.

A cluster with time limits says in `SWEEPER_ENDS_AT` by when an attempt must be over (Unix time). verl's V0 trainer
saves after a step once no more is left than a minute and its longest step (trainer/ppo/ray_trainer.py:1693,
utils/checkpoint/checkpoint_manager.py:262) and reads the time from a variable that one provider sets: it is told there.
The V1 trainer has no such rule (trainer/ppo/v1/trainer_base.py:481): it gets the same, between a step and its own save.

A cluster that takes nodes back with notice says so by a file, which `SWEEPER_TAKEN_BACK` names (gang/guard.py). It is
looked for after each step; once it is there that step is saved, and the training ends before the next one, when the
step's metrics are written. (With `async_save` it is not known when all is written: it goes on until it is ended.)

Guarantees: but for that nothing of ours ever ends or changes a training: an error is printed and the run goes on;
without a limit, or with `save_freq` off, nothing is saved. Only the standard library is imported (an attempt's folder
has a copy).
"""

from __future__ import annotations

import functools
import os
import threading
import time
from pathlib import Path
from typing import Any

try:  # the copy beside this one, in an attempt
    import sweeper_resume as resume  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    from sweeper.engines.verl import resume

ENDS_AT = "SWEEPER_ENDS_AT"
THEIRS = "MLP_CURRENT_CAPACITY_BLOCK_EXPIRATION_TIMESTAMP"
"""Where verl's own rule reads it."""
TAKEN_BACK = "SWEEPER_TAKEN_BACK"
V0 = "verl.trainer.ppo.ray_trainer"
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


class TakenBack(Exception):  # noqa: N818  (no error)
    """Ends a training whose nodes are taken back."""


class Clock:
    """Decides after each step of one trainer."""

    def __init__(self, ends_at: float, notice: str = "") -> None:
        """`notice`: the file that is there once the nodes are taken back; empty: they never are."""
        self.ends_at, self.notice = ends_at, notice
        self.taken_back = False
        self.longest_s = 0.0
        self._last: float | None = None

    def noticed(self) -> bool:
        """Whether the nodes are taken back and this is the first time that it is seen."""
        if not self.notice or self.taken_back:
            return False
        notice = Path(self.notice)
        # A network filesystem answers for a file that was not there from its cache, and not for a listing.
        self.taken_back = notice.name in os.listdir(notice.parent)  # noqa: PTH208
        return self.taken_back

    def before_step(self, trainer: Any) -> None:
        """Raises TakenBack if the step before this one was the last."""
        if not self.taken_back:
            return
        saving = trainer.config.actor_rollout_ref.actor.get("checkpoint", {}) or {}
        if saving.get("async_save", False):
            return
        for thread in threading.enumerate():
            if thread.name == "sweeper-manifest":  # saved.py
                thread.join()
        raise TakenBack("the cluster takes the nodes back: this is no failure, the training goes on in a new attempt")

    def after_step(self, trainer: Any, now: float) -> None:
        """Save, if it is time to and verl does not do it anyway."""
        noticed = self.noticed()
        if self._last is not None:
            self.longest_s = max(self.longest_s, now - self._last)
        self._last = now
        said, step = trainer.config.trainer, int(trainer.global_steps)
        every = int(said.save_freq)
        if every <= 0 or step % every == 0 or step >= int(trainer.total_training_steps):
            return
        if noticed or due(self.ends_at, now, self.longest_s, float(said.get("esi_redundant_time", 0) or 0)):
            why = "its nodes are taken back" if noticed else "the attempt's time is nearly over"
            print(f"sweeper: saved at step {step}, since {why}", flush=True)
            trainer._save_checkpoint()


def patch(module: Any, clock: Clock) -> None:
    """Make the V1 trainer of that module save in time."""
    trainer = module.PPOTrainer
    original = trainer._stop_profiling  # what it calls between a step and its save

    @functools.wraps(original)
    def stop_profiling(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        try:
            clock.after_step(self, time.time())
        except Exception as error:
            print(f"sweeper: no checkpoint before the time is over: {error}", flush=True)
        return result

    trainer._stop_profiling = stop_profiling
    end_before_step(trainer, clock)


def patch_v0(module: Any, clock: Clock) -> None:
    """Make the V0 trainer of that module save once its nodes are taken back."""
    original = module.should_save_ckpt_esi

    @functools.wraps(original)
    def should_save(*args: Any, **kwargs: Any) -> Any:
        noticed = False
        try:
            noticed = clock.noticed()
        except OSError as error:
            print(f"sweeper: whether the nodes are taken back is not known: {error}", flush=True)
        return original(*args, **kwargs) or noticed

    module.should_save_ckpt_esi = should_save
    end_before_step(module.RayPPOTrainer, clock)


def end_before_step(trainer: Any, clock: Clock) -> None:
    """Let the clock end a training between two steps."""
    original = trainer._start_profiling  # what both begin a step with

    @functools.wraps(original)
    def start_profiling(self: Any, *args: Any, **kwargs: Any) -> Any:
        clock.before_step(self)
        return original(self, *args, **kwargs)

    trainer._start_profiling = start_profiling


def install() -> None:
    """Tell V0, patch both now or when they are imported; once. Nothing where the attempt has no end."""
    try:
        ends_at = float(os.environ[ENDS_AT])
    except (KeyError, ValueError):
        return
    os.environ.setdefault(THEIRS, os.environ[ENDS_AT])
    clock = Clock(ends_at, os.environ.get(TAKEN_BACK, ""))
    resume.when_imported(V1, lambda module: patch(module, clock))
    if clock.notice:
        resume.when_imported(V0, lambda module: patch_v0(module, clock))
