"""Why a key of verl's config cannot matter in a config: what would be searched for nothing.

Guarantees: named only where verl 0.9.1 surely does not read the key, with the reason; a name of ours (`lr`, `kl`, `tp`)
is never idle, since it is bound to a key that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sweeper.config import tree
from sweeper.engines.base import Config
from sweeper.engines.verl import schedule

_Why = Callable[[Config], str]

_ACTOR, _REF, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.ref", "actor_rollout_ref.rollout"


def why(config: Config, key: str) -> str:
    """The reason, in words; empty when the value of that key (or of what lies below it) can matter."""
    key = key.lstrip("+~")
    for start, reason in _RULES.items():
        if (key == start or key.startswith(f"{start}.")) and key not in _SWITCHES and (said := reason(config)):
            return said
    return ""


def _critic(config: Config) -> str:
    return "" if schedule.needs_critic(config) else "there is no critic"


def _kl_reward(config: Config) -> str:
    return "" if config["algorithm"]["use_kl_in_reward"] else "algorithm.use_kl_in_reward is false"


def _kl_loss(config: Config) -> str:
    return "" if tree.get(config, f"{_ACTOR}.use_kl_loss") else f"{_ACTOR}.use_kl_loss is false"


def _adaptive(config: Config) -> str:
    kind = tree.get(config, "algorithm.kl_ctrl.type")
    return _kl_reward(config) or ("" if kind == "adaptive" else f"algorithm.kl_ctrl.type is {kind}, not adaptive")


def _reference(config: Config) -> str:
    return "" if schedule.needs_reference(config) else "there is no KL term, so no reference model"


def _gae(config: Config) -> str:
    name = config["algorithm"]["adv_estimator"]
    return "" if name == "gae" or name not in _NO_LAMBDA else f"adv_estimator={name} has no lambda"


def _discounts(config: Config) -> str:
    name = config["algorithm"]["adv_estimator"]
    return f"adv_estimator={name} does not discount" if name in _NO_DISCOUNT else ""


def _grpo_std(config: Config) -> str:
    name = config["algorithm"]["adv_estimator"]
    reads = name in ("grpo", "grpo_passk") or name not in _NO_LAMBDA | {"gae"}
    return "" if reads else f"adv_estimator={name} does not read it"


def _filter(config: Config) -> str:
    asked: Mapping[str, Any] = config["algorithm"].get("filter_groups") or {}
    return "" if asked.get("enable") else "algorithm.filter_groups.enable is false"


def _static(switch: str) -> _Why:
    """Micro-batches counted in responses, where they are counted in tokens."""

    def reason(config: Config) -> str:
        return f"{switch} is true: micro-batches are counted in tokens" if tree.get(config, switch) else ""

    return reason


def _dynamic(switch: str) -> _Why:
    def reason(config: Config) -> str:
        return "" if tree.get(config, switch) else f"{switch} is false: micro-batches are counted in responses"

    return reason


def _needed(condition: _Why, other: _Why) -> _Why:
    return lambda config: condition(config) or other(config)


def _reward_model(config: Config) -> str:
    return "" if config["reward"]["reward_model"]["enable"] else "reward.reward_model.enable is false"


def _distillation(config: Config) -> str:
    return "" if config["distillation"]["enabled"] else "distillation.enabled is false"


def _no_validation(config: Config) -> str:
    return "" if schedule.validates(config) or schedule.total_steps(config) is None else "there is no validation"


# trainer/ppo/core_algos.py: estimators that take neither gamma nor lam; reinforce_plus_plus takes gamma alone.
_NO_DISCOUNT = frozenset(
    {"grpo", "grpo_vectorized", "grpo_passk", "gdpo", "rloo", "rloo_vectorized", "opo", "remax", "gpg",
     "reinforce_plus_plus_baseline"}
)  # fmt: skip
_NO_LAMBDA = _NO_DISCOUNT | {"reinforce_plus_plus"}

_SWITCHES = frozenset({"critic.enable", "reward.reward_model.enable", "distillation.enabled",
                       "algorithm.filter_groups.enable"})  # fmt: skip
"""What opens the section it lies in."""

_RULES: Mapping[str, _Why] = {
    "critic.ppo_micro_batch_size_per_gpu": _needed(_critic, _static("critic.use_dynamic_bsz")),
    "critic.ppo_max_token_len_per_gpu": _needed(_critic, _dynamic("critic.use_dynamic_bsz")),
    "critic": _critic,
    "trainer.critic_warmup": _critic,
    "algorithm.lam": _gae,
    "algorithm.gamma": _discounts,
    "algorithm.norm_adv_by_std_in_grpo": _grpo_std,
    "algorithm.kl_ctrl.horizon": _adaptive,
    "algorithm.kl_ctrl.target_kl": _adaptive,
    "algorithm.kl_ctrl": _kl_reward,
    "algorithm.kl_penalty": _kl_reward,
    "algorithm.filter_groups": _filter,
    f"{_ACTOR}.kl_loss_coef": _kl_loss,
    f"{_ACTOR}.kl_loss_type": _kl_loss,
    f"{_ACTOR}.ppo_micro_batch_size_per_gpu": _static(f"{_ACTOR}.use_dynamic_bsz"),
    f"{_ACTOR}.ppo_max_token_len_per_gpu": _dynamic(f"{_ACTOR}.use_dynamic_bsz"),
    f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu": _static(f"{_ROLLOUT}.log_prob_use_dynamic_bsz"),
    f"{_ROLLOUT}.log_prob_max_token_len_per_gpu": _dynamic(f"{_ROLLOUT}.log_prob_use_dynamic_bsz"),
    f"{_ROLLOUT}.val_kwargs.temperature": _no_validation,
    f"{_ROLLOUT}.val_kwargs.top_p": _no_validation,
    f"{_ROLLOUT}.val_kwargs.top_k": _no_validation,
    f"{_REF}.log_prob_micro_batch_size_per_gpu": _needed(_reference, _static(f"{_REF}.log_prob_use_dynamic_bsz")),
    f"{_REF}.log_prob_max_token_len_per_gpu": _needed(_reference, _dynamic(f"{_REF}.log_prob_use_dynamic_bsz")),
    _REF: _reference,
    "reward.reward_model": _reward_model,
    "distillation": _distillation,
}
"""Longest keys first where one lies below another."""
