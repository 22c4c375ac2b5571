"""What verl's own keys can do against a cause that `sweeper diagnose` found.

Guarantees: every line is an override of a key that verl 0.9.1 has, with a value worked out from the run's own; a value
that is unknown gives no line. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sweeper.config import tree
from sweeper.engines.verl import names, reliefs

_ACTOR, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
_CACHE_MOST = 0.9
"""vLLM's own default share of a GPU; above it the trainer's states have no room beside."""


def of(cause: str, config: Mapping[str, Any]) -> list[str]:
    """Override lines against the cause, likeliest first."""
    found = _REMEDIES.get(cause)
    return list(found(config)) if found else []


def _less_memory(config: Mapping[str, Any]) -> Iterator[str]:
    """The steps that a retry would take anyway (reliefs.py), as overrides."""
    for times in range(1, 4):
        try:
            relief = reliefs.relieve(dict(config), times)
        except (KeyError, TypeError):  # the config was not recorded whole
            return
        if relief is None:
            return
        before = dict(tree.leaves(dict(config)))
        lines = [f"{k}={_shown(v)}" for k, v in tree.leaves(relief[0]) if before.get(k, v) != v]
        yield " ".join(lines)


def _less_host_memory(config: Mapping[str, Any]) -> Iterator[str]:
    yield "max_concurrent=1"
    yield from (line for line in [next(_less_memory(config), "")] if line)
    if _is(config, f"{_ACTOR}.fsdp_config.param_offload", True):
        yield f"{_ACTOR}.fsdp_config.param_offload=false"


def _more_cache(config: Mapping[str, Any]) -> Iterator[str]:
    share = tree.get(config, f"{_ROLLOUT}.gpu_memory_utilization")
    if isinstance(share, int | float) and share < _CACHE_MOST:
        yield f"{_ROLLOUT}.gpu_memory_utilization={min(_CACHE_MOST, round(share + 0.15, 2))}"
    tp = tree.get(config, f"{_ROLLOUT}.tensor_model_parallel_size")
    if isinstance(tp, int):
        yield f"tp={2 * tp}"
    longest = [tree.get(config, f"data.{name}") for name in ("max_prompt_length", "max_response_length")]
    if all(isinstance(n, int) for n in longest):
        yield f"{_ROLLOUT}.max_model_len={sum(longest)}"


def _more_time(config: Mapping[str, Any]) -> Iterator[str]:
    seconds = tree.get(config, "actor_rollout_ref.nccl_timeout")
    if isinstance(seconds, int):
        yield f"actor_rollout_ref.nccl_timeout={3 * seconds}"
    yield "engine.env.NCCL_DEBUG=INFO"


def _gentler(config: Mapping[str, Any]) -> Iterator[str]:
    lr = tree.get(config, names.LR)
    if isinstance(lr, int | float) and lr > 0:
        yield f"lr={lr / 10:.2g}"
    clip = tree.get(config, f"{_ACTOR}.grad_clip")
    if isinstance(clip, int | float) and clip > 0.1:
        yield f"{_ACTOR}.grad_clip={clip / 2:g}"


def _leashed(config: Mapping[str, Any]) -> Iterator[str]:
    yield from _gentler(config)
    kl = _kl(config)
    yield f"kl={max(10 * kl, 1e-3):g}"


def _exploring(config: Mapping[str, Any]) -> Iterator[str]:
    coefficient = tree.get(config, f"{_ACTOR}.entropy_coeff")
    if isinstance(coefficient, int | float):
        yield f"{_ACTOR}.entropy_coeff={max(10 * coefficient, 1e-3):g}"
    yield from _gentler(config)


def _longer(config: Mapping[str, Any]) -> Iterator[str]:
    length = tree.get(config, "data.max_response_length")
    if isinstance(length, int):
        yield f"data.max_response_length={2 * length}"
    yield from _gentler(config)  # a policy that is thrown off does not find the end of its answers any more


def _varied(config: Mapping[str, Any]) -> Iterator[str]:
    n, warmth = tree.get(config, f"{_ROLLOUT}.n"), tree.get(config, f"{_ROLLOUT}.temperature")
    if isinstance(warmth, int | float) and warmth < 1:
        yield f"{_ROLLOUT}.temperature=1.0"
    if isinstance(n, int) and n > 1:
        yield f"binding.group={2 * n}"
    yield from _gentler(config)


def _faster_rollout(config: Mapping[str, Any]) -> Iterator[str]:
    share = tree.get(config, f"{_ROLLOUT}.gpu_memory_utilization")
    if isinstance(share, int | float) and share < 0.8 and tree.get(config, "trainer.device") != "cpu":
        yield f"{_ROLLOUT}.gpu_memory_utilization={round(min(0.8, share + 0.15), 2)}"
    yield "placement.probe=true"


def _balanced(config: Mapping[str, Any]) -> Iterator[str]:
    if _is(config, "trainer.balance_batch", False):
        yield "trainer.balance_batch=true"
    if _is(config, f"{_ACTOR}.use_dynamic_bsz", False):
        yield f"{_ACTOR}.use_dynamic_bsz=true"


def _fewer_checkpoints(config: Mapping[str, Any]) -> Iterator[str]:
    every = tree.get(config, "trainer.save_freq")
    if isinstance(every, int) and every > 0:
        yield f"trainer.save_freq={2 * every}"
    yield "keep.last=1"


def _kl(config: Mapping[str, Any]) -> float:
    try:
        return names.knobs(dict(config)).get("kl", 0.0)
    except (KeyError, TypeError):
        return 0.0


def _is(config: Mapping[str, Any], key: str, value: Any) -> bool:
    return tree.get(config, key) is value


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_REMEDIES: Mapping[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "gpu-memory": _less_memory,
    "host-memory": _less_host_memory,
    "kv-cache": _more_cache,
    "collective-timeout": _more_time,
    "nan": _gentler,
    "kl-blow-up": _leashed,
    "entropy-blow-up": _leashed,
    "entropy-collapse": _exploring,
    "no-reward-variance": _varied,
    "length-saturation": _longer,
    "slow-rollout": _faster_rollout,
    "straggler": _balanced,
    "disk-full": _fewer_checkpoints,
}
