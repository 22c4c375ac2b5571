"""verl's metrics in the words shared by all engines.

Guarantees: pure functions of a line and the config; a text is left out, never guessed. A line is what verl's file
logger writes, `{"step": n, "data": {name: value}}` (verl/utils/tracking.py:543), by orjson, which writes NaN and the
infinities as null: a null is read as NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from sweeper.engines.base import Config, Progress

_CORE = re.compile(r"val-core/.+/(?P<variable>[^/]+)/mean@\d+")
"""`val-core/{data_source}/{variable}/mean@{n}` (verl/trainer/ppo/v1/trainer_base.py, `_val_metrics_update`): the mean
over the validation prompts of the mean over n answers. `best@n` and `maj@n` say something else."""


_OF_MACHINE = ("timing", "perf/", "perf_", "throughput")


def progress(line: Mapping[str, Any], config: Config) -> Progress | None:
    """One line of the metrics file; None when it carries no step."""
    step, data = line.get("step"), line.get("data")
    if not isinstance(step, int) or not isinstance(data, Mapping):
        return None
    numbers = {str(k): math.nan if v is None else float(v) for k, v in data.items() if v is None or _is_number(v)}
    tokens, seconds = numbers.get("perf/total_num_tokens"), numbers.get("perf/time_per_step")
    return Progress(
        step=step,
        metrics=numbers,
        # The score is what the reward function gave. `critic/rewards/mean` has the KL penalty taken off where
        # algorithm.use_kl_in_reward is set, so it cannot be compared between algorithms.
        reward=numbers.get("critic/score/mean", numbers.get("critic/rewards/mean")),
        score=_score(numbers, str((config.get("objective") or {}).get("metric", "auto"))),
        # verl's `perf/throughput` is this over the ranks of all its pools (trainer/ppo/metric_utils.py:655-688).
        tokens_per_s=tokens / seconds if tokens is not None and seconds else None,
        step_s=seconds,
        signals=signals(numbers, config),
    )


def of_machine(name: str) -> bool:
    """Whether a metric measures time, memory or throughput.

    verl's names (trainer/ppo/metric_utils.py `compute_timing_metrics` and `compute_throughout_metrics`; the workers'
    `perf/` ones, engine_workers.py): `timing_s/...`, `timing_per_token_ms/...`, `perf/...`, `actor/perf/...`, and the
    replay buffer's and the agent loops' own timings, which have `timing` in their names.
    """
    return any(part in name for part in _OF_MACHINE)


def signals(numbers: Mapping[str, float], config: Config) -> dict[str, float]:
    """What health rules read (engines/base.py Progress.signals), those that the line has. NaN stays NaN.

    `kl` is verl's estimate of KL(policy before the update || policy now) by the mean of the log-ratio over all updates
    of the step: it may be a little below 0 (trainer/ppo/core_algos.py:1346). `kl_ref` is the KL to the reference, which
    verl writes for the gates that are open: `actor/reward_kl_penalty` of the policy before the step, `actor/kl_loss` of
    the one that is being updated, by the estimator of `algorithm.kl_penalty` and `kl_loss_type`. `mismatch` is there
    only where rollout.calculate_log_probs is on (utils/debug/metrics.py calculate_debug_metrics), or the rollout
    correction.
    """
    found = {name: numbers[key] for name, key in _SIGNALS.items() if key in numbers}
    if (entropy := _a_token(numbers.get("actor/entropy"), numbers, config)) is not None:
        found["entropy"] = entropy
    # A mean over tokens whatever the loss is (trainer/ppo/ray_trainer.py:107), and one that follows the loss.
    in_reward, in_loss = numbers.get("actor/reward_kl_penalty"), numbers.get("actor/kl_loss")
    drifts = [d for d in (in_reward, _a_token(in_loss, numbers, config)) if d is not None]
    if drifts:
        found["kl_ref"] = max(drifts, key=lambda d: math.inf if math.isnan(d) else d)
    if "critic/score/max" in numbers and "critic/score/min" in numbers:
        found["reward_spread"] = numbers["critic/score/max"] - numbers["critic/score/min"]
    if numbers.get(_USUAL) and _SLOWEST in numbers:
        found["straggler"] = numbers[_SLOWEST] / numbers[_USUAL]
    if numbers.get(_MOST_TOKENS) and _MEAN_TOKENS in numbers:
        found["imbalance"] = 1 - numbers[_MEAN_TOKENS] / numbers[_MOST_TOKENS]
    return found


_SIGNALS = {
    "loss": "actor/pg_loss",
    "grad_norm": "actor/grad_norm",
    "kl": "actor/ppo_kl",
    "saturated": "response_length/clip_ratio",
    "mismatch": "training/rollout_probs_diff_mean",
    "rollout_s": "timing_s/gen",
    "response_tokens": "response_length/mean",
}
_SLOWEST, _USUAL = (f"timing_s/agent_loop/generate_sequences/{at}" for at in ("max", "mean"))
"""experimental/agent_loop/agent_loop.py:1273; the V1 trainer does not write them."""
_MOST_TOKENS, _MEAN_TOKENS = "global_seqlen/balanced_max", "global_seqlen/mean"
"""Tokens of the ranks after verl has balanced them (utils/seqlen_balancing.py, log_seqlen_unbalance)."""


def _a_token(value: float | None, numbers: Mapping[str, float], config: Config) -> float | None:
    """Entropy or KL in nats a token. verl aggregates both as it does the loss (core_algos.py:1140 agg_loss), so a sum
    over a response is brought back to its mean length here."""
    if value is None:
        return None
    actor = ((config.get("actor_rollout_ref") or {}).get("actor")) or {}
    tokens = numbers.get("response_length/mean")
    match str(actor.get("loss_agg_mode", "token-mean")):
        case "token-mean" | "seq-mean-token-mean":
            return value
        case "seq-mean-token-sum":
            return value / tokens if tokens else None
        case "seq-mean-token-sum-norm":
            # Without a factor verl divides by the batch's longest response.
            norm = actor.get("loss_scale_factor") or numbers.get("response_length/max")
            return value * float(norm) / tokens if norm and tokens else None
        case _:  # token-sum: over a number of tokens that the line does not have
            return None


def _score(numbers: Mapping[str, float], metric: str) -> float | None:
    """The objective's value; `auto` is the first accuracy of the core validation metrics, else the first reward.

    verl itself calls `acc` the core variable where the reward function gives one, and `reward` otherwise
    (trainer_base.py, `core_var`). First is meant by name, so that it does not depend on the order of the rows.
    """
    if metric != "auto":
        return numbers.get(metric)
    found = {(m["variable"], name) for name in numbers if (m := _CORE.fullmatch(name))}
    for wanted in ("acc", "reward"):
        names = sorted(name for variable, name in found if variable == wanted)
        if names:
            return numbers[names[0]]
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
