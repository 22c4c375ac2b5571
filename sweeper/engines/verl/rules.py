"""Every reason why verl 0.9.1 could not run a config, found before anything is spent.

Guarantees: what verl's own `validate_config` refuses is refused here (tests/engines/verl/test_rules.py asks it);
beyond that, what verl finds only minutes into a run. One rule, one function; its docstring names the line of verl 0.9.1
that it stands for. Rules read a bound config and never change it; they cost microseconds and import nothing of verl.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from sweeper import environments, models
from sweeper.checkpoints import manifest, start
from sweeper.engines.base import Config, Shape
from sweeper.engines.verl import checkpoints, kinds, schedule
from sweeper.engines.verl.cpu import ROLLOUT, VLLM, VLLM_HEAD_DIMS
from sweeper.environments import custom, rows
from sweeper.environments.probe import Interpreter, ProbeError, ask
from sweeper.errors import Problem
from sweeper.models import facts
from sweeper.plan import memory

ESTIMATORS = (
    "gae", "grpo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax", "rloo", "opo", "grpo_passk", "gpg",
    "rloo_vectorized", "grpo_vectorized", "optimal_token_baseline", "tir_optimal_token_baseline", "gdpo",
)  # fmt: skip
"""verl/trainer/ppo/core_algos.py:88 AdvantageEstimator."""
GROUPED = frozenset(ESTIMATORS) - {"gae", "reinforce_plus_plus", "remax"}
"""Estimators whose baseline is the other responses to the same prompt."""
ONLY_V0 = {
    "remax": "it never fills reward_baselines",
    "optimal_token_baseline": "it never passes sum_pi_squared on",
    "tir_optimal_token_baseline": "it never passes sum_pi_squared on",
    "gdpo": "it never passes the single rewards on",
}
"""Estimators that need trainer.use_v1=false, and what the V1 trainer lacks (trainer/ppo/v1/trainer_base.py:1743)."""
LOSSES = (
    "vanilla", "dppo_tv", "dppo_kl", "gspo", "sapo", "gpg", "clip_cov", "kl_cov", "geo_mean", "dro", "cispo",
    "bypass_mode",
)  # fmt: skip
"""verl/trainer/ppo/core_algos.py, register_policy_loss."""
AGGREGATIONS = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
KL_TYPES = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")
ROLLOUTS = ("vllm", "sglang", "trtllm")
"""verl/workers/rollout/base.py _ROLLOUT_REGISTRY."""
FSDP = ("fsdp", "fsdp2", "fsdp_turbo")
LORA_MOST = 512
MODES = ("sync", "colocate_async", "separate_async")
CPU_PARAMETERS = 50_000_000
"""What a CPU trains in acceptable time: a step of a model this size takes minutes."""


@dataclass(frozen=True)
class Context:
    """A config with the parts that rules read most."""

    config: Config
    shape: Shape

    @cached_property
    def actor(self) -> Mapping[str, Any]:
        return self.config["actor_rollout_ref"]["actor"]  # type: ignore[no-any-return]

    @cached_property
    def rollout(self) -> Mapping[str, Any]:
        return self.config["actor_rollout_ref"]["rollout"]  # type: ignore[no-any-return]

    @cached_property
    def ref(self) -> Mapping[str, Any]:
        return self.config["actor_rollout_ref"]["ref"]  # type: ignore[no-any-return]

    @cached_property
    def model(self) -> Mapping[str, Any]:
        return self.config["actor_rollout_ref"]["model"]  # type: ignore[no-any-return]

    @cached_property
    def critic(self) -> Mapping[str, Any]:
        return self.config["critic"]  # type: ignore[no-any-return]

    @cached_property
    def trainer(self) -> Mapping[str, Any]:
        return self.config["trainer"]  # type: ignore[no-any-return]

    @cached_property
    def data(self) -> Mapping[str, Any]:
        return self.config["data"]  # type: ignore[no-any-return]

    @cached_property
    def algorithm(self) -> Mapping[str, Any]:
        return self.config["algorithm"]  # type: ignore[no-any-return]

    @cached_property
    def world(self) -> int:
        return schedule.world(self.config)

    @cached_property
    def n(self) -> int:
        return int(self.rollout["n"])

    @cached_property
    def batch(self) -> int:
        return int(self.data["train_batch_size"])

    @cached_property
    def mini(self) -> int:
        return int(self.actor["ppo_mini_batch_size"])

    @cached_property
    def tp(self) -> int:
        return int(self.rollout["tensor_model_parallel_size"])

    @cached_property
    def replica(self) -> int:
        """GPUs of one copy of the rollout (verl/workers/rollout/replica.py:107)."""
        return self.tp * int(self.rollout["data_parallel_size"]) * int(self.rollout["pipeline_model_parallel_size"])

    @cached_property
    def rollout_pool(self) -> tuple[int, int]:
        """(nodes, GPUs per node) that the rollout's copies are laid on."""
        at = self.rollout if schedule.separate(self.config) else self.trainer
        return int(at["nnodes"]), int(at["n_gpus_per_node"])

    @cached_property
    def critic_on(self) -> bool:
        return schedule.needs_critic(self.config)

    @cached_property
    def model_facts(self) -> tuple[facts.Architecture | None, list[Problem]]:
        return schedule.described(self.config)

    @cached_property
    def arch(self) -> facts.Architecture | None:
        return self.model_facts[0]

    @cached_property
    def sequence_parallel(self) -> int:
        """Ulysses (FSDP, VeOmni); the two keys mean the same (workers/config/actor.py:329)."""
        inner = self.actor.get("fsdp_config") or self.actor.get("veomni") or {}
        return max(
            int(self.actor.get("ulysses_sequence_parallel_size") or 1),
            int(inner.get("ulysses_sequence_parallel_size") or inner.get("ulysses_parallel_size") or 1),
        )

    @cached_property
    def training_parallel(self) -> int:
        """Ranks that work on the same samples of an update; the others are data parallel."""
        if self.actor["strategy"] == "megatron":
            return _megatron(self.actor["megatron"])
        if self.actor["strategy"] == "torchtitan":
            inner = self.actor["torchtitan"]
            keys = ("tensor_parallel_size", "pipeline_parallel_size", "context_parallel_size")
            return math.prod(int(inner.get(k) or 1) for k in keys)
        return self.sequence_parallel


Rule = Callable[[Context], Iterator[Problem]]


def check(config: Config, shape: Shape) -> list[Problem]:
    """All problems; empty when verl can run it on that shape."""
    if broken := kinds.sections(config):
        return broken
    context = Context(config, shape)
    # Sums on a value that is no number, or on keys of another training engine, only
    # hide the problem that matters.
    problems = kinds.check(config)
    named = {p.key for p in problems}
    problems += [p for p in numbers(context) if p.key not in named]
    problems += [*shape_asked(context), *strategies(context)]
    for rule in () if problems else RULES:
        problems += rule(context)
    return list(dict.fromkeys(problems))


# --- values -----------------------------------------------------------------------------------------------------------


_COUNTS = (
    "data.train_batch_size", "data.max_prompt_length", "data.max_response_length",
    "actor_rollout_ref.actor.ppo_mini_batch_size", "actor_rollout_ref.actor.ppo_epochs",
    "actor_rollout_ref.rollout.n", "actor_rollout_ref.rollout.tensor_model_parallel_size",
    "actor_rollout_ref.rollout.data_parallel_size", "actor_rollout_ref.rollout.pipeline_model_parallel_size",
    "actor_rollout_ref.rollout.val_kwargs.n", "actor_rollout_ref.rollout.agent.num_workers",
    "critic.ppo_mini_batch_size", "reward.num_workers", "trainer.nnodes", "trainer.n_gpus_per_node",
    "trainer.total_epochs",
)  # fmt: skip
_COUNTS_OR_NULL = (
    "trainer.total_training_steps", "actor_rollout_ref.actor.ppo_micro_batch_size",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu", "actor_rollout_ref.rollout.log_prob_micro_batch_size",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu", "actor_rollout_ref.ref.log_prob_micro_batch_size",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu", "critic.ppo_micro_batch_size",
    "critic.ppo_micro_batch_size_per_gpu",
)  # fmt: skip


def numbers(c: Context) -> Iterator[Problem]:
    """Counts are whole numbers from 1; OmegaConf accepts `-4`, `0` and `many` where verl would fail in a sum."""
    for key in (*_COUNTS, *_COUNTS_OR_NULL):
        value = _get(c.config, key)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not whole and not (value is None and key in _COUNTS_OR_NULL):
            derived = {
                "data.train_batch_size": "responses_per_step must be at least actor_rollout_ref.rollout.n",
                "actor_rollout_ref.actor.ppo_mini_batch_size": "updates_per_step must be at most data.train_batch_size",
            }.get(key)
            yield Problem(
                f"{key}={_show(value)} is not a count" + (f": {derived}" if derived and value == 0 else ""),
                valid="a whole number from 1" + (", or null" if key in _COUNTS_OR_NULL else ""),
                key=key,
            )


def shape_asked(c: Context) -> Iterator[Problem]:
    """More nodes or GPUs than the cluster has: verl would wait for ever (single_controller/ray/base.py:160)."""
    if any(not isinstance(c.trainer[k], int) for k in ("nnodes", "n_gpus_per_node")):
        return
    nodes, per_node, shape = c.trainer["nnodes"], c.trainer["n_gpus_per_node"], c.shape
    what = "GPUs" if shape.device == "cuda" else "CPU ranks"
    if per_node > shape.gpus_per_node:
        key = _typed_as(c, "gpus_per_node", per_node, "trainer.n_gpus_per_node")
        yield Problem(
            f"{key}={per_node}: a node of cluster {shape.name} has {shape.gpus_per_node} {what}",
            valid=f"1 to {shape.gpus_per_node}",
            fix=f"{key}={shape.gpus_per_node}",
            key=key,
            source="verl/single_controller/ray/base.py:226 _check_resource_available",
        )
    if nodes > shape.nodes:
        key = _typed_as(c, "nodes", nodes, "trainer.nnodes")
        yield Problem(
            f"{key}={nodes}: cluster {shape.name} has {_count(shape.nodes, 'node')}",
            valid=f"1 to {shape.nodes}",
            fix=f"{key}={shape.nodes}",
            key=key,
            source="verl/single_controller/ray/base.py:226 _check_resource_available",
        )


def _typed_as(c: Context, ours: str, value: int, theirs: str) -> str:
    """The key that says so many: the cluster's, of which the trainer's was bound, unless that says otherwise."""
    return f"cluster.{ours}" if c.config["cluster"].get(ours) == value else theirs


def all_pools(c: Context) -> Iterator[Problem]:
    """Pools of their own need GPUs beside the trainer's (trainer_base.py:822-846, trainer_separate_async.py:395)."""
    pools = schedule.pools(c.config)
    if len(pools) == 1:
        return
    total = sum(nodes * per_node for nodes, per_node in pools)
    if total > c.shape.gpus:
        yield Problem(
            f"the trainer and the pools beside it ask for {' + '.join(f'{n}x{g}' for n, g in pools)} = {total} GPUs, "
            f"cluster {c.shape.name} has {c.shape.gpus}",
            valid=f"{c.shape.gpus} GPUs in all",
            fix="a smaller trainer.n_gpus_per_node",
            key="trainer.n_gpus_per_node",
            source="verl/trainer/ppo/v1/trainer_base.py:818",
        )


def choices(c: Context) -> Iterator[Problem]:
    """Names that verl looks up: workers/config/actor.py:220, core_algos.py, kl types of core_algos.py:2216."""
    penalty = str(c.algorithm["kl_penalty"])
    found: list[tuple[str, Any, tuple[str, ...]]] = [
        ("actor_rollout_ref.actor.loss_agg_mode", c.actor["loss_agg_mode"], AGGREGATIONS),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", c.actor["policy_loss"]["loss_mode"], LOSSES),
        ("trainer.resume_mode", c.trainer["resume_mode"], ("auto", "disable", "resume_path")),
    ]
    if c.trainer["use_v1"]:
        found.append(("trainer.v1.trainer_mode", c.trainer["v1"]["trainer_mode"], MODES))
    if c.algorithm["use_kl_in_reward"]:
        found.append(("algorithm.kl_penalty", penalty.removesuffix("+"), KL_TYPES))
        found.append(("algorithm.kl_ctrl.type", c.algorithm["kl_ctrl"]["type"], ("fixed", "adaptive")))
    if c.actor["use_kl_loss"]:
        found.append(("actor_rollout_ref.actor.kl_loss_type", str(c.actor["kl_loss_type"]).removesuffix("+"), KL_TYPES))
    if c.actor["strategy"] in FSDP:
        found.append(
            (
                "actor_rollout_ref.actor.optim.lr_scheduler_type",
                c.actor["optim"]["lr_scheduler_type"],
                ("constant", "cosine"),
            )
        )
    for key, value, valid in found:
        if value not in valid:
            yield _choice(key, value, valid)


def estimator(c: Context) -> Iterator[Problem]:
    """A registered advantage estimator (core_algos.py:88); a name of the user's own is known only to their module."""
    name = c.algorithm["adv_estimator"]
    if name not in ESTIMATORS and not c.model.get("external_lib"):
        yield _choice("algorithm.adv_estimator", name, ESTIMATORS)


def estimator_version(c: Context) -> Iterator[Problem]:
    """Estimators that the V1 trainer cannot feed (core_algos.py:734, ray_trainer.py:267; V1: trainer_base.py:1743)."""
    name = c.algorithm["adv_estimator"]
    if c.trainer["use_v1"] and name in ONLY_V0:
        yield Problem(
            f"algorithm.adv_estimator={name} does not work with verl's V1 trainer: {ONLY_V0[name]}",
            valid="trainer.use_v1=false",
            fix="algorithm=remax" if name == "remax" else "trainer.use_v1=false",
            key="trainer.use_v1",
            source="verl/trainer/ppo/v1/trainer_base.py:1743 _compute_advantage",
        )
    if name.endswith("optimal_token_baseline") and not c.actor["calculate_sum_pi_squared"]:
        yield Problem(
            f"algorithm.adv_estimator={name} needs the sum of squared probabilities from the actor",
            fix="actor_rollout_ref.actor.calculate_sum_pi_squared=true",
            key="actor_rollout_ref.actor.calculate_sum_pi_squared",
            source="verl/trainer/ppo/ray_trainer.py:267",
        )
    if name == "gdpo" and not c.algorithm.get("gdpo_reward_keys"):
        yield Problem(
            "algorithm.adv_estimator=gdpo needs the names of the single rewards that the reward function returns",
            fix="+algorithm.gdpo_reward_keys=[format_reward,accuracy_reward]",
            key="algorithm.gdpo_reward_keys",
            source="verl/trainer/ppo/core_algos.py:414",
        )


def group_size(c: Context) -> Iterator[Problem]:
    """One response has no group: GRPO's advantage is then the bare score, RLOO's and OPO's nothing to compare with
    (core_algos.py:315 `len(id2score[idx]) == 1`), and training goes on, pointless."""
    name = c.algorithm["adv_estimator"]
    if name in GROUPED and c.n == 1:
        yield Problem(
            f"algorithm.adv_estimator={name} compares the responses to one prompt, and rollout.n=1 gives only one",
            valid="actor_rollout_ref.rollout.n: 2 or more",
            fix="actor_rollout_ref.rollout.n=8",
            key="actor_rollout_ref.rollout.n",
            source="verl/trainer/ppo/core_algos.py:315",
        )


def critic_presence(c: Context) -> Iterator[Problem]:
    """GAE reads the critic's values (ray_trainer.py:222); every other estimator leaves a critic untouched
    (trainer/ppo/utils.py:95)."""
    name = c.algorithm["adv_estimator"]
    if name == "gae" and not c.critic_on:
        yield Problem(
            "algorithm.adv_estimator=gae needs a critic, and critic.enable=false",
            valid="critic.enable=true or null",
            fix="algorithm=ppo",
            key="critic.enable",
            source="verl/trainer/ppo/ray_trainer.py:222",
        )


def kl_gates(c: Context) -> Iterator[Problem]:
    """A coefficient of 0 behind an open gate pays for a reference pass that changes nothing; both gates count the KL
    twice, of which verl only prints a notice (utils/config.py:185)."""
    gates = [
        ("actor_rollout_ref.actor.use_kl_loss", c.actor["use_kl_loss"], c.actor["kl_loss_coef"]),
        ("algorithm.use_kl_in_reward", c.algorithm["use_kl_in_reward"], c.algorithm["kl_ctrl"]["kl_coef"]),
    ]
    if all(is_open and weight for _, is_open, weight in gates):
        yield Problem(
            "the KL is in the loss and in the reward: it would count twice",
            valid="one of actor_rollout_ref.actor.use_kl_loss and algorithm.use_kl_in_reward",
            fix="algorithm.use_kl_in_reward=false",
            key="kl",
            source="verl/utils/config.py:185",
        )


# --- batches ----------------------------------------------------------------------------------------------------------


def batch_over_ranks(c: Context) -> Iterator[Problem]:
    """utils/config.py:97-127 (FSDP: all ranks; megatron: data parallel ranks x micro-batch); not with dynamic batches.

    With dynamic batches the V1 trainer fills a batch up with dummies (trainer_base.py:1619), V0 does not
    (single_controller/base/decorator.py chunks evenly).
    """
    samples = c.batch * c.n
    if c.actor["use_dynamic_bsz"]:
        least = c.world // c.training_parallel if not c.trainer["use_v1"] else 1
    elif c.actor["strategy"] == "megatron":
        parallel = _megatron(c.actor["megatron"])
        least = c.world // parallel * int(c.actor["ppo_micro_batch_size_per_gpu"] or 1)
    else:
        least = c.world
    if least > 0 and samples % least:
        per_prompt = least // math.gcd(least, c.n)
        fixed = max(per_prompt, c.batch // per_prompt * per_prompt)
        yield Problem(
            f"{c.batch} prompts x {c.n} responses = {samples} do not divide by {least} "
            f"({'ranks' if least == c.world else 'data parallel ranks x micro-batch'})",
            valid=f"data.train_batch_size: multiples of {per_prompt}",
            fix=f"responses_per_step={fixed * c.n}",
            key="data.train_batch_size",
            source="verl/utils/config.py:124 validate_config",
        )


def mini_batch(c: Context) -> Iterator[Problem]:
    """The mini-batch is at most the batch: workers/config/actor.py:225, critic.py:125 (not asked with dynamic batches,
    where V1 would fill the batch up with dummies to the size of a mini-batch)."""
    parts = [("actor_rollout_ref.actor", c.actor), *([("critic", c.critic)] if c.critic_on else [])]
    for name, part in parts:
        if part["ppo_mini_batch_size"] > c.batch:
            yield Problem(
                f"{name}.ppo_mini_batch_size={part['ppo_mini_batch_size']} is more than "
                f"data.train_batch_size={c.batch} (both count prompts)",
                valid=f"1 to {c.batch}",
                fix="updates_per_step=1",
                key=f"{name}.ppo_mini_batch_size",
                source="verl/workers/config/actor.py:225",
            )


def mini_batch_over_ranks(c: Context) -> Iterator[Problem]:
    """`mini_batch_size % data parallel size == 0`, counted in responses (workers/engine_workers.py:267)."""
    ranks = c.world // c.training_parallel
    parts = [("actor_rollout_ref.actor", c.actor), *([("critic", c.critic)] if c.critic_on else [])]
    for name, part in parts:
        mini = int(part["ppo_mini_batch_size"]) * c.n
        if ranks > 1 and mini % ranks:
            step = ranks // math.gcd(ranks, c.n)
            yield Problem(
                f"a mini-batch of {name} has {part['ppo_mini_batch_size']} prompts x {c.n} responses = {mini}, which "
                f"do not divide by {ranks} data parallel ranks",
                valid=f"{name}.ppo_mini_batch_size: multiples of {step}",
                fix=f"{name}.ppo_mini_batch_size={max(step, int(part['ppo_mini_batch_size']) // step * step)}",
                key=f"{name}.ppo_mini_batch_size",
                source="verl/workers/engine_workers.py:267",
            )


def mini_batches_in_batch(c: Context) -> Iterator[Problem]:
    """V0 cuts a batch into whole mini-batches (utils/tensordict_utils.py:588); V1 fills it up with dummy samples
    (trainer_base.py:1589), which does no harm but costs."""
    if not c.trainer["use_v1"] and c.mini <= c.batch and c.batch % c.mini:
        yield Problem(
            f"data.train_batch_size={c.batch} is no multiple of actor_rollout_ref.actor.ppo_mini_batch_size={c.mini}",
            valid=f"mini-batches of {_list(d for d in _divisors(c.batch))}",
            fix="updates_per_step=1",
            key="actor_rollout_ref.actor.ppo_mini_batch_size",
            source="verl/utils/tensordict_utils.py:588",
        )


def micro_batch_given(c: Context) -> Iterator[Problem]:
    """Exactly one of `*micro_batch_size` and `*micro_batch_size_per_gpu`, and the latter: workers/config/actor.py:200,
    critic.py:108, utils/config.py:155-181; the workers read only `_per_gpu` (engine_workers.py:636)."""
    parts: list[tuple[str, Mapping[str, Any], str]] = []
    if not c.actor["use_dynamic_bsz"]:
        parts += [
            ("actor_rollout_ref.actor", c.actor, "ppo_micro_batch_size"),
            ("actor_rollout_ref.rollout", c.rollout, "log_prob_micro_batch_size"),
        ]
        if schedule.needs_reference(c.config):
            parts.append(("actor_rollout_ref.ref", c.ref, "log_prob_micro_batch_size"))
    if c.critic_on and not c.critic["use_dynamic_bsz"]:
        parts.append(("critic", c.critic, "ppo_micro_batch_size"))
    for name, part, key in parts:
        total, per_gpu = part.get(key), part.get(f"{key}_per_gpu")
        if per_gpu is None:
            yield Problem(
                f"{name}.{key}_per_gpu is not set, and without dynamic batches verl needs it",
                valid="a micro-batch size, or actor_rollout_ref.actor.use_dynamic_bsz=true",
                fix=f"{name}.{key}_per_gpu=1",
                key=f"{name}.{key}_per_gpu",
                source="verl/utils/config.py:155 check_mutually_exclusive",
            )
        elif total is not None and not (name == "critic" and total == per_gpu):
            yield Problem(
                f"{name}.{key}={total} and {name}.{key}_per_gpu={per_gpu} are both set",
                valid="only the second; the first is deprecated",
                fix=f"{name}.{key}=null",
                key=f"{name}.{key}",
                source="verl/utils/config.py:158 check_mutually_exclusive",
            )
        elif total is not None:  # verl derives the critic's second from the first, then refuses the pair
            yield Problem(
                f"{name}.{key} is deprecated, and verl refuses it",
                fix=f"{name}.{key}=null {name}.{key}_per_gpu={total}",
                key=f"{name}.{key}",
                source="verl/workers/config/critic.py:108",
            )


def micro_batch_divides(c: Context) -> Iterator[Problem]:
    """What one rank gets is cut into whole micro-batches (workers/engine/utils.py:125): of a mini-batch for updates, of
    the whole batch for log-probs."""
    if c.actor["use_dynamic_bsz"]:
        return
    ranks = max(1, c.world // c.training_parallel)
    updates = c.mini * c.n // ranks
    passes = c.batch * c.n // ranks
    parts = [
        ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu", updates),
        ("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu", passes),
    ]
    if schedule.needs_reference(c.config):
        parts.append(("actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu", passes))
    for key, samples in parts:
        micro = _get(c.config, key)
        if micro and samples and samples % int(micro):
            fits = [d for d in _divisors(samples) if d <= int(micro)]
            yield Problem(
                f"{key}={micro} does not divide the {samples} responses that one rank has at a time",
                valid=_list(_divisors(samples)),
                fix=f"{key}={fits[-1]}",
                key=key,
                source="verl/workers/engine/utils.py:125",
            )


def dynamic_batches_agree(c: Context) -> Iterator[Problem]:
    """`actor.use_dynamic_bsz == rollout.log_prob_use_dynamic_bsz` (workers/engine_workers.py:616)."""
    actor, rollout = c.actor["use_dynamic_bsz"], c.rollout["log_prob_use_dynamic_bsz"]
    if bool(actor) != bool(rollout):
        yield Problem(
            f"actor_rollout_ref.actor.use_dynamic_bsz={_show(actor)} and "
            f"actor_rollout_ref.rollout.log_prob_use_dynamic_bsz={_show(rollout)} differ",
            valid="both the same",
            fix=f"actor_rollout_ref.rollout.log_prob_use_dynamic_bsz={_show(bool(actor))}",
            key="actor_rollout_ref.rollout.log_prob_use_dynamic_bsz",
            source="verl/workers/engine_workers.py:616",
        )


def token_budget(c: Context) -> Iterator[Problem]:
    """With dynamic batches one response must fit into a micro-batch, `max_token_len x sequence parallel >= longest`
    (utils/seqlen_balancing.py:384)."""
    if not c.actor["use_dynamic_bsz"]:
        return
    longest = int(c.data["max_prompt_length"]) + int(c.data["max_response_length"])
    keys = [
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu",
    ]
    if schedule.needs_reference(c.config):
        keys.append("actor_rollout_ref.ref.log_prob_max_token_len_per_gpu")
    if c.critic_on:
        keys.append("critic.ppo_max_token_len_per_gpu")
    for key in keys:
        budget = _get(c.config, key)
        if budget is not None and int(budget) * c.sequence_parallel < longest:
            least = -(-longest // c.sequence_parallel)
            yield Problem(
                f"{key}={budget}: one prompt and response can have {longest} tokens",
                valid=f"{least} or more",
                fix=f"{key}={least}",
                key=key,
                source="verl/utils/seqlen_balancing.py:384",
            )


def micro_batch_legacy(c: Context) -> Iterator[Problem]:
    """The deprecated global micro-batch must divide the mini-batch and cover the ranks (workers/config/actor.py:233,
    critic.py:111). The workers never read it, so `micro_batch_given` refuses it anyway; this names the numbers."""
    parts = [("actor_rollout_ref.actor", c.actor), *([("critic", c.critic)] if c.critic_on else [])]
    for name, part in parts:
        micro = part.get("ppo_micro_batch_size")
        if part["use_dynamic_bsz"] or micro is None:
            continue
        if part["ppo_mini_batch_size"] % micro or micro * c.sequence_parallel < c.world:
            yield Problem(
                f"{name}.ppo_micro_batch_size={micro} must divide ppo_mini_batch_size={part['ppo_mini_batch_size']} "
                f"and be at least {c.world // c.sequence_parallel}",
                fix=f"{name}.ppo_micro_batch_size=null",
                key=f"{name}.ppo_micro_batch_size",
                source="verl/workers/config/actor.py:233",
            )


# --- parallelism ------------------------------------------------------------------------------------------------------


def rollout_world(c: Context) -> Iterator[Problem]:
    """`world % (tp x dp x pp) == 0` (workers/engine_workers.py:659; of its own GPUs in separate_async)."""
    nodes, per_node = c.rollout_pool
    ranks = nodes * per_node
    if ranks and ranks % c.replica:
        factors = f"tp={c.tp}" if c.replica == c.tp else f"tp x dp x pp = {c.replica}"
        yield Problem(
            f"{factors} does not divide the {_count(ranks, 'rank')} of the rollout",
            valid=f"tp: {_list(_valid_tp(c))}",
            fix=_fix_tp(c),
            key="tp",
            source="verl/workers/engine_workers.py:659",
        )


def rollout_nodes(c: Context) -> Iterator[Problem]:
    """A copy of the rollout fills nodes or shares one: else it would straddle two (workers/rollout/replica.py:114
    counts its nodes as if it did not), and vLLM with data parallel copies asserts `gpus_per_node % tp == 0`
    (vllm_async_server.py:385)."""
    _, per_node = c.rollout_pool
    if per_node and per_node % c.replica and c.replica % per_node:
        yield Problem(
            f"a copy of the rollout takes {c.replica} GPUs, which neither divide a node of {per_node} nor fill nodes",
            valid=f"tp: {_list(_valid_tp(c))}",
            fix=_fix_tp(c),
            key="tp",
            source="verl/workers/rollout/replica.py:114",
        )
    elif int(c.rollout["data_parallel_size"]) > 1 and per_node and per_node % c.tp:
        yield Problem(
            f"tp={c.tp} does not divide the {per_node} GPUs of a node, which data parallel copies need",
            valid=f"tp: {_list(_valid_tp(c))}",
            fix=_fix_tp(c),
            key="tp",
            source="verl/workers/rollout/vllm_rollout/vllm_async_server.py:385",
        )


def heads(c: Context) -> Iterator[Problem]:
    """Attention heads and KV heads are split over the ranks of a copy; verl does not look, vLLM raises when it loads
    the model: heads % tp == 0, and kv % tp == 0 or tp % kv == 0."""
    if c.arch is not None and c.tp > 1 and not c.arch.divides(c.tp):
        valid = _valid_tp(c)
        yield Problem(
            f"tp={c.tp} does not divide the {c.arch.heads} attention heads and {c.arch.kv_heads} KV heads of "
            f"{_model_name(c)}",
            valid=f"tp: {_list(valid)}",
            fix=_fix_tp(c),
            key="tp",
            source="vllm/model_executor/models (heads % tp, KV heads % tp)",
        )


def rollout_on_cpu(c: Context) -> Iterator[Problem]:
    """The CPU rollout holds a whole copy in each rank; vLLM and the like need GPUs (and ours needs no GPU)."""
    name = c.rollout["name"]
    if name == ROLLOUT and c.replica > 1:
        yield Problem(
            f"tp={c.tp}: on a CPU every rank generates with a whole copy of the model",
            valid="tp: 1",
            fix="tp=1",
            key="tp",
            source="sweeper/engines/verl/cpu/rollout.py",
        )
    if c.shape.device != "cpu" or name not in ROLLOUTS:
        return
    if name != VLLM or c.config["engine"].get("rollout") != VLLM:
        yield Problem(
            f"actor_rollout_ref.rollout.name={name} needs a GPU, and cluster {c.shape.name} has none",
            valid=ROLLOUT,
            fix=f"actor_rollout_ref.rollout.name={ROLLOUT}, or engine=verl_vllm_cpu (vLLM's CPU build)",
            key="actor_rollout_ref.rollout.name",
        )
    elif c.arch is not None and c.arch.head_dim not in VLLM_HEAD_DIMS:
        yield Problem(
            f"{_model_name(c)} has heads of {c.arch.head_dim}, which vLLM cannot compute on a CPU",
            valid=f"model.arch.head_dim: {_list(VLLM_HEAD_DIMS)}",
            fix="model.arch.heads=2 model.arch.head_dim=32" if c.config["model"].get("build") else "another model",
            key="model.arch.head_dim",
            source="vllm/v1/attention/backends/cpu_attn.py:70",
        )


def rollout_name(c: Context) -> Iterator[Problem]:
    """A registered rollout (workers/rollout/base.py get_rollout_class); others come from `model.external_lib`."""
    name, mode = c.rollout["name"], c.rollout["mode"]
    valid = (*ROLLOUTS, ROLLOUT) if c.shape.device == "cpu" else ROLLOUTS
    if name not in (*ROLLOUTS, *valid) and not c.model.get("external_lib"):
        yield _choice("actor_rollout_ref.rollout.name", name, valid)
    if mode != "async":
        yield Problem(
            f"actor_rollout_ref.rollout.mode={mode} was removed from verl",
            valid="async",
            fix="actor_rollout_ref.rollout.mode=async",
            key="actor_rollout_ref.rollout.mode",
            source="verl/workers/config/rollout.py:283",
        )


def rollout_installed(c: Context) -> Iterator[Problem]:
    """The inference server is installed where the trainer runs: verl imports it when its workers are up
    (workers/rollout/replica.py). Not looked at where the trainer does not run on this machine as it is: in a container,
    on a cluster, on a mere shape."""
    name = c.rollout["name"]
    on_cpu = c.shape.device == "cpu"
    here = c.config["cluster"].get("kind") == "local" and not c.config["engine"].get("image")
    if not here or name not in _SERVERS or (on_cpu and c.config["engine"].get("rollout") != name):
        return
    interpreter = Interpreter.of(c.config)
    try:
        found = ask(interpreter, _FIND, {"module": _SERVERS[name]})
    except ProbeError:
        if not on_cpu:
            return  # an interpreter that cannot be started is named by whoever asks it for the trainer
        found = False
    if not found:
        yield Problem(
            f"actor_rollout_ref.rollout.name={name}, and {interpreter.python} has no package {_SERVERS[name]}",
            valid="an interpreter that has it",
            fix="make vllm-cpu" if on_cpu else "engine.python=<python of an environment with verl[vllm]>",
            key="engine.python",
            source="verl/workers/rollout/replica.py RolloutReplicaRegistry",
        )


_SERVERS = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt_llm"}
# A distribution as well as a module: verl asks for the version of the distribution named `vllm`.
_FIND = """
import importlib.metadata, importlib.util
answer = importlib.util.find_spec(question["module"]) is not None
if answer and question["module"] == "vllm":
    answer = any(True for _ in importlib.metadata.distributions(name="vllm"))
"""


def rollout_parallel(c: Context) -> Iterator[Problem]:
    """`expert_parallel_size == tp x dp` when above 1; no pipeline parallelism (workers/config/rollout.py:295, 322)."""
    expert, name = int(c.rollout.get("expert_parallel_size") or 1), c.rollout["name"]
    wanted = c.tp * int(c.rollout["data_parallel_size"])
    if expert > 1 and name != "trtllm" and expert != wanted:
        yield Problem(
            f"actor_rollout_ref.rollout.expert_parallel_size={expert} is not tp x dp = {wanted}",
            valid=f"1, or {wanted}",
            fix=f"actor_rollout_ref.rollout.expert_parallel_size={wanted}",
            key="actor_rollout_ref.rollout.expert_parallel_size",
            source="verl/workers/config/rollout.py:295",
        )
    if int(c.rollout["pipeline_model_parallel_size"]) > 1 and name in ROLLOUTS:
        yield Problem(
            f"actor_rollout_ref.rollout.pipeline_model_parallel_size={c.rollout['pipeline_model_parallel_size']}: "
            f"verl has no pipeline parallelism for {name}",
            valid="1",
            fix="actor_rollout_ref.rollout.pipeline_model_parallel_size=1",
            key="actor_rollout_ref.rollout.pipeline_model_parallel_size",
            source="verl/workers/config/rollout.py:322",
        )


def training_world(c: Context) -> Iterator[Problem]:
    """`n_gpus % (tp x pp x cp) == 0` for megatron (utils/config.py:110), and Ulysses groups for FSDP."""
    if c.world % c.training_parallel:
        megatron = c.actor["strategy"] == "megatron"
        name = "tp x pp x cp of actor_rollout_ref.actor.megatron" if megatron else "the sequence parallel size"
        yield Problem(
            f"{name} = {c.training_parallel} does not divide the {_count(c.world, 'rank')}",
            valid=_list(_divisors(c.world)),
            key=f"actor_rollout_ref.actor.{'megatron' if megatron else 'ulysses_sequence_parallel_size'}",
            source="verl/utils/config.py:110",
        )
    if c.critic_on and c.critic["strategy"] == "megatron" and c.world % _megatron(c.critic["megatron"]):
        yield Problem(
            f"tp x pp x cp of critic.megatron = {_megatron(c.critic['megatron'])} does not divide the "
            f"{_count(c.world, 'rank')}",
            valid=_list(_divisors(c.world)),
            key="critic.megatron",
            source="verl/workers/engine/megatron",
        )


def sequence_parallel(c: Context) -> Iterator[Problem]:
    """Ulysses needs packed sequences (workers/config/actor.py:340, fsdp/transformer_impl.py:148) and its size must
    divide the attention heads (models/transformers/monkey_patch.py)."""
    if c.sequence_parallel <= 1:
        return
    key = "actor_rollout_ref.actor.ulysses_sequence_parallel_size"
    if not c.model["use_remove_padding"]:
        yield Problem(
            f"{key}={c.sequence_parallel} needs packed sequences",
            valid="actor_rollout_ref.model.use_remove_padding=true",
            fix="actor_rollout_ref.model.use_remove_padding=true",
            key="actor_rollout_ref.model.use_remove_padding",
            source="verl/workers/config/actor.py:340",
        )
    if c.arch is not None and c.arch.heads % c.sequence_parallel:
        yield Problem(
            f"{key}={c.sequence_parallel} does not divide the {c.arch.heads} attention heads of {_model_name(c)}",
            valid=_list(d for d in _divisors(c.arch.heads) if c.world % d == 0),
            key=key,
            source="verl/models/transformers/monkey_patch.py",
        )


def strategies(c: Context) -> Iterator[Problem]:
    """`strategy` must be of the training engine that the config is for (workers/config/engine.py:217, 306, 462)."""
    target = str(c.actor.get("_target_", "")).rsplit(".", 1)[-1]
    valid = {
        "FSDPActorConfig": FSDP,
        "McoreActorConfig": ("megatron",),
        "VeOmniActorConfig": ("veomni",),
        "TorchTitanActorConfig": ("torchtitan",),
    }.get(target)
    if valid is None:
        return
    parts = [("actor_rollout_ref.actor", c.actor), *([("critic", c.critic)] if c.critic_on else [])]
    for name, part in parts:
        if part["strategy"] not in valid:
            engine = {"megatron": "model_engine=megatron", "veomni": "model_engine=veomni"}.get(str(part["strategy"]))
            yield Problem(
                f"{name}.strategy={part['strategy']} does not belong to this model_engine",
                valid=", ".join(valid),
                fix=engine or f"{name}.strategy={valid[0]}",
                key=f"{name}.strategy",
                source="verl/workers/config/engine.py:306",
            )
    if c.shape.device == "cpu" and c.actor["strategy"] not in ("fsdp", "fsdp2"):
        yield Problem(
            f"actor_rollout_ref.actor.strategy={c.actor['strategy']} has no CPU version",
            valid="fsdp2, fsdp",
            fix="model_engine=dp",
            key="model_engine",
        )


# --- sampling, steps, validation --------------------------------------------------------------------------------------


def temperature(c: Context) -> Iterator[Problem]:
    """`rollout.temperature > 0` when validation samples (utils/config.py:201); the log-probs of training are divided by
    it (workers/engine/fsdp/transformer_impl.py:1163), so it cannot be 0 at all."""
    value = c.rollout["temperature"]
    if not isinstance(value, int | float) or value <= 0:
        yield Problem(
            f"actor_rollout_ref.rollout.temperature={_show(value)}: training needs sampled responses",
            valid="a number above 0",
            fix="actor_rollout_ref.rollout.temperature=1.0",
            key="actor_rollout_ref.rollout.temperature",
            source="verl/utils/config.py:201",
        )
    val = c.rollout["val_kwargs"]
    if int(val["n"]) > 1 and not val["do_sample"]:
        yield Problem(
            f"actor_rollout_ref.rollout.val_kwargs.n={val['n']} greedy answers to a prompt are all the same",
            fix="actor_rollout_ref.rollout.val_kwargs.n=1, or do_sample=true and temperature=1 beside it",
            key="actor_rollout_ref.rollout.val_kwargs.n",
        )


def validation(c: Context) -> Iterator[Problem]:
    """Without validation there is no score (trainer_base.py:491 `test_freq > 0`): a comparison would be empty."""
    metric = str((c.config.get("objective") or {}).get("metric", "auto"))
    if int(c.trainer["test_freq"]) <= 0 and (metric == "auto" or metric.startswith("val-")):
        yield Problem(
            f"trainer.test_freq={c.trainer['test_freq']}: no validation, so this trial would have no score",
            valid="1 or more; or an objective of training",
            fix="trainer.test_freq=5, or objective.metric=critic/score/mean",
            key="trainer.test_freq",
            source="verl/trainer/ppo/v1/trainer_base.py:491",
        )
    if c.trainer["val_only"] and c.trainer["resume_mode"] != "resume_path":
        yield Problem(
            "trainer.val_only=true: verl validates once and ends without training",
            valid="trainer.val_only=true with a checkpoint to evaluate: trainer.resume_mode=resume_path",
            fix="trainer.val_only=false",
            key="trainer.val_only",
            source="verl/trainer/ppo/v1/trainer_base.py:446",
        )


def steps(c: Context) -> Iterator[Problem]:
    """The loop ends with the epochs too (trainer_base.py:467), and then without the last validation and checkpoint,
    which only the last of `total_training_steps` brings (:481, :491)."""
    per_epoch = schedule.steps_per_epoch(c.config)
    asked, epochs = c.trainer["total_training_steps"], int(c.trainer["total_epochs"])
    if per_epoch is None or per_epoch == 0:
        return
    if asked is not None and int(asked) > per_epoch * epochs:
        least = -(-int(asked) // per_epoch)
        yield Problem(
            f"trainer.total_training_steps={asked}, but {epochs} epochs of {per_epoch} steps end after "
            f"{per_epoch * epochs}: verl would stop there, without a last validation",
            valid=f"trainer.total_epochs: {least} or more",
            fix=f"trainer.total_epochs={least}",
            key="trainer.total_epochs",
            source="verl/trainer/ppo/v1/trainer_base.py:467",
        )


def rows_for_a_batch(c: Context) -> Iterator[Problem]:
    """The loader drops the last, incomplete batch: with fewer rows than a batch there is no step at all
    (trainer_base.py, StatefulDataLoader(drop_last=True))."""
    count = schedule.training_rows(c.config)
    if count is not None and count < c.batch:
        limit = c.data["train_max_samples"]
        yield Problem(
            f"the training set has {count} rows, fewer than data.train_batch_size={c.batch}"
            + (f" (data.train_max_samples={limit})" if limit and int(limit) > 0 else ""),
            valid=f"data.train_batch_size up to {count}",
            fix=f"responses_per_step={count * c.n}",
            key="data.train_batch_size",
            source="verl/trainer/ppo/v1/trainer_base.py _init_dataloader",
        )


def environment(c: Context) -> Iterator[Problem]:
    """The task's own parameters, files and reward; not looked at where data.train_files was typed."""
    if schedule.files(c.data["train_files"]) == [schedule.NOT_BOUND]:
        yield from environments.check(c.config)


def data_files(c: Context) -> Iterator[Problem]:
    """Files that were typed: there, readable, rows as verl reads them (utils/dataset/rl_dataset.py). Those of an
    environment were checked with it."""
    if schedule.files(c.data["train_files"]) == [schedule.NOT_BOUND]:
        return
    own = _environment_files(c)
    for key in ("train_files", "val_files"):
        names = schedule.files(c.data[key])
        if not names:
            yield Problem(f"data.{key} is empty", fix=f"data.{key}=<file>.parquet", key=f"data.{key}")
        for name in names:
            if name not in own and "://" not in name:
                yield from rows.check(Path(name).expanduser(), f"data.{key}")


def reward_file(c: Context) -> Iterator[Problem]:
    """A reward function that was typed is a file (trainer/ppo/reward.py get_custom_reward_fn)."""
    asked = c.config["reward"]["custom_reward_function"]
    path = asked["path"]
    if path and str(path) not in _environment_files(c) and "://" not in str(path):
        file = Path(str(path)).expanduser()
        key = "reward.custom_reward_function.path"
        if file.is_file():
            for p in custom.check_reward(file, str(asked["name"]), Interpreter.of(c.config), key):
                # There the function is named behind the file; verl has a key of its own for it.
                meant = p.fix.rpartition(":")[2] if p.fix.startswith(f"{key}=") else ""
                yield replace(p, fix=f"reward.custom_reward_function.name={meant}" if meant else p.fix)
        else:
            near = facts.nearest_sibling(file)
            yield Problem(
                f"{key}={path} does not exist",
                fix=f"{key}={near}" if near else "",
                key=key,
                source="verl/trainer/ppo/reward.py",
            )


# --- model ------------------------------------------------------------------------------------------------------------


def model(c: Context) -> Iterator[Problem]:
    """The model is there and describes itself."""
    yield from c.model_facts[1]
    if c.critic_on and c.critic["model"]["path"] != c.model["path"]:
        path = c.critic["model"]["path"]
        if not path:
            yield Problem(
                "critic.model.path is empty", fix=f"critic.model.path={c.model['path']}", key="critic.model.path"
            )
        elif Path(str(path)) != models.build_folder(c.config):
            yield from (
                Problem(p.what.replace("model path", "critic.model.path"), p.valid, "", "critic.model.path", p.source)
                for p in facts.at(str(path))[1]
            )


def lengths(c: Context) -> Iterator[Problem]:
    """Prompt and response fit into the model's positions (vllm_async_server.py:1107; :593 for what is left)."""
    most, asked = _positions(str(c.model["path"])), c.rollout["max_model_len"]
    longest = int(c.data["max_prompt_length"]) + int(c.data["max_response_length"])
    override = (c.model.get("override_config") or {}).get("max_position_embeddings")
    most = int(override) if override else most
    if most is not None and asked is not None and int(asked) > most:
        yield Problem(
            f"actor_rollout_ref.rollout.max_model_len={asked} is more than the {most} positions of {_model_name(c)}",
            valid=f"up to {most}",
            fix=f"actor_rollout_ref.rollout.max_model_len={most}",
            key="actor_rollout_ref.rollout.max_model_len",
            source="verl/workers/rollout/vllm_rollout/vllm_async_server.py:1107",
        )
    room = min((int(v) for v in (most, asked) if v is not None), default=None)
    if room is not None and longest > room:
        yield Problem(
            f"data.max_prompt_length + data.max_response_length = {longest} is more than the {room} positions of "
            + (_model_name(c) if room == most else "actor_rollout_ref.rollout.max_model_len"),
            valid=f"{room} together",
            fix=f"data.max_response_length={max(1, room - int(c.data['max_prompt_length']))}",
            key="data.max_response_length",
            source="verl/workers/rollout/vllm_rollout/vllm_async_server.py:593",
        )


def size(c: Context) -> Iterator[Problem]:
    """A CPU trains a tiny model; what needs GPUs needs enough of their memory (an estimate: sweeper/plan/memory.py)."""
    if c.arch is None or c.arch.params is None:
        return
    if c.shape.device == "cpu":
        if c.arch.params > CPU_PARAMETERS:
            # Weights, gradients and two Adam moments in fp32 (sweeper/plan/memory.py); the rollout comes on top.
            state = 16 * c.arch.params / 1e9
            yield Problem(
                f"{_model_name(c)} has {c.arch.params / 1e9:.1f} billion parameters: its training state alone takes "
                f"{state:.0f} GB of GPU memory, and cluster {c.shape.name} has no GPU",
                valid="model=tiny on a CPU; a cluster with GPUs for this model",
                fix="model=tiny, or cluster=node_8gpu plan=true",
                key="model",
            )
        return
    estimate = memory.estimate(c.config, c.arch, c.shape.gpu_memory_gib, c.world)
    if c.tp > c.world:
        return  # what it would take on as many ranks as there are is no answer: rollout_world says what is wrong
    if estimate is not None and estimate.verdict == "does_not_fit" and c.actor["strategy"] in FSDP:
        gpu = c.shape.gpu_memory_gib or memory.USUAL_GPU_GIB
        if estimate.total_gib <= gpu:
            share = float(c.rollout["gpu_memory_utilization"])
            yield Problem(
                f"one response of full length does not fit beside the weights of {_model_name(c)} into the rollout's "
                f"share of a GPU, {share:g} of {gpu:.0f} GiB, at tp={c.tp}",
                valid="a larger share, a larger tp or shorter responses",
                fix="actor_rollout_ref.rollout.gpu_memory_utilization=0.85, or another tp",
                key="actor_rollout_ref.rollout.gpu_memory_utilization",
                source="sweeper/plan/memory.py",
            )
            return
        enough = (
            f"{_count(estimate.min_gpus, 'such GPU')}" if estimate.min_gpus else "a smaller model or more offloading"
        )
        yield Problem(
            f"{_model_name(c)} needs about {estimate.total_gib:.0f} GiB a rank on {_count(c.world, 'rank')}, and a GPU "
            f"of cluster {c.shape.name} has {gpu:.0f}",
            valid=enough,
            fix="actor_rollout_ref.actor.fsdp_config.optimizer_offload=true, or more GPUs",
            key="cluster",
            source="sweeper/plan/memory.py",
        )


def lora(c: Context) -> Iterator[Problem]:
    """A rollout that takes adapters; vLLM's largest LoRA rank (workers/rollout/vllm_rollout/utils.py:83, asked by
    utils/config.py:215)."""
    nested = c.model.get("lora") or {}
    rank = int(nested.get("rank") or 0) or int(c.model.get("lora_rank") or 0)
    if rank and not nested.get("merge") and c.rollout["name"] == ROLLOUT:
        yield Problem(
            f"a LoRA rank of {rank}: the rollout {ROLLOUT} takes whole weights, no adapters",
            valid="0 on this rollout",
            fix="actor_rollout_ref.model.lora_rank=0",
            key="actor_rollout_ref.model.lora_rank",
            source="sweeper/engines/verl/cpu/rollout.py",
        )
    if rank > LORA_MOST and not nested.get("merge") and c.rollout["name"] == "vllm":
        yield Problem(
            f"a LoRA rank of {rank} is more than vLLM takes",
            valid=f"1 to {LORA_MOST}",
            fix=f"actor_rollout_ref.model.lora_rank={LORA_MOST}",
            key="actor_rollout_ref.model.lora_rank",
            source="verl/workers/rollout/vllm_rollout/utils.py:98",
        )


# --- asynchronous training, filtering, resuming -----------------------------------------------------------------------


def separate_async(c: Context) -> Iterator[Problem]:
    """trainer_separate_async.py:56-76: the batch is what is trained between two weight updates; own GPUs."""
    if not schedule.separate(c.config):
        return
    every = int(c.trainer["v1"]["separate_async"]["parameter_sync_step"])
    source = "verl/trainer/ppo/v1/trainer_separate_async.py:56"
    if c.batch != every * c.mini:
        yield Problem(
            f"data.train_batch_size={c.batch} is not parameter_sync_step x ppo_mini_batch_size = {every} x {c.mini}",
            valid=f"data.train_batch_size={every * c.mini}",
            fix=f"responses_per_step={every * c.mini * c.n} updates_per_step={every}",
            key="data.train_batch_size",
            source=source,
        )
    for key in ("nnodes", "n_gpus_per_node"):
        if int(c.rollout[key] or 0) < 1:
            yield Problem(
                f"actor_rollout_ref.rollout.{key}={c.rollout[key]}: separate_async generates on GPUs of its own",
                valid="1 or more",
                fix=f"actor_rollout_ref.rollout.{key}=1",
                key=f"actor_rollout_ref.rollout.{key}",
                source=source,
            )
    if c.rollout["checkpoint_engine"]["backend"] == "naive":
        yield Problem(
            "actor_rollout_ref.rollout.checkpoint_engine.backend=naive cannot send weights to other GPUs",
            valid="nccl, nixl, mooncake",
            fix="actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
            key="actor_rollout_ref.rollout.checkpoint_engine.backend",
            source=source,
        )
    reward = c.config["reward"]["reward_model"]
    if reward["enable"] and not reward["enable_resource_pool"]:
        yield Problem(
            "separate_async has no room for a reward model on the rollout's GPUs",
            fix="reward.reward_model.enable_resource_pool=true",
            key="reward.reward_model.enable_resource_pool",
            source=source,
        )


def filter_groups(c: Context) -> Iterator[Problem]:
    """Dynamic sampling needs a metric that the reward gives while sampling (trainer_base.py:186-206), and V1."""
    asked = c.algorithm.get("filter_groups") or {}
    if not asked.get("enable"):
        return
    if not asked.get("metric"):
        yield Problem(
            "algorithm.filter_groups.enable=true needs a metric",
            fix="algorithm.filter_groups.metric=acc",
            key="algorithm.filter_groups.metric",
            source="verl/trainer/ppo/v1/trainer_base.py:196",
        )
    if int(asked.get("max_inflight_gen_batches") or 0) < 1:
        yield Problem(
            f"algorithm.filter_groups.max_inflight_gen_batches={asked.get('max_inflight_gen_batches')}",
            valid="1 or more",
            fix="algorithm.filter_groups.max_inflight_gen_batches=1",
            key="algorithm.filter_groups.max_inflight_gen_batches",
            source="verl/trainer/ppo/v1/replay_buffer.py:197",
        )
    reward = c.config["reward"]["reward_model"]
    if reward["enable"] and not reward["enable_resource_pool"]:
        yield Problem(
            "algorithm.filter_groups needs the reward while it samples, which a reward model on the same GPUs gives "
            "only afterwards",
            fix="reward.reward_model.enable_resource_pool=true",
            key="reward.reward_model.enable_resource_pool",
            source="verl/trainer/ppo/v1/trainer_base.py:200",
        )


def separate_pools(c: Context) -> Iterator[Problem]:
    """Pools of a reward model or of a teacher have GPUs (trainer_base.py:824, 839)."""
    pools = [
        ("reward.reward_model", c.config["reward"]["reward_model"], "enable_resource_pool"),
        ("distillation", c.config["distillation"], "enabled"),
    ]
    for name, part, switch in pools:
        for key in ("nnodes", "n_gpus_per_node"):
            if part[switch] and int(part[key] or 0) < 1:
                yield Problem(
                    f"{name}.{key}={part[key]}: a pool of its own needs GPUs",
                    valid="1 or more",
                    fix=f"{name}.{key}=1",
                    key=f"{name}.{key}",
                    source="verl/trainer/ppo/v1/trainer_base.py:824",
                )


def resume_path(c: Context) -> Iterator[Problem]:
    """A start from another run's checkpoint (trainer_base.py:867; FSDP shards are named by the world size,
    utils/checkpoint/fsdp_checkpoint_manager.py). One with a manifest is read once: it is used as it was written or not
    at all."""
    path, key = c.trainer["resume_from_path"], "trainer.resume_from_path"
    source = "verl/trainer/ppo/v1/trainer_base.py:867"
    if c.trainer["resume_mode"] != "resume_path":
        if path:
            yield Problem(
                f"{key}={path} is read with trainer.resume_mode=resume_path only, and it is {c.trainer['resume_mode']}",
                fix=f"trainer.resume_mode=resume_path, or leave {key} out",
                key=key,
                source=source,
            )
        return
    if not isinstance(path, str) or "global_step_" not in path:
        yield Problem(
            f"{key}={_show(path)} is not a checkpoint of verl",
            valid="a folder global_step_<n>",
            key=key,
            source=source,
        )
        return
    folder = Path(path).expanduser()
    if not folder.is_absolute():
        yield Problem(
            f"{key}={path} is relative, and a trial runs in a folder of its own",
            fix=f"{key}={folder.absolute()}",
            key=key,
        )
    elif not folder.is_dir():
        near = facts.nearest_sibling(folder)
        yield Problem(f"{key}={path} does not exist", fix=f"{key}={near}" if near else "", key=key, source=source)
    elif altered := start.wrong(folder):
        more = f" (and {len(altered) - 1} more)" if len(altered) > 1 else ""
        others = (saved.path for saved in reversed(checkpoints.kept(folder.parent)) if saved.path != folder)
        sound = next((other for other in others if not start.wrong(other)), None)
        yield Problem(
            f"{key}={path} is not what was written: {altered[0]}{more}",
            valid=f"a checkpoint with the content of its manifest, in {folder.parent / manifest.FOLDER}",
            fix=f"{key}={sound}" if sound else "",
            key=key,
        )
    elif c.actor["strategy"] in FSDP:
        shards = {p.name.split("_rank_")[0] for p in (folder / "actor").glob("model_world_size_*_rank_*.pt")}
        if f"model_world_size_{c.world}" not in shards:
            there = sorted(s.removeprefix("model_world_size_") for s in shards)
            yield Problem(
                f"{key}={path} was saved by {' or '.join(there) or 'no'} ranks, this trial has {c.world}",
                valid=f"{' or '.join(there) or 'a checkpoint with'} ranks",
                key=key,
                source="verl/utils/checkpoint/fsdp_checkpoint_manager.py (verl#2265)",
            )


def own_ray(c: Context) -> Iterator[Problem]:
    """An attempt has a Ray cluster of its own: two verl runs on one would share TransferQueue's named actor."""
    if c.config["ray_kwargs"]["ray_init"].get("address"):
        yield Problem(
            "ray_kwargs.ray_init.address: a trial starts a Ray cluster of its own",
            fix="~ray_kwargs.ray_init.address",
            key="ray_kwargs.ray_init.address",
            source="transfer_queue/interface.py:119",
        )


RULES: tuple[Rule, ...] = (
    model, size, choices, estimator, estimator_version, group_size, critic_presence, kl_gates, training_world,
    batch_over_ranks, mini_batch, mini_batch_over_ranks, mini_batches_in_batch, micro_batch_given,
    micro_batch_legacy, micro_batch_divides, dynamic_batches_agree, token_budget, rollout_name, rollout_on_cpu,
    rollout_installed, rollout_parallel, rollout_world, rollout_nodes, heads, sequence_parallel, lora, lengths,
    temperature, validation, environment, data_files, rows_for_a_batch, steps, reward_file, separate_async,
    separate_pools, all_pools, filter_groups, resume_path, own_ray,
)  # fmt: skip


# --- helpers ----------------------------------------------------------------------------------------------------------


def _valid_tp(c: Context) -> list[int]:
    """Sizes that the heads, the ranks and the nodes allow, with the config's data and pipeline parallelism."""
    if c.rollout["name"] == ROLLOUT:
        return [1]
    nodes, per_node = c.rollout_pool
    other = c.replica // c.tp
    return [
        tp
        for tp in _divisors(nodes * per_node)
        if (c.arch is None or c.arch.divides(tp))
        and (nodes * per_node) % (tp * other) == 0
        and (per_node % (tp * other) == 0 or (tp * other) % per_node == 0)
    ]


def _fix_tp(c: Context) -> str:
    """The nearest smaller size that works."""
    valid = _valid_tp(c)
    return f"tp={max((tp for tp in valid if tp <= c.tp), default=valid[0])}" if valid else ""


def _megatron(part: Mapping[str, Any]) -> int:
    keys = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    return math.prod(int(part.get(k) or 1) for k in keys)


def _model_name(c: Context) -> str:
    """As the user chose it: the group's name, or the path that was typed over it."""
    model, path = c.config["model"], str(c.model["path"])
    return str(model["name"]) if model.get("build") or path == model.get("hf_id") else path


def _environment_files(c: Context) -> set[str]:
    """Files of the environment, which were checked with it or are still to be built; empty where it is not used."""
    try:
        own = environments.resolve(c.config)
    except (KeyError, TypeError, ValueError, OSError):  # an environment that is not used need not be whole
        return set()
    return {str(f) for f in (own.train, own.val, own.test, own.reward) if f}


@lru_cache(maxsize=256)
def _positions(path: str) -> int | None:
    """The positions of a local model; None where its config.json is not there to ask."""
    file = Path(path) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    most = (config.get("text_config") or config).get("max_position_embeddings")
    return int(most) if most else None


def _choice(key: str, value: Any, valid: tuple[str, ...]) -> Problem:
    near = difflib.get_close_matches(str(value), valid, n=1)
    return Problem(
        f"{key}={_show(value)} is not one that verl knows",
        valid=", ".join(valid),
        fix=f"{key}={near[0]}" if near else "",
        key=key,
    )


def _get(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _show(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _count(number: int | None, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _list(values: Any) -> str:
    return ", ".join(str(v) for v in values) or "none"


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0] if number <= 100_000 else [1]
