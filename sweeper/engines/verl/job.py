"""A trial's config as something a cluster can run: verl's own entry point on a complete, resolved config file.

Guarantees: the file holds every key that verl reads, so that no default can drift between planning and running; nothing
that is written holds a secret; the trial can be run by hand from what is written, without this project's orchestrator.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from sweeper.checkpoints import manifest
from sweeper.config import tree
from sweeper.config.interpolation import Graph, related
from sweeper.engines.base import AttemptPaths, Config, Gang, Job
from sweeper.engines.verl import checkpoints, ending, preload, resume, saved, schedule
from sweeper.engines.verl.base_config import load
from sweeper.engines.verl.cpu import environment as cpu_environment
from sweeper.trial.identity import OURS

CONFIG, METRICS, SCRIPT = "trainer.yaml", "metrics.jsonl", "command.sh"
PLUGINS, RESUME, SAVED, MANIFEST = "plugins", "sweeper_resume", "sweeper_saved", "sweeper_manifest"
ENDING = "sweeper_ending"
"""A folder in the attempt's, on the trainer's search path, and the modules in it (see resume.py and saved.py)."""

MODEL_ENGINE = {"megatron": "megatron", "veomni": "veomni", "torchtitan": "torchtitan"}
"""`actor.strategy` -> verl's `model_engine`; every other strategy is of `dp`."""

_RAY_CPUS_PER_RANK = 3
"""verl/single_controller/ray/base.py:192: a bundle asks for `max_colocate_count` CPUs beside its GPU."""
_RAY_CPUS_BESIDE = 8
"""The task runner, TransferQueue's controller and others, each one CPU while it is scheduled."""

# What ray.init refuses when it connects to a cluster that runs already, as the attempt's does.
_OF_RAYS_OWN_START = ("num_cpus", "num_gpus", "object_store_memory", "resources", "labels", "_temp_dir")


def gang(config: Config) -> Gang:
    """The nodes and ranks that the config asks for: the trainer's pool, and pools of their own where there are any.

    Pools of one node each may share a node as far as it has room (verl packs each pool's bundles of a node together,
    single_controller/ray/base.py:160, STRICT_PACK).
    """
    pools = schedule.pools(config)
    room = max(int(config["cluster"].get("gpus_per_node") or 0), *(per_node for _, per_node in pools))
    nodes: list[int] = []
    for ranks in sorted((per_node for count, per_node in pools for _ in range(count)), reverse=True):
        place = next((i for i, used in enumerate(nodes) if used + ranks <= room), None)
        if place is None:
            nodes.append(ranks)
        else:
            nodes[place] += ranks
    per_node = max(nodes, default=1)
    return Gang(nodes=max(len(nodes), 1), gpus_per_node=per_node, cpus_per_node=per_node)


def make(config: Config, paths: AttemptPaths) -> Job:
    """The job of one attempt."""
    python = interpreter(config)
    needed = gang(config)
    trainer = trainer_config(config, paths)
    ray = config["ray_kwargs"]["ray_init"]
    argv = (python, "-m", "verl.trainer.main_ppo", f"--config-path={paths.folder}", "--config-name=trainer")
    env = environment(config, paths)
    inherit = tuple(config["engine"].get("inherit") or ())
    modules = _preloaded(config)
    return Job(
        argv=argv,
        env=env,
        inherit=inherit,
        files={
            CONFIG: to_yaml(trainer),
            SCRIPT: script(config, trainer, env, inherit, needed, paths.folder),
            **{f"{PLUGINS}/{name}.py": text for name, text in plugins().items()},
        },
        gang=needed,
        python=python,
        metrics=METRICS,
        total_steps=schedule.total_steps(config) or 0,
        ray_cpus_per_node=int(ray.get("num_cpus") or _ray_cpus(config, needed)),
        object_store_bytes=int(ray.get("object_store_memory") or _object_store(config)),
        preload=modules,
        image=config["engine"].get("image"),
        fork_argv=preload.FORK_ARGV if modules else (),
    )


def _preloaded(config: Config) -> tuple[str, ...]:
    """What the fork server imports; nothing where it is switched off or the user starts Ray's workers another way."""
    if (
        not config["engine"].get("fork_server", True)
        or config["ray_kwargs"]["ray_init"]["runtime_env"]["py_executable"]
    ):
        return ()
    architecture, _ = schedule.described(config)
    return preload.modules(architecture.model_type if architecture else "")


def interpreter(config: Config) -> str:
    """The engine's Python: the one that runs us unless the config names another."""
    return str(config["engine"].get("python") or sys.executable)


def trainer_config(config: Config, paths: AttemptPaths) -> Config:
    """verl's own keys alone, with those that tie a run to its records (docs/configuration.md)."""
    made: Config = {key: value for key, value in config.items() if key not in OURS}
    ray = config["ray_kwargs"]
    init = {k: v for k, v in ray["ray_init"].items() if k not in _OF_RAYS_OWN_START}
    made["ray_kwargs"] = {**ray, "ray_init": {**init, "num_cpus": None}}
    made["trainer"] = {
        **config["trainer"],
        "default_local_dir": str(paths.checkpoints),
        "experiment_name": _experiment(paths.folder),
        "checkpoint_callback_class": f"{SAVED}.{saved.Callback.__name__}",
        **_resumes(config, paths),
    }
    return made


def _experiment(folder: Path) -> str:
    """`{sweep}/{trial}` as one word, from {sweep}/trials/{trial}/attempt-{k}."""
    parts = folder.parts
    return "-".join(parts[i] for i in (-4, -2) if len(parts) >= -i)


def _resumes(config: Config, paths: AttemptPaths) -> dict[str, Any]:
    """Where the attempt goes on: at the trial's newest whole checkpoint; else where the user said; else at the start.

    The path is spelled out, since verl's `auto` follows its own note of the last step, which a full disk or a power
    cut may leave empty or pointing at a torn checkpoint.
    """
    if own := checkpoints.newest(paths.checkpoints):
        return {"resume_mode": "resume_path", "resume_from_path": str(own.path)}
    if config["trainer"]["resume_mode"] == "resume_path":
        return {}
    return {"resume_mode": "disable" if checkpoints.torn(paths.checkpoints) else "auto"}


@lru_cache
def plugins() -> dict[str, str]:
    """The modules that an attempt's folder holds for verl, by name: a resumed run trains at its config's rates, a
    checkpoint has a manifest, and there is one before the time is over."""
    files = {RESUME: resume.__file__, SAVED: saved.__file__, MANIFEST: manifest.__file__, ENDING: ending.__file__}
    texts = {name: Path(file).read_text(encoding="utf-8") for name, file in files.items()}
    return {name: text if name == MANIFEST else f"{text}\n\ninstall()\n" for name, text in texts.items()}


def environment(config: Config, paths: AttemptPaths) -> dict[str, str]:
    """Variables of every process of the attempt."""
    on_cpu = config["trainer"]["device"] == "cpu"
    env = {
        "VERL_FILE_LOGGER_PATH": str(paths.folder / METRICS),
        "PYTHONUNBUFFERED": "1",  # the log is followed while it is written
        "HYDRA_FULL_ERROR": "1",  # else Hydra hides the frames that say why
        "RAY_DEDUP_LOGS": "0",  # else lines of a traceback that two ranks share are left out of it
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if on_cpu:
        env |= cpu_environment()
    if Path(str(config["actor_rollout_ref"]["model"]["path"])).is_absolute() and not _reads_hub(config):
        env["HF_HUB_OFFLINE"] = "1"  # transformers asks the hub even for a folder; without a network it waits
    root = _checkout(interpreter(config)) if on_cpu else None
    asked = {str(k): str(v) for k, v in (config["engine"].get("env") or {}).items() if v is not None}
    # Both are lists: what the user has in them is loaded beside ours.
    ours = [str(paths.folder / PLUGINS), *([root] if root else [])]
    asked["PYTHONPATH"] = ":".join([*ours, *filter(None, [asked.get("PYTHONPATH")])])
    if theirs := config["trainer"].get("checkpoint_callback_class"):
        env[saved.THEIRS] = str(theirs)
    hooks = [RESUME, ENDING, *([] if config["trainer"]["use_v1"] else [SAVED])]  # V1 loads it itself, as its callback
    modules = [env.get("VERL_USE_EXTERNAL_MODULES"), *hooks, asked.get("VERL_USE_EXTERNAL_MODULES")]
    asked["VERL_USE_EXTERNAL_MODULES"] = ",".join(filter(None, modules))
    return env | asked


def _reads_hub(config: Config) -> bool:
    """Whether something beside the policy is loaded that may come from the hub."""
    return bool(config["reward"]["reward_model"]["enable"] or config["distillation"]["enabled"])


def _checkout(python: str) -> str | None:
    """The folder to put on the search path so that verl loads our CPU plug-in, and that of this very code: another
    checkout may be the one that is installed. None where this code is what the interpreter has installed."""
    here = Path(__file__).resolve().parents[3]
    installed = {"site-packages", "dist-packages"} & set(here.parts)
    return None if installed and python == sys.executable else str(here)


def _ray_cpus(config: Config, needed: Gang) -> int:
    """Logical CPUs for all that verl schedules on one node; more than there are, since most of them wait."""
    beside = int(config["actor_rollout_ref"]["rollout"]["agent"]["num_workers"]) + int(config["reward"]["num_workers"])
    storage = (config["transfer_queue"].get("backend") or {}).get("SimpleStorage") or {}
    beside += int(storage.get("num_data_storage_units") or 0)
    return max(16, _RAY_CPUS_PER_RANK * needed.gpus_per_node + beside + _RAY_CPUS_BESIDE)


def _object_store(config: Config) -> int:
    """Bytes for Ray's object store: the batch passes through it, and it is shared memory that is taken at once."""
    data, rollout = config["data"], config["actor_rollout_ref"]["rollout"]
    tokens = int(data["train_batch_size"]) * int(rollout["n"])
    tokens *= int(data["max_prompt_length"]) + int(data["max_response_length"])
    # Some twenty values of 8 bytes a token (ids, masks, log-probs, values, advantages), in flight twice.
    return max(200_000_000, min(tokens * 8 * 20 * 2, 64_000_000_000))


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # C where PyYAML has it: 20 ms
    def ignore_aliases(self, _data: Any) -> bool:
        """No `&id001`: the file is read by people, and OmegaConf would share what must not be shared."""
        return True


def to_yaml(trainer: Config) -> str:
    """The config file that verl's Hydra reads, without a log file of Hydra's own."""
    hydra = {"run": {"dir": "."}, "output_subdir": None}
    header = {"defaults": ["_self_", {"override hydra/job_logging": "stdout"}], "hydra": hydra}
    return str(yaml.dump({**header, **trainer}, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True))


@lru_cache
def _known(option: str) -> tuple[dict[str, Any], tuple[str, ...], frozenset[str]]:
    """verl's defaults by key, the keys among them that are derived from others, and the keys that these read."""
    reads = Graph(load(option)).reads
    known = dict(tree.values(load(option)))
    derived = tuple(k for k, v in known.items() if isinstance(v, str) and "${" in v)
    return known, derived, frozenset(key for keys in reads.values() for key in keys)


@lru_cache(maxsize=8192)
def _is_read(option: str, key: str) -> bool:
    return any(related(key, other) for other in _known(option)[2])


_NAME = "trainer.experiment_name"
_STANDS_FOR = "<experiment>"
"""For that name, which is another in every trial, while what is derived from it is worked out once for all."""


def _named(value: Any, name: str) -> Any:
    return value.replace(_STANDS_FOR, name) if isinstance(value, str) else value


@lru_cache(maxsize=64)
def _derived(option: str, given: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """verl's config where those keys have those values (as JSON), by key. Resolving takes a third of a second, and the
    trials of a sweep hardly ever differ in what others are derived from."""
    follows: Any = OmegaConf.create(load(option))
    for key, value in given:
        OmegaConf.update(follows, key, json.loads(value), force_add=True)
    resolved: Any = OmegaConf.to_container(follows, resolve=True, throw_on_missing=False)
    return dict(tree.values(resolved))


def overrides(trainer: Config) -> list[str]:
    """What differs from verl's defaults, as the override lines that a verl user would type.

    A default that is derived from another key is taken as derived from this config's: `rollout.prompt_length` does not
    differ where `data.max_prompt_length` does.
    """
    option = MODEL_ENGINE.get(trainer["actor_rollout_ref"]["actor"]["strategy"], "dp")
    known, derived, _ = _known(option)
    below = tuple(f"{d}." for d in derived)
    values = list(tree.values(trainer))
    own = [(k, v) for k, v in values if k not in derived and not k.startswith(below)]
    given = ((k, _STANDS_FOR if k == _NAME else v) for k, v in own if _is_read(option, k))
    defaults = _derived(option, tuple((k, json.dumps(v)) for k, v in given))
    differ = [(k, v) for k, v in own if k in known and known[k] != v]
    name = str(trainer["trainer"]["experiment_name"])
    differ += [(k, v) for k, v in values if k in derived and k in defaults and _named(defaults[k], name) != v]
    added = [(k, v) for k, v in own if k not in known]
    return [f"{k}={_value(v)}" for k, v in sorted(differ)] + [f"+{k}={_value(v)}" for k, v in added]


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(_value(v) for v in value) + "]"
    return str(value) if value != {} else "{}"


def _beside_script(value: str, folder: Path) -> str:
    """The value for a shell; the attempt's folder, where it begins with it, as where the script lies."""
    beside = value.removeprefix(str(folder))
    return shlex.quote(value) if beside == value else f'"$here"{shlex.quote(beside)}'


def script(
    config: Config,
    trainer: Config,
    env: Mapping[str, str],
    inherit: tuple[str, ...],
    needed: Gang,
    folder: Path,
) -> str:
    """A shell script that runs the trial by hand, into a folder of its own, with nothing but verl (and, on a CPU, its
    plug-in)."""
    exports = "\n".join(
        f"export {name}={_beside_script(value, folder)}"
        for name, value in sorted(env.items())
        if name != "VERL_FILE_LOGGER_PATH"
    )
    differs = "\n".join(f"#   {line}" for line in overrides(trainer))
    names = ", ".join(inherit) or "none"
    return f"""#!/usr/bin/env bash
# Runs this trial by hand: bash {SCRIPT} [verl overrides...]
# It writes to a new folder, by default by-hand-<time> beside this script (OUT=<folder> for another), so that the
# records here stay as they are. Variables that are used when they are set: {names}.
#
# What this trial sets beyond verl's defaults (the whole config is {CONFIG}):
{differs}
set -euo pipefail

here="$(cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")" && pwd)"
out="${{OUT:-$here/by-hand-$(date +%Y%m%d-%H%M%S)}}"
mkdir -p -- "$out"
out="$(cd -- "$out" && pwd)"

{exports}
export VERL_FILE_LOGGER_PATH="$out/{METRICS}"
unset RAY_ADDRESS  # a Ray cluster of its own, not one that happens to run

# Ray's sockets need a short path.
ray_dir="$(mktemp -d /tmp/ray-XXXXXX)"
trap 'rm -rf -- "$ray_dir"' EXIT
echo "output: $out"
cd -- "$out"
{shlex.quote(interpreter(config))} -m verl.trainer.main_ppo "--config-path=$here" --config-name=trainer \\
    "trainer.default_local_dir='$out/checkpoints'" \\
    "++ray_kwargs.ray_init.num_cpus={_ray_cpus(config, needed)}" \\
    "++ray_kwargs.ray_init.num_gpus={needed.gpus_per_node}" \\
    "++ray_kwargs.ray_init.object_store_memory={_object_store(config)}" \\
    "++ray_kwargs.ray_init.include_dashboard=false" \\
    "++ray_kwargs.ray_init._temp_dir=$ray_dir" \\
    "$@"
"""
