"""One request from its override lines to its exit code; the whole flow on one page.

Guarantees: a wrong request launches nothing, leaves nothing behind and returns 2 with every problem in one message; a
user's mistake never shows a traceback; planning imports neither torch, Ray nor MLflow.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.plan import render
from sweeper.plan.plan import Plan, make, unlaunchable
from sweeper.trial.records import SweepFolder, to_json
from sweeper.trial.spec import key_of

if TYPE_CHECKING:
    from sweeper.search.placement import Probing


def run(overrides: Sequence[str], *, resume: bool = False, before: Sequence[str] = ()) -> int:
    """Plan the request and, unless it says `plan=true`, run it.

    Args:
        resume: go on with the sweep of that name.
        before: what it was asked for until now; said where a changed request is not even one.

    Returns:
        0 all wanted trials are done, 1 some trials failed or the sweep was stopped, 2 the request was wrong.
    """
    output = _output(overrides)
    asked, plan = False, None
    try:
        # Planning makes many small objects and hardly any garbage: looking for it is a twentieth of a plan.
        gc.disable()
        try:
            plan = make(overrides, _known(overrides) if resume else None)
        finally:
            gc.enable()
        asked = bool(plan.settings["plan"])
        return _answer(plan, output, asked, resume)
    except RequestError as error:
        # What can be planned is compared leaf by leaf with what was started, and says so itself.
        return report(error if plan else _changed(error, overrides, before), output)
    except SweeperError as error:
        return report(error, output)
    except BrokenPipeError:
        return reader_gone(harmless=asked)
    except KeyboardInterrupt:  # before the controller took the signal over, so nothing was launched by us
        print("\nstopped before anything was started", file=sys.stderr)
        return 1


def _known(overrides: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The points of the grid that is gone on with, where its ledger has them."""
    from sweeper.search.request import grid

    return grid(overrides)


def _answer(plan: Plan, output: str, asked: bool, resume: bool) -> int:
    if asked:
        _as_built(plan)
        try:
            _lineage(plan)
        except SweeperError:
            _show(plan, output, runs=False)
            raise
        return _show(plan, output, runs=not plan.problems)
    if found := [*plan.problems, *unlaunchable(plan)]:
        return _refuse(found, len(plan.sized), output)
    if plan.settings["detach"]:
        from sweeper import detached

        return detached.start(plan, output, resume=resume)
    from sweeper.execute import execute

    return execute(plan, resume=resume)


def _changed(error: RequestError, now: Sequence[str], before: Sequence[str]) -> RequestError:
    """The error, after what was typed otherwise than the sweep was started with: that is what it is about."""
    lines = [f"{line} -> {_again(line, now)}" for line in before if line not in now]
    if not lines:
        return error
    name, store = (_again(f"{key}=", now).partition("=")[2] for key in ("name", "store"))
    typed = SweepFolder(Path(store or "runs") / name).typed
    said = "\n           ".join(lines)
    first = Problem(
        f"this is not the request that {name} was started with (then -> now):\n           {said}",
        valid="the overrides that it was started with",
        fix=f"sweeper resume {typed}   (or --fork NEW-NAME, where what is said below is no matter)",
    )
    made = RequestError([first, *error.problems])
    made.left = error.left
    return made


def _again(line: str, now: Sequence[str]) -> str:
    return next((other for other in reversed(now) if key_of(other) == key_of(line)), "(not typed)")


def _as_built(plan: Plan) -> None:
    """Data and models that were altered since they were built are refused before anything is said of a sweep."""
    from sweeper import prepare

    prepare.check(prepare.every(trial.config for trial in plan.trials if not trial.problems))


def _lineage(plan: Plan) -> None:
    """What the start of a sweep would refuse about its code or the run that it repeats is refused in its plan too."""
    lineage = plan.settings["lineage"]
    if lineage["strict"] or lineage["reproduces"]:
        from sweeper import execute

        execute.check_lineage(plan)


def reader_gone(*, harmless: bool) -> int:
    """The exit code when nobody reads our output any more, as with `| head`; 0 where that changed nothing else."""
    # What is still buffered would raise once more when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if harmless else 1


def report(error: SweeperError, output: str) -> int:
    """Show an error as its reader wants it; returns the exit code."""
    if output == "json":
        found = error.problems if isinstance(error, RequestError) else ()
        problems = [{k: v for k in p.__slots__ if (v := getattr(p, k))} for p in found]
        try:
            print(to_json({"event": "error", "message": str(error), "problems": problems}), flush=True)
        except BrokenPipeError:
            reader_gone(harmless=True)
    else:
        launched = (error.left or "nothing was launched") if isinstance(error, RequestError) else ""
        print(f"{error}\n\n{launched}".rstrip(), file=sys.stderr)
    return error.exit_code


def _show(plan: Plan, output: str, *, runs: bool) -> int:
    probes = _probes(plan)
    if output == "json":
        render.print_json(plan, sys.stdout, probes)
    else:
        render.text(plan, sys.stdout, probes)
        print("\nnothing was launched; without plan=true this runs" if runs else "")
    sys.stdout.flush()  # a reader who has gone is found out here, not when the interpreter ends
    return 2 if plan.problems else 0


def _probes(plan: Plan) -> list[Probing]:
    """The runs before the first trial; what cannot run is not probed for."""
    from sweeper import engines
    from sweeper.search import placement

    examples = [arm.example for arm in plan.arms if arm.example]
    if plan.problems or not examples:
        return []
    return placement.expected(plan, engines.get(examples[0].trial.config["engine"]["name"]))


def _refuse(found: list[tuple[Problem, list[str]]], total: int, output: str) -> int:
    error = RequestError([p for p, _ in found])
    if output == "json":
        return report(error, output)
    render.problems(found, sys.stderr, total=total)
    print("\nnothing was launched", file=sys.stderr)
    return error.exit_code


def _output(overrides: Sequence[str]) -> str:
    """The `output` asked for, read before anything is composed, so that an early error is shown in the right form."""
    typed = [o.split("=", 1)[1] for o in overrides if o.startswith("output=")]
    return typed[-1] if typed else "auto"
