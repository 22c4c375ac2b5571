"""What our own root keys may hold; the engine's keys are the engine's to check.

Guarantees: every key is looked at, all that is wrong is returned at once; nothing is converted.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from typing import Any

from sweeper.config import tree
from sweeper.errors import Problem
from sweeper.trial.records import NAME


def check(config: Mapping[str, Any]) -> list[Problem]:
    """The values of our keys that cannot be meant."""
    found = []
    for key, (good, valid) in _KEYS.items():
        value = tree.get(config, key, None)
        if not good(value):
            found.append(Problem(f"{key}={value}", valid=valid, key=key))
    return found


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _folder_name(value: Any) -> bool:
    # A number is a good name: it is typed like one, name=2026.
    return not isinstance(value, bool) and isinstance(value, str | int) and bool(NAME.fullmatch(str(value)))


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

_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_or_null(_folder_name), "letters, digits, '.', '_' and '-', starting with a letter or digit; or null"),
    "project": _TEXT,
    "store": _TEXT,
    "plan": _FLAG,
    "output": _one_of("auto", "rich", "plain", "json"),
    "max_concurrent": _MAYBE_COUNT,
    "responses_per_step": _COUNT,
    "updates_per_step": _COUNT,
    "binding.critic": _FLAG,
    "objective.metric": _TEXT,
    "objective.mode": _one_of("max", "min"),
    "cluster.device": _one_of("auto", "cpu", "cuda"),
    "cluster.nodes": _COUNT,
    "cluster.gpus_per_node": _MAYBE_COUNT,
    "cluster.max_ranks": _MAYBE_COUNT,
    "model.arch": _MAPPING,
    "engine.python": (_or_null(_program), "an interpreter that can be run, or null: this one"),
    "engine.fork_server": _FLAG,
    "engine.env": _MAPPING,
    "engine.inherit": (_names, "a list of names of variables: [HF_TOKEN,HF_HOME]"),
}
