"""A sweep of fake trials under the real controller: engine, cluster, tracker are fakes, records and ledger are real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fakes import FakeArm, FakeCluster, FakeDisplay, FakeEngine, FakeTracker, fake_size

from sweeper.search import replay
from sweeper.search.controller import Controller, Settings
from sweeper.trial.index import Index
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import SweepFolder
from sweeper.trial.spec import Trial

STOP = {"nan": True, "patience": 2, "kl_above": 1.0}
FAILURES = {"retries": 1, "same": 3, "stalled": 20, "stalled_min_s": 600, "first_step_s": 3600}


class Bench:
    """A sweep of fake trials in a folder; a second one of the same name goes on with it."""

    def __init__(
        self,
        tmp_path: Path,
        trials: list[Trial],
        ranks: int = 2,
        limit: int | None = None,
        mode: str = "max",
        *,
        arms: list[FakeArm] | None = None,
        name: str = "s",
        cluster: FakeCluster | None = None,
        index: bool = False,
        **settings: Any,
    ) -> None:
        existing = (tmp_path / name).exists()
        self.folder = SweepFolder.existing(tmp_path, name) if existing else SweepFolder.create(tmp_path, name, [])
        self.ledger = Ledger.open(self.folder.path / "ledger.db", create=not existing)
        self.cluster = cluster or FakeCluster(ranks)
        self.tracker, self.display, self.engine = FakeTracker(), FakeDisplay(), FakeEngine()
        self.arms = arms or [FakeArm(trials, mode=mode)]
        every = [t for arm in self.arms for t in arm.trials]
        self.controller = Controller(
            arms=[arm.search() for arm in self.arms],
            size=fake_size(every),
            engine=self.engine,  # type: ignore[arg-type]
            cluster=self.cluster,
            folder=self.folder,
            ledger=self.ledger,
            tracker=self.tracker,  # type: ignore[arg-type]
            display=self.display,
            facts=lambda o: ({"x": o.trial.point.varied["x"]}, {"sweeper.fingerprint": o.fingerprint}),
            fingerprint=lambda t: f"print of {t.config['x']} {t.seed}",
            settings=Settings(
                **{
                    "stop": STOP,
                    "failures": FAILURES,
                    "mode": mode,
                    "max_concurrent": limit,
                    "mixed": len({t.config["ranks"] for t in every}) > 1,
                    **settings,
                }
            ),
            index=Index(tmp_path) if index else None,
        )
        if existing:
            replay.take_up(self.controller, self.ledger, self.folder)

    def run(self) -> dict[str, Any]:
        try:
            return {t: o.state for t, o in self.controller.run().items()}
        finally:
            self.ledger.close()

    def status(self, trial: str, attempt: int = 1) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            (self.folder.trial(trial) / f"attempt-{attempt}" / "status.json").read_text()
        )
        return found
