"""A cluster that is only a shape: enough to plan for, with the numbers of the config; nothing runs on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper import clusters
from sweeper.engines.base import Shape
from sweeper.errors import Problem, RequestError

if TYPE_CHECKING:
    from sweeper.clusters.base import Attempt, Cluster


def shape(config: Mapping[str, Any]) -> Shape:
    """What the config says."""
    return said(config, launchable=False)


def said(config: Mapping[str, Any], *, launchable: bool = True) -> Shape:
    """What the config says of a cluster that nobody asks."""
    return Shape(
        name=config["name"],
        device=config["device"],
        nodes=config["nodes"],
        gpus_per_node=config["gpus_per_node"],
        gpu=config.get("gpu") or "",
        gpu_memory_gib=config.get("gpu_memory_gib") or 0.0,
        launchable=launchable,
    )


def problems(config: Mapping[str, Any]) -> list[Problem]:
    """What a shape must say and does not."""
    missing = [key for key in ("nodes", "gpus_per_node") if not config[key]]
    return [
        Problem(f"cluster.{key} is not given, and a shape has nothing else", valid="a whole number from 1", key=key)
        for key in missing
    ]


def open(config: Mapping[str, Any], shape: Shape) -> Cluster:  # noqa: ARG001  (the contract's)
    """RequestError, always."""
    raise RequestError(clusters.unlaunchable(shape))


def attach(folder: Path, started: Mapping[str, Any]) -> Attempt | None:  # noqa: ARG001
    """Nothing was ever started on one."""
    return None
