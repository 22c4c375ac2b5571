"""Writes a manifest right after verl has saved a checkpoint. Loaded by verl in the process that drives the training.

The V1 trainer has a hook for it, `trainer.checkpoint_callback_class` (verl/trainer/ppo/checkpoint_callback.py), that it
calls when everything of the checkpoint is written (trainer/ppo/v1/trainer_base.py:1027); the V0 trainer has none, so
its method that saves is wrapped. A callback that the user named is called as verl would call it, before the manifest is
made; what it raises ends the training, as verl promises.

Guarantees: nothing of ours ever ends or changes a training: an error is printed and the run goes on; a checkpoint of at
most `AT_ONCE` bytes has its manifest before the step goes on, a larger one is read in the background (one at a time),
and that of the last step before the trainer ends; manifests of checkpoints that verl has deleted are removed. With
`async_save` verl may still be writing, and no manifest is made. Only the standard library is imported (an attempt's
folder holds a copy of this file and of what it imports, for interpreters without this project).
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
import time
from pathlib import Path
from typing import Any

try:  # the copies beside this one, in an attempt
    import sweeper_manifest as manifest  # type: ignore[import-not-found, unused-ignore]
    import sweeper_resume as resume  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    from sweeper.checkpoints import manifest
    from sweeper.engines.verl import resume

THEIRS = "SWEEPER_CHECKPOINT_CALLBACK"
"""Variable that names the user's own callback class."""
AT_ONCE = 512 << 20
"""Bytes: about half a second on two cores, and less than saving them took."""
V0 = "verl.trainer.ppo.ray_trainer"

_readings: list[threading.Thread] = []
"""The one that runs, if any."""


class Callback:
    """What verl makes on its driver and calls after each save (verl asks for no base class)."""

    def __init__(self, config: Any = None) -> None:
        """`config`: the whole trainer config, for the user's callback."""
        self.config = config
        module, _, name = os.environ.get(THEIRS, "").rpartition(".")
        self._theirs = getattr(importlib.import_module(module), name)(config=config) if module else None

    def on_save(
        self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **kwargs: Any
    ) -> None:
        """The user's callback, then the manifest, also where theirs raises: the checkpoint is whole all the same."""
        try:
            if self._theirs is not None:
                self._theirs.on_save(
                    trainer=trainer,
                    global_step=global_step,
                    checkpoint_dir=checkpoint_dir,
                    async_save=async_save,
                    **kwargs,
                )
        finally:
            if not async_save:
                last = global_step >= int(getattr(trainer, "total_training_steps", None) or 0)
                record(Path(checkpoint_dir), global_step, last=last)


def record(checkpoint: Path, step: int, *, last: bool) -> None:
    """Make the manifest of a checkpoint that is whole; never raises."""
    try:
        while _readings:
            _readings.pop().join()  # the saves come faster than the disk is read
        reading = threading.Thread(target=_make, args=(checkpoint, step), name="sweeper-manifest")
        reading.start()
        _readings.append(reading)
        if last or manifest.size_of(checkpoint) <= AT_ONCE:
            reading.join()
    except Exception as error:
        print(f"sweeper: no manifest of {checkpoint}: {error}", flush=True)


def _make(checkpoint: Path, step: int) -> None:
    try:
        # The folder that verl was given is {sweep}/trials/{trial}/checkpoints; a run by hand has one of its own.
        attempt = Path(os.environ.get("VERL_FILE_LOGGER_PATH", "")).parent.name.removeprefix("attempt-")
        trial = checkpoint.parent.parent.name
        began = time.monotonic()
        made = manifest.write(checkpoint.parent, step, trial=trial, attempt=int(attempt) if attempt.isdigit() else None)
        manifest.forget_retired(checkpoint.parent)
        if made is not None:
            took = time.monotonic() - began
            print(
                f"sweeper: checkpoint {step} is {made.digest[:16]}, {made.bytes} bytes read in {took:.2f} s", flush=True
            )
    except Exception as error:
        print(f"sweeper: no manifest of {checkpoint}: {error}", flush=True)


def patch(module: Any) -> None:
    """Make the V0 trainer tell `record` of each save."""
    trainer = module.RayPPOTrainer
    original = trainer._save_checkpoint

    @functools.wraps(original)
    def save_checkpoint(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        try:
            saving = self.config.actor_rollout_ref.actor.get("checkpoint", {}) or {}
            if not saving.get("async_save", False):
                step = int(self.global_steps)
                at = Path(self.config.trainer.default_local_dir) / manifest.name_of(step)
                record(at, step, last=step >= int(getattr(self, "total_training_steps", None) or 0))
        except Exception as error:
            print(f"sweeper: no manifest: {error}", flush=True)

    trainer._save_checkpoint = save_checkpoint


def install() -> None:
    """Patch the V0 trainer now or when it is imported; once."""
    resume.when_imported(V0, patch)
