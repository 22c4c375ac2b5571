"""Arms that compute the same: by their placement, by keys that are not read there, and those that do not differ at all.

Guarantees: two arms compute the same exactly where they search the same dims and their points have the same
fingerprints, but for keys of which the engine says that they cannot matter there (`Engine.idle`). Of those, arms with
another placement are found, to be run each and compared by it; of arms that differ only in keys that are not read, the
first is trained for all of them; two that differ in nothing are a problem that names both. No fingerprint is changed by
any of this: the config of what is trained is the one that was composed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper import engines
from sweeper.config import dims as space
from sweeper.engines.base import Config
from sweeper.errors import Problem
from sweeper.plan.arms import ArmPlan
from sweeper.plan.maker import neighbours
from sweeper.report.rows import Alike
from sweeper.trial.identity import both_leaves, canonical, fingerprint_of, placement_of
from sweeper.trial.spec import Point, Trial

_WRITTEN = frozenset(
    {"name", "project", "lr", "kl", "tp", "responses_per_step", "updates_per_step", "binding", "deterministic", "model"}
)
"""Our keys that say nothing of where a trial runs: they are names, or the engine's own keys say it."""
SHOWN = 3
"""Places of the same duplicate that are named before the rest is counted."""
_NOT_THERE = {"absent": True}  # no leaf is a mapping
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of the arms of a plan."""

    groups: tuple[Alike, ...]
    """Arms that differ from each other in placement only."""
    instead: Mapping[str, str]
    """Arm id -> the arm that is trained instead of it, where they differ only in what is not read."""
    problems: tuple[Problem, ...]
    """Arms that differ in nothing."""


def find(arms: Sequence[ArmPlan]) -> Found:
    """Every two arms that compute the same. Not asked of an arm without a trial that can run."""
    known = [arm for arm in arms if arm.example is not None]
    groups, instead, twice = [], dict[str, str](), list[list[ArmPlan]]()
    for same in _same(known):
        places: dict[str, list[ArmPlan]] = {}
        for arm, place in same:
            places.setdefault(place, []).append(arm)
        for several in places.values():
            whole: dict[tuple[str, str], list[ArmPlan]] = {}
            for arm in several if len(several) > 1 else ():
                whole.setdefault(_prints(arm), []).append(arm)
            twice += [equal for equal in whole.values() if len(equal) > 1]
            instead.update({arm.id: several[0].id for arm in several[1:]})
        if len(places) > 1:
            groups.append(_alike([arm for arm, _ in same]))
    return Found(tuple(groups), instead, (*_problems(twice),))


def untrained(arms: Sequence[ArmPlan], instead: Mapping[str, str]) -> list[str]:
    """What is said of the arms that another one stands for, a line for each that does."""
    by_id = {arm.id: arm for arm in arms}
    beside: dict[str, list[ArmPlan]] = {}
    for other, kept in instead.items():
        beside.setdefault(kept, []).append(by_id[other])
    lines = []
    for kept, others in beside.items():
        labels = "; ".join(arm.label for arm in others[:SHOWN])
        more = f"; and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        why = ", ".join(_unread(by_id[kept], others))
        lines.append(f"arm {by_id[kept].label} is trained once, also for {labels}{more}: {why}")
    more = f"; and so on for {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return [*lines[: SHOWN - 1], *(line + more for line in lines[SHOWN - 1 : SHOWN])]


def _unread(kept: ArmPlan, others: Sequence[ArmPlan]) -> Iterator[str]:
    """Why each key that these arms differ in cannot matter in them."""
    config = _config(kept)
    engine = engines.get(config["engine"]["name"])
    for key in _varied([kept, *others])[0]:
        why = engine.idle(config, key)
        yield f"{key} is not read{f' ({why})' if why else ''}"


def note(groups: Sequence[Alike]) -> list[str]:
    """What a plan says of them."""
    keys = dict.fromkeys(", ".join(next(iter(group.values.values()))) for group in groups)
    return [
        f"arms that differ in {each} only differ in placement: none is reused, and what it does is reported apart"
        for each in keys
    ]


def _same(arms: Sequence[ArmPlan]) -> Iterator[list[tuple[ArmPlan, str]]]:
    """Two arms and more that compute the same, each with its placement."""
    if len(arms) < 2:
        return
    # A fingerprint takes milliseconds and a plan may have ten thousand arms: first what differs from the first arm.
    suspects: dict[tuple[str, str], list[ArmPlan]] = {}
    reference = _config(arms[0])
    for arm in arms:
        try:
            suspects.setdefault((repr(arm.dims), _mark(_config(arm), reference)), []).append(arm)
        except TypeError:  # a leaf that is no number equals nothing, not even itself
            continue
    for several in suspects.values():
        found: dict[str, list[tuple[ArmPlan, str]]] = {}
        for arm in several if len(several) > 1 else ():
            identity, place = _prints(arm, read=True)
            found.setdefault(identity, []).append((arm, place))
        yield from (same for same in found.values() if len(same) > 1)


def _config(arm: ArmPlan) -> Config:
    """The bound config of the arm's first point, whether it can run or not: the same point in every arm."""
    if not arm.dims and arm.example is not None:
        return dict(arm.example.trial.config)
    return arm.maker.bound({dim.name: space.ends(dim)[0] for dim in arm.dims})


def _mark(config: Config, reference: Config) -> str:
    """Equal for two configs where the fingerprints of what is read are; hardly ever where they are not (1 and `true`
    look alike)."""
    patterns = placement_of(config)
    mine, theirs = (both_leaves(_apart(*pair), patterns)[0] for pair in ((config, reference), (reference, config)))
    changed = {key: value for key, value in mine.items() if theirs.get(key, _ABSENT) != value}
    return fingerprint_of(_read({**changed, **{key: _NOT_THERE for key in theirs if key not in mine}}, config))


def _read(leaves: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Those that can matter in that config."""
    engine = engines.get(config["engine"]["name"])
    return {key: value for key, value in leaves.items() if not engine.idle(config, key)}


def _apart(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that is not so in the other one."""
    found = {}
    for key, value in config.items():
        beside = other.get(key, _ABSENT)
        if value != beside:
            both = isinstance(value, Mapping) and isinstance(beside, Mapping)
            found[key] = _apart(value, beside) if both else value
    return found


def _prints(arm: ArmPlan, *, read: bool = False) -> tuple[str, str]:
    """What stands for all that the arm computes, and for where it does; `read`: but for keys that cannot matter."""
    configs = [_config(arm)]
    if arm.dims:
        first = {dim.name: space.ends(dim)[0] for dim in arm.dims}
        configs += [arm.maker.bound({**first, name: value}) for name, value in neighbours(arm.dims)]
    identities, places = [], []
    for config in configs:
        identity, rest = both_leaves(config, placement_of(config))
        if read:
            identity, rest = _read(identity, config), _read(rest, config)
        identities.append(fingerprint_of(identity))
        places.append({key: value for key, value in rest.items() if key.partition(".")[0] not in _WRITTEN})
    return " ".join(identities), canonical({str(n): place for n, place in enumerate(places)})


def _alike(arms: Sequence[ArmPlan]) -> Alike:
    keys, common = _varied(arms)
    return Alike(common, {arm.id: {key: arm.point.varied.get(key) for key in keys} for arm in arms})


def _varied(arms: Sequence[ArmPlan]) -> tuple[list[str], str]:
    """The keys that vary between these arms, and the label of what else varies in the sweep."""
    first = arms[0].point.varied
    keys = [key for key in first if len({repr(arm.point.varied.get(key)) for arm in arms}) > 1]
    common = {key: value for key, value in first.items() if key not in keys}
    return keys, Trial("", Point((), common), {}).label if common else ""


def _problems(twice: Sequence[Sequence[ArmPlan]]) -> Iterator[Problem]:
    """One for each set of lines that make no difference, wherever in the cross product they do not."""
    found: dict[tuple[str, ...], list[str]] = {}
    for arms in twice:
        # Arms are a cross product, so that the lines of all are in one order.
        differ = [n for n, of in enumerate(zip(*(a.point.overrides for a in arms), strict=True)) if len({*of}) > 1]
        lines = tuple(" ".join(arm.point.overrides[n] for n in differ) for arm in arms)
        found.setdefault(lines, []).append(_varied(arms)[1])
    for lines, where in found.items():
        more = f" and {len(where) - SHOWN} more" if len(where) > SHOWN else ""
        at = f" (with {'; '.join(where[:SHOWN])}{more})" if where[0] else ""
        yield Problem(
            f"{', '.join(lines[:-1])} and {lines[-1]} are one and the same arm{at}: nothing that is computed differs, "
            "nor does the placement",
            valid="arms that differ in what is computed, or in where it is",
            fix=f"{lines[0]} alone; seed=1,2 runs an arm twice under different seeds",
            key=lines[0].partition("=")[0].lstrip("+~"),
        )
