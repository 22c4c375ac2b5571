"""cluster=dstack: what dstack is given, and how its server's answers are read. The last ones ask dstack itself: its
parser and its server, which runs here without a backend, so that a task can be planned, submitted, refused and stopped,
and never gets a node.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import real_dstack
import yaml

from sweeper import clusters
from sweeper.clusters import dstack, queued
from sweeper.clusters.dstack import fleet, server, task
from sweeper.config.compose import compose_points
from sweeper.config.hydra_app import initialized
from sweeper.config.space import read
from sweeper.engines.base import Gang, Job
from sweeper.errors import RequestError

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "clusters" / "dstack"


def group(*overrides: str) -> dict[str, Any]:
    with initialized():
        (item,) = compose_points(read(["cluster=dstack", *overrides]).arms)
    return dict(item.config["cluster"])


def job(nodes: int = 2, gpus: int = 8, **how: Any) -> Job:
    fields: dict[str, Any] = {
        "argv": ("python3", "-m", "verl.trainer.main_ppo"),
        "env": {},
        "inherit": ("HF_TOKEN", "WANDB_API_KEY"),
        "files": {},
        "gang": Gang(nodes=nodes, gpus_per_node=gpus, cpus_per_node=gpus),
        "python": "python3",
        "metrics": "metrics.jsonl",
        "total_steps": 10,
        "image": "registry.example/verl:0.9.1",
    }
    return Job(**{**fields, **how})


def made(nodes: int, gpus: int, *overrides: str) -> dict[str, Any]:
    folder = "/store/runs/demo/trials/000/attempt-1"
    return task.task(
        job(nodes, gpus),
        group(*overrides),
        name="demo-000-1-0123abcd",
        command=["python3", "-I", "-S", "/store/runs/demo/gang-0123/node.py", "run", folder, task.RANK],
        listen=["python3", "-I", "-S", "/store/runs/demo/gang-0123/listen.py", folder, task.RANK],
        variables=["SWEEPER_GANG_TOKEN", "HF_TOKEN", "WANDB_API_KEY"],
    )


def until(true: Any) -> Any:
    deadline = time.monotonic() + 600
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


VOLUMES = "cluster.dstack.volumes=[/store:/store]"
FILES: dict[str, tuple[int, int, list[str]]] = {
    "two_nodes": (2, 8, [VOLUMES, "cluster.dstack.fleet=h100"]),
    "half_a_node": (1, 4, [VOLUMES]),
    "secrets": (2, 8, [VOLUMES, "cluster.dstack.secrets={HF_TOKEN: hf}", "cluster.dstack.task={max_price: 30}"]),
    "no_waiting": (2, 8, [VOLUMES, "cluster.dstack.wait=null", "cluster.dstack.resources.cpu=x86:32.."]),
}


def text(name: str) -> str:
    if name == "fleet":
        return fleet.text(["cluster.nodes=4", "cluster.dstack.fleet=h100"])
    nodes, gpus, overrides = FILES[name]
    return task.to_yaml(made(nodes, gpus, *overrides), head="A task of the tests.")


@pytest.mark.parametrize("name", [*FILES, "fleet"])
def test_golden(name: str) -> None:
    path = GOLDEN / f"{name}.dstack.yml"
    if os.environ.get("SWEEPER_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(name))
    assert text(name) == path.read_text(), (
        "if this is meant: SWEEPER_UPDATE_GOLDEN=1 pytest tests/clusters/test_dstack.py"
    )


def test_a_secret_is_a_name_in_the_file_and_a_value_in_what_is_submitted() -> None:
    values = {"SWEEPER_GANG_TOKEN": "t0k3n", "HF_TOKEN": "not-this", "WANDB_API_KEY": "w4ndb"}
    given = made(2, 8, VOLUMES, "cluster.dstack.secrets={HF_TOKEN: hf}")
    assert given["env"] == ["SWEEPER_GANG_TOKEN", "HF_TOKEN=${{ secrets.hf }}", "WANDB_API_KEY"]
    assert task.filled(given, values)["env"] == {
        "SWEEPER_GANG_TOKEN": "t0k3n", "HF_TOKEN": "${{ secrets.hf }}", "WANDB_API_KEY": "w4ndb",
    }  # fmt: skip


def test_what_dstack_keeps_need_not_be_set_here() -> None:
    given = made(2, 8, VOLUMES, "cluster.dstack.secrets={OTHER_TOKEN: other}")
    assert given["env"][-1] == "OTHER_TOKEN=${{ secrets.other }}"


@pytest.mark.parametrize("name", ["two_nodes", "half_a_node"])
def test_a_nodes_command_knows_its_rank_and_the_others(name: str, tmp_path: Path) -> None:
    """The command itself, run by the shell that dstack runs it with; what it starts are stand-ins that tell."""
    (line,) = yaml.safe_load(text(name))["commands"]
    tell = tmp_path / "tell"
    tell.write_text('#!/bin/sh\necho "$@ $SWEEPER_GANG_NODES"\n')
    tell.chmod(0o755)
    env = {**os.environ, "DSTACK_NODE_RANK": "1", "DSTACK_NODES_IPS": "10.0.0.1\n10.0.0.2"}
    out = subprocess.run(
        ["/bin/sh", "-c", line.replace("python3", str(tell))], env=env, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folder = "/store/runs/demo/trials/000/attempt-1"
    nodes = "10.0.0.1=10.0.0.1,10.0.0.2=10.0.0.2"
    assert sorted(out) == [
        f"-I -S /store/runs/demo/gang-0123/listen.py {folder} 1 {nodes}",
        f"-I -S /store/runs/demo/gang-0123/node.py run {folder} 1 {nodes}",
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.dstack.gpu=80GB:x", "names x, and the trials are planned for cluster.gpu=H100"),
        ("cluster.dstack.gpu=H100:80GB:four", "has two of a name"),
        ("cluster.dstack.gpu=H100:80:8", "has two of a count"),
        ("cluster.dstack.gpu='H100::8'", "has ''"),
        ("cluster.dstack.gpu=H100:80GB:0", "has '0'"),
        ("cluster.dstack.gpu=H100:80GB:4", "asks for 4 GPUs, and cluster.gpus_per_node=8"),
        ("cluster.dstack.gpu=A100:80GB:8", "names A100"),
        ("cluster.dstack.gpu=80GB:8", "names no GPU"),
        ("cluster.dstack.gpu=H100:140GB..:8", "asks for 140GB.., and the largest H100 has 96 GB"),
        ("cluster.dstack.gpu=H100:1TB:8", "asks for 1TB, and the largest H100 has 96 GB"),
        ("cluster.gpu_memory_gib=139.8", "cluster.gpu_memory_gib=139.8, and the largest H100 has 96 GB"),
        ("cluster.dstack.volumes=[/store]", "is no mount"),
        ("cluster.dstack.volumes=/store:/store", "is no list"),
        ("+cluster.dstack.image=x", "is no key"),
        ("cluster.dstack=two", "takes the place of a whole section"),
        ("cluster.dstack.fleet=[a]", "cluster.dstack.fleet=.* is no text"),
        ("cluster.dstack.wait=long", "is no length of time"),
        ("cluster.gpus_per_node=null", "cluster.gpus_per_node is not given"),
    ],
)
def test_what_cannot_be_is_named_without_a_server(override: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        clusters.shape(group(override))


def test_a_gpu_with_less_memory_than_the_groups_own_says_both_keys() -> None:
    with pytest.raises(RequestError) as raised:
        clusters.shape(group("cluster.gpu=L40S"))
    fixes = [problem.fix for problem in raised.value.problems]
    assert fixes == ["cluster.gpu_memory_gib=44.6", "cluster.dstack.gpu=L40S:48GB:8"]
    assert clusters.shape(group("cluster.gpu=L40S", *fixes)).gpu_memory_gib == 44.6


def test_the_example_of_a_gpu_string_is_one_that_is_taken() -> None:
    (problem, *_) = task.gpu_problems("80GB:8", group("cluster.gpu=null"))
    assert "H100:80GB:8" in problem.valid
    wrong = {**group(), "gpu": "80GB:8"}  # what was typed is no example
    assert all("80GB:8:80GB" not in problem.valid for problem in task.gpu_problems("80GB:8:80GB:8", wrong))


@pytest.mark.parametrize(
    "spec",
    [
        "H100:80GB:8",
        "H100:40GB..:8",
        "H100:..200GB:8",
        "nvidia:H100:80GB..:8",
        "H100:8",
        "H100",
        "H100,H200:80GB:8",
        "h100:8",
    ],
)
def test_gpu_strings_that_dstack_knows_are_taken(spec: str) -> None:
    assert task.gpu_problems(spec, group()) == []
    assert task.gpu(spec, 4).endswith(":4")


def test_a_shape_can_be_launched_on_by_another_kind() -> None:
    with initialized():
        words = ["cluster=two_nodes_8gpu", "cluster.kind=dstack", "+cluster.dstack.volumes=[/store:/store]"]
        (item,) = compose_points(read(words).arms)
    config = dict(item.config["cluster"])
    assert clusters.shape(config).launchable
    assert task.resources(config, Gang(2, 8)) == {"gpu": "H100:8"}


def test_a_store_that_the_nodes_would_not_see_is_named() -> None:
    folder = Path("/home/me/runs/demo/trials/000/attempt-1")
    assert "on no volume" in task.mounted(folder, group(VOLUMES))
    assert task.mounted(Path("/store/runs/demo/trials/000/attempt-1"), group(VOLUMES)) == ""


def said(status: str, reason: str | None = None, *jobs: tuple[str | None, str | None]) -> server.Run:
    submissions = [
        {"termination_reason": why, "termination_reason_message": words, "exit_status": None, "finished_at": None}
        for why, words in jobs
    ]
    about = {"run_spec": {"run_name": "demo"}, "status": status, "termination_reason": reason}
    return server.Run.of({**about, "jobs": [{"job_submissions": [s]} for s in submissions]})


@pytest.mark.parametrize(
    ("run", "reason", "words"),
    [
        (
            said("failed", "job_failed", (server.NO_CAPACITY, "No fleet"), (server.FOLLOWS, "")),
            "launch", "dstack offer",
        ),
        (said("failed", "job_failed", ("creating_container_error", "no image")), "launch", "no image"),
        (said("failed", "job_failed", ("container_exited_with_error", None)), "launch", "dstack logs demo"),
        (said("failed", "job_failed", ("interrupted_by_no_capacity", None)), "preempted", "interrupted"),
        (said("failed", "job_failed", ("instance_unreachable", None)), "lost", "instance_unreachable"),
        (said("terminated", "stopped_by_user"), "stopped", "stopped_by_user"),
        (said("terminated", "stopped_by_user", (server.NO_CAPACITY, "No fleet")), "stopped", "No fleet"),
        (said("done", "all_jobs_done"), "lost", "left no record"),
    ],
)  # fmt: skip
def test_what_dstack_says_of_an_end_without_a_record(run: server.Run, reason: str, words: str) -> None:
    assert run.over
    end = run.exit()
    assert end.reason == reason
    assert words in end.detail and "demo" in end.detail


def test_a_token_is_not_shown() -> None:
    assert "s3cr3t" not in repr(server.Server("http://127.0.0.1:1", "main", "s3cr3t"))


def test_no_project_and_no_server_are_told_with_the_command_that_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RequestError, match="no default project") as error:
        dstack.open(group(), clusters.shape(group()))
    assert "dstack project add" in error.value.problems[0].fix
    (tmp_path / ".dstack").mkdir()
    known = {"name": "main", "url": "http://127.0.0.1:9", "token": "s3cr3t", "default": True}
    (tmp_path / ".dstack" / "config.yml").write_text(yaml.safe_dump({"projects": [known]}))
    with pytest.raises(RequestError, match=r"127.0.0.1:9 does not answer") as error:
        dstack.open(group(), clusters.shape(group()))
    assert "s3cr3t" not in str(error.value)
    with pytest.raises(RequestError, match="no project other"):
        dstack.open(group("cluster.dstack.project=other"), clusters.shape(group()))


SLEEPS = "import sys, time; print('up', flush=True); time.sleep(300)"


@pytest.mark.parametrize(("code", "asked", "ended"), [("raise SystemExit(3)", b"", (3, "exit")), (SLEEPS, b"s", None)])
def test_what_a_task_runs_on_a_node_is_an_attempt_that_ends_by_itself_or_by_the_file(
    tmp_path: Path, code: str, asked: bytes, ended: tuple[int, str] | None
) -> None:
    """The task's real command and the real programs of a node; the container is a shell of this machine."""
    config = group(f"cluster.dstack.volumes=[{tmp_path}:{tmp_path}]", "cluster.nodes=1", "cluster.gpus_per_node=1")
    cluster = dstack.DstackCluster(config, clusters.shape(config), server.Server("http://127.0.0.1:9", "main", "x"))
    folder = tmp_path / "runs" / "demo" / "trials" / "000" / "attempt-1"
    folder.mkdir(parents=True)
    argv = (sys.executable, "-c", code)
    trial = job(1, 1, argv=argv, python=sys.executable, image=None, ray=False, inherit=())
    given, values = cluster.prepare(trial, folder, "demo")
    env = {"PATH": os.environ["PATH"], "DSTACK_NODE_RANK": "0", "DSTACK_NODES_IPS": "127.0.0.2", **values}
    container = subprocess.Popen(["/bin/sh", "-c", given["commands"][0]], env=env, cwd="/")
    try:
        if asked:
            until(lambda: (folder / "log.txt").exists() and "up" in (folder / "log.txt").read_text())
            with (folder / "gang" / "ask").open("ab") as file:
                file.write(asked)
        container.wait(600)
    finally:
        container.kill()
    said = json.loads((folder / "gang" / "0.exit.json").read_text())
    assert (said["code"], said["reason"]) == ended if ended else said["reason"] == "stopped"
    words = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
    assert not any(str(folder).encode() in line for line in words)  # neither the trainer nor what listened


# -- dstack itself


def test_dstacks_own_parser_takes_every_file() -> None:
    names = [*FILES, "fleet"]
    found = dict(zip(names, real_dstack.parsed(*map(text, names)), strict=True))
    assert {name: said.get("type") for name, said in found.items()} == {
        **dict.fromkeys(FILES, "TaskConfiguration"), "fleet": "FleetConfiguration",
    }  # fmt: skip
    two: Any = found["two_nodes"]["made"]
    assert (two["nodes"], two["stop_criteria"], two["startup_order"]) == (2, "master-done", "any")
    assert two["resources"]["gpu"]["count"] == {"min": 8, "max": 8}
    assert two["resources"]["gpu"]["memory"] == {"min": 80, "max": 80}
    assert two["retry"] == {"on_events": ["no-capacity"], "duration": 86400}
    half: Any = found["half_a_node"]["made"]
    assert half["resources"]["gpu"]["count"] == {"min": 4, "max": 4}
    placed: Any = found["fleet"]["made"]
    assert placed["placement"] == "cluster"
    (wrong,) = real_dstack.parsed(text("two_nodes") + "max_prise: 30\n")
    assert "max_prise" in str(wrong["error"])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real_dstack.Running]:
    with real_dstack.server(tmp_path_factory.mktemp("dstack")) as at:
        yield at


@pytest.fixture
def at(running: real_dstack.Running, monkeypatch: pytest.MonkeyPatch) -> server.Server:
    monkeypatch.setenv("HOME", str(running.home))
    return server.Server.configured(None)


OFFLINE = ("cluster.dstack.resources.cpu=x86:32..", "cluster.dstack.task={user: root}")
"""Without these dstack asks the image's registry for the image's user and architecture."""


def start(tmp_path: Path, *overrides: str) -> tuple[dstack.DstackCluster, queued.QueuedAttempt]:
    config = group(f"cluster.dstack.volumes=[{tmp_path}:{tmp_path}]", *OFFLINE, *overrides)
    cluster = dstack.open(config, clusters.shape(config))
    assert isinstance(cluster, dstack.DstackCluster)
    folder = tmp_path / "runs" / "demo" / "trials" / "000" / "attempt-1"
    folder.mkdir(parents=True)
    attempt = cluster.start(job(), folder, (0, 1))
    assert isinstance(attempt, queued.QueuedAttempt)
    return cluster, attempt


def test_the_servers_plan_is_one_gang_of_the_nodes_and_gpus(at: server.Server) -> None:
    given = made(2, 8, VOLUMES, *OFFLINE)
    plan = at.plan(task.filled(given, dict.fromkeys(["SWEEPER_GANG_TOKEN", "HF_TOKEN", "WANDB_API_KEY"], "x")))
    specs = [entry["job_spec"] for entry in plan["job_plans"]]
    assert [(spec["job_num"], spec["jobs_per_replica"]) for spec in specs] == [(0, 2), (1, 2)]
    for spec in specs:
        assert spec["requirements"]["resources"]["gpu"]["count"] == {"min": 8, "max": 8}
        assert spec["requirements"]["multinode"] is True
        assert "node.py run" in spec["commands"][-1]
        assert spec["env"]["HF_TOKEN"] == "x"


def test_a_task_that_waits_for_nodes_says_so_and_can_be_stopped(
    at: server.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_s3cr3t")
    cluster, attempt = start(tmp_path)
    assert cluster.free() == (0, 0)
    until(lambda: "No matching fleet" in attempt.waiting())
    assert attempt.poll() is None
    again = cluster.attach(attempt.folder)  # as another controller would
    assert again is not None and again.poll() is None
    for path in attempt.folder.rglob("*"):
        assert not path.is_file() or "hf_s3cr3t" not in path.read_text()
    attempt.stop()
    assert attempt.wait(600).reason == "stopped"
    assert again.wait(600).reason == "stopped"  # type: ignore[attr-defined]
    assert cluster.free() == (8, 8)
    run = at.run(attempt.name)
    assert run is not None and run.over


def test_a_task_that_may_not_wait_fails_at_launch_and_says_why(at: server.Server, tmp_path: Path) -> None:
    _, attempt = start(tmp_path, "cluster.dstack.wait=null")
    end = attempt.wait(600)
    assert (end.code, end.reason) == (None, "launch")
    assert "No matching fleet" in end.detail and "dstack offer" in end.detail
    assert json.loads((attempt.folder / "exit.json").read_text())["reason"] == "launch"


def test_what_the_server_refuses_fails_at_launch_in_its_words(at: server.Server, tmp_path: Path) -> None:
    _, attempt = start(tmp_path, "cluster.dstack.task={user: root, max_prise: 30}")
    end = attempt.wait(600)
    assert end.reason == "launch"
    assert "max_prise" in end.detail


def test_a_wrong_token_and_a_fleet_that_is_not_there_are_told_before_anything_is_started(
    at: server.Server, running: real_dstack.Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = group("cluster.dstack.fleet=h100")
    with pytest.raises(RequestError, match="no fleet h100") as error:
        dstack.open(config, clusters.shape(config))
    assert "dstack apply" in error.value.problems[0].fix
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".dstack").mkdir()
    known = {"name": "main", "url": running.url, "token": "wrong-one", "default": True}
    (tmp_path / ".dstack" / "config.yml").write_text(yaml.safe_dump({"projects": [known]}))
    with pytest.raises(RequestError, match="does not accept the token") as error:
        dstack.open(config, clusters.shape(config))
    assert "wrong-one" not in str(error.value)


@pytest.mark.parametrize(
    ("typed", "said"),
    [(["cluster.nodes=4,8"], "2 requests in one"), (["cluster=local"], "is of kind local")],
)
def test_what_is_no_fleet_is_said(typed: list[str], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        fleet.text(typed)
