"""The command line of `sweep.py`: a request of ours, or a question to Hydra.

Guarantees: a request goes to `sweeper.app` without detours; what only Hydra can answer (--help, --cfg, completion,
another sweeper or launcher) goes through `@hydra.main`; a wrong request returns 2 and never shows a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from sweeper.errors import SweeperError

SHORT = {"-m", "--multirun"}
"""Flags that say what happens anyway: every request is a sweep, if only of one trial."""


def main(argv: Sequence[str]) -> int:
    """Run `sweep.py` with these arguments (the first is the program); returns the exit code."""
    arguments = [a for a in argv[1:] if a != "--json"]
    if len(arguments) < len(argv) - 1:
        arguments.append("output=json")
    flags = [a for a in arguments if a.startswith("-") and a not in SHORT]
    # An override of Hydra's own settings may choose another sweeper or launcher, which only Hydra can start.
    if flags or any(a.lstrip("+~").startswith(("hydra.", "hydra/")) for a in arguments):
        return _through_hydra([argv[0], *arguments], task=not flags)
    from sweeper import app
    from sweeper.config.hydra_app import initialized

    try:
        with initialized():
            return app.run([a for a in arguments if a not in SHORT])
    except SweeperError as error:  # no conf/: what is wrong with a request is shown by app.run
        return app.report(error, "json" if "output=json" in arguments else "plain")


def _through_hydra(argv: list[str], *, task: bool) -> int:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from sweeper.config import resolvers
    from sweeper.config import task as trial
    from sweeper.config.hydra_app import CONFIG_NAME, HELP_NAME, conf

    resolvers.register()
    if task and not SHORT & set(argv):
        argv = [*argv, "--multirun"]
    config_name = HELP_NAME if {"-h", "--help"} & set(argv) else CONFIG_NAME
    try:
        entry = hydra.main(config_path=str(conf()), config_name=config_name, version_base="1.3")(trial.run)
    except SweeperError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    before, sys.argv = sys.argv, argv
    # Without it Hydra prints errors itself and always exits with 1; with it they reach us. Its own wish stays as it is.
    wished = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        entry()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except SweeperError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if wished:
            raise
        print(error, *([error.__cause__] if error.__cause__ else []), sep="\n", file=sys.stderr)
        return 2
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR")
        if wished is not None:
            os.environ["HYDRA_FULL_ERROR"] = wished
    return 0
