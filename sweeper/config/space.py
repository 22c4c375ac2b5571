"""What a request varies: from its override lines to arms (compared), dims (searched in each arm) and seeds.

Guarantees: the arms are the cross product of the comma choices in the order typed, the last choice changing fastest;
the same lines give the same space; a dim is what Hydra's parser says of its line; all that is wrong with the lines is
raised at once.

    algorithm=grpo,ppo                      two arms; so does algorithm=glob(*ppo*)
    lr=tag(log,interval(1e-7,1e-4))         a dim; so do choice(...), range(...), int(interval(...))
    seed=1,2,3                              seeds: every candidate is run under each
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, QuotedString, RangeSweep, Sweep, Transformer

from sweeper.config import dims, experiment, grammar
from sweeper.errors import Problem, RequestError
from sweeper.search.base import Dim
from sweeper.trial.spec import Point

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MOST = dims.MOST
"""Arms that a request may have; more is a slip of the keyboard."""

SWEEP_LEVEL = (
    "name", "project", "store", "plan", "detach", "output", "tracking", "search", "scheduler", "objective", "stop",
    "failures", "placement", "lineage", "max_concurrent",
)  # fmt: skip
"""Root keys that belong to the sweep as a whole and so cannot differ between its trials."""


@dataclass(frozen=True, slots=True)
class Space:
    """What a request varies."""

    arms: tuple[Point, ...]
    """Without what is searched and without seeds that vary."""
    dims: tuple[Dim, ...] = ()
    """Typed ones, in order; `search.space` of the config may add to them."""
    seeds: tuple[int, ...] = ()
    """Those of a choice of `seed`; empty where there is none."""
    lines: Mapping[str, str] = field(default_factory=dict)
    """Name of a dim -> the line that was typed."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Choice:
    """One override line and the lines it stands for, one for each value."""

    key: str
    """As typed, with its prefix."""
    lines: tuple[str, ...]
    values: tuple[Any, ...]


def read(overrides: Sequence[str]) -> Space:
    """The space of a request. Hydra must be initialized (`hydra_app.initialized`).

    Raises:
        RequestError: Lines that cannot be read, options that do not exist, dims that cannot be meant.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    parsed = _read(overrides, problems)
    parsed = _read(_params(parsed), problems) + parsed
    found: dict[str, _Choice | Dim | tuple[int, ...]] = {}
    lines: dict[str, str] = {}
    for override in parsed:
        key = str(override.get_key_element())
        one = _one(override, problems, notes)
        if one is None:
            continue
        if key in found:
            notes.append(f"{key} is given more than once; the last counts: {override.input_line}")
        found[key] = one  # as with Hydra's sweeper: the place of the first, the values of the last
        if isinstance(one, Dim):
            lines[one.name] = str(override.input_line)
    choices = [c for c in found.values() if isinstance(c, _Choice)]
    total = prod(len(c.lines) for c in choices)
    if total > MOST:
        problems.append(Problem(f"the choices multiply to {total:,} trials", valid=f"at most {MOST:,}"))
    if problems:
        raise RequestError(dict.fromkeys(problems))
    return Space(
        arms=tuple(_cross(choices)),
        dims=tuple(d for d in found.values() if isinstance(d, Dim)),
        seeds=next((s for s in found.values() if isinstance(s, tuple)), ()),
        lines={d.name: lines[d.name] for d in found.values() if isinstance(d, Dim)},
        notes=tuple(notes),
    )


def unsearched(space: Space, sampler: str) -> list[Problem]:
    """The typed dims that this sampler cannot search."""
    found = []
    for dim in space.dims:
        line = space.lines[dim.name]
        if sampler == "none":
            interval = dim.values is None
            found.append(
                Problem(
                    f"{line}: {'an interval' if interval else 'a choice(...) or range(...)'} is searched, "
                    "and search=none searches nothing",
                    valid="a comma choice (a,b,c) with search=none; choice(...) and range(...) with search=grid; "
                    "interval(...) with a sampler: random, tpe, gp, qmc, nsga2",
                    fix=f"search={'tpe' if interval else 'grid'} '{line}'",
                    key=dim.name,
                )
            )
        elif sampler == "grid":
            found += no_steps(dim, line)
    return found


def no_steps(dim: Dim, line: str) -> list[Problem]:
    """A grid has no points in an interval."""
    if dims.count_of(dim) is not None:
        return []
    low, high = dims.text_of(dim.low), dims.text_of(dim.high)
    return [
        Problem(
            f"{line}: an interval has no steps for a grid",
            valid="choice(...) or range(...) with search=grid; interval(...) with a sampler: random, tpe, gp, qmc",
            fix=f"search=tpe '{line}'  or  '{dim.key}=choice({low},{high})'",
            key=dim.name,
        )
    ]


def unsweepable(key: str) -> Problem | None:
    """Why a key cannot take several values in one sweep."""
    name = key.lstrip("+~")
    if name.split(".")[0] not in SWEEP_LEVEL:
        return None
    if name.startswith("search.space."):
        dim = name.removeprefix("search.space.")
        return Problem(
            f"{key}: a dim in search.space is a text, and without quotes of its own it is searched itself",
            valid="the dim on the command line, or its text in quotes",
            fix=f"'{dim}=...'  or  '{key}=\"...\"'",
            key=name,
        )
    return Problem(
        f"{name} belongs to the whole sweep and cannot take several values",
        valid="one value",
        fix=f"give {name} once",
        key=name,
    )


def _read(lines: Sequence[str], problems: list[Problem]) -> list[Override]:
    found = []
    for line in lines:
        try:
            override = grammar.parse(line)
        except RequestError as error:
            problems.extend(error.problems)
            continue
        if (problem := _mixed(override)) is not None:
            problems.append(problem)
        else:
            found.append(override)
    return found


def _params(typed: Sequence[Override]) -> list[str]:
    """The choices that an experiment brings along (`hydra.sweeper.params` in its file); typed ones replace them."""
    names = [o.value() for o in typed if o.key_or_group == experiment.GROUP and not o.is_sweep_override()]
    if not names or not isinstance(names[-1], str):
        return []
    return [f"{key}={value}" for key, value in experiment.params(experiment.load(names[-1])).items()]


def _one(override: Override, problems: list[Problem], notes: list[str]) -> _Choice | Dim | tuple[int, ...] | None:
    """What one line is: fixed or a choice of arms, a dim, or seeds; None where it is wrong."""
    key = str(override.get_key_element())
    if not override.is_sweep_override():
        if grammar.is_group(override) and (problem := grammar.check_group(override)):
            problems.append(problem)
            return None
        return _Choice(key, (str(override.input_line),), (None if override.is_delete() else override.value(),))
    if (problem := unsweepable(key)) is not None:
        problems.append(problem)
        return None
    if grammar.key_of(override) == "seed":
        return _seeds(override, problems, notes)
    sweep = override._value
    if isinstance(sweep, Glob) or (isinstance(sweep, ChoiceSweep) and sweep.simple_form):
        return _arms(override, sweep, problems, notes)
    return dims.from_override(override, problems, notes)


def _mixed(override: Override) -> Problem | None:
    """A choice or an interval inside of another value: Hydra reads it and can make nothing of it."""

    def sweeps(value: Any) -> bool:
        if isinstance(value, list | tuple):
            return any(map(sweeps, value))
        return any(map(sweeps, value.values())) if isinstance(value, Mapping) else isinstance(value, Sweep | Glob)

    value, line = override._value, str(override.input_line)
    if not sweeps(
        value.list if isinstance(value, ChoiceSweep) else [value] if not isinstance(value, Sweep | Glob) else ()
    ):
        return None
    key = str(override.get_key_element())
    if grammar.key_of(override) == "search.space":
        return None  # explain.py says how a dim is written there
    what = "a value of a choice" if isinstance(value, ChoiceSweep) else "a part of a value"
    return Problem(
        f"{line}: a choice(...), range(...), interval(...) or glob(...) cannot be {what}",
        valid=f"arms: {key}=a,b   searched: {key}=choice(a,b), {key}=range(1,9), {key}=interval(1e-6,1e-4)",
        fix=f"{key}=choice(...) with every value in it",
        key=key,
    )


def _seeds(override: Override, problems: list[Problem], notes: list[str]) -> tuple[int, ...] | None:
    """A choice of seeds, whatever the sampler: they are what a score is the mean over, not what is searched."""
    line = override.input_line
    listed = isinstance(override._value, ChoiceSweep | RangeSweep)
    values = dims.values(override, problems, notes) if listed else []
    wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, int) or v < 0]
    if wrong or not listed:
        what = f"{wrong[0]} is no seed" if wrong else "seeds are listed, not searched"
        problems.append(
            Problem(f"{line}: {what}", valid="whole numbers from 0", fix="seed=1,2,3  or  search.seeds=3", key="seed")
        )
        return None
    return tuple(values) or None


def _arms(override: Override, sweep: ChoiceSweep | Glob, problems: list[Problem], notes: list[str]) -> _Choice | None:
    key, line = str(override.get_key_element()), str(override.input_line)
    if isinstance(sweep, ChoiceSweep) and sweep.shuffle:
        problems.append(dims.shuffled(key, line))
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
