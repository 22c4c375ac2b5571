"""params.yaml: the parameters of the pipeline, and the request to `sweep.py` that they stand for.

Guarantees: params.yaml is read, never written, except by `python -m sweeper.pipeline params`, which writes the very
bytes that `dvc exp run` writes (dvc/utils/hydra.py compose_and_dump); a key that means nothing is refused by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sweeper import engines
from sweeper.errors import Problem, RequestError

FILE, CONF, NAME = Path("params.yaml"), Path("conf/pipeline"), "params"

GROUPS = ("engine", "model", "environment", "algorithm", "cluster", "search", "scheduler", "tracking")
NAMES = ("project", "seed", "lr", "kl")
OURS = ("trials", "steps", "sweep", "evaluate")
KEYS = (*GROUPS, *NAMES, *OURS)
EVALUATE = ("data", "seed", "seeds")


def read() -> dict[str, Any]:
    """The parameters of this run.

    Raises:
        RequestError: The file is not there, is no mapping, or has a key that means nothing.
    """
    try:
        found = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(
            Problem(f"{FILE} is not here", valid="the root of the checkout", fix="python -m sweeper.pipeline params")
        ) from None
    except (OSError, yaml.YAMLError) as error:
        raise RequestError(
            Problem(f"{FILE} cannot be read: {error}", fix="python -m sweeper.pipeline params")
        ) from None
    if not isinstance(found, dict):
        raise RequestError(Problem(f"{FILE} holds no mapping", fix="python -m sweeper.pipeline params"))
    problems = [_unknown(str(key), KEYS, "") for key in found if key not in KEYS]
    asked = found.get("evaluate") or {}
    problems += [_unknown(str(key), EVALUATE, "evaluate.") for key in asked if key not in EVALUATE]
    if missing := [f"evaluate.{key}" for key in EVALUATE if key not in asked]:
        problems.append(Problem(f"{FILE} has no {', '.join(missing)}", fix="python -m sweeper.pipeline params"))
    if problems:
        raise RequestError(problems)
    return found


def _unknown(key: str, valid: tuple[str, ...], at: str) -> Problem:
    near = difflib.get_close_matches(key, valid, n=1)
    hint = f"-S {at}{near[0]}=..." if near else "" if at else f"-S +sweep.{key}=...   (any key of sweep.py)"
    return Problem(f"{FILE}: {at}{key} is no parameter of the pipeline", valid=", ".join(valid), fix=hint, key=key)


def overrides(params: Mapping[str, Any]) -> list[str]:
    """The request of the sweep, as after `python sweep.py`, without its name and its store."""
    lines = []
    for key in (*GROUPS, *NAMES):
        value = params.get(key)
        if value is not None:
            lines.append(f"{key}={','.join(map(_text, value)) if isinstance(value, list) else _text(value)}")
    if params.get("trials") is not None:
        lines.append(f"search.trials={params['trials']}")
    if params.get("steps") is not None:
        engine = str(params.get("engine") or "verl")
        lines.append(f"{engines.get(engine.partition('_')[0]).steps_key}={params['steps']}")
    return [*lines, *(f"{key}={_text(value)}" for key, value in _leaves(params.get("sweep") or {}, ""))]


def _leaves(value: Mapping[str, Any], at: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        name = f"{at}.{key}" if at else str(key)
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, name)
        else:
            yield name, inner


def _text(value: Any) -> str:
    """A value in the grammar of overrides; strings stand as they were typed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_text(v)}" for k, v in value.items()) + "}"
    return str(value)


def composed() -> str:
    """conf/pipeline as Hydra composes it, in the bytes that `dvc exp run` writes without -S.

    Raises:
        RequestError: It cannot be composed.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(CONF.absolute()), version_base=None):
            config = compose(config_name=NAME)
        OmegaConf.resolve(config)
        return OmegaConf.to_yaml(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise RequestError(Problem(f"{CONF / NAME}.yaml cannot be composed: {error}")) from None


def differences(params: Mapping[str, Any]) -> list[str]:
    """Where params.yaml says something else than conf/pipeline does: set with -S, or conf/ was edited since."""
    told, now = dict(_leaves(yaml.safe_load(composed()), "")), dict(_leaves(params, ""))
    none = object()
    return [
        f"{key}={_text(now.get(key))} (conf/pipeline: {_text(told.get(key))})"
        for key in sorted({*told, *now})
        if told.get(key, none) != now.get(key, none)
    ]
