"""The command line as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeper.config import hydra_app
from sweeper.config.main import main

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "mlflow", "verl", "pandas", "transformers")


def sweep(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "sweep.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "SWEEPER_CACHE": str(cwd / "cache")},
    )


def test_help_names_the_groups_their_options_and_examples(tmp_path: Path) -> None:
    done = sweep("--help", cwd=tmp_path)
    assert done.returncode == 0
    for text in ("algorithm: dapo, dr_grpo, grpo", "model_engine: dp, megatron", "plan=true", "--json", "Exit codes"):
        assert text in done.stdout
    assert "hydra/" not in done.stdout and not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--help"], ["-m", "algorithm=grpo,ppo", "plan=true"]])
def test_nothing_heavy_is_imported(arguments: list[str], tmp_path: Path) -> None:
    code = f"""
import sys
from sweeper.config.main import main
try:
    code = main(["sweep.py", *{arguments!r}])
except SystemExit as end:
    code = end.code
heavy = [m for m in {HEAVY!r} if m in sys.modules]
print("\\nheavy:", heavy, "code:", code)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip().splitlines()[-1] == "heavy: [] code: 0", done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["algorithm=grp"], "algorithm=grpo"),
        (["trainer.nnode=1", "critic.optimm.lr=2"], "critic.optim.lr"),
        (["--cfg", "job", "model=foo"], "model/foo"),
        (["--cfg", "job", "trainer.nnode=1"], "trainer.nnode"),
        (["--cfg", "nonsense"], "invalid choice"),
        (["--run", "--multirun"], "Only one of"),
        (["-m", "hydra/launcher=nope"], "nope"),
        (["-m", "hydra.verbose=false", "trainer.nnode=1"], "trainer.nnode"),
    ],
)
def test_a_wrong_request_ends_with_2_and_no_traceback(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = sweep(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr and "HYDRA_FULL_ERROR" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["plan=true"], ["--help"]])
def test_without_the_configs_the_cure_is_named(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hydra_app, "CONF", tmp_path / "conf")
    assert main(["sweep.py", *arguments]) == 2
    assert "pip install -e ." in capsys.readouterr().err


def test_json_problems(tmp_path: Path) -> None:
    done = sweep("algorithm=grp", "--json", cwd=tmp_path)
    assert done.returncode == 2
    (problem,) = json.loads(done.stdout)["problems"]
    assert problem["fix"] == "algorithm=grpo"


def test_the_composed_config_can_be_printed(tmp_path: Path) -> None:
    done = sweep("--cfg", "job", "algorithm=ppo", cwd=tmp_path)
    assert done.returncode == 0 and "adv_estimator: gae" in done.stdout


@pytest.mark.parametrize("overrides", [["hydra/sweeper=basic", "hydra/launcher=basic"], ["hydra.verbose=false"]])
def test_hydras_own_sweeper_and_launcher_run_the_same_trials(overrides: list[str], tmp_path: Path) -> None:
    done = sweep("-m", *overrides, "algorithm=grpo,ppo", "plan=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "algorithm=ppo" in done.stdout or done.stdout.count("plan: 1 trial") == 2
