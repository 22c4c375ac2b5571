"""Keys and values as MLflow takes them.

Guarantees: `decode(encode(key)) == key` for every key that fits MLflow's 250 characters once encoded; keys that
MLflow takes as they are stay as they are; `@` becomes `_at_`, as in verl's own MLflow logger.

MLflow 3.17 (utils/validation.py) allows letters, digits, `_-./: ` in a metric's or a parameter's name, refuses names
that are no normal path (`a//b`, `/a`, `..`), names over 250 characters and parameter values over 6000.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from sweeper.config import tree

MAX_KEY = 250
MAX_VALUE = 6000
MAX_TAG = 8000

_KEPT = (r"\w./\- ", r"\w\- ", r"A-Za-z0-9./\- ", r"A-Za-z0-9\- ")
"""What stays as it is, in the order that is tried: all that MLflow takes (but for a colon, which it refuses on
Windows); no dots and slashes, for what is no normal path; no underscores, for what looks like an escape; neither."""
_ESCAPE = re.compile(r"_at_|_u([0-9a-f]+)_")


def encode(key: str) -> str:
    """The key as MLflow takes it: `@` as `_at_`, any other character it refuses as `_u<hex>_`."""
    out = ""
    for kept in _KEPT:
        out = re.sub(f"[^{kept}]", _escape, key, flags=re.ASCII) or "_u_"
        if posixpath.normpath(out) == out and out[0] not in "./" and decode(out) == key:
            break
    if len(out) > MAX_KEY:
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        out = f"{out[: MAX_KEY - 17]}-{digest}"
    return out


def decode(name: str) -> str:
    """The key that `encode` made this of."""
    if name == "_u_":
        return ""
    return _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else "@", name)


def _escape(match: re.Match[str]) -> str:
    return "_at_" if match[0] == "@" else f"_u{ord(match[0]):x}_"


def value(thing: Any) -> str:
    """A parameter's value: numbers by repr, so that they read back; structures as JSON; cut at MLflow's limit."""
    if isinstance(thing, str):
        text = thing
    elif isinstance(thing, Mapping | list | tuple):
        text = json.dumps(thing, default=str)
    elif thing is None or isinstance(thing, bool):
        text = json.dumps(thing)
    else:
        text = repr(thing) if isinstance(thing, float) else str(thing)
    if len(text) > MAX_VALUE:
        note = f" ... ({len(text)} characters)"
        text = text[: MAX_VALUE - len(note)] + note
    return text


def params(given: Mapping[str, Any]) -> dict[str, str]:
    """A trial's parameters in the order they matter: what varies, the names of ours, then every leaf of the config."""
    config = given.get("config") or {}
    found: dict[str, Any] = {k.lstrip("+"): v for k, v in given.items() if k != "config"}
    for name in ("lr", "kl", "tp", "seed"):
        if config.get(name) is not None:
            found.setdefault(name, config[name])
    for name in ("model", "algorithm", "environment"):
        part = config.get(name)
        if isinstance(part, Mapping) and part.get("name") is not None:
            found.setdefault(name, part["name"])
    for key, leaf in tree.values(config):
        found.setdefault(key, leaf)
    return {encode(k): value(v) for k, v in found.items()}
