"""A fake Kubernetes: an API server that keeps what the official client sends it, and one that plays KubeRay as well.

    python fake_kubernetes.py      (`make` starts it)

`FakeKubernetes` keeps Secrets, RayJobs and pods of a namespace; a test plays KubeRay by changing them. `FakeKubeRay`
plays itself: its pods are containers (containers.py) with the manifest's variables, and the entrypoint runs in the
head's, with all that it starts. The pods' image is this machine, but for its interpreter, whose Ray is a fake too: it
says which pods there are. The entrypoint with a real Ray: tests/clusters/test_kuberay.py.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import containers
import yaml

from sweeper.clusters.kuberay import rayjob

ROOT = Path(__file__).resolve().parents[2]
OURS = "SWEEPER_TEST_FAKE_KUBERNETES"
"""Variable: the folder of the one that `make` started, also for the processes that a test starts."""
NODES = 2


class FakeKubernetes(ThreadingHTTPServer):
    """Keeps Secrets, RayJobs and pods of one namespace; a test plays KubeRay by changing them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.secrets: dict[str, Any] = {}
        self.rayjobs: dict[str, Any] = {}
        self.pods: dict[str, Any] = {}
        self.claims: dict[str, Any] = {"store": {"spec": {"accessModes": ["ReadWriteMany"]}}}
        self.queries: list[tuple[str, str, dict[str, list[str]]]] = []
        self.refuse: dict[str, tuple[int, str]] = {}
        """Method and last word of the path -> what is answered."""
        self.lock = threading.RLock()

    def kubeconfig(self, path: Path) -> None:
        """Write the file that names it, as the current context."""
        about = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{self.server_address[1]}"}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me"}}],
        }
        path.write_text(yaml.safe_dump(about))

    def run_pod(self, attempt: str, pod: str, **status: Any) -> None:
        labels = {rayjob.LABEL: "true", rayjob.ATTEMPT: attempt}
        self.pods[pod] = {"metadata": {"name": pod, "labels": labels}, "status": {"phase": "Running", **status}}

    def say(self, attempt: str, **status: str) -> None:
        self.rayjobs[attempt]["status"] = status

    def made(self, kind: str, body: dict[str, Any]) -> None:
        """One of that kind was created."""

    def delete(self, kind: str, name: str, *, now: bool) -> None:
        """Delete that one; `now`: without grace. A RayJob's Secret goes with it (Kubernetes' garbage collector)."""
        del getattr(self, kind)[name]
        if kind == "rayjobs":
            owned = [s for s, about in self.secrets.items() if self._owner(about) == name]
            for secret in owned:
                del self.secrets[secret]

    @staticmethod
    def _owner(about: dict[str, Any]) -> str:
        owners = about["metadata"].get("ownerReferences") or [{"name": ""}]
        return str(owners[0]["name"])


class _Handler(BaseHTTPRequestHandler):
    server: FakeKubernetes

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"null")
        with self.server.lock:
            code, said = self.answer(url.path, body, parse_qs(url.query))
            text = json.dumps(said).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_DELETE = do_PATCH = do

    def answer(self, path: str, body: Any, query: dict[str, list[str]]) -> tuple[int, Any]:
        words = path.strip("/").split("/")
        self.server.queries.append((self.command, path, query))
        kind = words[words.index("namespaces") + 2]
        name = words[-1] if words[-1] != kind else ""
        if refused := self.server.refuse.get(f"{self.command} {kind}"):
            return refused[0], {"kind": "Status", "message": refused[1], "code": refused[0]}
        plural = {"persistentvolumeclaims": "claims"}.get(kind, kind)
        kept: dict[str, Any] = getattr(self.server, plural)
        if self.command == "POST":
            if body["metadata"]["name"] in kept:
                return 409, {"message": "already exists"}
            kept[body["metadata"]["name"]] = body
            body["metadata"]["uid"] = "u-1"
            self.server.made(plural, body)
            return 201, body
        if name and name not in kept:
            return 404, {"message": f"{kind} {name} not found"}
        if self.command == "DELETE":
            now = query.get("gracePeriodSeconds") == ["0"]
            for gone in [name] if name else [n for n, p in kept.items() if self.selected(p, query)]:
                self.server.delete(plural, gone, now=now)
            return 200, {"kind": "Status", "status": "Success"}
        if self.command == "PATCH":
            kept[name]["metadata"].update(body["metadata"])
            return 200, kept[name]
        if name:
            return 200, kept[name]
        return 200, {"items": [about for about in kept.values() if self.selected(about, query)]}

    @staticmethod
    def selected(about: Any, query: dict[str, list[str]]) -> bool:
        wanted = dict(pair.split("=") for pair in query.get("labelSelector", [""])[0].split(",") if pair)
        return wanted.items() <= about["metadata"].get("labels", {}).items()


class FakeKubeRay(FakeKubernetes):
    """Plays KubeRay: a RayJob gets its pods, its entrypoint runs on the head, and then its pods are deleted."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._containers: dict[str, containers.Container] = {}

    def made(self, kind: str, body: dict[str, Any]) -> None:
        if kind == "rayjobs":
            threading.Thread(target=self._play, args=(body,), daemon=True).start()

    def delete(self, kind: str, name: str, *, now: bool) -> None:
        """A pod is gone once its processes are; a RayJob's pods are deleted with it."""
        if kind == "pods":
            self.pods[name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            self._containers[name].kill() if now else self._containers[name].stop(rayjob.GRACE_S)
            threading.Thread(target=self._gone, args=(name,), daemon=True).start()
            return
        super().delete(kind, name, now=now)
        if kind == "rayjobs":
            self._delete_pods(name)

    def _delete_pods(self, attempt: str) -> None:
        for pod in [n for n, p in self.pods.items() if p["metadata"]["labels"][rayjob.ATTEMPT] == attempt]:
            self.delete("pods", pod, now=False)

    def _gone(self, pod: str) -> None:
        while self._containers[pod].code is None:
            time.sleep(0.02)
        with self.lock:
            self.pods.pop(pod, None)

    def _play(self, made: dict[str, Any]) -> None:
        name, spec = made["metadata"]["name"], made["spec"]
        ray = self._folder / f"{name}.ray.json"
        with self.lock:
            if name not in self.rayjobs:  # deleted already
                return
            cluster = spec["rayClusterSpec"]
            groups = cluster.get("workerGroupSpecs", [])
            workers = [group for group in groups for _ in range(group["replicas"])]
            nodes = [cluster["headGroupSpec"], *workers]
            ray.write_text(json.dumps([self._node(n, group) for n, group in enumerate(nodes)]))
            for number, group in enumerate(nodes):
                # The head's Ray is left out: its pod runs the entrypoint, and ends with it.
                command = shlex.split(spec["entrypoint"]) if number == 0 else ["sleep", "infinity"]
                pod = f"{name}-{number}"
                self._containers[pod] = containers.Container(command, self._env(group, ray))
                self.run_pod(name, pod)
            self.say(name, jobDeploymentStatus="Running", jobStatus="RUNNING")
        while (code := self._containers[f"{name}-0"].code) is None:
            time.sleep(0.02)
        with self.lock:
            if name in self.rayjobs:
                said = ("Failed", "FAILED", "AppFailed") if code else ("Complete", "SUCCEEDED", "")
                self.say(name, jobDeploymentStatus=said[0], jobStatus=said[1], reason=said[2])
                self._delete_pods(name)

    @staticmethod
    def _node(number: int, group: dict[str, Any]) -> dict[str, Any]:
        """As `ray.nodes` says it."""
        gpus = float(group["rayStartParams"]["num-gpus"])
        return {"Alive": True, "NodeManagerAddress": f"10.0.0.{number + 1}", "Resources": {"GPU": gpus}}

    def _env(self, group: dict[str, Any], ray: Path) -> dict[str, str]:
        (container,) = group["template"]["spec"]["containers"]
        env = {name: os.environ[name] for name in ("PATH", "HOME")}
        for entry in container["env"]:
            env[entry["name"]] = entry.get("value") or self._secret(**entry["valueFrom"]["secretKeyRef"])
        name = group["template"]["metadata"]["labels"][rayjob.ATTEMPT]
        return {**env, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._secret(name, "auth_token"),
                "RAY_ADDRESS": str(ray)}  # fmt: skip

    def _secret(self, name: str, key: str) -> str:
        return str(self.secrets[name]["stringData"][key])


# -- a cluster on it


def config(**changes: Any) -> dict[str, Any]:
    """A whole `cluster` group."""
    said: dict[str, Any] = yaml.safe_load((ROOT / "conf/cluster/kuberay.yaml").read_text())
    said |= {"device": "cpu", "nodes": NODES, "gpus_per_node": 2, "gpu": None, "gpu_memory_gib": None}
    said |= {"python": sys.executable, "join_s": 120, **changes}
    said["kuberay"] |= {"context": "fake", "claim": "store", "mount": "/"}
    return said


class _InImage(containers.Within):
    """Its jobs run in the pods' image: the contract's say none."""

    python = ""
    """The image's interpreter."""

    def start(self, job: Any, folder: Path, nodes: tuple[int, ...]) -> Any:
        # A trainer's program is its job's interpreter, which also waits for the pods (await_ray.py).
        python = self.python if job.argv[0] == sys.executable else job.argv[0]
        return self.__getattr__("start")(replace(job, image="fake:1", python=python), folder, nodes)


def make() -> Any:
    """`cluster=kuberay` over a fake that lives as long as the process that first asks for one."""
    from sweeper import clusters

    folder = containers.serving(OURS, __file__)

    @contextmanager
    def known() -> Iterator[None]:
        at = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
        with mock.patch(at, str(folder / "kubeconfig")):
            yield

    group = config()
    made = _InImage(known, lambda: clusters.get(group, clusters.shape(group)))
    made.python = str(folder / "python")
    return made


PYTHON = f"""#!{sys.executable}
import runpy, sys
sys.path.insert(0, {str(Path(__file__).resolve().parent / "fake_ray")!r})
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The image's interpreter, for scripts: this one with a fake Ray."""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fake-kubernetes-") as name:
        python = Path(name) / "python"
        python.write_text(PYTHON)
        python.chmod(0o755)
        server = FakeKubeRay(Path(name))
        server.kubeconfig(Path(name) / "kubeconfig")
        containers.serve(server, Path(name))


if __name__ == "__main__":
    main()
