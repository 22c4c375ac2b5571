"""What `sweeper cluster up` refuses and says, over real SSH servers; a whole cluster: tests/real/test_ssh.py."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import ssh_cluster
import sshd

from sweeper.clusters import shared_ray, ssh
from sweeper.clusters.gang import ray_node
from sweeper.errors import RequestError, SweeperError

SECTION = {
    "hosts": ["gpu1"], "user": None, "port": None, "key": None, "known_hosts": "k", "config": None, "connect_s": 15
}  # fmt: skip


def up(store: Path, section: dict[str, Any], name: str = "lab", python: str = "python3") -> None:
    group = ssh_cluster.config(section, name=name)
    shared_ray.up(group, store, python, port=26379, dashboard=28265, say=print)


@pytest.mark.parametrize("name", ["a/../../b", "..", "/tmp/b", ""])
def test_a_name_that_is_a_path_is_refused_by_every_command(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"cluster\.name="):
        up(tmp_path, SECTION, name)
    for act in (shared_ray.status, shared_ray.down):
        with pytest.raises(RequestError, match=r"cluster\.name="):
            act(tmp_path, name)


needs_sshd = pytest.mark.skipif(not sshd.installed(), reason="there is no sshd: apt-get install openssh-server")


@needs_sshd
def test_a_store_that_cannot_be_written_is_said() -> None:
    with pytest.raises(SweeperError, match="/proc/nope/clusters/lab could not be written"):
        up(Path("/proc/nope"), ssh_cluster.servers())


def test_the_commands_that_are_shown_find_the_cluster_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "my store"
    state = {"name": "lab", "ssh": ssh.plain(SECTION), "ranks": [8], "ray": "2", "dashboard": 8265, "address": "a:1"}
    assert shared_ray.about(state, elsewhere)[-1].endswith(f"sweeper cluster down lab --store '{elsewhere}'")
    assert shared_ray.about(state, tmp_path / "runs")[-1].endswith("sweeper cluster down lab")
    place = shared_ray.place(elsewhere, "lab")
    place.mkdir(parents=True)
    (place / shared_ray.STATE).write_text(json.dumps(state))
    with pytest.raises(RequestError, match="is there already") as error:
        up(elsewhere, SECTION)
    assert f"sweeper cluster down lab --store '{elsewhere}'" in str(error.value)


OURS = f"{version('ray')} Python {'.'.join(platform.python_version_tuple()[:2])}"


@needs_sshd
@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("echo 2.1.0 Python 3.12", f"host host1 has Ray 2.1.0 Python 3.12, and this machine has {OURS}"),
        (f"echo {version('ray')} Python 3.8", f"host host1 has Ray {version('ray')} Python 3.8, and this machine"),
        ("echo no module ray >&2; exit 1", "has no Ray: no module ray"),
    ],
)
def test_a_host_with_another_ray_or_python_or_none_is_named_before_anything_is_started(
    tmp_path: Path, second: str, said: str
) -> None:
    """The hosts' interpreter is a fake that says a version: on the second host another one."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncase $SSH_CONNECTION in *127.0.0.3*) {second} ;; *) echo {OURS} ;; esac\n")
    python.chmod(0o755)
    with pytest.raises(RequestError) as error:
        up(tmp_path / "runs", ssh_cluster.servers(), python=str(python))
    (problem,) = error.value.problems
    assert said in problem.what
    assert problem.fix.startswith("engine.python=")
    assert not (shared_ray.place(tmp_path / "runs", "lab") / shared_ray.STATE).exists()
    assert not [*tmp_path.rglob("0.json")]


@pytest.mark.parametrize(("host", "option"), [("127.0.0.2", "--port"), (ray_node.DASHBOARD_HOST, "--dashboard-port")])
def test_a_port_that_somebody_has_is_named_with_the_option_and_nothing_is_started(
    tmp_path: Path, host: str, option: str
) -> None:
    with socket.create_server((host, 0)) as taken, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        ports = {"--port": probe.getsockname()[1], "--dashboard-port": probe.getsockname()[1]}
        probe.close()
        ports[option] = taken.getsockname()[1]
        asked = {
            "token": "t", "python": "/bin/false", "address": "127.0.0.2", "port": ports["--port"], "head": "",
            "dashboard": ports["--dashboard-port"], "cpus": 1, "gpus": 0,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-I", "-S", ray_node.__file__, "start", str(tmp_path), "0"],
            input=json.dumps(asked) + "\n", capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"error": f"port {ports[option]} is in use; {option} takes another one"}
    assert [*tmp_path.iterdir()] == []
