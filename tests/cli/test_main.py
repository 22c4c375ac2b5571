"""The `sweeper` command as a user and a script meet it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sweeper import app, execute
from sweeper.cli.main import main
from sweeper.config.hydra_app import initialized
from sweeper.plan.plan import make
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import SweepFolder

ROOT = Path(__file__).resolve().parents[2]


def closed_early(*arguments: str, cwd: Path) -> tuple[int, str]:
    """The command's exit code and errors when nobody reads its output."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    return process.wait(60), said


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_plan_that_nobody_reads_to_its_end_is_no_failure(form: list[str], tmp_path: Path) -> None:
    assert closed_early(str(ROOT / "sweep.py"), "plan=true", *form, cwd=tmp_path) == (0, "")


def test_a_wrong_request_that_nobody_reads_is_still_wrong(tmp_path: Path) -> None:
    assert closed_early(str(ROOT / "sweep.py"), "trainer.nnode=1", "--json", cwd=tmp_path) == (2, "")


def test_a_status_that_nobody_reads_is_no_failure(tmp_path: Path) -> None:
    assert closed_early("-m", "sweeper.cli.main", "status", cwd=tmp_path) == (0, "")


def test_a_sweep_that_loses_its_reader_is_no_success(tmp_path: Path) -> None:
    code = """
import sys
from sweeper import app, execute
def gone(plan, resume):
    raise BrokenPipeError
execute.execute = gone
from sweeper.cli.main import main
from sweeper.trial.ledger import Ledger
sys.exit(main(["run"]))
"""
    assert closed_early("-c", code, cwd=tmp_path) == (1, "")


def test_a_wrong_name_is_an_error_in_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "--json", "--store", str(tmp_path), "wrong"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["event"] == "error" and said["problems"][0]["key"] == "name"


def never(*_: object, **__: object) -> int:
    raise AssertionError("something was run")


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "execute", never)


@pytest.mark.usefixtures("nothing_runs")
def test_a_sweep_runs_on_one_cluster_that_can_be_launched_on(capsys: pytest.CaptureFixture[str]) -> None:
    with initialized():
        assert app.run(["cluster=local,node_8gpu", "model=qwen0.5b"]) == 2
    said = capsys.readouterr().err
    assert "a sweep runs on one" in said and "cluster=node_8gpu can be planned for" in said


@pytest.mark.usefixtures("nothing_runs")
def test_a_plan_may_compare_clusters(capsys: pytest.CaptureFixture[str]) -> None:
    with initialized():
        app.run(["cluster=node_8gpu,two_nodes_8gpu", "model=qwen0.5b", "environment=gsm8k", "plan=true"])
    said = capsys.readouterr().out
    assert "on several clusters" in said and "a sweep runs on one" not in said


def test_a_damaged_ledger_hides_no_other_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("whole", "damaged"):
        (tmp_path / name).mkdir()
        ledger = Ledger.open(tmp_path / name / "ledger.db", create=True)
        ledger.append("sweep_started", data={"overrides": []})
        ledger.close()
    (tmp_path / "damaged" / "ledger.db").write_bytes(b"no database at all" * 100)
    assert main(["status", "--store", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "whole:" in said.out
    assert str(tmp_path / "damaged") in said.err and "Traceback" not in said.err
    assert main(["status", "damaged", "--store", str(tmp_path)]) == 2


@pytest.mark.parametrize("words", [("resume", "s"), ("extend", "s", "--steps", "9"), ("stop", "s")])
@pytest.mark.parametrize("loss", ["missing", "empty", "without events", "truncated"])
def test_a_sweep_whose_ledger_is_lost_is_not_taken_for_a_new_one(
    words: tuple[str, ...],
    loss: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(execute, "_run", never)
    folder = SweepFolder.create(tmp_path, "s", [])
    ledger = folder.path / "ledger.db"
    with contextlib.closing(Ledger.open(ledger, create=True)) as written:
        for number in range(200 if loss == "truncated" else 0):
            written.append("trial_planned", trial=f"{number:03d}", data={"label": "x" * 200})
    attempt = folder.new_attempt("000")
    if loss == "missing":
        ledger.unlink()
    elif loss != "without events":
        ledger.write_bytes(ledger.read_bytes()[: 0 if loss == "empty" else ledger.stat().st_size // 2])
    assert main([*words, "--store", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert str(ledger) in said and "backup" in said and "another name" in said and "Traceback" not in said
    assert attempt.path.is_dir() and [p.name for p in folder.path.glob("trials/*/attempt-*")] == ["attempt-1"]
    assert ledger.exists() == (loss != "missing"), "a second try is told the same"


def started(store: Path, name: str, *typed: str) -> None:
    """A sweep that was asked for and has run nothing."""
    folder = SweepFolder.create(store, name, typed)
    with initialized():
        begun = execute._started(make(typed))
    with contextlib.closing(Ledger.open(folder.path / "ledger.db", create=True)) as ledger:
        ledger.append("sweep_started", data=begun)


def test_a_resume_that_is_no_request_any_more_says_what_was_typed_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "_run", never)
    started(tmp_path, "s", "search=random", "lr=interval(1e-5,1e-3)", "search.trials=4")
    assert main(["resume", "s", "lr=1e-4", "--store", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "lr=interval(1e-5,1e-3) -> lr=1e-4" in said and "--fork NEW-NAME" in said
    assert f"sweeper resume s --store {tmp_path}" in said
    assert said.index("->") < said.index("nothing to search")


def test_a_sweep_is_extended_by_more_candidates_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "_run", never)

    def extended(name: str, *words: str) -> str:
        assert main(["extend", name, *words, "--store", str(tmp_path)]) == 2
        return capsys.readouterr().err

    started(tmp_path, "random", "search=random", "lr=interval(1e-5,1e-3)", "search.trials=4")
    fewer = extended("random", "--trials", "2")
    assert "has 4 candidates already" in fewer and "--trials) is the total" in fewer and "--trials 8" in fewer
    assert "asked for search.trials=4 already" in extended("random", "--trials", "4")
    started(tmp_path, "grid", "algorithm=grpo,rloo", "search=grid", "lr=choice(1e-4,2e-4,3e-4)")
    assert "6 candidates in 2 arms, and those are every point" in extended("grid", "--trials", "6")
    with pytest.raises(AssertionError, match="something was run"):
        main(["extend", "random", "--trials", "6", "--store", str(tmp_path)])


def test_a_sweep_is_extended_by_more_steps_or_not_at_all_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "_prepare", never)
    steps = "trainer.total_training_steps"

    def extended(*words: str, name: str = "s") -> str:
        assert main(["extend", name, *words, "--store", str(tmp_path)]) == 2
        return capsys.readouterr().err

    started(tmp_path, "s", "search=random", "lr=interval(1e-5,1e-3)", "search.trials=4", f"{steps}=9")
    for words in (("--steps", "5"), ("--steps", "5", "--trials", "8")):
        said = extended(*words)
        assert f"s has 9 steps a trial already; {steps} (--steps) is their total" in said
        assert "valid: more than 9" in said and f"try:   sweeper extend s --store {tmp_path} --steps 18" in said
    started(tmp_path, "default", "lr=1e-4")
    assert "default has 30 steps a trial already" in extended("--steps", "30", name="default")
    started(tmp_path, "epochs", f"{steps}=null", "trainer.total_epochs=1")
    said = extended("--steps", "10", name="epochs")
    assert "without a number of steps" in said and f"--fork NEW-NAME {steps}=10" in said
    with pytest.raises(AssertionError, match="something was run"):
        main(["extend", "s", "--steps", "10", "--store", str(tmp_path)])
    with pytest.raises(AssertionError, match="something was run"):
        main(["extend", "s", "--steps", "9", "--trials", "5", "--store", str(tmp_path)])
