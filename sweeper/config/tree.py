"""Plain nested dicts by dotted key: reading, writing, copying, listing. Only the standard library is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_BRANCHES = (dict, list)  # not `dict | list`, which would be made anew for each leaf of each point of a plan


def copy(tree: Any) -> Any:
    """A deep copy of dicts and lists; the leaves are shared, for they are immutable."""
    if isinstance(tree, dict):
        made = dict(tree)
        for key, value in tree.items():
            if isinstance(value, _BRANCHES):
                made[key] = copy(value)
        return made
    return [copy(v) for v in tree] if isinstance(tree, list) else tree


def get(tree: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value at a dotted key; the default where there is none."""
    node: Any = tree
    for part in key.split("."):
        if isinstance(node, Mapping) and part in node:
            node = node[part]
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            return default
    return node


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key. Parents that are missing are made."""
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, list):
            node = node[int(part)]
        else:
            node = node.setdefault(part, {})
    if isinstance(node, list):
        node[int(last)] = value
    else:
        node[last] = value


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its dotted key, in order; the items of lists too; empty dicts and lists are leaves."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, _BRANCHES) and value:
            yield from leaves(value, path)
        else:
            yield path, value


def values(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key, in order; a list is one value, and so is an empty mapping."""
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            yield from values(value, path)
        else:
            yield path, value
