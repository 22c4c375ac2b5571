"""MLflow read back with its own client: sqlite and a real server, away and back."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_store import Server, Sweep, client, runs, until

from sweeper import engines
from sweeper.config.compose import full
from sweeper.config.hydra_app import initialized
from sweeper.engines.base import Progress
from sweeper.errors import RequestError, SweeperError
from sweeper.tracking.mlflow import MlflowTracker, replay
from sweeper.trial.ledger import Ledger


class FakeEngine:
    name = "fake"

    def progress(self, line: dict[str, Any], config: dict[str, Any]) -> Progress:
        return Progress(line["step"], line["data"])


FLAGGED = {"sweeper.flagged": "step 1 with tp=4: ..."}


@pytest.fixture(autouse=True)
def _engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "get", lambda name: FakeEngine(), raising=False)


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/mlflow.db"


def read_back(uri: str) -> None:
    """What a person finds after a sweep of two trials."""
    found = runs(uri)
    reader = client(uri)
    parent, first, second = found["s1"], found["000"], found["001"]
    assert parent.data.tags["sweeper.kind"] == "sweep"
    assert parent.info.status == "FAILED"
    for run in (first, second):
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["sweeper.sweep"] == "s1"
        assert run.data.params["lr"] == "1e-06"
        assert run.data.params["actor.optim.lr"] == "1e-06"
        assert run.data.params["model"] == "tiny"
    assert (first.info.status, first.data.tags["sweeper.state"]) == ("FINISHED", "finished")
    assert (second.info.status, second.data.tags["sweeper.state"]) == ("FAILED", "failed")
    assert second.data.tags["sweeper.flagged"] == "step 1 with tp=4: ..."
    assert "sweeper.flagged" not in first.data.tags
    assert first.info.run_name == "lr=000"
    history = reader.get_metric_history(first.info.run_id, "reward")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [(i, i / 10) for i in range(4)]
    assert first.data.metrics["val/acc_at_4"] == 0.5
    assert math.isnan(first.data.metrics["odd"])
    assert first.data.metrics["big"] > 1e300
    assert first.data.metrics["final_score"] == 0.5
    names = {a.path for a in reader.list_artifacts(first.info.run_id)}
    assert names == {"spec.json", "status.json", "metrics.jsonl"}


def two_trials(sweep: Sweep) -> None:
    one, two = sweep.start("000"), sweep.start("001")
    for i in range(4):
        sweep.step(one, i, odd=float("nan"), big=float("inf"))
        sweep.step(two, i)
    sweep.tracker.tagged("001", FLAGGED)
    sweep.end(one)
    sweep.end(two, "failed")
    sweep.tracker.sweep_ended("failed")


def test_sqlite_read_back(uri: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    two_trials(sweep)
    assert sweep.tracker.close(600)
    assert sweep.warnings == []
    read_back(uri)
    assert set(sweep.tracker.run_ids()) == {"000", "001"}
    assert sweep.tracker.open_command().endswith("mlflow ui")
    assert (tmp_path / "mlruns").is_dir()
    assert replay(sweep.folder, None).startswith("2 trials"), "nothing is missing, and that is no error"
    read_back(uri)


def test_what_mlflow_ui_opens_by_default(uri: str, tmp_path: Path) -> None:
    """The store that a plain `mlflow ui` opens here is the one that we wrote, except beside an old file store."""
    from mlflow.tracking._tracking_service.utils import _get_default_tracking_uri

    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    two_trials(sweep)
    assert sweep.tracker.close(600)
    assert _get_default_tracking_uri() == "sqlite:///mlflow.db"
    (tmp_path / "mlruns" / "0").mkdir(exist_ok=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("")
    assert _get_default_tracking_uri() != "sqlite:///mlflow.db"
    assert f"--backend-store-uri sqlite:///{tmp_path}/mlflow.db" in sweep.tracker.open_command()


def test_the_variable_of_mlflow_names_the_store_unless_one_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meant(*typed: str) -> str:
        with initialized():
            config, _ = full(["tracking=mlflow", *typed])
        return str(MlflowTracker(config.tracking.uri, warn=print).uri)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert meant() == f"sqlite:///{tmp_path}/other.db"
    assert meant("tracking.uri=http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert meant() == f"sqlite:///{tmp_path}/mlflow.db"


def test_metrics_are_in_the_store_while_it_trains(uri: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    here = sweep.start("000")
    until(lambda: "000" in sweep.tracker.run_ids())
    run = sweep.tracker.run_ids()["000"]
    for step in range(3):
        sweep.step(here, step)
        until(lambda: step in {m.step for m in client(uri).get_metric_history(run, "reward")})  # noqa: B023
    assert runs(uri)["000"].info.status == "RUNNING"
    sweep.end(here, "stopped")
    assert sweep.tracker.close(600)
    assert runs(uri)["000"].info.status == "KILLED"


def test_a_later_attempt_goes_on_in_the_same_run(uri: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    here = sweep.start("000")
    for i in range(3):
        sweep.step(here, i)
    sweep.end(here, "stopped")
    assert sweep.tracker.close(600)
    again = Sweep(tmp_path / "runs" / "s1", uri)  # another process, as after `sweeper resume`
    here = again.start("000", attempt=2)
    for i in range(2, 5):
        again.step(here, i)
    again.end(here)
    again.tracker.sweep_ended("finished")
    assert again.tracker.close(600)
    found = runs(uri)
    assert set(found) == {"s1", "000"}, "no second run"
    assert found["000"].info.status == "FINISHED"
    assert found["000"].data.tags["attempt"] == "2"
    steps = [m.step for m in client(uri).get_metric_history(found["000"].info.run_id, "reward")]
    assert sorted(steps) == [0, 1, 2, 3, 4], "each step once"


def test_two_sweeps_share_the_experiment_and_a_reused_name_gets_new_runs(uri: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        sweep = Sweep(tmp_path / name / "s1", uri)
        sweep.end(sweep.start("000"))
        assert sweep.tracker.close(600)
    reader = client(uri)
    experiment = reader.get_experiment_by_name("proj").experiment_id
    assert len(reader.search_runs([experiment])) == 4


def test_a_deleted_experiment_is_restored(uri: str, tmp_path: Path) -> None:
    reader = client(uri)
    reader.delete_experiment(reader.create_experiment("proj"))
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    sweep.end(sweep.start("000"))
    assert sweep.tracker.close(600)
    assert reader.get_experiment_by_name("proj").lifecycle_stage == "active"
    assert runs(uri)["000"].info.status == "FINISHED"


def test_a_store_that_cannot_be_written_is_said_once_and_synced_later(uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sweep = Sweep(tmp_path / "runs" / "s1", f"sqlite:///{tmp_path}/file/mlflow.db")
    two_trials(sweep)
    until(lambda: sweep.warnings)
    assert not sweep.tracker.close(3)
    assert len(sweep.warnings) == 1
    assert "cannot be written" in sweep.warnings[0]
    assert "training goes on" in sweep.warnings[0]
    assert "Traceback" not in sweep.warnings[0]
    with pytest.raises(SweeperError, match="cannot be written") as caught:
        replay(sweep.folder, None)
    assert "try:   sweeper sync s1" in str(caught.value) and "--uri" in str(caught.value)
    assert "8 steps were missing" in replay(sweep.folder, uri)
    read_back(uri)
    assert "0 steps were missing" in replay(sweep.folder, uri), "again sends nothing"
    read_back(uri)


def test_a_store_removed_while_training(uri: str, tmp_path: Path) -> None:
    """SQLite goes on writing into the removed file; we notice, make another, and say that something is missing."""
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    one, two = sweep.start("000"), sweep.start("001")
    for here in (one, two):
        for i in range(2):
            sweep.step(here, i, **({"odd": float("nan"), "big": float("inf")} if here is one else {}))
    until(lambda: len(sweep.tracker.run_ids()) == 2 and not sweep.tracker._box)
    for path in tmp_path.glob("mlflow.db*"):
        path.unlink()
    for here in (one, two):
        for i in range(2, 4):
            sweep.step(here, i, **({"odd": float("nan"), "big": float("inf")} if here is one else {}))
    sweep.tracker.tagged("001", FLAGGED)
    sweep.end(one)
    sweep.end(two, "failed")
    sweep.tracker.sweep_ended("failed")
    assert not sweep.tracker.close(600), "the first steps are not in the new store"
    assert "removed or replaced" in sweep.warnings[0]
    assert "4 steps were missing" in replay(sweep.folder, None)
    read_back(uri.replace("/mlflow.db", "/./././././mlflow.db"))  # MLflow here still holds the removed file open


def test_sync_of_a_killed_controller(uri: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs" / "s1", "http://127.0.0.1:9")
    ledger = Ledger.open(sweep.folder / "ledger.db", create=True)
    sweep.step(sweep.start("000"), 0)
    sweep.tracker._given_up.set()  # as if the process were gone
    moved = sweep.folder.rename(tmp_path / "moved")
    with pytest.raises(RequestError, match="is running"):
        replay(moved, uri)
    ledger.close()
    replay(moved, uri)
    found = runs(uri)
    assert found["000"].info.status == found["s1"].info.status == "KILLED"
    assert found["000"].data.tags["sweeper.state"] == "interrupted"
    assert {a.path for a in client(uri).list_artifacts(found["000"].info.run_id)} == {"spec.json"}


def test_sync_of_a_sweep_without_calls(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no tracking"):
        replay(tmp_path, None)


def test_secrets_reach_neither_the_spool_nor_mlflow(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    config = {"engine": {"name": "fake", "env": {"WANDB_API_KEY": "0123456789abcdef"}}}
    sweep.tracker.trial_started("000", "x", {"config": config}, {}, [])
    assert sweep.tracker.close(600)
    assert "0123456789abcdef" not in (sweep.folder / "tracking.jsonl").read_text()
    assert runs(uri)["000"].data.params["engine.env.WANDB_API_KEY"] == "<WANDB_API_KEY>"


def test_a_password_in_the_address_is_not_shown(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs" / "s1", "http://me:hunter2@127.0.0.1:9")
    until(lambda: sweep.warnings)
    sweep.tracker.close(0.1)
    for text in (*sweep.warnings, sweep.tracker.open_command(), (sweep.folder / "tracking.jsonl").read_text()):
        assert "hunter2" not in text


def test_the_import_and_the_store_are_quiet(tmp_path: Path) -> None:
    """Nothing of MLflow's reaches the terminal, where the live display is."""
    code = (
        "import sys, time; from sweeper.tracking.mlflow import MlflowTracker\n"
        "assert 'mlflow' not in sys.modules\n"
        "t = MlflowTracker(None, warn=print); t.sweep_started('s', 'p', {}, {})\n"
        "t.trial_started('0', 'x', {}, {}, []); t.metrics('0', 1, {'a': 1.0}, time.time())\n"
        "t.trial_ended('0', 'finished', {}, []); t.sweep_ended('finished'); assert t.close(600)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "mlflow.db").exists()


# --- a real server ---


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    yield Server(tmp_path)


def test_a_server_read_back_through_a_crash_of_it(server: Server, tmp_path: Path) -> None:
    """Half of the steps, the server is killed, the rest, the server is back: everything is there, in order."""
    odd = {"odd": float("nan"), "big": float("inf")}
    with server:
        sweep = Sweep(tmp_path / "runs" / "s1", server.uri)
        one, two = sweep.start("000"), sweep.start("001")
        for i in range(2):
            sweep.step(one, i, **odd)
            sweep.step(two, i)
        until(lambda: len(sweep.tracker.run_ids()) == 2 and not sweep.tracker._box)
    for i in range(2, 4):
        sweep.step(one, i, **odd)
        sweep.step(two, i)
    sweep.tracker.tagged("001", FLAGGED)
    until(lambda: sweep.warnings)
    assert len(sweep.warnings) == 1
    assert "no answer" in sweep.warnings[0]
    with server:
        sweep.end(one)
        sweep.end(two, "failed")
        sweep.tracker.sweep_ended("failed")
        assert sweep.tracker.close(600), sweep.warnings
        read_back(server.uri)
        assert sweep.tracker.open_command().startswith(f"{server.uri}/#/experiments/")
        assert len(sweep.warnings) == 1
