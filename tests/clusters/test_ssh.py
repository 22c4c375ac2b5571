"""`cluster=ssh` beyond what every cluster must do (tests/contract): what is checked before the launch, gangs over two
hosts, hosts that are shared, a host that is lost. Real SSH servers on this machine; the trainers are fakes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ssh_cluster
import sshd

from sweeper import clusters
from sweeper.clusters import hosts, ssh, ssh_hosts
from sweeper.clusters.gang import devices, janitor
from sweeper.clusters.hosts import HostsAttempt, HostsCluster
from sweeper.config import schema
from sweeper.engines.base import Gang, Job
from sweeper.errors import RequestError

real_servers = pytest.mark.skipif(not sshd.installed(), reason="there is no sshd: apt-get install openssh-server")
SECTION: dict[str, Any] = {
    "hosts": ["gpu1", "gpu2"],
    "user": None,
    "port": None,
    "key": None,
    "known_hosts": "~/.ssh/known_hosts",
    "config": None,
    "connect_s": 15,
}
LONG = "print('up', flush=True); import time; time.sleep(300)"
JOB = Job(
    argv=(sys.executable, "-c", LONG),
    env={},
    inherit=(),
    files={},
    gang=Gang(2, 1),
    python=sys.executable,
    metrics="metrics.jsonl",
    total_steps=1,
    ray=False,
)


def job(code: str = LONG, **changes: Any) -> Job:
    return replace(JOB, argv=(sys.executable, "-c", code), **changes)


def wait_for(what: Callable[[], object], timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.fixture
def cluster() -> Iterator[HostsCluster]:
    made = ssh_cluster.make()
    yield made
    made.close()


def start(
    cluster: HostsCluster, folder: Path, what: Job | None = None, places: tuple[int, ...] = (0, 1)
) -> HostsAttempt:
    folder.mkdir(parents=True)
    attempt = cluster.start(
        what or job(gang=Gang(nodes=len(places), gpus_per_node=JOB.gang.gpus_per_node)), folder, places
    )
    assert isinstance(attempt, HostsAttempt), attempt and attempt.poll()
    return attempt


def guard_of(folder: Path, rank: int) -> int:
    """The pid of that node's guard: the first process that carries the node's marker."""
    about = json.loads((folder / "gang" / f"{rank}.json").read_text())
    marker = Path(about["temp_dir"]).name.removeprefix(janitor.PREFIX)
    return next(p for p in janitor.marked(marker) if b"guard.py" in Path(f"/proc/{p}/cmdline").read_bytes())


@contextlib.contextmanager
def training(folder: Path, places: tuple[int, ...]) -> Iterator[tuple[sshd.Sshd, HostsCluster, HostsAttempt]]:
    """An attempt in `folder`/a on those places of two servers, once its trainer is up."""
    with sshd.serving(folder / "sshd") as servers:
        group = ssh_cluster.config(servers.section())
        cluster = clusters.get(group, clusters.shape(group))
        assert isinstance(cluster, HostsCluster)
        attempt = start(cluster, folder / "a", places=places)
        log = folder / "a" / "log.txt"
        wait_for(lambda: log.exists() and "up" in log.read_text())
        yield servers, cluster, attempt
        cluster.close()


# -- the request


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hosts": []}, "there is no host"),
        ({"hosts": None}, "there is no host"),
        ({"hosts": ["gpu1", "gpu1"]}, "is the name of 2 hosts"),
        ({"hosts": [{"host": "a", "name": "x"}, {"host": "b", "name": "x"}]}, "is the name of 2 hosts"),
        ({"hosts": ["a b"]}, "is no host"),
        ({"hosts": ["-oProxyCommand=x"]}, "is no host"),
        ({"hosts": [3]}, "is no host"),
        ({"hosts": ["gpu1:99999"]}, "1 to 65535"),
        ({"hosts": [{"host": "a", "gpus": "8xH100"}]}, "a whole number from 1"),
        ({"hosts": [{"host": "a", "gpu": 8}]}, "gpus"),
        ({"hosts": [{"name": "a"}]}, "is no host"),
        ({"hosts": [{"host": "a", "address": "127.0.0.1"}]}, "Ray puts another address"),
        ({"known_hosts": None}, "always compared"),
        ({"known_hosts": []}, "always compared"),
        ({"connect_s": 0}, "above 0"),
        ({"port": "ssh"}, "1 to 65535"),
        ({"strict": False}, "cluster.ssh.strict is unknown"),
    ],
)
def test_a_wrong_list_of_hosts_is_found_without_asking_anybody(change: dict[str, Any], says: str) -> None:
    found = ssh.problems(ssh_cluster.config({**SECTION, **change}))
    assert found
    assert says in "\n".join(line for problem in found for line in problem.lines())


def test_hosts_are_written_as_after_ssh_or_as_mappings() -> None:
    listed = ["gpu1", "me@gpu2:2222", "[::1]:23", {"host": "10.0.0.5", "user": "you", "gpus": 4, "address": "10.1.0.5"}]
    section = {**SECTION, "hosts": listed, "user": "us", "port": 22, "key": "~/k"}
    assert ssh_hosts.problems(section) == []
    found = ssh_hosts.settings(section).hosts
    assert [(h.name, h.user, h.port) for h in found] == [
        ("gpu1", "us", 22), ("gpu2", "me", 2222), ("::1", "us", 23), ("10.0.0.5", "you", 22),
    ]  # fmt: skip
    assert found[3].gpus == 4 and found[3].address == "10.1.0.5"
    assert found[0].key == str(Path("~/k").expanduser())


def test_more_nodes_than_hosts() -> None:
    (problem,) = ssh.problems(ssh_cluster.config(SECTION, nodes=3))
    assert "cluster.nodes=3: cluster.ssh.hosts has 2" in problem.what
    assert problem.fix == "cluster.nodes=2"


def test_what_is_said_of_the_hosts_is_planned_for_without_reaching_them() -> None:
    group = ssh_cluster.config(SECTION, device="cuda", gpus_per_node=8, gpu="H100", gpu_memory_gib=79.6)
    shape = clusters.shape(group)
    assert (shape.nodes, shape.gpus_per_node, shape.gpu, shape.launchable) == (2, 8, "H100", True)


def test_null_nodes_is_a_good_value() -> None:
    assert [p for p in schema.check({"cluster": {**ssh_cluster.config(SECTION)}}) if p.key == "cluster.nodes"] == []


# -- the hosts


@real_servers
def test_every_host_that_cannot_be_used_is_named_before_anything_starts() -> None:
    section = ssh_cluster.servers()
    listed = [*section["hosts"], {"host": "127.0.0.8", "name": "down"}, {"host": "127.0.0.9", "name": "gone"}]
    with pytest.raises(RequestError) as refused:
        clusters.shape(ssh_cluster.config({**section, "hosts": listed}, gpu_memory_gib=None))
    assert [p.what.split()[1] for p in refused.value.problems] == ["down", "gone"]


@real_servers
def test_a_host_without_that_python() -> None:
    group = ssh_cluster.config(ssh_cluster.servers(), python="python9")
    with pytest.raises(RequestError) as refused:
        clusters.get(group, clusters.shape(group))
    text = str(refused.value)
    assert "host host0 cannot run cluster.python=python9" in text and "host host1" in text
    assert "apt-get install python3" in text


@real_servers
def test_gpus_that_a_host_has_not() -> None:
    group = ssh_cluster.config(ssh_cluster.servers(), device="cuda", gpus_per_node=8, gpu_memory_gib=80)
    with pytest.raises(RequestError, match="host host0 has 0 visible GPUs, asked for are 8"):
        clusters.get(group, clusters.shape(group))


@real_servers
def test_more_cpu_ranks_than_a_host_has_cores() -> None:
    most = devices.cores()
    group = ssh_cluster.config(ssh_cluster.servers(), gpus_per_node=most + 1)
    with pytest.raises(RequestError) as refused:
        clusters.get(group, clusters.shape(group))
    assert [p.what for p in refused.value.problems] == [
        f"host host{n} has {most} cores, and cluster.gpus_per_node={most + 1}: a CPU rank takes one" for n in (0, 1)
    ]
    assert refused.value.problems[0].fix == f"cluster.gpus_per_node={most}"
    planned = ssh_cluster.config(ssh_cluster.servers(), gpus_per_node=1, max_ranks=most + 1)
    with pytest.raises(RequestError, match=f"cluster.max_ranks={most + 1}: a CPU rank"):
        clusters.get(planned, clusters.shape(planned))
    asked = {**planned, "gpu_memory_gib": None}  # where the hosts are asked, it is a cap, as on one machine
    assert clusters.shape(asked).gpus_per_node == most


@real_servers
def test_an_engine_that_a_host_has_not(cluster: HostsCluster, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    with pytest.raises(RequestError, match="host host0 has no /no/python") as refused:
        cluster.start(job(python="/no/python"), folder, (0, 1))
    assert "engine.python=" in str(refused.value)
    assert list(folder.iterdir()) == [], "nothing was started"


@real_servers
def test_a_folder_that_a_host_does_not_see(
    cluster: HostsCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake host: this machine shares all of its folders, so one that does not answer with what we wrote stands in."""
    folder = tmp_path / "a"
    folder.mkdir()
    asked = hosts.Hosts.ask_each

    def blind(self: Any, places: Any, what: Any) -> Any:
        said = asked(self, places, what)
        return {p: {**a, "read": None} if p == 1 and isinstance(a, dict) else a for p, a in said.items()}

    monkeypatch.setattr(hosts.Hosts, "ask_each", blind)
    with pytest.raises(RequestError, match="host host1 does not see") as refused:
        cluster.start(job(), folder, (0, 1))
    assert "host0" not in str(refused.value)
    assert list(folder.iterdir()) == []


@real_servers
def test_a_gang_of_both_hosts_trains_once_and_frees_both(cluster: HostsCluster, tmp_path: Path) -> None:
    attempt = start(cluster, tmp_path / "a", job("print('trained', flush=True)"))
    assert cluster.free() == (1, 1)
    ended = attempt.wait(240)
    assert (ended.code, ended.reason) == (0, "exit")
    assert (tmp_path / "a" / "log.txt").read_text().count("trained") == 1
    wait_for(lambda: cluster.free() == (2, 2))


@real_servers
def test_two_gangs_at_once_and_a_third_finds_no_room(cluster: HostsCluster, tmp_path: Path) -> None:
    first, second = start(cluster, tmp_path / "a"), start(cluster, tmp_path / "b")
    assert cluster.free() == (0, 0)
    other = ssh_cluster.make()  # another sweep
    wait_for(lambda: other.free() == (0, 0))
    (tmp_path / "c").mkdir()
    assert other.start(job(), tmp_path / "c", (0, 1)) is None
    assert list((tmp_path / "c").iterdir()) in ([], [tmp_path / "c" / "log.txt"])
    other.close()
    first.kill()
    second.stop()
    assert {first.wait(120).reason, second.wait(120).reason} == {"stopped"}
    wait_for(lambda: cluster.free() == (2, 2))


@real_servers
def test_a_guard_that_is_killed_on_one_host_ends_the_attempt_on_both(cluster: HostsCluster, tmp_path: Path) -> None:
    attempt = start(cluster, tmp_path / "a")
    wait_for((tmp_path / "a" / "log.txt").exists)
    wait_for(lambda: "up" in (tmp_path / "a" / "log.txt").read_text())
    os.kill(guard_of(tmp_path / "a", 1), signal.SIGKILL)
    ended = attempt.wait(240)
    assert ended.reason == "lost"
    assert "host1" in ended.detail
    for rank in (0, 1):
        about = json.loads((tmp_path / "a" / "gang" / f"{rank}.json").read_text())
        assert janitor.marked(Path(about["temp_dir"]).name.removeprefix(janitor.PREFIX)) == []
    wait_for(lambda: cluster.free() == (2, 2))


@real_servers
def test_a_host_that_cannot_be_reached_for_a_while_costs_nothing(tmp_path: Path) -> None:
    with sshd.serving(tmp_path / "sshd") as servers:
        group = ssh_cluster.config(servers.section())
        cluster = clusters.get(group, clusters.shape(group))
        assert isinstance(cluster, HostsCluster)
        attempt = start(cluster, tmp_path / "a")
        servers.stop("127.0.0.3")
        wait_for(lambda: "host1" in attempt.silent())
        assert attempt.poll() is None, "it runs on, for all that is known"
        assert cluster.free()[1] == 0
        servers.start("127.0.0.3")
        wait_for(lambda: cluster.free() == (1, 1))
        wait_for(lambda: not attempt.silent())
        attempt.kill()
        assert attempt.wait(120).reason == "stopped"
        cluster.close()


@real_servers
def test_a_host_that_stays_away_is_given_up_once_the_rest_of_the_gang_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "ALONE_S", 1.0)
    with training(tmp_path, places=(0, 1)) as (servers, cluster, attempt):
        servers.stop("127.0.0.3")
        os.kill(guard_of(tmp_path / "a", 1), signal.SIGKILL)  # the machine is gone with all that ran on it
        ended = attempt.wait(240)
        assert ended.reason == "lost"
        assert "host1" in ended.detail
        assert cluster.free()[1] == 0, "its ranks are not offered until it answers"
        servers.start("127.0.0.3")
        wait_for(lambda: cluster.free() == (2, 2))


def test_the_only_host_of_a_trial_is_lost_as_soon_as_its_beat_has_stopped_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "LOST_S", 1e9)
    with training(tmp_path, places=(1,)) as (servers, _, attempt):
        servers.stop("127.0.0.3")
        until = time.monotonic() + hosts.ALONE_S + 4
        while time.monotonic() < until:
            assert attempt.poll() is None, "only cut off from us: it may train on"
            time.sleep(0.2)
        os.kill(guard_of(tmp_path / "a", 0), signal.SIGKILL)  # the machine is gone with all that ran on it
        ended = attempt.wait(240)
        assert ended.reason == "lost" and "host1" in ended.detail
        servers.start("127.0.0.3")


def test_what_is_given_up_on_a_host_that_is_only_cut_off_ends_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "LOST_S", 1.0)
    with training(tmp_path, places=(1,)) as (servers, _, attempt):
        guard = guard_of(tmp_path / "a", 0)
        servers.stop("127.0.0.3")
        assert attempt.wait(240).reason == "lost"
        wait_for(lambda: not Path(f"/proc/{guard}").exists())  # nobody could tell it but the store
        servers.start("127.0.0.3")


def test_no_secret_is_in_what_a_later_controller_reads(tmp_path: Path) -> None:
    plain = ssh.plain({**SECTION, "key": str(tmp_path / "key")})
    assert set(plain) == {"hosts", "known_hosts", "config", "connect_s"}
    assert ssh_hosts.settings({**SECTION, **plain}).hosts == ssh_hosts.settings(
        {**SECTION, "key": str(tmp_path / "key")}
    ).hosts  # fmt: skip
