"""The command line of `sweep.py`: a request of ours, or a question to Hydra.

Guarantees: a request goes to `sweeper.app` without detours; what only Hydra can answer (--help, --cfg, completion,
another sweeper or launcher) goes through `@hydra.main`; a wrong request returns 2 and never shows a traceback. Ctrl-C
stops what a Ray launcher runs as gently as what we run, and returns 1.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from sweeper.errors import Problem, RequestError, SweeperError

SHORT = {"-m", "--multirun"}
"""Flags that say what happens anyway: every request is a sweep, if only of one trial."""
RAY_OUTPUT = {"RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0"}
"""For a launcher's Ray, unless the user says otherwise: it hides lines that two jobs print, as all of our jobs do, and
colours its prefix also where no terminal reads it."""
BASIC = "hydra/sweeper=basic"
STOP_S = 60.0
"""How long the jobs of a Ray launcher get to stop."""


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
    from sweeper.config.hydra_app import CONFIG_NAME, HELP_NAME, conf
    from sweeper.config.task import Job

    resolvers.register()
    if task and not SHORT & set(argv):
        argv = [*argv, "--multirun"]
    for name, value in RAY_OUTPUT.items():
        os.environ.setdefault(name, value)
    # Random digits: unlike a folder's name, the names of jobs cannot be changed when one is found to be taken.
    job = Job(f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    config_name = HELP_NAME if {"-h", "--help"} & set(argv) else CONFIG_NAME
    try:
        entry = hydra.main(config_path=str(conf()), config_name=config_name, version_base="1.3")(job)
    except SweeperError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    before, sys.argv = sys.argv, argv
    # Without it Hydra prints errors itself and always exits with 1; with it they reach us. Its own wish stays as it is.
    wished = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        if task:
            _no_intervals(argv)
        entry()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except SweeperError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        print("\nstopping the jobs", file=sys.stderr)
        _stop_jobs(interrupt.__traceback__)
        return 1
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


def _no_intervals(argv: Sequence[str]) -> None:
    """Hydra's own sweeper lists jobs, and an interval has none to list.

    Raises:
        RequestError: It was asked to.
    """
    from hydra.core.override_parser.types import IntervalSweep

    from sweeper.config import grammar

    if not any(line.lstrip("+") == BASIC for line in argv):
        return
    found = []
    for line in argv[1:]:
        try:
            interval = not line.startswith("-") and isinstance(grammar.parse(line)._value, IntervalSweep)
        except RequestError:
            continue  # Hydra says what is wrong with it
        if interval:
            valid = "a,b, choice(...) and range(...) with Hydra's sweeper; interval(...) with ours, and a sampler"
            fix = f"search=tpe '{line}', without {BASIC}"
            found.append(Problem(f"{line}: {BASIC} searches no interval", valid, fix, grammar.parse(line).key_or_group))
    if found:
        raise RequestError(found)


def _stop_jobs(where: TracebackType | None) -> None:
    """End the jobs that a Ray launcher was waiting for: what runs as if it had got the Ctrl-C, the others at once.

    Ray would kill its workers when this process ends, and with them the controllers that should stop their attempts.
    The launcher keeps the jobs in a variable of the call that was interrupted, and nowhere else.
    """
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    jobs: list[Any] = []
    while where is not None:
        jobs += [job for job in where.tb_frame.f_locals.get("runs", ()) if isinstance(job, ray.ObjectRef)]
        where = where.tb_next
    with contextlib.suppress(KeyboardInterrupt):  # the second one: the user does not wait
        for job in reversed(jobs):  # the last first, so that none starts on the place of one that ended
            ray.cancel(job)
        ray.wait(jobs, num_returns=len(jobs), timeout=STOP_S)
