"""What Hydra's refusals mean: problems a user can act on, all of a request's overrides at once.

Guarantees: each override is tried on its own against the same groups, so that one mistake does not hide the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweeper.config import grammar, schema
from sweeper.config.hydra_app import CONFIG_NAME, conf
from sweeper.config.nearest import nearest
from sweeper.engines.verl import renamed
from sweeper.errors import Problem

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_CLOSED = ("search", "scheduler", "stop", "failures", "placement", "keep", "lineage", "objective")
"""Our sections that have the keys they have, and no others that an engine or an environment might read."""


def composing(lines: Iterable[str], error: Exception) -> list[Problem]:
    """Why these overrides do not compose: the problem of each; the error itself where none is at fault alone."""
    overrides = [grammar.parse(line) for line in lines]
    groups = [o for o in overrides if grammar.is_group(o)]
    values = [o for o in overrides if not grammar.is_group(o) and not o.is_hydra_override()]
    try:
        cfg = compose(CONFIG_NAME, overrides=[str(o.input_line) for o in groups])
    except (HydraException, OmegaConfBaseException) as group_error:
        return [_as_is(group_error)]
    problems = [problem for override in values if (problem := _trial(override, cfg)) is not None]
    problems += ignored({grammar.key_of(o): o.value() for o in values if not o.is_delete()}, cfg)
    if problems:
        return problems
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as resolving_error:
        return resolving(resolving_error)
    return [_as_is(error)]


def resolving(error: Exception) -> list[Problem]:
    """Why a composed config does not resolve."""
    if isinstance(error, OmegaConfBaseException):
        key = str(error.full_key or "")
        return [Problem(f"{key}: {_first(error)}", fix=f"another value for {key}, or for what it refers to", key=key)]
    return [_as_is(error)]


def ignored(explicit: Mapping[str, Any], config: Mapping[str, Any]) -> list[Problem]:
    """Typed keys that are accepted and that nothing reads: the engine's, and what `+` adds to our own sections."""
    found = []
    for key, value in explicit.items():
        root, _, inside = key.partition(".")
        if inside and root in _CLOSED and not _is_read(inside, _section(root, config)):
            found.append(_no_such(key, value, config))
        new = renamed.ignored(key) if value is not None else None
        if new is not None:
            found.append(
                Problem(
                    f"{key} is read by no part of verl 0.9.1's main_ppo: it moved to {new.key}",
                    fix=_typed(new.key, value, new.add),
                    key=key,
                    source=new.source,
                )
            )
    return found


def _trial(override: Override, cfg: DictConfig) -> Problem | None:
    """Apply one override as Hydra does; what is wrong with it, if anything."""
    key = grammar.key_of(override)
    for parent in _parents(key):
        node = OmegaConf.select(cfg, parent, throw_on_missing=False)
        if node is not None and not OmegaConf.is_config(node):
            what = f"{override.input_line}: {parent} is a value, there is nothing inside it"
            return Problem(what, fix=_typed(parent, override.value()), key=key)
    try:
        ConfigLoaderImpl._apply_overrides_to_config([override], cfg)
    except (HydraException, OmegaConfBaseException) as error:
        return _of_space(override) if f"{key}.".startswith("search.space.") else _refused(override, cfg, error)
    return None


def _of_space(override: Override) -> Problem:
    """Hydra adds to a mapping only with `+`; an interval without quotes is one of the command line's."""
    space = override.value()
    if grammar.key_of(override) != "search.space":
        dims = [space]
    else:
        dims = list(space.values()) if isinstance(space, Mapping) else [None]
    if not override.is_add() and all(isinstance(dim, str | list | Mapping) for dim in dims):
        line = str(override.input_line)
        return Problem(
            f"{line}: a dim is added to the space, since it has none of that name",
            fix=f'"+{line.lstrip("+")}"',
            key="search.space",
        )
    return Problem(
        f"{override.input_line} has a dim that is no text",
        valid="a list of values, or a text: what would be typed for the dim, in quotes",
        fix="\"+search.space={lr: 'tag(log,interval(1e-5,1e-3))'}\"  or the dim itself, 'lr=...'",
        key="search.space",
    )


def _refused(override: Override, cfg: DictConfig, error: Exception) -> Problem:
    line, key = str(override.input_line), grammar.key_of(override)
    plain = OmegaConf.to_container(cfg, resolve=False)
    paths = [path for path, _ in _nodes(plain)]
    exists = key in paths
    if override.is_add() and exists:
        return Problem(f"{line}: {key} is there already", fix=line.removeprefix("+"), key=key)
    if (new := renamed.find(key)) is not None:
        return Problem(
            f"{key} is not a key of verl 0.9.1: {new.why}",
            fix=_typed(new.key, override.value(), new.add) if new.key else f"leave {key} out",
            key=key,
            source=new.source,
        )
    if exists or override.is_add() or override.is_force_add():
        return Problem(f"{line}: {_first(error)}", valid=schema.valid(key), key=key)
    if override.is_delete():
        return Problem(f"{line}: there is no {key} to delete", valid=", ".join(nearest(key, paths)), key=key)
    return _unknown(override, plain)


def _unknown(override: Override, plain: Any) -> Problem:
    """A key that is not there: which could be meant."""
    line, key = str(override.input_line), grammar.key_of(override)
    root, _, inside = key.partition(".")
    if found := _options_with(key):
        what = f"unknown key {key}: {root}={(plain.get(root) or {}).get('name')} has no such option"
        return Problem(what, valid=", ".join(found), fix=f"{found[0]} {line}", key=key)
    if inside and root in _CLOSED:
        return _no_such(key, override.value(), plain)
    # What holds other keys takes no value.
    close = nearest(key, [path for path, value in _nodes(plain) if not isinstance(value, dict)])
    best = _typed(close[0], override.value()) if close else ""
    add = f"+{line}" if "." in key else ""
    fix = "  or, if verl has this key all the same, ".join(part for part in (best, add) if part)
    return Problem(f"unknown key {key}", valid=", ".join(close), fix=fix or "--cfg job lists every key", key=key)


def _no_such(key: str, value: Any, config: Mapping[str, Any]) -> Problem:
    """A key that one of our sections does not have: which it has, here and by its other options."""
    root, _, inside = key.partition(".")
    keys = _section(root, config)
    here = ", ".join(f"{root}.{name}" for name in keys)
    others = [f"{root}={option}: {', '.join(more)}" for option, more in _of_options(root).items() if more]
    close = nearest(inside, keys, 1)
    return Problem(
        f"unknown key {key}",
        valid=here or f"none with {root}={config[root].get('name')}; {'; '.join(others)}",
        fix=_typed(f"{root}.{close[0]}", value) if close else f"leave {key} out, or one of those",
        key=key,
    )


def _section(root: str, config: Mapping[str, Any]) -> list[str]:
    """The keys that one of our sections has, by the files."""
    return [*_main_keys(root), *_of_options(root).get(str(config[root].get("name")), [])]


@lru_cache(maxsize=32)
def _main_keys(root: str) -> list[str]:
    main = OmegaConf.to_container(OmegaConf.load(conf() / f"{CONFIG_NAME}.yaml"), resolve=False)
    assert isinstance(main, dict)
    return _keys(main.get(root) or {})


def _is_read(inside: str, keys: Sequence[str]) -> bool:
    """Whether it is one of the keys, or above or below one."""
    return any(k == inside or inside.startswith(f"{k}.") or k.startswith(f"{inside}.") for k in keys)


def _keys(section: Any) -> list[str]:
    """The keys that are typed with a value; `name` is chosen with the option."""
    return [path for path, value in _nodes(section) if path != "name" and (not isinstance(value, dict) or not value)]


@lru_cache(maxsize=32)
def _of_options(group: str) -> dict[str, list[str]]:
    """Option of a group -> its keys; nothing where it is no group."""
    files = sorted((conf() / group).glob("*.yaml"))
    return {file.stem: _keys(OmegaConf.to_container(OmegaConf.load(file), resolve=False)) for file in files}


def _options_with(key: str) -> list[str]:
    """The options of a key's group that have it: `scheduler=asha` for `scheduler.reduction_factor`."""
    group, _, inside = key.partition(".")
    if not (inside and group.isidentifier()):
        return []
    return [f"{group}={option}" for option, keys in _of_options(group).items() if inside in keys]


def _parents(key: str) -> Iterable[str]:
    """The keys above a key, nearest first."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _nodes(config: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Every key of a nested dict, inner ones too."""
    for key, value in config.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        yield path, value
        if isinstance(value, dict):
            yield from _nodes(value, path)


def _typed(key: str, value: Any, add: bool = False) -> str:
    text = {"None": "null", "True": "true", "False": "false"}.get(str(value), value)
    return f"{'+' if add else ''}{key}={text}"


def _first(error: Exception) -> str:
    """The first line of what went wrong at the bottom."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = str(cause).strip()
    return text.splitlines()[0] if text else type(cause).__name__


def _as_is(error: Exception) -> Problem:
    return Problem(" ".join(str(error).split()) or type(error).__name__)
