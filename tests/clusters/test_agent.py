"""How the agent starts an attempt's Ray cluster, with a fake `ray`: a script that stands for the interpreter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sweeper.clusters.base import Exit
from sweeper.clusters.gang.agent import TEMP_DIR, Agent
from sweeper.clusters.local import LocalAttempt, LocalCluster
from sweeper.engines.base import Gang, Job, Shape
from sweeper.engines.verl.failures import classify

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "clusters" / "gang"
SHAPE = Shape(name="here", device="cpu", nodes=1, gpus_per_node=2, gpu_memory_gib=4)
FAKE = """#!{python}
import json, os, socket, sys, time
here = os.environ["HERE"]
with open(here + "/starts", "a") as f:
    f.write(json.dumps({{"argv": sys.argv[1:], "ray": os.environ.get("RAY_ADDRESS"),
                         "token": os.environ["RAY_AUTH_TOKEN"], "pid": os.getpid()}}) + "\\n")
if "ray.scripts.scripts" in sys.argv:
    heads = sum('"ray": null' in line for line in open(here + "/starts"))
    if heads <= int(os.environ["TAKEN"]):
        print("bind failed: Address already in use", flush=True)
        sys.exit(1)
    options = dict(a.split("=", 1) for a in sys.argv if "=" in a)
    server = socket.create_server((options["--node-ip-address"], int(options["--port"])))
    if os.environ["UP"] == "no":
        time.sleep(0.5)
        print("The current node timed out during startup.", flush=True)
        sys.exit(1)
    with open(options["--temp-dir"] + "/ray_current_cluster", "w") as f:
        f.write(options["--node-ip-address"] + ":" + options["--port"])
    time.sleep(float(os.environ["LIVES"]))
    sys.exit(7)
host, port = os.environ["RAY_ADDRESS"].split(":")
while True:
    try: socket.create_connection((host, int(port))).close(); break
    except OSError: time.sleep(0.02)
time.sleep(float(os.environ["TRAINS"]))
print("trained", flush=True)
"""


def run(
    tmp_path: Path, taken: int, lives: float = 60, trains: float = 0.3, *, up: bool = True
) -> tuple[Exit, list[dict[str, object]], Path]:
    """One attempt. The first `taken` heads find their port taken; a head lives and the trainer trains for seconds.
    Unless `up`, a head serves and then gives up its own node, as Ray does where that takes more than 30 s."""
    python = tmp_path / "python"
    python.write_text(FAKE.format(python=sys.executable))
    python.chmod(0o755)
    folder = tmp_path / "attempt"
    folder.mkdir()
    job = Job(
        argv=(str(python), "-m", "trainer"),
        env={
            "HERE": str(tmp_path),
            "TAKEN": str(taken),
            "LIVES": str(lives),
            "TRAINS": str(trains),
            "UP": "yes" if up else "no",
        },
        inherit=(),
        files={},
        gang=Gang(nodes=1, gpus_per_node=2),
        python=str(python),
        metrics="metrics.jsonl",
        total_steps=1,
        ray_cpus_per_node=9,
    )
    attempt = LocalCluster(SHAPE).start(job, folder, (0,))
    assert isinstance(attempt, LocalAttempt)
    ended = attempt.wait(30)
    return ended, [json.loads(line) for line in (tmp_path / "starts").read_text().splitlines()], folder


def heads(starts: list[dict[str, object]]) -> list[dict[str, object]]:
    return [start for start in starts if start["ray"] is None]


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_port_lost_to_somebody_else_is_replaced(tmp_path: Path, taken: int) -> None:
    ended, starts, folder = run(tmp_path, taken)
    assert (ended.code, ended.reason) == (0, "exit")
    assert (folder / "log.txt").read_text() == "trained\n"  # once, by the trainer that found its Ray
    ports = {word for start in heads(starts) for word in start["argv"] if word.startswith("--port=")}  # type: ignore[attr-defined]
    assert len(heads(starts)) == len(ports) == taken + 1


def test_ray_that_never_starts_is_a_failed_launch_with_its_reason(tmp_path: Path) -> None:
    ended, _, _ = run(tmp_path, taken=99)
    assert (ended.code, ended.reason) == (None, "launch")
    assert "Address already in use" in ended.detail


def test_ray_that_serves_and_never_comes_up_is_a_failed_launch(tmp_path: Path) -> None:
    """It counts as one of the retries: a machine that is too busy stays so, and no node was lost."""
    ended, starts, _ = run(tmp_path, taken=0, trains=60, up=False)
    assert (ended.code, ended.reason) == (None, "launch")
    assert ended.detail.splitlines() == [
        "Ray did not start on 127.0.0.2 in 3 tries; is the machine too busy?",
        *["The current node timed out during startup."] * 3,
    ]
    assert len(heads(starts)) == 3
    assert classify("", ended.reason, ended.code, ended.detail).kind == "launch"


def test_ray_that_dies_while_training_is_a_loss_not_a_trainers_failure(tmp_path: Path) -> None:
    ended, _, _ = run(tmp_path, taken=0, lives=0.5, trains=60)
    assert (ended.code, ended.reason) == (None, "lost")
    assert "Ray" in ended.detail
    assert "7" in ended.detail


def test_the_head_is_the_attempts_own(tmp_path: Path) -> None:
    _, starts, folder = run(tmp_path, taken=0)
    (head,) = heads(starts)
    words = head["argv"]
    assert isinstance(words, list)
    assert "--num-gpus=2" in words
    assert "--num-cpus=9" in words
    assert "--node-ip-address=127.0.0.2" in words
    assert {start["token"] for start in starts} == {head["token"]}
    assert len(str(head["token"])) == 64
    temp_dir = Path(next(word for word in words if word.startswith("--temp-dir=")).partition("=")[2])
    assert not temp_dir.exists()
    for path in (p for p in folder.rglob("*") if p.is_file()):
        assert str(head["token"]) not in path.read_text()


def shared_python(folder: Path, python: str) -> Path:
    """What a gang's Ray starts its workers with on every node, as the first node's agent writes it."""
    (folder / "gang").mkdir()
    agent = Agent.__new__(Agent)
    agent.folder, agent.rank, agent.python = folder, 0, python
    found = agent.shared_client()
    assert found is not None
    return Path(found)


def test_the_gangs_python_is_as_on_record_and_shellcheck_finds_nothing(tmp_path: Path) -> None:
    """SWEEPER_UPDATE_GOLDEN=1 writes the file anew."""
    made = shared_python(tmp_path, "/opt/it's mine/bin/python")
    path = GOLDEN / "python.sh"
    if os.environ.get("SWEEPER_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(made.read_text())
    assert made.read_text() == path.read_text()
    if checker := shutil.which("shellcheck"):
        done = subprocess.run([checker, str(path)], capture_output=True, text=True, check=False)
        assert done.stdout == ""


def test_the_gangs_python_is_a_nodes_own_client_or_else_the_interpreter(tmp_path: Path) -> None:
    tell = '#!/bin/sh\necho {}: "$@"\n'
    plain, own = tmp_path / "it's python", tmp_path / "swp-1" / "python"
    own.parent.mkdir()
    for path, name in ((plain, "plain"), (own, "own")):
        path.write_text(tell.format(name))
        path.chmod(0o755)
    made = shared_python(tmp_path, str(plain))

    def run(temp_dir: Path) -> str:
        env = {**os.environ, TEMP_DIR: str(temp_dir)}
        return subprocess.run([made, "-c", "a b"], env=env, capture_output=True, text=True, check=True).stdout

    assert run(own.parent) == "own: -c a b\n"
    assert run(tmp_path / "swp-2") == "plain: -c a b\n"
