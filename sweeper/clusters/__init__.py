"""Where gangs run: `base` is the contract, a module a kind of cluster, `gang` what runs beside a trainer.

A kind's module is imported when it is first asked for, so that no kind costs a sweep on another one anything (Ray's
client, an SSH library). It has the four functions of `Kind`; the rest of the program goes through those here.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from sweeper.clusters import gpus
from sweeper.config.nearest import nearest
from sweeper.engines.base import Shape
from sweeper.errors import Problem, RequestError, SweeperError

if TYPE_CHECKING:
    from sweeper.clusters.base import Attempt, Cluster

A = TypeVar("A", bound="Attempt")

KINDS = {
    "local": "local",
    "shape": "planned",
    "ray": "ray",
    "ssh": "ssh",
    "slurm": "slurm",
    "dstack": "dstack",
    "kuberay": "kuberay",
    "docker": "here",
}
"""`cluster.kind` -> the module of this package."""
STARTED = "attempt.json"
"""In an attempt's folder, what a later controller needs to find it: {"kind": "local", ...}, without secrets."""


class Kind(Protocol):
    """What the module of a kind has."""

    def shape(self, config: Mapping[str, Any]) -> Shape:
        """What the cluster has. Quick; it may ask the cluster.

        Raises:
            RequestError: What the config says is impossible there.
        """
        ...

    def problems(self, config: Mapping[str, Any]) -> list[Problem]:
        """What is wrong with the config's `cluster` group, without asking anybody."""
        ...

    def open(self, config: Mapping[str, Any], shape: Shape) -> Cluster:
        """The cluster, to run on.

        Raises:
            RequestError: It cannot be reached, or can only be planned for.
        """
        ...

    def attach(self, folder: Path, started: Mapping[str, Any]) -> Attempt | None:
        """The attempt of that folder, of which `started` is the content of its `attempt.json`; see `Cluster.attach`."""
        ...


def module(kind: str) -> Kind:
    """The module of a kind. RequestError if there is none of that name."""
    if kind not in KINDS:
        near = nearest(kind, KINDS)
        raise RequestError(
            Problem(
                f"cluster.kind={kind} is unknown",
                valid=f"cluster.kind: {', '.join(KINDS)}",
                fix=f"cluster.kind={near[0]}" if near else "",
                key="cluster.kind",
            )
        )
    return cast(Kind, importlib.import_module(f"sweeper.clusters.{KINDS[kind]}"))


def shape(config: Mapping[str, Any]) -> Shape:
    """What the cluster of the config's `cluster` group has. RequestError if the group is wrong, or says what it has
    and it has not."""
    kind = module(str(config["kind"]))
    if wrong := [*gpus.problems(config), *kind.problems(config)]:
        raise RequestError(wrong)
    return kind.shape(config)


def get(config: Mapping[str, Any], found: Shape) -> Cluster:
    """The cluster of that group and of the shape that was planned for, to run on. RequestError if it can only be
    planned for, or cannot be reached."""
    return module(str(config["kind"])).open(config, found)


def unlaunchable(found: Shape) -> Problem:
    """What to say of a sweep that would run on a shape."""
    return Problem(
        f"cluster={found.name} can be planned for, but not launched on: it is a shape and no cluster",
        fix="plan=true; or cluster=local, ray, ssh, slurm, dstack or kuberay, where the GPUs are",
        key="cluster",
    )


def follow(folder: Path, kind: type[A], running: list[A]) -> Attempt | None:
    """`Cluster.attach` of a cluster whose attempts are of that kind: one that still runs is added to those that do."""
    attempt = attach(folder)
    if isinstance(attempt, kind) and attempt.poll() is None:
        running.append(attempt)
    return attempt


def attach(folder: Path) -> Attempt | None:
    """The attempt of that folder, wherever it runs, without a cluster to start others on; see `Cluster.attach`.

    Raises:
        SweeperError: Nobody can tell from here whether it runs.
    """
    from sweeper.clusters.base import Ended

    folder = folder.resolve()
    path = folder / STARTED
    try:
        started = json.loads(path.read_text())
        kind = module(str(started.get("kind", "local")))
    except FileNotFoundError:
        return Ended.of(folder)
    except (OSError, ValueError, AttributeError, RequestError) as error:
        raise SweeperError(f"{path} cannot be read ({error}): whether the attempt still runs is not known") from error
    return kind.attach(folder, started)
