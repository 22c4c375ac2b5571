"""`deterministic`: whether the same seed gives the same run, bit for bit; bound to verl's own keys.

On a CPU it is on unless it is switched off, by what cpu/config.yaml lays under every run: torch's deterministic
kernels, a seed for each request, batches in the order of the data (cpu/determinism.py). Off gives verl's own agent loop
and replay buffer, which pass no seed and take trajectories as they arrive.

On a GPU it is off unless it is asked for. Then it is verl's `full_determinism` of the policy, reference, critic and
rollout, where verl says that it holds: the V0 trainer with a vLLM rollout and single-turn answers (its V1 trainer takes
trajectories in arrival order under random keys, trainer/ppo/v1/replay_buffer.py, and Megatron has no such switch). Any
other config that asks for it is refused: a promise that cannot be kept is worse than none.

Guarantees: `auto` and false add nothing on a GPU; keys that were typed stay as they are, and one that contradicts
`deterministic=true` is a problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeper.config import tree
from sweeper.engines.base import Config, Shape
from sweeper.engines.verl.cpu import VLLM, overlay
from sweeper.errors import Problem

KEY = "deterministic"
SWITCH = "full_determinism"
_ROLLOUT = "actor_rollout_ref.rollout"
_AGENT = f"{_ROLLOUT}.agent"

# What verl does by itself, for the keys by which cpu/config.yaml makes a run deterministic.
_OFF: Mapping[str, Any] = {
    f"{_AGENT}.agent_loop_config_path": None,
    f"{_AGENT}.default_agent_loop": "single_turn_agent",
    "trainer.v1.sampler.custom_sampler.path": None,
    "trainer.v1.sampler.custom_sampler.name": None,
}


def bind(config: Config, typed: Mapping[str, Any], shape: Shape) -> None:
    """Write it into verl's keys, in place, except where they were typed."""
    asked = config[KEY]
    if asked is True and shape.device != "cpu":
        changed: dict[str, Any] = dict.fromkeys(_switches(config), True)
    elif asked is False and shape.device == "cpu":
        changed = {**dict.fromkeys(_switches(config), False), **_OFF}
    else:
        return
    for key, value in changed.items():
        if not any(key == t or key.startswith(f"{t}.") or t.startswith(f"{key}.") for t in typed):
            tree.put(config, key, value)


def promised(config: Mapping[str, Any]) -> bool:
    """Whether the same seed gives the same run, bit for bit, by a config that is bound and has no problem."""
    asked = config.get(KEY, "auto")
    on_cpu = (config.get("trainer") or {}).get("device") == "cpu"
    return asked is True or (asked == "auto" and on_cpu and (config.get("engine") or {}).get("rollout") != VLLM)


def check(config: Config, shape: Shape) -> list[Problem]:
    """Why `deterministic=true` cannot be kept in this config."""
    if config[KEY] is not True:
        return []
    found: list[Problem] = []

    def refuse(what: str, valid: str, fix: str, source: str = "") -> None:
        found.append(Problem(f"{KEY}=true cannot be kept: {what}", valid=valid, fix=fix, key=KEY, source=source))

    rollout = config["actor_rollout_ref"]["rollout"]
    if shape.device == "cpu":
        if config["engine"].get("rollout") == VLLM:
            refuse("a vLLM server draws its samples without our seeds", "the rollout of a CPU run", "engine=verl")
        else:
            ours, used = overlay(), [key for key in _OFF if config["trainer"]["use_v1"] or key.startswith(_AGENT)]
            for key in (k for k in used if tree.get(config, k) != tree.get(ours, k)):
                refuse(f"{key}={tree.get(config, key)} is not made for it", str(tree.get(ours, key)), f"{KEY}=false")
    else:
        strategy = config["actor_rollout_ref"]["actor"]["strategy"]
        if not any(key.startswith("actor_rollout_ref.actor.") for key in _switches(config)):
            refuse(f"strategy {strategy} has no such switch", "fsdp, fsdp2, veomni, torchtitan", "model_engine=dp")
        if config["trainer"]["use_v1"]:
            refuse(
                "verl's V1 trainer takes responses in the order in which they arrive",
                "trainer.use_v1=false",
                "trainer.use_v1=false",
                "verl/trainer/ppo/v1/replay_buffer.py:367",
            )
        if rollout["name"] != "vllm":
            refuse(
                f"rollout {rollout['name']} has no seed for each request",
                "vllm",
                f"{_ROLLOUT}.name=vllm",
                "verl/workers/rollout/vllm_rollout/vllm_async_server.py:625",
            )
        if rollout["agent"]["default_agent_loop"] != "single_turn_agent" or rollout["multi_turn"]["enable"]:
            refuse(
                "verl promises it for single-turn answers", "single_turn_agent", f"{_ROLLOUT}.multi_turn.enable=false"
            )
    off = [key for key in _switches(config) if not tree.get(config, key) and not _idle(key, shape)]
    if off:
        refuse(f"{off[0]} is false", f"{off[0]}=true", f"{off[0]}=true, or {KEY}=false")
    return found


def _switches(config: Config) -> list[str]:
    """verl's own switches of what computes: policy, reference, critic, rollout."""
    parts = ("actor_rollout_ref.actor", "actor_rollout_ref.ref", "critic")
    found = [key for part in parts for key, _ in tree.leaves(tree.get(config, part, {}), part)]
    return [*(key for key in found if key.endswith(f".{SWITCH}")), f"{_ROLLOUT}.{SWITCH}"]


def _idle(key: str, shape: Shape) -> bool:
    """The rollout of a CPU run is ours, and has no such switch."""
    return shape.device == "cpu" and key.startswith(_ROLLOUT)
