"""A fake dstack: what the sweep speaks of its server's API, and two nodes, which are this machine.

    python fake_dstack.py      (`make` starts it)

What a task runs is real: its command, by the shell and with the variables that dstack gives it, in a container of its
own for each node (containers.py), and all that this starts. dstack's own parser and server: real_dstack.py.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import containers
import yaml

ROOT = Path(__file__).resolve().parents[2]
OURS = "SWEEPER_TEST_FAKE_DSTACK"
"""Variable: the folder of the one that `make` started, also for the processes that a test starts."""
ADDRESSES = ("127.0.0.2", "127.0.0.3")
TOKEN = "token-of-a-test"
STOP_S = 10.0
"""From a container's SIGTERM to its SIGKILL."""


class Run:
    """A run and its nodes."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.name, self.task = str(spec["run_name"]), spec["configuration"]
        self.status, self.reason, self.exit_status = "submitted", "", None
        self._nodes: list[containers.Container] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._play, daemon=True).start()

    def _play(self) -> None:
        with self._lock:
            if not self.reason:
                self.status = "running"
                self._nodes = [self._start(rank) for rank in range(self.task["nodes"])]
        while self._nodes and self._nodes[0].code is None and not self.reason:
            time.sleep(0.02)
        if not self.reason:  # master-done
            for node in self._nodes[1:]:
                node.stop(STOP_S)
        while any(node.code is None for node in self._nodes):
            time.sleep(0.02)
        self.exit_status = self._nodes[0].code if self._nodes else None
        self.status = "terminated" if self.reason else "failed" if self.exit_status else "done"

    def _start(self, rank: int) -> containers.Container:
        count = self.task["nodes"]
        env = {
            **{name: os.environ[name] for name in ("PATH", "HOME")},
            **self.task["env"],
            "DSTACK_RUN_NAME": self.name,
            "DSTACK_NODES_NUM": str(count),
            "DSTACK_NODE_RANK": str(rank),
            "DSTACK_NODES_IPS": "\n".join(ADDRESSES[:count]),
            "DSTACK_MASTER_NODE_IP": ADDRESSES[0],
        }
        return containers.Container(["/bin/sh", "-c", " && ".join(self.task["commands"])], env)

    @property
    def over(self) -> bool:
        return self.status in ("terminated", "failed", "done")

    def stop(self, *, abort: bool) -> None:
        with self._lock:
            if self.over:
                return
            self.status, self.reason = "terminating", "aborted_by_user" if abort else "stopped_by_user"
            for node in self._nodes:
                node.kill() if abort else node.stop(STOP_S)

    def said(self) -> dict[str, Any]:
        why = self.reason or ("container_exited_with_error" if self.exit_status else None)
        job = {"termination_reason": why, "termination_reason_message": None, "exit_status": self.exit_status}
        return {
            "run_spec": {"run_name": self.name},
            "status": self.status,
            "termination_reason": self.reason or None,
            "jobs": [{"job_submissions": [{**job, "finished_at": None}]}],
        }


class FakeDstack(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, Run] = {}


class _Handler(BaseHTTPRequestHandler):
    server: FakeDstack

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
        code, said = (200, None)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            code, said = 401, {"detail": "Invalid token"}
        elif self.path == "/api/projects/main/get":
            said = {"project_name": "main"}
        elif self.path == "/api/project/main/fleets/list":
            said = []
        elif self.path == "/api/project/main/runs/apply":
            spec = body["plan"]["run_spec"]
            self.server.runs[spec["run_name"]] = Run(spec)
        elif self.path == "/api/runs/list":
            said = [run.said() for run in list(self.server.runs.values()) if not run.over]
        elif self.path == "/api/project/main/runs/get" and body["run_name"] in self.server.runs:
            said = self.server.runs[body["run_name"]].said()
        elif self.path == "/api/project/main/runs/stop":
            for name in body["runs_names"]:
                self.server.runs[name].stop(abort=body["abort"])
        else:
            code, said = 400, {"detail": [{"msg": "Run not found"}]}
        text = json.dumps(said).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def config(**changes: Any) -> dict[str, Any]:
    """A whole `cluster` group."""
    said: dict[str, Any] = yaml.safe_load((ROOT / "conf/cluster/dstack.yaml").read_text())
    said |= {"device": "cpu", "nodes": len(ADDRESSES), "gpus_per_node": 2, "gpu": None, "gpu_memory_gib": None}
    said |= {"python": sys.executable, "join_s": 120, **changes}
    said["dstack"] |= {"gpu": None, "volumes": ["/:/"]}
    return said


def make() -> Any:
    """`cluster=dstack` over a fake that lives as long as the process that first asks for one."""
    from sweeper import clusters
    from sweeper.clusters.dstack import server

    folder = containers.serving(OURS, __file__)

    @contextmanager
    def known() -> Iterator[None]:
        with mock.patch.object(server, "CONFIG", str(folder / "config.yml")):
            yield

    group = config()
    return containers.Within(known, lambda: clusters.get(group, clusters.shape(group)))


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fake-dstack-") as name:
        server = FakeDstack()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        known = {"name": "main", "url": url, "token": TOKEN, "default": True}
        (Path(name) / "config.yml").write_text(yaml.safe_dump({"projects": [known]}))
        containers.serve(server, Path(name))


if __name__ == "__main__":
    main()
