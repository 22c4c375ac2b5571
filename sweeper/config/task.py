"""One trial as a Hydra job, for Hydra's own sweepers and launchers (`hydra/sweeper=basic hydra/launcher=ray`).

Guarantees: the trial goes the same way as any other: planned, checked, run and recorded by `sweeper.app`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweeper.errors import SweeperError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(_config: DictConfig) -> None:
    """Run the trial of this job.

    Raises:
        SweeperError: It failed or its request was wrong; what was wrong has been printed.
    """
    from hydra.core.hydra_config import HydraConfig

    from sweeper import app
    from sweeper.config.hydra_app import initialized

    overrides = [str(o) for o in HydraConfig.get().overrides.task]
    with initialized():
        code = app.run(overrides)
    if code:
        error = SweeperError(f"the trial ended with exit code {code}: {' '.join(overrides)}")
        error.exit_code = code
        raise error
