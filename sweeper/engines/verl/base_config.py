"""verl's own trainer config, read from the installed package without importing it.

Guarantees: verl is found with `find_spec` and only its YAML is read; the result equals what verl composes from its own
config tree (tests/config/test_base.py compares every leaf); without verl there is one `Problem` with the command that
installs it.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sweeper.errors import Problem, RequestError

FILES = {
    "dp": "_generated_ppo_trainer.yaml",
    "megatron": "_generated_ppo_megatron_trainer.yaml",
    "torchtitan": "_generated_ppo_torchtitan_trainer.yaml",
    "veomni": "_generated_ppo_veomni_trainer.yaml",
}
"""verl's `model_engine` -> the flat file that it generates from its config tree for it."""


def config_dir() -> Path:
    """Where the installed verl keeps its trainer configs.

    Raises:
        RequestError: verl is not installed in this interpreter.
    """
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        raise RequestError(
            Problem(
                "verl is not installed in this interpreter; its config is the base of every trial",
                fix="make setup, or: pip install -c constraints.txt -e '.[cpu]'",
                key="engine",
            )
        )
    return Path(spec.origin).parent / "trainer" / "config"


@cache
def load(model_engine: str) -> dict[str, Any]:
    """verl's composed config for one `model_engine`, interpolations unresolved. Shared: do not change it.

    Raises:
        RequestError: verl is not installed, or is a release without this file.
    """
    path = config_dir() / FILES[model_engine]
    # The C loader reads the file in 7 ms; the Python one takes 300.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        config = yaml.load(path.read_text(), Loader=loader)
    except FileNotFoundError:
        raise RequestError(
            Problem(
                f"the installed verl has no {path.name}: it is another release than this project is written for",
                valid="verl 0.9.1",
                fix="pip install verl==0.9.1",
                key="model_engine",
            )
        ) from None
    if not isinstance(config, dict):
        raise RequestError(Problem(f"{path} is not a mapping: the installation of verl is damaged", key="engine"))
    # verl's own compose has it; the flat files leave it out.
    return {**config, "model_engine": model_engine}
