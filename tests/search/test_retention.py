"""Checkpoints while a sweep runs: what is corrupted is not gone on from, what is not needed is freed. Engine, cluster
and tracker are fakes."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeArm, fake_trial

from sweeper.checkpoints import pins
from sweeper.checkpoints.keep import Keep
from sweeper.search import controller as module
from sweeper.search.base import Fork, Verdict

_spec = importlib.util.spec_from_file_location("bench_of_controller", Path(__file__).with_name("test_controller.py"))
assert _spec is not None
assert _spec.loader is not None
_bench = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_bench)
Bench, Script = _bench.Bench, _bench.Script


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.001)


def left(bench: Any) -> dict[str, list[str]]:
    """Trial -> steps of its checkpoints."""
    names = bench.folder.trial_ids()
    return {t: sorted(p.name for p in bench.folder.checkpoints(t).glob("[0-9]*")) for t in names}


def test_each_trial_keeps_its_newest(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(i, steps=6) for i in range(2)], keep=Keep(last=2))
    bench.run()
    assert left(bench) == {"000": ["4", "6"], "001": ["4", "6"]}


def test_only_the_best_candidate_keeps_any(tmp_path: Path) -> None:
    trials = [fake_trial(i, bonus=bonus) for i, bonus in enumerate([0.1, 0.9, 0.5, 0.2])]
    bench = Bench(tmp_path, trials, ranks=1, keep=Keep(top_k=1))
    bench.run()
    assert left(bench) == {"000": [], "001": ["2", "4"], "002": [], "003": []}


def test_a_budget_for_the_sweep_and_what_must_stay_is_said(tmp_path: Path) -> None:
    trials = [fake_trial(i, bonus=i / 10) for i in range(3)]
    bench = Bench(tmp_path, trials, ranks=1, keep=Keep(gb=0))
    bench.run()
    assert left(bench) == {"000": [], "001": [], "002": ["4"]}
    (said,) = [e["message"] for e in bench.display.of("warning")]
    assert "must stay" in said
    assert "sweeper gc s" in said


def test_nothing_is_asked_nothing_goes(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(0, steps=6)])
    bench.run()
    assert left(bench) == {"000": ["2", "4", "6"]}


def test_a_failed_trial_keeps_what_it_goes_on_from(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(0, code=1), fake_trial(1)], ranks=1, keep=Keep(top_k=1, gb=0))
    assert bench.run()["000"] == "failed"
    assert left(bench)["000"] == ["4"]


def test_a_donor_keeps_the_step_while_its_fork_goes_on(tmp_path: Path) -> None:
    fork = Verdict("fork", "worst quarter", fork=Fork("000", {"bonus": 9.0}, step=2))
    trials = [fake_trial(0, params={"bonus": 1.0}), fake_trial(1, params={"bonus": 0.0}, hold=True)]
    arm = FakeArm(trials, scheduler=Script({("001", 2): {"001": fork}}))
    bench = Bench(tmp_path, [], ranks=1, arms=[arm], keep=Keep(last=1))
    original, seen = bench.engine.job, []

    def job(config: Any, paths: Any) -> Any:
        seen.append(left(bench).get("000", []))
        return original({**config, "hold": config["hold"] and paths.folder.name == "attempt-1"}, paths)

    bench.engine.job = job
    assert bench.run() == {"000": "finished", "001": "finished"}
    assert bench.engine.adopted


def test_what_is_pinned_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, [fake_trial(0, bonus=0.1), fake_trial(1, bonus=0.9)], ranks=1, keep=Keep(top_k=1))
    monkeypatch.setattr(pins, "pinned", lambda _folder: [pins.Pin("me-2", 2, "me", "a paper's figure")])
    bench.run()
    assert left(bench)["000"] == ["2"]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), RuntimeError("a bug")])
def test_no_error_of_it_ends_a_sweep_and_the_first_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refused(_path: Path) -> None:
        raise error

    monkeypatch.setattr("sweeper.checkpoints.retention.remove", refused)
    bench = Bench(tmp_path, [fake_trial(i, steps=6) for i in range(3)], keep=Keep(last=1))
    assert set(bench.run().values()) == {"finished"}
    (said,) = [e["message"] for e in bench.display.of("warning")]
    assert "checkpoints are not freed" in said


def test_what_an_adoption_left_goes_with_the_trial(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(0)])
    original = bench.engine.job

    def job(config: Any, paths: Any) -> Any:
        (paths.checkpoints / "aside-1").mkdir(parents=True)
        return original(config, paths)

    bench.engine.job = job
    bench.run()
    assert not (bench.folder.checkpoints("000") / "aside-1").exists()


def test_what_a_trial_was_forked_from_goes_with_its_last_checkpoint(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(0, bonus=0.1), fake_trial(1, bonus=0.9)], ranks=1, keep=Keep(top_k=1))
    original = bench.engine.job

    def job(config: Any, paths: Any) -> Any:
        (paths.checkpoints / "origin/global_step_1").mkdir(parents=True)  # a fake: nothing was forked
        return original(config, paths)

    bench.engine.job = job
    bench.run()
    assert not (bench.folder.checkpoints("000") / "origin").exists()
    assert (bench.folder.checkpoints("001") / "origin/global_step_1").is_dir()


def test_a_corrupted_checkpoint_is_said_and_the_one_before_is_gone_on_from(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(0, steps=6, code=["lost", 0])])
    original: Callable[..., Any] = bench.engine.failure

    def failure(*args: Any) -> Any:
        (bench.folder.checkpoints("000") / "6").write_text("corrupted")
        return original(*args)

    bench.engine.failure = failure
    assert bench.run() == {"000": "finished"}
    (said,) = [e["message"] for e in bench.display.of("warning")]
    assert "6 is corrupted" in said
    lines = (bench.folder.trial("000") / "attempt-2" / "metrics.jsonl").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ['{"step": 5', '{"step": 6']


def test_a_fork_takes_no_corrupted_checkpoint(tmp_path: Path) -> None:
    fork = Verdict("fork", "worst quarter", fork=Fork("000", {"bonus": 9.0}))
    trials = [fake_trial(0, params={"bonus": 1.0}), fake_trial(1, params={"bonus": 0.0}, hold=True)]
    arm = FakeArm(trials, scheduler=Script({("001", 2): {"001": fork}}))
    bench = Bench(tmp_path, [], ranks=1, arms=[arm])
    original = bench.engine.job
    (tmp_path / "x").mkdir()

    def job(config: Any, paths: Any) -> Any:
        donor = bench.folder.checkpoints("000") / "4"
        if paths.folder.parent.name == "001" and paths.folder.name == "attempt-1":
            donor.write_text("corrupted")
        return original({**config, "hold": config["hold"] and paths.folder.name == "attempt-1"}, paths)

    bench.engine.job = job
    assert bench.run() == {"000": "finished", "001": "finished"}
    assert bench.engine.adopted == [(2, "001")]
    assert "is corrupted" in bench.display.of("warning")[0]["message"]
    shutil.rmtree(tmp_path / "x")
