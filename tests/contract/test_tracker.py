"""What every tracker promises, whatever its store does."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeper import tracking
from sweeper.errors import RequestError
from sweeper.tracking.base import Tracker


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a fake server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(params=["none", "sqlite", "unwritable", "no server", "silent"])
def tracker(request: pytest.FixtureRequest, tmp_path: Path, silent: str, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3600")  # whoever waits for an answer does not come back
    (tmp_path / "file").write_text("")
    uri = {
        "none": None,
        "sqlite": f"sqlite:///{tmp_path}/mlflow.db",
        "unwritable": f"sqlite:///{tmp_path}/file/mlflow.db",
        "no server": "http://127.0.0.1:9",  # the discard port: nobody listens
        "silent": silent,
    }[request.param]
    name = "none" if request.param == "none" else "mlflow"
    return tracking.get({"name": name, "uri": uri}, warn=lambda _: None)


def test_no_call_waits_or_raises_whatever_the_store_does(tracker: Tracker, tmp_path: Path) -> None:
    sweep = tmp_path / "runs" / "s"
    sweep.mkdir(parents=True)
    missing = [tmp_path / "lineage.json"]
    tracker.sweep_started("s", "p", {"sweeper.folder": str(sweep)}, {"overrides": "a=1"})
    tracker.trial_started("000", "x=1", {"x": 1, "config": {"a": {"b": None}}}, {"attempt": "1"}, missing)
    odd = {"a@b": float("nan"), "c": float("inf"), "d": 1}
    for step in range(50):
        tracker.metrics("000", step, odd, time.time())
    tracker.tagged("000", {"sweeper.flagged": "step 3"})
    tracker.trial_ended("000", "finished", {"final_score": 0.5}, missing)
    tracker.best("000", 4, 0.5, "max", missing[0])
    tracker.best("not-started", 4, 0.5, "max", missing[0])
    tracker.sweep_ended("finished")
    assert isinstance(tracker.run_ids(), dict)
    assert isinstance(tracker.open_command(), str)
    assert isinstance(tracker.page(), str)
    assert isinstance(tracker.close(1.0), bool)


def test_an_unknown_tracker_is_named() -> None:
    with pytest.raises(RequestError, match="tracking=wandb"):
        tracking.get({"name": "wandb"}, warn=lambda _: None)
