"""User constraints: expressions over the config that every point must fulfil, `lr * updates_per_step < 1e-3`.

Guarantees: an expression is read, never run as Python: it has numbers, texts, lists, keys of the config, comparisons,
arithmetic, `and`, `or`, `not`, `in`, `if ... else`, and the functions of `FUNCTIONS`; nothing else can be called or
reached. Only the standard library is imported.

A key is what it is on the command line: a dim (`lr`), a key of the config (`actor_rollout_ref.rollout.n`), or a group,
whose value is the chosen option's name (`algorithm == 'ppo'`).
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.config import tree
from sweeper.config.nearest import nearest
from sweeper.errors import Problem

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": abs, "min": min, "max": max, "round": round, "len": len, "sqrt": math.sqrt, "log": math.log,
    "log10": math.log10, "floor": math.floor, "ceil": math.ceil,
}  # fmt: skip
CONSTANTS: Mapping[str, Any] = {"true": True, "false": False, "null": None}
"""YAML's words beside Python's."""

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Pow: lambda a, b: float(a) ** float(b),  # of whole numbers it could take for ever
}  # fmt: skip
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_,
}  # fmt: skip
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
    ast.Is: lambda a, b: a is b, ast.IsNot: lambda a, b: a is not b,
}  # fmt: skip
_VALID = "lr * updates_per_step < 1e-3, tp <= trainer.n_gpus_per_node, algorithm == 'ppo' or kl > 0"
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Constraint:
    """One expression that must hold."""

    text: str
    tree: ast.expr
    keys: tuple[str, ...]
    """The keys that it reads."""

    def broken(self, config: Mapping[str, Any], choices: Mapping[str, str]) -> str:
        """Why the point of this config must not run; empty when the expression holds.

        `choices`: group -> chosen option. What cannot be computed does not hold.
        """
        try:
            return "" if _value(self.tree, _looking(config, choices)) is True else f"constraint: not {self.text}"
        except (ArithmeticError, TypeError, ValueError, LookupError) as error:
            return f"constraint: {self.text} cannot be computed ({error})"

    def problem(self, config: Mapping[str, Any], choices: Mapping[str, str]) -> Problem | None:
        """What is wrong with the expression itself, seen from a config: an unknown key, no yes or no."""
        for key in self.keys:
            if key not in choices and tree.get(config, key, _ABSENT) is _ABSENT:
                known = [*choices, *(k for k, _ in tree.values(config))]
                close = nearest(key, known)
                fix = self.text.replace(key, close[0]) if close else "a key of --cfg job"
                return _wrong(self.text, f"there is no {key}", ", ".join(close), fix)
        look = _looking(config, choices)
        try:
            value = _value(self.tree, look)
        except (ArithmeticError, TypeError, ValueError, LookupError) as error:
            given = ", ".join(f"{key}={look(key)}" for key in self.keys)
            return _wrong(self.text, f"it cannot be computed with {given}: {error}", _VALID)
        if not isinstance(value, bool):
            return _wrong(self.text, f"it is {value!r}, not true or false", _VALID)
        return None


def parse(texts: Sequence[Any], problems: list[Problem]) -> tuple[Constraint, ...]:
    """The expressions that can be read; what is wrong with the others is added to the problems."""
    found = []
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            problems.append(_wrong(str(text), "it is no text", _VALID))
            continue
        try:
            body = ast.parse(text.strip(), mode="eval").body
            keys: dict[str, None] = {}
            _walk(body, keys)
        except (SyntaxError, RecursionError, MemoryError) as error:
            problems.append(_wrong(text, getattr(error, "msg", None) or "it is nested too deeply", _VALID))
        except ValueError as error:
            problems.append(_wrong(text, str(error), _VALID))
        else:
            found.append(Constraint(text, body, tuple(keys)))
    return tuple(found)


def _wrong(text: str, why: str, valid: str, fix: str = "") -> Problem:
    return Problem(f"search.constraints: {text}: {why}", valid=valid, fix=fix, key="search.constraints")


def _walk(node: ast.expr, keys: dict[str, None]) -> None:
    """Collect the keys; ValueError for what an expression may not have."""
    if isinstance(node, ast.Name | ast.Attribute):
        if (key := _key(node)) not in CONSTANTS:
            keys[key] = None
        return
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in FUNCTIONS:
        raise ValueError(f"there is no {node.func.id}(); there is {', '.join(FUNCTIONS)}")
    if not _allowed(node):
        raise ValueError(f"{ast.unparse(node)!r} is no part of an expression here")
    for part in _parts(node):
        _walk(part, keys)


def _allowed(node: ast.expr) -> bool:
    match node:
        case ast.Constant():
            return isinstance(node.value, bool | int | float | str | None)
        case ast.BinOp() | ast.UnaryOp():
            return type(node.op) in (*_BINARY, *_UNARY)
        case ast.Compare():
            return all(type(op) in _COMPARE for op in node.ops)
        case ast.Call():
            return isinstance(node.func, ast.Name) and not node.keywords
    return type(node) in _EVALUATE


def _parts(node: ast.expr) -> list[ast.expr]:
    """The expressions inside an expression; a function's name is none."""
    name = node.func if isinstance(node, ast.Call) else None
    return [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr) and n is not name]


def _key(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_key(node.value)}.{node.attr}"
    raise ValueError(f"{ast.unparse(node)!r} is no key")


def _looking(config: Mapping[str, Any], choices: Mapping[str, str]) -> Look:
    def look(key: str) -> Any:
        value = choices[key] if key in choices else tree.get(config, key, _ABSENT)
        if value is _ABSENT:
            raise LookupError(f"there is no {key}")
        return value

    return look


Look = Callable[[str], Any]
"""Key -> its value."""


def _value(node: ast.expr, look: Look) -> Any:
    return _EVALUATE[type(node)](node, look)


def _named(node: ast.expr, look: Look) -> Any:
    key = _key(node)
    return CONSTANTS[key] if key in CONSTANTS else look(key)


def _binary(node: ast.BinOp, look: Look) -> Any:
    left, right = _value(node.left, look), _value(node.right, look)
    # A text times a number is a longer text in Python, and here a mistake.
    if not all(isinstance(value, int | float) for value in (left, right)):
        raise TypeError(f"{left!r} and {right!r} are not both numbers")
    return _BINARY[type(node.op)](left, right)


def _logical(node: ast.BoolOp, look: Look) -> bool:
    # Each part must be a yes or no: `kl or lr` is a slip, not Python's first true value.
    every = isinstance(node.op, ast.And)
    for inner in node.values:
        value = _value(inner, look)
        if not isinstance(value, bool):
            raise TypeError(f"{ast.unparse(inner)} is {value!r}, not true or false")
        if value is not every:
            return value
    return every


def _compared(node: ast.Compare, look: Look) -> bool:
    left = _value(node.left, look)
    for op, inner in zip(node.ops, node.comparators, strict=True):
        right = _value(inner, look)
        if not _COMPARE[type(op)](left, right):
            return False
        left = right
    return True


def _listed(node: ast.List | ast.Tuple, look: Look) -> list[Any]:
    return [_value(inner, look) for inner in node.elts]


_EVALUATE: Mapping[type[ast.expr], Callable[[Any, Look], Any]] = {
    ast.Constant: lambda node, _look: node.value,
    ast.Name: _named,
    ast.Attribute: _named,
    ast.BinOp: _binary,
    ast.UnaryOp: lambda node, look: _UNARY[type(node.op)](_value(node.operand, look)),
    ast.BoolOp: _logical,
    ast.Compare: _compared,
    ast.IfExp: lambda node, look: _value(node.body if _value(node.test, look) else node.orelse, look),
    ast.List: _listed,
    ast.Tuple: _listed,
    ast.Call: lambda node, look: FUNCTIONS[node.func.id](*(_value(inner, look) for inner in node.args)),
}
