"""What the controller does with trials; engine, cluster and tracker are fakes, records and ledger are real."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from bench import FAILURES, Bench
from fakes import FakeArm, FakeAttempt, FakeCluster, fake_trial

from sweeper.clusters.base import Exit
from sweeper.errors import SweeperError
from sweeper.search import controller as module
from sweeper.search.base import Fork, Verdict
from sweeper.trial.ledger import Ledger


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.001)


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
    assert bench.cluster.peak == 3
    assert bench.cluster.started == ["001", "000", "002"], "the large one first, the small ones beside each other"


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
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert bench.run() == {"000": "finished", "001": "stopped", "002": "waiting"}
    assert bench.controller.stopped
    assert bench.status("001")["state"] == "stopped"
    assert [a[1] for a in bench.tracker.of("trial_ended") if a[0] == "001"] == ["stopped"]
    assert signal.getsignal(signal.SIGINT) is before

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


class Script:
    """A fake scheduler that says what the test wrote down: (candidate, step) -> verdicts."""

    def __init__(self, says: dict[tuple[str, int], dict[str, Verdict]], lets: tuple[str, ...] = ()) -> None:
        self.says, self.lets = says, lets
        self.heard: list[tuple[str, int, float]] = []
        self.over: list[str] = []

    def added(self, candidate: str, params: Any) -> None: ...

    def result(self, candidate: str, step: int, score: float) -> dict[str, Verdict]:
        self.heard.append((candidate, step, score))
        return self.says.get((candidate, step), {})

    def ended(self, candidate: str) -> dict[str, Verdict]:
        self.over.append(candidate)
        return {}

    def closed(self) -> dict[str, Verdict]:
        return {}

    def resumable(self, paused: Any) -> list[str]:
        return [p for p in paused if p in self.lets]


STOPPED = Verdict("stop", "asha: 0.2 at step 2 is worse than 0.4", {"bound": 0.4})


def test_a_trial_worse_than_its_peers_is_ended_with_the_reason_and_counts_as_done(tmp_path: Path) -> None:
    scheduler = Script({("001", 2): {"001": STOPPED}})
    arm = FakeArm([fake_trial(0), fake_trial(1, hold=True)], scheduler=scheduler)
    bench = Bench(tmp_path, [], arms=[arm])
    assert bench.run() == {"000": "finished", "001": "pruned"}
    status = bench.status("001")
    assert (status["state"], status["stop"]["reason"], status["stop"]["evidence"]) == (
        "pruned",
        "worse",
        {"bound": 0.4},
    )
    assert Ledger.read(bench.folder.path / "ledger.db")["001"].reason == "worse"
    assert arm.sampler.told[1].state == "pruned", "the sampler learns of it"
    assert ("001", 3, 0.3) not in scheduler.heard, "what it still said is not judged"


def test_a_health_rule_ends_one_trial_and_no_other(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(0, hold=True, signals={"kl": 5.0}), fake_trial(1)])
    assert bench.run() == {"000": "pruned", "001": "finished"}
    assert bench.status("000")["stop"]["reason"] == "kl-blow-up"
    assert bench.status("000")["stop"]["evidence"]["kl"] == 5.0


def test_a_paused_candidate_goes_on_from_its_checkpoint_when_the_scheduler_lets_it(tmp_path: Path) -> None:
    scheduler = Script({("000", 2): {"000": Verdict("pause", "rung 2")}}, lets=("000",))
    arm = FakeArm([fake_trial(0), fake_trial(1)], scheduler=scheduler)
    bench = Bench(tmp_path, [], ranks=1, arms=[arm])
    arm.trials[0].config["hold"] = True  # type: ignore[index]
    bench.cluster.started.clear()
    original = bench.engine.job

    def job(config: Any, paths: Any) -> Any:  # held only the first time
        return original({**config, "hold": config["hold"] and paths.folder.name == "attempt-1"}, paths)

    bench.engine.job = job  # type: ignore[method-assign]
    assert bench.run() == {"000": "finished", "001": "finished"}
    assert bench.cluster.started == ["000", "001", "000"], "the new one came first"
    lines = (bench.folder.trial("000") / "attempt-2" / "metrics.jsonl").read_text().splitlines()
    assert not lines, "all four steps were saved before it was paused"


def test_what_stays_paused_for_ever_is_retired_instead_of_hanging_the_sweep(tmp_path: Path) -> None:
    scheduler = Script({("000", 2): {"000": Verdict("pause", "rung 2")}})
    bench = Bench(tmp_path, [], arms=[FakeArm([fake_trial(0, hold=True)], scheduler=scheduler)])
    assert bench.run() == {"000": "pruned"}


def test_a_fork_takes_the_donors_checkpoint_and_the_new_values(tmp_path: Path) -> None:
    fork = Verdict("fork", "worst quarter", fork=Fork("000", {"bonus": 9.0}))
    scheduler = Script({("001", 2): {"001": fork}})
    trials = [fake_trial(0, params={"bonus": 1.0}), fake_trial(1, params={"bonus": 0.0}, hold=True)]
    bench = Bench(tmp_path, [], ranks=1, arms=[FakeArm(trials, scheduler=scheduler)])
    original = bench.engine.job
    bench.engine.job = lambda c, p: original({**c, "hold": c["hold"] and p.folder.name == "attempt-1"}, p)  # type: ignore[method-assign]
    assert bench.run() == {"000": "finished", "001": "finished"}
    assert bench.engine.adopted == [(4, "001")]
    spec = json.loads((bench.folder.trial("001") / "attempt-2" / "spec.json").read_text())
    assert '"bonus": 9.0' in spec["argv"][1]
    event = bench.display.of("trial_forked")[0]
    assert (event["donor"], event["changed"]) == ("000", {"bonus": 9.0})
    assert Ledger.read(bench.folder.path / "ledger.db")["001"].forked


def test_out_of_memory_is_never_tried_unchanged(tmp_path: Path) -> None:
    log = "torch.MemoryError\n"
    bench = Bench(tmp_path, [fake_trial(0, code=1, log=log, relief=1), fake_trial(1, code=1, log=log)])
    assert bench.run() == {"000": "finished", "001": "failed"}
    started = [e for e in Ledger.history(bench.folder.path / "ledger.db") if e.kind == "attempt_started"]
    assert [(e.trial, e.data.get("changed")) for e in started] == [("000", None), ("001", None), ("000", "micro 4")]


def test_a_lost_node_is_tried_again_and_does_not_count(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(0, code=["lost", "lost", "lost", 0])])
    assert bench.run() == {"000": "finished"}
    assert bench.cluster.started == ["000"] * 4
    assert bench.display.of("trial_retried")[0]["failure"] == "node-lost"


def test_three_trials_that_fail_alike_end_the_sweep_which_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(i, code=1) for i in range(6)], ranks=1)
    states = bench.run()
    assert list(states.values()) == ["failed"] * 3 + ["waiting"] * 3, "no fourth was started"
    assert "failed in the same way" in bench.controller.given_up
    assert "planted" in bench.display.of("warning")[0]["message"]


def test_an_attempt_that_says_nothing_is_ended_with_where_it_hung(tmp_path: Path) -> None:
    settings = {**FAILURES, "retries": 0, "first_step_s": 0.0}
    bench = Bench(tmp_path, [fake_trial(0, hold=True, steps=0)], failures=settings)
    assert bench.run() == {"000": "failed"}
    status = bench.status("000")
    assert status["failure"] == "stalled"
    assert "File train.py, line 3, in wait_for_rollout" in status["root_cause"]


def test_an_attempt_that_waits_in_a_queue_says_why_and_does_not_count_as_stalled(tmp_path: Path) -> None:
    settings = {**FAILURES, "retries": 0, "first_step_s": 0.0}
    bench = Bench(tmp_path, [fake_trial(0, queued=3)], failures=settings)
    assert bench.run() == {"000": "finished"}
    said = bench.display.of("sweep_waiting")
    assert len(said) == 1
    assert said[0]["message"].endswith(": (Priority)")


def test_a_node_that_is_not_heard_from_is_named_once_until_it_is_heard_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [fake_trial(0, queued=5, silent=[2, 3, 5])])
    assert bench.run() == {"000": "finished"}
    assert [e["message"] for e in bench.display.of("node_silent")] == ["host1: no answer"] * 2


def test_a_candidate_is_scored_over_its_seeds_and_told_once(tmp_path: Path) -> None:
    arm = FakeArm([fake_trial(0), fake_trial(1)], seeds=(1, 2, 3), scheduler=Script({}))
    bench = Bench(tmp_path, [], arms=[arm])
    assert sorted(bench.run()) == ["000-s1", "000-s2", "000-s3", "001-s1", "001-s2", "001-s3"]
    assert set(arm.sampler.told) == {0, 1}
    assert arm.sampler.told[0].values == (pytest.approx(0.4),)
    assert [h[:2] for h in arm.scheduler.heard if h[0] == "000"] == [("000", s) for s in (1, 2, 3, 4)], "a mean a step"
    assert arm.scheduler.over == ["000", "001"]


def test_the_best_of_each_arm_is_run_again_under_seeds_that_nothing_was_chosen_by(tmp_path: Path) -> None:
    one = FakeArm([fake_trial(0), fake_trial(2, bonus=0.5)])
    two = FakeArm([fake_trial(1, arm="1"), fake_trial(3, arm="1", code=1)], arm="1")
    bench = Bench(tmp_path, [], arms=[one, two], final_seeds=(1001, 1002))
    states = bench.run()
    assert {t for t in states if "final" in t} == {
        "002-final-s1001", "002-final-s1002", "001-final-s1001", "001-final-s1002",
    }  # fmt: skip
    again = Bench(tmp_path, [], arms=[one, two], final_seeds=(1001, 1002))
    assert [o.trial.id for o in again.controller.outcomes.values() if o.trial.kind == "final"]
    again.run()
    assert set(again.cluster.started) <= {"003"}, "only what had failed was tried again"


def test_arms_run_side_by_side(tmp_path: Path) -> None:
    one = FakeArm([fake_trial(i) for i in (0, 2, 4)])
    two = FakeArm([fake_trial(i, arm="1") for i in (1, 3, 5)], arm="1")
    bench = Bench(tmp_path, [], ranks=1, arms=[one, two])
    bench.run()
    assert bench.cluster.started == ["000", "001", "002", "003", "004", "005"]


def test_what_was_run_anywhere_in_the_store_is_reused_and_shown_as_reused(tmp_path: Path) -> None:
    Bench(tmp_path, [fake_trial(0), fake_trial(1, code=1)], name="first").run()
    bench = Bench(tmp_path, [fake_trial(0), fake_trial(1), fake_trial(2)], name="second", index=True)
    assert set(bench.run().values()) == {"finished"}
    assert sorted(bench.cluster.started) == ["001", "002"], "a failed trial is no result"
    assert bench.controller.outcomes["000"].reused == "first/000"
    assert bench.controller.outcomes["000"].curve.final_score == 0.4
    assert bench.arms[0].sampler.told[0].values == (0.4,)
    assert Ledger.read(bench.folder.path / "ledger.db")["000"].reused == "first/000"
    other = Bench(tmp_path, [fake_trial(0)], name="third", index=True, never_reused=frozenset({"0"}))
    other.run()
    assert other.cluster.started == ["000"], "placement was searched on purpose"


def test_a_running_attempt_of_a_dead_controller_is_followed_again_and_not_started_twice(tmp_path: Path) -> None:
    first = Bench(tmp_path, [fake_trial(0, hold=True), fake_trial(1)])
    first.controller._start()
    attempts = {str(a.folder): a for a in first.cluster.running}
    for attempt in attempts.values():
        attempt.poll(), attempt.poll()
    first.controller._follow()
    first.ledger.close()  # killed here: 000 runs on, 001 ends unseen
    cluster = FakeCluster(2)
    cluster.left = attempts
    again = Bench(tmp_path, [fake_trial(0, hold=True), fake_trial(1)], cluster=cluster)
    held = next(a for a in attempts.values() if a.folder.parent.name == "000")
    held._exit = Exit(0, "exit", "", 0.0)  # its trainer ends
    assert again.run() == {"000": "finished", "001": "finished"}
    assert cluster.started == [], "nothing was started a second time"
    assert again.display.of("attempt_reattached")
    states = Ledger.read(again.folder.path / "ledger.db")
    assert {s.attempts for s in states.values()} == {1}


def test_ranks_that_another_sweep_holds_are_waited_for(tmp_path: Path) -> None:
    cluster = FakeCluster(1)
    cluster.taken = 1
    bench = Bench(tmp_path, [fake_trial(0)], cluster=cluster)
    threading.Timer(0.2, setattr, (cluster, "taken", 0)).start()
    assert bench.run() == {"000": "finished"}
    assert "another sweep" in bench.display.of("sweep_waiting")[0]["message"]


class TestWhatAReviewFound:
    """Each was a way to lose, repeat or mislabel something."""

    def test_a_stop_reaches_a_candidate_whose_pause_is_still_being_carried_out(self, tmp_path: Path) -> None:
        says = {
            ("000", 2): {"000": Verdict("pause", "rung 2")},
            ("001", 2): {"000": Verdict("stop", "hyperband: below the rung", {"bound": 1.0})},
        }
        arm = FakeArm([fake_trial(0, hold=True), fake_trial(1)], scheduler=Script(says))
        bench = Bench(tmp_path, [], arms=[arm])
        original = FakeAttempt.stop
        # A real attempt takes seconds to end: here its pause is not over when the other verdict comes.
        slow: list[FakeAttempt] = []

        def stop(self: FakeAttempt, *, dump: bool = False) -> None:
            if self.folder.parent.name == "000" and not slow:
                slow.append(self)
            else:
                original(self, dump=dump)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeAttempt, "stop", stop)
            assert bench.run() == {"000": "pruned", "001": "finished"}
        assert bench.status("000")["stop"]["detail"] == "hyperband: below the rung"

    def test_a_verdict_on_several_seeds_is_carried_out_by_all_of_them_after_a_kill(self, tmp_path: Path) -> None:
        says = {("000", 4): {"000": STOPPED}}
        trials = [fake_trial(0, hold=True)]
        first = Bench(tmp_path, [], arms=[FakeArm(trials, scheduler=Script(says), seeds=(1, 2))])
        first.controller._start()
        for attempt in first.cluster.running:
            attempt.poll(), attempt.poll()
        first.controller._follow()  # both have their scores: the stop is decided
        running = {str(a.folder): a for a in first.cluster.running}
        one = next(r for r in first.controller.running if r.outcome.trial.id == "000-s1")
        first.controller.running.remove(one)
        first.controller._end(one, Exit(-15, "stopped", "", 1.0))
        first.ledger.close()  # killed here: the second seed is still running
        cluster = FakeCluster(2)
        cluster.left = {k: a for k, a in running.items() if "000-s2" in k}
        for attempt in cluster.left.values():
            attempt._exit = None
        again = Bench(tmp_path, [], arms=[FakeArm(trials, scheduler=Script(says), seeds=(1, 2))], cluster=cluster)
        assert again.run() == {"000-s1": "pruned", "000-s2": "pruned"}
        assert cluster.started == []

    def test_a_failed_trial_is_over_for_its_scheduler_and_new_when_it_is_tried_again(self, tmp_path: Path) -> None:
        trials = [fake_trial(0, code=1), fake_trial(1)]
        Bench(tmp_path, [], arms=[FakeArm(trials, scheduler=Script({}))]).run()
        scheduler = Script({})
        again = Bench(tmp_path, [], arms=[FakeArm([fake_trial(0), fake_trial(1)], scheduler=scheduler)])
        assert scheduler.over == ["000", "001"] or scheduler.over == ["001", "000"]
        assert again.run() == {"000": "finished", "001": "finished"}
        assert again.arms[0].sampler.told[0].state == "finished"

    def test_hours_of_a_reused_trial_are_what_it_took(self, tmp_path: Path) -> None:
        first = Bench(tmp_path, [fake_trial(0)], name="first")
        first.run()
        path = first.folder.trial("000") / "attempt-1" / "status.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "elapsed_s": 7200.0}))
        bench = Bench(tmp_path, [fake_trial(0)], name="second", index=True)
        bench.run()
        assert bench.controller.outcomes["000"].gpu_hours == pytest.approx(2.0)
        again = Bench(tmp_path, [fake_trial(0)], name="second")
        assert again.controller.arms["0"].candidates["000"].hours == pytest.approx(2.0)

    def test_a_trial_that_was_retired_is_pruned_in_its_records_too(self, tmp_path: Path) -> None:
        scheduler = Script({("000", 2): {"000": Verdict("pause", "rung 2")}})
        bench = Bench(tmp_path, [], arms=[FakeArm([fake_trial(0, hold=True)], scheduler=scheduler)])
        assert bench.run() == {"000": "pruned"}
        assert (bench.status("000")["state"], bench.status("000")["stop"]["reason"]) == ("pruned", "worse")
        assert bench.tracker.of("trial_ended")[-1][:2] == ("000", "pruned")

    def test_an_attempt_that_outlived_an_extension_is_no_failure(self, tmp_path: Path) -> None:
        first = Bench(tmp_path, [fake_trial(0, steps=4)])
        first.controller._start()
        attempts = {str(a.folder): a for a in first.cluster.running}
        first.ledger.close()  # killed; its trainer goes to step 4
        cluster = FakeCluster(1)
        cluster.left = attempts
        again = Bench(tmp_path, [fake_trial(0, steps=6)], cluster=cluster)
        assert again.run() == {"000": "finished"}
        assert again.controller.outcomes["000"].curve.step == 6
        assert cluster.started == ["000"], "one more attempt, from the checkpoint"

    def test_more_steps_bring_no_pruned_candidate_back_and_the_finals_do_not_wait_for_it(self, tmp_path: Path) -> None:
        def arm(steps: int) -> FakeArm:
            trials = [fake_trial(0, steps=steps), fake_trial(1, hold=True), fake_trial(2, steps=steps)]
            return FakeArm(trials, scheduler=Script({("001", 2): {"001": STOPPED}}))

        first = Bench(tmp_path, [], arms=[arm(4)])
        assert first.run() == {"000": "finished", "001": "pruned", "002": "finished"}
        with contextlib.closing(Ledger.open(first.folder.path / "ledger.db", create=False)) as ledger:
            ledger.append_all([("trial_planned", t, {"candidate": t, "again": True}) for t in ("000", "001", "002")])
        longer = Bench(tmp_path, [], arms=[arm(6)], final_seeds=(1001,))
        assert {n: told.state for n, told in longer.arms[0].sampler.told.items()} == {1: "pruned"}
        states = longer.run()
        assert [t for t in states if "final" in t] == ["000-final-s1001"]
        assert states["001"] == "pruned" and "001" not in longer.cluster.started

    def test_a_sampler_that_finds_no_point_says_so_with_the_last_reason(self, tmp_path: Path) -> None:
        arm = FakeArm([fake_trial(0)], budget=3)
        bench = Bench(tmp_path, [], arms=[arm])
        search = bench.controller.arms["0"]
        search.refuse = lambda _params: "kl=-0.5 is negative"
        ask = search._sampler.ask

        def refusing(refuse: Any) -> Any:
            return ask(refuse) or (refuse({"kl": -0.5}) and None)

        search._sampler.ask = refusing  # type: ignore[method-assign]
        assert bench.run() == {"000": "finished"}
        (said,) = (e["message"] for e in bench.display.events if e["event"] == "warning")
        assert "no point is left that can run: 1 of 3 were proposed" in said and "kl=-0.5 is negative" in said
