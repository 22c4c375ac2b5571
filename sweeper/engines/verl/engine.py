"""verl as an engine: a trial's config made ready for it, checked, run and read.

Guarantees: those of sweeper/engines/base.py. Binding and checking a trial takes a few milliseconds: what depends on
files is looked at once, however many trials share them.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sweeper import environments, models
from sweeper.engines.base import AttemptPaths, Config, Failure, Gang, Job, Knob, Progress, Saved, Shape, Sound, Workload
from sweeper.engines.verl import (
    candidates,
    checkpoints,
    deterministic,
    emitted,
    failures,
    job,
    kinds,
    metrics,
    names,
    reliefs,
    remedies,
    rules,
    schedule,
    stacks,
    unused,
)
from sweeper.engines.verl.cpu import VLLM, VLLM_PYTHON, overlay
from sweeper.errors import Problem
from sweeper.trial.identity import is_placement


class VerlEngine:
    """verl 0.9.1; see `Engine` for what each method promises."""

    name = "verl"
    steps_key = "trainer.total_training_steps"
    validation_key = "trainer.test_freq"
    saving_key = "trainer.save_freq"

    def bind(self, config: Config, explicit: Mapping[str, Any], shape: Shape) -> list[Problem]:
        """Write our names, the cluster, the model and the data into verl's keys, in place."""
        typed = {key.lstrip("+~"): value for key, value in explicit.items()}
        if broken := kinds.sections(config):
            return broken  # there is nothing to write into
        if shape.device == "cpu":
            _lay_cpu(config, typed)
        deterministic.bind(config, typed, shape)
        problems = names.bind(config, typed)  # after the overlay, whose defaults give way to a typed `tp`
        if names.TP in typed and config.get("tp") is None:
            config["tp"] = typed[names.TP]  # so that it is known to be the user's choice
        problems += _bind_clip(config, typed)
        _bind_cluster(config, typed, shape)
        _bind_keep(config, typed)
        _bind_paths(config)
        _bind_model(config)
        _bind_data(config, typed)
        _bind_logger(config, typed)
        if "trainer.project_name" not in typed:
            config["trainer"]["project_name"] = config["project"]
        return problems

    def check(self, config: Config, shape: Shape) -> list[Problem]:
        """Every reason why verl could not run this here."""
        return [*rules.check(config, shape), *deterministic.check(config, shape)]

    def gang(self, config: Config) -> Gang:
        """The nodes and ranks that verl asks Ray for."""
        return job.gang(config)

    def workload(self, config: Config, shape: Shape) -> Workload:
        """How much the config asks verl to compute."""
        return schedule.workload(config, shape)

    def job(self, config: Config, paths: AttemptPaths) -> Job:
        """`python -m verl.trainer.main_ppo` on a complete config file."""
        return job.make(config, paths)

    def progress(self, line: Mapping[str, Any], config: Config) -> Progress | None:
        """A line of verl's file logger."""
        return metrics.progress(line, config)

    def exact(self, config: Mapping[str, Any]) -> bool:
        """Whether `deterministic` holds."""
        return deterministic.promised(config)

    def of_machine(self, metric: str) -> bool:
        """verl's timings, throughput and memory."""
        return metrics.of_machine(metric)

    def failure(self, log: str, reason: str, code: int | None, detail: str) -> Failure:
        """Kind, signature and the lines that say why, without Ray's wrapping."""
        return failures.classify(log, reason, code, detail)

    def hung_at(self, log: str) -> list[str]:
        """Where verl's processes were when their stacks were written."""
        return stacks.hung_at(log)

    def remedies(self, cause: str, config: Mapping[str, Any]) -> list[str]:
        """verl's own keys against a cause."""
        return remedies.of(cause, config)

    def relieve(self, config: Config, times: int) -> tuple[Config, str] | None:
        """Smaller micro-batches, then recomputing, then offloading, then less memory for the rollout."""
        return reliefs.relieve(config, times)

    def knobs(self, config: Config) -> dict[str, float]:
        """From the keys that verl reads."""
        return names.knobs(config)

    def emits(self, config: Config) -> list[str]:
        """Metrics that verl's file logger will write."""
        return emitted.names(config)

    def validates(self, config: Config) -> list[int]:
        """Steps after which verl validates."""
        return schedule.validates(config)

    def saves(self, config: Config) -> list[int]:
        """Steps after which verl saves."""
        return schedule.saves(config)

    def idle(self, config: Config, key: str) -> str:
        """Why verl does not read that key in this config."""
        return unused.why(config, key)

    def forkable(self, key: str) -> bool:
        """Not another model, algorithm, data or training engine: those are what a checkpoint is of."""
        return key not in checkpoints.GROUPS and not is_placement(key, checkpoints.FIXED)

    def checkpoint(self, folder: Path, step: int | None = None) -> Saved | None:
        """The newest `global_step_<n>` that verl can load, or that of the step."""
        return checkpoints.newest(folder, step)

    def sound(self, folder: Path, step: int | None = None) -> Sound:
        """The newest `global_step_<n>` whose content is that of its manifest."""
        return checkpoints.sound(folder, step)

    def kept(self, folder: Path) -> list[Saved]:
        """Every `global_step_<n>` that verl can load."""
        return checkpoints.kept(folder)

    def leftovers(self, folder: Path) -> list[tuple[Path, str]]:
        """Folders whose weights verl has deleted, and what adoptions left."""
        return checkpoints.leftovers(folder)

    def adopt(self, saved: Saved, folder: Path) -> None:
        """Another trial's `global_step_<n>` as this one's newest."""
        checkpoints.adopt(saved, folder)

    def placements(self, config: Config, shape: Shape, typed: Collection[str] = ()) -> list[Knob]:
        """The rollout's tensor parallelism, micro-batches, offloading, the rollout's share of the memory."""
        return candidates.placements(config, shape, typed)


def _lay_cpu(config: Config, typed: Mapping[str, Any]) -> None:
    """Set what a CPU run needs, except where the user typed the key, a part of it or what holds it."""
    engine = config["engine"]
    rollout = engine.get("rollout")
    if rollout == VLLM and not engine.get("python"):
        engine["python"] = str(VLLM_PYTHON)
    for path, value in _cpu_values(rollout):
        key = ".".join(path)
        if any(key == t or key.startswith(f"{t}.") or t.startswith(f"{key}.") for t in typed):
            continue
        at = config
        for part in path[:-1]:
            if not isinstance(at.get(part), dict):
                at[part] = {}
            at = at[part]
        at[path[-1]] = copy.copy(value)


@cache
def _cpu_values(rollout: str | None) -> tuple[tuple[tuple[str, ...], Any], ...]:
    """Read once: parsing the file takes longer than all the rest of binding."""
    return tuple(_leaves(overlay(rollout)))


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _bind_cluster(config: Config, typed: Mapping[str, Any], shape: Shape) -> None:
    """All of the cluster's GPUs, or one rank on a CPU, where several trials then run side by side."""
    trainer, asked = config["trainer"], config["cluster"].get("gpus_per_node")
    per_node = asked or (shape.gpus_per_node if shape.device == "cuda" else 1)
    if "trainer.nnodes" not in typed:
        trainer["nnodes"] = int(config["cluster"].get("nodes") or shape.nodes)
    if "trainer.n_gpus_per_node" not in typed:
        trainer["n_gpus_per_node"] = int(per_node)
    # verl derives the rollout's from the trainer's (rollout.yaml); ours may have been null when it was resolved.
    rollout = config["actor_rollout_ref"]["rollout"]
    if "actor_rollout_ref.rollout.n_gpus_per_node" not in typed:
        rollout["n_gpus_per_node"] = trainer["n_gpus_per_node"]


def _bind_keep(config: Config, typed: Mapping[str, Any]) -> None:
    """verl deletes all but the newest of each model's checkpoints while it trains. With one kept it deletes the old
    policy before the new critic is whole (trainer_base.py:948), so that a kill would leave nothing: never fewer than
    two here. What was typed under verl's name is what the sweep keeps too."""
    keep, trainer = config["keep"], config["trainer"]
    names = ("max_actor_ckpt_to_keep", "max_critic_ckpt_to_keep")
    asked = [trainer[name] for name in names if f"trainer.{name}" in typed]
    if asked and "keep.last" not in typed:
        keep["last"] = None if None in asked else max(asked)
    for name in names:
        if f"trainer.{name}" not in typed:
            trainer[name] = None if keep["last"] is None else max(2, int(keep["last"]))


def _bind_paths(config: Config) -> None:
    """Paths as the user meant them: from the folder they typed them in, which is not the attempt's."""
    data = config["data"]
    for key in ("train_files", "val_files"):
        value = data[key]
        data[key] = [_absolute(v) for v in value] if isinstance(value, list) else _absolute(value)
    for at in (
        config["reward"]["custom_reward_function"],
        config["actor_rollout_ref"]["model"],
        config["critic"]["model"],
    ):
        at["path"] = _absolute(at["path"])


def _absolute(value: Any) -> Any:
    """A path that is there from here, in full; anything else (an id of a hub, an address, what is missing) as it is."""
    if not isinstance(value, str) or "://" in value or not value:
        return value
    path = Path(value).expanduser()
    return str(path.absolute()) if not path.is_absolute() and path.exists() else value


def _bind_clip(config: Config, typed: Mapping[str, Any]) -> list[Problem]:
    """A typed clip_ratio is the range: verl reads clip_ratio_low and _high wherever they are set
    (trainer/ppo/core_algos.py:1321), and our algorithms set both."""
    actor, at = config["actor_rollout_ref"]["actor"], "actor_rollout_ref.actor.clip_ratio"
    if at not in typed or f"{at}_low" in typed or f"{at}_high" in typed:
        return []
    if actor["clip_ratio_low"] != actor["clip_ratio_high"]:
        return [
            Problem(
                f"{at}={typed[at]} would do nothing: this algorithm clips from {actor['clip_ratio_low']} below to "
                f"{actor['clip_ratio_high']} above",
                valid=f"{at}_low and {at}_high",
                fix=f"{at}_low=... {at}_high=...",
                key=at,
                source="verl/trainer/ppo/core_algos.py:1321",
            )
        ]
    actor["clip_ratio_low"] = actor["clip_ratio_high"] = typed[at]
    return []


def _bind_model(config: Config) -> None:
    """A model that we build is known by its folder in the cache; the critic starts from the policy's."""
    if config["actor_rollout_ref"]["model"]["path"]:
        return
    folder = models.build_folder(config)
    if folder is None:
        return  # named by the rules
    config["actor_rollout_ref"]["model"]["path"] = str(folder)
    if not config["critic"]["model"]["path"]:
        config["critic"]["model"]["path"] = str(folder)


def _bind_data(config: Config, typed: Mapping[str, Any]) -> None:
    """The environment's files and reward; the user's own where data.train_files was typed.

    Where the environment is wrong verl's default stays, and the rules name what is wrong, beside all else.
    """
    if "data.train_files" in typed or environments.check(config):
        return
    files = environments.resolve(config)
    data, reward = config["data"], config["reward"]["custom_reward_function"]
    data["train_files"] = str(files.train)
    if "data.val_files" not in typed:
        data["val_files"] = str(files.val)
    if files.reward and not any(t.startswith(("reward.custom_reward", "custom_reward")) for t in typed):
        reward["path"], reward["name"] = str(files.reward), files.reward_name


def _bind_logger(config: Config, typed: Mapping[str, Any]) -> None:
    """The console and the file that we follow, beside what the user asked for; MLflow is written by the sweep alone,
    since verl's own loses what it wrote when a run is resumed (docs/configuration.md)."""
    asked = config["trainer"]["logger"] if "trainer.logger" in typed else []
    asked = [asked] if isinstance(asked, str) else list(asked or [])
    config["trainer"]["logger"] = [*dict.fromkeys(["console", "file", *(a for a in asked if a != "mlflow")])]
