"""Hosts whose connection is lost at a bad moment (clusters/hosts.py): a fake connection, and what it starts is real."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest
from processes import left_over

from sweeper.clusters import gangs, hosts
from sweeper.clusters.base import Answer
from sweeper.clusters.here import Here
from sweeper.clusters.hosts import Hosts, HostsCluster
from sweeper.engines.base import Gang, Job, Shape


class CutOff(Here):
    """A fake: this machine as a host whose connection is lost by the command that starts an attempt there."""

    away = False

    def submit(
        self, commands: Mapping[int, Sequence[str]], stdin: Mapping[int, str], timeout_s: float
    ) -> Future[dict[int, Answer]]:
        if not self.away:
            done = super().submit(commands, stdin, timeout_s)
            if not any("start" in words for words in commands.values()):
                return done
            done.result()
            self.away = True
        lost: Future[dict[int, Answer]] = Future()
        lost.set_result({p: Answer(self.names[p], None, err=f"host {self.names[p]}: it was lost") for p in commands})
        return lost


class Hangs(Here):
    """A fake: two hosts, of which the second one never answers."""

    def __init__(self) -> None:
        super().__init__()
        self.names = ("good", "hangs")

    def submit(
        self, commands: Mapping[int, Sequence[str]], stdin: Mapping[int, str], timeout_s: float
    ) -> Future[dict[int, Answer]]:
        return Future() if 1 in commands else super().submit(commands, stdin, timeout_s)


@pytest.fixture
def reach() -> Iterator[CutOff]:
    made = CutOff()
    yield made
    made.close()


@pytest.fixture
def cluster(reach: CutOff, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostsCluster]:
    monkeypatch.setattr(hosts, "GONE_S", 5.0)
    asked = Hosts(reach, python=sys.executable)
    asked.ids = [["cpu-0"]]
    shape = Shape(name="one", device="cpu", nodes=1, gpus_per_node=1, gpu_memory_gib=4)
    made = HostsCluster(shape, asked, ["127.0.0.2"], limits=[1], join_s=60, kind="ssh", started={})
    yield made
    made.close()


def wait_for(what: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def start(cluster: HostsCluster, folder: Path) -> None:
    """An attempt that would train on; its start is not answered."""
    job = Job(
        argv=(sys.executable, "-c", "import time; time.sleep(300)"),
        env={},
        inherit=(),
        files={},
        gang=Gang(1, 1),
        python=sys.executable,
        metrics="metrics.jsonl",
        total_steps=1,
        ray=False,
    )
    folder.mkdir(parents=True)
    attempt = cluster.start(job, folder, (0,))
    ended = attempt and attempt.poll()
    assert ended is not None and ended.reason == "launch"
    assert "it was lost" in ended.detail


def test_what_started_on_a_host_that_is_cut_off_then_is_ended_through_the_store(
    cluster: HostsCluster, tmp_path: Path
) -> None:
    start(cluster, tmp_path / "a")
    wait_for(lambda: left_over(tmp_path) == [])


def test_what_is_cut_off_from_the_store_as_well_is_ended_when_its_host_is_back(
    cluster: HostsCluster, reach: CutOff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gangs, "ask_by_file", lambda folder, what: None)  # a fake store that nobody there sees
    start(cluster, tmp_path / "a")
    assert left_over(tmp_path) != []
    reach.away = False
    wait_for(lambda: left_over(tmp_path) == [])


def test_a_host_that_hangs_holds_up_the_others_no_longer_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "ANSWER_S", 0.5)
    asked = Hosts(Hangs(), python=sys.executable)
    asked.ids = [["cpu-0"], ["cpu-0"]]
    began = time.monotonic()
    wait_for(lambda: asked.free() == [1, 0], hosts.ASK_S)
    assert time.monotonic() - began < hosts.ASK_S / 2
    asked.close()
