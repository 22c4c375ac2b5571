"""A Ray cluster over the hosts of `cluster=ssh`, for several sweeps to share: `sweeper cluster up`, `status`, `down`.

Guarantees: up returns once exactly those hosts are in the cluster with their ranks, or nothing of it is left running;
hosts start in any order; only who has the token gets in (a file of mode 600 that no command line, record or log shows);
each host has a temp-dir of its own; the dashboard listens on the first host's loopback only, and the tunnel to it is
shown; down leaves no process of it on any host, also when who ran `up` is gone.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.clusters import gangs, ssh, ssh_hosts
from sweeper.clusters import hosts as on_hosts
from sweeper.clusters.hosts import Hosts
from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.trial.records import cannot_write, plain_name, store_flag, write_text

STATE = "cluster.json"
ASK_S, DOWN_S, POLL_S = 60.0, 30.0, 0.5

READY = """
import os, sys, time
wanted, what, join_s = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
import ray
end, why = time.monotonic() + join_s, ""
while time.monotonic() < end:
    try:
        ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="CRITICAL")
        there = {n["NodeManagerAddress"]: n["Resources"].get(what, 0) for n in ray.nodes() if n["Alive"]}
        ray.shutdown()
        why = "there are: " + (", ".join(f"{a} with {c:g} {what}" for a, c in sorted(there.items())) or "none")
        if len(there) == wanted:
            print("ready")
            sys.exit(0)
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
    time.sleep(0.5)
print(why)
sys.exit(1)
"""
"""Runs on the first host, in the engine's interpreter, with the token on stdin (WITH_TOKEN)."""
WITH_TOKEN = "import os, sys; os.environ['RAY_AUTH_TOKEN'] = sys.stdin.readline().strip(); "


def place(store: Path, name: str) -> Path:
    """Where the cluster of that name has its files; the store is shared by the hosts. RequestError if it names none."""
    plain_name("cluster.name", name, fix="cluster.name=lab")
    return store.absolute() / "clusters" / name


def token_file(name: str) -> Path:
    """Where the cluster's token is: on this machine only, readable by this user only."""
    base = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    return base / "sweeper" / f"{name}.token"


def up(
    config: Mapping[str, Any], store: Path, python: str, *, port: int, dashboard: int, say: Callable[[str], None]
) -> None:
    """Start it.

    Args:
        config: The `cluster` group, of kind ssh.
        python: The interpreter that has Ray, on all hosts.
        port: Of Ray's control store on the first host. dashboard: of the dashboard, on its loopback.

    Raises:
        RequestError: A host cannot be used, Ray differs, a port is in use, or the cluster is up already.
        RecordsError: The store cannot be written.
        SweeperError: It did not come up; nothing of it is left.
    """
    folder = place(store, str(config["name"]))
    if (folder / STATE).exists():
        raise _exists(store, str(config["name"]))
    hosts, addresses, said = ssh.connected(config)
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in (*folder.glob("*.json"), *folder.glob("*.log")):
                old.unlink()
        except OSError as error:
            raise cannot_write(folder, error) from error
        versions = _same_ray(hosts, folder, python)
        device = "cuda" if all(about["ids"] for about in said) and config["device"] != "cpu" else "cpu"
        ranks = [_ranks(config, about, device) for about in said]
        token = secrets.token_hex(32)
        state = {
            "name": config["name"],
            "address": f"{addresses[0]}:{port}",
            "dashboard": dashboard,
            "ray": versions,
            "device": device,
            "ranks": ranks,
            "python": config["python"],
            "ssh": ssh.plain(config["ssh"]),
            "started": time.time(),
        }
        write_text(folder / STATE, json.dumps(state, indent=2) + "\n")
        asked = {"token": token, "python": python, "port": port, "dashboard": dashboard}
        try:
            _start(hosts, folder, addresses, ranks, device, asked)
            say(f"waiting for {len(addresses)} hosts with {sum(ranks)} ranks")
            _wait(hosts, folder, python, token, str(state["address"]), len(addresses), device, float(config["join_s"]))
            file = token_file(str(config["name"]))
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_text(file, token, mode=0o600)
        except BaseException:
            _end(hosts, folder)
            raise
        for line in about(state, store):
            say(line)
    finally:
        hosts.close()


def typed(store: Path, name: str) -> str:
    """What names the cluster on a command line, from where this was started."""
    return f"{name}{store_flag(store)}"


def about(state: Mapping[str, Any], store: Path) -> list[str]:
    """How it is reached, for people."""
    first = ssh_hosts.settings(state["ssh"]).hosts[0]
    dashboard = state["dashboard"]
    return [
        f"cluster {state['name']}: {sum(state['ranks'])} ranks on {len(state['ranks'])} hosts, Ray {state['ray']}",
        f"use it:     export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token_file(str(state['name']))}",
        f"            python sweep.py -m cluster=ray cluster.ray.address={state['address']}",
        f"dashboard:  ssh -N -L {dashboard}:127.0.0.1:{dashboard} {first.typed}   then http://127.0.0.1:{dashboard}",
        f"end it:     sweeper cluster down {typed(store, str(state['name']))}",
    ]


def status(store: Path, name: str) -> tuple[list[str], bool]:
    """What runs of it, in lines, and whether all does.

    Raises:
        RequestError: There is no such cluster.
    """
    state, hosts = _existing(store, name)
    try:
        alive = _look(hosts, place(store, name))
    finally:
        hosts.close()
    words = {True: "up", False: "down", None: "does not answer"}
    lines = [f"{host:<24} {words[alive[rank]]}" for rank, host in enumerate(hosts.reach.names)]
    return [*about(state, store), *lines], all(alive.values())


def down(store: Path, name: str) -> list[str]:
    """End it; hosts where something may be left, because they do not answer.

    Raises:
        RequestError: There is no such cluster.
        SweeperError: A host did not end its part.
    """
    _, hosts = _existing(store, name)
    try:
        left = _end(hosts, place(store, name))
    finally:
        hosts.close()
    if left:
        raise SweeperError(
            f"what runs of cluster {name} on {', '.join(left)} was not seen to end; "
            f"sweeper cluster down {typed(store, name)}   (again, when it answers)"
        )
    return list(hosts.reach.names)


def _existing(store: Path, name: str) -> tuple[dict[str, Any], Hosts]:
    file = place(store, name) / STATE
    try:
        state: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        known = sorted(p.parent.name for p in (store.absolute() / "clusters").glob(f"*/{STATE}"))
        raise RequestError(
            Problem(
                f"there is no cluster {name} in {store}",
                valid=", ".join(known) or "none was started by `sweeper cluster up`",
                fix="sweeper cluster up cluster=ssh cluster.ssh.hosts=[...]; or --store where its records are",
                key="name",
            )
        ) from None
    return state, ssh.reach(state["ssh"], str(state["python"]))


def _exists(store: Path, name: str) -> RequestError:
    at = typed(store, name)
    return RequestError(
        Problem(
            f"cluster {name} is there already",
            fix=f"sweeper cluster status {at}; sweeper cluster down {at}; or cluster.name=<another>",
            key="cluster.name",
        )
    )


def _ranks(config: Mapping[str, Any], about: Mapping[str, Any], device: str) -> int:
    found = len(about["ids"]) if device == "cuda" else int(config["gpus_per_node"] or about["cores"])
    return min(found, config["max_ranks"] or found)


def _same_ray(hosts: Hosts, folder: Path, python: str) -> str:
    """Ray's version, the same on all hosts and here, with a shared folder. RequestError if not."""
    places = range(len(hosts.reach.names))
    try:
        with gangs.nonce(folder) as nonce:
            seen = hosts.ask_each(places, {"read": str(nonce)})
    except OSError as error:
        raise cannot_write(folder, error) from error
    code = "import platform, ray; print(ray.__version__, 'Python', '.'.join(platform.python_version_tuple()[:2]))"
    commands = {p: hosts.command(p, [python, "-c", code]) for p in places}
    answers = hosts.reach.submit(commands, {}, ASK_S).result()
    from importlib.metadata import version

    ours = f"{version('ray')} Python {sys.version_info[0]}.{sys.version_info[1]}"
    wrong = []
    for p in places:
        name, answer, look = hosts.reach.names[p], answers[p], seen[p]
        if isinstance(look, Problem):
            wrong.append(look)
        elif look["read"] != nonce.name:
            wrong.append(gangs.unseen(f"host {name}", folder, "--store /shared/runs"))
        elif answer.code != 0:
            last = answer.err.strip().splitlines()[-1:] or [f"exit code {answer.code}"]
            what, fix = f"host {name}: {python} has no Ray: {last[0]}", "engine.python=/shared/venv/bin/python"
            wrong.append(Problem(what, valid="an interpreter with Ray", fix=fix, key="engine.python"))
        elif (theirs := answer.out.strip().splitlines()[-1]) != ours:
            wrong.append(
                Problem(
                    f"host {name} has Ray {theirs}, and this machine has {ours}",
                    valid="the same Ray and Python everywhere",
                    fix="engine.python=/shared/venv/bin/python",
                    key="engine.python",
                )
            )
    if wrong:
        raise RequestError(wrong)
    return ours.split(maxsplit=1)[0]


def _start(
    hosts: Hosts,
    folder: Path,
    addresses: Sequence[str],
    ranks: Sequence[int],
    device: str,
    asked: Mapping[str, Any],
) -> None:
    """Start all nodes side by side. Raises as `up`."""
    commands, lines = {}, {}
    for rank, address in enumerate(addresses):
        gpus = ranks[rank] if device == "cuda" else 0
        head = f"{addresses[0]}:{asked['port']}" if rank else ""
        commands[rank] = hosts.command(rank, _script(hosts, folder, "start", rank))
        given = {**asked, "address": address, "head": head, "cpus": max(ranks[rank], 1), "gpus": gpus}
        lines[rank] = json.dumps(given) + "\n"
    wrong = []
    for rank, answer in hosts.reach.submit(commands, lines, ASK_S).result().items():
        found = on_hosts.last_json(answer.out) or {"error": answer.err.strip() or f"exit code {answer.code}"}
        if "error" in found:
            wrong.append(Problem(f"host {hosts.reach.names[rank]}: {found['error']}", key="cluster.ssh.hosts"))
    if wrong:
        raise RequestError(wrong)


def _wait(
    hosts: Hosts, folder: Path, python: str, token: str, address: str, count: int, device: str, join_s: float
) -> None:
    """Until exactly so many nodes are in it, or one of them ended."""
    what = "GPU" if device == "cuda" else "CPU"
    words = ["env", "RAY_AUTH_MODE=token", f"RAY_ADDRESS={address}", python, "-c", WITH_TOKEN + "exec(sys.argv.pop(1))"]
    command = hosts.command(0, [*words, READY, str(count), what, str(join_s)])
    asked = hosts.reach.submit({0: command}, {0: token + "\n"}, join_s + ASK_S)
    while not asked.done():
        for rank, name in enumerate(hosts.reach.names):
            if (folder / f"{rank}.exit.json").exists():
                log = (folder / f"{rank}.log").read_text(errors="replace").strip().splitlines()[-4:]
                raise SweeperError("\n".join([f"Ray ended on host {name}; the end of {folder}/{rank}.log:", *log]))
        time.sleep(POLL_S)
    answer = asked.result()[0]
    if answer.code != 0:
        last = (answer.out.strip() or answer.err.strip() or "no answer").splitlines()[-1]
        raise SweeperError(
            f"the cluster did not come together within {join_s:g} s: {last}; wanted are {count} hosts; "
            f"what Ray said is in {folder}; nothing of it runs any more"
        )


def _look(hosts: Hosts, folder: Path) -> dict[int, bool | None]:
    """Which ranks live; None: the host does not answer."""
    places = range(len(hosts.reach.names))
    commands = {p: hosts.command(p, _script(hosts, folder, "look", p)) for p in places}
    answers = hosts.reach.submit(commands, {}, ASK_S).result()
    said = {p: on_hosts.last_json(answers[p].out) for p in places}
    return {p: None if found is None else bool(found.get("alive")) for p, found in said.items()}


def _end(hosts: Hosts, folder: Path) -> list[str]:
    """End all nodes and forget the cluster; the hosts where it was not seen to end, and then it is remembered."""
    places = range(len(hosts.reach.names))
    commands = {p: hosts.command(p, _script(hosts, folder, "stop", p)) for p in places}
    hosts.reach.submit(commands, {}, ASK_S).result()
    deadline = time.monotonic() + DOWN_S
    while any(alive := _look(hosts, folder).values()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    left = [hosts.reach.names[p] for p, state in enumerate(alive) if state is not False]
    if not left:
        token_file(folder.name).unlink(missing_ok=True)
        # The logs stay, for whoever wants to know why, until the next `up` of that name.
        (folder / STATE).unlink(missing_ok=True)
        for path in folder.glob("*.json"):
            path.unlink()
    return left


def _script(hosts: Hosts, folder: Path, what: str, rank: int) -> list[str]:
    script = gangs.scripts(folder) / "ray_node.py"
    return [hosts.python, "-I", "-S", str(script), what, str(folder), str(rank)]
