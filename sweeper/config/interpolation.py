"""Which interpolations of a config change when a key changes.

Guarantees: every leaf whose value may depend on a changed key is named, directly or through others; more may be named
than do change, never fewer. What an interpolation reads is read off its text: any word in it that could be a key counts
as one, and one that reads a key found out at run time, or uses a resolver unknown here, depends on everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sweeper.config import tree

PURE = {"oc.select", "oc.decode", "oc.create", "floordiv"}
"""Resolvers that read nothing but their arguments and the keys named in them."""

_RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:")
_WORD = re.compile(r"[\w.\-]+")
_COMPUTED_KEY = re.compile(r"\$\{[^{}:]*\$\{|oc\.select:[^,}]*\$\{")


def related(a: str, b: str) -> bool:
    """Whether one key is the other or lies inside it."""
    return a == b or a.startswith(b + ".") or b.startswith(a + ".")


class Graph:
    """The interpolations of one config: leaf -> the keys that it reads."""

    def __init__(self, unresolved: dict[str, Any]) -> None:
        self.reads: dict[str, tuple[str, ...]] = {
            path: _reads(path, value)
            for path, value in tree.leaves(unresolved)
            if isinstance(value, str) and "${" in value
        }

    def affected(self, changed: str) -> frozenset[str]:
        """The leaves to resolve again when this key changes."""
        found: set[str] = set()
        wave = [changed]
        while wave:
            source = wave.pop()
            for leaf, keys in self.reads.items():
                if leaf not in found and any(key == "" or related(key, source) for key in keys):
                    found.add(leaf)
                    wave.append(leaf)
        return frozenset(leaf for leaf in found if not related(leaf, changed))


def _reads(path: str, text: str) -> tuple[str, ...]:
    """The keys that an interpolation reads; an empty one stands for any key."""
    if set(_RESOLVER.findall(text)) - PURE or _COMPUTED_KEY.search(text):
        return ("",)
    return tuple(_absolute(word, path) for word in _words(text))


def _words(text: str) -> Iterable[str]:
    return dict.fromkeys(w.rstrip(".") for w in _WORD.findall(text) if w.strip("."))


def _absolute(word: str, path: str) -> str:
    """`.x` is beside the leaf, `..x` beside its parent."""
    name = word.lstrip(".")
    dots = len(word) - len(name)
    if not dots:
        return name
    parents = path.split(".")[:-dots]
    return ".".join([*parents, name])
