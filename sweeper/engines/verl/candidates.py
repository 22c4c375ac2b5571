"""Placements of a verl trial that are worth a probe: the rollout's tensor parallelism, the micro-batches, what is
offloaded, and the rollout's share of the memory.

Guarantees: each setting can run (`rules.check` finds nothing wrong with it); one that needs more memory than the
config's own is there only where it fits with room to spare by sweeper/plan/memory.py, for the responses of a probe are
shorter than those to come; nothing but placement differs; a key that the user typed is in no setting.

Where less memory is needed and how that is done when a trial runs out of it: reliefs.py, the other way round.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sweeper.config import tree
from sweeper.engines.base import Config, Knob, Shape
from sweeper.engines.verl import names, reliefs, rules, schedule
from sweeper.engines.verl.cpu import ROLLOUT
from sweeper.plan import memory

UTILIZATION = f"{names.ROLLOUT}.gpu_memory_utilization"
_SHARES = ("vllm", "sglang")
"""Rollouts whose weights and cache together take that share (vllm_async_server.py:340, async_sglang_server.py:317)."""
_MORE, _MOST = (0.1, 0.2), 0.9
"""What the rollout's share is raised by, and its bound: what vLLM takes of a GPU that it has for itself."""
_TIMES = (2, 4)
"""What micro-batches are multiplied by. Beyond that a GPU is busy anyway."""


def placements(config: Config, shape: Shape, typed: Collection[str] = ()) -> list[Knob]:
    """See `Engine.placements`.

    The order is by what is to be gained: how the rollout is split decides most of a step's time; micro-batches come
    before what else takes memory; a larger cache is of use only while requests wait for it.
    """
    found = [_tensor_parallel(config, shape, typed)]
    if tree.get(config, f"{names.ROLLOUT}.name") != ROLLOUT:  # that one is promised to be the same to the last bit
        found.append(_micro_batches(config, shape, typed))
        if shape.device == "cuda":  # there is nowhere else to put it on a CPU, and no share of it to take
            found += [_offloading(config, shape, typed), _cache(config, shape, typed)]
    return [knob for knob in found if knob.settings[0]]


def _tensor_parallel(config: Config, shape: Shape, typed: Collection[str]) -> Knob:
    """The config's own size first, then smaller ones before larger ones."""
    own = int(tree.get(config, names.TP))
    sizes = [2**power for power in range(shape.gpus_per_node.bit_length())]
    if (
        config.get("tp") is not None  # typed, under one name or the other (engine.py, bind)
        or "tp" in typed
        or _is_typed(names.TP, typed)
        or tree.get(config, f"{names.ROLLOUT}.name") == ROLLOUT  # each rank of it has a whole copy
    ):
        sizes = []
    # A copy of the rollout that spans nodes passes every token between them: never faster where one node holds it.
    others = [{names.TP: size} for size in sizes if size != own]
    runnable = [keys for keys in others if not rules.check(_with(config, keys), shape)]
    return Knob("tensor parallel size", ({names.TP: own}, *runnable))


def _micro_batches(config: Config, shape: Shape, typed: Collection[str]) -> Knob:
    """Larger ones, until a rank's whole share of a mini-batch is in one. What the updates of the policy take is the
    measure; the other passes grow with it where their rules allow."""
    dynamic = bool(tree.get(config, f"{names.ACTOR}.use_dynamic_bsz"))
    pairs = [*reliefs.token_keys(config), *reliefs.micro_batch_keys(config)]
    own = {
        key: value
        for key, by_tokens in pairs
        if bool(tree.get(config, by_tokens)) == ("token_len" in key)
        and isinstance(value := tree.get(config, key), int)
        and not _is_typed(key, typed)
    }
    main = f"{names.ACTOR}.{'ppo_max_token_len_per_gpu' if dynamic else 'ppo_micro_batch_size_per_gpu'}"
    settings = [own]
    if main in own:
        share = _share(config, dynamic)
        for times in _TIMES:
            if own[main] * times // 2 >= share:
                break
            larger = _larger(config, shape, own, main, times)
            if larger is None:
                break
            settings.append(larger)
    return Knob("micro-batches", tuple(settings), ordered=True)


def _share(config: Config, dynamic: bool) -> int:
    """What a rank computes of a mini-batch: responses, or the most tokens that those can have."""
    rollout, data = config["actor_rollout_ref"]["rollout"], config["data"]
    responses = int(tree.get(config, f"{names.ACTOR}.ppo_mini_batch_size")) * int(rollout["n"])
    longest = int(data["max_prompt_length"]) + int(data["max_response_length"])
    return -(-responses * (longest if dynamic else 1) // max(1, schedule.world(config)))


def _larger(config: Config, shape: Shape, own: Mapping[str, int], main: str, times: int) -> dict[str, Any] | None:
    changed = {main: own[main] * times}
    if not _fits(config, changed, shape):
        return None
    for key, value in own.items():
        more = {**changed, key: value * times}
        if _fits(config, more, shape):  # a pass over another batch has divisors of its own
            changed = more
    return changed


def _offloading(config: Config, shape: Shape, typed: Collection[str]) -> Knob:
    """Less of it, one kind after the other: what is copied most in a step stays on the GPU first."""
    kinds = [
        [*reliefs.trained_offloads(config, "optimizer_offload")],
        [*reliefs.trained_offloads(config, "param_offload")],
        [*reliefs.reference_offloads(config, "param_offload")],
    ]
    on = [[key for key in keys if tree.get(config, key) is True and not _is_typed(key, typed)] for keys in kinds]
    settings: list[dict[str, Any]] = [{key: True for keys in on for key in keys}]
    kept: dict[str, Any] = {}
    for keys in filter(None, on):
        if _fits(config, less := {**kept, **dict.fromkeys(keys, False)}, shape):
            kept = less
            settings.append(kept)
    return Knob("offloading", tuple(settings), ordered=True)


def _cache(config: Config, shape: Shape, typed: Collection[str]) -> Knob:
    share = tree.get(config, UTILIZATION)
    if (
        tree.get(config, f"{names.ROLLOUT}.name") not in _SHARES
        or not isinstance(share, int | float)
        or _is_typed(UTILIZATION, typed)
    ):
        return Knob("rollout's share of the memory", ({},))
    larger = [{UTILIZATION: value} for more in _MORE if (value := round(share + more, 2)) <= _MOST]
    fitting = (keys for keys in larger if _fits(config, keys, shape))
    return Knob("rollout's share of the memory", ({UTILIZATION: share}, *fitting), ordered=True)


def _is_typed(key: str, typed: Collection[str]) -> bool:
    """Whether the user set it, or the section that it is in."""
    return any(section in typed for section in _sections(key))


def _sections(key: str) -> Iterator[str]:
    while key:
        yield key
        key = key.rpartition(".")[0]


def _fits(config: Config, keys: Mapping[str, Any], shape: Shape) -> bool:
    """Whether it can run and its memory is not even tight; of a model of unknown size that is not known."""
    changed = _with(config, keys)
    architecture, _ = schedule.described(changed)
    needed = memory.estimate(changed, architecture, shape.gpu_memory_gib, schedule.world(changed))
    return needed is not None and needed.verdict == "fits" and not rules.check(changed, shape)


def _with(config: Config, keys: Mapping[str, Any]) -> Config:
    changed: Config = tree.copy(config)
    for key, value in keys.items():
        tree.put(changed, key, value)
    return changed
