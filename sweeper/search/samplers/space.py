"""The space of one arm in the numbers that models work on.

Guarantees: a point and its code translate back and forth without loss, and a value that came back from JSON is the
dim's own value again. Values that are all numbers are *ranked*: their code is the place in rising order, so that a
model knows that 1e-3 lies between 1e-4 and 1e-2 (0 is simply the lowest). Other values (names, booleans, null, lists)
are *unordered*: their code is the index, and no two are nearer than others. Only the standard library is imported.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.search.base import Dim

Codes = dict[str, int | float]
"""Name of each dim -> its number for the model."""


def text(value: object) -> str:
    """One text for one value, the same before and after JSON: 1, 1.0 and true differ; a list is its elements."""
    return json.dumps(value, sort_keys=True, default=repr)


def _number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class Axis:
    """A dim and its code: a whole number of `range(size)` for values, the value itself for an interval."""

    dim: Dim
    choices: tuple[Any, ...] | None
    """By code; None for an interval."""
    ranked: bool
    codes: Mapping[str, int]
    """Text of a value -> code."""

    @classmethod
    def of(cls, dim: Dim) -> Axis:
        """Raises ValueError where there is no value, and for an interval without an inside."""
        if dim.values is None:
            if not dim.low <= dim.high or (dim.log and dim.low <= 0):
                raise ValueError(f"{dim.name}: no interval{' on a log scale' * dim.log} from {dim.low} to {dim.high}")
            return cls(dim, None, ranked=True, codes={})
        if not dim.values:
            raise ValueError(f"{dim.name}: no values")
        ranked = all(_number(v) and not math.isnan(v) for v in dim.values)
        choices = tuple(sorted(dim.values) if ranked else dim.values)
        return cls(dim, choices, ranked, {text(v): i for i, v in reversed(list(enumerate(choices)))})

    @property
    def size(self) -> int | None:
        """How many values it has; None: no finite number."""
        if self.choices is not None:
            return len(self.choices)
        if self.dim.integer:
            return math.floor(self.dim.high) - math.ceil(self.dim.low) + 1
        return 1 if self.dim.low == self.dim.high else None

    def encode(self, value: Any) -> int | float:
        """Raises ValueError for a value outside the dim."""
        if self.choices is not None:
            code = self.codes.get(text(value))
            if code is None and _number(value):  # 1 for 1.0, as YAML and a command line write it
                code = next((i for i, v in enumerate(self.choices) if _number(v) and v == value), None)
            if code is None:
                raise ValueError(f"{self.dim.name}: {value!r} is none of {list(self.choices)}")
            return code
        if not _number(value) or not self.dim.low <= value <= self.dim.high or (self.dim.integer and value % 1):
            whole = "a whole number " if self.dim.integer else ""
            raise ValueError(f"{self.dim.name}: {value!r} is not {whole}in {self.dim.low} .. {self.dim.high}")
        return int(value) if self.dim.integer else float(value)

    def decode(self, code: float) -> Any:
        """The value."""
        if self.choices is not None:
            return self.choices[int(code)]
        return int(code) if self.dim.integer else float(code)

    def at(self, index: int) -> Any:
        """The value number `index` as the user wrote them down; of a finite axis only."""
        if self.dim.values is not None:
            return self.dim.values[index]
        return math.ceil(self.dim.low) + index if self.dim.integer else float(self.dim.low)


class Space:
    """The dims of one arm."""

    def __init__(self, dims: Sequence[Dim]) -> None:
        self.axes: dict[str, Axis] = {dim.name: Axis.of(dim) for dim in dims}
        if len(self.axes) != len(dims):
            raise ValueError(f"a dim is there twice: {[dim.name for dim in dims]}")
        sizes = [axis.size for axis in self.axes.values()]
        self.size: int | None = math.prod(n for n in sizes if n is not None) if None not in sizes else None
        """How many points there are, a value that was written twice counted twice; None: no finite number."""

    def encode(self, params: Mapping[str, Any]) -> Codes:
        """The code of a point. Raises ValueError where it is none of this space."""
        if params.keys() != self.axes.keys():
            raise ValueError(f"{dict(params)} is no point of the dims {list(self.axes)}")
        return {name: axis.encode(params[name]) for name, axis in self.axes.items()}

    def decode(self, codes: Mapping[str, int | float]) -> dict[str, Any]:
        """The point of a code."""
        return {name: axis.decode(codes[name]) for name, axis in self.axes.items()}

    def known(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a known point that this arm has dims for, in the dims' own values. Raises ValueError outside."""
        return {name: a.decode(a.encode(point[name])) for name, a in self.axes.items() if name in point}

    def at(self, index: int) -> dict[str, Any]:
        """Point number `index` of a finite space, in the order of the product: the last dim changes fastest."""
        out: list[tuple[str, Any]] = []
        for name, axis in reversed(self.axes.items()):
            index, place = divmod(index, axis.size or 1)
            out.append((name, axis.at(place)))
        return dict(reversed(out))

    def all(self) -> Iterator[dict[str, Any]]:
        """Every point of a finite space, in order."""
        return (self.at(index) for index in range(self.size or 0))
