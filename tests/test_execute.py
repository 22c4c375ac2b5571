"""What a request leaves behind that is found to be wrong late. Nothing is trained: the trainer is never started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeTracker, fake_trial

from sweeper import app, execute
from sweeper.clusters.local import LocalCluster
from sweeper.config.hydra_app import initialized
from sweeper.errors import Problem, RequestError
from sweeper.search.outcome import Outcome
from sweeper.trial.records import SweepFolder

REQUEST = ["cluster.device=cpu", "tracking=none", "output=plain", "name=s", "placement.probe=false"]
WRONG = RequestError(Problem("host gpu1 has no /nope, the engine's interpreter", key="engine.python"))


def run(*overrides: str) -> int:
    with initialized():
        return app.run([*REQUEST, *overrides])


@pytest.fixture(autouse=True)
def _built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "_prepare", lambda trials, display: None)


def test_a_store_that_cannot_be_made_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("store=/proc/nope") == 2
    said = capfd.readouterr().err
    assert "store=/proc/nope cannot be written" in said
    assert "store=runs" in said and "nothing was launched" in said


def test_asking_whether_a_store_can_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any) -> Any:
        raise WRONG

    monkeypatch.setattr("sweeper.clusters.get", unreachable)
    assert run(f"store={tmp_path}/a/b") == 2
    assert list(tmp_path.iterdir()) == []


def test_what_the_cluster_refuses_before_anything_started_leaves_no_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuses(*_: Any) -> Any:
        raise WRONG

    monkeypatch.setattr(LocalCluster, "start", refuses)
    assert run(f"store={tmp_path}") == 2
    assert "/nope" in (said := capfd.readouterr().err) and said.endswith("nothing was launched\n")
    assert not (tmp_path / "s").exists()


def test_what_was_started_before_stays_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def started(_plan: Any, _engine: Any, _cluster: Any, folder: SweepFolder, *_: Any, **__: Any) -> int:
        attempt = folder.new_attempt("000").path
        (attempt / "attempt.json").write_text("{}")
        raise RequestError(WRONG.problems)

    monkeypatch.setattr(execute, "_run", started)
    assert run(f"store={tmp_path}") == 2
    said = capfd.readouterr().err
    assert "nothing was launched" not in said
    assert f"records  {tmp_path}/s" in said and "sweeper resume s" in said
    assert (tmp_path / "s/trials/000/attempt-1/attempt.json").exists()


def test_a_run_says_which_arms_another_one_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuses(*_: Any) -> Any:
        raise WRONG

    monkeypatch.setattr(LocalCluster, "start", refuses)
    assert run(f"store={tmp_path}", "algorithm=grpo", "critic.optim.lr=1e-4,1e-3") == 2
    said = " ".join(capfd.readouterr().out.split())
    assert "arm critic.optim.lr=0.0001 is trained once, also for critic.optim.lr=0.001" in said


def test_a_sweep_that_is_done_stays_so_whoever_interrupts_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    tracker = FakeTracker()
    tracker.open_command, tracker.run_ids = lambda: "mlflow ui", dict
    monkeypatch.setattr(execute.tracking, "get", lambda *_, **__: tracker)
    done = {"000": Outcome(fake_trial(0), state="finished")}
    monkeypatch.setattr(execute.Controller, "run", lambda _: done)
    monkeypatch.setattr(execute.best, "tell", interrupted)
    monkeypatch.setattr(execute, "_closing", interrupted)
    assert run(f"store={tmp_path}", "tracking=mlflow") == 0
    assert tracker.of("sweep_ended") == [("finished",)]
    said = capfd.readouterr()
    assert "sweeper resume s tells it" in said.out + said.err
    assert "before anything was started" not in said.err
