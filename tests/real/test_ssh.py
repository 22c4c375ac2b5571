"""Real verl over two hosts that are reached by SSH: two real SSH servers on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sshd
from processes import left_over

from sweeper.clusters.gang import janitor

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not sshd.installed(), reason="there is no sshd: apt-get install openssh-server"),
]

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
STEPS = 4


def hosts(servers: sshd.Sshd) -> list[str]:
    ranks = ["cluster.device=cpu", "cluster.gpus_per_node=1", "cluster.max_ranks=2"]
    return [*servers.overrides(), *ranks, f"cluster.python={sys.executable}"]


def sweeper(folder: Path, *words: str, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "sweeper.cli.main", *words]
    return subprocess.run(line, cwd=folder, env=ENV, capture_output=True, text=True, timeout=timeout, check=False)


def wait_for(what: Callable[[], Any], timeout_s: float = 1200) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)
    return found


TIMED = re.compile("timing|perf/|.*/perf/")


def steps(folder: Path, trial: str, attempt: int) -> dict[int, dict[str, Any]]:
    """What an attempt measured at each step, without what measures the machine."""
    path = folder / f"runs/s/trials/{trial}/attempt-{attempt}/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    trained = [line for line in lines if "actor/lr" in line["data"]]
    return {line["step"]: {k: v for k, v in line["data"].items() if not TIMED.match(k)} for line in trained}


def guard_of(attempt: Path, rank: int) -> int:
    about = json.loads((attempt / "gang" / f"{rank}.json").read_text())
    marker = Path(about["temp_dir"]).name.removeprefix(janitor.PREFIX)
    return next(p for p in janitor.marked(marker) if b"guard.py" in Path(f"/proc/{p}/cmdline").read_bytes())


@pytest.mark.long  # in CI, verl over two nodes is shown by cluster=ray, and this cluster by its contract
def test_two_trials_over_two_hosts_outlive_the_controller_and_one_a_lost_node(tmp_path: Path) -> None:
    with sshd.serving(tmp_path / "sshd") as servers:
        (folder := tmp_path / "work").mkdir()
        overrides = [
            *hosts(servers),
            f"trainer.total_training_steps={STEPS}",
            "trainer.save_freq=1",
            f"trainer.test_freq={STEPS}",
            "trainer.val_before_train=false",
            "tracking=none",
            "name=s",
        ]
        command = [sys.executable, str(ROOT / "sweep.py"), "-m", *overrides]
        first = subprocess.Popen([*command, "lr=1e-4,2e-4"], cwd=folder, stdout=subprocess.DEVNULL)
        wait_for(lambda: steps(folder, "000", 1) and steps(folder, "001", 1), 1500)
        first.kill()
        first.wait()
        second = subprocess.Popen(
            [sys.executable, "-m", "sweeper.cli.main", "resume", "s"], cwd=folder, env=ENV, stdout=subprocess.DEVNULL
        )
        trials = folder / "runs/s/trials"
        assert len(steps(folder, "000", 1)) < STEPS, "it was too quick to be disturbed"
        os.kill(guard_of(trials / "000/attempt-1", 1), signal.SIGKILL)
        assert second.wait(1500) == 0
        # The first trial went on from its checkpoint; the second never knew.
        assert not (trials / "001/attempt-2").exists()
        assert sorted(steps(folder, "001", 1)) == list(range(1, STEPS + 1))
        again = steps(folder, "000", 2)
        assert min(again) > 1, "it was resumed, not begun anew"
        ended = json.loads((trials / "000/attempt-1/exit.json").read_text())
        assert ended["reason"] == "lost"
        assert "host1" in ended["detail"]
        for attempt in ("000/attempt-2", "001/attempt-1"):
            assert json.loads((trials / attempt / "status.json").read_text())["state"] == "finished"
        assert left_over(folder) == []
        (whole := tmp_path / "whole").mkdir()
        undisturbed = subprocess.run([*command, "lr=1e-4"], cwd=whole, capture_output=True, text=True, check=False)
        assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr
        assert {**steps(folder, "000", 1), **again} == steps(whole, "000", 1)
        assert sorted(steps(whole, "000", 1)) == list(range(1, STEPS + 1))


def answer(url: str) -> int | None:
    """The status that is answered; None: the connection is refused."""
    try:
        with urllib.request.urlopen(url, timeout=30) as said:
            return int(said.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        assert isinstance(error.reason, ConnectionRefusedError), error
        return None


def test_a_shared_ray_cluster_comes_up_is_guarded_and_goes_down(tmp_path: Path) -> None:
    with sshd.serving(tmp_path / "sshd") as servers:
        (folder := tmp_path / "work").mkdir()
        config_home = tmp_path / "config"
        ENV["XDG_CONFIG_HOME"] = str(config_home)
        up = ["cluster", "up", *hosts(servers), "cluster.gpu_memory_gib=4", "cluster.name=two"]
        ports = ["--port", "26479", "--dashboard-port", "28365"]
        made = sweeper(folder, *up, *ports)
        assert made.returncode == 0, made.stdout + made.stderr
        token = (config_home / "sweeper/two.token").read_text()
        assert (config_home / "sweeper/two.token").stat().st_mode & 0o777 == 0o600
        assert token not in made.stdout + made.stderr
        for path in (folder / "runs").rglob("*"):
            assert path.is_dir() or token not in path.read_text(errors="replace"), path
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert token.encode() not in entry.read_bytes()
            except OSError:
                continue
        assert re.search(r"ssh -N -L 28365:127\.0\.0\.1:28365 .*127\.0\.0\.2", made.stdout)
        # The dashboard is on the first host's loopback alone, and says nothing of the cluster without the token.
        assert wait_for(lambda: answer("http://127.0.0.1:28365/"), 120) == 200
        assert answer("http://127.0.0.1:28365/api/version") == 401
        assert [answer(f"http://127.0.0.{n}:28365/") for n in (2, 3)] == [None, None]
        again = sweeper(folder, *up)
        assert again.returncode == 2
        assert "sweeper cluster down two" in again.stderr
        code = "import ray; ray.init('127.0.0.2:26479', log_to_driver=False); print(len(ray.nodes()), 'nodes')"
        for given, said in ((token.strip(), "2 nodes"), ("0" * 64, "AuthenticationError")):
            env = {**ENV, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": given}
            done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
            assert said in done.stdout + done.stderr
            assert (done.returncode == 0) == (given in token)
        seen = sweeper(folder, "cluster", "status", "two")
        assert seen.returncode == 0, seen.stdout
        gone = sweeper(folder, "cluster", "down", "two")
        assert gone.returncode == 0, gone.stderr
        assert not (config_home / "sweeper/two.token").exists()
        assert left_over(folder) == []
        assert sweeper(folder, "cluster", "status", "two").returncode == 2
