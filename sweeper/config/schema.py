"""What our own root keys may hold; the engine's keys are the engine's to check.

Guarantees: every key is looked at, all that is wrong is returned at once; nothing is converted.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from sweeper.config import tree
from sweeper.errors import Problem
from sweeper.search import stops
from sweeper.tracking import address
from sweeper.trial import failures
from sweeper.trial.records import NAME

SAMPLERS = ("none", "grid", "random", "tpe", "gp", "qmc", "nsga2")
SCHEDULERS = ("none", "asha", "median", "hyperband", "pbt", "pb2")
OBJECTIVES = ("score", "gpu_hours")
MOST_GIB = 1024
"""Of one GPU's memory, far above any: beyond it the number was meant in another unit."""
_GPU = re.compile(r"[A-Za-z][\w .-]*")

_ABSENT = object()


def check(config: Mapping[str, Any]) -> list[Problem]:
    """The values of our keys that cannot be meant."""
    found = []
    for key, (good, valid) in _KEYS.items():
        value = tree.get(config, key, None)
        if key == "engine.python" and _elsewhere(config) and isinstance(value, str):
            continue  # not on this machine: the launch finds out
        if key in _OPTIONAL and tree.get(config, key, _ABSENT) is _ABSENT:
            continue
        if not good(value):
            found.append(Problem(f"{key}={value}", valid=valid, fix=_FIXES.get(key, ""), key=key))
    if (image := tree.get(config, "engine.image", None)) and tree.get(config, "engine.python", None) is None:
        found.append(
            Problem(
                f"engine.image={image}: which interpreter of the image has the trainer is not said",
                valid="its name or path in the image",
                fix="engine.python=python3",
                key="engine.image",
            )
        )
    for key, checked in (("stop", stops.check), ("failures", failures.check), ("tracking", address.check)):
        if isinstance(config.get(key), Mapping):
            found += checked(config[key])
        else:
            found.append(Problem(f"{key}={config.get(key)}", valid="a mapping: conf/config.yaml has its keys", key=key))
    return found


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _gpu_memory(value: Any) -> bool:
    return _number(value) and 0 < value <= MOST_GIB


def _gpu(value: Any) -> bool:
    return isinstance(value, str) and bool(_GPU.fullmatch(value))


def _from_zero(value: Any) -> bool:
    return value == 0 or _count(value) if not isinstance(value, bool) else False


def _points(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(point, Mapping) and point for point in value)


def _objectives(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(value.count(v) == 1 and v in OBJECTIVES for v in value)


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _folder_name(value: Any) -> bool:
    # A number is a good name: it is typed like one, name=2026.
    return not isinstance(value, bool) and isinstance(value, str | int) and bool(NAME.fullmatch(str(value)))


def _elsewhere(config: Mapping[str, Any]) -> bool:
    """Whether the engine's interpreter is in a container, or on machines that are not this one."""
    return bool(tree.get(config, "engine.image", None)) or tree.get(config, "cluster.kind", "local") != "local"


def _program(value: Any) -> bool:
    return isinstance(value, str) and shutil.which(value) is not None


def _or_null(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or good(value)


def _one_of(*words: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in words), ", ".join(words)


_TEXT = (lambda value: isinstance(value, str) and bool(value)), "a text"
_FLAG = (lambda value: isinstance(value, bool)), "true, false"
_COUNT = _count, "a whole number from 1"
_MAYBE_COUNT = _or_null(_count), "a whole number from 1, or null"

_MAPPING = (lambda value: isinstance(value, Mapping)), "a mapping: {a: 1, b: 2}"

_OPTIONAL = ("search.startup", "search.population")
"""Keys that only some samplers have."""

_FIXES = {
    "search.trials": "search.trials=20, the points of an arm",
    "search.seeds": "search.seeds=3",
    "search.final_seeds": "search.final_seeds=5",
    "search.startup": "search.startup=10",
    "search.population": "search.population=20",
    "max_concurrent": "max_concurrent=null, as many as fit",
}
"""What to type where a count cannot be meant."""

_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_or_null(_folder_name), "letters, digits, '.', '_' and '-', starting with a letter or digit; or null"),
    "project": _TEXT,
    "store": _TEXT,
    "plan": _FLAG,
    "detach": _FLAG,
    "output": _one_of("auto", "rich", "plain", "json"),
    "max_concurrent": _MAYBE_COUNT,
    "seed": (_or_null(_from_zero), "a whole number from 0, or null"),
    "search.name": _one_of(*SAMPLERS),
    "search.trials": _MAYBE_COUNT,
    "search.sampler_seed": (_or_null(_from_zero), "a whole number from 0, or null"),
    "search.space": (lambda value: isinstance(value, Mapping), "{lr: 'interval(1e-6,1e-4)', kl: [0, 1e-3]}"),
    "search.points": (_points, "a list of points: [{lr: 1e-4, kl: 0}]"),
    "search.constraints": (_names, "a list of expressions: ['lr * updates_per_step < 1e-3']"),
    "search.seeds": _COUNT,
    "search.final_seeds": (_from_zero, "a whole number from 0"),
    "search.objectives": (_objectives, "[score], [gpu_hours] or [score,gpu_hours]"),
    "search.startup": (_from_zero, "a whole number from 0"),
    "search.population": (lambda value: _count(value) and value >= 2, "a whole number from 2"),
    "scheduler.name": _one_of(*SCHEDULERS),
    "placement.probe": (lambda value: isinstance(value, bool) or value == "auto", "auto, true, false"),
    "placement.steps": (lambda value: _count(value) and value >= 2, "a whole number from 2: the first is not counted"),
    "placement.runs": (lambda value: _count(value) and value >= 2, "a whole number from 2: one alone says nothing"),
    "placement.mismatch_above": (_or_null(_number), "a number from 0, or null"),
    "lineage.strict": _FLAG,
    "lineage.reproduces": (_or_null(_TEXT[0]), "a lineage.json, or null"),
    "keep.last": _MAYBE_COUNT,
    "keep.top_k": _MAYBE_COUNT,
    "keep.gb": (_or_null(_number), "a number of gigabytes from 0, or null"),
    "deterministic": (lambda value: isinstance(value, bool) or value == "auto", "auto, true, false"),
    "responses_per_step": _COUNT,
    "updates_per_step": _COUNT,
    "binding.critic": _FLAG,
    "objective.metric": _TEXT,
    "objective.mode": _one_of("max", "min"),
    "cluster.name": _TEXT,
    "cluster.device": _one_of("auto", "cpu", "cuda"),
    "cluster.nodes": _MAYBE_COUNT,
    "cluster.gpus_per_node": _MAYBE_COUNT,
    "cluster.gpu": (_or_null(_gpu), "the name of a GPU, H100 (cluster.gpus_per_node says how many), or null"),
    "cluster.gpu_memory_gib": (_or_null(_gpu_memory), "GiB of one GPU, a number above 0: 79.6 of 80 GB; or null"),
    "cluster.max_ranks": _MAYBE_COUNT,
    "cluster.join_s": (lambda value: _number(value) and value > 0, "a number of seconds above 0"),
    "cluster.python": _TEXT,
    "model.arch": _MAPPING,
    "engine.python": (_or_null(_program), "an interpreter that can be run, or null: this one"),
    "engine.image": (_or_null(_TEXT[0]), "the name of a container image, or null"),
    "engine.fork_server": _FLAG,
    "engine.env": _MAPPING,
    "engine.inherit": (_names, "a list of names of variables: [HF_TOKEN,HF_HOME]"),
}


def valid(key: str) -> str:
    """What the value of one of our keys may be, in words; empty where it is none of ours."""
    return _KEYS[key][1] if key in _KEYS else ""
