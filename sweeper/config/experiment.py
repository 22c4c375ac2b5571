"""The file of the chosen experiment: the choices it brings along, and the values it sets.

Guarantees: it is read, never composed; an experiment that does not exist has neither.
"""

from __future__ import annotations

from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from sweeper.config import tree

GROUP = "experiment"


def load(name: str) -> dict[str, Any]:
    """The file of an experiment, interpolations unresolved; empty where there is none."""
    repository = GlobalHydra.instance().config_loader().repository
    path = f"{GROUP}/{name}"
    config = repository.load_config(path).config if repository.config_exists(path) else None
    if not isinstance(config, DictConfig):
        return {}
    found: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]  # of a DictConfig
    return found


def params(file: dict[str, Any]) -> dict[str, Any]:
    """The choices that it brings along: `hydra.sweeper.params`."""
    sweeper = (file.get("hydra") or {}).get("sweeper") or {}
    return dict(sweeper.get("params") or {})


def keys(file: dict[str, Any]) -> list[str]:
    """The dotted keys of the values that it sets (`@package _global_`, as every experiment)."""
    return [key for key, _ in tree.values({k: v for k, v in file.items() if k not in ("defaults", "hydra")})]
