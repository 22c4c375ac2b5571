"""Hydra, started the way `sweep.py` starts it: the same configs, plugins and resolvers for every entry.

Guarantees: nothing heavy is imported; a Hydra that runs already is used as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from sweeper.config import resolvers

CONF = Path(__file__).resolve().parents[2] / "conf"
CONFIG_NAME = "config"
HELP_NAME = "help"


@contextmanager
def initialized() -> Iterator[None]:
    """Hydra on our conf/, for as long as the block runs."""
    resolvers.register()
    if GlobalHydra.instance().is_initialized():
        yield
        return
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="sweep"):
        yield
