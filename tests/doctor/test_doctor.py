"""What `sweeper doctor` says of nodes that are well, that differ, that lack something and that do not answer.

The fake cluster runs the real probe in real processes of this machine, one for each of its nodes; what is odd about a
node of it (a store of its own, a clock) is edited into what it is sent. Its real counterparts are the tests marked
`real`, here and of the clusters.
"""

from __future__ import annotations

import ast
import json
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeper.cli.main import main
from sweeper.clusters.base import Answer
from sweeper.clusters.local import run_here
from sweeper.doctor import asked as asking
from sweeper.doctor import checks, checkup, probe
from sweeper.doctor.asked import FAIL, OK, WARN, Asked
from sweeper.doctor.checks import Check
from sweeper.doctor.render import as_dict, table
from sweeper.engines.base import Shape
from sweeper.errors import Problem, RequestError

CPU = Shape("fake", "cpu", 1, 1)
GPU = Shape("fake", "cuda", 2, 8, "H100", 79.6)


def asked(store: Path, **more: Any) -> Asked:
    facts: dict[str, Any] = {
        "config": {"engine": {"env": {}}},
        "shape": CPU,
        "engine": "verl",
        "python": sys.executable,
        "store": store,
        "checkpoint_bytes": 0,
        "checkpoint_files": 0,
        "paths": (),
        "ports": (),
        "names": (),
        "needed": {},
        "addresses": {},
        "nodes": 1,
        "gpus_per_node": 1,
    }
    return Asked(**{**facts, **more})


class FakeCluster:
    """Nodes that are processes of this machine; `edit` changes what a node is sent, `silent` ones say nothing."""

    def __init__(
        self, *nodes: str, edit: Mapping[str, Sequence[tuple[str, str]]] | None = None, silent: str = ""
    ) -> None:
        self.shape, self._nodes, self._edit, self._silent = CPU, nodes, edit or {}, silent

    def each(self, argv: Sequence[str], stdin: str, timeout_s: float) -> list[Answer]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(len(self._nodes)) as pool:
            return list(pool.map(lambda node: self._one(node, argv, stdin, timeout_s), self._nodes))

    def _one(self, node: str, argv: Sequence[str], stdin: str, timeout_s: float) -> Answer:
        if node == self._silent:
            return Answer(node, 255, err="ssh: connect to host n2 port 22: Connection refused\n")
        for old, new in self._edit.get(node, ()):
            stdin = stdin.replace(old, new)
        answer = run_here(node, [sys.executable if word == "{python}" else word for word in argv], stdin, timeout_s)
        return replace(answer, out=f"Welcome to {node}!\n{answer.out}")

    def close(self) -> None: ...


class Nodes(FakeCluster):
    """Without the collective, which imports torch in each process."""

    def _one(self, node: str, argv: Sequence[str], stdin: str, timeout_s: float) -> Answer:
        return super()._one(
            node, argv, stdin.replace("import torch, torch.distributed as dist", "sys.exit(0)"), timeout_s
        )


def examined(cluster: FakeCluster, question: Asked) -> dict[str, list[Check]]:
    found: dict[str, list[Check]] = {}
    for check in checkup.examine(cluster, question, 30.0).checks:  # type: ignore[arg-type]
        found.setdefault(check.name, []).append(check)
    return found


def state(found: Mapping[str, Sequence[Check]], name: str) -> str:
    states = {c.state for c in found[name]}
    return FAIL if FAIL in states else WARN if WARN in states else OK


# --- nodes as processes ---


def test_two_nodes_that_are_well(tmp_path: Path) -> None:
    store = tmp_path / "new" / "runs"
    found = examined(Nodes("localhost", "127.0.0.1"), asked(store))
    for name in ("python", "verl", "ray", "disk", "shared store", "names", "reachability", "clock"):
        assert state(found, name) == OK, found[name]
    assert not list(tmp_path.iterdir()), "the store that was made for it is gone again"


def test_one_node_has_no_other_to_reach(tmp_path: Path) -> None:
    (only,) = examined(Nodes("n1"), asked(tmp_path))["reachability"]
    assert (only.state, only.said) == (OK, "one node: there is no other to reach")


def test_a_node_that_met_no_other_says_nothing_of_reachability() -> None:
    well = {"id": "a", "wrote": "x", "read": {"a": "x"}, "controller": "c", "addresses": [], "reached": {},
            "resolved": {}}  # fmt: skip
    found = list(checks.met({"n1": well, "n2": {"error": "FileNotFoundError"}}, ("n1", "n2"), "c", "/store"))
    (one,) = [c for c in found if c.name == "reachability"]
    assert (one.state, one.said) == (WARN, "not looked at: n1 met no other")


DOWN = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
NOT_OURS = "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock"


@pytest.mark.parametrize(
    ("says", "told", "fix"),
    [
        ("", "", ""),
        (DOWN, DOWN, "sudo systemctl start docker"),
        (NOT_OURS, NOT_OURS, "sudo usermod -aG docker "),
        (None, "it is not there", "apt-get install docker.io"),
    ],
)
def test_a_node_whose_docker_does_not_answer(tmp_path: Path, says: str | None, told: str, fix: str) -> None:
    """The programs are fakes; a real daemon: tests/clusters/test_docker.py."""
    program = tmp_path / "bin" / "docker"
    if says is not None:
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n[ -z '{says}' ] || {{ echo '{says}' >&2; exit 1; }}\n")
        program.chmod(0o755)
    config = {"engine": {"env": {}, "image": "verlai/verl:app"}, "cluster": {"docker": {"program": str(program)}}}
    found = examined(Nodes("n1", "n2"), asked(tmp_path / "runs", config=config))["docker"]
    if not told:
        assert [(c.state, c.node) for c in found] == [(OK, "")]
        return
    assert [(c.state, c.node) for c in found] == [(FAIL, "n1"), (FAIL, "n2")]
    assert found[0].said == f"{program} does not answer: {told}"
    assert fix in found[0].fix


def test_docker_is_not_asked_where_nothing_runs_in_a_container(tmp_path: Path) -> None:
    config = {"engine": {"env": {}, "image": None}, "cluster": {"docker": {"program": "/no/docker"}}}
    assert "docker" not in examined(Nodes("n1"), asked(tmp_path, config=config))


def test_a_node_that_does_not_answer_is_named_with_what_it_said(tmp_path: Path) -> None:
    report = checkup.examine(Nodes("n1", "n2", silent="n2"), asked(tmp_path), 30.0)  # type: ignore[arg-type]
    (bad, *_) = [c for c in report.checks if c.state == FAIL]
    assert (bad.name, bad.node) == ("node", "n2")
    assert "Connection refused" in bad.said and bad.fix
    assert report.code == 1
    assert any("Connection refused" in line for line in table(report))


def test_a_node_that_does_not_answer_is_not_given_all_that_time_again(tmp_path: Path) -> None:
    given: list[float] = []

    class Timed(Nodes):
        def each(self, argv: Sequence[str], stdin: str, timeout_s: float) -> list[Answer]:
            given.append(timeout_s)
            return super().each(argv, stdin, timeout_s)

    report = checkup.examine(Timed("n1", "n2", silent="n2"), asked(tmp_path), 300.0)
    assert given == [300.0 + checkup.SPARE_S, checkup.SPARE_S]
    assert [c.state for c in report.checks if c.name == "clock"] == [OK], "of the one that answers"


def test_a_store_that_is_not_shared_is_found(tmp_path: Path) -> None:
    """One node sees another folder under the store's path, as with a local disk mounted there."""
    store, other = tmp_path / "runs", tmp_path / "else"
    store.mkdir()
    other.mkdir()
    found = examined(Nodes("n1", "n2", edit={"n2": [(f"{store}/.doctor", f"{other}/.doctor")]}), asked(store))
    assert [c.node for c in found["shared store"] if c.state == FAIL] and state(found, "shared store") == FAIL
    assert "all nodes mount" in found["shared store"][0].fix
    assert state(found, "all-reduce") == WARN, "nothing more is tried"
    assert not list(store.iterdir())


def test_another_files_content_is_not_taken_for_the_same(tmp_path: Path) -> None:
    answers = {
        "n1": {"id": "a", "wrote": "1", "read": {"a": "1", "b": "2"}, "controller": "c", "addresses": [], "reached": {},
               "resolved": {}},
        "n2": {"id": "b", "wrote": "2", "read": {"a": "0", "b": "2"}, "controller": "c", "addresses": [], "reached": {},
               "resolved": {}},
    }  # fmt: skip
    (bad,) = (c for c in checks.met(answers, ("n1",), "c", str(tmp_path)) if c.name == "shared store")
    assert (bad.state, bad.node, "n1" in bad.said) == (FAIL, "n2", True)


def test_a_clock_that_is_off_is_found_within_what_the_round_trip_allows(tmp_path: Path) -> None:
    ahead = [("begun = time.time()", "time.time = lambda t=time.time: t() + 90; begun = time.time()")]
    found = examined(Nodes("n1", "n2", edit={"n2": ahead}), asked(tmp_path))
    (clock,) = found["clock"]
    assert (clock.state, clock.node) == (FAIL, "n2")
    assert "ahead" in clock.said
    assert [c.state for c in checks.clocks({"far": (-30.0, 40.0)})] == [OK], "a slow node is no wrong clock"


def test_an_interpreter_that_is_not_there_or_lacks_the_engine_is_named(tmp_path: Path) -> None:
    found = examined(Nodes("n1"), asked(tmp_path, python="/no/such/python"))
    assert state(found, "engine") == FAIL
    assert "/no/such/python" in found["engine"][0].said and "engine.python=" in found["engine"][0].fix
    assert state(found, "all-reduce") == WARN, "what cannot be started is told once, and is no fault of the network"
    found = examined(Nodes("n1"), asked(tmp_path, engine="no-such-engine"))
    assert "has no no-such-engine" in found["engine"][0].said


def test_a_path_a_port_and_a_disk_that_do_not_do_are_named(tmp_path: Path) -> None:
    import socket

    there = tmp_path / "rows.parquet"
    there.write_text("x")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        question = asked(
            tmp_path, paths=(str(there), "/no/such/model"), ports=(port,), checkpoint_bytes=10**18, checkpoint_files=10
        )
        found = examined(Nodes("n1"), question)
    assert {c.said.split(":")[0]: c.state for c in found["path"]} == {str(there): OK, "/no/such/model": FAIL}
    assert str(port) in found["port"][0].said and found["port"][0].state == FAIL
    assert "1,000,000.0 TB" in found["disk"][0].said and "keep.last=1" in found["disk"][0].fix


def test_an_image_is_not_taken_for_what_the_node_itself_has(tmp_path: Path) -> None:
    config = {"engine": {"env": {}, "image": "ghcr.io/example/verl:1"}}
    found = examined(Nodes("n1"), asked(tmp_path, config=config, python="/in/the/image/python"))
    assert state(found, "software") == WARN
    assert "engine" not in found and "gloo all-reduce" not in found


def test_values_of_secrets_are_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret_value")
    sent: list[str] = []

    class Listening(Nodes):
        def each(self, argv: Sequence[str], stdin: str, timeout_s: float) -> list[Answer]:
            sent.append(" ".join(argv) + stdin)
            found = super().each(argv, stdin, timeout_s)
            sent.extend(a.out + a.err for a in found)
            return found

    names = ("HF_TOKEN", "WANDB_API_KEY")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    question = asked(tmp_path, names=names, needed={"HF_TOKEN": WARN, "WANDB_API_KEY": FAIL})
    report = checkup.examine(Listening("n1"), question, 30.0)  # type: ignore[arg-type]
    said = "\n".join([*table(report), json.dumps(as_dict(report)), *sent])
    assert "hf_very_secret_value" not in said
    verdicts = {c.name: c.state for c in report.checks if c.name in names}
    assert verdicts == {"HF_TOKEN": OK, "WANDB_API_KEY": FAIL}


# --- GPUs, by a fake nvidia-smi ---


def smi(folder: Path, gpus: str, held: str = "") -> str:
    tool = folder / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\ncase "$1" in *compute*) printf "{held}";; *) printf "{gpus}";; esac\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


ONE = "{i}, GPU-{i}, NVIDIA H100 80GB HBM3, 81559, {used}, 550.54"


def test_gpus_are_counted_and_what_others_hold_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "\\n".join(ONE.format(i=i, used=40000 if i == 3 else 4) for i in range(8))
    monkeypatch.setenv("PATH", smi(tmp_path, rows, f"GPU-3, {os.getpid()}, 39000\\n"))
    found = probe.gpus()
    assert [g["index"] for g in found] == [str(i) for i in range(8)]
    answers = {"n1": {"gpus": found}, "n2": {"gpus": found[:6]}}
    said = list(checks._gpus(answers, asked(tmp_path, shape=GPU, gpus_per_node=8)))
    by = {(c.name, c.node): c for c in said}
    assert by[("GPUs", "n1")].state == OK and "8 x NVIDIA H100 80GB HBM3" in by[("GPUs", "n1")].said
    assert by[("GPUs", "n2")].state == FAIL and by[("GPUs", "n2")].fix == "cluster.gpus_per_node=6"
    busy = by[("GPUs in use", "n1")]
    assert busy.state == FAIL and f"pid {os.getpid()}" in busy.said
    assert busy.fix == "end them, or CUDA_VISIBLE_DEVICES=0,1,2,4,5,6,7"


def test_a_driver_that_does_not_answer_is_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not talk to the driver'; exit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (bad,) = checks._gpus({"n1": {"gpus": probe.gpus()}}, asked(tmp_path, shape=GPU))
    assert bad.state == FAIL and "could not talk to the driver" in bad.said


@pytest.mark.parametrize(("name", "value"), [("ray", "2.40.0"), ("torch", "2.11.0"), ("verl", None)])
def test_versions_that_differ_between_nodes_are_told_with_who_has_which(
    name: str, value: str | None, tmp_path: Path
) -> None:
    packages = {"verl": "0.9.1", "ray": "2.60.0", "torch": "2.13.0"}
    well = {"engine": {"python": "3.11.7", "packages": packages, "cuda": None, "commit": None}}
    odd = {"engine": {**well["engine"], "packages": {**packages, name: value}}}
    found = [c for c in checks._software({"n1": well, "n2": well, "n3": odd}, asked(tmp_path)) if c.state == FAIL]
    said = " ".join(c.said + c.node for c in found)
    assert "n3" in said and (value is None or value in said)
    assert all(c.fix for c in found)


def test_a_name_that_leads_elsewhere_and_a_closed_door_are_told() -> None:
    base = {"wrote": "1", "controller": "c", "read": {"a": "1", "b": "1"}}
    answers = {
        "n1": {**base, "id": "a", "addresses": ["10.0.0.1"], "reached": {"b": {"error": "10.0.0.2: timed out"}},
               "resolved": {"n1": ["10.0.0.1"], "n2": ["10.9.9.9"]}},
        "n2": {**base, "id": "b", "addresses": ["10.0.0.2"], "reached": {"a": {"address": "10.0.0.1"}},
               "resolved": {"n1": {"error": "gaierror"}, "n2": ["10.0.0.2"]}},
    }  # fmt: skip
    found = [c for c in checks.met(answers, ("n1", "n2"), "c", "/runs") if c.state != OK]
    assert {(c.name, c.node) for c in found} == {("names", "n1"), ("names", ""), ("reachability", "n1")}
    assert any("n1 does not resolve on n2" in c.said for c in found)
    assert any("10.9.9.9, which is none of its addresses" in c.said for c in found)
    assert any("n2: 10.0.0.2: timed out" in c.said and "firewall" in c.fix for c in found)


SILENT = {
    "slurm refuses": (
        "srun: error: Unable to allocate resources: Invalid feature specification\n",
        "Invalid feature specification",
        "cluster.slurm.",
    ),
    "no such python": (
        "slurmstepd: error: execve(): /nope/py: No such file or directory\n"
        "srun: error: node1: task 0: Exited with exit code 2\n",
        "/nope/py: No such file",
        "cluster.python=",
    ),
    "ssh refuses": (
        "host n2 refuses the connection: no SSH server listens there\n  try:   ssh n2 true   (shows the cause)\n",
        "refuses the connection",
        "ssh n2 true",
    ),
    "too slow": ("no answer within 5 s\n", "no answer within 5 s", "--timeout"),
}


@pytest.mark.parametrize("name", SILENT)
def test_why_a_node_is_silent_is_told_with_what_helps_against_that(name: str) -> None:
    err, said, fix = SILENT[name]
    check = checkup._silent(Answer("n2", None, err=err))
    assert (check.state, check.node) == (FAIL, "n2")
    assert said in check.said and check.fix.startswith(fix)


def test_nothing_is_well_that_nobody_looked_at(tmp_path: Path) -> None:
    report = checkup.examine(Nodes("n1", silent="n1"), asked(tmp_path, paths=("/no/such/model",), ports=(1,)), 30.0)
    assert not [c for c in report.checks if c.state == OK], report.checks


def test_a_store_that_cannot_be_written_is_a_failed_check(tmp_path: Path) -> None:
    found = examined(Nodes("n1"), asked(Path("/proc/nope")))
    assert state(found, "shared store") == FAIL and found["shared store"][0].fix.startswith("store=")
    assert state(found, "verl") == OK, "the rest is looked at all the same"


def test_a_collective_without_torch_is_no_question_of_networks(tmp_path: Path) -> None:
    (check,) = checks.reduced({"n1": {"error": "ModuleNotFoundError: No module named 'torch'"}}, asked(tmp_path))
    assert check.state == FAIL and "pip install torch" in check.fix and "IFNAME" not in check.fix


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon"])
def test_a_time_in_which_nothing_can_answer_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--timeout", seconds])
    assert caught.value.code == 2
    assert "a number of seconds above 0" in capsys.readouterr().err


# --- the request, the command ---


def test_the_probe_runs_on_the_oldest_python_that_is_promised() -> None:
    source = Path(probe.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 9))
    imported = {n.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)


def test_what_the_checkpoints_of_a_sweep_take() -> None:
    from sweeper.config.hydra_app import initialized

    common = ["model=qwen7b", "cluster=node_8gpu", "lr=1e-6,2e-6,3e-6,4e-6"]
    with initialized():
        one = asking.of([*common, "trainer.save_freq=10", "keep.last=1"])
        two = asking.of([*common, "trainer.save_freq=10", "keep.last=2"])
        none = asking.of([*common, "trainer.save_freq=-1"])
    assert two.checkpoint_bytes == 2 * one.checkpoint_bytes
    assert 4 * 85e9 < one.checkpoint_bytes < 4 * 100e9, "7.6e9 parameters of 12 bytes, four trials"
    assert none.checkpoint_bytes == 0
    assert one.gpus_per_node == 8


def test_a_wrong_request_is_refused_as_by_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "cluster=node_8gpu"]) == 2
    assert "a shape and no cluster" in capsys.readouterr().err
    assert main(["doctor", "cluster=nowhere"]) == 2
    assert main(["doctor", "learning_rate=3"]) == 2


ABOUT = {
    "python": [3, 11],
    "ids": {"GPU-1": "0", "GPU-2": "1"},
    "hostname": "n1",
    "gpu": "NVIDIA H100 80GB HBM3",
    "gpu_memory_gib": 79.6,
    "available_gib": 900.0,
    "cores": 64,
    "user": [0, 0],
}
REFUSES = "host {} refuses the connection: no SSH server listens there"


class Listed(Nodes):
    """The hosts n1 and n2 of `cluster=ssh`, of which those in `about` answer."""

    def __init__(self, about: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__("n1", "n2")
        self.about, self.closed = about, False
        self.python, self.reach = "python3", SimpleNamespace(names=("n1", "n2"))

    def ask_each(self, places: Sequence[int], asked: Mapping[str, Any]) -> dict[int, Any]:
        return {
            place: {"about": self.about[name]} if name in self.about else Problem(REFUSES.format(name))
            for place, name in enumerate(self._nodes)
        }

    def _one(self, node: str, argv: Sequence[str], stdin: str, timeout_s: float) -> Answer:
        if node not in self.about:
            return Answer(node, None, err=REFUSES.format(node))
        return super()._one(node, argv, stdin, timeout_s)

    def close(self) -> None:
        self.closed = True


def listed(
    monkeypatch: pytest.MonkeyPatch, store: Path, about: Mapping[str, Mapping[str, Any]], *typed: str
) -> checkup.Report:
    from sweeper.clusters import ssh
    from sweeper.config.hydra_app import initialized

    hosts = Listed(about)
    down = [Problem(REFUSES.format(n), key="cluster.ssh.hosts") for n in ("n1", "n2") if n not in about]

    def connected(*_: Any) -> Any:
        if down:
            raise RequestError(down)
        return hosts, ["10.0.0.1", "10.0.0.2"]

    monkeypatch.setattr(ssh, "reach", lambda *_: hosts)
    monkeypatch.setattr(ssh, "_connected", connected)
    line = ["model=qwen7b", "cluster=ssh", "cluster.ssh.hosts=[n1,n2]", "cluster.ssh.config=null", f"store={store}"]
    try:
        with initialized():
            return checkup.run([*line, *typed], 30.0)
    finally:
        assert hosts.closed


TWO_GPUS = "host n1 has 2 visible GPUs, asked for are 8"
THREE = "tp=3 does not divide the 28 attention heads"
SAID = ("cluster.device=cuda", "cluster.gpus_per_node=2", "cluster.gpu_memory_gib=79.6")


@pytest.mark.parametrize(
    ("typed", "about", "told"),
    [
        ((), ABOUT, []),
        (("cluster.gpus_per_node=8",), ABOUT, [TWO_GPUS]),
        (("tp=3",), ABOUT, [THREE]),
        (("cluster.gpus_per_node=8", "tp=3"), ABOUT, [TWO_GPUS, THREE]),
        (("cluster.ssh.hosts=[{host: n1, gpus: 8},n2]",), ABOUT, [TWO_GPUS]),
        (("keep.last=0",), ABOUT, ["keep.last=0"]),
        ((*SAID, "tp=3"), ABOUT, [THREE]),
        (("cluster.device=cuda",), {**ABOUT, "ids": {}, "gpu": "", "gpu_memory_gib": 0.0}, ["has 0 visible GPUs"]),
        ((), {**ABOUT, "python": [3, 8]}, ["is Python 3.8"]),
    ],
)
def test_a_host_that_is_down_is_told_beside_what_is_wrong_with_the_request(
    typed: Sequence[str], about: dict[str, Any], told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = listed(monkeypatch, tmp_path / "runs", {"n1": about}, *typed)
    said = "\n".join(table(report))
    assert (report.code, report.nodes) == (1, ("n1", "n2")), said
    (down,) = [c for c in report.checks if c.name == "node"]
    assert (down.state, down.node) == (FAIL, "n2") and "refuses the connection" in down.said
    asked_for = [c for c in report.checks if c.name == "request"]
    assert all(c.state == FAIL for c in asked_for)
    assert all(any(words in c.said for c in asked_for) for words in told), said
    assert bool(asked_for) == bool(told), said
    assert "refuses" not in " ".join(c.said for c in asked_for), "that is the node's"
    assert all(c.fix for c in asked_for if TWO_GPUS in c.said or THREE in c.said)
    assert "rlhf" not in said, "what the environment brings is not verl's default"
    assert {"verl", "disk", "GPUs", "shared store", "clock"} <= {c.name for c in report.checks if c.node != "n2"}, said


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ((), ""),
        (("tp=3",), ""),  # what they have is not known, and a plan takes it
        (("keep.last=0",), "keep.last=0"),
        (("engine.inherit=5",), "engine.inherit=5"),
        ((*SAID, "tp=3"), THREE),
        ((*SAID, "engine.inherit=5"), "engine.inherit=5"),
    ],
)
def test_where_no_host_answers_what_is_known_to_be_wrong_with_the_request_is_told(
    typed: Sequence[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = listed(monkeypatch, tmp_path, {}, *typed)
    said = "\n".join(table(report))
    assert [c.node for c in report.checks if c.name == "node" and c.state == FAIL] == ["n1", "n2"], said
    asked_for = [c.said for c in report.checks if c.name == "request"]
    assert bool(asked_for) == bool(told), said
    assert any(told in text for text in asked_for) or not told, said
    assert report.code == 1


@pytest.mark.parametrize("typed", ["tp=3", "cluster.gpus_per_node=8", "keep.last=0"])
def test_a_wrong_request_is_only_that_where_all_hosts_answer(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError):
        listed(monkeypatch, tmp_path, {"n1": ABOUT, "n2": {**ABOUT, "hostname": "n2"}}, typed)


DSTACK = ("cluster=dstack", "cluster.dstack.volumes=[{0}:{0}]")
KUBERAY = ("cluster=kuberay", "cluster.kuberay.mount={0}", "cluster.kuberay.claim=store")


def queued(
    monkeypatch: pytest.MonkeyPatch, mount: Path, line: Sequence[str], *typed: str
) -> tuple[checkup.Report, dict[str, list[Check]]]:
    """Of a queue that nothing is asked: that it answers is found when it is opened."""
    from sweeper import clusters
    from sweeper.clusters import dstack, kuberay
    from sweeper.config.hydra_app import initialized

    made = {"dstack": dstack.DstackCluster, "kuberay": kuberay.KubeRayCluster}
    monkeypatch.setattr(clusters, "get", lambda group, shape: made[group["kind"]](group, shape, object()))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    words = [word.format(mount) for word in line]
    common = ["model=qwen7b", "engine.image=some/verl:1", "engine.python=python3", f"store={mount}/runs"]
    with initialized():
        report = checkup.run([*common, *words, *typed], 30.0)
    by_name: dict[str, list[Check]] = {}
    for check in report.checks:
        by_name.setdefault(check.name, []).append(check)
    return report, by_name


@pytest.mark.parametrize("line", [DSTACK, KUBERAY], ids=["dstack", "kuberay"])
def test_nodes_that_are_only_made_for_a_trial_are_no_failure(
    line: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a checkpoint of this model takes is more than a laptop has.
    report, by_name = queued(monkeypatch, tmp_path, line, "trainer.save_freq=-1")
    said = "\n".join(table(report))
    assert report.code == 0, said
    assert report.nodes == ("node 0", "node 1")
    (nodes,) = by_name["nodes"]
    assert nodes.state == WARN and "makes them for a trial" in nodes.said and nodes.fix, said
    assert "--timeout" not in said and "no answer" not in said and "all-reduce" not in said
    assert [c.state for name in ("server", "submission", "disk") for c in by_name[name]] == [OK] * 3, said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", [DSTACK, KUBERAY], ids=["dstack", "kuberay"])
def test_what_can_be_told_of_a_queue_from_here_still_fails(
    line: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = "trainer.save_freq=-1"
    report, by_name = queued(
        monkeypatch, tmp_path, line, small, "trainer.logger=[console,wandb]", "store=/elsewhere/runs"
    )
    assert report.code == 1
    assert {c.name for c in report.checks if c.state == FAIL} == {"WANDB_API_KEY", "submission"}
    assert "/elsewhere/runs" in by_name["submission"][0].said and "store=" in by_name["submission"][0].said


def test_a_path_that_is_not_here_or_not_mounted_may_be_where_the_nodes_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = asked(tmp_path, paths=("/models/qwen7b", "/store/rows", "/here/rows"))
    disk = {"at": "/", "free": 0, "inodes": None, "writable": True}
    paths = {"/models/qwen7b": {"error": "it is not there"}, "/store/rows": {}, "/here/rows": {}}
    answers = {"here": {"disk": {str(tmp_path): disk}, "paths": paths}}
    found = {c.said.split(":")[0]: c.state for c in checks.from_here(answers, question, ["/here/rows"])}
    assert found.pop("0.0 GB free at /") == FAIL
    assert found == {"/models/qwen7b": WARN, "/store/rows": OK, "/here/rows": WARN}
    rows = tmp_path / "else" / "rows.jsonl"
    rows.parent.mkdir()
    row = {"data_source": "x", "prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": "2"}}
    rows.write_text(f"{json.dumps(row)}\n" * 2048)
    typed = ["trainer.save_freq=-1", f"data.train_files={rows}", f"data.val_files={rows}"]
    for mount, wanted in ((tmp_path, OK), (tmp_path / "store", WARN)):
        report, by_name = queued(monkeypatch, mount, DSTACK, *typed)
        assert report.code == 0
        assert {c.state for c in by_name["path"]} == {wanted}, by_name["path"]


@pytest.mark.real
def test_the_engines_torch_reduces_over_two_nodes(tmp_path: Path) -> None:
    report = checkup.examine(FakeCluster("localhost", "127.0.0.1"), asked(tmp_path), 600.0)  # type: ignore[arg-type]
    (reduced,) = [c for c in report.checks if c.name == "gloo all-reduce"]
    assert (reduced.state, reduced.said) == (OK, "2 ranks over 2 nodes")


@pytest.mark.real
def test_a_collective_that_cannot_find_its_interface_fails_with_torchs_own_words(tmp_path: Path) -> None:
    env = {"engine": {"env": {"GLOO_SOCKET_IFNAME": "nosuch0"}}}
    report = checkup.examine(FakeCluster("n1"), asked(tmp_path, config=env), 600.0)  # type: ignore[arg-type]
    (reduced,) = [c for c in report.checks if c.name == "gloo all-reduce"]
    assert reduced.state == FAIL and "nosuch0" in reduced.said and "GLOO_SOCKET_IFNAME" in reduced.fix


@pytest.mark.real
def test_this_machine_is_looked_at_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "cluster.device=cpu", f"store={tmp_path / 'runs'}", "--timeout", "600", "--json"])
    found = json.loads(capsys.readouterr().out)
    states = {c["name"]: c["state"] for c in found["checks"]}
    assert states["gloo all-reduce"] == states["shared store"] == states["verl"] == OK, found
    assert code == (1 if FAIL in {c["state"] for c in found["checks"]} else 0)
    assert not list(tmp_path.iterdir())
