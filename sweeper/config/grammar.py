"""One override line read by Hydra's own parser, with what is wrong with it in words.

Guarantees: a line means here what it means to Hydra; lines are parsed once, however many trials they appear in.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from sweeper.config.nearest import nearest
from sweeper.errors import Problem, RequestError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


_DISTRIBUTION = re.compile(
    r"(?P<scale>log_?uniform|log|uniform)\((?:interval\()?(?P<bounds>[^(),]+,[^(),]+)\)?\)", re.IGNORECASE
)
"""How others write an interval: `loguniform(1e-5,1e-3)`, `log(interval(1e-5,1e-3))`."""


@lru_cache(maxsize=100_000)
def parse(line: str) -> Override:
    """The parsed line.

    Raises:
        RequestError: It is not in Hydra's override grammar.
    """
    if "=" not in line and not line.startswith("~"):
        raise RequestError(_unreadable(line, "there is no `=` in it"))
    if line.startswith("-"):
        raise RequestError(_unreadable(line, "flags are --json and Hydra's own (--hydra-help)"))
    if line.startswith("="):
        raise RequestError(_unreadable(line, "there is no key before the `=`"))
    try:
        return OverridesParser.create().parse_override(line)
    except HydraException as error:
        why = str(error).splitlines()[0]
        raise RequestError(_null(line) if "NoneType" in why else _unreadable(line, why)) from None


def _unreadable(line: str, why: str) -> Problem:
    key, _, value = line.partition("=")
    fix = "key=value; --help shows examples"
    if distribution := _DISTRIBUTION.fullmatch(value):
        scale, bounds = distribution["scale"], f"interval({distribution['bounds']})"
        fix = f"'{key}={f'tag(log,{bounds})' if scale.startswith('log') else bounds}'"
    elif value and not value.endswith(",") and not re.search(r"['\"]", value) and re.fullmatch(r"[\w.+~@/]+", key):
        if value.startswith("[") and value.endswith("]"):  # a shell takes the inner quotes away
            items = ", ".join(f"'{item.strip()}'" for item in value[1:-1].split(","))
            fix = f'"{key}=[{items}]"'
            return Problem(f"cannot read {line!r}: {why}", valid="key=value in Hydra's grammar", fix=fix, key=key)
        # In a shell the outer quotes keep the inner ones, which make any text a plain string.
        fix = f"""'{key}="{value}"' where a plain text is meant"""
    elif value.endswith(","):
        fix = f"{key}={value.rstrip(',')}"
    return Problem(f"cannot read {line!r}: {why}", valid="key=value in Hydra's grammar", fix=fix, key=key)


def _null(line: str) -> Problem:
    """Hydra's functions take no null; its comma list does."""
    key, _, value = line.partition("=")
    listed = re.fullmatch(r"choice\((.*)\)", value.strip())
    return Problem(
        f"{line}: null is no value that Hydra's functions take",
        valid="numbers, texts, true and false",
        fix=f"{key}={listed[1]}   (arms; null is what {key} is when nothing is typed)"
        if listed
        else f"a number in its place, or {key}=null",
        key=key,
    )


def plain(override: Override) -> Any:
    """The typed value of a line that holds no choice."""
    return override.value()


def key_of(override: Override) -> str:
    """The key without its `+`, `++` or `~`, and without a package."""
    return str(override.key_or_group)


@lru_cache(maxsize=10_000)
def _group_exists(key: str, _generation: int) -> bool:
    return bool(GlobalHydra.instance().config_loader().repository.group_exists(key))


def is_group(override: Override) -> bool:
    """Whether the line chooses an option of a config group (`model=qwen7b`), not the value of a key."""
    # Hydra's loader lives as long as the process's Hydra; a new one may have other groups.
    return override.package is not None or _group_exists(
        str(override.key_or_group), id(GlobalHydra.instance().config_loader())
    )


def options(group: str) -> list[str]:
    """The options of a group, sorted."""
    return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


def check_group(override: Override) -> Problem | None:
    """What is wrong with a choice of group option."""
    group, chosen = key_of(override), override.value()
    if override.is_delete() or chosen is None:
        return _left_out(override)
    if not is_group(override) or not _group_exists(group, id(GlobalHydra.instance().config_loader())):
        return Problem(f"{group} is not a group", fix=f"{group}=... without @{override.package}", key=group)
    valid = options(group)
    wanted = chosen if isinstance(chosen, list) else [chosen]
    for name in wanted:
        if str(name) not in valid:
            close = nearest(str(name), valid, 1)
            return Problem(
                f"{group}={name}: there is no such {group.rsplit('/', 1)[-1].replace('_', ' ')}",
                valid=", ".join(valid),
                fix=f"{group}={close[0]}" if close else "",
                key=group,
            )
    return None


def _left_out(override: Override) -> Problem | None:
    """A trial has one of each group, an experiment excepted; Hydra knows no null either, it has `~`."""
    group = key_of(override)
    if group.startswith("hydra/") or (group == "experiment" and override.is_delete()):
        return None
    why = "leave it out for none" if group == "experiment" else f"a trial needs its {group}"
    return Problem(f"{override.input_line}: {why}", valid=", ".join(options(group)), key=group)
