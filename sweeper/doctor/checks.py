"""What the nodes' answers mean: each check with its verdict, what was seen and a fix.

Guarantees: pure; a value that a node could not tell fails its own check and no other; names of nodes are those of the
cluster.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sweeper.doctor.asked import FAIL, OK, WARN, Asked

CLOCK_S = 2.0
"""Skew from which file times and token life times go wrong; NTP keeps machines within milliseconds."""
ROOM = 1.1
"""Times the estimate that must be free."""
LEAST_FREE = 5_000_000_000
"""Bytes: logs, records, a Ray session."""
BUSY_MIB = 500.0
"""Of a GPU's memory that others may hold: the driver and a display take less."""
LEAST_INODES = 10_000

Answers = Mapping[str, Mapping[str, Any]]
"""Node -> what its probe said."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: str
    """ok, warn or fail."""
    said: str
    node: str = ""
    """Empty: it is about all of them."""
    fix: str = ""


def looked(answers: Answers, asked: Asked) -> Iterator[Check]:
    """The first round: each node by itself, then the nodes against each other."""
    if not answers:
        return  # nobody looked: nothing is known to be well
    yield from _software(answers, asked)
    yield from _containers(answers, asked)
    yield from _gpus(answers, asked)
    yield from _disk(answers, asked)
    yield from _paths(answers, asked)
    yield from _ports(answers, asked)


# --- nodes that are not there yet ---


def made_for_a_trial(kind: str, elsewhere: str) -> Iterator[Check]:
    """Of the nodes of a queue; `elsewhere`: in the queue's words, why nothing can be asked there."""
    what = (
        f"not looked at: {kind} makes them for a trial, and there are none before it. What can be told from here is "
        f"below; {elsewhere}"
    )
    fix = "trainer.total_training_steps=1   (a trial of one step compares its nodes as it starts, and shows the rest)"
    yield Check("nodes", WARN, what, fix=fix)


def from_here(answers: Answers, asked: Asked, unmounted: Collection[str]) -> Iterator[Check]:
    """What this machine sees of the store, which it shares with them, and of paths, which they may have otherwise.

    `unmounted`: of the paths, those that lie on nothing that the nodes are known to mount.
    """
    yield from _disk(answers, asked)
    for check in _paths(answers, asked):
        if check.state != OK:
            yield replace(check, state=WARN)
        elif check.said in unmounted:
            what = f"{check.said}: here, and on nothing that its nodes are known to mount"
            fix = "have it on the store's filesystem (SWEEPER_CACHE=... for what a sweep makes), or in the image"
            yield replace(check, state=WARN, said=what, fix=fix)
        else:
            yield check


# --- software ---


def _software(answers: Answers, asked: Asked) -> Iterator[Check]:
    if asked.image:
        what = f"not looked at: they are in the image {asked.image}, which is the same for all nodes"
        yield Check("software", WARN, what, fix="doctor looks at the nodes; run it inside the image for the rest")
        return
    known: dict[str, Mapping[str, Any]] = {}
    for node, said in answers.items():
        found = said.get("engine") or {"error": "it was not looked at"}
        if "error" in found:
            yield Check("engine", FAIL, f"{asked.python}: {found['error']}", node, _install(asked))
            continue
        known[node] = found
        missing = [n for n in (asked.engine, "ray") if not (found["packages"] or {}).get(n)]
        if missing:
            what = f"{asked.python} has no {', '.join(missing)}"
            yield Check("engine", FAIL, what, node, _install(asked))
    if not known:
        return
    yield from _alike("python", {n: str(f["python"]) for n, f in known.items()}, asked)
    names = dict.fromkeys(name for f in known.values() for name in f["packages"])
    for name in names:
        versions = {n: str(f["packages"].get(name) or "absent") for n, f in known.items()}
        if set(versions.values()) != {"absent"}:
            yield from _alike(name, versions, asked)
    commits = {n: str(f.get("commit") or "") for n, f in known.items()}
    if any(commits.values()):
        yield from _alike(f"{asked.engine}'s commit", commits, asked)
    yield from _alike("torch's CUDA", {n: str(f.get("cuda") or "none") for n, f in known.items()}, asked)
    if asked.shape.device == "cuda":
        for node, found in known.items():
            if found["packages"].get("torch") and not found.get("cuda"):
                what = f"torch {found['packages']['torch']} is built without CUDA"
                yield Check("torch's CUDA", FAIL, what, node, "install the CUDA build of torch, or cluster.device=cpu")


def _alike(name: str, values: Mapping[str, str], asked: Asked) -> Iterator[Check]:
    if len(set(values.values())) == 1:
        yield Check(name, OK, next(iter(values.values())))
        return
    shown = "; ".join(f"{value}: {', '.join(_those(values, value))}" for value in dict.fromkeys(values.values()))
    fix = f"install the same {name} in {asked.python} on every node, or engine.image=... for all"
    yield Check(name, FAIL, f"it differs: {shown}", fix=fix)


def _those(values: Mapping[str, str], value: str) -> list[str]:
    found = [node for node, v in values.items() if v == value]
    return [*found[:4], f"{len(found) - 4} more"] if len(found) > 4 else found


def _install(asked: Asked) -> str:
    return (
        f"engine.python=PATH of an interpreter there, or install it: {asked.python} -m pip install {asked.engine} ray"
    )


def _containers(answers: Answers, asked: Asked) -> Iterator[Check]:
    """Whether what is to run the image answers on each node."""
    program = asked.container_program
    name = program.rpartition("/")[2]
    wrong = {node: found for node, said in answers.items() if "error" in (found := said.get("containers") or {})}
    for node, found in wrong.items():
        other = "podman" if name == "docker" else "docker"
        if found.get("missing"):
            package = "docker.io" if name == "docker" else name
            fix = f"apt-get install {package}   on the node; or cluster.docker.program={other}"
        elif "permission denied" in str(found["error"]).lower():
            fix = f"sudo usermod -aG docker {answers[node].get('user', '$USER')}   on the node, then log in anew"
        elif name == "docker":
            fix = "sudo systemctl start docker   on the node; or cluster.docker.program=podman, which needs no daemon"
        else:
            fix = f"{program} ps   on the node says more"
        yield Check(name, FAIL, f"{program} does not answer: {found['error']}", node, fix)
    if program and not wrong:
        yield Check(name, OK, "it answers; the image is fetched when a trial starts, where it is not there")


# --- GPUs ---


def _gpus(answers: Answers, asked: Asked) -> Iterator[Check]:
    if asked.shape.device != "cuda":
        return
    drivers: dict[str, str] = {}
    for node, said in answers.items():
        found = said.get("gpus")
        if not isinstance(found, list):
            fix = "nvidia-smi on the node; its driver must answer"
            yield Check("GPUs", FAIL, str((found or {}).get("error", "no answer")), node, fix)
            continue
        if len(found) < asked.gpus_per_node:
            fix = f"cluster.gpus_per_node={len(found)}" if found else "nvidia-smi on the node, or cluster.device=cpu"
            yield Check("GPUs", FAIL, f"{len(found)}, and a trial takes {asked.gpus_per_node}", node, fix)
            continue
        drivers[node] = ", ".join(dict.fromkeys(str(g["driver"]) for g in found))
        least = min(_number(g["total_mib"]) for g in found) / 1024
        names = ", ".join(dict.fromkeys(str(g["name"]) for g in found))
        planned = asked.shape.gpu_memory_gib
        if planned and least < 0.97 * planned:
            fix = f"cluster.gpu_memory_gib={least:.0f}"
            yield Check("GPUs", FAIL, f"{least:.0f} GiB, planned for {planned:.0f}", node, fix)
        else:
            yield Check("GPUs", OK, f"{len(found)} x {names}, {least:.0f} GiB", node)
        yield from _busy(node, found)
    if drivers:
        same = len(set(drivers.values())) == 1
        shown = "; ".join(f"{v}: {', '.join(_those(drivers, v))}" for v in dict.fromkeys(drivers.values()))
        yield Check("driver", OK if same else WARN, shown, fix="" if same else "the same driver on every node")


def _busy(node: str, found: list[Mapping[str, Any]]) -> Iterator[Check]:
    held = [g for g in found if _number(g["used_mib"]) > BUSY_MIB or g.get("processes")]
    if not held:
        return
    who = [f"pid {p['pid']} of {p['user'] or 'another'}" for g in held for p in g.get("processes") or ()]
    used = ", ".join(f"GPU {g['index']}: {_number(g['used_mib']) / 1024:.1f} GiB" for g in held)
    what = f"in use by others: {used}{f' ({chr(44).join(who[:4])})' if who else ''}"
    free = [str(g["index"]) for g in found if g not in held]
    fix = f"end them, or CUDA_VISIBLE_DEVICES={','.join(free)}" if free else "end them, or wait"
    yield Check("GPUs in use", FAIL, what, node, fix)


def _number(text: Any) -> float:
    found = re.search(r"\d+(?:\.\d+)?", str(text))
    return float(found[0]) if found else 0.0


# --- disk, paths, ports ---


def _disk(answers: Answers, asked: Asked) -> Iterator[Check]:
    need = max(LEAST_FREE, int(asked.checkpoint_bytes * ROOM))
    files = max(LEAST_INODES, asked.checkpoint_files)
    for node, said in answers.items():
        for path, facts in (said.get("disk") or {}).items():
            main = path == str(asked.store)
            name = "disk" if main else f"disk {path}"
            if "error" in facts:
                yield Check(name, FAIL, facts["error"], node, f"mkdir -p {path}")
                continue
            wanted = need if main else LEAST_FREE
            free, inodes = int(facts["free"]), facts["inodes"]
            if not facts["writable"]:
                fix = (
                    f"store=... where {said.get('user', 'the user')} may write"
                    if main
                    else f"make {facts['at']} writable"
                )
                yield Check(name, FAIL, f"{facts['at']} cannot be written", node, fix)
            elif free < wanted:
                plan = (
                    f", the checkpoints take {_gb(asked.checkpoint_bytes)}" if main and asked.checkpoint_bytes else ""
                )
                fix = "keep.last=1 keep.top_k=1, or store=... on a larger disk, or sweeper gc" if main else "free some"
                yield Check(name, FAIL, f"{_gb(free)} free at {facts['at']}{plan}", node, fix)
            elif inodes is not None and inodes < files:
                fix = "remove small files there (find ... -xdev), or store=... on another disk"
                yield Check(name, FAIL, f"{inodes:,} inodes are free at {facts['at']}, {files:,} are needed", node, fix)
            else:
                plan = f", {_gb(asked.checkpoint_bytes)} for checkpoints" if main and asked.checkpoint_bytes else ""
                yield Check(name, OK, f"{_gb(free)} free{plan}", node)


def _paths(answers: Answers, asked: Asked) -> Iterator[Check]:
    for path in asked.paths:
        wrong = {}
        for node, said in answers.items():
            facts = (said.get("paths") or {}).get(path, {"error": "it was not looked at"})
            if "error" in facts:
                wrong[node] = str(facts["error"])
        for node, why in wrong.items():
            fix = "put it where every node has it under the same path: the store's filesystem"
            yield Check("path", FAIL, f"{path}: {why}", node, fix)
        if not wrong:
            sizes = {n: str((a["paths"][path]).get("bytes")) for n, a in answers.items()}
            if len(set(sizes.values())) > 1:
                shown = "; ".join(f"{v} bytes: {', '.join(_those(sizes, v))}" for v in dict.fromkeys(sizes.values()))
                yield Check(
                    "path", FAIL, f"{path} is another file on some nodes: {shown}", fix="copy it to all of them"
                )
            else:
                yield Check("path", OK, path)


def _ports(answers: Answers, asked: Asked) -> Iterator[Check]:
    for node, said in answers.items():
        address = asked.addresses.get(node, "")
        if "error" in (said.get("own") or {}).get(address, {}):
            what = f"{address}, which cluster.ssh.hosts gives it, is no address of its own: nobody can listen there"
            fix = f"address: <one of `ip -br addr` on {node}> in cluster.ssh.hosts, or none: where it is reached"
            yield Check("address", FAIL, what, node, fix)
        busy = [port for port, facts in (said.get("ports") or {}).items() if "error" in facts]
        for port in busy:
            fix = f"ss -ltnp 'sport = :{port}' on the node shows by whom; end it or name another port"
            yield Check("port", FAIL, f"{port} is in use", node, fix)
        if "error" in (said.get("any_port") or {}):
            fix = "ss -s on the node; sysctl net.ipv4.ip_local_port_range"
            yield Check("port", FAIL, f"no port can be had: {said['any_port']['error']}", node, fix)
    if asked.ports and not any("error" in f for a in answers.values() for f in (a.get("ports") or {}).values()):
        yield Check("port", OK, f"{', '.join(map(str, asked.ports))} free")


def _gb(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count < 1e12 else f"{count / 1e12:,.1f} TB"


# --- tokens ---

_WHY = {"WANDB_API_KEY": "this sweep logs there", "HF_TOKEN": "the model comes from a hub: some need it"}


def tokens(asked: Asked, here: Mapping[str, bool], answers: Answers) -> Iterator[Check]:
    """Secrets are passed on from here, by name; only whether they are set is looked at."""
    for name, present in here.items():
        there = [node for node, said in answers.items() if (said.get("names") or {}).get(name)]
        if present:
            yield Check(name, OK, "set here, or kept by dstack")
        elif there and len(there) == len(answers):
            yield Check(name, OK, "set on every node")
        elif name in asked.needed:
            fix = f"export {name}=...   (it is passed on by name)"
            yield Check(name, asked.needed[name], f"not set, and {_WHY[name]}", fix=fix)
        else:
            yield Check(name, OK, "not set, and nothing here needs it")


# --- clocks ---


def clocks(bounds: Mapping[str, tuple[float, float]]) -> Iterator[Check]:
    """`bounds`: between which two figures a node's clock is ahead of ours, in seconds."""
    bad = False
    for node, (low, high) in bounds.items():
        least = low if low > 0 else high if high < 0 else 0.0
        if abs(least) > CLOCK_S:
            bad = True
            way = "ahead of" if least > 0 else "behind"
            what = f"at least {abs(least):.1f} s {way} the controller's"
            yield Check("clock", FAIL, what, node, "timedatectl set-ntp true   (or chronyc makestep) on the node")
    if bounds and not bad:
        widest = max(high - low for low, high in bounds.values())
        yield Check("clock", OK, f"no skew that a round trip of {widest:.2f} s would not explain")


# --- the nodes together ---


def met(answers: Answers, names: tuple[str, ...], content: str, folder: str) -> Iterator[Check]:
    """The second round: the shared folder, names, connections."""
    told = {n: a for n, a in answers.items() if "error" not in a}
    for node, said in answers.items():
        if node not in told:
            yield Check("shared store", FAIL, str(said["error"]), node, _share(folder))
    shared = len(told) == len(answers)
    for node, said in told.items():
        if said["controller"] != content:
            shared = False
            yield Check("shared store", FAIL, "it does not read what the controller wrote", node, _share(folder))
        unread = [o for o, a in told.items() if said["read"].get(a["id"]) != a["wrote"]]
        if unread:
            shared = False
            what = f"it does not read what {', '.join(unread)} wrote"
            yield Check("shared store", FAIL, what, node, _share(folder))
    if shared and told:
        many = f"what each of {len(told)} nodes wrote is read on all" if len(told) > 1 else "read and written"
        yield Check("shared store", OK, many)
    if len(names) == 1:
        yield Check("reachability", OK, "one node: there is no other to reach")
        return
    yield from _names(told, names)
    yield from _reached(told)


def _share(folder: str) -> str:
    return f"store=... on a filesystem that all nodes mount under the same path; {folder} is not"


def _names(told: Answers, names: tuple[str, ...]) -> Iterator[Check]:
    bad = False
    for name in names:
        unknown = {node: "" for node, said in told.items() if not isinstance(said["resolved"].get(name), list)}
        if unknown:
            bad = True
            what = f"{name} does not resolve on {', '.join(_those(unknown, ''))}"
            yield Check("names", WARN, what, fix=f"{name} in DNS, or in /etc/hosts of every node")
        own = set(told[name]["addresses"]) if name in told else set()
        if all(address.startswith("127.") for address in own):
            continue  # nothing to compare with
        for node, said in told.items():
            found = said["resolved"].get(name)
            if isinstance(found, list) and not own & set(found):
                bad = True
                what = f"{name} resolves to {', '.join(found)}, which is none of its addresses ({', '.join(own)})"
                yield Check("names", WARN, what, node, f"/etc/hosts of {node}: one line for {name}")
    if told and not bad:
        yield Check("names", OK, f"every node resolves all {len(names)}")


def _reached(told: Answers) -> Iterator[Check]:
    by_id = {said["id"]: node for node, said in told.items()}
    bad = False
    for node, said in told.items():
        for other, facts in said["reached"].items():
            if "error" in facts:
                bad = True
                fix = "open the firewall between the nodes for all TCP ports: Ray, NCCL and gloo pick theirs"
                yield Check("reachability", FAIL, f"{by_id.get(other, other)}: {facts['error']}", node, fix)
    if len(told) == 1:
        what = f"not looked at: {next(iter(told))} met no other"
        yield Check("reachability", WARN, what, fix="mend those first")
    elif told and not bad:
        yield Check("reachability", OK, f"every node connects to each of the other {len(told) - 1}")


def reduced(answers: Answers, asked: Asked) -> Iterator[Check]:
    """The third round: one collective over all nodes."""
    wrong = {node: str(said["error"]) for node, said in answers.items() if "error" in said}
    kind = "NCCL" if asked.shape.device == "cuda" else "gloo"
    name = f"{kind} all-reduce"
    variable = "NCCL_SOCKET_IFNAME" if kind == "NCCL" else "GLOO_SOCKET_IFNAME"
    for node, why in wrong.items():
        missing = re.search(r"No module named '?([\w.]+)", why)
        fix = (
            f"{asked.python} -m pip install {missing[1]}   on the node; or engine.python=PATH of an interpreter with it"
            if missing
            else f"engine.env.{variable}=INTERFACE (`ip -br addr` on the node); engine.env.NCCL_DEBUG=INFO says more"
        )
        yield Check(name, FAIL, why, node, fix)
    if answers and not wrong:
        first = next(iter(answers.values()))
        yield Check(name, OK, f"{first['ranks']} ranks over {len(answers)} node{'s' * (len(answers) > 1)}")
