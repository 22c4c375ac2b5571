"""`hydra/sweeper=basic hydra/launcher=ray`: trials as Hydra jobs in the workers of the real launcher's own Ray."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from trained import Place, overrides

from sweeper.search import stopping
from sweeper.trial.ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]
SWEEP = [sys.executable, str(ROOT / "sweep.py"), "-m"]
RAY = ["hydra/sweeper=basic", "hydra/launcher=ray", "+hydra.launcher.ray.init.include_dashboard=false"]
NOISE = ("timing", "perf/", "perf_", "throughput")
# What says where and when an attempt ran, and nothing of what it does.
PLACE = ("trainer.default_local_dir", "trainer.experiment_name")


def sweep(folder: Path, *overrides: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SWEEP, *overrides], cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in leaves(value, f"{prefix}.{key}".lstrip(".")).items()}


def trial(folder: Path, trial_id: str) -> dict[str, Any]:
    """What a trial was and did, without when and where."""
    import yaml

    attempt = folder / "trials" / trial_id / "attempt-1"
    config = leaves(yaml.safe_load((attempt / "trainer.yaml").read_text()))
    lines = [json.loads(line) for line in (attempt / "metrics.jsonl").read_text().splitlines()]
    ledger = Ledger.open(folder / "ledger.db", create=False)
    try:
        fingerprint = ledger.trials()[trial_id].fingerprint
    finally:
        ledger.close()
    return {
        "fingerprint": fingerprint,
        "config": {k: v for k, v in config.items() if k not in PLACE},
        "metrics": [{k: v for k, v in line["data"].items() if not any(n in k for n in NOISE)} for line in lines],
        "files": sorted(str(p.relative_to(attempt)) for p in attempt.iterdir()),
        "state": json.loads((attempt / "status.json").read_text())["state"],
    }


def test_a_wrong_request_ends_with_2_and_says_what_is_wrong(tmp_path: Path) -> None:
    """It composes, so that only the job in the worker finds it."""
    done = sweep(tmp_path, *RAY, "cluster.device=cpu", "seed=1,2", "tp=3")
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert said.count("does not divide the 4 attention heads") == 2, "each job says it, and none is left out as equal"
    assert "job 0 ended with exit code 2: cluster.device=cpu seed=1 tp=3" in done.stderr
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.real
def test_the_same_trials_with_the_same_records(place: Place, tmp_path: Path) -> None:
    """As those of the plain request, made by the same clone; in a store of its own, where nothing can be reused."""
    request = [*overrides("grpo,rloo"), f"store={tmp_path}", "name=s", "cluster.device=cpu", "tracking=none"]
    through = place.run(str(place.clone / "sweep.py"), "-m", *RAY, *request)
    assert through.returncode == 0, through.stdout + through.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["s-000", "s-001"]
    for number, algorithm in enumerate(("grpo", "rloo")):
        expected = trial(place.folder / "runs" / "first", place.trial(algorithm).name)
        assert expected["state"] == "finished"
        assert trial(tmp_path / f"s-{number:03}", "000") == expected


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.real
@pytest.mark.long
def test_ctrl_c_stops_the_jobs_gently_and_those_that_wait_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    one = [*RAY, "hydra.launcher.ray.init.num_cpus=1"]
    one[-1] = "+" + one[-1]
    command = [*SWEEP, *one, "cluster.device=cpu", "seed=1,2", "name=s", "tracking=none"]
    with out.open("w") as stream:
        # SIGINT is ignored where the tests run in the background, and a child would ignore it too.
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            preexec_fn=_interruptible,  # noqa: PLW1509  (there is no other thread)
        )
        try:
            deadline = time.monotonic() + 240
            while "started" not in out.read_text().partition("s-00")[2]:
                assert process.poll() is None and time.monotonic() < deadline, out.read_text()
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            code = process.wait(timeout=300)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            for sweep_json in (tmp_path / "runs").glob("*/sweep.json"):  # attempts outlive what started them
                stopping.end(tmp_path / "runs", sweep_json.parent.name)
    said = out.read_text()
    assert code == 1, said
    assert "Traceback" not in said
    (folder,) = (p for p in (tmp_path / "runs").iterdir() if p.is_dir())
    state = json.loads((folder / "trials/000/attempt-1/status.json").read_text())["state"]
    assert state == "stopped", said
    assert f"sweeper resume {folder.name}" in said
