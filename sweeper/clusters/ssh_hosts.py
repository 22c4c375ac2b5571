"""The hosts of `cluster.ssh`, as they are written in the config.

Guarantees: everything that is wrong with the list is found without asking anybody, and returned at once; a host has one
name, by which every message calls it; nothing that is left out is guessed: SSH's own configuration says it, or the
connection does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.config.nearest import nearest
from sweeper.errors import Problem, section_replaced

FIELDS = ("host", "name", "user", "port", "key", "address", "gpus")
SETTINGS = ("hosts", "user", "port", "key", "known_hosts", "config", "connect_s")
_WRITTEN = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^@:\s\[\]/,]+)(?::(?P<port>\d+))?")
_HOSTS = "cluster.ssh.hosts"
_EXAMPLE = (
    f"{_HOSTS}=[gpu1,gpu2] or {_HOSTS}=[{{host: 10.0.0.5, user: me, port: 2222, key: ~/.ssh/id_ed25519, gpus: 8}}]"
)


@dataclass(frozen=True, slots=True)
class Host:
    """One machine."""

    host: str
    """What is connected to: a name, an address or an alias of SSH's configuration."""
    name: str
    """What messages call it; no other host has it."""
    user: str | None = None
    """None: as SSH's configuration says, or this user."""
    port: int | None = None
    """None: as SSH's configuration says, or 22."""
    key: str | None = None
    """A private key's file; None: the agent's keys and those of ~/.ssh."""
    address: str | None = None
    """Where the other hosts reach it; None: where we do."""
    gpus: int | None = None
    """At most so many ranks of it are used; None: all it has."""

    @property
    def typed(self) -> str:
        """As after `ssh`, for the commands that messages show."""
        port = f"-p {self.port} " if self.port else ""
        key = f"-i {self.key} " if self.key else ""
        return f"{port}{key}{f'{self.user}@' if self.user else ''}{self.host}"


@dataclass(frozen=True, slots=True)
class Settings:
    """`cluster.ssh`."""

    hosts: tuple[Host, ...]
    known_hosts: tuple[Path, ...]
    """The files of host keys that are trusted; nothing else is."""
    config: Path | None
    """SSH's own configuration (aliases, jumps), if there is one."""
    connect_s: float
    """Seconds until a host that does not answer is taken for unreachable."""


def settings(ssh: Mapping[str, Any]) -> Settings:
    """The group, of which `problems` found nothing."""
    listed = ssh["known_hosts"] if isinstance(ssh["known_hosts"], list) else [ssh["known_hosts"]]
    config = Path(str(ssh["config"])).expanduser() if ssh.get("config") else None
    return Settings(
        tuple(_host(given, ssh) for given in ssh["hosts"]),
        tuple(Path(str(path)).expanduser() for path in listed),
        config if config and config.exists() else None,
        float(ssh["connect_s"]),
    )


def problems(ssh: Any) -> list[Problem]:
    """What is wrong with the group as it is written."""
    if not isinstance(ssh, Mapping):
        return [section_replaced("cluster.ssh", ssh, _EXAMPLE)]
    found = [_unknown(f"cluster.ssh.{key}", key, SETTINGS) for key in ssh if key not in SETTINGS]
    hosts = ssh.get("hosts")
    if not isinstance(hosts, list) or not hosts:
        what = "is no list" if hosts and not isinstance(hosts, list) else "there is no host to run on"
        fix = f"'{_HOSTS}=[{hosts}]'" if isinstance(hosts, str) and hosts else ""
        return [*found, Problem(f"{_HOSTS}={hosts}: {what}", valid=_EXAMPLE, fix=fix, key=_HOSTS)]
    for number, given in enumerate(hosts):
        found += _wrong_host(given, f"{_HOSTS}[{number}]")
    if not (pinned := ssh.get("known_hosts")) or not all(
        isinstance(path, str) and path for path in (pinned if isinstance(pinned, list) else [pinned])
    ):
        found.append(
            Problem(
                f"cluster.ssh.known_hosts={pinned}: host keys are always compared with those that are known",
                valid="a file as of ssh-keyscan, or a list of such files",
                fix="cluster.ssh.known_hosts=~/.ssh/known_hosts",
                key="cluster.ssh.known_hosts",
            )
        )
    if not (_number(ssh.get("connect_s")) and ssh["connect_s"] > 0):
        what, valid = f"cluster.ssh.connect_s={ssh.get('connect_s')}", "a number of seconds above 0"
        found.append(Problem(what, valid=valid, key="cluster.ssh.connect_s"))
    found += _wrong_values({k: ssh.get(k) for k in ("user", "port", "key")}, "cluster.ssh")
    return found or _twice([_host(given, ssh) for given in hosts])


def _host(given: Any, ssh: Mapping[str, Any]) -> Host:
    fields = _fields(given)
    # Relative to where the request is typed; `~` is this user's.
    key = fields.get("key") or ssh.get("key")
    port = fields.get("port") or ssh.get("port")
    return Host(
        host=str(fields["host"]),
        name=str(fields.get("name") or fields["host"]),
        user=fields.get("user") or ssh.get("user"),
        port=int(port) if port else None,
        key=str(Path(str(key)).expanduser()) if key else None,
        address=fields.get("address"),
        gpus=fields.get("gpus"),
    )


def _fields(given: Any) -> dict[str, Any]:
    """A host's fields; of a text, what can be read from it."""
    if isinstance(given, Mapping):
        return dict(given)
    match = _WRITTEN.fullmatch(str(given))
    if match is None:
        return {}
    return {
        "host": match["host"].strip("[]"),
        "user": match["user"],
        "port": int(match["port"]) if match["port"] else None,
    }


def _wrong_host(given: Any, key: str) -> Iterator[Problem]:
    fields = _fields(given)
    if isinstance(given, Mapping):
        yield from (_unknown(f"{key}.{name}", str(name), FIELDS) for name in given if name not in FIELDS)
    elif not isinstance(given, str) or not fields:
        yield Problem(f"{key}={given} is no host", valid="host, user@host, user@host:port, or a mapping", key=key)
        return
    host = fields.get("host")
    if not isinstance(host, str) or not host or host.startswith("-") or any(c.isspace() for c in host):
        yield Problem(f"{key}.host={host} is no host", valid="a name or an address", fix=_EXAMPLE, key=key)
    yield from _wrong_values(fields, key)


def _wrong_values(fields: Mapping[str, Any], key: str) -> Iterator[Problem]:
    for name in ("name", "user", "key", "address"):
        if fields.get(name) is not None and not (isinstance(fields[name], str) and fields[name].strip()):
            yield Problem(f"{key}.{name}={fields[name]}", valid="a text", key=f"{key}.{name}")
    port, gpus = fields.get("port"), fields.get("gpus")
    if port is not None and not (_whole(port) and 1 <= port <= 65_535):
        yield Problem(f"{key}.port={port}", valid="a whole number from 1 to 65535", key=f"{key}.port")
    if gpus is not None and not (_whole(gpus) and gpus >= 1):
        yield Problem(
            f"{key}.gpus={gpus}", valid="how many, a whole number from 1; or null: all it has", key=f"{key}.gpus"
        )
    if str(fields.get("address") or "").startswith("127.0.0.1"):
        yield Problem(
            f"{key}.address={fields['address']}: Ray puts another address in its place, on which nobody listens",
            valid="an address of that host that all hosts reach",
            key=f"{key}.address",
        )


def _twice(hosts: list[Host]) -> list[Problem]:
    """One machine listed as two would lend each rank twice as far as a gang can see."""
    found: list[Problem] = []
    for what, values in (
        ("name", [host.name for host in hosts]),
        ("host and port", [f"{host.host}:{host.port or ''}" for host in hosts]),
        ("address", [host.address for host in hosts if host.address]),
    ):
        found += [
            Problem(
                f"{_HOSTS}: {value.rstrip(':')} is the {what} of {values.count(value)} hosts",
                valid="each host once",
                key=_HOSTS,
            )
            for value in dict.fromkeys(v for v in values if values.count(v) > 1)
        ]
    return found[:1]


def _unknown(key: str, name: str, known: tuple[str, ...]) -> Problem:
    near = nearest(name, known)
    return Problem(f"{key} is unknown", valid=", ".join(known), fix=f"{near[0]}" if near else "", key=key)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
