"""What is searched: dims from Hydra's own sweeps and from YAML, their points, and the override line of a value.

Guarantees: a dim holds what Hydra's parser says of its text; bounds are finite, rising and inside the domain of their
scale; every point that is made here lies inside; the same dims give the same points in the same order.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Quote, QuotedString, RangeSweep
from hydra.core.override_parser.types import Override as HydraOverride

from sweeper.config import grammar
from sweeper.errors import Problem, RequestError
from sweeper.search.base import Dim

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MOST = 100_000
"""Values that one dim may list, and points that a grid may have; more is a slip of the keyboard."""

_FORMS = "'interval(a,b)', 'tag(log,interval(a,b))', 'int(interval(a,b))', 'range(a,b)', 'choice(a,b)'"
_BARE = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
WHOLE = ("tp", "responses_per_step", "updates_per_step")
_WORDS = {"null", "true", "false", "inf", "nan"}
"""What Hydra does not read as a text."""


def from_override(override: Override, problems: list[Problem], notes: list[str]) -> Dim | None:
    """The dim of a line that holds `choice`, `range` or `interval`; None where it is wrong."""
    key, line = str(override.get_key_element()), str(override.input_line)
    sweep = override._value
    found: Dim | Problem
    if isinstance(sweep, IntervalSweep):
        found = _interval(key, line, sweep)
    elif isinstance(sweep, RangeSweep):
        found = _range(key, line, sweep)
    elif isinstance(sweep, ChoiceSweep):
        found = _finite(key, line, [HydraOverride._convert_value(v) for v in sweep.list], notes)
    else:
        found = Problem(f"{line}: glob() names arms, it is not searched", fix=f"{key}=choice(...)", key=key)
    if isinstance(sweep, ChoiceSweep | RangeSweep) and sweep.shuffle:
        found = shuffled(key, line)
    scale = {"log"} if isinstance(sweep, IntervalSweep) else set()
    if unknown := sorted(set(getattr(sweep, "tags", ())) - scale):
        notes.append(f"{line}: the tag {', '.join(unknown)} says nothing here")
    if isinstance(found, Problem):
        problems.append(found)
        return None
    if grammar.is_group(override):
        wrong = [p for value in found.values or () if (p := _option(key, value))]
        if found.values is None:
            wrong = [Problem(f"{line}: a group has options, no interval", key=key)]
        problems += wrong
        return None if wrong else found
    return found


def from_yaml(key: str, value: Any, problems: list[Problem], notes: list[str]) -> Dim | None:
    """The dim of an entry of `search.space`: a text as on the command line, a list of values, or one with `when`."""
    when: dict[str, tuple[Any, ...]] = {}
    if isinstance(value, Mapping):
        if extra := [k for k in value if k not in ("dim", "when")]:
            what = f"search.space.{key} has {', '.join(map(str, extra))}"
            fix = f"{key}: {{dim: [a, b], when: {{algorithm: ppo}}}}, where `when` may be left out"
            problems.append(Problem(what, valid="dim, when", fix=fix, key="search.space"))
            return None
        wanted = value.get("when") or {}
        if not isinstance(wanted, Mapping):
            problems.append(
                Problem(
                    f"search.space.{key}.when={wanted}", valid="{algorithm: ppo}, {a.key: [1, 2]}", key="search.space"
                )
            )
            return None
        when = {str(k): tuple(v) if isinstance(v, list) else (v,) for k, v in wanted.items()}
        value = value.get("dim")
    dim: Dim | None = None
    if isinstance(value, list) and value:
        found = _finite(key, f"search.space.{key}={value}", value, notes)
        dim = found if isinstance(found, Dim) else None
    elif isinstance(value, str):
        dim = _text(key, value, problems, notes)
        if dim is None:
            return None
    if dim is None:
        problems.append(
            Problem(
                f"search.space.{key}={value} is nothing to search",
                valid=f"{_FORMS}, [a, b]",
                fix="a single value belongs to the key itself",
                key="search.space",
            )
        )
        return None
    return Dim(dim.key, dim.values, dim.low, dim.high, dim.log, dim.integer, when)


def shuffled(key: str, line: str) -> Problem:
    """Why an order by chance is refused."""
    return Problem(
        f"{line}: a shuffled order is another one each time, and trials are numbered in order",
        fix=f"{key}=... without shuffle()",
        key=key,
    )


def values(override: Override, problems: list[Problem], notes: list[str]) -> list[Any]:
    """The values of a line that lists some (a,b / choice / range), each once; empty where it is wrong."""
    dim = from_override(override, problems, notes)
    if dim is not None and dim.values is None:
        problems.append(
            Problem(f"{override.input_line}: an interval lists no values", fix=f"{dim.key}=range(...)", key=dim.name)
        )
        return []
    return [*dim.values] if dim is not None and dim.values is not None else []


def line(key: str, value: Any) -> str:
    """The override line that sets this value; Hydra reads the very value out of it."""
    return f"{key}={text_of(value)}"


def text_of(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(HydraOverride._get_value_element_as_str(_quoted(value)))


def _quoted(value: Any) -> Any:
    if isinstance(value, str):
        bare = _BARE.fullmatch(value) and value.lower() not in _WORDS
        return value if bare else QuotedString(value, Quote.single)
    if isinstance(value, list):
        return [_quoted(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _quoted(v) for k, v in value.items()}
    return value


def size(dims: Sequence[Dim]) -> int | None:
    """Points of the space; None where an interval makes them endless. No dims: one point."""
    total = 1
    for dim in dims:
        count = count_of(dim)
        if count is None:
            return None
        total *= count
    return total


def count_of(dim: Dim) -> int | None:
    """Values of a dim; None for an interval of numbers."""
    if dim.values is not None:
        return len(dim.values)
    return int(dim.high) - int(dim.low) + 1 if dim.integer else None


def every(dims: Sequence[Dim]) -> Iterator[dict[str, Any]]:
    """Every point of a finite space, the last dim changing fastest."""
    names = [dim.name for dim in dims]
    listed = (dim.values or tuple(range(int(dim.low), int(dim.high) + 1)) for dim in dims)
    for combination in product(*listed):
        yield dict(zip(names, combination, strict=True))


def corners(dims: Sequence[Dim]) -> Iterator[dict[str, Any]]:
    """Every combination of listed values and bounds of intervals, the last dim changing fastest."""
    names = [dim.name for dim in dims]
    for combination in product(*(ends(dim) for dim in dims)):
        yield dict(zip(names, combination, strict=True))


def corner_count(dims: Sequence[Dim]) -> int:
    """How many points `corners` gives."""
    return math.prod(len(ends(dim)) for dim in dims)


def ends(dim: Dim) -> tuple[Any, ...]:
    """The values of a dim; the two bounds of an interval."""
    if dim.values is not None:
        return dim.values
    return (int(dim.low), int(dim.high)) if dim.integer else (dim.low, dim.high)


def sample(dims: Sequence[Dim], count: int, seed: int) -> list[dict[str, Any]]:
    """Points drawn evenly (on a log scale where the dim has one), each at most once; fewer where there are fewer."""
    draw = random.Random(seed)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(count):
        point = {dim.name: _drawn(dim, draw) for dim in dims}
        found.setdefault(repr(point), point)
    return [*found.values()]


def _drawn(dim: Dim, draw: random.Random) -> Any:
    if dim.values is not None:
        return dim.values[draw.randrange(len(dim.values))]
    share = draw.random()
    value = dim.low * (dim.high / dim.low) ** share if dim.log else dim.low + (dim.high - dim.low) * share
    value = min(max(value, dim.low), dim.high)
    return round(value) if dim.integer else value


def outside(dims: Sequence[Dim], params: Mapping[str, Any]) -> list[str]:
    """Why these parameters are no point of the space; empty when they are one."""
    known = {dim.name: dim for dim in dims}
    found = [f"{name} is not searched" for name in params if name not in known]
    found += [f"{name} is missing" for name in known if name not in params]
    for name, value in params.items():
        if name in known and not inside(known[name], value):
            found.append(f"{name}={value} is outside {shown(known[name])}")
    return found


def inside(dim: Dim, value: Any) -> bool:
    """Whether a dim has this value."""
    if dim.values is not None:
        return any(v == value and isinstance(v, bool) == isinstance(value, bool) for v in dim.values)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return dim.low <= value <= dim.high and (not dim.integer or value == int(value))


def shown(dim: Dim) -> str:
    """A dim as it would be typed, without its key; long lists are cut."""
    if dim.values is not None:
        several = [*map(_short, dim.values)]
        return f"choice({','.join(several if len(several) <= 8 else [*several[:6], '...', several[-1]])})"
    low, high = (int(dim.low), int(dim.high)) if dim.integer else (dim.low, dim.high)
    text = f"interval({_short(low)},{_short(high)})"
    text = f"int({text})" if dim.integer else text
    return f"tag(log,{text})" if dim.log else text


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else text_of(value)


def _interval(key: str, line: str, sweep: IntervalSweep) -> Dim | Problem:
    low, high = sweep.start, sweep.end
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return Problem(
            f"{line}: the bounds must be finite numbers",
            valid="interval(0.1,0.9), tag(log,interval(1e-7,1e-4))",
            key=key,
        )
    log = "log" in sweep.tags
    if low >= high:
        swapped = low > high
        text = f"interval({_number(high)},{_number(low)})"
        fix = f"{key}={f'tag(log,{text})' if log else text}" if swapped else f"{key}={_number(low)}"
        what = "the upper bound is below the lower one" if swapped else "both bounds are the same, nothing is searched"
        return Problem(f"{line}: {what}", valid="interval(low,high)", fix=fix, key=key)
    if log and low <= 0:
        return Problem(
            f"{line}: the logarithm of {_number(low)} does not exist",
            valid="a lower bound above 0",
            fix=f"{key}=tag(log,interval({_under(high)},{_number(high) if high > 0 else '1e-3'})), "
            f"or {key}=interval(...) without the log",
            key=key,
        )
    integer = isinstance(low, int) and isinstance(high, int)
    if key in WHOLE and not integer:
        listed = f"{key}=int({line.partition('=')[2]})"
        return Problem(
            f"{line}: {key} is a whole number, and this has all numbers between {_number(low)} and {_number(high)}",
            valid=f"{key}=choice(1,2,4), {listed}",
            fix=f"{key}=choice(1,2,4)",
            key=key,
        )
    return Dim(key, None, low, high, log, integer)


def _under(high: float) -> str:
    """A round number some decades below."""
    return f"1e{math.floor(math.log10(high)) - 3}" if high > 0 else "1e-6"


def _range(key: str, line: str, sweep: RangeSweep) -> Dim | Problem:
    start, stop, step = sweep.start, sweep.stop, sweep.step
    if start is None or stop is None or not all(map(math.isfinite, (start, stop, step))) or step == 0:
        return Problem(f"{line}: start, stop and step must be finite, and the step not 0", valid="range(1,4)", key=key)
    count = math.ceil((stop - start) / step)
    if count < 1:
        fix = f"{key}=range({_number(stop)},{_number(start)})" if step > 0 and stop < start else ""
        return Problem(f"{line} has no values", valid="range(start,stop): stop is not in it", fix=fix, key=key)
    if count > MOST:
        return Problem(
            f"{line} has {count:,} values",
            valid=f"at most {MOST:,}",
            fix=f"{key}=int(interval({_number(start)},{_number(stop)}))",
            key=key,
        )
    return Dim(key, tuple(sweep.range()))


def _finite(key: str, line: str, listed: Sequence[Any], notes: list[str]) -> Dim | Problem:
    kept: dict[tuple[str, Any], Any] = {}
    for value in listed:
        if isinstance(value, float) and not math.isfinite(value):
            return Problem(f"{line}: {value} is no value to run with", valid="finite numbers", key=key)
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        identity = ("number", value) if plain else (type(value).__name__, repr(value))
        if identity in kept:
            notes.append(f"{key}={value} is there twice in {line}; it is run once")
        kept.setdefault(identity, value)
    return Dim(key, tuple(kept.values()))


def _text(key: str, text: str, problems: list[Problem], notes: list[str]) -> Dim | None:
    try:
        override = grammar.parse(f"{key}={text}")
    except RequestError as error:
        problems.extend(error.problems)
        return None
    if not override.is_sweep_override():
        problems.append(
            Problem(
                f"search.space.{key}={text} is one value, nothing to search",
                valid=_FORMS,
                fix=f"{key}={text} outside search.space",
                key="search.space",
            )
        )
        return None
    return from_override(override, problems, notes)


def _option(key: str, value: Any) -> Problem | None:
    return grammar.check_group(grammar.parse(line(key, value)))


def _number(value: float) -> str:
    return repr(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else repr(value)
