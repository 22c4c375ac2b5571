"""What a request varies: from its override lines to its points, one for each trial.

Guarantees: the points are the cross product of the choices in the order typed, the last choice changing fastest; the
same lines give the same points in the same order; all that is wrong with the lines is raised at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    QuotedString,
    RangeSweep,
    Transformer,
)

from sweeper.config import experiment, grammar
from sweeper.errors import Problem, RequestError
from sweeper.trial.spec import Point

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MOST = 100_000
"""Points that a request may have; more is a slip of the keyboard."""


class Space(list[Point]):
    """The points of a request, and what there is to say about them."""

    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Choice:
    """One override line and the lines it stands for, one for each value."""

    key: str
    """As typed, with its prefix."""
    lines: tuple[str, ...]
    values: tuple[Any, ...]


def points(overrides: Sequence[str]) -> Space:
    """The points of a request. Hydra must be initialized (`hydra_app.initialized`).

    Raises:
        RequestError: Lines that cannot be read, options that do not exist, choices that need a sampler.
    """
    problems: list[Problem] = []
    parsed = _read(overrides, problems)
    parsed = _read(_params(parsed), problems) + parsed
    searched = _search(parsed) == "grid"
    choices: dict[str, _Choice] = {}
    notes: list[str] = []
    for override in parsed:
        found = _expand(override, searched, problems, notes)
        if found is None:
            continue
        if found.key in choices:
            notes.append(f"{found.key} is given more than once; the last counts: {override.input_line}")
        choices[found.key] = found  # as with Hydra's sweeper: the place of the first, the values of the last
    total = prod(len(c.lines) for c in choices.values())
    if total > MOST:
        problems.append(Problem(f"the choices multiply to {total:,} trials", valid=f"at most {MOST:,}"))
    if problems:
        raise RequestError(dict.fromkeys(problems))
    space = Space(_cross(list(choices.values())))
    space.notes = tuple(notes)
    return space


def _read(lines: Sequence[str], problems: list[Problem]) -> list[Override]:
    found = []
    for line in lines:
        try:
            found.append(grammar.parse(line))
        except RequestError as error:
            problems.extend(error.problems)
    return found


def _params(typed: Sequence[Override]) -> list[str]:
    """The choices that an experiment brings along (`hydra.sweeper.params` in its file); typed ones replace them."""
    names = [o.value() for o in typed if o.key_or_group == experiment.GROUP and not o.is_sweep_override()]
    if not names or not isinstance(names[-1], str):
        return []
    return [f"{key}={value}" for key, value in experiment.params(experiment.load(names[-1])).items()]


def _search(parsed: Sequence[Override]) -> str:
    chosen = [o.value() for o in parsed if o.key_or_group == "search" and not o.is_sweep_override()]
    return str(chosen[-1]) if chosen else "none"


def _expand(override: Override, searched: bool, problems: list[Problem], notes: list[str]) -> _Choice | None:
    key = override.get_key_element()
    line = str(override.input_line)
    if not override.is_sweep_override():
        if grammar.is_group(override) and (problem := grammar.check_group(override)):
            problems.append(problem)
            return None
        return _Choice(key, (line,), (None if override.is_delete() else override.value(),))
    sweep = override._value
    if (problem := _unusable(sweep, key, line, searched)) is not None:
        problems.append(problem)
        return None
    texts = _glob(override, sweep, problems) if isinstance(sweep, Glob) else _texts(override)
    kept: dict[tuple[str, str], tuple[str, Any]] = {}
    for text in texts:
        one = grammar.parse(f"{key}={text}")
        if grammar.is_group(one) and (problem := grammar.check_group(one)):
            problems.append(problem)
            continue
        value = one.value()
        identity = (type(value).__name__, repr(value))
        if identity in kept:
            notes.append(f"{key}={text} is there twice in {line}; it is run once")
            continue
        kept[identity] = (f"{key}={text}", value)
    if not kept:
        return None
    lines, values = zip(*kept.values(), strict=True)
    return _Choice(key, lines, values)


def _unusable(sweep: Any, key: str, line: str, searched: bool) -> Problem | None:
    if isinstance(sweep, IntervalSweep):
        return Problem(
            f"{line}: an interval has no first and last value to run; it needs a sampler, which this release has not",
            valid=f"{key}=a,b,c  or, with search=grid, choice(...) and range(...)",
            fix=f"{key}={sweep.start},{sweep.end}",
            key=key,
        )
    if isinstance(sweep, ChoiceSweep | RangeSweep) and sweep.shuffle:
        return Problem(
            f"{line}: a shuffled order is another one each time, and trials are numbered in order",
            fix=f"{key}=... without shuffle()",
            key=key,
        )
    simple = isinstance(sweep, Glob) or (isinstance(sweep, ChoiceSweep) and sweep.simple_form)
    if not simple and not searched:
        return Problem(
            f"{line}: {_name(sweep)}(...) is searched, and search=none searches nothing",
            valid="a comma choice (a,b,c) with search=none; choice(...) and range(...) with search=grid",
            fix=f"search=grid '{line}'",
            key=key,
        )
    return None


def _name(sweep: Any) -> str:
    return type(sweep).__name__.removesuffix("Sweep").lower()


def _texts(override: Override) -> list[str]:
    """The values as they would be typed one by one."""
    texts = []
    values = override.sweep_iterator(transformer=Transformer.identity)
    for value, text in zip(values, override.sweep_string_iterator(), strict=True):
        # Hydra escapes the braces of an interpolation here, which would make it a plain text.
        bare = isinstance(value, str) and not isinstance(value, QuotedString) and "${" in value
        texts.append(f"'{value}'" if bare else text)
    return texts


def _glob(override: Override, sweep: Glob, problems: list[Problem]) -> list[str]:
    key = grammar.key_of(override)
    if not grammar.is_group(override):
        problems.append(Problem(f"{override.input_line}: glob() chooses among the options of a group", key=key))
        return []
    found = sweep.filter(grammar.options(key))
    if not found:
        problems.append(Problem(f"{override.input_line} matches none", valid=", ".join(grammar.options(key)), key=key))
    return [str(name) for name in found]


def _cross(choices: Sequence[_Choice]) -> list[Point]:
    varied = [c.key.lstrip("+") if len(c.lines) > 1 else None for c in choices]
    return [
        Point(
            overrides=tuple(line for line, _ in combination),
            varied={k: value for k, (_, value) in zip(varied, combination, strict=True) if k is not None},
        )
        for combination in product(*(zip(c.lines, c.values, strict=True) for c in choices))
    ]
