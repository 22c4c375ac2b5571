"""How much a config asks for: GPUs by pool, steps, passes over the model.

Guarantees: arithmetic on a bound config only; the same numbers that verl computes when it starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeper import environments, models
from sweeper.engines.base import Config, Shape, Workload
from sweeper.environments import rows
from sweeper.errors import Problem
from sweeper.models import facts
from sweeper.plan import memory

NOT_BOUND = "~/data/rlhf/gsm8k/train.parquet"
"""verl's default of data.train_files: what is left where no environment could be bound."""


def pools(config: Config) -> list[tuple[int, int]]:
    """(nodes, GPUs per node) of each pool that verl makes: trainer, then those of their own.

    verl/trainer/ppo/v1/trainer_base.py:818-846 (trainer, reward model, distillation teacher) and
    trainer_separate_async.py:395 (the rollout of `separate_async`).
    """
    trainer, rollout, reward = (
        config["trainer"],
        config["actor_rollout_ref"]["rollout"],
        config["reward"]["reward_model"],
    )
    found = [(trainer["nnodes"], trainer["n_gpus_per_node"])]
    if separate(config):
        found.append((rollout["nnodes"], rollout["n_gpus_per_node"]))
    if reward["enable_resource_pool"]:
        found.append((reward["nnodes"], reward["n_gpus_per_node"]))
    if config["distillation"]["enabled"]:
        found.append((config["distillation"]["nnodes"], config["distillation"]["n_gpus_per_node"]))
    return [(int(nodes or 0), int(per_node or 0)) for nodes, per_node in found]


def world(config: Config) -> int:
    """Ranks of the trainer."""
    return int(config["trainer"]["nnodes"]) * int(config["trainer"]["n_gpus_per_node"])


def separate(config: Config) -> bool:
    """Whether the rollout has GPUs of its own."""
    return bool(config["trainer"]["use_v1"]) and config["trainer"]["v1"]["trainer_mode"] == "separate_async"


def needs_reference(config: Config) -> bool:
    """verl/trainer/ppo/utils.py:75 need_reference_policy."""
    return bool(config["algorithm"]["use_kl_in_reward"] or config["actor_rollout_ref"]["actor"]["use_kl_loss"])


def needs_critic(config: Config) -> bool:
    """verl/trainer/ppo/utils.py:95 need_critic: `critic.enable`, or GAE where that is null."""
    enable = config["critic"]["enable"]
    return bool(enable) if enable is not None else config["algorithm"]["adv_estimator"] == "gae"


def files(value: Any) -> list[str]:
    """data.train_files or data.val_files as a list."""
    return [str(f) for f in value] if isinstance(value, list | tuple) else [str(value)] if value else []


def training_rows(config: Config) -> int | None:
    """Rows to train on before verl leaves out prompts that are too long; None where the file is not there yet and
    nothing tells."""
    names = files(config["data"]["train_files"])
    if names == [NOT_BOUND]:
        return None
    own = environments.resolve(config)
    total: int | None = None
    if names == [str(own.train)]:
        total = own.rows  # known without opening the file, which costs a quarter of a second of imports
    if total is None:
        paths = [Path(name).expanduser() for name in names]
        total = sum(rows.report(p).rows for p in paths) if names and all(p.is_file() for p in paths) else None
    most = int(config["data"]["train_max_samples"] or -1)  # verl/utils/dataset/rl_dataset.py: -1 is all
    return total if total is None or most < 0 else min(total, most)


def steps_per_epoch(config: Config) -> int | None:
    """Batches that verl's loader gives; the last, incomplete one is dropped (trainer_base.py, drop_last=True)."""
    count, batch = training_rows(config), int(config["data"]["train_batch_size"] or 0)
    return None if count is None or batch < 1 else count // batch


def total_steps(config: Config) -> int | None:
    """Steps that the loop takes: `total_training_steps` and the epochs both end it (trainer_base.py:467)."""
    trainer = config["trainer"]
    asked, per_epoch = trainer["total_training_steps"], steps_per_epoch(config)
    by_epochs = None if per_epoch is None else per_epoch * int(trainer["total_epochs"])
    known = [int(n) for n in (asked, by_epochs) if n is not None]
    return min(known) if known else None


def validates(config: Config) -> list[int]:
    """Steps with a validation score: every `test_freq`-th and the last, and the start where `val_before_train` is on
    (trainer_base.py:438, :491; ray_trainer.py:1438, :1727). Empty where the number of steps is not known.

    The start's is the resumed step's when an attempt resumes.
    """
    trainer = config["trainer"]
    total, every = total_steps(config) or 0, int(trainer["test_freq"])
    start = [0] if trainer["val_before_train"] and total else []
    return start + (_every(every, total) if every > 0 else [])


def saves(config: Config) -> list[int]:
    """Steps with a checkpoint: every `save_freq`-th and the last (trainer_base.py:481, ray_trainer.py:1704). The V0
    trainer does not save while only the critic is trained (`critic_warmup`, ray_trainer.py:1683)."""
    trainer = config["trainer"]
    total, every = total_steps(config) or 0, int(trainer["save_freq"])
    steps = _every(every, total) if every > 0 else []
    return [s for s in steps if trainer["use_v1"] or s >= int(trainer["critic_warmup"] or 0)]


def _every(step: int, total: int) -> list[int]:
    """Multiples up to the total, and the total."""
    return sorted({*range(step, total + 1, step), *([total] if total else [])})


def described(config: Config) -> tuple[facts.Architecture | None, list[Problem]]:
    """The facts of the model and what is wrong with its path; a model that we build need not be built yet."""
    folder = models.build_folder(config)
    if folder is not None and config["actor_rollout_ref"]["model"]["path"] == str(folder):
        return facts.Architecture.from_facts(config["model"]["arch"]), []
    return facts.describe(config)


def workload(config: Config, shape: Shape) -> Workload:
    """How much the config computes, and about how much memory that takes a GPU of the shape."""
    data, rollout = config["data"], config["actor_rollout_ref"]["rollout"]
    correction: Mapping[str, Any] = config["algorithm"].get("rollout_correction") or {}
    architecture, _ = described(config)
    ranks = int(config["trainer"]["nnodes"]) * int(config["trainer"]["n_gpus_per_node"])
    on_gpus = shape.device == "cuda"
    needed = memory.estimate(config, architecture, shape.gpu_memory_gib, ranks) if on_gpus else None
    return Workload(
        steps=total_steps(config) or 0,
        responses_per_step=int(data["train_batch_size"]) * int(rollout["n"]),
        max_prompt=int(data["max_prompt_length"]),
        max_response=int(data["max_response_length"]),
        # The old policy is not evaluated anew in bypass mode: the rollout's probabilities stand for it.
        forward_passes=int(not correction.get("bypass_mode")) + int(needs_reference(config)),
        critic=needs_critic(config),
        params=architecture.params if architecture else None,
        memory_gib=needed.total_gib if needed else None,
    )
