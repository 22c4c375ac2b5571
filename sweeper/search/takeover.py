"""A trial goes on from another one's checkpoint.

Guarantees: only a checkpoint whose content was read and found whole is taken; where there is none, the trial keeps its
own weights and why is said. What it goes on from stays as its origin, where the file system has links.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from sweeper.checkpoints import origin
from sweeper.engines.base import Engine, Saved
from sweeper.errors import SweeperError

Warn = Callable[[str], None]


def take_over(
    engine: Engine, mine: Path, theirs: Path, step: int | None, *, names: tuple[str, str], warn: Warn
) -> Saved | None:
    """Copy the donor's checkpoint into the folder of a trial's own.

    Args:
        mine: Folder of the trial's checkpoints; `theirs`: the donor's.
        step: The one that the donor was judged by; where it is gone, the newest.
        names: Of the trial and of the donor, for a warning.
    """
    why = f"{names[1]} has no whole checkpoint to go on from"
    for wanted in (step, None):  # the judged one may be removed while it is taken over
        try:
            saved = sound(engine, theirs, wanted, warn=warn)
            if saved is None:
                break
            engine.adopt(saved, mine)
        except SweeperError as error:
            why = str(error)
        else:
            _keep(engine, mine, saved.step)
            return saved
    warn(f"{names[0]} keeps its own weights: {why}")
    _keep(engine, mine)
    return None


def _keep(engine: Engine, mine: Path, step: int | None = None) -> None:
    """For the day when this is run again. Nothing of the sweep depends on it."""
    with contextlib.suppress(OSError, SweeperError):
        if (own := engine.checkpoint(mine, step)) is not None:
            origin.keep(own.path, mine)


def sound(engine: Engine, checkpoints: Path, step: int | None = None, *, warn: Warn) -> Saved | None:
    """The checkpoint to go on from, its content read; what is corrupted is said."""
    found = engine.sound(checkpoints, step)
    for message in found.said:
        warn(message)
    return found.saved
