"""`PYTHONPATH=CHECKOUT python -P make_fake_run.py store=STORE name=NAME OVERRIDE ...` leaves the records of a sweep's
trials, made by the checkout's own code, and metrics that are made up: nothing is trained.

As a checkout's `sweep.py` it is a fake that can be reproduced. Variables: `FAKE_LOSS` is what it computes otherwise,
`FAKE_EXIT` how it ends.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> int:
    from sweeper import engines, prepare
    from sweeper.config.hydra_app import initialized
    from sweeper.lineage.record import Recorder
    from sweeper.plan import plan
    from sweeper.trial.records import SweepFolder

    overrides = sys.argv[1:]
    with initialized():
        made = plan.make(overrides)
    assert not made.problems, made.problems
    config = dict(made.trials[0].config)
    prepare.run(prepare.missing([config]), sys.executable, print)
    store = Path(config["store"])
    sweep = SweepFolder.create(store, config["name"], overrides)
    reproduces = config["lineage"]["reproduces"]
    recorder = Recorder(
        engines.get("verl"),
        warn=lambda text: sys.exit(f"not recorded: {text}"),
        reproduces=Path(reproduces) if reproduces else None,
        exclude=[store],
    )
    for trial in made.trials:
        attempt, checkpoints = sweep.new_attempt(trial.id), sweep.checkpoints(trial.id)
        recorder.started(trial, dict(trial.config), attempt, checkpoints)
        score = 0.5 + (trial.config["seed"] % 5) / 100
        data = {"actor/loss": float(os.environ.get("FAKE_LOSS", "0.5")), "val-core/x/acc/mean@1": score}
        (attempt.path / "metrics.jsonl").write_text(json.dumps({"step": 1, "data": data}) + "\n")
        result = {"state": "finished", "score": score, "best_score": score, "step": 1}
        recorder.ended(attempt, checkpoints, result)
    return int(os.environ.get("FAKE_EXIT", "0"))


if __name__ == "__main__":
    sys.exit(main())
