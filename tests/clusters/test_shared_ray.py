"""What `sweeper cluster up` refuses and says, over real SSH servers; a whole cluster: tests/real/test_ssh.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ssh_cluster
import sshd

from sweeper.clusters import shared_ray, ssh
from sweeper.errors import RequestError, SweeperError

SECTION = {
    "hosts": ["gpu1"], "user": None, "port": None, "key": None, "known_hosts": "k", "config": None, "connect_s": 15
}  # fmt: skip


def up(store: Path, section: dict[str, Any], name: str = "lab") -> None:
    group = ssh_cluster.config(section, name=name)
    shared_ray.up(group, store, "python3", port=26379, dashboard=28265, say=print)


@pytest.mark.parametrize("name", ["a/../../b", "..", "/tmp/b", ""])
def test_a_name_that_is_a_path_is_refused_by_every_command(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"cluster\.name="):
        up(tmp_path, SECTION, name)
    for act in (shared_ray.status, shared_ray.down):
        with pytest.raises(RequestError, match=r"cluster\.name="):
            act(tmp_path, name)


@pytest.mark.skipif(not sshd.installed(), reason="there is no sshd: apt-get install openssh-server")
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
