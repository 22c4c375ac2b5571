"""What `lr`, `kl`, `tp` and `seed` mean in verl's config.

Guarantees: a verl key that was typed wins over a default of ours; a name and its verl key typed to different values is
a problem, never a silent choice; KL goes through exactly one of verl's two independent gates, and 0 closes both (which
saves the reference model).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeper.config import tree
from sweeper.engines.base import Config
from sweeper.errors import Problem

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
LR = f"{ACTOR}.optim.lr"
TP = f"{ROLLOUT}.tensor_model_parallel_size"
SEEDS = (
    "data.seed",
    f"{ACTOR}.data_loader_seed",
    "critic.data_loader_seed",
    f"{ROLLOUT}.seed",
    f"{ACTOR}.fsdp_config.seed",
    "actor_rollout_ref.ref.fsdp_config.seed",
    "critic.fsdp.seed",
    f"{ACTOR}.megatron.seed",
    "actor_rollout_ref.ref.megatron.seed",
    "critic.megatron.seed",
)
"""Every seed of verl (it has no global one); those of a training engine that the config has not are skipped."""

GATES = {
    "loss": (f"{ACTOR}.use_kl_loss", f"{ACTOR}.kl_loss_coef"),
    "reward": ("algorithm.use_kl_in_reward", "algorithm.kl_ctrl.kl_coef"),
}
"""verl's two KL gates: where the KL acts -> (the switch, the coefficient). verl/trainer/ppo/utils.py
need_reference_policy: either switch alone loads the reference model."""


def bind(config: Config, explicit: Mapping[str, Any]) -> list[Problem]:
    """Write the four names into verl's keys, in place; the problems of those that cannot be.

    `explicit` holds what was typed: dotted key -> value.
    """
    _drop_fsdp(config, explicit)
    problems = [
        *_bind(config, explicit, "lr", LR),
        *_bind(config, explicit, "tp", TP),
        *_bind_kl(config, explicit),
    ]
    for key in SEEDS:
        if tree.get(config, key, _ABSENT) is not _ABSENT:
            problems += _bind(config, explicit, "seed", key)
    return problems


def knobs(config: Config) -> dict[str, float]:
    """What `lr`, `kl` and `tp` are in a bound config. The KL term is that of the gates that are open."""
    gates = [tree.get(config, coefficient) for switch, coefficient in GATES.values() if tree.get(config, switch)]
    found = {"lr": tree.get(config, LR), "kl": sum(g or 0 for g in gates), "tp": tree.get(config, TP)}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


_ABSENT = object()

FSDP = (f"{ACTOR}.fsdp_config", "actor_rollout_ref.ref.fsdp_config", "critic.fsdp")
OFFLOADS = ("param_offload", "optimizer_offload")


def _drop_fsdp(config: Config, explicit: Mapping[str, Any]) -> None:
    """Under another training engine the models' FSDP defaults give way: their offloads move to that engine's section.

    verl's config classes refuse a section that is not theirs (verl/workers/config/actor.py McoreActorConfig).
    """
    section = config.get("model_engine", "dp")
    if section == "dp":
        return
    for key in FSDP:
        if any(typed == key or typed.startswith(f"{key}.") for typed in explicit):
            continue  # typed for the wrong engine: verl says so
        parent, _, last = key.rpartition(".")
        ours = tree.get(config, parent).pop(last, {})
        for offload in OFFLOADS:
            theirs = f"{parent}.{section}.{offload}"
            if offload in ours and theirs not in explicit and tree.get(config, theirs, _ABSENT) is not _ABSENT:
                tree.put(config, theirs, ours[offload])


def _bind(config: Config, explicit: Mapping[str, Any], name: str, key: str) -> list[Problem]:
    value = config.get(name)
    if key in explicit:
        typed = explicit[key]
        if name in explicit and value is not None and value != typed:
            return [_clash(name, value, key, typed)]
        return []
    if value is not None:
        tree.put(config, key, value)
    return []


def _clash(name: str, value: Any, key: str, typed: Any) -> Problem:
    return Problem(
        f"{name}={value} and {key}={typed} are the same thing with two values",
        valid=f"one of them ({name} is the name for every engine)",
        fix=f"leave {key} out",
        key=key,
    )


def _bind_kl(config: Config, explicit: Mapping[str, Any]) -> list[Problem]:
    kl = config.get("kl")
    if kl is None:
        return []
    if not isinstance(kl, int | float) or isinstance(kl, bool) or kl < 0:
        return [Problem(f"kl={kl} is no weight", valid="a number, 0 or more", fix="kl=0.001", key="kl")]
    gate = str(config["binding"]["kl_gate"])
    if gate not in GATES:
        return [Problem(f"binding.kl_gate={gate}", valid=" or ".join(GATES), fix="binding.kl_gate=loss", key="binding")]
    if "kl" not in explicit and any(key in explicit for pair in GATES.values() for key in pair):
        return []  # a default of ours, and the user set the KL term in verl's own words
    problems = []
    for name, (switch, coefficient) in GATES.items():
        on = kl > 0 and name == gate
        if switch in explicit and bool(explicit[switch]) != on:
            problems.append(_gate_clash(kl, name, gate, switch, explicit[switch]))
        elif name == gate and "kl" in explicit and coefficient in explicit and explicit[coefficient] != kl:
            problems.append(_clash("kl", kl, coefficient, explicit[coefficient]))
    if problems:
        return problems
    for name, (switch, coefficient) in GATES.items():
        on = kl > 0 and name == gate
        tree.put(config, switch, on)
        if on:
            tree.put(config, coefficient, kl)
    return []


def _gate_clash(kl: float, name: str, gate: str, switch: str, typed: Any) -> Problem:
    if kl == 0:
        what = f"kl=0 switches KL off, {switch}={typed} switches it on"
    elif name == gate:
        what = f"kl={kl} switches KL on, {switch}={typed} switches it off"
    else:
        what = f"kl={kl} acts in the {gate} for this algorithm, {switch}={typed} adds a second KL term in the {name}"
    return Problem(
        what,
        valid=f"one KL term: kl, or {switch} with {GATES[name][1]}",
        fix=f"leave {switch} out, or binding.kl_gate={name} to move it" if kl and typed else f"leave {switch} out",
        key=switch,
        source="verl/trainer/ppo/utils.py need_reference_policy",
    )
