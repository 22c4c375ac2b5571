"""The numerics guard, and that what it flagged is kept wherever a trial is looked at afterwards."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from bench import Bench
from fakes import FakeCluster, fake_trial

from sweeper.cli.main import main
from sweeper.engines.base import Progress
from sweeper.search import controller
from sweeper.search.guard import Flag, Guard, placed
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import to_json

TP = "rollout.tensor_model_parallel_size"
GUARD = {"mismatch_above": 0.05}
BAD = {"signals": {"mismatch": 0.2}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "POLL_S", 0.001)


def test_a_trial_is_told_once() -> None:
    guard = Guard(GUARD)
    assert guard.see("000", Progress(1, {}, signals={"mismatch": 0.05})) is None
    assert guard.see("000", Progress(2, {})) is None
    assert guard.see("000", Progress(3, {}, signals={"mismatch": 0.2})) == Flag(3, 0.2, 0.05)
    assert guard.see("000", Progress(4, {}, signals={"mismatch": 0.3})) is None
    assert guard.see("001", Progress(1, {}, signals={"mismatch": math.nan})), "NaN is no agreement"
    guard.told("002")
    assert guard.see("002", Progress(1, {}, signals={"mismatch": 0.2})) is None


def test_the_guard_can_be_off() -> None:
    assert Guard({"mismatch_above": None}).see("000", Progress(1, {}, signals={"mismatch": 9.0})) is None


@pytest.mark.parametrize("mismatch", [0.2, math.nan])
def test_a_flag_is_read_back_from_any_record(mismatch: float) -> None:
    flag = Flag(3, mismatch, 0.05, 2, {TP: 4})
    again = Flag.of(json.loads(to_json(flag.as_dict())))
    assert repr(again) == repr(flag)  # NaN equals nothing
    assert "step 3 with tp=4" in flag.text and "mismatch_above=0.05" in flag.text
    for foreign in (None, {}, {"step": 1}, {"step": "x", "mismatch": 1, "above": 1}):
        assert Flag.of(foreign) is None


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "as composed"),
        ({"a.b.tensor_model_parallel_size": 2}, "tp=2"),
        ({"actor.ppo_max_token_len_per_gpu": 8, "critic.ppo_max_token_len_per_gpu": 8}, "ppo_max_token_len=8"),
        (
            {"actor.ppo_max_token_len_per_gpu": 8, "critic.ppo_max_token_len_per_gpu": 16},
            "ppo_max_token_len=8 critic.ppo_max_token_len=16",
        ),
    ],
)
def test_a_placement_in_words(keys: dict[str, Any], said: str) -> None:
    assert placed(keys) == said


def test_what_was_flagged_is_in_the_ledger_the_status_the_tracker_and_said_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(0, tp=4, **BAD), fake_trial(1)], placement=GUARD)
    bench.run()
    (event,) = [e for e in Ledger.history(bench.folder.path / "ledger.db") if e.kind == "placement_flagged"]
    kept = {"step": 1, "mismatch": 0.2, "above": 0.05, "attempt": 1, "placement": {TP: 4}}
    assert (event.trial, event.attempt, event.data) == ("000", 1, kept)
    assert bench.status("000")["flagged"] == kept
    assert "flagged" not in bench.status("001")
    states = Ledger.read(bench.folder.path / "ledger.db")
    assert (states["000"].flagged, states["001"].flagged) == (kept, {})
    ((trial, tags),) = bench.tracker.of("tagged")
    assert trial == "000" and "tp=4" in tags["sweeper.flagged"]
    (warning,) = bench.display.of("warning")
    assert "trial 000, step 1 with tp=4" in warning["message"]


def test_a_resume_knows_what_was_flagged_and_does_not_say_it_again(tmp_path: Path) -> None:
    held = fake_trial(0, tp=4, hold=True, **BAD)
    bench = Bench(tmp_path, [held], placement=GUARD)
    bench.controller._start()
    for _ in range(3):
        bench.controller._follow()
    assert bench.display.of("warning")
    bench.ledger.close()  # the controller is gone; the attempt runs on
    cluster = FakeCluster(2)
    (attempt,) = bench.cluster.running
    cluster.left[str(attempt.folder)] = attempt
    again = Bench(tmp_path, [held], placement=GUARD, cluster=cluster)
    again.controller._follow()
    assert again.status("000")["state"] == "running" and again.status("000")["flagged"]["step"] == 1
    attempt.stop()
    attempt._cluster = cluster
    outcome = again.controller.outcomes["000"]
    again.controller._signals = 1  # stopped by the user
    again.controller._follow()
    assert outcome.flagged == Flag(1, 0.2, 0.05, 1, {TP: 4})
    assert not again.display.of("warning") and not again.tracker.of("tagged")
    assert again.status("000")["flagged"]["placement"] == {TP: 4}
    again.ledger.close()
    events = Ledger.history(again.folder.path / "ledger.db")
    assert sum(e.kind == "placement_flagged" for e in events) == 1


def test_a_later_attempt_and_one_that_is_reused_carry_the_flag(tmp_path: Path) -> None:
    first = Bench(tmp_path, [fake_trial(0, code=["lost", 0], **BAD)], placement=GUARD, index=True)
    assert first.run() == {"000": "finished"}
    assert first.status("000", attempt=2)["flagged"]["attempt"] == 1
    assert len(first.display.of("warning")) == 1
    second = Bench(tmp_path, [fake_trial(0, **BAD)], placement=GUARD, index=True, name="t")
    second.run()
    assert second.controller.outcomes["000"].reused == "s/000"
    assert second.controller.outcomes["000"].flagged == first.controller.outcomes["000"].flagged
    assert Ledger.read(second.folder.path / "ledger.db")["000"].flagged["mismatch"] == 0.2
    third = Bench(tmp_path, [fake_trial(0, **BAD)], placement=GUARD, name="t")  # and a resume of that one knows
    assert third.controller.outcomes["000"].flagged == first.controller.outcomes["000"].flagged
    third.ledger.close()


def test_a_status_marks_what_was_flagged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Bench(tmp_path, [fake_trial(0, tp=4, **BAD), fake_trial(1)], placement=GUARD).run()
    capsys.readouterr()
    assert main(["status", "s", "--store", str(tmp_path)]) == 0
    _, flagged, note, fine, *_ = capsys.readouterr().out.splitlines()
    assert flagged.startswith("  000! finished") and fine.startswith("  001  finished")
    assert note.strip().startswith("! step 1 with tp=4") and "mismatch_above=0.05" in note
    assert main(["status", "s", "--store", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["s"]["000"]["flagged"]["placement"] == {TP: 4}
