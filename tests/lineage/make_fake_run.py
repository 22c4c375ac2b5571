"""`PYTHONPATH=CHECKOUT python -P make_fake_run.py STORE OVERRIDE ...` leaves the record of a trial as a sweep would,
made by the checkout's own code, and metrics written by hand: nothing is trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    from sweeper import engines, prepare
    from sweeper.config.hydra_app import initialized
    from sweeper.lineage.record import Recorder
    from sweeper.plan import plan
    from sweeper.trial.records import SweepFolder

    store, *overrides = sys.argv[1:]
    with initialized():
        made = plan.make(overrides)
    assert not made.problems, made.problems
    trial = made.trials[0]
    config = dict(trial.config)
    prepare.run(prepare.missing([config]), sys.executable, print)
    sweep = SweepFolder.create(Path(store), "s", overrides)
    attempt = sweep.new_attempt(trial.id)
    checkpoints = sweep.checkpoints(trial.id)
    recorder = Recorder(engines.get("verl"), warn=lambda text: sys.exit(f"not recorded: {text}"), exclude=[Path(store)])
    recorder.started(trial, config, attempt, checkpoints)
    (attempt.path / "metrics.jsonl").write_text(json.dumps({"step": 1, "data": {"actor/loss": 0.5}}) + "\n")
    recorder.ended(attempt, checkpoints, {"state": "finished", "score": 0.5, "step": 1})


if __name__ == "__main__":
    main()
