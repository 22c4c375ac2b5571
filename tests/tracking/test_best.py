"""Which checkpoint is a sweep's best; engine and tracker are fakes, records and pins are real."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_lineage import write_fake
from fakes import FakeTracker, fake_trial

from sweeper.checkpoints import pins
from sweeper.engines.base import Progress
from sweeper.report.rows import Request
from sweeper.search.outcome import Outcome
from sweeper.tracking import best
from sweeper.trial.records import SweepFolder


class Bench:
    def __init__(self, tmp_path: Path) -> None:
        self.folder = SweepFolder(tmp_path / "s1")
        self.tracker = FakeTracker()
        self.warnings: list[str] = []
        self.outcomes: list[Outcome] = []

    def trial(self, number: int, score: float, *attempts: list[int], state: str = "finished") -> Outcome:
        """A trial with that score whose attempts left checkpoints of those steps."""
        outcome = Outcome(fake_trial(number), state=state)
        outcome.curve.add(Progress(8, {}, score=score))
        checkpoints = self.folder.path / "trials" / outcome.trial.id / "checkpoints"
        for index, steps in enumerate(attempts, 1):
            attempt = checkpoints.with_name(f"attempt-{index}")
            attempt.mkdir(parents=True)
            write_fake(attempt, steps=steps)
            for step in steps:
                (checkpoints / f"global_step_{step}").mkdir(parents=True)
        self.outcomes.append(outcome)
        return outcome

    def tell(self, mode: str = "max") -> best.Best | None:
        return best.tell(self.outcomes, Request(mode=mode), self.folder, self.tracker, self.warnings.append)  # type: ignore[arg-type]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize(("mode", "trial"), [("max", "001"), ("min", "000")])
def test_the_latest_checkpoint_of_the_best_trial_is_pinned_and_told(bench: Bench, mode: str, trial: str) -> None:
    bench.trial(0, 0.1, [4, 8])
    bench.trial(1, 0.9, [4], [6, 8])
    found = bench.tell(mode)
    assert found is not None
    assert (found.trial, found.step) == (trial, 8)
    ((told, step, score, said, record),) = bench.tracker.of("best")
    assert (told, step, score, said) == (trial, 8, 0.9 if mode == "max" else 0.1, mode)
    assert record == bench.folder.path / "trials" / trial / f"attempt-{1 + (trial == '001')}" / "lineage.json"
    (pin,) = pins.pinned(found.path.parent)
    assert (pin.step, pin.by) == (8, "mlflow")
    assert bench.warnings == []


def test_a_checkpoint_that_was_freed_is_not_the_best_one(bench: Bench) -> None:
    bench.trial(0, 0.5, [4, 8])
    (bench.folder.path / "trials" / "000" / "checkpoints" / "global_step_8").rmdir()
    found = bench.tell()
    assert found is not None
    assert found.step == 4


def test_without_a_finished_trial_or_a_checkpoint_there_is_none(bench: Bench) -> None:
    assert bench.tell() is None
    bench.trial(0, 0.9, [4], state="pruned")
    bench.trial(1, 0.5, [])
    bench.trial(2, 0.4)
    assert bench.tell() is None
    assert bench.tracker.of("best") == []
    assert bench.warnings == []


def test_what_stands_for_a_trial_of_another_sweep_is_not_ours_to_register(bench: Bench) -> None:
    bench.trial(0, 0.9, [4]).reused = "other/003"
    bench.trial(1, 0.5, [4])
    assert bench.tell() is None


def test_a_record_that_cannot_be_read_is_a_warning(bench: Bench) -> None:
    bench.trial(0, 0.9, [4])
    (bench.folder.path / "trials" / "000" / "attempt-1" / "lineage.json").write_text("{")
    assert bench.tell() is None
    assert len(bench.warnings) == 1
    assert "not registered" in bench.warnings[0]
