"""What is reached over SSH, by real servers: who is let in, and what a failure says."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sshd

from sweeper.clusters import ssh_hosts
from sweeper.clusters.ssh_connections import Connections
from sweeper.errors import Problem

pytestmark = pytest.mark.skipif(not sshd.installed(), reason="there is no sshd: apt-get install openssh-server")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
    with sshd.serving(tmp_path_factory.mktemp("sshd")) as serving:
        yield serving


@pytest.fixture
def connect() -> Iterator[Any]:
    opened = []

    def to(section: dict[str, Any]) -> Connections:
        assert ssh_hosts.problems(section) == []
        opened.append(Connections(ssh_hosts.settings(section)))
        return opened[-1]

    yield to
    for connections in opened:
        connections.close()


def said(connections: Connections, place: int = 0) -> str:
    found = connections.addresses()[place]
    assert isinstance(found, Problem), found
    return "\n".join(found.lines())


def test_commands_of_all_hosts_run_side_by_side_over_one_connection_each(servers: sshd.Sshd, connect: Any) -> None:
    connections = connect(servers.section())
    assert connections.addresses() == ["127.0.0.2", "127.0.0.3"]
    ask = ["sh", "-c", 'read line; echo "$line $SSH_CONNECTION it\'s"; exit 3']
    for _ in range(20):
        found = connections.run({0: ask, 1: ask}, {0: "first\n", 1: "second\n"}, 10)
    words = [found[n].out.split() for n in (0, 1)]
    assert [(w[0], w[3], w[5]) for w in words] == [("first", "127.0.0.2", "it's"), ("second", "127.0.0.3", "it's")]
    assert [found[n].code for n in (0, 1)] == [3, 3]
    again = connections.run({0: ["sh", "-c", "echo $SSH_CONNECTION"]}, {}, 10)[0].out.split()
    assert again == words[0][1:5], "the same connection"


def test_many_commands_at_once_are_more_than_a_connection_may_have(servers: sshd.Sshd, connect: Any) -> None:
    connections = connect(servers.section())
    futures = [connections.submit({0: ["sh", "-c", f"sleep 0.1; echo {n}"]}, {}, 30) for n in range(25)]
    assert [f.result()[0].out.strip() for f in futures] == [str(n) for n in range(25)]


def test_a_command_that_does_not_end_is_given_up(servers: sshd.Sshd, connect: Any) -> None:
    answer = connect(servers.section()).run({1: ["sleep", "60"]}, {}, 0.3)[1]
    assert answer.code is None
    assert "host host1" in answer.err
    assert "sleep 60" in answer.err


def test_a_host_that_refuses(servers: sshd.Sshd, connect: Any) -> None:
    section = servers.section()
    section["hosts"][1]["host"] = "127.0.0.9"
    connections = connect(section)
    text = said(connections, 1)
    assert "host host1 refuses the connection" in text
    assert f"ssh -p {servers.port} -i {servers.key} 127.0.0.9 true" in text
    found = connections.run({0: ["true"], 1: ["true"]}, {}, 5)
    assert found[0].code == 0, "the other one answers all the same"
    assert found[1].code is None
    assert "refuses the connection" in found[1].err


def test_a_wrong_key(servers: sshd.Sshd, connect: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    text = said(connect({**servers.section(), "key": str(other)}))
    assert "host host0 refuses us" in text
    assert f"ssh-copy-id -p {servers.port} -i {other} 127.0.0.2" in text


def test_a_key_that_is_not_there_and_one_with_a_passphrase(servers: sshd.Sshd, connect: Any, tmp_path: Path) -> None:
    assert "cannot be read" in said(connect({**servers.section(), "key": str(tmp_path / "none")}))
    locked = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(locked)], check=True)
    text = said(connect({**servers.section(), "key": str(locked)}))
    assert "cannot be used" in text
    assert f"ssh-add {locked}" in text


def test_a_host_whose_key_is_not_known_is_not_let_in(servers: sshd.Sshd, connect: Any, tmp_path: Path) -> None:
    for known in (tmp_path / "none", tmp_path / "empty"):
        if known.name == "empty":
            known.touch()
        connections = connect({**servers.section(), "known_hosts": str(known)})
        text = said(connections)
        assert "host host0 is not known" in text
        assert f"ssh-keyscan -p {servers.port} 127.0.0.2 >> {known}" in text
        assert connections.run({0: ["true"]}, {}, 5)[0].code is None


@pytest.mark.parametrize("known", ["none", "empty"])
def test_a_host_that_is_not_there_is_not_one_whose_key_is_unknown(known: str, connect: Any, tmp_path: Path) -> None:
    if known == "empty":
        (tmp_path / known).touch()
    section = {"hosts": ["nosuchhost.invalid", "127.0.0.9"], "port": 1, "known_hosts": str(tmp_path / known)}
    connections = connect({**section, "user": None, "key": None, "config": None, "connect_s": 20})
    assert "host nosuchhost.invalid is a name that cannot be resolved" in said(connections)
    assert "host 127.0.0.9 refuses the connection" in said(connections, 1)


def test_without_the_file_that_is_named_the_one_in_the_home_folder_is_not_used(
    servers: sshd.Sshd, connect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = servers.section()
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "known_hosts").write_text(Path(str(section["known_hosts"])).read_text())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "is not known" in said(connect({**section, "known_hosts": str(tmp_path / "none")}))


def test_a_host_that_has_another_key_is_not_let_in(servers: sshd.Sshd, connect: Any, tmp_path: Path) -> None:
    first, second = (servers.folder / f"host-{a}.pub" for a in servers.addresses)
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.2]:{servers.port} {second.read_text()}[127.0.0.3]:{servers.port} {first.read_text()}")
    text = said(connect({**servers.section(), "known_hosts": str(known)}))
    assert "does not have the host key" in text
    assert f"ssh-keygen -R '[127.0.0.2]:{servers.port}' -f {known}" in text


def test_configuration_of_ssh_gives_aliases_and_cannot_switch_the_check_off(
    servers: sshd.Sshd, connect: Any, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text(
        f"Host one\n  HostName 127.0.0.2\n  Port {servers.port}\n  StrictHostKeyChecking no\n"
        f"  UserKnownHostsFile /dev/null\n  IdentityFile {servers.key}\n"
    )
    section = {**servers.section(), "hosts": ["one"], "port": None, "key": None, "config": str(config)}
    assert connect(section).addresses() == ["127.0.0.2"]
    assert "is not known" in said(connect({**section, "known_hosts": str(tmp_path / "none")}))


def test_a_connection_that_broke_is_made_again(tmp_path: Path, connect: Any) -> None:
    with sshd.serving(tmp_path / "sshd", ["127.0.0.2"]) as servers:
        connections = connect(servers.section())
        assert connections.run({0: ["true"]}, {}, 5)[0].code == 0
        servers.stop("127.0.0.2")
        answer = connections.run({0: ["true"]}, {}, 5)[0]
        assert answer.code is None
        assert "host host0" in answer.err
        servers.start("127.0.0.2")
        deadline = time.monotonic() + 30
        while connections.run({0: ["true"]}, {}, 5)[0].code != 0:
            assert time.monotonic() < deadline
            time.sleep(0.1)
