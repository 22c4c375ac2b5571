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
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
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
_ABSENT = object()
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
    choices: Mapping[str, str]
    """Each config group -> the option that was chosen."""


class Composer:
    """Makes configs of points, as many as are asked for; remembers what they share."""

    def __init__(self) -> None:
        self._bases: dict[tuple[str, ...], _Base | list[Problem]] = {}
        self._files: dict[str, list[str]] = {}

    def compose(self, point: Point) -> Composed:
        """The config of a point. Hydra must be initialized (`hydra_app.initialized`).

        Raises:
            RequestError: Every problem of the point.
        """
        lines = _split(point)
        base = self._base(lines, frozenset(line.key for line in lines if line.free))
        values = {line.key: line.value for line in lines if line.settable}
        try:
            config = base.config(values)
        except FAILURES as error:
            raise RequestError(explain.resolving(error)) from None
        typed = _explicit(point, config)
        chosen = _experiment(point)
        if chosen not in self._files:
            self._files[chosen] = experiment.keys(experiment.load(chosen)) if chosen else []
        explicit = {**_set_by(self._files[chosen], typed, config), **typed}
        if problems := explain.ignored(explicit, config):
            raise RequestError(problems)
        return Composed(point, config, explicit, base.choices)

    def _base(self, lines: Sequence[_Line], free: frozenset[str]) -> _Base:
        """The compose that these lines share with others; the values of `free` keys are no part of it."""
        shape = tuple(
            line.text if not line.settable else f"{line.text.partition('=')[0]}="
            for line in lines
            if line.key not in free
        )
        if shape not in self._bases:
            self._bases[shape] = _composed(lines, free)
        base = self._bases[shape]
        if isinstance(base, list):
            raise RequestError(base)
        if strange := {key for key in free if not base.has(key)}:
            return self._base(lines, free - strange)
        return base


@dataclass(frozen=True, slots=True)
class _Line:
    """One override line of a point."""

    text: str
    key: str
    value: Any = None
    settable: bool = False
    """Whether its value can be set on a config that was composed with another one."""
    free: bool = False
    """Whether it can be set on a config that was composed without it, where that has the key."""


def compose_points(points: Sequence[Point], composer: Composer | None = None) -> list[Composed]:
    """The config of every point, in order. Hydra must be initialized (`hydra_app.initialized`).

    Raises:
        RequestError: Every problem of every point, identical ones once, with the number of trials concerned.
    """
    composer = composer or Composer()
    found: list[Composed] = []
    problems: Counter[Problem] = Counter()
    for point in points:
        try:
            found.append(composer.compose(point))
        except RequestError as error:
            problems.update(error.problems)
    if problems:
        raise RequestError(_counted(p, n, len(points)) for p, n in problems.items())
    return found


def _counted(problem: Problem, trials: int, total: int) -> Problem:
    """Say how many trials a problem concerns where that is not all of them."""
    return problem if trials == total else replace(problem, what=f"{problem.what} ({trials} of {total} trials)")


def _split(point: Point) -> list[_Line]:
    varied = {key.lstrip("~") for key in point.varied}
    parsed = [grammar.parse(line) for line in point.overrides]
    keys = [grammar.key_of(override) for override in parsed]
    lines = []
    for index, (text, key, override) in enumerate(zip(point.overrides, keys, parsed, strict=True)):
        alone = not any(related(key, other) for i, other in enumerate(keys) if i != index)
        if key in varied and alone and _settable(override):
            plain = not (override.is_add() or override.is_force_add())
            lines.append(_Line(text, key, override.value(), settable=True, free=plain))
        else:
            lines.append(_Line(text, key))
    return lines


def _settable(override: Override) -> bool:
    if override.is_delete() or override.is_hydra_override() or grammar.is_group(override):
        return False
    value = override.value()
    if isinstance(value, str):
        return "${" not in value and value != "???"
    return value is None or isinstance(value, int | float)


def _composed(lines: Sequence[_Line], free: frozenset[str]) -> _Base | list[Problem]:
    kept = [line for line in lines if line.key not in free]
    try:
        return _Base(*full(line.text for line in kept), {line.key: line.value for line in kept if line.settable})
    except FAILURES as error:
        return explain.composing([line.text for line in lines], error)  # of all lines: one mistake hides no other


def full(overrides: Iterable[str]) -> tuple[DictConfig, dict[str, str]]:
    """One full compose by Hydra, unresolved, and the option that it chose of each group."""
    cfg: DictConfig = compose(CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)
    choices = {str(group): str(option) for group, option in cfg.hydra.runtime.choices.items()}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


class _Base:
    """One full compose, from which points that differ in plain values are made."""

    def __init__(self, cfg: DictConfig, choices: Mapping[str, str], values: Mapping[str, Any]) -> None:
        self.cfg, self.choices = cfg, choices
        self.resolved: Config = _plain(cfg)
        self._raw: Config = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]  # cfg is a dict
        self._graph = Graph(self._raw)
        self._set = dict(values)
        """What the config's own nodes hold now, of those that were set."""
        self._affected: dict[str, frozenset[str]] = {}
        self._known: dict[tuple[str, tuple[Any, ...]], Any] = {}

    def has(self, key: str) -> bool:
        """Whether a plain value can be set at this key: there is one already."""
        value = tree.get(self.resolved, key, _ABSENT)
        return value is not _ABSENT and not isinstance(value, dict | list)

    def config(self, values: Mapping[str, Any]) -> Config:
        """The resolved config with these values."""
        config: Config = tree.copy(self.resolved)
        for key, value in values.items():
            tree.put(config, key, value)
        for leaf, keys in self._readers(values).items():
            tree.put(config, leaf, tree.copy(self._resolve(leaf, keys, values)))
        return config

    def _readers(self, values: Mapping[str, Any]) -> dict[str, list[str]]:
        """Each interpolation that may read one of these keys -> those keys."""
        found: dict[str, list[str]] = {}
        for key in values:
            if key not in self._affected:
                self._affected[key] = self._graph.affected(key)
            for leaf in self._affected[key] - values.keys():
                found.setdefault(leaf, []).append(key)
        return found

    def _resolve(self, leaf: str, keys: Sequence[str], values: Mapping[str, Any]) -> Any:
        # The type is part of it: 1, 1.0 and True are equal and hash alike, and print differently.
        case = (leaf, tuple((key, type(values[key]), values[key]) for key in keys))
        if case not in self._known:
            for key in self._set.keys() - values.keys():
                OmegaConf.update(self.cfg, key, tree.get(self._raw, key))
                del self._set[key]
            for key, value in values.items():
                if key not in self._set or self._set[key] is not value:
                    OmegaConf.update(self.cfg, key, value)
                    self._set[key] = value
            self._known[case] = _plain(OmegaConf.select(self.cfg, leaf))
        return self._known[case]


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
    found = {key: value for key in keys if (value := tree.get(config, key, _ABSENT)) is not _ABSENT}
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
