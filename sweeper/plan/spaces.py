"""The dims and known points of each arm: what was typed, with `search.space` and `search.points` of the config.

Guarantees: a dim is searched in an arm exactly when the arm is one of its `when` and the dim's value can matter there;
what is left out is said, with the reason; a `when` that an arm does not settle, since another dim changes what it asks,
is a problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sweeper import engines
from sweeper.config import dims as spaces
from sweeper.config import grammar, tree
from sweeper.config.compose import MEANT, Composed, Composer
from sweeper.config.nearest import nearest
from sweeper.config.space import Space, no_steps, unsearched, unsweepable
from sweeper.errors import Problem, RequestError
from sweeper.plan.maker import Maker, neighbours
from sweeper.search.base import Dim
from sweeper.search.settings import SearchSettings
from sweeper.trial.spec import Point

SHOWN = 3
"""Dims without an arm that are named before the rest is counted."""
_NUMBERS = {"lr": 1e-6, "kl": 0.001, "tp": 2}
"""Our names that hold a number and are null until something is typed, each with an example."""
_ABSENT = object()
_SECTION: dict[str, Any] = {}


def collect(
    space: Space, bases: Sequence[Composed], search: SearchSettings, problems: list[Problem], notes: list[str]
) -> tuple[Dim, ...]:
    """All dims of the sweep: typed ones, then those of `search.space` that nothing typed replaces."""
    problems += unsearched(space, search.sampler)
    found = {dim.name: dim for dim in space.dims}
    if search.sampler == "none":
        return tuple(found.values())
    typed = {grammar.key_of(grammar.parse(line)) for base in bases for line in base.point.overrides}
    for key, value in _entries(bases[0].config["search"]["space"], bases):
        name = key.lstrip("+~")
        if name in found or name in typed:
            notes.append(f"{name} is typed, which replaces search.space.{name}")
            continue
        if name == "seed":
            problems.append(
                Problem("search.space.seed: seeds are not searched", fix="search.seeds=3", key="search.space")
            )
            continue
        if (problem := unsweepable(key)) is not None:
            problems.append(problem)
            continue
        dim = spaces.from_yaml(key, value, problems, notes)
        if dim is None:
            continue
        problems += _unknown(dim, bases)
        if search.sampler == "grid":
            problems += no_steps(dim, f"{key}={spaces.shown(dim)}")
        found[name] = dim
    for dim in found.values():
        problems += _texts(dim, bases)
    if search.samples and not found and not problems:
        valid = "a dim on the command line, or in search.space; search=none for the comma choices alone"
        problems.append(nothing(search, "", valid))
    return tuple(found.values())


def _texts(dim: Dim, bases: Sequence[Composed]) -> Iterator[Problem]:
    """Texts where a number belongs: a slip of the keyboard, and not a point that happens not to run."""
    wrong = [value for value in dim.values or () if isinstance(value, str)]
    if not wrong or any(dim.name in base.choices for base in bases):
        return
    own = next((v for base in bases if _number(v := tree.get(base.config, dim.name, None))), None)
    if dim.name not in _NUMBERS and own is None:
        return
    texts, one = ", ".join(map(spaces.text_of, wrong)), len(wrong) == 1
    yield Problem(
        f"{dim.name}={spaces.shown(dim)}: {texts} {'is no number' if one else 'are no numbers'}",
        valid=f"numbers, as {_NUMBERS.get(dim.name, own)}",
        fix=f"{dim.name}=choice(...) with {'a number' if one else 'numbers'} in place of {texts}",
        key=dim.name,
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def nothing(search: SearchSettings, why: str, valid: str) -> Problem:
    """That no arm has anything to search."""
    dim = "choice(1e-6,1e-5)" if search.sampler == "grid" else "tag(log,interval(1e-7,1e-4))"
    return Problem(
        f"search={search.sampler} has nothing to search{why}",
        valid=valid,
        fix=f"search={search.sampler} 'lr={dim}'  or  search=none",
        key="search",
    )


def none_lives(search: SearchSettings, idle: Sequence[str]) -> Problem:
    """That no arm has a dim left; `idle`: why, dim by dim and arm by arm."""
    more = f"; and {len(idle) - SHOWN} more" if len(idle) > SHOWN else ""
    return nothing(search, f": {'; '.join(idle[:SHOWN])}{more}", "a dim that matters in one of the arms")


def _entries(space: Mapping[str, Any], bases: Sequence[Composed], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dims of `search.space`; keys may be dotted or nested. What holds a value itself has no keys inside."""
    for key, value in space.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        inner = isinstance(value, Mapping) and bool(value) and "dim" not in value and "when" not in value
        if inner and all(isinstance(tree.get(base.config, name, _SECTION), Mapping) for base in bases):
            yield from _entries(value, bases, name)
        else:
            yield name, value


def _unknown(dim: Dim, bases: Sequence[Composed]) -> Iterator[Problem]:
    """What `when` names and no arm has."""
    for key, wanted in dim.when.items():
        at = f"search.space.{dim.key}.when.{key}"
        if any(key in base.choices for base in bases):
            valid = grammar.options(key)
            for value in wanted:
                if str(value) not in valid:
                    close = nearest(str(value), valid, 1)
                    fix = f"when: {{{key}: {close[0]}}}" if close else ""
                    yield Problem(f"{at}: there is no {key}={value}", valid=", ".join(valid), fix=fix, key=at)
        elif all(tree.get(base.config, key, _ABSENT) is _ABSENT for base in bases):
            known = [*bases[0].choices, *(k for k, _ in tree.values(bases[0].config))]
            close = nearest(key, known)
            fix = f"when: {{{close[0]}: ...}}" if close else "a group or a key of --cfg job"
            yield Problem(f"{at}: there is no {key}", valid=", ".join(close), fix=fix, key=at)


def belongs(dim: Dim, base: Composed) -> bool:
    """Whether an arm is one that a dim is meant for."""
    for key, wanted in dim.when.items():
        texts = [str(w) for w in wanted] if key in base.choices else list(wanted)
        if _asked(key, base) not in texts:
            return False
    return True


def _asked(key: str, composed: Composed) -> Any:
    """What a key of `when` is there: the option of a group, or a value of the config."""
    return composed.choices[key] if key in composed.choices else tree.get(composed.config, key, _ABSENT)


def homeless(dims: Sequence[Dim], bases: Sequence[Composed]) -> list[str]:
    """The dims of which no arm is one of their `when`, a line each."""
    found = []
    for dim in dims:
        if not any(belongs(dim, base) for base in bases):
            wanted = " and ".join(f"{key}={' or '.join(map(str, values))}" for key, values in dim.when.items())
            found.append(f"{dim.name} is not searched: no arm has {wanted}")
    return found


def unsettled(dims: Sequence[Dim], bases: Sequence[Composed], composer: Composer) -> Iterator[Problem]:
    """The `when` that ask for what a dim changes: an arm has no one value of it to be asked for."""
    for dim in dims:
        for key in dim.when:
            mover = next((o for o in dims if any(_moves(o, key, base, composer) for base in bases)), None)
            if mover is None:
                continue
            name = mover.name
            arms = f"{name}={','.join(map(spaces.text_of, mover.values or ()))}"
            follows = "" if key == name else f" {key} follows it, and"
            yield Problem(
                f"search.space.{dim.key}.when.{key}: {name} is searched, so{follows} an arm has no one {key}",
                valid=f"what is the same in a whole arm{f': {arms} makes arms of it' if mover.values else ''}",
                fix=f"{arms} in place of {name}={spaces.shown(mover)}"
                if mover.values and mover is not dim
                else f"search.space.{dim.key} without `when`",
                key=f"search.space.{dim.key}.when.{key}",
            )


def _moves(dim: Dim, key: str, base: Composed, composer: Composer) -> bool:
    """Whether the values of a dim change what a key of `when` is in an arm."""
    if not belongs(dim, base) and dim.name != key:
        return False
    if dim.name == key or key in MEANT.get(dim.name, ()) or dim.name in MEANT.get(key, ()):
        return True
    varied, before = base.point.varied, _asked(key, base)
    for value in spaces.ends(dim):
        lines = (*base.point.overrides, spaces.line(dim.key, value))
        try:
            made = composer.compose(Point(lines, {**varied, dim.name: value}))
        except RequestError:
            continue  # said where the point is looked at
        if _asked(key, made) != before:
            return True
    return False


def without_idle(maker: Maker, label: str, notes: list[str]) -> tuple[Dim, ...]:
    """The dims of an arm whose values can matter there; a note for each of the others."""
    dims = maker.dims
    if not dims:
        return ()
    first = {dim.name: spaces.ends(dim)[0] for dim in dims}
    start = maker.bound(first)
    engine = engines.get(start["engine"]["name"])
    live = []
    for dim in dims:
        why = engine.idle(start, dim.name)
        if why:
            # It may matter elsewhere in the space: where another dim has another value.
            others = ({**first, name: value} for name, value in neighbours(dims))
            why = why if all(engine.idle(maker.bound(point), dim.name) for point in others) else ""
        if why:
            notes.append(f"arm {label}: {dim.name} is not searched: {why}")
        else:
            live.append(dim)
    return tuple(live)


def check_points(points: Sequence[Any], dims: Sequence[Dim]) -> list[Problem]:
    """What is wrong with `search.points`, whatever the arm."""
    known = {dim.name: dim for dim in dims}
    found = []
    for place, point in enumerate(points):
        at = f"search.points[{place}]"
        for name, value in tree.values(point):
            if name not in known:
                close = nearest(name, known, 1)
                found.append(
                    Problem(
                        f"{at}: {name} is not searched",
                        valid=", ".join(known),
                        fix=f"{close[0]}: {value}" if close else f"leave {name} out",
                        key="search.points",
                    )
                )
            elif not spaces.inside(known[name], value):
                found.append(
                    Problem(
                        f"{at}: {name}={value} is outside the space",
                        valid=f"{name}={spaces.shown(known[name])}",
                        fix="another value, or a wider space",
                        key="search.points",
                    )
                )
    return found


def points_of(
    points: Sequence[Any], maker: Maker, label: str, notes: list[str], *, whole: bool = False
) -> tuple[dict[str, Any], ...]:
    """The known points in an arm: its dims only, each once, without those that cannot run there (a note says why).

    `whole`: only those that name every dim.
    """
    names = {dim.name for dim in maker.dims}
    found: dict[str, dict[str, Any]] = {}
    for place, point in enumerate(points):
        here = {name: value for name, value in tree.values(point) if name in names}
        if whole and here and len(here) < len(names):
            notes.append(f"arm {label}: search.points[{place}] leaves a dim open, and a grid runs every point anyway")
            continue
        if len(here) == len(names) and (why := maker.refuse(here)):
            notes.append(f"arm {label}: search.points[{place}] is left out: {why}")
        elif here:
            found.setdefault(repr(sorted(here.items())), here)
    return tuple(found.values())


def too_many(known: Sequence[Mapping[str, Any]], search: SearchSettings) -> Problem | None:
    """Known points that would never be run: they come first, and an arm runs no more than `search.trials`."""
    most, count = search.trials, len(known)
    if most is None or count <= most:
        return None
    return Problem(
        f"search.points has {count} points for an arm, and search.trials={most} runs no more than that",
        valid=f"search.trials from {count} on, or at most {most} point{'s' * (most != 1)}",
        fix=f"search.trials={count}",
        key="search.points",
    )
