"""`cluster=kuberay`: an attempt is a RayJob, a gang is its pods.

Guarantees: planning asks nobody and needs no Kubernetes client; before the first trial is started, the API server,
KubeRay and the claim of the store are known to be there; what a RayJob is made from is in the attempt's folder
(`rayjob.yaml`, without its Secret).

The modules: `rayjob` makes what Kubernetes is given, `api` speaks with it; sweeper.clusters.queued follows attempts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sweeper.clusters import gangs, planned, queued
from sweeper.clusters.base import Attempt, Cluster
from sweeper.clusters.gang.node import GANG
from sweeper.clusters.kuberay import api, rayjob
from sweeper.engines.base import Job, Shape
from sweeper.trial.records import write_text

KIND = "kuberay"
MANIFEST = "rayjob.yaml"


@lru_cache
def watcher(at: api.Server) -> queued.Watcher:
    """The one of this process for that namespace."""
    return queued.Watcher(at)


class KubeRayCluster(queued.QueueCluster):
    """A namespace of a Kubernetes cluster as a place where each trial is a RayJob."""

    kind = KIND
    elsewhere = "Kubernetes starts a pod for an attempt and keeps none beside it: `kubectl describe nodes` says what is"

    def __init__(self, config: Mapping[str, Any], shape: Shape, at: api.Server) -> None:
        super().__init__(config, shape, watcher(at))
        self._server = at

    def unready(self, job: Job, folder: Path) -> str:
        """Whether the pods see the folder and have an image."""
        return rayjob.unready(job, folder, self._config)

    def submission(self, job: Job, folder: Path, name: str) -> tuple[Callable[[], None], dict[str, Any]]:
        """Its RayJob, with its Secret."""
        secret, made = self.prepare(job, folder, name)
        where = {"context": self._server.context, "namespace": self._server.namespace}
        return lambda: self._server.submit(secret, made), where

    def prepare(self, job: Job, folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Write the attempt's files; its Secret and its RayJob."""
        python, join_s = str(self._config["python"]), float(self._config["join_s"])
        wait = gangs.scripts(folder) / "await_ray.py"
        head = rayjob.alone(job, [str(wait), str(job.gang.nodes), str(job.gang.gpus_per_node), f"{join_s:g}"])
        gangs.prepare(head, folder, [gangs.Node()], shape=self.shape, leases=False, join_s=join_s)
        queued.open_ask(folder)
        script = folder / GANG / rayjob.ENTRY
        text = rayjob.entry(
            queued.listen_argv(folder, 0, python=python), gangs.argv(folder, 0, python=python), folder / GANG
        )
        write_text(script, text, mode=0o755)
        values = gangs.secrets(job, gangs.new_token())
        made = rayjob.rayjob(job, self._config, name=name, script=script, variables=list(values))
        about = "An attempt of a trial. The sweep submits it, with a Secret of the same name that holds its variables."
        write_text(folder / MANIFEST, rayjob.to_yaml(made, head=about))
        return rayjob.secret(name, values, self._config), made


shape = planned.said
problems = rayjob.problems


def open(config: Mapping[str, Any], shape: Shape) -> Cluster:
    """The namespace, once the API server, KubeRay and the store's claim are known to be there.

    Raises:
        RequestError: One of them is not.
    """
    ours = rayjob.settings(config)
    at = api.server(ours["context"], str(ours["namespace"]))
    at.check(str(ours["claim"]))
    return KubeRayCluster(config, shape, at)


def attach(folder: Path, started: Mapping[str, Any]) -> Attempt | None:
    """The attempt of that folder, whose controller is gone.

    Raises:
        SweeperError: The API server is not known on this machine.
    """
    at = api.server(started.get("context"), str(started.get("namespace") or "default"))
    return queued.attached(folder, started, watcher(at))
