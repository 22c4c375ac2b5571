"""One node of a Ray cluster that sweeps share (`sweeper cluster up`): Ray under a guard, until it is asked to end.

    python -I -S ray_node.py start FOLDER RANK     detached; says {"temp_dir"} or {"error"}
    python -I -S ray_node.py look FOLDER RANK      says {"alive"}; ends what a guard left that was killed
    python -I -S ray_node.py stop FOLDER RANK      asks it to end

The line on stdin of `start` is {"token", "python", "address", "port", "head", "dashboard", "cpus", "gpus"}; `head` is
empty on the first node. FOLDER is on a filesystem that the nodes share. Guarantees: standard library only; the token is
in the environment of Ray's processes alone; the temp-dir is private to the user; the dashboard listens on loopback; no
process of Ray outlives its guard.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __package__:
    from sweeper.clusters.gang import janitor, node
else:
    sys.path.insert(0, str(HERE))
    import janitor  # type: ignore[no-redef, import-not-found]
    import node  # type: ignore[no-redef, import-not-found]

DASHBOARD_HOST = "127.0.0.1"


def busy(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Ray does
        try:
            probe.bind((host, port))
        except OSError:
            return True
        return False


def free_port(host: str) -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def ray(asked: dict[str, Any], den: Path) -> list[str]:
    """The words that start Ray in the foreground."""
    address = asked["address"]
    words = [asked["python"], "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={address}"]
    words += [f"--temp-dir={den}", f"--num-cpus={asked['cpus']}", f"--num-gpus={asked['gpus']}"]
    # Ray's default for this is a fixed number, on which two nodes of one machine would meet.
    words += [f"--dashboard-agent-listen-port={free_port(address)}", "--min-worker-port=0", "--max-worker-port=0"]
    words += ["--disable-usage-stats"]
    if asked["head"]:
        return [*words, f"--address={asked['head']}"]
    words += ["--head", f"--port={asked['port']}", f"--ray-client-server-port={free_port(address)}", "--no-monitor"]
    return [*words, f"--dashboard-host={DASHBOARD_HOST}", f"--dashboard-port={asked['dashboard']}"]


def start(folder: Path, rank: int, asked: dict[str, Any]) -> dict[str, Any]:
    """Start this node; what to answer."""
    if not asked["head"]:
        for host, port, option in (
            (asked["address"], asked["port"], "--port"),
            (DASHBOARD_HOST, asked["dashboard"], "--dashboard-port"),
        ):
            if busy(host, port):
                return {"error": f"port {port} is in use; {option} takes another one"}
    den = janitor.make_den()
    node.write_json(
        folder / f"{rank}.json",
        {"host": node.host(), "boot": node.boot(), "temp_dir": str(den.path), "started": time.time()},
    )
    env = {**node.environment((), den.marker, ()), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": asked["token"]}
    env.pop(node.TOKEN, None)
    script = [sys.executable, "-I", "-S", str(HERE / "guard.py"), str(folder / f"{rank}.exit.json"), str(den.path)]
    # Ray talks to a terminal; the guard listens for an agent's report.
    quiet = ["/bin/sh", "-c", 'exec "$@" >&2', "ray", *ray(asked, den.path)]
    try:
        with (folder / f"{rank}.log").open("ab") as out:
            subprocess.Popen(
                [*script, f"{den.control},{den.lock}", "--", *quiet],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=out,
                env=env,
                cwd=folder,
                start_new_session=True,
                pass_fds=[den.control, den.lock],
            )
    finally:
        den.close()
    return {"temp_dir": str(den.path)}


def place(folder: Path, rank: int) -> Path | None:
    """The node's temp-dir, if it was started here since this machine was."""
    try:
        about = json.loads((folder / f"{rank}.json").read_text())
        return Path(about["temp_dir"]) if about["boot"] == node.boot() else None
    except (OSError, ValueError, KeyError):
        return None


def main() -> int:
    """Do what the command line says; the exit code."""
    what, folder, rank = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if what == "start":
        os.umask(0o077)
        try:
            answer = start(folder, rank, json.loads(sys.stdin.readline()))
        except (OSError, ValueError, KeyError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer))
        return 1 if "error" in answer else 0
    den = place(folder, rank)
    if what == "stop":
        print(json.dumps({"asked": den is not None and janitor.ask(den, b"s")}))
        return 0
    if den is not None:
        janitor.sweep(den)
    print(json.dumps({"alive": den is not None and (den / "lock").exists()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
