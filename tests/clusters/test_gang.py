"""Gangs of several nodes: real guards, agents and links; each node is a process of this machine with an address of its
own. The trainers are fakes."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from sweeper.clusters import gangs
from sweeper.clusters.base import Exit
from sweeper.clusters.gang import janitor, link
from sweeper.engines.base import Gang, Job, Shape

SHAPE = Shape("here", "cpu", nodes=2, gpus_per_node=1)
SLEEPS = "print('up', flush=True); import time; time.sleep(300)"


class Here:
    """Starts each node of a gang as a process of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes = [gangs.Node(f"n{rank}", f"127.0.0.{rank + 2}") for rank in range(2)]
        self.token = gangs.new_token()
        self.running: list[subprocess.Popen[str]] = []

    def prepare(self, code: str = SLEEPS, *, join_s: float = 60, **changes: Any) -> Job:
        fields: dict[str, Any] = {
            "argv": (sys.executable, "-c", code),
            "env": {},
            "inherit": (),
            "files": {},
            "gang": Gang(len(self.nodes), 1),
            "python": sys.executable,
            "metrics": "metrics.jsonl",
            "total_steps": 1,
            "ray": False,
        }
        job = Job(**{**fields, **changes})
        gangs.prepare(job, self.folder, self.nodes, shape=SHAPE, leases=False, join_s=join_s)
        return job

    def start(self, job: Job, rank: int, token: str = "", *, through: Sequence[str] = ()) -> None:
        argv = [*through, *gangs.argv(self.folder, rank, stdin=True)]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, text=True)
        assert process.stdin is not None
        process.stdin.write(gangs.stdin(job, token or self.token))
        process.stdin.close()
        self.running.append(process)

    def ask(self, folder: Path, what: bytes) -> None:
        for rank in range(len(self.nodes)):
            subprocess.run(gangs.ask_argv(folder, rank, what), check=True, capture_output=True)

    def alive(self, folder: Path) -> bool | None:
        done = subprocess.run(gangs.look_argv([folder]), check=True, capture_output=True, text=True)
        return any(json.loads(done.stdout)[str(folder)].values())

    def den(self, rank: int) -> Path:
        return Path(json.loads((self.folder / "gang" / f"{rank}.json").read_text())["temp_dir"])

    def marked(self, rank: int) -> list[int]:
        return janitor.marked(self.den(rank).name.removeprefix(janitor.PREFIX))

    def guard(self, rank: int) -> int:
        return self.running[rank].pid


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    folder = tmp_path / "attempt-1"
    folder.mkdir()
    made = Here(folder)
    yield made
    attempt = gangs.GangAttempt(folder, made)
    attempt.kill()
    attempt.wait(30)
    for process in made.running:
        process.wait(30)
    for rank in range(2):
        if (folder / "gang" / f"{rank}.json").exists():
            assert made.marked(rank) == []
            assert not made.den(rank).exists()


def up(here: Here) -> gangs.GangAttempt:
    """A gang of which the trainer runs."""
    job = here.prepare()
    for rank in (0, 1):
        here.start(job, rank)
    wait_for(lambda: "up" in text(here.folder / "log.txt"))
    return gangs.GangAttempt(here.folder, here)


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def wait_for(what: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def run(here: Here, job: Job) -> Exit:
    for rank in (0, 1):
        here.start(job, rank)
    return gangs.GangAttempt(here.folder, here).wait(100)


@pytest.mark.parametrize("code", [0, 3])
def test_the_trainer_runs_once_and_its_exit_is_the_gangs(here: Here, code: int) -> None:
    ended = run(here, here.prepare(f"print('said'); raise SystemExit({code})"))
    assert (ended.code, ended.reason) == (code, "exit")
    assert text(here.folder / "log.txt").splitlines() == ["sweeper: 2 nodes are ready", "said"]
    assert Exit(**json.loads(text(here.folder / "exit.json"))) == ended


def test_nodes_may_come_in_any_order_and_late(here: Here) -> None:
    job = here.prepare("print('said')")
    here.start(job, 1)
    time.sleep(1)
    here.start(job, 0)
    assert gangs.GangAttempt(here.folder, here).wait(100).code == 0


def test_a_node_that_never_comes_is_named(here: Here) -> None:
    job = here.prepare(join_s=1)
    here.start(job, 0)
    ended = gangs.GangAttempt(here.folder, here).wait(60)
    assert (ended.code, ended.reason) == (None, "launch")
    assert "node n1 (127.0.0.3) did not join within 1 s" in ended.detail
    assert "never started" in ended.detail


def test_a_first_node_that_never_comes_ends_the_others(here: Here) -> None:
    job = here.prepare(join_s=1)
    here.start(job, 1)
    ended = gangs.GangAttempt(here.folder, here).wait(60)
    assert ended.reason == "lost"
    assert "n1: the first node could not be reached" in ended.detail


def test_a_node_whose_address_is_none_of_its_own_is_told_at_once(here: Here) -> None:
    here.nodes[1] = gangs.Node("n1", "203.0.113.1")  # for documentation (RFC 5737)
    job = here.prepare(join_s=60)
    begun = time.monotonic()
    here.start(job, 0)
    here.start(job, 1)
    ended = gangs.GangAttempt(here.folder, here).wait(60)
    assert ended.reason == "launch" and time.monotonic() - begun < 30
    assert "n1 cannot listen on its address 203.0.113.1: Cannot assign requested address" in ended.detail


def test_a_node_with_another_token_is_sent_away(here: Here) -> None:
    job = here.prepare(join_s=5)
    here.start(job, 0)
    here.start(job, 1, token="f" * 64)
    ended = gangs.GangAttempt(here.folder, here).wait(60)
    assert ended.reason == "launch"
    assert "n1" in ended.detail and "did not know the gang's token: 127.0.0.3" in ended.detail
    assert "our token is not the gang's" in json.loads(text(here.folder / "gang" / "1.exit.json"))["detail"]


def test_nodes_that_differ_are_named_with_both_versions(here: Here, tmp_path: Path) -> None:
    """The second node's interpreter is a fake of another version: it knows by a variable that differs there."""
    python = tmp_path / "python"
    own = f'grep -q "$SWEEPER_TEMP_DIR" {here.folder}/gang/1.json'
    says = """echo '{"python": "3.10.1", "ray": null}'"""
    python.write_text(f'#!/bin/sh\nif {own}; then {says}; else exec {sys.executable} "$@"; fi\n')
    python.chmod(0o755)
    ended = run(here, here.prepare(python=str(python)))
    assert ended.reason == "launch"
    assert "node n1 (127.0.0.3) has Python 3.10.1" in ended.detail
    assert f"node n0 (127.0.0.2) has {sys.version.split()[0]}" in ended.detail


FAKE_DEVICES = """
import sys
def accelerators(): return ["a GPU"] * {shows}[int(sys.argv[2])]
def machine(device, ids=()): return {{"cpu": "a fake", "gpus": [], "driver": None}}
"""
"""A fake of the nodes' devices.py, for agents: how many GPUs are visible on which rank."""


def with_gpus(here: Here, *shows: int, join_s: float = 60) -> Job:
    """A gang that has two GPUs a node reserved, on nodes that show so many."""
    shape = Shape("here", "cuda", nodes=2, gpus_per_node=2)
    job = here.prepare(gang=Gang(2, 2))
    gangs.prepare(job, here.folder, here.nodes, shape=shape, leases=False, join_s=join_s)
    # Nodes run the sweep's own copy of the scripts.
    (gangs.scripts(here.folder) / "devices.py").write_text(FAKE_DEVICES.format(shows=shows))
    return job


@pytest.mark.parametrize(
    ("key", "theirs", "said"),
    [
        ("python", "3.10.1", "has Python 3.10.1, and node n0 (127.0.0.2) has {python}"),
        ("ray", "2.1.0", "has Ray 2.1.0, and node n0 (127.0.0.2) has {ray}"),
        ("ray", None, "has Ray None, and node n0 (127.0.0.2) has {ray}"),
        ("devices", 1, "has visible GPUs 1, and node n0 (127.0.0.2) has {devices}"),
        ("version", 99, "has protocol 99, and node n0 (127.0.0.2) has {version}"),
    ],
)
def test_a_node_that_differs_in_one_thing_is_a_failed_launch_that_says_which(
    here: Here, key: str, theirs: Any, said: str
) -> None:
    """The first node is real; the second is a fake that joins as nodes do."""
    here.start(with_gpus(here, 2, 2), 0)
    alike = {
        "python": platform.python_version(), "ray": version("ray"), "devices": 2, "version": gangs.VERSION
    }  # fmt: skip
    about = {**alike, "rank": 1, "name": "n1", key: theirs}
    file, until = here.folder / "gang" / "link.json", time.monotonic() + 60
    member, _ = link.join(file, here.token, "127.0.0.3", about, until, lambda: True)
    record = here.folder / "gang" / "0.exit.json"
    wait_for(lambda: member.pump() and record.exists())
    member.close()
    ended = json.loads(record.read_text())
    assert (ended["code"], ended["reason"]) == (None, "launch")
    assert f"node n1 (127.0.0.3) {said.format(**alike)}" in ended["detail"]
    assert "training" not in text(here.folder / "log.txt")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_that_shows_other_gpus_than_were_reserved_does_not_join(here: Here, rank: int) -> None:
    ended = run(here, with_gpus(here, *(1 if rank == r else 2 for r in (0, 1)), join_s=600))  # nobody waits for that
    assert (ended.code, ended.reason) == (None, "launch")
    assert f"n{rank} shows 1 GPUs, and 2 were reserved there" in ended.detail
    own = json.loads(text(here.folder / "gang" / f"{rank}.exit.json"))
    assert own["reason"] == "launch"
    assert own["detail"] == f"n{rank} shows 1 GPUs, and 2 were reserved there"
    assert not text(here.folder / "log.txt")  # no trainer


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_that_dies_ends_the_gang_at_once_and_is_named(here: Here, rank: int) -> None:
    attempt = up(here)
    os.kill(here.guard(rank), signal.SIGKILL)
    here.running[rank].wait()
    ended = attempt.wait(30)
    assert ended.reason == "lost"
    assert ("node n1 (127.0.0.3) was lost" if rank else "n1: the first node, n0, was lost") in ended.detail
    assert json.loads(text(here.folder / "exit.json"))["reason"] == "lost"


@pytest.mark.parametrize("kill", [False, True])
def test_a_stop_is_no_loss(here: Here, kill: bool) -> None:
    attempt = up(here)
    attempt.kill() if kill else attempt.stop()
    assert attempt.wait(30).reason == "stopped"


def test_a_node_that_its_launcher_ends_stops_the_gang(here: Here) -> None:
    attempt = up(here)
    here.running[1].send_signal(signal.SIGTERM)  # a batch system that takes a node back
    ended = attempt.wait(30)
    assert ended.reason == "stopped"
    assert "node n1 (127.0.0.3) was told to stop" in ended.detail


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_whose_launcher_dies_is_lost_and_was_not_told_to_stop(here: Here, rank: int) -> None:
    job = here.prepare()
    launcher = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"]
    here.start(job, rank, through=launcher)
    here.start(job, 1 - rank)
    wait_for(lambda: "up" in text(here.folder / "log.txt"))
    here.running[0].kill()  # as when a batch system's daemon or a Ray worker dies
    ended = gangs.GangAttempt(here.folder, here).wait(30)
    assert ended.reason == "lost", ended
    own = json.loads(text(here.folder / "gang" / f"{rank}.exit.json"))
    assert (own["reason"], own["detail"]) == ("lost", "what had started this node's part died")


def test_a_node_that_hangs_is_lost_and_its_ranks_are_not_given_out_before_it_is_gone(here: Here) -> None:
    attempt = up(here)
    for pid in here.marked(1):
        os.kill(pid, signal.SIGSTOP)
    record = here.folder / "gang" / "0.exit.json"
    wait_for(record.exists)
    assert "it was silent for 10 s" in json.loads(record.read_text())["detail"]
    assert attempt.poll() is None  # what hangs there may hold a GPU
    wait_for(lambda: attempt.poll() is None and "it was silent for 10 s" in attempt.silent())
    os.kill(here.guard(1), signal.SIGKILL)
    here.running[1].wait()
    assert attempt.wait(30).reason == "lost"


def test_no_secret_is_on_a_disk_or_a_command_line(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-0815")
    code = "import os, time; open('got', 'w').write(os.environ['HF_TOKEN'][:3]); time.sleep(300)"
    job = here.prepare(code, inherit=("HF_TOKEN",))
    for rank in (0, 1):
        here.start(job, rank)
    wait_for(lambda: text(here.folder / "got") == "s3c")
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:
            continue
    files = [p for p in [*here.folder.parent.rglob("*"), *here.den(0).rglob("*")] if p.is_file()]
    for secret in (here.token, "s3cr3t-0815"):
        assert not any(secret.encode() in line for line in lines)
        assert not any(secret in path.read_text(errors="replace") for path in files)


def test_a_stranger_is_told_nothing(tmp_path: Path) -> None:
    head = link.Head("127.0.0.2", "right", 2, tmp_path / "link.json")
    at = json.loads((tmp_path / "link.json").read_text())
    stranger = socket.create_connection((at["host"], at["port"]))
    head.pump()
    challenge = json.loads(stranger.recv(1000))
    about = json.dumps({"rank": 1})
    wrong = link.proof("wrong", "node", challenge["challenge"], "c", about)
    stranger.sendall(json.dumps({"about": about, "challenge": "c", "proof": wrong}).encode() + b"\n")
    wait_for(lambda: head.pump() or head.refused)
    assert stranger.recv(1000) == b'{"refused": true}\n'
    assert head.missing == [1]
    head.close()
