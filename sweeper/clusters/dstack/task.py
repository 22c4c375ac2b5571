"""What dstack is given: an attempt as a task, and the fleet that it runs on. Pure: nothing here asks anybody.

Guarantees: the files are complete (`dstack apply -f` takes them) and hold no secret: a variable that is one is there by
name, or as a reference to a secret of dstack's. A task is one gang: dstack starts all its nodes or none, ends them when
the first node's command has ended, and tries again only where it found no free nodes (a failed attempt is tried again
by the sweep, from its checkpoint).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from sweeper.clusters import gpus
from sweeper.engines.base import Gang, Job
from sweeper.errors import Problem, section_replaced

RANK = "$DSTACK_NODE_RANK"
NODES = """export SWEEPER_GANG_NODES="$(for ip in $DSTACK_NODES_IPS; do echo "$ip=$ip"; done | paste -sd, -)\""""
"""dstack lists the nodes' addresses in the order of their ranks, a line each."""

VENDORS = ("nvidia", "amd", "google", "tpu", "intel", "tenstorrent", "tt")
_SIZE = r"\d+(?:\.\d+)?\s?(?:MB|GB|TB)"
_MEMORY = re.compile(rf"{_SIZE}(?:\.\.(?:{_SIZE})?)?|\.\.{_SIZE}", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(?:,[A-Za-z][A-Za-z0-9_-]*)*")
_DURATION = re.compile(r"[1-9]\d*[smhdw]?")
_MOUNT = re.compile(r"(?P<from>[^:]+):(?P<to>/[^:]*)")
KEYS = ("project", "fleet", "gpu", "resources", "volumes", "secrets", "wait", "task")
"""Keys of `cluster.dstack`."""


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The group's `dstack` section, every key there; without a GPU string, the one that the group's GPU has."""
    given = config.get("dstack") or {}
    ours = {key: given.get(key) for key in KEYS}
    return ours if ours["gpu"] else {**ours, "gpu": f"{config.get('gpu')}:{config.get('gpus_per_node')}"}


def problems(config: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the `cluster` group, without asking the server."""
    if not isinstance(section := config.get("dstack") or {}, Mapping):
        return [section_replaced("cluster.dstack", section, f"a mapping with {', '.join(KEYS)}")]
    ours = settings(config)
    found = [
        Problem(f"cluster.{key} is not given", valid="a whole number from 1", key=f"cluster.{key}")
        for key in ("nodes", "gpus_per_node")
        if not config.get(key)
    ]
    found += [_wrong(key, section[key], "no key", ", ".join(KEYS)) for key in sorted(set(section) - set(KEYS))]
    for key in ("project", "fleet"):
        if not isinstance(ours[key] or "", str):
            found.append(_wrong(key, ours[key], "no text", "a name, or null"))
    if ours["wait"] is not None and not _DURATION.fullmatch(str(ours["wait"])):
        found.append(_wrong("wait", ours["wait"], "no length of time", "30m, 12h, 1d; or null: not at all"))
    if config.get("device") == "cuda":
        found += gpu_problems(ours["gpu"], config)
    found += _volume_problems(ours["volumes"])
    if not isinstance(ours["secrets"] or {}, Mapping):
        found.append(_wrong("secrets", ours["secrets"], "no mapping", "{HF_TOKEN: name-of-a-dstack-secret}"))
    for key in ("resources", "task"):
        if not isinstance(ours[key] or {}, Mapping):
            found.append(_wrong(key, ours[key], "no mapping", "{max_price: 30}"))
    return found


def gpu_problems(spec: Any, config: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with a GPU string; dstack itself takes `80GB:x` for a GPU called x."""
    valid = "name:memory:count, as in H100:80GB:8"
    read = parse_gpu(spec)
    if isinstance(read, str):
        return [_wrong("gpu", spec, read, valid)]
    found = []
    asked = str(config.get("gpu") or "").replace(" ", "").lower()
    if not read.get("name"):
        found.append(_wrong("gpu", spec, "names no GPU", valid))
    elif asked and asked not in read["name"].lower().split(","):
        what = f"names {read['name']}, and the trials are planned for cluster.gpu={config['gpu']}"
        found.append(_wrong("gpu", spec, what, valid))
    elif (over := _too_much(read)) is not None:
        name, most = over
        fix = f"cluster.dstack.gpu={name}:{most}GB:{config.get('gpus_per_node')}"
        what = f"asks for {read['memory']}, and the largest {name} has {most} GB: the task would wait for one"
        found.append(replace(_wrong("gpu", spec, what, valid), fix=fix))
    if read.get("count") not in (None, str(config.get("gpus_per_node"))):
        what = f"asks for {read['count']} GPUs, and cluster.gpus_per_node={config.get('gpus_per_node')}"
        found.append(_wrong("gpu", spec, what, valid))
    return found


def _too_much(read: Mapping[str, str]) -> tuple[str, int] | None:
    """The name that a GPU string has and the GB that it can have at most, where it asks for more."""
    size = re.match(_SIZE, read.get("memory", ""), re.IGNORECASE)
    names = read["name"].split(",")
    most = gpus.most_gb(names[0]) if len(names) == 1 else None
    if size is None or most is None:
        return None
    number, unit = re.split(r"(?<=\d)\s?(?=[A-Za-z])", size[0])
    gb = float(number) * {"MB": 1e-3, "GB": 1.0, "TB": 1e3}[unit.upper()]
    return (names[0], most) if gb > most else None


def parse_gpu(spec: Any) -> dict[str, str] | str:
    """The parts of a GPU string (`vendor`, `name`, `memory`, `count`: those that it has), or what is wrong with it."""
    if not isinstance(spec, str) or not spec.strip():
        return "is no text"
    parts: dict[str, str] = {}
    for token in spec.split(":"):
        if token.lower() in VENDORS:
            kind = "vendor"
        elif _NAME.fullmatch(token):
            kind = "name"
        elif _MEMORY.fullmatch(token):
            kind = "memory"
        elif token.isdigit() and int(token) > 0:
            kind = "count"
        else:
            return f"has {token!r}, which is neither a name, a memory (80GB, 40GB..) nor a number of GPUs"
        if kind in parts:
            return f"has two of a {kind}: {parts[kind]} and {token}"
        parts[kind] = token
    return parts


def gpu(spec: str, count: int) -> str:
    """The GPU string of a node with so many GPUs."""
    parts = parse_gpu(spec)
    if isinstance(parts, str):
        raise ValueError(f"{spec}: {parts}")  # noqa: TRY004  (`problems` has refused it)
    return ":".join([*(parts[kind] for kind in ("vendor", "name", "memory") if kind in parts), str(count)])


def _volume_problems(volumes: Any) -> list[Problem]:
    valid = "a list of instance folders or volumes with where they are mounted: [/store:/store]"
    if not isinstance(volumes or [], Sequence) or isinstance(volumes, str):
        return [_wrong("volumes", volumes, "no list", valid)]
    bad = [v for v in volumes or () if not isinstance(v, str) or not _MOUNT.fullmatch(v)]
    return [_wrong("volumes", volume, "no mount", valid) for volume in bad]


def _wrong(key: str, value: Any, why: str, valid: str) -> Problem:
    why = why if why.startswith(("is", "has", "names", "asks")) else f"is {why}"
    return Problem(f"cluster.dstack.{key}={value} {why}", valid=valid, key=f"cluster.dstack.{key}")


def mounted(folder: Path, config: Mapping[str, Any]) -> str:
    """Why the nodes would not see that folder; empty if one of the volumes holds it under the same path."""
    volumes = settings(config)["volumes"] or []
    places = [m["to"] for v in volumes if (m := _MOUNT.fullmatch(str(v)))]
    if any(PurePosixPath(folder).is_relative_to(place) for place in places):
        return ""
    given = ", ".join(map(str, volumes)) or "none"
    return (
        f"{folder} is on no volume of the task (cluster.dstack.volumes: {given}), so that its nodes would not see it; "
        "mount the shared filesystem of the fleet under the same path there, and put store= into it: "
        "store=/store/runs 'cluster.dstack.volumes=[/store:/store]'"
    )


def task(
    job: Job,
    config: Mapping[str, Any],
    *,
    name: str,
    command: Sequence[str],
    listen: Sequence[str],
    variables: Sequence[str],
) -> dict[str, Any]:
    """The task of one attempt, as `dstack apply -f` reads it.

    Args:
        job: what is run.
        config: the `cluster` group, without problems.
        name: of the task; at most 41 characters.
        command: what every node runs; RANK stands for the node's rank.
        listen: what runs beside it, as its child.
        variables: names of environment variables that are passed on, secrets among them; their values are not written.
    """
    ours = settings(config)
    secrets = ours["secrets"] or {}
    made: dict[str, Any] = {"type": "task", "name": name, "nodes": job.gang.nodes}
    if job.image:
        made["image"] = job.image
    names = dict.fromkeys((*variables, *secrets))  # what dstack keeps need not be set here
    made["env"] = [f"{n}=${{{{ secrets.{secrets[n]} }}}}" if n in secrets else n for n in names]
    # `exec`: what listens becomes a child of what runs, which ends it. One entry: dstack joins several with `&&`.
    made["commands"] = [f"{NODES}; {_line(listen)} & exec {_line(command)}"]
    made["resources"] = resources(config, job.gang)
    if ours["volumes"]:
        made["volumes"] = [str(volume) for volume in ours["volumes"]]
    if ours["fleet"]:
        made["fleets"] = [str(ours["fleet"])]
    made["startup_order"] = "any"  # whoever comes first waits for the others
    made["stop_criteria"] = "master-done"
    if ours["wait"]:
        made["retry"] = {"on_events": ["no-capacity"], "duration": ours["wait"]}
    return {**made, **(ours["task"] or {})}


def _line(words: Sequence[str]) -> str:
    return " ".join(f'"{word}"' if word == RANK else shlex.quote(word) for word in words)


def filled(made: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    """The task as it is submitted: with the values of the variables that it has by name."""
    pairs = (entry.partition("=") for entry in made["env"])
    return {**made, "env": {name: text if given else values[name] for name, given, text in pairs}}


def resources(config: Mapping[str, Any], gang: Gang) -> dict[str, Any]:
    """Of one node of a gang."""
    ours = settings(config)
    made = {key: value for key, value in (ours["resources"] or {}).items() if value is not None}
    if config["device"] == "cuda":
        made["gpu"] = gpu(str(ours["gpu"]), gang.gpus_per_node)
    return made


def fleet(config: Mapping[str, Any]) -> dict[str, Any]:
    """A fleet for the sweep, as `dstack apply -f` reads it: nodes next to each other, started when they are needed."""
    ours = settings(config)
    whole = Gang(nodes=config["nodes"], gpus_per_node=config["gpus_per_node"])
    return {
        "type": "fleet",
        "name": ours["fleet"] or config["name"],
        "nodes": f"0..{config['nodes']}",
        "placement": "cluster",
        "resources": resources(config, whole),
        "idle_duration": "30m",
    }


def to_yaml(made: Mapping[str, Any], *, head: str) -> str:
    """As a file, with a first line that says what it is."""
    return f"# {head}\n" + yaml.safe_dump(dict(made), sort_keys=False, width=200)
