"""verl's base config as the config group `model_engine`, for Hydra: read when it is asked for, never imported.

Guarantees: the group has verl's own option names; nothing is read until an option is composed.
"""

from __future__ import annotations

import copy
from functools import cache

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from sweeper.engines.verl import base_config

GROUP = "model_engine"


@cache
def _node(option: str) -> DictConfig:
    """Made once a process: a copy takes 16 ms, making it 42, a third of a compose."""
    return OmegaConf.create(base_config.load(option))


class VerlConfigSource(ConfigSource):  # type: ignore[misc]  # Hydra is not typed for mypy
    """Serves `model_engine/{dp,megatron,torchtitan,veomni}` from the installed verl."""

    @staticmethod
    def scheme() -> str:
        """The scheme of the search path entry: `verl://`."""
        return "verl"

    def available(self) -> bool:
        """Always: a missing verl is reported, with the cure, when its config is needed."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether this is the one group that is served."""
        return config_path.strip("/") in ("", GROUP)

    def is_config(self, config_path: str) -> bool:
        """Whether this is one of its options."""
        group, _, option = config_path.strip("/").removesuffix(".yaml").partition("/")
        return group == GROUP and option in base_config.FILES

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The group at the root, its options below."""
        path = config_path.strip("/")
        found = {"": [GROUP], GROUP: [f"{option}.yaml" for option in base_config.FILES]}.get(path, [])
        files: list[str] = []
        for name in found:
            self._list_add_result(files, f"{path}/{name}".strip("/"), name, results_filter)
        return sorted(files)

    def load_config(self, config_path: str) -> ConfigResult:
        """One option, at the root of the config."""
        option = config_path.removesuffix(".yaml").rpartition("/")[2]
        return ConfigResult(
            config=copy.deepcopy(_node(option)),  # Hydra builds the config in this very object
            path=f"{self.scheme()}://{config_path}",
            provider=self.provider,
            header={"package": "_global_"},
        )


class VerlSearchPath(SearchPathPlugin):  # type: ignore[misc]  # Hydra is not typed for mypy
    """Puts the source on Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra calls this once, when it starts."""
        search_path.append(provider="sweeper", path="verl://")
