"""From points to full configs: one Hydra compose for each choice of groups, and the rest on its result.

Guarantees: a point's config is the very one that a full Hydra compose of its overrides gives, resolved (a property
test compares them); a key that does not exist is a problem with the nearest valid ones, a key that was renamed one with
its new name; all problems of all points are raised at once. Configs share nothing that can be changed.

How it is quick: points whose overrides differ only in plain values share one compose, that of the first of them. For
each other point its values are set and the interpolations that read them are resolved again, each combination once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweeper.config import experiment, explain, grammar, tree
from sweeper.config.hydra_app import CONFIG_NAME
from sweeper.config.interpolation import Graph, related
from sweeper.engines.base import Config
from sweeper.engines.verl import names
from sweeper.errors import Problem, RequestError
from sweeper.trial.spec import Point

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MEANT: Mapping[str, tuple[str, ...]] = {
    "lr": (names.LR,),
    "tp": (names.TP,),
    "kl": tuple(key for gate in names.GATES.values() for key in gate),
    "seed": names.SEEDS,
}
"""Each name with the verl keys that say the same."""
FAILURES = (HydraException, OmegaConfBaseException)


@dataclass(frozen=True, slots=True)
class Composed:
    """A point with its config."""

    point: Point
    config: Config
    """Resolved: plain dicts, lists and scalars, this point's own."""
    explicit: Mapping[str, Any]
    """What the user set as values of keys: dotted key -> value as composed. Groups are not in it.

    That is what was typed, and what the chosen experiment's own file sets where nothing typed speaks of the same."""


def compose_points(points: Sequence[Point]) -> list[Composed]:
    """The config of every point, in order. Hydra must be initialized (`hydra_app.initialized`).

    Raises:
        RequestError: Every problem of every point, identical ones once, with the number of trials concerned.
    """
    bases: dict[tuple[str, ...], _Base | list[Problem]] = {}
    files: dict[str, list[str]] = {}
    found: list[Composed] = []
    problems: Counter[Problem] = Counter()
    for point in points:
        values, shape = _split(point)
        if shape not in bases:
            bases[shape] = _base(point, values)
        base = bases[shape]
        if isinstance(base, list):
            problems.update(base)
            continue
        try:
            config = base.config(values)
        except FAILURES as error:
            problems.update(explain.resolving(error))
            continue
        typed = _explicit(point, config)
        chosen = _experiment(point)
        if chosen not in files:
            files[chosen] = experiment.keys(experiment.load(chosen)) if chosen else []
        explicit = {**_set_by(files[chosen], typed, config), **typed}
        problems.update(explain.ignored(explicit))
        found.append(Composed(point, config, explicit))
    if problems:
        raise RequestError(_counted(p, n, len(points)) for p, n in problems.items())
    return found


def _counted(problem: Problem, trials: int, total: int) -> Problem:
    """Say how many trials a problem concerns where that is not all of them."""
    return problem if trials == total else replace(problem, what=f"{problem.what} ({trials} of {total} trials)")


def _split(point: Point) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The values that can be set on a shared compose, and all that must be equal for it to be shared."""
    varied = {key.lstrip("~") for key in point.varied}
    parsed = [(line, grammar.parse(line)) for line in point.overrides]
    values: dict[str, Any] = {}
    shape = []
    for line, override in parsed:
        key = grammar.key_of(override)
        others = [grammar.key_of(o) for other, o in parsed if other is not line]
        if key in varied and _settable(override) and not any(related(key, other) for other in others):
            values[key] = override.value()
            shape.append(f"{override.get_key_element()}=")
        else:
            shape.append(line)
    return values, tuple(shape)


def _settable(override: Override) -> bool:
    if override.is_delete() or override.is_hydra_override() or grammar.is_group(override):
        return False
    value = override.value()
    if isinstance(value, str):
        return "${" not in value and value != "???"
    return value is None or isinstance(value, int | float)


def _base(point: Point, values: Mapping[str, Any]) -> _Base | list[Problem]:
    try:
        return _Base(full(point.overrides), values)
    except FAILURES as error:
        return explain.composing(point.overrides, error)


def full(overrides: Iterable[str]) -> DictConfig:
    """One full compose by Hydra, unresolved."""
    cfg: DictConfig = compose(CONFIG_NAME, overrides=list(overrides))
    return cfg


class _Base:
    """One full compose, from which points that differ in plain values are made."""

    def __init__(self, cfg: DictConfig, values: Mapping[str, Any]) -> None:
        self.cfg = cfg
        self.resolved: Config = _plain(cfg)
        graph = Graph(OmegaConf.to_container(cfg, resolve=False))  # type: ignore[arg-type]  # a dict: cfg is one
        self.set = dict(values)
        """What the config's own nodes hold now."""
        self.affected = {key: graph.affected(key) for key in values}
        self.readers: dict[str, list[str]] = {}
        """Interpolation -> the varied keys that it may read."""
        for key, leaves in self.affected.items():
            for leaf in leaves:
                self.readers.setdefault(leaf, []).append(key)
        self.known: dict[tuple[str, tuple[Any, ...]], Any] = {}

    def config(self, values: Mapping[str, Any]) -> Config:
        """The resolved config with these values."""
        config: Config = tree.copy(self.resolved)
        for key, value in values.items():
            tree.put(config, key, value)
        for leaf, keys in self.readers.items():
            tree.put(config, leaf, tree.copy(self._resolve(leaf, keys, values)))
        return config

    def _resolve(self, leaf: str, keys: Sequence[str], values: Mapping[str, Any]) -> Any:
        # The type is part of it: 1, 1.0 and True are equal and hash alike, and print differently.
        case = (leaf, tuple((type(values[k]), values[k]) for k in keys))
        if case not in self.known:
            for key, value in values.items():
                if self.set[key] is not value:
                    OmegaConf.update(self.cfg, key, value)
                    self.set[key] = value
            self.known[case] = _plain(OmegaConf.select(self.cfg, leaf))
        return self.known[case]


def _plain(node: Any) -> Any:
    if isinstance(node, DictConfig | ListConfig):
        return OmegaConf.to_container(node, resolve=True)
    return node


def _experiment(point: Point) -> str:
    """The experiment of a point; empty without one."""
    chosen = [line.partition("=")[2] for line in point.overrides if line.partition("=")[0] == experiment.GROUP]
    return str(grammar.parse(f"{experiment.GROUP}={chosen[-1]}").value()) if chosen else ""


def _set_by(keys: Iterable[str], typed: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """The values of an experiment's file, without those that give way to what was typed.

    A name that is typed replaces the file's verl keys of the same meaning, and the other way round: a clash is what
    one person typed in one line, not what a line changes about a file.
    """
    absent = object()
    found = {key: value for key in keys if (value := tree.get(config, key, absent)) is not absent}
    for name, meant in MEANT.items():
        if name in typed:
            found = {key: value for key, value in found.items() if key not in meant}
        elif any(key in typed for key in meant):
            found.pop(name, None)
    return found


def _explicit(point: Point, config: Config) -> dict[str, Any]:
    typed: dict[str, Any] = {}
    for line in point.overrides:
        override = grammar.parse(line)
        if grammar.is_group(override) or override.is_delete() or override.is_hydra_override():
            continue
        key = grammar.key_of(override)
        value = override.value()
        if isinstance(value, dict) and value:
            for inner, _ in tree.leaves(value):
                typed[f"{key}.{inner}"] = tree.get(config, f"{key}.{inner}")
        else:
            typed[key] = tree.get(config, key)
    return typed
