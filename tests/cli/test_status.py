"""`sweeper status` of trials that run: the step that was trained last."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from sweeper.cli import steps
from sweeper.cli.main import main
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import SweepFolder


def running(store: Path, metrics: str | None) -> None:
    """A sweep whose trial has a score of step 10."""
    folder = SweepFolder.create(store, "s", [])
    attempt = store / "s" / "trials" / "000" / "attempt-1"
    with contextlib.closing(Ledger.open(folder.path / "ledger.db", create=True)) as ledger:
        ledger.append("sweep_started", data={"overrides": [], "mode": "max"})
        ledger.append("trial_planned", trial="000", data={"label": "lr=1"})
        ledger.append("attempt_started", trial="000", attempt=1, data={"folder": str(attempt)})
        ledger.append("progress", trial="000", attempt=1, data={"step": 10, "score": 0.5})
    attempt.mkdir(parents=True)
    if metrics is not None:
        (attempt / "metrics.jsonl").write_text(metrics)


def lines(*numbers: int) -> str:
    return "".join(json.dumps({"step": n, "data": {"loss": float("nan")}}) + "\n" for n in numbers)


@pytest.mark.parametrize(
    ("metrics", "step"),
    [
        (lines(*range(1, 15)), 14),
        (lines(13) + '{"step": 14, "da', 13),
        (lines(13) + "[1]\n{}\nno json\n", 13),
        (lines(3, 4), 10),  # a second attempt that goes on from a checkpoint
        ("", 10),
        (None, 10),
    ],
    ids=["further", "half a line", "other lines", "behind", "nothing yet", "no file"],
)
def test_a_running_trial_is_at_its_last_training_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metrics: str | None, step: int
) -> None:
    running(tmp_path, metrics)
    assert main(["status", "s", "--store", str(tmp_path)]) == 0
    assert f"score 0.500 step {step} lr=1" in " ".join(capsys.readouterr().out.split())
    assert main(["status", "s", "--store", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["s"]["000"]["last_step"] == step


def test_only_the_end_of_the_metrics_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "END", 100)
    running(tmp_path, lines(*range(1, 500)))
    trials = steps.brought_up(Ledger.read(tmp_path / "s" / "ledger.db"))
    assert trials["000"].last_step == 499
