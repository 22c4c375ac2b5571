"""One trial as a Hydra job, for Hydra's own sweepers and launchers (`hydra/sweeper=basic hydra/launcher=ray`).

Guarantees: the trial goes the same way as any other: planned, checked, run and recorded by `sweeper.app`, from the
folder that the request was typed in. Job 3 of a request is the sweep NAME-003, wherever and whenever it runs; the jobs
of a request never share a name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeper.errors import SweeperError

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True, slots=True)
class Job:
    """The task function that Hydra calls once a job, here or, pickled, in a launcher's process."""

    stamp: str
    """What the sweeps are named after where the request names none: the same in every job, so made before them."""

    def __call__(self, config: DictConfig) -> None:
        """Run the trial of this job.

        Raises:
            SweeperError: It failed or its request was wrong; what was wrong has been printed.
        """
        from hydra.core.hydra_config import HydraConfig

        from sweeper import app
        from sweeper.config.hydra_app import initialized

        hydra = HydraConfig.get()
        _enter(str(hydra.runtime.cwd))
        typed = [str(o) for o in hydra.overrides.task if str(o).split("=")[0].lstrip("+") != "name"]
        base = self.stamp if config.name is None else str(config.name)
        with initialized():
            code = app.run([*typed, f"name='{base}-{hydra.job.num:03d}'"])
        if code:
            error = SweeperError(f"job {hydra.job.num} ended with exit code {code}: {' '.join(typed)}".rstrip(": "))
            error.exit_code = code
            raise error


def _enter(folder: str) -> None:
    """Relative paths of a request (its store, its data) are where it was typed, also on a launcher's machine."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise SweeperError(f"this job's machine has no folder {folder}, where the request was typed") from error
