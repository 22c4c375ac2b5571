"""Slurm: a job a trial (jobs.py), or the whole sweep inside one allocation (allocation.py). docs/clusters/slurm.md.

`settings` checks what the config says, `commands` runs Slurm's, `script` writes what Slurm runs, `watch` asks about all
jobs in one thread, `states` turns Slurm's words for an end into ours.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper import package
from sweeper.clusters.slurm import commands, script
from sweeper.clusters.slurm.settings import Settings, problems
from sweeper.engines.base import Gang, Shape
from sweeper.errors import Problem, RequestError

if TYPE_CHECKING:
    from sweeper.clusters.base import Attempt, Cluster

__all__ = ["attach", "open", "problems", "shape"]


def shape(config: Mapping[str, Any]) -> Shape:
    """What the partition has for this sweep; inside an allocation, what that has.

    Raises:
        RequestError: Slurm is not there or does not answer; there is no such partition; it has not what is asked for.
    """
    settings = Settings.of(config)
    if settings.mode == "allocation":
        from sweeper.clusters.slurm.allocation import allocation

        if inside := allocation():
            return _inside(config, inside.job, len(inside.names), inside.gpus, inside.cpus)
    found = commands.partition(settings.partition, settings.gres)
    per_node = config.get("gpus_per_node") or (found.gpus if config["device"] == "cuda" else 1)
    if wrong := _too_much(config, settings, found, int(per_node)):
        raise RequestError(wrong)
    notes: tuple[str, ...] = ()
    if settings.mode == "allocation":
        notes = (_how_to_submit(config, settings, Gang(int(config["nodes"]), int(per_node))),)
    return _shape(config, int(config["nodes"]), int(per_node), notes, launchable=settings.mode == "job")


def _shape(
    config: Mapping[str, Any], nodes: int, per_node: int, notes: tuple[str, ...] = (), *, launchable: bool = True
) -> Shape:
    return Shape(
        name=str(config["name"]),
        device=str(config["device"]),
        nodes=nodes,
        gpus_per_node=per_node,
        gpu=str(config.get("gpu") or ""),
        gpu_memory_gib=float(config.get("gpu_memory_gib") or 0.0),
        launchable=launchable,
        notes=notes,
    )


def _inside(config: Mapping[str, Any], job: str, nodes: int, gpus: int, cpus: int) -> Shape:
    """The shape of an allocation, which may be more than the config asks for, and not less."""
    cuda = config["device"] == "cuda"
    has = gpus if cuda else max(1, cpus)
    asked = int(config.get("gpus_per_node") or (has if cuda else 1))
    found = []
    if cuda and not gpus:
        what = f"Slurm job {job}, in which this runs, has no GPU"
        found.append(Problem(what, fix="sbatch --gres=gpu:8 ...; or cluster.device=cpu", key="cluster.device"))
    elif asked > has:
        what = f"cluster.gpus_per_node={asked}: Slurm job {job}, in which this runs, has {has} a node"
        found.append(Problem(what, valid=f"up to {has}", fix=f"cluster.gpus_per_node={has}", key="cluster"))
    if int(config["nodes"]) > nodes:
        what = f"cluster.nodes={config['nodes']}: Slurm job {job}, in which this runs, has {nodes}"
        found.append(Problem(what, valid=f"up to {nodes}", fix=f"cluster.nodes={nodes}", key="cluster.nodes"))
    if found:
        raise RequestError(found)
    return _shape(config, nodes, asked)


def _too_much(config: Mapping[str, Any], settings: Settings, found: commands.Partition, per_node: int) -> list[Problem]:
    """What is asked of the partition and it has not."""
    wrong = []
    nodes, where = int(config["nodes"]), f"partition {found.name}"
    kind = settings.gres.partition(":")[2]
    asked = commands.minutes(settings.time) if settings.time else None
    if asked is not None and found.longest is not None and asked > found.longest:
        what = f"cluster.slurm.time={settings.time}: {where} lets a job take {found.longest:g} minutes"
        fix = f"cluster.slurm.time={found.longest:g}, or another partition (sinfo -o '%P %l')"
        wrong.append(Problem(what, valid=f"up to {found.longest:g} minutes", fix=fix, key="cluster.slurm.time"))
    if kind and found.types and kind not in found.types and not found.gpus:
        what = f"cluster.slurm.gres={settings.gres}: {where} has no GPU of type {kind}"
        fix = f"cluster.slurm.gres=gpu:{found.types[0]}"
        wrong.append(Problem(what, valid=", ".join(found.types), fix=fix, key="cluster.slurm.gres"))
    elif (config["device"] == "cuda" and per_node > found.gpus) or not per_node:
        has = f"a node of {where} has {found.gpus} GPUs" + (f" of type {kind}" if kind else "")
        types = f"; it has types {', '.join(found.types)}" if kind and found.types else ""
        what = f"cluster.gpus_per_node={per_node}: {has}{types}"
        fix = (
            f"cluster.gpus_per_node={found.gpus}"
            if found.gpus
            else "cluster.slurm.partition=..., or see sinfo -o %P,%G"
        )
        wrong.append(Problem(what, valid=f"up to {found.gpus}", fix=fix, key="cluster.gpus_per_node"))
    if nodes > found.nodes:
        what = f"cluster.nodes={nodes}: {where} has {found.nodes} that are up"
        fix = f"cluster.nodes={found.nodes}" if found.nodes else "sinfo --list-reasons"
        wrong.append(Problem(what, valid=f"up to {found.nodes}", fix=fix, key="cluster.nodes"))
    return wrong


def _how_to_submit(config: Mapping[str, Any], settings: Settings, gang: Gang) -> str:
    """The script in which the request that was typed runs as one job; it has a name, by which it goes on."""
    typed = _overrides()
    chosen = {key: value for key, _, value in (word.partition("=") for word in typed) if key in ("name", "store")}
    name, store = chosen.get("name", time.strftime("sweep-%Y%m%d-%H%M%S")), chosen.get("store", "runs")
    command = [sys.executable, "-m", "sweeper.cli.main"]
    text = script.of_sweep(
        settings,
        gang,
        [*command, "run", *typed, *([] if "name" in chosen else [f"name={name}"])],
        [*command, "resume", name, "--store", store],
        sweep=Path.cwd() / store / name,
        gpus=config["device"] == "cuda",
        cpus=settings.cpus_per_node,
        where=Path.cwd(),
        environment=_importable(),
    )
    return f"submit the whole sweep as one job: save this as sweep.sbatch, then `sbatch sweep.sbatch`\n\n{text}"


def _overrides() -> list[str]:
    """What was typed of the request, to sweep.py or to `sweeper plan`, but for that it be planned only."""
    words = (word for word in sys.argv[1:] if "=" in word or word.startswith("~"))
    return [word for word in words if not word.startswith(("-", "plan="))]


def _importable() -> dict[str, str]:
    """What the interpreter needs to find this package from any folder, as an installed one is found."""
    return {} if package.installed() else {"PYTHONPATH": package.pythonpath(package.ROOT)}


def open(config: Mapping[str, Any], shape: Shape) -> Cluster:
    """The cluster, to run on.

    Raises:
        RequestError: The sweep is to run inside an allocation and does not; or Slurm does not answer.
    """
    settings = Settings.of(config)
    if settings.mode == "job":
        from sweeper.clusters.slurm.jobs import JobCluster

        found = commands.partition(settings.partition, settings.gres)
        per_gpu = found.cpus / found.gpus if found.gpus and shape.device == "cuda" else None
        return JobCluster(config, shape, per_gpu)
    from sweeper.clusters.slurm.allocation import AllocationCluster, allocation

    inside = allocation()
    if inside is None:
        command = shlex.join(["python", "sweep.py", "-m", *_overrides(), "plan=true"])
        raise RequestError(
            Problem(
                "cluster.slurm.mode=allocation: the sweep runs inside a job of Slurm's, and this is none",
                valid="cluster.slurm.mode=job, or inside sbatch or salloc",
                fix=f"{command}   (shows the script to submit)",
                key="cluster.slurm.mode",
            )
        )
    return AllocationCluster(config, shape, inside)


def attach(folder: Path, started: Mapping[str, Any]) -> Attempt | None:
    """The attempt of that folder, by its `attempt.json`.

    Raises:
        SweeperError: That cannot be read.
    """
    if started.get("mode") == "allocation":
        from sweeper.clusters.slurm import allocation

        return allocation.attach(folder, started)
    from sweeper.clusters.slurm.jobs import JobAttempt

    return JobAttempt.of(folder, started)
