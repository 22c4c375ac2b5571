"""The Hydra sweeper that hands a whole request to this project at once.

Guarantees: nothing but Hydra is imported until a sweep starts; the launcher is not used (Hydra's launchers run batches
and wait for the last of each), and one that was asked for is refused, not ignored; the process ends with the request's
exit code.
"""

from __future__ import annotations

import sys
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

UNCHOSEN = "basic"
"""Hydra's default launcher."""

# `params`: overrides that an experiment brings along, as in Hydra's basic sweeper: {algorithm: "grpo,ppo"}.
# A plain node, since Hydra runs a plugin's module before it is in sys.modules, where a dataclass looks for itself.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="sweeper",
    node={"_target_": "hydra_plugins.sweeper_plugin.sweeper.SweeperPlugin", "params": {}},
    provider="sweeper",
)


class SweeperPlugin(Sweeper):  # type: ignore[misc]  # Hydra is not typed for mypy
    """Selected by `hydra/sweeper=sweeper`, the default in conf/config.yaml."""

    def __init__(self, params: dict[str, str]) -> None:
        super().__init__()
        self.params = params
        self.launcher = UNCHOSEN

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002  # as Hydra calls it
        """Keep which launcher was chosen. The request is composed again, once for each choice of groups."""
        self.launcher = str(config.hydra.runtime.choices.get("hydra/launcher"))

    def sweep(self, arguments: list[str]) -> Any:
        """Run the request and end the process with its exit code.

        Raises:
            RequestError: A launcher was chosen, which would not be used.
        """
        from sweeper import app
        from sweeper.errors import Problem, RequestError

        if self.launcher != UNCHOSEN:
            raise RequestError(
                Problem(
                    f"hydra/launcher={self.launcher} is for Hydra's own sweepers; ours starts trials itself",
                    valid="hydra/sweeper=sweeper without a launcher, or hydra/sweeper=basic with one",
                    fix=f"hydra/sweeper=basic hydra/launcher={self.launcher}",
                    key="hydra/launcher",
                )
            )

        sys.exit(app.run(arguments))
