"""A fake sweep that talks to the real MLflow tracker, and what reads MLflow back: its own client, its own server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_lineage import write_fake

from sweeper.tracking.mlflow import MlflowTracker

CONFIG = {
    "lr": 1e-6,
    "seed": 1,
    "model": {"name": "tiny"},
    "actor": {"optim": {"lr": 1e-6}},
    "engine": {"name": "fake"},
}


class Sweep:
    """A sweep's folder and tracker: metrics go where a trainer would write them, calls come as the controller's do."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.warnings: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.tracker = MlflowTracker(uri, warn=self.warnings.append)
        self.tracker.sweep_started(folder.name, "proj", {"sweeper.folder": str(folder)}, {"overrides": "lr=1e-6,2e-6"})

    def start(self, trial: str, attempt: int = 1, *, record: bool = False, **lineage: Any) -> Path:
        """`record`: with a lineage record, of which `lineage` says more (fake_lineage.fake_record)."""
        here = self.folder / "trials" / trial / f"attempt-{attempt}"
        here.mkdir(parents=True)
        (here / "spec.json").write_text(json.dumps({"metrics": "metrics.jsonl", "config": CONFIG}))
        tags = {"sweeper.fingerprint": "f" * 64, "attempt": str(attempt)}
        files = [here / "spec.json", *(write_fake(here, **lineage) if record else [])]
        self.tracker.trial_started(trial, f"lr={trial}", {"lr": 1e-6, "config": CONFIG}, tags, files)
        return here

    def step(self, here: Path, step: int, **values: float) -> None:
        measured = {"reward": step / 10, "val/acc@4": 0.5, **values}
        with (here / "metrics.jsonl").open("a") as out:
            out.write(json.dumps({"step": step, "data": measured}) + "\n")
        self.tracker.metrics(here.parent.name, step, measured, time.time())

    def end(self, here: Path, state: str = "finished", **lineage: Any) -> None:
        """`lineage`: what the record says at the end."""
        (here / "status.json").write_text(json.dumps({"state": state}))
        files = [here / "status.json", here / "metrics.jsonl", *(write_fake(here, **lineage) if lineage else [])]
        self.tracker.trial_ended(here.parent.name, state, {"step": 3, "final_score": 0.5}, files)


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs(uri: str) -> dict[str, Any]:
    """Trial id -> run, of the sweep; the parent under its own name."""
    reader = client(uri)
    experiment = reader.get_experiment_by_name("proj")
    found = reader.search_runs([experiment.experiment_id]) if experiment else []
    return {r.data.tags.get("sweeper.trial", r.info.run_name): r for r in found}


def until(true: Callable[[], Any], seconds: float = 600.0) -> float:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - began


class Server:
    """`mlflow server` on a free port of the loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        command = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        stores = ["--backend-store-uri", f"sqlite:///{self.folder}/m.db", "--artifacts-destination", f"{self.folder}/a"]
        self._log = (self.folder / "server.log").open("a")
        self._process = subprocess.Popen(
            [sys.executable, *command, *stores],
            cwd=self.folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        until(self._answers, 600)
        return self

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            return False

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # its own session: the server and its workers
        self._process.wait()
        self._log.close()
