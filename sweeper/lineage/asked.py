"""What the code in a folder makes of override lines: `PYTHONPATH=FOLDER python -P .../asked.py`, JSON in, JSON out.

It runs with another checkout's `sweeper` on its path, that of a record, and so imports from it only what every checkout
that writes records has. Guarantees: nothing of a sweep is made; the last line on stdout is the answer, one JSON object,
`{"problems": [...]}` where the request is wrong; what is built is built as before a sweep, into the cache.

Asked: `overrides`, and `build`: true, false, or a fingerprint (only where it is that). Answered: `package_sha256`,
`fingerprint`, `identity`, `config`, `trials` (how many the request has), `package` (where `sweeper` was imported from),
`refused` (why it cannot run here) and, where it was built, `inputs` as a record has them, every content hashed anew.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> int:
    """Answer the question on stdin."""
    asked = json.load(sys.stdin)
    import sweeper
    from sweeper.errors import RequestError, SweeperError

    try:
        answer = {**_answer(asked), "package": str(sweeper.__file__)}
    except RequestError as error:
        answer = {"problems": [_plain(p) for p in error.problems]}
    except SweeperError as error:
        answer = {"problems": [{"what": str(error)}]}
    print("\n" + json.dumps(answer, default=str), flush=True)
    return 0


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    from sweeper.config.hydra_app import initialized
    from sweeper.errors import RequestError
    from sweeper.lineage.code import package_sha256
    from sweeper.plan import plan
    from sweeper.trial.identity import fingerprint, identity_leaves, placement_of

    with initialized():
        made = plan.make(asked["overrides"])
    trial = made.trials[0]
    config = dict(trial.config)
    if not config:  # it does not even compose
        return {"problems": [_plain(p) for p, _ in made.problems]}
    found = {
        "trials": len(made.trials),
        "package_sha256": package_sha256(),
        "fingerprint": fingerprint(config),
        "identity": dict(identity_leaves(config, placement_of(config))),
        "config": config,
        "refused": [_plain(p) for p in trial.problems],
    }
    build = asked["build"] in (True, found["fingerprint"]) and len(made.trials) == 1 and not trial.problems
    if not build:
        return found
    try:
        return {**found, "inputs": _inputs(config)}
    except RequestError as error:
        return {**found, "refused": [_plain(p) for p in error.problems]}


def _inputs(config: dict[str, Any]) -> list[dict[str, Any]]:
    from sweeper import prepare
    from sweeper.lineage import inputs

    engine = config["engine"]
    python = str(engine["python"] or sys.executable)
    if hasattr(prepare, "check"):  # not in the code of older records
        # What differs is named by its role, beside what was recorded.
        prepare.check(prepare.every([config]), contents=False)
    prepare.run(prepare.missing([config]), python, lambda text: print(text, file=sys.stderr), engine["env"])
    return inputs.of(config, fresh=True)


def _plain(problem: Any) -> dict[str, str]:
    return {k: getattr(problem, k) for k in problem.__slots__ if getattr(problem, k)}


if __name__ == "__main__":
    sys.exit(main())
