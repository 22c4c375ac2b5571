"""Values of the wrong kind, where verl's own default says what kind a key holds.

Guarantees: only what is surely wrong is named (text where a number is, text where true or false is); null is left
alone, and so is a key whose default is null or text. verl's YAML has no types of its own: it would find out while it
starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from sweeper.engines.base import Config
from sweeper.engines.verl.base_config import load
from sweeper.errors import Problem, section_replaced

_EMPTY: dict[str, Any] = {}
NAMES = {"lr": "a rate above 0, as 1e-6", "tp": "a whole number from 1", "seed": "a whole number"}


def check(config: Config) -> list[Problem]:
    """Every value that cannot be meant, ours and verl's."""
    return [*_ours(config), *_theirs(config)]


def sections(config: Config) -> list[Problem]:
    """Sections of verl's config that hold something else, as `trainer=null` makes of one."""
    return list(_replaced(_sections(str(config.get("model_engine", "dp"))), config, ""))


def _replaced(sections: Mapping[str, Any], ours: Mapping[str, Any], prefix: str) -> Iterator[Problem]:
    for name, below in sections.items():
        value = ours.get(name, _EMPTY)
        if not isinstance(value, dict):
            key = f"{prefix}{name}"
            yield section_replaced(key, value, f"{key}.<key>=...")
        elif below and value:  # nothing else to look at: this runs for every trial, and most sections have none in them
            yield from _replaced(below, value, f"{prefix}{name}.")


@lru_cache
def _sections(model_engine: str) -> dict[str, Any]:
    """verl's sections that hold anything, each with the sections in it."""
    return _only_sections(load(model_engine))


def _only_sections(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _only_sections(value) for name, value in tree.items() if isinstance(value, dict) and value}


def _ours(config: Config) -> Iterator[Problem]:
    for name, kind in NAMES.items():
        value = config.get(name)
        if value is not None and not _good(name, value):
            yield Problem(f"{name}={value} is not {kind}", key=name)


def _good(name: str, value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    if name == "lr":
        return value > 0
    return float(value).is_integer() and (name == "seed" or value >= 1)


def _theirs(config: Config) -> Iterator[Problem]:
    return _worded(_typed(str(config.get("model_engine", "dp"))), config, "")


def _worded(typed: Mapping[str, Any], ours: Mapping[str, Any], prefix: str) -> Iterator[Problem]:
    """Text where the default is a number or a truth value."""
    for name, default in typed.items():
        value = ours.get(name)
        if isinstance(default, dict):
            if isinstance(value, dict):
                yield from _worded(default, value, f"{prefix}{name}.")
        elif isinstance(value, str):
            key = f"{prefix}{name}"
            if isinstance(default, bool):
                yield Problem(f"{key}={value} is neither true nor false", valid="true, false", key=key)
            else:
                yield Problem(f"{key}={value} is not a number", valid=f"a number, as verl's own {default}", key=key)


@lru_cache
def _typed(model_engine: str) -> dict[str, Any]:
    """verl's defaults that are numbers or truth values, in their sections; sections without any are left out."""
    return _numbers(load(model_engine))


def _numbers(tree: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: _numbers(value) if isinstance(value, Mapping) else value for name, value in tree.items()}
    return {name: value for name, value in kept.items() if value != {} and isinstance(value, dict | bool | int | float)}
