"""The commands a user types, as processes, with real verl on the CPU, read back from the records and from MLflow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import left_over, sweeper, wait_for
from trained import ALGORITHMS, STEPS, Place, overrides

sys.path.insert(0, str(Path(__file__).parent))
import launch

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
SWEEP = [sys.executable, str(ROOT / "sweep.py")]
CPU = "cluster.device=cpu"  # also where there is a GPU: this environment has no vLLM
SHORT = ["trainer.total_training_steps=2", "trainer.test_freq=1", "trainer.save_freq=1"]


def sweep(folder: Path, *overrides: str, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SWEEP, CPU, *overrides], cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )


def status(folder: Path, trial: str, attempt: int = 1) -> dict[str, Any]:
    path = next((folder / "runs").glob(f"*/trials/{trial}/attempt-{attempt}/status.json"))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.CompletedProcess[str]]]:
    """The main command of the README, with every default."""
    folder = tmp_path_factory.mktemp("demo")
    yield folder, sweep(folder, "-m", "algorithm=grpo,ppo")
    shutil.rmtree(folder)


class TestTheMainCommand:
    def test_both_algorithms_learn_clearly_in_the_default_budget(self, demo: Any) -> None:
        folder, done = demo
        assert done.returncode == 0, done.stdout + done.stderr
        for trial in ("000", "001"):
            found = status(folder, trial)
            assert found["state"] == "finished"
            assert 0.1 < found["first_score"] < 0.4, "a start with signal and room"
            assert found["final_score"] > found["first_score"] + 0.15, found

    def test_the_screen_says_what_came_out_and_where_it_is(self, demo: Any) -> None:
        folder, done = demo
        assert "algorithm=grpo" in done.stdout
        records = next(
            p for p in (folder / "runs").iterdir() if p.is_dir()
        )  # the store has its index beside the sweeps
        assert f"records  {records}" in done.stdout
        assert "mlflow ui" in done.stdout
        assert "\x1b" not in done.stdout, "no terminal codes where there is no terminal"
        assert "Traceback" not in done.stdout + done.stderr

    def test_mlflow_has_a_parent_with_two_children_side_by_side(self, demo: Any) -> None:
        folder, _ = demo
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        experiment = client.get_experiment_by_name("sweeper")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        children = {r.data.params["algorithm"]: r for r in runs if "mlflow.parentRunId" in r.data.tags}
        parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
        assert set(children) == {"grpo", "ppo"}
        assert len(parents) == 1
        for name, run in children.items():
            assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
            assert run.info.status == "FINISHED"
            assert run.data.params["actor_rollout_ref.actor.optim.lr"] == run.data.params["lr"]
            rewards = client.get_metric_history(run.info.run_id, "critic/rewards/mean")
            assert [m.step for m in rewards] == list(range(1, 31)), name
            artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
            assert {"trainer.yaml", "command.sh", "spec.json", "status.json"} <= artifacts

    def test_mlflow_has_the_record_the_data_the_checkpoints_and_the_best(self, demo: Any, tmp_path: Path) -> None:
        folder, _ = demo
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        experiment = client.get_experiment_by_name("sweeper")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], "tags.`sweeper.trial` != ''")
        assert len(runs) == 2
        for run in runs:
            tags = run.data.tags
            at = next((folder / "runs").glob(f"*/trials/{tags['sweeper.trial']}/attempt-1"))
            record = json.loads((at / "lineage.json").read_text())
            there = json.loads(Path(client.download_artifacts(run.info.run_id, "lineage.json")).read_text())
            assert there == record
            assert (tags["sweeper.fingerprint"], tags["sweeper.commit"]) == (
                record["fingerprint"], record["code"]["commit"],
            )  # fmt: skip
            data = {tag.value: i.dataset for i in run.inputs.dataset_inputs for tag in i.tags if tag.key == "sha256"}
            assert set(data) == {i["sha256"] for i in record["inputs"] if i["role"] in ("train", "val", "test")}
            assert all(sha256.startswith(dataset.digest) for sha256, dataset in data.items())
            saved = {c["step"]: c["digest"] for c in record["checkpoints"]}
            models = {o.step: client.get_logged_model(o.model_id) for o in run.outputs.model_outputs}
            assert saved and {step: m.tags["sweeper.digest"] for step, m in models.items()} == saved
        best = client.get_model_version_by_alias("sweeper", "best")
        winner = max(runs, key=lambda r: status(folder, r.data.tags["sweeper.trial"])["best_score"])
        assert best.run_id == winner.info.run_id
        assert best.tags["sweeper.commit"] == winner.data.tags["sweeper.commit"]

        # A run is found by its id where its records are gone.
        done = sweeper(folder, "verify", winner.info.run_id, "--tier=config", f"--store={tmp_path}", timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "pass" in done.stdout.lower()

    def test_nothing_stays_running(self, demo: Any) -> None:
        folder, _ = demo
        assert left_over(folder) == []

    @pytest.mark.long  # in CI, a trial rebuilt from its record is shown by test_verify.py
    def test_the_recorded_script_runs_the_trial_again_by_hand(self, demo: Any, tmp_path: Path) -> None:
        folder, _ = demo
        script = next((folder / "runs").glob("*/trials/000/attempt-1/command.sh"))
        before = (script.parent / "metrics.jsonl").read_bytes()
        done = subprocess.run(
            [str(script), "trainer.total_training_steps=1"],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "OUT": str(tmp_path / "again")},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert (script.parent / "metrics.jsonl").read_bytes() == before, "the record is not touched"
        lines = [json.loads(s) for p in tmp_path.rglob("metrics.jsonl") for s in p.read_text().splitlines()]
        recorded = [json.loads(s) for s in before.decode().splitlines()]
        key = "critic/rewards/mean"
        first = next(r["data"][key] for r in recorded if r["step"] == 1)
        assert [r["data"][key] for r in lines if r["step"] == 1] == [first], "and it computes the very same"


def test_a_reward_that_raises_fails_its_trial_with_the_cause_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "import os, pathlib\n"
        "def score(data_source, solution_str, ground_truth, extra_info=None, **kw):\n"
        "    if extra_info['split'] == 'train':\n"
        "        raise ValueError(f'no rule for the answer {ground_truth}')\n"
        "    return 0.0\n"
    )
    done = sweep(
        tmp_path,
        "-m",
        "reward.custom_reward_function.name=compute_score,score",
        *SHORT,
        f"reward.custom_reward_function.path={tmp_path}/both.py",
    )
    # One file with a good and a bad function, so that the two trials differ in nothing else.
    assert done.returncode == 2, "the file is missing: said before anything starts"
    assert "both.py" in done.stderr
    good = "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kw):\n    return 1.0\n"
    (tmp_path / "both.py").write_text((tmp_path / "bad.py").read_text() + good)
    done = sweep(
        tmp_path,
        "-m",
        "reward.custom_reward_function.name=compute_score,score",
        f"reward.custom_reward_function.path={tmp_path}/both.py",
        *SHORT,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert status(tmp_path, "000")["state"] == "finished"
    failed = status(tmp_path, "001")
    assert failed["state"] == "failed"
    assert any("no rule for the answer" in line for line in failed["root_cause"][:2]), failed["root_cause"]
    assert "no rule for the answer" in done.stdout
    assert "Traceback" not in done.stdout
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("sweeper")
    assert experiment is not None
    states = {r.data.tags.get("sweeper.trial"): r.info.status for r in client.search_runs([experiment.experiment_id])}
    assert (states["000"], states["001"]) == ("FINISHED", "FAILED")


@pytest.mark.parametrize(
    "algorithm", [a if a == "grpo" else pytest.param(a, marks=pytest.mark.long) for a in ALGORITHMS]
)
def test_ctrl_c_stops_gently_and_what_is_resumed_is_the_uninterrupted_run(
    place: Place, algorithm: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.txt"
    command = [*SWEEP, CPU, "name=s", "tracking=none", *overrides(algorithm, "trainer.save_freq=1")]
    with out.open("w") as stream:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=stream, stderr=stream)
        wait_for(out, f"step 2 of {STEPS}", process)
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=30)
    assert code == 1
    assert "sweeper resume s" in out.read_text()
    assert "Traceback" not in out.read_text()
    assert left_over(tmp_path) == []
    assert status(tmp_path, "000")["state"] == "stopped"

    done = sweeper(tmp_path, "resume", "s", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert status(tmp_path, "000", attempt=2)["step"] == STEPS
    first, second = (values(tmp_path / f"runs/s/trials/000/attempt-{n}/metrics.jsonl") for n in (1, 2))
    trained = [step for step, line in second.items() if "actor/grad_norm" in line]
    assert trained[0] > 1, "it did not start over"
    expected = launch.read(place.trial(algorithm)).by_step()
    assert sorted({*first, *second}) == sorted(expected)
    for step, line in expected.items():
        for made in (first, second):  # both, where a step was taken twice; a resumed run validates once more
            assert {k: v for k, v in made.get(step, {}).items() if k in line}.items() <= line.items(), step
        assert line.keys() <= {*first.get(step, {}), *second.get(step, {})}, step


def values(metrics: Path) -> dict[int, dict[str, Any]]:
    """What an attempt measured, without what is of the machine."""
    return launch.Run(0, "", [json.loads(line) for line in metrics.read_text().splitlines()], metrics).by_step()
