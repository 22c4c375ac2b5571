"""What makes two trials the same: the fingerprint of a config over its identity leaves.

Guarantees: equal configs have equal fingerprints however they were written (key order, `1e-6` or `0.000001`, `1` or
`1.0`, tuple or list, `{}` or nothing); any identity leaf changes it; no placement leaf does; what cannot be made
canonical is refused by name. Only the standard library is imported.

Identity and placement (DESIGN.md): a leaf of the engine's config is identity unless a pattern of the engine's
`placement.PLACEMENT` names it; a key of ours is what `OURS` says. When in doubt a leaf is identity: a trial that is run
twice costs time, two different trials taken for one cost the result.

Canonical form:
    - mappings: dotted keys in sorted order (a dot inside a key is written `\\.`); an empty mapping is nothing;
    - a float with an integer value is that integer (`1.0` is `1`, `-0.0` is `0`); any other is its shortest repr;
      `true` is not `1`, the string `"1e-6"` is not the number; NaN equals nothing and is refused;
    - a path to something built by us is its folder's name, which holds the hash of what it was built from; a path
      into this package or an installed one is its path inside the package. Any other path stands for itself: moving
      a file makes another trial, changing it does not (content hashes come with lineage records).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any

OURS: Mapping[str, bool] = {
    "name": False,
    "project": False,
    "seed": True,  # also written into the engine's keys; here too because building data may use it
    "deterministic": False,  # likewise bound to the engine's keys
    "lr": False,  # lr, kl, tp and the batch names are bound to the engine's keys, which are the identity:
    "kl": False,  # `lr=1e-6` and the engine's own key typed to 1e-6 are one trial
    "tp": False,
    "responses_per_step": False,
    "updates_per_step": False,
    "binding": False,
    "model": False,  # likewise: the engine's model path, which holds the hash of a model that we built
    "environment": True,  # its parameters may reach the reward by other ways than the engine's config
    "cluster": False,
    "engine": False,  # but for the leaves of OURS_INSIDE
    "search": False,
    "scheduler": False,  # these say when a trial ends, not what its steps compute
    "stop": False,
    "failures": False,
    "placement": False,
    "lineage": False,
    "keep": False,
    "tracking": False,
    "objective": False,
    "store": False,
    "plan": False,
    "detach": False,
    "output": False,
    "max_concurrent": False,
}
"""Our root keys (a closed set) -> whether they are identity. Every other root key is the engine's."""

OURS_INSIDE = ("engine.name", "engine.env")
"""Identity inside a key of ours that is placement otherwise: which trainer, and the variables that it is given."""

_BUILT = re.compile(r"^.*/([A-Za-z0-9_.]+(?:-[A-Za-z0-9_.]+)*-[0-9a-f]{16})((?:/.*)?)$")
_INSTALLED = re.compile(r"^/.*/(?:site|dist)-packages/")
_PACKAGE = str(Path(__file__).resolve().parents[1]) + "/"


def fingerprint(config: Mapping[str, Any], placement: Sequence[str] | None = None) -> str:
    """64 hexadecimal digits (SHA-256) that stand for everything in the config that can change the result.

    Args:
        config: the whole resolved config, our keys and the engine's.
        placement: patterns of the engine's placement leaves; by default those of the engine that the config names.

    Raises:
        TypeError: a leaf cannot be made canonical; the message names its key.
    """
    patterns = tuple(placement_of(config) if placement is None else placement)
    return fingerprint_of(dict(identity_leaves(config, patterns)))


def identity_leaves(config: Mapping[str, Any], placement: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Every identity leaf, dotted key -> canonical value, unsorted.

    Raises:
        TypeError: a leaf cannot be made canonical; the message names its key.
    """
    for key, value, mine in _told_apart(config, placement):
        if mine:
            yield key, _canonical(value, key)


def both_leaves(config: Mapping[str, Any], placement: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every identity leaf, and every other one (dotted key -> value as it is), unsorted; each leaf is in one of them.

    Raises:
        TypeError: a leaf cannot be made canonical; the message names its key.
    """
    identity, rest = {}, {}
    for key, value, mine in _told_apart(config, placement):
        if mine:
            identity[key] = _canonical(value, key)
        else:
            rest[key] = value
    return identity, rest


def fingerprint_of(leaves: Mapping[str, Any]) -> str:
    """The fingerprint of identity leaves that are canonical already."""
    return hashlib.sha256(_dump(dict(leaves)).encode()).hexdigest()


def _told_apart(config: Mapping[str, Any], placement: Sequence[str]) -> Iterator[tuple[str, Any, bool]]:
    """Every leaf: dotted key, value, whether it is identity."""
    is_placement = _matcher(tuple(placement))
    for key, value in _leaves(config, ""):
        root = key.partition(".")[0]
        yield key, value, _ours(root, key) if root in OURS else not is_placement(key)


def _ours(root: str, key: str) -> bool:
    return OURS[root] or any(key == inside or key.startswith(inside + ".") for inside in OURS_INSIDE)


def is_identity(key: str, placement: Sequence[str]) -> bool:
    """Whether a leaf of that dotted key can change the result; `placement` as for `fingerprint`."""
    root = key.partition(".")[0]
    return _ours(root, key) if root in OURS else not is_placement(key, placement)


def placement_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The placement patterns of the engine that the config names; none when it has none."""
    name = str((config.get("engine") or {}).get("name", ""))
    try:
        patterns: tuple[str, ...] = importlib.import_module(f"sweeper.engines.{name}.placement").PLACEMENT
    except ModuleNotFoundError:
        return ()
    return patterns


def canonical(value: Any) -> str:
    """The canonical JSON of any config or part of one, identity and placement alike.

    Raises:
        TypeError: a leaf cannot be made canonical; the message names its key.
    """
    return _dump({key: _canonical(leaf, key) for key, leaf in _leaves(value, "")})


def refused(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every leaf, dotted, that has no canonical form and why, and every key that is no string."""
    found: list[tuple[str, str]] = []

    def look(value: Any, at: str) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if not isinstance(key, str):
                    found.append((at, f"{at or 'the config'} has the key {key!r}, which is no string"))
                look(inner, f"{at}.{key}" if at else str(key))
        elif isinstance(value, list | tuple):
            for number, inner in enumerate(value):
                look(inner, f"{at}[{number}]")
        else:
            try:
                _canonical(value, at)
            except TypeError as error:
                found.append((at, str(error)))

    look(config, "")
    return found


def is_placement(key: str, patterns: Sequence[str]) -> bool:
    """Whether a dotted key is named by one of the patterns (`*`: one part of a key, `**`: any number of parts)."""
    return _matcher(tuple(patterns))(key)


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def _leaves(value: Any, at: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield at, value
        return
    for key, inner in value.items():
        if not isinstance(key, str):
            raise TypeError(f"{at or 'the config'} has the key {key!r}, which is no string")
        part = key.replace("\\", "\\\\").replace(".", "\\.") if "." in key or "\\" in key else key
        yield from _leaves(inner, f"{at}.{part}" if at else part)


def _canonical(value: Any, key: str) -> Any:
    """The canonical form of a leaf, or of what a list holds."""
    # `type() in`, not isinstance: a subclass (a numpy scalar, an enum) may compare and print as it likes
    if type(value) in (NoneType, bool, int):
        return value
    if type(value) is str:
        return _path(value) if "/" in value else value
    if type(value) is float:
        return _float(value, key)
    if isinstance(value, list | tuple):
        return [_canonical(v, f"{key}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping):  # inside a list
        return {"{}": {k: _canonical(v, k) for k, v in _leaves(value, key)}}
    raise TypeError(f"{key} is a {type(value).__name__}: {value!r}; only plain YAML values can be compared")


def _float(value: float, key: str) -> Any:
    if math.isnan(value):
        raise TypeError(f"{key} is NaN, which equals nothing, not even itself")
    if math.isinf(value):
        return {"float": repr(value)}  # no mapping is a leaf, so nothing else has this form
    return int(value) if value.is_integer() else value


def _path(text: str) -> str:
    if built := _BUILT.match(text):
        return f"built:{built[1]}{built[2]}"
    if text.startswith(_PACKAGE):
        return f"sweeper:{text[len(_PACKAGE) :]}"
    return _INSTALLED.sub("installed:", text, count=1)


@lru_cache(maxsize=8)
def _matcher(patterns: tuple[str, ...]) -> _Matcher:
    return _Matcher(patterns)


class _Matcher:
    """Tells placement keys from identity keys; remembers, for a sweep asks the same 900 keys of every trial."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._regex = re.compile("|".join(map(_regex, patterns)) or r"(?!)")
        self._known: dict[str, bool] = {}

    def __call__(self, key: str) -> bool:
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = bool(self._regex.fullmatch(key))
        return known


def _regex(pattern: str) -> str:
    """`a.*.b` and `**.b` as a regular expression; a pattern also covers what lies below the key it names."""
    joined = "".join(
        r"(?:[^.]+\.)*" if part == "**" else re.escape(part).replace(r"\*", "[^.]*") + r"\."
        for part in pattern.split(".")
    )
    if joined.endswith(r"\."):
        joined = joined[:-2]
    return rf"{joined}(?:\..+)?" if not pattern.endswith("**") else rf"{joined}[^.]+"
