"""What every tracker promises, whatever its store does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeper import tracking
from sweeper.errors import RequestError
from sweeper.tracking.base import Tracker

Make = Callable[[], Tracker]


@pytest.fixture(params=["none", "sqlite", "unwritable", "no server"])
def tracker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    uri = {
        "none": None,
        "sqlite": f"sqlite:///{tmp_path}/mlflow.db",
        "unwritable": f"sqlite:///{tmp_path}/file/mlflow.db",
        "no server": "http://127.0.0.1:9",  # the discard port: nobody listens
    }[request.param]
    name = "none" if request.param == "none" else "mlflow"
    return tracking.get({"name": name, "uri": uri}, warn=lambda _: None)


def test_no_call_waits_or_raises_whatever_the_store_does(tracker: Tracker, tmp_path: Path) -> None:
    sweep = tmp_path / "runs" / "s"
    sweep.mkdir(parents=True)
    slowest = 0.0

    def timed(call: Callable[[], None]) -> None:
        nonlocal slowest
        began = time.perf_counter()
        call()
        slowest = max(slowest, time.perf_counter() - began)

    timed(lambda: tracker.sweep_started("s", "p", {"sweeper.folder": str(sweep)}, {"overrides": "a=1"}))
    missing = [tmp_path / "not-there.json"]
    timed(
        lambda: tracker.trial_started("000", "x=1", {"x": 1, "config": {"a": {"b": None}}}, {"attempt": "1"}, missing)
    )
    odd = {"a@b": float("nan"), "c": float("inf"), "d": 1}
    for step in range(50):
        timed(lambda: tracker.metrics("000", step, odd, time.time()))  # noqa: B023
    timed(lambda: tracker.trial_ended("000", "finished", {"final_score": 0.5}, missing))
    timed(lambda: tracker.sweep_ended("finished"))
    assert isinstance(tracker.run_ids(), dict)
    assert isinstance(tracker.open_command(), str)
    began = time.perf_counter()
    tracker.close(1.0)
    assert time.perf_counter() - began < 2.0, "close keeps to its time"
    assert slowest < 0.5, "the training would have waited"  # MLflow's import alone takes longer


def test_an_unknown_tracker_is_named() -> None:
    with pytest.raises(RequestError, match="tracking=wandb"):
        tracking.get({"name": "wandb"}, warn=lambda _: None)
