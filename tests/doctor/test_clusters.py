"""The doctor over real clusters of two nodes (SSH servers, Slurm, Ray), with the engine's own torch over both."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray_cluster
import slurm_cluster
import ssh_cluster
import sshd

from sweeper import clusters
from sweeper.config.hydra_app import initialized
from sweeper.doctor import checkup
from sweeper.doctor.asked import FAIL, OK, Asked
from sweeper.doctor.render import as_dict

pytestmark = pytest.mark.real

KINDS = {
    "ssh": sshd.installed(),
    "slurm": not slurm_cluster.why_not(),
    "ray": ray_cluster.loopback(),
}


@pytest.fixture(
    params=[pytest.param(k, marks=pytest.mark.skipif(not there, reason="no tool")) for k, there in KINDS.items()]
)
def cluster(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "ray":
        with ray_cluster.Raylets() as raylets:
            raylets.connect()
            group = {**ssh_cluster.config({}), "kind": "ray", "nodes": 2, "ray": {"address": raylets.address}}
            made = clusters.get(group, clusters.shape(group))
            yield made
            made.close()
        return
    made = {"ssh": ssh_cluster.make, "slurm": slurm_cluster.make}[request.param]()
    yield made
    made.close()


@pytest.mark.skipif(not KINDS["ssh"], reason="no tool")
def test_hosts_that_answer_are_looked_at_when_another_refuses(tmp_path: Path) -> None:
    section = ssh_cluster.servers()
    hosts = [*section["hosts"], {"host": "127.0.0.99", "name": "gone"}]
    listed = ",".join(f"{{host: {h['host']}, name: {h['name']}}}" for h in hosts)
    typed = [f"cluster.ssh.{key}={section[key]}" for key in ("port", "key", "known_hosts")]
    line = ["cluster=ssh", f"cluster.ssh.hosts=[{listed}]", *typed, "cluster.ssh.config=null", "cluster.nodes=2"]
    with initialized():
        report = checkup.run([*line, f"cluster.python={sys.executable}", f"store={tmp_path}"], 300.0)
        said = json.dumps(as_dict(report), indent=1)
        assert (report.code, report.nodes[-1]) == (1, "gone"), said
        (bad,) = {c.said: c for c in report.checks if c.name == "node"}.values()
        assert bad.node == "gone" and bad.fix.startswith("ssh "), said
        assert [c.state for c in report.checks if c.name == "verl"] == [OK], said
        assert {c.node for c in report.checks if c.name == "disk"} == set(report.nodes[:-1]), said
        wrong = checkup.run([*line, f"cluster.python={sys.executable}", f"store={tmp_path}", "tp=3"], 300.0)
        names = {c.name for c in wrong.checks}
        assert wrong.code == 1 and {"request", "node", "disk", "verl"} <= names, json.dumps(as_dict(wrong), indent=1)
        alone = checkup.run(["cluster=ssh", "cluster.ssh.hosts=[{host: 127.0.0.99}]", *typed], 300.0)
        assert [c.name for c in alone.checks] == ["node"] and alone.code == 1


@pytest.mark.skipif(not KINDS["ssh"], reason="no tool")
def test_an_address_that_is_none_of_the_hosts_own_is_named(tmp_path: Path) -> None:
    section = ssh_cluster.servers()
    first, second = (f"host: {h['host']}, name: {h['name']}" for h in section["hosts"][:2])
    typed = [f"cluster.ssh.{key}={section[key]}" for key in ("port", "key", "known_hosts")]
    hosts = f"cluster.ssh.hosts=[{{{first}, address: 10.255.1.1}},{{{second}}}]"
    line = ["cluster=ssh", hosts, *typed, "cluster.ssh.config=null", f"cluster.python={sys.executable}"]
    with initialized():
        report = checkup.run([*line, "cluster.device=cpu", f"store={tmp_path}"], 300.0)
    (bad,) = (c for c in report.checks if c.name == "address")
    assert (report.code, bad.node) == (1, section["hosts"][0]["name"]) and "10.255.1.1" in bad.said


def test_two_real_nodes_are_looked_at(cluster: Any, tmp_path: Path) -> None:
    question = Asked(
        config={"engine": {"env": {}}},
        shape=cluster.shape,
        engine="verl",
        python=sys.executable,
        store=tmp_path,
        checkpoint_bytes=0,
        checkpoint_files=0,
        paths=(str(Path(__file__)), "/no/such/model"),
        ports=(),
        names=(),
        needed={},
        addresses={},
        nodes=2,
        gpus_per_node=1,
    )
    report = checkup.examine(cluster, question, 300.0)
    said = json.dumps(as_dict(report), indent=1)
    assert len(report.nodes) == len(set(report.nodes)) == 2, said
    states: dict[str, set[str]] = {}
    for check in report.checks:
        states.setdefault(check.name, set()).add(check.state)
    for name in ("verl", "ray", "python", "disk", "shared store", "reachability", "clock", "gloo all-reduce"):
        assert states[name] == {OK}, said
    assert {c.node for c in report.checks if c.name == "path" and c.state == FAIL} == set(report.nodes), said
    assert report.code == 1
    assert not list(tmp_path.iterdir())
