"""What a verl run can do with less memory: each time it ran out, one step further.

Guarantees: only placement keys are changed (sweeper/engines/verl/placement.py), so it stays the same trial; what comes
out obeys the rules that verl has for these keys (divisibility, room for the longest response); a value of the user's
is never raised. The order is by what it costs: halved micro-batches cost little, recomputed activations a third more
time, offloading copies, and a smaller cache for the rollout slows it down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sweeper.config import tree
from sweeper.engines.base import Config
from sweeper.engines.verl import schedule

_ACTOR, _REF, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.ref", "actor_rollout_ref.rollout"
_LEAST_CACHE, _CACHE_STEP = 0.2, 0.15
"""Share of the GPU that the rollout keeps at least, and what it gives up at a time."""
_SECTIONS = ("fsdp_config", "megatron", "veomni", "torchtitan")
"""Where a training engine keeps its offloads; the critic's FSDP section is called `fsdp`."""

_Step = Callable[[Config], str]
"""Changes the config in place; what it changed, in words, or nothing."""


def relieve(config: Config, times: int) -> tuple[Config, str] | None:
    """The config after so many steps from the trial's own, and the last step in words. None: there are not so many."""
    relieved: Config = tree.copy(config)
    what = ""
    for _ in range(times):
        what = next(filter(None, (step(relieved) for step in _STEPS)), "")
        if not what:
            return None
    return (relieved, what) if what else None


def _micro_batches(config: Config) -> str:
    """Half of what one rank computes at once, for every pass that has more than one response (or room for one)."""
    changed = [*_fewer_responses(config), *_fewer_tokens(config)]
    return f"micro-batches halved: {', '.join(changed)}" if changed else ""


def _fewer_responses(config: Config) -> Iterator[str]:
    for key, dynamic in micro_batch_keys(config):
        value = tree.get(config, key)
        if tree.get(config, dynamic) or not isinstance(value, int) or value < 2:
            continue
        # A divisor of what divides the rank's share divides it too (workers/engine/utils.py:125).
        half = max(d for d in range(1, value // 2 + 1) if value % d == 0)
        tree.put(config, key, half)
        yield f"{_last(key)}={half}"


def micro_batch_keys(config: Config) -> Iterator[tuple[str, str]]:
    """Responses that a rank computes at once in each pass -> the key by which that pass counts tokens instead."""
    yield f"{_ACTOR}.ppo_micro_batch_size_per_gpu", f"{_ACTOR}.use_dynamic_bsz"
    yield f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu", f"{_ROLLOUT}.log_prob_use_dynamic_bsz"
    if schedule.needs_reference(config):
        yield f"{_REF}.log_prob_micro_batch_size_per_gpu", f"{_REF}.log_prob_use_dynamic_bsz"
    if schedule.needs_critic(config):
        yield "critic.ppo_micro_batch_size_per_gpu", "critic.use_dynamic_bsz"
        yield "critic.forward_micro_batch_size_per_gpu", "critic.use_dynamic_bsz"


def _fewer_tokens(config: Config) -> Iterator[str]:
    # One response must fit (utils/seqlen_balancing.py:384), over the ranks that share its sequence; without those the
    # bound is only stricter than it has to be.
    longest = int(config["data"]["max_prompt_length"]) + int(config["data"]["max_response_length"])
    for key, dynamic in token_keys(config):
        value = tree.get(config, key)
        if not tree.get(config, dynamic) or not isinstance(value, int) or value <= longest:
            continue
        half = max(longest, value // 2)
        tree.put(config, key, half)
        yield f"{_last(key)}={half}"


def token_keys(config: Config) -> Iterator[tuple[str, str]]:
    """Likewise tokens, which count where that other key is on."""
    yield f"{_ACTOR}.ppo_max_token_len_per_gpu", f"{_ACTOR}.use_dynamic_bsz"
    yield f"{_ROLLOUT}.log_prob_max_token_len_per_gpu", f"{_ROLLOUT}.log_prob_use_dynamic_bsz"
    if schedule.needs_reference(config):
        yield f"{_REF}.log_prob_max_token_len_per_gpu", f"{_REF}.log_prob_use_dynamic_bsz"
    if schedule.needs_critic(config):
        yield "critic.ppo_max_token_len_per_gpu", "critic.use_dynamic_bsz"
        yield "critic.forward_max_token_len_per_gpu", "critic.use_dynamic_bsz"


def _recomputing(config: Config) -> str:
    keys = ["actor_rollout_ref.model.enable_gradient_checkpointing"]
    if schedule.needs_critic(config):
        keys.append("critic.model.enable_gradient_checkpointing")
    return _switch_on(config, keys)


def _offloading(name: str) -> _Step:
    def step(config: Config) -> str:
        if config["trainer"]["device"] == "cpu":
            return ""  # there is nowhere else to put it
        return _switch_on(config, [*trained_offloads(config, name), *reference_offloads(config, name)])

    return step


def trained_offloads(config: Config, name: str) -> Iterator[str]:
    """Keys of an offload of the models that train, whichever training engine has them; they need not be there."""
    yield from (f"{_ACTOR}.{section}.{name}" for section in _SECTIONS)
    if schedule.needs_critic(config):
        yield from (f"critic.{section}.{name}" for section in ("fsdp", *_SECTIONS))


def reference_offloads(config: Config, name: str) -> Iterator[str]:
    """Likewise of the reference model, of which there are weights only, and those are only read."""
    if schedule.needs_reference(config) and name == "param_offload":
        yield from (f"{_REF}.{section}.{name}" for section in _SECTIONS)


def _switch_on(config: Config, keys: list[str]) -> str:
    off = [key for key in keys if tree.get(config, key) is False]
    for key in off:
        tree.put(config, key, True)
    return " ".join(f"{key}=true" for key in off)


def _smaller_cache(config: Config) -> str:
    key = f"{_ROLLOUT}.gpu_memory_utilization"
    share, on_cpu = tree.get(config, key), config["trainer"]["device"] == "cpu"
    if on_cpu or not isinstance(share, int | float) or share <= _LEAST_CACHE:
        return ""  # our CPU rollout has no cache that it sizes
    less = max(_LEAST_CACHE, round(share - _CACHE_STEP, 2))
    tree.put(config, key, less)
    return f"{key}={less}"


def _last(key: str) -> str:
    """A key without what is common to most: `actor.ppo_micro_batch_size_per_gpu`."""
    return key.removeprefix("actor_rollout_ref.")


_STEPS: tuple[_Step, ...] = (
    _micro_batches,
    _recomputing,
    _offloading("optimizer_offload"),
    _offloading("param_offload"),
    _smaller_cache,
)
