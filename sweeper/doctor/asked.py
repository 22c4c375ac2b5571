"""What the nodes are asked, worked out from a request as a plan would.

Guarantees: the request is composed and checked as `sweeper plan` does, so that what cannot run is refused the same way;
names of secrets leave this machine, values never do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper import engines
from sweeper.clusters import docker
from sweeper.config import tree
from sweeper.config.compose import Composed
from sweeper.engines.base import Gang, Shape
from sweeper.errors import Problem, RequestError
from sweeper.plan.arms import Sized
from sweeper.plan.plan import Plan, make
from sweeper.trial.records import without_secrets

OK, WARN, FAIL = "ok", "warn", "fail"
STATE_BYTES = 12
"""A checkpoint's bytes a parameter: fp32 weights and Adam's two moments (sweeper/plan/memory.py)."""
FILES_A_RANK = 8
"""A checkpoint's files: weights, optimizer, extra state of each rank, and what lies beside them, rounded up."""
DATA = ("data.train_files", "data.val_files", "reward.custom_reward_function.path")
"""Keys of files that an environment brings, where they are not typed."""
TOKENS = ("HF_TOKEN", "WANDB_API_KEY")
PACKAGES = ("ray", "torch", "transformers", "tensordict", "numpy", "vllm", "sglang", "flash-attn")
"""Distributions that every node must have alike, beside the engine's own."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request in the terms of nodes."""

    config: Mapping[str, Any]
    """Of its first trial."""
    shape: Shape
    engine: str
    python: str
    """The engine's interpreter on the nodes."""
    store: Path
    checkpoint_bytes: int
    """Of all checkpoints that the sweep keeps at once; 0 where none is kept or the model's size is unknown."""
    checkpoint_files: int
    paths: tuple[str, ...]
    """Of the data and the model, that are on a disk."""
    ports: tuple[int, ...]
    """That the config names."""
    names: tuple[str, ...]
    """Of variables that hold secrets which this run would pass on."""
    needed: Mapping[str, str]
    """Which of them this run may not do without, and how bad it is if they are not set: warn or fail."""
    addresses: Mapping[str, str]
    """Node -> the address that the config gives it."""
    nodes: int
    """That a trial takes."""
    gpus_per_node: int

    @property
    def image(self) -> str:
        """The container image that the trainer runs in; empty: none."""
        return str((self.config.get("engine") or {}).get("image") or "")

    @property
    def container_program(self) -> str:
        """What runs that image on a node where that is ours to call (docker, podman); else empty."""
        cluster = self.config.get("cluster") or {}
        if not self.image or "docker" not in cluster:
            return ""
        return str({**docker.DEFAULT, **(cluster["docker"] or {})}["program"])

    @property
    def env(self) -> dict[str, str]:
        """The engine's own variables, without secrets."""
        given = (self.config.get("engine") or {}).get("env") or {}
        plain = without_secrets({str(k): v for k, v in given.items() if v is not None})
        return {k: str(v) for k, v in plain.items() if v != f"<{k}>"}


def of(overrides: Sequence[str]) -> Asked:
    """What the nodes of that request are asked; Hydra is initialized.

    Raises:
        RequestError: The request is wrong.
    """
    plan = make(overrides)
    if plan.problems:
        raise RequestError([problem for problem, _ in plan.problems])
    sized = next((arm.example for arm in plan.arms if arm.example), None) or plan.sized[0]
    config, shape = sized.trial.config, next(iter(plan.shapes.values()))
    return _asked(config, shape, sized.gang or Gang(1, 1), *_kept(plan, sized, config))


def despite(overrides: Sequence[str], composed: Composed, shape: Shape) -> tuple[Asked, tuple[Problem, ...]]:
    """The same of a request that may be wrong, with what is wrong with it.

    What a trial takes is not known then: it is taken for a whole node of the shape, without checkpoints, and of its
    data for those files that were typed. `composed` is the first arm.
    """
    try:
        return of(overrides), ()
    except RequestError as error:
        config = tree.copy(composed.config)
        for key in DATA:
            if key not in composed.explicit:  # the engine's own default: what the environment makes is not bound yet
                tree.put(config, key, None)
        return _asked(config, shape, Gang(shape.nodes, shape.gpus_per_node), 0, 0), error.problems


def _asked(config: Mapping[str, Any], shape: Shape, gang: Gang, kept: int, files: int) -> Asked:
    inherit = [str(n) for n in (config["engine"].get("inherit") or ())]
    paths, hub = _paths(config)
    needed = {**({"HF_TOKEN": WARN} if hub else {}), **({"WANDB_API_KEY": FAIL} if _logs_to_wandb(config) else {})}
    return Asked(
        config=config,
        shape=shape,
        engine=str(config["engine"]["name"]),
        python=str(config["engine"].get("python") or sys.executable),
        store=Path(str(config["store"])).absolute(),
        checkpoint_bytes=kept,
        checkpoint_files=files,
        paths=paths,
        ports=tuple(sorted(set(_ports(config)))),
        names=tuple(n for n in TOKENS if n in inherit or n in needed),
        needed=needed,
        addresses=_addresses(config["cluster"]),
        nodes=gang.nodes,
        gpus_per_node=gang.gpus_per_node,
    )


def _addresses(cluster: Mapping[str, Any]) -> dict[str, str]:
    hosts = (cluster.get("ssh") or {}).get("hosts") if cluster.get("kind") == "ssh" else None
    given = [host for host in hosts or () if isinstance(host, Mapping) and host.get("address")]
    return {str(host.get("name") or host["host"]): str(host["address"]) for host in given}


def _logs_to_wandb(config: Mapping[str, Any]) -> bool:
    return "wandb" in (tree.get(config, "trainer.logger") or [])


def _paths(config: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """Files and folders that a trial reads, and whether a model is to be fetched from a hub."""
    found: list[str] = []
    hub = False
    for key in DATA:
        value = tree.get(config, key)
        found += [str(v) for v in (value if isinstance(value, list) else [value]) if v]
    for key in ("actor_rollout_ref.model.path", "critic.model.path"):
        value = tree.get(config, key)
        if isinstance(value, str) and value:
            if value.startswith(("/", "~", ".")):
                found.append(value)
            elif "://" not in value:
                hub = True
    local = [str(Path(p).expanduser()) for p in found if "://" not in p]
    # What a sweep prepares itself (the tiny model, generated rows) lies in the cache and is made before the start.
    from sweeper import cache

    made = str(cache.root())
    return tuple(dict.fromkeys(p for p in local if not p.startswith(made) or Path(p).exists())), hub


def _ports(config: Mapping[str, Any]) -> list[int]:
    """Fixed ports that the config names; every other is picked when it is needed."""
    found = []
    for key, value in tree.leaves({"cluster": config.get("cluster") or {}, "env": config["engine"].get("env") or {}}):
        name = key.rsplit(".", 1)[-1].lower()
        text = str(value)
        if key.startswith("cluster.ssh"):
            continue  # there a server is to listen
        if (name == "port" or name.endswith("_port")) and text.isdigit() and 0 < int(text) < 65536:
            found.append(int(text))
    return found


def _kept(plan: Plan, sized: Sized, config: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes and files of the checkpoints that lie there at once at the end of the sweep."""
    engine = engines.get(str(config["engine"]["name"]))
    saves, work = engine.saves(dict(config)), sized.work
    if not saves or work is None or not work.params:
        return 0, 0
    keep = plan.settings.get("keep") or config.get("keep") or {}
    each = min(len(saves), int(keep["last"])) if keep.get("last") else len(saves)
    trials = plan.total
    if keep.get("top_k"):
        trials = min(trials, len(plan.arms) * int(keep["top_k"]) + plan.finals)
    models = 2 if work.critic else 1
    amount = STATE_BYTES * work.params * models * each * trials
    if keep.get("gb"):
        amount = min(amount, int(float(keep["gb"]) * 1e9))
    gpus = sized.gang.gpus if sized.gang else 1
    return amount, FILES_A_RANK * gpus * models * each * trials


def set_here(asked: Asked) -> dict[str, bool]:
    """Which of the variables are set where they would be passed on from: here, or among dstack's secrets."""
    kept = tree.get(asked.config, "cluster.dstack.secrets") or {}
    return {name: name in kept or bool(os.environ.get(name)) for name in asked.names}
