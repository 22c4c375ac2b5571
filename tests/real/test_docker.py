"""Real verl in containers of a real Docker daemon, by what a user types: on this machine, and over two hosts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import docker_daemon
import psutil
import pytest
import sshd
from processes import left_over

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(docker_daemon.why_not()), reason=docker_daemon.why_not()),
]

ROOT = Path(__file__).resolve().parents[2]
SWEEP = [sys.executable, str(ROOT / "sweep.py"), "cluster.device=cpu", "name=s", "tracking=none"]
COMPUTED = ("actor/", "critic/", "response_length/", "val-core/")
"""What a step computed, by the beginning of its name."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[docker_daemon.Daemon]:
    with docker_daemon.running() as running:
        yield running


CONTROLLERS: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def no_controller_is_left(daemon: docker_daemon.Daemon) -> Iterator[None]:
    """What a test that failed would leave; a test that passed has asked for itself."""
    yield
    for process in CONTROLLERS:
        process.kill()
        process.wait()
    CONTROLLERS.clear()
    for container in daemon.containers():
        daemon.docker("rm", "--force", container["Id"])


def run(folder: Path, line: Sequence[str], **env: str) -> subprocess.Popen[str]:
    with (folder / "sweep.log").open("a") as out:
        process = subprocess.Popen(line, cwd=folder, env={**os.environ, **env}, stdout=out, stderr=out, text=True)
    CONTROLLERS.append(process)
    return process


def work(tmp_path: Path, name: str = "work") -> Path:
    (folder := tmp_path / name).mkdir()
    return folder


def started(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    return run(folder, [*SWEEP, *overrides])


def resumed(folder: Path) -> subprocess.Popen[str]:
    return run(folder, [sys.executable, "-m", "sweeper.cli.main", "resume", "s"], PYTHONPATH=str(ROOT))


def said(folder: Path) -> str:
    logs = [p.read_text(errors="replace")[-3000:] for p in (folder / "runs").rglob("*.log")]
    return "\n".join([(folder / "sweep.log").read_text(), *logs])


def until(what: Callable[[], Any], process: subprocess.Popen[str], folder: Path, timeout_s: float = 900) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert process.poll() is None, said(folder)
        assert time.monotonic() < deadline, said(folder)
        time.sleep(0.2)
    return found


def attempts(folder: Path) -> list[Path]:
    return sorted((folder / "runs/s/trials/000").glob("attempt-*"))


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((attempts(folder)[-1] / "status.json").read_text())
    return found


def followed(folder: Path) -> list[int]:
    """The steps that the last controller has said."""
    _, _, since = (folder / "sweep.log").read_text().rpartition("followed again")
    return [int(step) for step in re.findall(r"step (\d+) of", since)]


def computed(folder: Path) -> dict[int, dict[str, Any]]:
    """Step -> what it computed, of the last attempt: on a busy machine Ray may miss its own time to start in one."""
    path = attempts(folder)[-1] / "metrics.jsonl" if attempts(folder) else folder
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    found: dict[int, dict[str, Any]] = {}
    for line in lines:
        found.setdefault(line["step"], {}).update({k: v for k, v in line["data"].items() if computes(k)})
    return found


def computes(metric: str) -> bool:
    """Whether it is no time and no memory."""
    return metric.startswith(COMPUTED) and "/perf/" not in metric


def trainers(folder: Path) -> list[psutil.Process]:
    """verl's main processes of the sweeps in that folder, as this machine sees them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "verl.trainer.main_ppo" in words and any(str(folder) in word for word in words):
            found.append(process)
    return found


def in_the_image(pid: int) -> bool:
    return Path(f"/proc/{pid}/root/etc/in-the-image").exists()


@pytest.mark.long  # in CI, verl in a container is shown by the next one
def test_a_trial_in_an_image_computes_to_the_bit_what_it_computes_without(
    daemon: docker_daemon.Daemon, tmp_path: Path
) -> None:
    settings = ["trainer.total_training_steps=3", "trainer.test_freq=3", "trainer.save_freq=-1"]
    inside, outside = work(tmp_path, "inside"), work(tmp_path, "outside")
    process = started(inside, *settings, *docker_daemon.overrides(daemon))
    pids = until(lambda: [p.pid for p in trainers(inside) if in_the_image(p.pid)], process, inside)
    ours = Path("/proc/self/ns/mnt").readlink()
    assert all(Path(f"/proc/{pid}/ns/mnt").readlink() != ours for pid in pids)
    (container,) = daemon.containers()
    assert container["Image"] == daemon.digest()
    assert process.wait(900) == 0, said(inside)
    assert daemon.emptied()
    assert left_over(inside) == []
    assert started(outside, *settings).wait(900) == 0, said(outside)
    there, here = computed(inside), computed(outside)
    assert sorted(there) == [0, 1, 2, 3]
    assert {"actor/grad_norm", "actor/pg_loss", "critic/rewards/mean"} <= there[3].keys()
    assert there == here
    record = json.loads((attempts(inside)[-1] / "lineage.json").read_text())
    assert record["result"]["state"] == "finished"
    assert record["environment"]["image"] == f"{docker_daemon.IMAGE}@{daemon.digest()}"
    assert record["environment"]["packages"] == {}, "those of this machine are not the image's"


def test_a_killed_controller_leaves_the_container_to_the_next_and_a_stop_leaves_nothing(
    daemon: docker_daemon.Daemon, tmp_path: Path
) -> None:
    folder = work(tmp_path)
    steps = ["trainer.total_training_steps=100", "trainer.test_freq=100", "trainer.val_before_train=false"]
    first = started(folder, *steps, "trainer.save_freq=-1", *docker_daemon.overrides(daemon))
    until(lambda: computed(folder), first, folder)
    first.kill()
    first.wait()
    (container,), known = daemon.containers(), attempts(folder)
    second = resumed(folder)
    seen = max(computed(folder))
    until(lambda: any(step > seen for step in followed(folder)), second, folder)
    assert attempts(folder) == known, "it was taken up, not started anew"
    assert [c["Id"] for c in daemon.containers()] == [container["Id"]]
    second.send_signal(signal.SIGINT)
    assert second.wait(60) == 1, said(folder)
    assert status(folder)["state"] == "stopped"
    assert daemon.emptied()
    assert trainers(folder) == []
    assert left_over(folder) == []


@pytest.mark.long  # in CI, verl over two nodes is shown by cluster=ray
@pytest.mark.skipif(not sshd.installed(), reason="there is no sshd: apt-get install openssh-server")
def test_a_trial_over_two_hosts_has_a_container_on_each(daemon: docker_daemon.Daemon, tmp_path: Path) -> None:
    """Seed 002's head and worker, by one command, and gone with the training."""
    folder = work(tmp_path)
    with sshd.serving(tmp_path / "sshd") as servers:
        hosts = [*servers.overrides(), "cluster.gpus_per_node=1", "cluster.max_ranks=1"]
        hosts.append(f"cluster.python={sys.executable}")
        steps = ["trainer.total_training_steps=2", "trainer.test_freq=2", "trainer.save_freq=-1"]
        process = started(folder, *hosts, *steps, *docker_daemon.overrides(daemon))
        until(lambda: len(daemon.containers()) == 2, process, folder)
        until(lambda: [p.pid for p in trainers(folder) if in_the_image(p.pid)], process, folder)
        assert process.wait(1200) == 0, said(folder)
        attempt = attempts(folder)[-1]
        assert sorted(computed(folder)) == [0, 1, 2]
        nodes = [json.loads((attempt / f"gang/{rank}.json").read_text())["host"] for rank in (0, 1)]
        assert nodes == ["host0", "host1"]
        images = [json.loads((attempt / f"gang/{rank}.image.json").read_text())["id"] for rank in (0, 1)]
        assert images == [daemon.digest()] * 2
        assert daemon.emptied()
        assert left_over(folder) == []
