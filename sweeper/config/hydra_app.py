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
from sweeper.errors import Problem, RequestError

CONF = Path(__file__).resolve().parents[2] / "conf"
CONFIG_NAME = "config"
HELP_NAME = "help"


def conf() -> Path:
    """The folder of the configs.

    Raises:
        RequestError: It is not there: the package was installed without its checkout.
    """
    if not (CONF / f"{CONFIG_NAME}.yaml").is_file():
        raise RequestError(
            Problem(
                f"there are no configs at {CONF}",
                valid="an installation that uses the checkout in place, where conf/ lies beside sweeper/",
                fix="pip install -e . in the checkout, or python sweep.py there",
            )
        )
    return CONF


@contextmanager
def initialized() -> Iterator[None]:
    """Hydra on our conf/, for as long as the block runs.

    Raises:
        RequestError: There is no conf/.
    """
    folder = str(conf())
    resolvers.register()
    if GlobalHydra.instance().is_initialized():
        yield
        return
    with initialize_config_dir(folder, version_base="1.3", job_name="sweep"):
        yield
