"""The command line that runs a node's part of an attempt in a container (`engine.image`, `cluster.docker`).

Guarantees: guard, agent, Ray and trainer all live in the container; it sees the GPUs, the host's network, the store and
what `mounts` says; it has no privileges beyond those of who runs the sweep; variables are passed by name, values and
secrets never stand on the command line; the host's /tmp is the container's, so that ranks are leased among containers
and everything else on the host, and a node is looked at, asked and cleaned up from outside as without a container.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper import cache
from sweeper.clusters import gangs
from sweeper.clusters.gang.node import NAME
from sweeper.config.nearest import nearest
from sweeper.engines.base import Job
from sweeper.errors import Problem, section_replaced

KEYS = ("program", "gpus", "network", "ipc", "shm_size", "mounts", "env", "user", "options")
DEFAULT: Mapping[str, Any] = {
    "program": "docker", "gpus": "all", "network": "host", "ipc": "host", "shm_size": None, "mounts": [], "env": [],
    "user": None, "options": [],
}  # fmt: skip
PYTHON = "python3"
"""What runs the gang's scripts in a container: a name that its PATH has, not the host's path."""


def problems(docker: Any) -> list[Problem]:
    """What is wrong with `cluster.docker`, without running anything."""
    if docker is None:
        return []
    if not isinstance(docker, Mapping):
        return [section_replaced("cluster.docker", docker, f"a mapping with {', '.join(KEYS)}")]
    given, found = {**DEFAULT, **docker}, []
    for key in docker:
        if key not in KEYS:
            near = nearest(str(key), KEYS)
            fix = f"cluster.docker.{near[0]}" if near else ""
            found.append(_wrong(str(key), docker[key], ", ".join(KEYS), fix))
    for key, (good, valid, fix) in _CHECKS.items():
        if not good(given[key]):
            found.append(_wrong(key, given[key], valid, fix))
    for key, (pattern, valid) in _LISTS.items():
        listed = given[key] if isinstance(given[key], list) else [given[key]]
        bad = [v for v in listed if not (_is_text(v) and pattern.fullmatch(v)) or listed is not given[key]]
        # `NAME=value` may hold a secret.
        found += [_wrong(key, str(v).partition("=")[0] if key == "env" else v, valid) for v in bad]
    if not found and given["shm_size"] is not None and given["ipc"] == "host":
        valid, fix = "with ipc=private only: ipc=host has all of the host's", "cluster.docker.ipc=private"
        found.append(_wrong("shm_size", given["shm_size"], valid, fix))
    return found


def _wrong(key: str, value: Any, valid: str, fix: str = "") -> Problem:
    name = f"cluster.docker.{key}"
    return Problem(f"{name}={value}", valid=valid, fix=fix, key=name)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _matches(pattern: str) -> Callable[[Any], bool]:
    """Whether it is null, or a text or number of that form."""
    return lambda value: value is None or (not isinstance(value, bool) and bool(re.fullmatch(pattern, str(value))))


_CHECKS: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    "program": (_is_text, "docker, podman or a path", ""),
    "gpus": (
        _matches(r"all|[1-9]\d*|device=[\w:.-]+(,[\w:.-]+)*"),
        "all, a number, device=0,1 or device=GPU-<uuid>; null: none",
        "cluster.docker.gpus=all",
    ),
    "network": (_is_text, "host, or a network that joins the hosts", ""),
    "ipc": (lambda value: value in ("host", "private"), "host, private", ""),
    "shm_size": (
        _matches(r"[1-9]\d*[bkmgBKMG]"),
        "a size such as 700g; null: the program's default",
        "cluster.docker.shm_size=64g",
    ),
    "user": (_matches(r"\w[\w.-]*(:\w[\w.-]*)?"), "UID:GID or a name; null: who runs the sweep there", ""),
}
_LISTS = {
    "mounts": (
        re.compile(r"/[^:,]*(:/[^:,]*(:(ro|rw|z|Z))?)?"),
        "a list of absolute paths: [/data, /models:/models:ro]",
    ),
    "env": (re.compile(r"[A-Za-z_]\w*"), "a list of names, whose values come from the host: [NCCL_SOCKET_IFNAME]"),
    "options": (re.compile(r".+"), "a list of further words for its `run`: [--device=/dev/infiniband]"),
}


def name(folder: Path, rank: int) -> str:
    """The container's name, the same whoever makes it from the same folder."""
    return f"sweeper-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}-{rank}"


def argv(
    docker: Mapping[str, Any] | None, job: Job, folder: Path, rank: int, *, user: Sequence[int], node: str, device: str
) -> list[str]:
    """The words that run that node's part in a container, in the foreground; the secrets' line goes to its stdin.

    Args:
        docker: `cluster.docker`, of which `problems` found nothing.
        folder: The attempt's; absolute.
        user: uid and gid of who runs the sweep on the host.
        node: The host's name.
        device: On `cpu` no GPU is asked for.
    """
    given = {**DEFAULT, **(docker or {})}
    words = [str(given["program"]), "run", "--rm", "--interactive", "--init", "--name", name(folder, rank)]
    if given["gpus"] is not None and device == "cuda":
        words += ["--gpus", _quoted(str(given["gpus"]))]
    if device == "cuda":
        # Pinned memory and NCCL need both. A daemon without root may not raise the first; nor does a CPU need it.
        words += ["--ulimit", "memlock=-1", "--ulimit", "stack=67108864"]
    words += ["--network", str(given["network"]), "--ipc", str(given["ipc"])]
    if given["shm_size"] is not None:
        words += ["--shm-size", str(given["shm_size"])]
    who = str(given["user"] or ":".join(map(str, user)))
    # An image does not know the host's users, and torch asks for the name of who runs it.
    words += ["--user", who, "--env", f"USER={who.partition(':')[0]}"]
    words += ["--env", "HOME=/tmp", "--env", f"{NAME}={node}"]
    for variable in given["env"]:
        words += ["--env", variable]
    for mount in mounts(given, job, folder):
        words += ["--volume", mount]
    words += ["--workdir", str(folder), *given["options"], str(job.image)]
    return [*words, *gangs.argv(folder, rank, python=PYTHON, stdin=True), "--contained"]


def mounts(given: Mapping[str, Any], job: Job, folder: Path) -> list[str]:
    """SOURCE:TARGET[:ro], each target once: the user's word counts most."""
    listed = [mount if ":" in mount else f"{mount}:{mount}" for mount in given["mounts"]]
    listed += [f"{gangs.home(folder)}:{gangs.home(folder)}", "/tmp:/tmp"]
    listed += [f"{path}:{path}:ro" for path in str(job.env.get("PYTHONPATH", "")).split(":") if path.startswith("/")]
    built = str(cache.root())
    if any(built in text for text in job.files.values()):  # models and data that we made
        listed.append(f"{built}:{built}:ro")
    return list({mount.split(":")[1].rstrip("/"): mount for mount in reversed(listed)}.values())[::-1]


def contained(folder: Path, rank: int, command: Sequence[str], *, python: str) -> list[str]:
    """What a launcher runs on the host to start that command and come back."""
    script = str(gangs.scripts(folder) / "contain.py")
    return [python, "-I", "-S", script, str(folder), str(rank), "--", *command]


def _quoted(gpus: str) -> str:
    """A list of devices is one field of a comma-separated value: docker wants it in quotes of its own."""
    return f'"{gpus}"' if "," in gpus else gpus
