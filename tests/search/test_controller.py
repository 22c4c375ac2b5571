"""What the controller does with trials; engine, cluster and tracker are fakes, records and ledger are real."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeArm, FakeCluster, FakeDisplay, FakeEngine, FakeTracker, fake_size, fake_trial

from sweeper.errors import SweeperError
from sweeper.search import controller as module
from sweeper.search import replay
from sweeper.search.controller import Controller, Settings
from sweeper.trial.index import Index
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import SweepFolder
from sweeper.trial.spec import Trial

STOP = {"nan": True, "patience": 2, "kl_above": 1.0}
FAILURES = {"retries": 1, "same": 3, "stalled": 20, "stalled_min_s": 600, "first_step_s": 3600}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.001)


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


def test_every_trial_is_run_recorded_and_told_to_the_tracker(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(i) for i in range(5)])
    assert set(bench.run().values()) == {"finished"}
    assert sorted(bench.cluster.started) == ["000", "001", "002", "003", "004"]
    status = bench.status("003")
    assert (status["state"], status["exit_code"], status["final_score"], status["best_step"]) == ("finished", 0, 0.4, 4)
    assert [args[1] for args in bench.tracker.of("metrics") if args[0] == "003"] == [1, 2, 3, 4]
    assert {args[1] for args in bench.tracker.of("trial_ended")} == {"finished"}
    assert Ledger.read(bench.folder.path / "ledger.db")["004"].final_score == 0.4


def test_a_failing_trial_says_why_and_stops_no_other(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(0), fake_trial(1, code=1), fake_trial(2)])
    assert bench.run() == {"000": "finished", "001": "failed", "002": "finished"}
    assert bench.status("001")["root_cause"] == ["ValueError: planted"]
    ended = [e for e in bench.display.events if e["event"] == "trial_ended" and e["trial"] == "001"]
    assert ended[0]["root_cause"] == ["ValueError: planted"]
    assert [a[1] for a in bench.tracker.of("trial_ended") if a[0] == "001"] == ["failed"]


def test_a_trainer_that_ends_well_without_a_step_has_failed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(0, steps=0)])
    assert bench.run() == {"000": "failed"}
    assert "without a single step" in bench.status("000")["root_cause"][0]


def test_no_more_ranks_are_used_than_there_are_and_a_small_trial_passes_a_large_one(tmp_path: Path) -> None:
    trials = [fake_trial(0, ranks=2), fake_trial(1, ranks=3), fake_trial(2, ranks=1)]
    bench = Bench(tmp_path, trials, ranks=3)
    assert set(bench.run().values()) == {"finished"}
    assert bench.cluster.started == ["000", "002", "001"]


def test_a_trainer_that_ends_well_before_its_last_step_has_failed(tmp_path: Path) -> None:
    trial = fake_trial(0, steps=4)
    trial.config["short"] = True  # type: ignore[index]
    bench = Bench(tmp_path, [trial])
    assert bench.run() == {"000": "failed"}
    assert "at step 3 of 4" in bench.status("000")["root_cause"][0]


def test_the_best_score_follows_the_objectives_direction(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(0)], mode="min")
    bench.run()
    assert (bench.status("000")["best_score"], bench.status("000")["best_step"]) == (0.1, 1)


def test_a_write_that_fails_right_after_a_start_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, [fake_trial(0, hold=True)])
    monkeypatch.setattr(bench.tracker, "trial_started", lambda *_: (_ for _ in ()).throw(SweeperError("no room")))
    with pytest.raises(SweeperError, match="no room"):
        bench.run()
    assert bench.cluster.ended == ["000"]


def test_an_attempt_that_a_dead_controller_never_started_is_started_by_the_next(tmp_path: Path) -> None:
    first = Bench(tmp_path, [fake_trial(0)])
    first.controller._propose()
    folder = first.folder.new_attempt("000")
    first.ledger.append("attempt_started", trial="000", attempt=1, data={"folder": str(folder.path)})
    first.ledger.close()  # as if it had been killed here
    again = Bench(tmp_path, [fake_trial(0)])
    assert again.run() == {"000": "finished"}
    assert (again.status("000")["state"], again.status("000")["reason"]) == ("stopped", "not-started")
    assert again.status("000", attempt=2)["state"] == "finished"


def test_max_concurrent_limits_trials_below_what_fits(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(i) for i in range(3)], ranks=8, limit=1)
    assert set(bench.run().values()) == {"finished"}
    order = [e["event"] for e in bench.display.events if e["event"] in ("trial_started", "trial_ended")]
    assert order == ["trial_started", "trial_ended"] * 3


def test_a_signal_stops_what_runs_and_starts_nothing_more_and_the_sweep_can_go_on(tmp_path: Path) -> None:
    trials = [fake_trial(0), fake_trial(1, hold=True), fake_trial(2)]
    bench = Bench(tmp_path, trials, ranks=1)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert bench.run() == {"000": "finished", "001": "stopped", "002": "waiting"}
    assert bench.controller.stopped
    assert bench.status("001")["state"] == "stopped"
    assert [a[1] for a in bench.tracker.of("trial_ended") if a[0] == "001"] == ["stopped"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    again = Bench(tmp_path, [fake_trial(0), fake_trial(1), fake_trial(2)])
    assert set(again.run().values()) == {"finished"}
    assert again.cluster.started == ["001", "002"], "a finished trial is not run again"
    assert again.controller.outcomes["000"].curve.final_score == 0.4, "its curve is in the ledger"
    assert again.status("001", attempt=2)["state"] == "finished"
    assert again.status("001", attempt=1)["state"] == "stopped", "history is not overwritten"


def test_an_error_of_the_records_ends_the_sweep_and_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, [fake_trial(0, hold=True), fake_trial(1, hold=True)])

    def full(*_args: object, **_kw: object) -> int:
        raise SweeperError("the disk is full")

    monkeypatch.setattr(bench.ledger, "append", lambda kind, **kw: full() if kind == "progress" else 1)
    with pytest.raises(SweeperError, match="disk is full"):
        bench.run()
    assert sorted(bench.cluster.ended) == ["000", "001"]
    assert bench.status("000")["state"] in ("stopped", "failed")
