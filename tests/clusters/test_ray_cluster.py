"""`cluster=ray` over two real raylets; the trainers are fakes. What every cluster must do is in tests/contract."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray_cluster

from sweeper import clusters
from sweeper.clusters import ray as kind
from sweeper.engines.base import Gang, Job
from sweeper.errors import RequestError

ROOT = Path(__file__).resolve().parents[2]
SLEEPS = "print('up', flush=True); import time; time.sleep(300)"
SHAPES = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests/support")!r}]
import ray_cluster
from sweeper import clusters
from sweeper.errors import RequestError
try: clusters.shape(ray_cluster.config(sys.argv[1]))
except RequestError as error: print(error)
"""
"""Says why that address is refused, in a process that is no driver yet."""


@pytest.mark.parametrize("address", ["", "head", "head:", "head:port", None])
def test_an_address_that_is_none_is_named(address: str | None) -> None:
    (problem,) = kind.problems(ray_cluster.config("x", ray={"address": address}))
    assert "host:port" in problem.valid


def test_the_number_of_nodes_must_be_given() -> None:
    (problem,) = kind.problems(ray_cluster.config("auto", nodes=None))
    assert "cluster.nodes is not given" in problem.what


def test_an_address_where_nobody_answers_is_refused_at_once() -> None:
    with pytest.raises(RequestError, match=r"no Ray cluster answers at 127\.0\.0\.4:1"):
        clusters.shape(ray_cluster.config("127.0.0.4:1"))


@pytest.fixture(scope="module")
def raylets() -> Iterator[ray_cluster.Raylets]:
    with ray_cluster.Raylets(2, 2) as running:
        running.connect()
        yield running


@pytest.fixture
def cluster(raylets: ray_cluster.Raylets) -> Any:
    found = ray_cluster.config(raylets.address)
    return clusters.get(found, clusters.shape(found))


def job(code: str = SLEEPS, nodes: int = 2) -> Job:
    return Job((sys.executable, "-c", code), {}, (), {}, Gang(nodes, 1), sys.executable, "metrics.jsonl", 1, ray=False)


def wait_for(what: Callable[[], object], timeout_s: float = 100) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def up(cluster: Any, folder: Path) -> Any:
    folder.mkdir(parents=True)
    attempt = cluster.start(job(), folder, (0, 1))
    assert attempt is not None
    log = folder / "log.txt"
    wait_for(lambda: log.exists() and "up" in log.read_text())
    return attempt


@pytest.mark.real
def test_a_wrong_token_is_refused(raylets: ray_cluster.Raylets) -> None:
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
    asked = [sys.executable, "-c", SHAPES, raylets.address]
    done = subprocess.run(asked, env=env, capture_output=True, text=True, check=True)
    assert "does not let this program in" in done.stdout
    assert "RAY_AUTH_TOKEN" in done.stdout
    assert raylets.token not in done.stdout
    assert done.stderr == "", "what Ray itself says of it"


def test_auto_takes_the_cluster_that_this_machine_is_a_node_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake raylet: only its command line."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    fake = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", "--gcs-address=127.0.0.1:1"])
    try:
        done = subprocess.run([sys.executable, "-c", SHAPES, "auto"], capture_output=True, text=True, check=True)
    finally:
        fake.kill()
        fake.wait()
    assert "no Ray cluster answers at 127.0.0.1:1" in done.stdout


@pytest.mark.real
def test_auto_does_not_take_a_trials_own_ray_for_a_cluster(
    raylets: ray_cluster.Raylets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the fixture run in temp-dirs like those of trials."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = subprocess.run([sys.executable, "-c", SHAPES, "auto"], capture_output=True, text=True, check=True)
    assert "this machine is a node of no Ray cluster" in done.stdout
    assert raylets.address not in done.stdout


@pytest.mark.real
@pytest.mark.parametrize("asked", [{"nodes": 3}, {"gpus_per_node": 3}, {"device": "cuda", "gpus_per_node": 8}])
def test_more_than_there_is_is_refused(raylets: ray_cluster.Raylets, asked: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="the Ray cluster at"):
        clusters.shape(ray_cluster.config(raylets.address, **asked))


@pytest.mark.real
def test_a_gang_is_reserved_on_both_nodes_and_given_back(cluster: Any, tmp_path: Path) -> None:
    assert cluster.free() == (2, 2)
    attempt = up(cluster, tmp_path / "a")
    wait_for(lambda: cluster.free() == (1, 1))
    attempt.stop()
    assert attempt.wait(100).reason == "stopped"
    assert cluster.free() == (2, 2)
    assert json.loads((tmp_path / "a" / "exit.json").read_text())["reason"] == "stopped"


@pytest.mark.real
@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_of_a_gang_that_dies_is_named_and_the_gang_is_free(cluster: Any, tmp_path: Path, rank: int) -> None:
    from sweeper.clusters.gang import janitor

    attempt = up(cluster, tmp_path / "a")
    den = Path(json.loads((tmp_path / "a" / "gang" / f"{rank}.json").read_text())["temp_dir"])
    for pid in janitor.marked(den.name.removeprefix(janitor.PREFIX)):
        os.kill(pid, signal.SIGKILL)
    ended = attempt.wait(100)
    assert ended.reason == "lost"
    assert f"127.0.0.{2 + rank}" in ended.detail or "first node" in ended.detail
    assert cluster.free() == (2, 2)
    assert not den.exists()


@pytest.mark.real
def test_a_store_that_a_node_does_not_see_and_an_interpreter_that_it_lacks_are_refused_with_its_name(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake blindness: the nodes of this cluster are one machine, so they are asked for a file that is not there."""
    monkeypatch.setattr(kind, "LOOK", kind.LOOK.replace("sys.argv[1:]", "sys.argv[1] + '-', sys.argv[2]"))
    (tmp_path / "a").mkdir()
    with pytest.raises(RequestError) as refused:
        cluster.start(replace(job(), python="/no/such/python"), tmp_path / "a", (0, 1))
    said = str(refused.value)
    for address in ("127.0.0.2", "127.0.0.3"):
        assert f"({address}) does not see {tmp_path}" in said
        assert f"({address}) has no /no/such/python" in said
    assert cluster.free() == (2, 2)
    assert not list(tmp_path.glob(".shared-*"))


@pytest.mark.real
def test_a_command_runs_on_every_node(cluster: Any) -> None:
    answers = cluster.each(["{python}", "-c", "print(input())"], "said\n", 60)
    assert [(a.code, a.out) for a in answers] == [(0, "said\n")] * 2
    assert ["127.0.0.2" in answers[0].node, "127.0.0.3" in answers[1].node] == [True, True]


@pytest.mark.real
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_raylet_that_dies_or_hangs_ends_the_gang_with_its_name(tmp_path: Path, how: signal.Signals) -> None:
    """A cluster of its own, which is not whole afterwards."""
    with ray_cluster.Raylets(2, 2) as raylets:
        raylets.connect()
        found = ray_cluster.config(raylets.address)
        cluster = clusters.get(found, clusters.shape(found))
        attempt = up(cluster, tmp_path / "a")
        stopped = [raylets.raylet(1)] if how == signal.SIGKILL else raylets.processes(1)
        began = time.monotonic()
        for pid in stopped:
            os.kill(pid, how)
        try:
            if how == signal.SIGSTOP:
                wait_for(lambda: attempt.poll() or "127.0.0.3" in attempt.silent())
                print(f"said after {time.monotonic() - began:.1f} s: {attempt.silent()}")
            ended = attempt.wait(100)
            print(f"over after {time.monotonic() - began:.1f} s")
            assert ended.reason == "lost"
            assert "127.0.0.3" in ended.detail
            assert cluster.free()[0] == 2
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
