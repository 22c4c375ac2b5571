"""An estimate of the GPU memory that a trial needs, from arithmetic and before it is started.

Guarantees: no measurement, nothing heavy imported; the same config gives the same figure. It is an estimate: the state
of the training is exact arithmetic, activations and what the libraries keep are rough. Good for telling a plan that
fits from one that is far off; `tight` says that only a run can tell.

The formulas, per rank, with P parameters over W ranks (verl shards over all of them: fsdp_config.fsdp_size=-1):

    weights, gradients, Adam   P/W x (w + w + 2w); w = 4 bytes for model_dtype fp32, verl's default, 2 for bf16
                               (ZeRO-3: Rajbhandari et al., 2020, section 3.1, without a second, half-precision copy)
    reference                  P/W x 4, when a KL gate is on
    critic                     as the policy (the output layer it lacks is not deducted), when the estimator is GAE
    gathered weights           2 bytes x (one layer + the embeddings): what FSDP holds whole while it computes
    activations                with gradient checkpointing the layers' inputs, tokens x layers x hidden x 2 bytes, and
                               one layer in full, tokens x (10 hidden + 4 intermediate) x 2 bytes; without it all
                               layers in full (after Korthikanti et al., 2022, section 4, for gated MLPs)
    logits                     tokens x vocabulary x 6 bytes: bf16 and an fp32 working copy
    rollout                    gpu_memory_utilization x the GPU's memory: vLLM takes what it is allowed; its weights are
                               2 bytes x P/TP, the rest is KV cache of 4 bytes x layers x KV heads x head_dim a token
    libraries                  3 GiB: CUDA context, NCCL, what a sleeping vLLM keeps

Offloaded states are on the GPU only in the phase that uses them (verl's workers load and offload around each call).
Other strategies than FSDP (megatron) shard by other rules; their total is near enough for the same verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sweeper.models.facts import Architecture

GIB = float(2**30)
LIBRARIES_GIB = 3.0
TIGHT = 0.85
"""Share of a GPU's memory from which a plan is called tight: fragmentation and peaks take what is above it."""
USUAL_GPU_GIB = 80.0
"""Assumed where no GPU is there to ask: an A100 or H100."""
MOST_RANKS = 1024


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one rank needs, in GiB, and whether it has it."""

    train_gib: float
    """At the peak of an update."""
    rollout_gib: float
    """While generating, with all that stays on the GPU meanwhile."""
    total_gib: float
    """The larger of the two: they take turns."""
    verdict: str
    """`fits`, `tight` or `does_not_fit`."""
    min_gpus: int | None
    """The least number of such GPUs (a power of two) on which it fits or is tight; None: on none up to 1024."""


@dataclass(frozen=True, slots=True)
class _Setup:
    """The keys of a config that memory depends on."""

    arch: Architecture
    params: int
    tokens: int
    critic_tokens: int
    dtype_bytes: int
    critic: bool
    reference: bool
    trained: bool
    """Whether the weights themselves are trained (with LoRA they are not)."""
    checkpointing: bool
    offload: Mapping[str, bool]
    tp: int
    utilization: float
    keeps_cache: bool
    longest: int


def estimate(
    config: Mapping[str, Any], arch: Architecture | None, gpu_memory_gib: float, ranks: int
) -> Estimate | None:
    """The estimate for `ranks` GPUs of `gpu_memory_gib` each; None for a model of unknown size.

    Where the memory is unknown (0) an 80 GB GPU is assumed.
    """
    if arch is None or arch.params is None:
        return None
    setup = _setup(config, arch, arch.params)
    memory = gpu_memory_gib or USUAL_GPU_GIB
    train, rollout, verdict = _judge(setup, memory, ranks)
    least = None
    world = max(1, setup.tp)
    while least is None and world <= MOST_RANKS:
        if _judge(setup, memory, world)[2] != "does_not_fit":
            least = world
        world *= 2
    return Estimate(train, rollout, max(train, rollout), verdict, least)


def _judge(setup: _Setup, memory: float, ranks: int) -> tuple[float, float, str]:
    train, rollout = _train_gib(setup, memory, ranks), _rollout_gib(setup, memory, ranks)
    total = max(train, rollout)
    # One response of full length must fit beside the rollout's weights, or vLLM refuses to start.
    cramped = _rollout_need_gib(setup, ranks) > setup.utilization * memory
    if total > memory or cramped or ranks < setup.tp:
        return train, rollout, "does_not_fit"
    return train, rollout, "fits" if total <= TIGHT * memory else "tight"


def _state(setup: _Setup, ranks: int) -> tuple[float, float, float]:
    """Weights, gradients and optimizer state of one trained model, GiB a rank."""
    weights = setup.params * setup.dtype_bytes / ranks / GIB
    return (weights, weights, 2 * weights) if setup.trained else (weights, 0.0, 0.0)


def _resident(setup: _Setup, ranks: int, *, without: str = "") -> float:
    """What stays on the GPU between the phases, GiB a rank; `without` is counted by the phase itself."""
    weights, _, adam = _state(setup, ranks)
    here = 0.0
    for role in ("actor", *(("critic",) if setup.critic else ())):
        if role != without:
            here += 0.0 if setup.offload[f"{role}_params"] else weights
            here += 0.0 if setup.offload[f"{role}_optimizer"] else adam
    if setup.reference and not setup.offload["ref_params"]:
        here += setup.params * 4 / ranks / GIB
    return here


def _train_gib(setup: _Setup, memory: float, ranks: int) -> float:
    """The peak over the updates of policy and critic."""
    arch = setup.arch
    own = sum(_state(setup, ranks))
    gathered = 2 * _largest_gathered(arch) / GIB if ranks > 1 else 0.0
    asleep = setup.utilization * memory if setup.keeps_cache else 0.0

    def peak(role: str, tokens: int, logits: int) -> float:
        work = (_activations(setup, tokens) + tokens * logits * 6) / GIB
        return own + _resident(setup, ranks, without=role) + gathered + work + asleep + LIBRARIES_GIB

    policy = peak("actor", setup.tokens, arch.vocab)
    return max(policy, peak("critic", setup.critic_tokens, 1)) if setup.critic else policy


def _largest_gathered(arch: Architecture) -> int:
    """Parameters of one layer and the embeddings."""
    embeddings = arch.vocab * arch.hidden * (1 if arch.tied else 2)
    return embeddings + (arch.count() - embeddings) // arch.layers


def _activations(setup: _Setup, tokens: int) -> int:
    arch = setup.arch
    layer = tokens * (10 * arch.hidden + 4 * arch.intermediate) * 2
    if not setup.checkpointing:
        return arch.layers * layer
    return tokens * arch.layers * arch.hidden * 2 + layer


def _rollout_gib(setup: _Setup, memory: float, ranks: int) -> float:
    return _resident(setup, ranks) + setup.utilization * memory + LIBRARIES_GIB


def _rollout_need_gib(setup: _Setup, ranks: int) -> float:
    """Weights of one rank's part of a copy and the KV cache of one full-length response."""
    arch, tp = setup.arch, min(setup.tp, ranks)
    heads = max(1, arch.kv_heads // tp)
    cache = 4 * arch.layers * heads * arch.head_dim * setup.longest
    return (2 * setup.params / tp + cache) / GIB


def _setup(config: Mapping[str, Any], arch: Architecture, params: int) -> _Setup:
    worker = config["actor_rollout_ref"]
    actor, rollout, model = worker["actor"], worker["rollout"], worker["model"]
    critic, algorithm, data = config["critic"], config["algorithm"], config["data"]
    fsdp, critic_fsdp = actor.get("fsdp_config") or {}, critic.get("fsdp") or {}
    longest = data["max_prompt_length"] + data["max_response_length"]

    def tokens(part: Mapping[str, Any]) -> int:
        if part.get("use_dynamic_bsz"):
            return int(part["ppo_max_token_len_per_gpu"])
        micro = part.get("ppo_micro_batch_size_per_gpu") or part.get("ppo_micro_batch_size") or 1
        return int(micro) * int(longest)

    enabled = critic.get("enable")
    return _Setup(
        arch=arch,
        params=params,
        tokens=tokens(actor),
        critic_tokens=tokens(critic),
        dtype_bytes=2 if str(fsdp.get("model_dtype")) in ("bf16", "bfloat16", "fp16", "float16") else 4,
        critic=algorithm.get("adv_estimator") == "gae" if enabled is None else bool(enabled),
        reference=bool(actor.get("use_kl_loss") or algorithm.get("use_kl_in_reward")),
        trained=not (model.get("lora_rank") or (model.get("lora") or {}).get("rank")),
        checkpointing=bool(model.get("enable_gradient_checkpointing")),
        offload={
            "actor_params": bool(fsdp.get("param_offload")),
            "actor_optimizer": bool(fsdp.get("optimizer_offload")),
            "critic_params": bool(critic_fsdp.get("param_offload")),
            "critic_optimizer": bool(critic_fsdp.get("optimizer_offload")),
            "ref_params": bool(((worker.get("ref") or {}).get("fsdp_config") or {}).get("param_offload")),
        },
        tp=int(rollout.get("tensor_model_parallel_size") or 1),
        utilization=float(rollout.get("gpu_memory_utilization") or 0.0),
        keeps_cache=rollout.get("free_cache_engine") is False,
        longest=int(longest),
    )
