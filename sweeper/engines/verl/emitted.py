"""The names of the metrics that verl 0.9.1 will write for a config, known before it runs.

Guarantees: what is listed is written by every run of that config (tests compare it with what real runs wrote); what
only some runs write (speculative decoding, profiling, a filter's counts) is not listed. `*` stands for what the config
does not tell: a stage of the step, a data source or a reward's own values that only the data or the reward knows.

Read in trainer/ppo/metric_utils.py (data, timing, throughput, validation), trainer/ppo/v1/trainer_base.py and
trainer/ppo/ray_trainer.py (V0), workers/engine_workers.py:190 (what a worker adds), workers/utils/losses.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sweeper import environments
from sweeper.engines.base import Config
from sweeper.engines.verl import schedule
from sweeper.environments import arithmetic, gsm8k, rows

_STATISTICS = ("mean", "max", "min")
_CLIPPED = ("actor/ppo_kl", "actor/pg_clipfrac")
_OF_LOSS = {
    **dict.fromkeys(
        ("vanilla", "dppo_tv", "dppo_kl", "gspo", "sapo", "geo_mean", "cispo"), (*_CLIPPED, "actor/pg_clipfrac_lower")
    ),
    "clip_cov": _CLIPPED,
    "kl_cov": ("actor/ppo_kl",),
    "dro": ("actor/ppo_kl",),
    "gpg": (),
}
"""What each policy loss adds (trainer/ppo/core_algos.py, `pg_metrics`); that of a loss not named here is not known."""
_OF_WORKER = ("loss", "grad_norm", "lr", *(f"perf/{m}_gb" for m in (
    "max_memory_allocated", "max_memory_reserved", "cpu_memory_used")))  # fmt: skip


def names(config: Config) -> list[str]:
    """Sorted names; see `Engine.emits`."""
    return sorted({*_training(config), *_validation(config)})


def _training(config: Config) -> Iterator[str]:
    actor, algorithm, v1 = config["actor_rollout_ref"]["actor"], config["algorithm"], bool(config["trainer"]["use_v1"])
    correction = algorithm.get("rollout_correction")
    bypass = bool((correction or {}).get("bypass_mode"))
    sampled = bool(config["actor_rollout_ref"]["rollout"]["calculate_log_probs"])
    yield from ("training/global_step", "training/epoch")
    yield from ("perf/total_num_tokens", "perf/time_per_step", "perf/throughput", "perf/mfu/actor")
    yield from ("timing_s/*", "timing_per_token_ms/*", "response/aborted_ratio")
    yield from _each("critic", ("score", "rewards", "advantages", "returns"))
    for length in ("response_length", "response_length_non_aborted", "prompt_length"):
        yield from (*_each(length), f"{length}/clip_ratio")
    yield from _each("num_turns")
    yield from (f"actor/{name}" for name in ("pg_loss", *_OF_WORKER))
    yield from _OF_LOSS.get(str(actor["policy_loss"]["loss_mode"]), ())
    if not bypass:
        yield "actor/entropy"
    if actor["calculate_entropy"] or actor["entropy_coeff"]:
        yield "actor/entropy_loss"
    if actor["use_kl_loss"]:
        yield from ("actor/kl_loss", "actor/kl_coef")
    if algorithm["use_kl_in_reward"]:
        yield from ("actor/reward_kl_penalty", "actor/reward_kl_penalty_coeff")
    if sampled and not bypass:
        yield from (f"training/rollout_probs_diff_{name}" for name in ("valid", "max", "mean", "std"))
        yield "training/rollout_actor_probs_pearson_corr"
        if correction is not None:
            yield "rollout_corr/*"
    if schedule.needs_critic(config):
        yield from _each("critic", ("values",))
        yield from ("critic/vf_explained_var", "critic/vf_loss", "critic/vf_clipfrac", "critic/vpred_mean")
        yield from ("perf/mfu/critic", *(f"critic/{name}" for name in _OF_WORKER))
    if config["trainer"]["balance_batch"]:
        seqlen = ("min", "max", "minmax_diff", "balanced_min", "balanced_max", "mean")
        yield from (f"global_seqlen/{name}" for name in seqlen)
    if v1:
        yield from _each("training", ("num_turns",))
        off_policy = ("trajectory_spans", "trajectory_staleness", "trajectory_staleness_worst")
        yield from _each("training/off_policy", off_policy)
    elif not bypass:
        yield "perf/mfu/actor_infer"


def _each(section: str, values: tuple[str, ...] = ()) -> Iterator[str]:
    for at in [f"{section}/{value}" for value in values] or [section]:
        yield from (f"{at}/{statistic}" for statistic in _STATISTICS)


def _validation(config: Config) -> Iterator[str]:
    """`val-core/{source}/{variable}/{statistic}` for the variable that counts, `acc` where the reward gives one, and
    `val-aux` for the others (trainer_base.py:1342, metric_utils.py:891 process_validation_metrics)."""
    if not schedule.validates(config):
        return
    n = int(config["actor_rollout_ref"]["rollout"]["val_kwargs"]["n"])
    sources, variables = _sources(config), _variables(config)
    core = "acc" if variables is None or "acc" in variables else "reward"
    for source in sources:
        if variables is None:  # the reward is the user's
            yield from (f"val-core/{source}/*/mean@{n}", f"val-aux/{source}/*/mean@{n}")
            continue
        for variable in (*variables, *(["acc_success_only"] if config["trainer"]["use_v1"] else [])):
            for statistic, counts in _statistics(n):
                section = "val-core" if counts and variable == core else "val-aux"
                yield f"{section}/{source}/{variable}/{statistic}"
    yield from _each("val-aux/num_turns")


def _statistics(n: int) -> Iterator[tuple[str, bool]]:
    """The statistics over n answers to a prompt, and whether they count as core ones."""
    yield f"mean@{n}", True
    if n == 1:
        return
    yield f"std@{n}", False
    sizes = [2**i for i in range(1, n.bit_length()) if 2**i < n] + [n]
    for size in sizes:
        for end in ("mean", "std"):
            yield f"best@{size}/{end}", size == n
            yield f"worst@{size}/{end}", False


def _own(config: Config) -> bool:
    """Whether the validation rows are the environment's, not the user's."""
    if environments.check(config):
        return False
    return bool(schedule.files(config["data"]["val_files"]) == [str(environments.resolve(config).val)])


def _sources(config: Config) -> list[str]:
    """The data sources of the validation rows."""
    environment: dict[str, Any] = config["environment"]
    if _own(config):
        match environment["kind"]:
            case "arithmetic":
                return [arithmetic.DATA_SOURCE]
            case "gsm8k":
                return [gsm8k.DATA_SOURCE]
            case "reasoning_gym":
                return [f"reasoning_gym/{environment['task']}"]
    files = [Path(name).expanduser() for name in schedule.files(config["data"]["val_files"])]
    found = {source for file in files if file.is_file() for source in rows.report(file).sources}
    return sorted(found) or ["*"]


def _variables(config: Config) -> tuple[str, ...] | None:
    """What the reward gives for an answer; None where it is the user's own.

    A bare number is called `acc` (experimental/reward_loop/reward_manager/naive.py), beside `reward`.
    """
    reward = config["reward"]["custom_reward_function"]["path"]
    if not _own(config):
        return None
    files = environments.resolve(config)
    if reward and str(files.reward) != str(reward):
        return None
    match config["environment"]["kind"]:
        case "arithmetic" | "reasoning_gym":
            return ("reward", "score", "acc")
        case "gsm8k" if not reward:
            return ("reward", "acc")
    return None
