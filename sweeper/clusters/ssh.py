"""`cluster=ssh`: machines that are reached by SSH and share a filesystem.

Guarantees: what a host lacks is found before anything is launched, for all hosts at once, with the host's name and the
command to run; see `hosts` for what holds of attempts, `ssh_connections` for who is let in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sweeper.clusters import docker, ssh_hosts
from sweeper.clusters import hosts as on_hosts
from sweeper.clusters.base import Attempt
from sweeper.clusters.hosts import Hosts, HostsAttempt, HostsCluster
from sweeper.clusters.machine import GIB_PER_CPU_RANK
from sweeper.engines.base import Shape
from sweeper.errors import Problem, RequestError, SweeperError

OLDEST = (3, 9)
"""The Python that the gang's scripts need."""
_HOSTS = "cluster.ssh.hosts"
_attached: dict[str, Hosts] = {}
"""Connections for attempts that are attached without a cluster, by what their attempt.json says."""


def problems(config: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the group, without asking a host."""
    found = docker.problems(config.get("docker"))
    if wrong := ssh_hosts.problems(config.get("ssh")):
        return [*wrong, *found]
    count = len(config["ssh"]["hosts"])
    if config["nodes"] is not None and config["nodes"] > count:
        found.append(
            Problem(
                f"cluster.nodes={config['nodes']}: {_HOSTS} has {count}",
                valid=f"1 to {count}",
                fix=f"cluster.nodes={count}",
                key="cluster.nodes",
            )
        )
    return found


def shape(config: Mapping[str, Any]) -> Shape:
    """What the hosts have; the least of them, where they differ. Asks them unless the config says all of it.

    Raises:
        RequestError: A host cannot be used, or has less than the config says.
    """
    settings = ssh_hosts.settings(config["ssh"])
    wanted, most = config["gpus_per_node"], config["max_ranks"]
    if _said(config):
        per_host = min([h.gpus or most or wanted for h in settings.hosts] + [most or wanted])
        return _shape(config, config["device"], len(settings.hosts), per_host, config["gpu"] or "", 0.0)
    hosts, _ = _connected(settings, str(config["python"]))
    try:
        said = _about(hosts, str(config["device"]))
    finally:
        hosts.close()
    device = _device(config, said)
    limits = _limits(config, settings, said, device)
    if device == "cuda":
        memory = min(float(about["gpu_memory_gib"]) for about in said)
        return _shape(config, device, len(said), min(limits), str(said[0]["gpu"]), memory)
    return _shape(config, device, len(said), min(limits), "", min(a["available_gib"] for a in said) / min(limits))


def open(config: Mapping[str, Any], shape: Shape) -> HostsCluster:
    """Connect to all hosts and check them.

    Raises:
        RequestError: Some cannot be used; all of them are named.
    """
    settings = ssh_hosts.settings(config["ssh"])
    hosts, addresses = _connected(settings, str(config["python"]))
    try:
        said = _about(hosts, shape.device)
        limits = _limits(config, settings, said, shape.device)
        same = [Problem(
            f"{_HOSTS}: {address} is the address of several hosts", valid="each host once", key=_HOSTS
        ) for address in dict.fromkeys(addresses) if addresses.count(address) > 1]  # fmt: skip
        if same:
            raise RequestError(same)
    except SweeperError:
        hosts.close()
        raise
    hosts.ids = [on_hosts.ids(about, shape.device, limit) for about, limit in zip(said, limits, strict=True)]
    return HostsCluster(
        shape,
        hosts,
        addresses,
        limits=limits,
        join_s=float(config["join_s"]),
        kind="ssh",
        started={"ssh": plain(config["ssh"]), "python": str(config["python"])},
        containers=config.get("docker"),
        users=[about["user"] for about in said],
    )


def attach(folder: Path, started: Mapping[str, Any]) -> Attempt | None:
    """The attempt of that folder, by what its attempt.json says of the hosts.

    Raises:
        SweeperError: The record cannot be read. A host that cannot be reached raises nothing: it may answer later.
    """
    try:
        settings = ssh_hosts.settings(started["ssh"])
        places, ranks, python = [int(p) for p in started["places"]], int(started["ranks"]), str(started["python"])
    except (KeyError, TypeError, ValueError) as error:
        raise SweeperError(
            f"{folder}/attempt.json lacks {error}: whether the attempt still runs is not known"
        ) from error
    key = repr((settings, python))
    if key not in _attached:
        _attached[key] = Hosts(_connections(settings), python=python)
    return HostsAttempt(folder, _attached[key], places, ranks)


def _connections(settings: ssh_hosts.Settings) -> Any:
    from sweeper.clusters.ssh_connections import Connections  # takes a quarter of a second to import

    return Connections(settings)


def connected(config: Mapping[str, Any]) -> tuple[Hosts, list[str], list[dict[str, Any]]]:
    """The hosts of a `cluster` group, their addresses and what each has, for what is run on them besides attempts.

    Raises:
        RequestError: The group is wrong or a host cannot be used.
    """
    if wrong := problems(config):
        raise RequestError(wrong)
    hosts, addresses = _connected(ssh_hosts.settings(config["ssh"]), str(config["python"]))
    try:
        return hosts, addresses, _about(hosts, str(config["device"]))
    except SweeperError:
        hosts.close()
        raise


@dataclass(frozen=True, slots=True)
class Partly:
    """Hosts of which some do not answer."""

    hosts: Hosts
    """All of them, to be asked."""
    shape: Shape | None
    """What those that answer have, with as many ranks as the config asks for, be there so many or not; None: nobody
    answers, and the config does not say it."""
    wrong: tuple[Problem, ...]
    """Why those that answer cannot be used as the config asks."""


def partly(config: Mapping[str, Any]) -> Partly | None:
    """The hosts of a group of which `problems` found nothing. None: all of them answer."""
    settings, hosts = ssh_hosts.settings(config["ssh"]), reach(config["ssh"], str(config["python"]))
    answers = hosts.ask_each(range(len(settings.hosts)), {"about": str(config["device"])})
    there = tuple(settings.hosts[place] for place, answer in answers.items() if not isinstance(answer, Problem))
    said = [answer["about"] for answer in answers.values() if not isinstance(answer, Problem)]
    if len(said) == len(answers):
        hosts.close()
        return None
    if not said:
        return Partly(hosts, shape(config) if _said(config) else None, ())
    python = str(config["python"])
    wrong = [old for host, about in zip(there, said, strict=True) if (old := _too_old(host.name, python, about))]
    device, most = "cuda", 1
    try:
        device = _device(config, said)
        most = min(_limits(config, replace(settings, hosts=there), said, device))
    except RequestError as error:
        wrong += error.problems
    if device == "cuda":
        memory = min((float(about["gpu_memory_gib"]) for about in said if about["ids"]), default=0.0)
        gpu = next((str(about["gpu"]) for about in said if about["ids"]), "")
        found = _shape(config, device, len(answers), config["gpus_per_node"] or most, gpu, memory)
    else:
        memory = min(float(about["available_gib"]) for about in said) / most
        found = _shape(config, device, len(answers), config["gpus_per_node"] or 1, "", memory)
    return Partly(hosts, found, tuple(wrong))


def _said(config: Mapping[str, Any]) -> bool:
    """Whether the config says all that a plan needs of the hosts."""
    return bool(config["device"] in ("cpu", "cuda") and config["gpus_per_node"] and config["gpu_memory_gib"])


def reach(ssh: Mapping[str, Any], python: str) -> Hosts:
    """The hosts of a group that `plain` made, which are not asked anything yet."""
    return Hosts(_connections(ssh_hosts.settings(ssh)), python=python)


def _connected(settings: ssh_hosts.Settings, python: str) -> tuple[Hosts, list[str]]:
    connections = _connections(settings)
    found = connections.addresses()
    if wrong := [item for item in found if isinstance(item, Problem)]:
        connections.close()
        raise RequestError(wrong)
    return Hosts(connections, python=python), found


def _about(hosts: Hosts, device: str) -> list[dict[str, Any]]:
    """What each host says of itself. RequestError for those that cannot, or whose Python is too old."""
    answers = hosts.ask_each(range(len(hosts.reach.names)), {"about": device})
    wrong, said = [], []
    for place, answer in answers.items():
        if isinstance(answer, Problem):
            wrong.append(answer)
        elif old := _too_old(hosts.reach.names[place], hosts.python, answer["about"]):
            wrong.append(old)
        else:
            said.append(answer["about"])
    if wrong:
        raise RequestError(wrong)
    return said


def _too_old(name: str, python: str, about: Mapping[str, Any]) -> Problem | None:
    """What to say of a host whose Python cannot run the gang's scripts."""
    if tuple(about["python"]) >= OLDEST:
        return None
    return Problem(
        f"host {name}: cluster.python={python} is Python {'.'.join(map(str, about['python']))}",
        valid=f"Python {'.'.join(map(str, OLDEST))} or newer, without packages",
        fix="cluster.python=/usr/bin/python3.11",
        key="cluster.python",
    )


def _device(config: Mapping[str, Any], said: Sequence[Mapping[str, Any]]) -> str:
    with_gpus = [bool(about["ids"]) for about in said]
    if config["device"] == "auto" and any(with_gpus) and not all(with_gpus):
        without = [str(about["hostname"]) for about, has in zip(said, with_gpus, strict=True) if not has]
        raise RequestError(
            Problem(
                f"{', '.join(without)} has no GPU that nvidia-smi shows, and other hosts have",
                valid="hosts that are alike",
                fix="cluster.device=cpu; or take it out of cluster.ssh.hosts",
                key="cluster.device",
            )
        )
    return "cuda" if config["device"] == "cuda" or all(with_gpus) else "cpu"


def _limits(
    config: Mapping[str, Any], settings: ssh_hosts.Settings, said: Sequence[Mapping[str, Any]], device: str
) -> list[int]:
    """How many ranks of each host may be used. RequestError where a host has fewer than the config asks for."""
    limits, wrong = [], []
    for host, about in zip(settings.hosts, said, strict=True):
        cores = int(about["cores"])
        has = len(about["ids"]) if device == "cuda" else max(
            1, min(cores, int(about["available_gib"]) // GIB_PER_CPU_RANK)
        )  # fmt: skip
        # What memory a CPU rank takes is the user's to say, but each takes a core; a GPU is there or not.
        most = has if device == "cuda" else cores
        allowed = host.gpus or (has if device == "cuda" else config["max_ranks"] or config["gpus_per_node"] or has)
        allowed = min(allowed, config["max_ranks"] or allowed, most)
        asked = {f"{_HOSTS} (gpus)": host.gpus, "cluster.gpus_per_node": config["gpus_per_node"]}
        if device == "cpu" and _said(config):
            asked["cluster.max_ranks"] = config["max_ranks"]  # what is planned for, without having asked a host
        if most == 0 or max(n or 0 for n in asked.values()) > most:
            wrong.append(_too_many(host, asked, most, device))
        limits.append(allowed)
    if wrong:
        raise RequestError(wrong)
    return limits


def _too_many(host: ssh_hosts.Host, by_key: Mapping[str, int | None], has: int, device: str) -> Problem:
    """What to say of a host that has fewer ranks than some key asks for."""
    key, asked = max(((key, n or 0) for key, n in by_key.items()), key=lambda pair: pair[1])
    if device == "cpu":
        return Problem(
            f"host {host.name} has {has} core{'s' * (has != 1)}, and {key}={asked}: a CPU rank takes one",
            valid=f"{key}: 1 to {has}",
            fix=f"{key}={has}",
            key=key,
        )
    return Problem(
        f"host {host.name} has {has} visible GPU{'s' * (has != 1)}, asked for are {asked or 'some'}",
        valid=f"cluster.gpus_per_node: 1 to {has}" if has else "a host with an NVIDIA driver",
        fix=f"ssh {host.typed} nvidia-smi -L   (shows them)",
        key=key,
    )


def _shape(config: Mapping[str, Any], device: str, nodes: int, ranks: int, gpu: str, memory: float) -> Shape:
    return Shape(
        name=str(config["name"]),
        device=device,
        nodes=nodes,
        gpus_per_node=ranks,
        gpu=str(config["gpu"] or gpu),
        gpu_memory_gib=float(config["gpu_memory_gib"] or round(memory, 1)),
    )


def plain(ssh: Mapping[str, Any]) -> dict[str, Any]:
    """The group as JSON; paths absolute, for whoever attaches may work in another folder."""
    settings = ssh_hosts.settings(ssh)
    return {
        "hosts": [
            {"host": h.host, "name": h.name, "user": h.user, "port": h.port, "address": h.address, "gpus": h.gpus,
             "key": str(Path(h.key).absolute()) if h.key else None}
            for h in settings.hosts
        ],
        "known_hosts": [str(path.absolute()) for path in settings.known_hosts],
        "config": str(settings.config.absolute()) if settings.config else None,
        "connect_s": settings.connect_s,
    }  # fmt: skip
