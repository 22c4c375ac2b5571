"""Where gangs run: `base` is the contract, `local` is one machine, `gang` holds what runs beside a trainer.

`shape` and `get` turn the config's `cluster` group into what a plan is made for and what a sweep runs on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.engines.base import Shape
from sweeper.errors import Problem, RequestError

if TYPE_CHECKING:
    from sweeper.clusters.base import Attempt, Cluster

KINDS = ("local", "shape")


def shape(config: Mapping[str, Any]) -> Shape:
    """What the cluster has. RequestError if it is said to be this machine and is not."""
    if config["kind"] == "shape":
        return Shape(
            name=config["name"],
            device=config["device"],
            nodes=config["nodes"],
            gpus_per_node=config["gpus_per_node"],
            gpu=config["gpu"] or "",
            gpu_memory_gib=config["gpu_memory_gib"] or 0.0,
            launchable=False,
        )
    if config["kind"] == "local":
        from sweeper.clusters import machine

        return machine.detect(config["name"], config["device"], config["max_ranks"])
    raise RequestError(
        Problem(
            f"cluster.kind={config['kind']} is unknown", valid=f"cluster.kind: {', '.join(KINDS)}", key="cluster.kind"
        )
    )


def get(found: Shape) -> Cluster:
    """The cluster of that shape, to run on. RequestError if it can only be planned for."""
    from sweeper.clusters.local import LocalCluster

    if not found.launchable:
        raise RequestError(
            Problem(
                f"cluster={found.name} can be planned for, but not launched on in this release",
                fix="plan=true, or cluster=local on a machine with the GPUs",
                key="cluster",
            )
        )
    return LocalCluster(found)


def attach(folder: Path) -> Attempt | None:
    """The attempt of that folder, wherever it runs, without a cluster to start others on; see `Cluster.attach`."""
    from sweeper.clusters.local import LocalAttempt

    return LocalAttempt.of(folder)
