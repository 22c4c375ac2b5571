"""What is found of a machine; the GPUs here are a fake nvidia-smi's."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper import clusters
from sweeper.clusters import gangs, machine
from sweeper.clusters.gang import devices
from sweeper.clusters.local import LocalCluster
from sweeper.engines.base import Gang, Job, Shape
from sweeper.errors import RequestError

EIGHT = "\n".join(f"{i}, GPU-{i}a-{i}b, NVIDIA H100 80GB HBM3, 81559, 570.86.15" for i in range(8))
LOCAL = {"name": "local", "kind": "local", "device": "auto", "max_ranks": None}


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<END\n{EIGHT}\nEND\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(devices, "NVIDIA", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("gpus")
def test_gpus_by_count_name_and_memory() -> None:
    shape = machine.detect()
    assert (shape.device, shape.nodes, shape.gpus_per_node, shape.gpu) == ("cuda", 1, 8, "H100")
    assert shape.gpu_memory_gib == 79.6
    assert shape.launchable


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("visible", "ids"),
    [("2,5", ["2", "5"]), ("GPU-3a-3b", ["3"]), ("1,-1,2", ["1"]), ("", []), ("1,9,2", ["1"])],
)
def test_only_visible_gpus_count(visible: str, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.id for gpu in devices.accelerators()] == ids


@pytest.mark.usefixtures("gpus")
def test_what_an_attempt_is_computed_by() -> None:
    found = devices.machine("cuda", ["2", "5"])
    assert found == {"cpu": devices.processor(), "gpus": ["NVIDIA H100 80GB HBM3"] * 2, "driver": "570.86.15"}
    assert len(devices.machine("cuda")["gpus"]) == 8, "all that are visible"
    assert devices.machine("cpu") == {"cpu": devices.processor(), "gpus": [], "driver": None}


@pytest.mark.usefixtures("gpus")
def test_the_cpu_can_be_asked_for_on_a_machine_with_gpus() -> None:
    assert machine.detect(device="cpu").device == "cpu"


@pytest.mark.usefixtures("no_gpus")
def test_gpus_asked_for_and_not_there() -> None:
    with pytest.raises(RequestError) as raised:
        machine.detect(device="cuda")
    assert "no visible NVIDIA GPU" in str(raised.value)
    assert "cluster.device=cpu" in str(raised.value)


@pytest.mark.usefixtures("no_gpus")
@pytest.mark.parametrize(
    ("cores", "memory", "most", "ranks"), [(2, 23.0, None, 2), (64, 23.0, None, 5), (8, 1.0, None, 1), (8, 64.0, 3, 3)]
)
def test_as_many_cpu_ranks_as_have_a_core_and_memory(
    cores: int, memory: float, most: int | None, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(machine, "available_gib", lambda: memory)
    shape = machine.detect(max_ranks=most)
    assert (shape.device, shape.gpus_per_node) == ("cpu", ranks)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA GeForce RTX 4090", "GeForce RTX 4090"),
        ("NVIDIA GeForce RTX 3080 Ti", "GeForce RTX 3080 Ti"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("Something Else", "Something Else"),
    ],
)
def test_names_as_people_say_them(said: str, name: str) -> None:
    assert devices.gpu_name(said) == name


@pytest.mark.usefixtures("gpus")
def test_each_attempt_has_gpus_of_its_own_until_it_ended(tmp_path: Path) -> None:
    cluster = clusters.get(LOCAL, clusters.shape({**LOCAL, "max_ranks": 3}))
    assert isinstance(cluster, LocalCluster)

    def start(name: str, ranks: int) -> tuple[str, object]:
        folder = tmp_path / name
        folder.mkdir()
        gang = Gang(nodes=1, gpus_per_node=ranks)
        code = "echo $CUDA_VISIBLE_DEVICES > ids.partial; mv ids.partial ids; exec sleep 60"
        job = Job(("sh", "-c", code), {}, (), {}, gang, "sh", "metrics.jsonl", 1, ray=False)
        attempt = cluster.start(job, folder, (0,))
        if attempt is None:
            return "", None
        while not (folder / "ids").exists():
            assert attempt.poll() is None
        return (folder / "ids").read_text().strip(), attempt

    first, one = start("one", 2)
    second, _two = start("two", 1)
    assert (first, second) == ("0,1", "2")
    assert start("three", 1) == ("", None)
    one.kill()  # type: ignore[attr-defined]
    one.wait(10)  # type: ignore[attr-defined]
    assert start("four", 2)[0] == "0,1"
    for attempt in cluster._running:
        attempt.kill()
        attempt.wait(10)


def test_a_shape_can_be_planned_for_but_not_launched_on() -> None:
    config = {
        "name": "node_8gpu",
        "kind": "shape",
        "device": "cuda",
        "nodes": 1,
        "gpus_per_node": 8,
        "gpu": "H100",
        "gpu_memory_gib": 79.6,
        "max_ranks": None,
    }
    shape = clusters.shape(config)
    assert (shape.gpus, shape.gpu, shape.launchable) == (8, "H100", False)
    with pytest.raises(RequestError, match="planned for"):
        clusters.get(config, clusters.shape(config))


def test_an_unknown_kind_names_the_valid_ones() -> None:
    with pytest.raises(RequestError) as raised:
        clusters.shape({**LOCAL, "kind": "cloud"})
    assert "local, shape" in str(raised.value)


def test_another_system_than_linux_is_refused_with_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(RequestError) as caught:
        machine.detect()
    assert "darwin" in str(caught.value) and "WSL" in str(caught.value)


def test_a_jobs_files_are_written_without_secrets_and_scripts_can_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-0123456789")
    gangs.write_files({"in/command.sh": "echo sk-0123456789\n", "trainer.yaml": "a: 1\n"}, tmp_path)
    script = tmp_path / "in" / "command.sh"
    assert script.read_text() == "echo <SOME_API_KEY>\n" and script.stat().st_mode & 0o111
    assert not (tmp_path / "trainer.yaml").stat().st_mode & 0o111
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "trainer.yaml"]


def test_a_file_that_cannot_be_written_is_a_failed_launch(tmp_path: Path) -> None:
    (tmp_path / "trainer.yaml").mkdir()
    files = {"trainer.yaml": "a: 1"}
    job = Job(("true",), {}, (), files, Gang(1, 1, 1), python="python3", metrics="metrics.jsonl", total_steps=1)
    attempt = LocalCluster(Shape("here", "cpu", 1, 1)).start(job, tmp_path, (0,))
    assert attempt is not None
    ended = attempt.poll()
    assert ended is not None and ended.reason == "launch" and "trainer.yaml" in ended.detail
