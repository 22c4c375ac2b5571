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
from sweeper.errors import Problem

NAMES = {"lr": "a rate above 0, as 1e-6", "tp": "a whole number from 1", "seed": "a whole number"}


def check(config: Config) -> list[Problem]:
    """Every value that cannot be meant, ours and verl's."""
    return [*_ours(config), *_theirs(config)]


def sections(config: Config) -> list[Problem]:
    """Sections of verl's config that hold something else, as `trainer=null` makes of one."""
    found = []
    for path in _sections(str(config.get("model_engine", "dp"))):
        value: Any = config
        for part in path:
            value = value.get(part, {}) if isinstance(value, dict) else {}
        if not isinstance(value, Mapping):
            key = ".".join(path)
            found.append(
                Problem(f"{key}={value} takes the place of a whole section", valid=f"{key}.<key>=...", key=key)
            )
    return found


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
    for path, default in _typed_leaves(str(config.get("model_engine", "dp"))):
        value: Any = config
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, str):
            continue
        key = ".".join(path)
        if isinstance(default, bool):
            yield Problem(f"{key}={value} is neither true nor false", valid="true, false", key=key)
        else:
            yield Problem(f"{key}={value} is not a number", valid=f"a number, as verl's own {default}", key=key)


@lru_cache
def _typed_leaves(model_engine: str) -> tuple[tuple[tuple[str, ...], Any], ...]:
    """Where verl's default is a number or a truth value: path -> default."""
    return tuple((path, value) for path, value in _leaves(load(model_engine)) if isinstance(value, bool | int | float))


@lru_cache
def _sections(model_engine: str) -> tuple[tuple[str, ...], ...]:
    return tuple(dict.fromkeys(path[:n] for path, _ in _leaves(load(model_engine)) for n in range(1, len(path))))


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value
