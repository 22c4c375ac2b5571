"""Values of the wrong kind, where verl's own default says what kind a key holds.

Guarantees: only what is surely wrong is named (text where a number is, text where true or false is); null is left
alone, and so is a key whose default is null or text. verl's YAML has no types of its own: it would find out while it starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sweeper.config import tree
from sweeper.engines.verl.base_config import load
from sweeper.errors import Problem

NAMES = {"lr": "a rate above 0, as 1e-6", "tp": "a whole number from 1", "seed": "a whole number"}


def check(explicit: Mapping[str, Any], model_engine: str) -> list[Problem]:
    """The typed values that cannot be meant; `explicit` is dotted key -> value."""
    return [p for key, value in explicit.items() for p in _ours(key, value) or _theirs(key, value, model_engine)]


def _ours(key: str, value: Any) -> list[Problem]:
    if key not in NAMES or value is None:
        return []
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = number and float(value).is_integer()
    good = number and value > 0 if key == "lr" else whole and (value >= 1 or key == "seed")
    return [] if good else [Problem(f"{key}={value} is not {NAMES[key]}", key=key)]


def _theirs(key: str, value: Any, model_engine: str) -> list[Problem]:
    default = _default(key, model_engine)
    if isinstance(value, str) and "${" not in value:
        if isinstance(default, bool):
            return [Problem(f"{key}={value} is neither true nor false", valid="true, false", key=key)]
        if isinstance(default, int | float):
            return [Problem(f"{key}={value} is not a number", valid=f"a number, as verl's own {default}", key=key)]
    return []


@lru_cache(maxsize=4096)
def _default(key: str, model_engine: str) -> Any:
    return tree.get(load(model_engine), key, None)
