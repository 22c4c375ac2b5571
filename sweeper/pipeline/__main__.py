"""`python -m sweeper.pipeline STAGE`: one stage of dvc.yaml, or `params`, which writes params.yaml from conf/pipeline.

Guarantees: a user's mistake is a message that says what to do, never a traceback; exit codes as in sweeper.app.run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

STAGES = {
    "compose": ("compose", "run"),
    "prepare": ("prepare", "data"),
    "model": ("prepare", "model"),
    "sweep": ("sweep", "run"),
    "select": ("select", "run"),
    "evaluate": ("evaluate", "run"),
    "report": ("report", "run"),
}
"""Stage -> module and function."""


def main(argv: Sequence[str]) -> int:
    """Run the stage; returns the exit code."""
    if len(argv) != 1 or argv[0] not in (*STAGES, "params"):
        print(f"python -m sweeper.pipeline STAGE, where STAGE is one of: {', '.join(STAGES)}, params", file=sys.stderr)
        return 2
    try:
        from sweeper.errors import SweeperError
        from sweeper.pipeline import params
    except ModuleNotFoundError as error:
        print(
            f"{sys.executable} has no {error.name}: it is not the environment that `make setup` makes\n"
            "  try:   . .venv/bin/activate",
            file=sys.stderr,
        )
        return 2
    try:
        if argv[0] == "params":
            params.FILE.write_text(params.composed(), encoding="utf-8")
            return 0
        module, function = STAGES[argv[0]]
        return int(getattr(import_module(f"sweeper.pipeline.{module}"), function)())
    except SweeperError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped; `dvc repro` goes on", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
