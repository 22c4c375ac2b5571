"""The Kubernetes API server, by the official client (the extra `kuberay`), which is imported when it is first needed.

Guarantees: a RayJob that has a field the server does not know is refused, not run without it (strict validation); a
Secret is made before the RayJob that reads it and belongs to it, so that it goes with it; all attempts are looked at by
two requests; what the server refuses is told in its own words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sweeper.clusters.base import Exit
from sweeper.clusters.kuberay.rayjob import API, ATTEMPT, GRACE_S, LABEL
from sweeper.errors import Problem, RequestError, SweeperError

TIMEOUT_S = 30.0
DONE = ("Complete", "Failed", "ValidationFailed")
SUSPENDED = ("Suspending", "Suspended")
NEVER_RAN = ("SubmissionFailed", "ValidationFailed", "PreRunningDeadlineExceeded")
"""Reasons of KubeRay's for a RayJob whose entrypoint never ran."""


class RefusedError(SweeperError):
    """The server answered, and it was no."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod of an attempt."""

    name: str
    phase: str
    trouble: str = ""
    """Why it does not run, or why it ended: `Unschedulable: 0/4 nodes are available`, `OOMKilled`, `Evicted`."""

    @classmethod
    def of(cls, said: Any) -> Pod:
        """From the client's V1Pod."""
        status = said.status
        troubles = [f"{status.reason}: {status.message or ''}"] if status.reason else []
        unplaced = [c for c in status.conditions or [] if c.type == "PodScheduled" and c.status == "False"]
        troubles += [f"{c.reason}: {c.message or ''}" for c in unplaced]
        for container in status.container_statuses or []:
            waiting, ended = container.state.waiting, container.state.terminated
            if waiting is not None and waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
                troubles.append(f"{waiting.reason}: {waiting.message or ''}")
            if ended is not None and ended.reason not in (None, "Completed"):
                troubles.append(f"{ended.reason} (code {ended.exit_code})")
        return cls(said.metadata.name, status.phase or "", "; ".join(t.removesuffix(": ") for t in troubles))


@dataclass(frozen=True, slots=True)
class RayJob:
    """What the server says of one of our RayJobs and its pods."""

    name: str
    deployment: str = ""
    """jobDeploymentStatus: Initializing, Running, Complete, Failed, Suspended, ..."""
    job: str = ""
    """jobStatus, which is Ray's: PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED."""
    reason: str = ""
    message: str = ""
    pods: tuple[Pod, ...] = ()
    deleted: bool = False
    """Whether the RayJob is gone, or going, and its pods are what is left."""

    @classmethod
    def of(cls, said: Mapping[str, Any], pods: Sequence[Pod]) -> RayJob:
        """From the server's JSON."""
        status = said.get("status") or {}
        words = {k: str(status.get(k) or "") for k in ("jobDeploymentStatus", "jobStatus", "reason", "message")}
        return cls(
            name=said["metadata"]["name"],
            deployment=words["jobDeploymentStatus"],
            job=words["jobStatus"],
            reason=words["reason"],
            message=words["message"],
            pods=tuple(pods),
            deleted="deletionTimestamp" in said["metadata"],
        )

    @property
    def over(self) -> bool:
        """Whether it has ended and its pods are gone."""
        return self.deployment in DONE and not self.pods

    @property
    def requeued(self) -> bool:
        """Whether it lost its pods to others and would start anew (Kueue)."""
        return self.deployment in SUSPENDED

    @property
    def waiting(self) -> str:
        """Why it does not run yet; empty once it does."""
        if self.deployment == "Running" or self.deployment in DONE:
            return ""
        state = self.deployment or "not looked at by KubeRay yet: is its operator running?"
        return f"RayJob {self.name} is {state}{self._troubles()}"

    def _troubles(self) -> str:
        said = [f"{pod.name}: {pod.trouble}" for pod in self.pods if pod.trouble]
        return f" ({'; '.join(said)})" if said else ""

    def exit(self) -> Exit:
        """How an attempt ended that left no record of its own."""
        why = ": ".join(filter(None, [self.reason, self.message]))
        said = f"RayJob {self.name} is {self.deployment or 'gone'}{', ' + why if why else ''}{self._troubles()}"
        now = time.time()
        if self.reason in NEVER_RAN or self.deployment == "ValidationFailed":
            return Exit(None, "launch", said, now)
        if self.requeued or self.reason == "DeadlineExceeded":
            return Exit(None, "preempted", said, now)
        if self.job == "STOPPED":
            return Exit(None, "stopped", said, now)
        return Exit(None, "lost", f"{said}, and the attempt left no record", now)


class Server:
    """An API server, and the namespace in it that our RayJobs are in. Also the queue of `queued.Watcher`."""

    def __init__(self, context: str | None, namespace: str) -> None:
        """RequestError if there is no client, or no kubeconfig."""
        self.context, self.namespace = context, namespace
        try:
            import kubernetes
        except ImportError as error:
            fix = "pip install 'sweeper[kuberay]'"
            problem = Problem("cluster.kind=kuberay needs the package kubernetes", fix=fix, key="cluster.kind")
            raise RequestError(problem) from error
        config = kubernetes.config
        try:
            api = config.new_client_from_config(context=context)
        except (config.ConfigException, OSError) as error:
            try:
                if context is not None:
                    raise config.ConfigException(str(error)) from error
                config.load_incluster_config()
                api = kubernetes.client.ApiClient()
            except config.ConfigException:
                known = "kubectl config get-contexts lists those that are known; KUBECONFIG names another file"
                what = f"the kubeconfig has no context {context}" if context else "there is no kubeconfig"
                problem = Problem(f"{what}: {error}", fix=known, key="cluster.kuberay.context")
                raise RequestError(problem) from error
        self._core = kubernetes.client.CoreV1Api(api)
        self._custom = kubernetes.client.CustomObjectsApi(api)

    def check(self, claim: str) -> None:
        """Ask whether the server, KubeRay and the claim are there.

        Raises:
            RequestError: One of them is not, or we may not use it.
        """
        where = f"namespace {self.namespace}"
        try:
            self._jobs(limit=1)
        except RefusedError as error:
            what = f"RayJobs cannot be used in {where}: {error}"
            fix = f"kubectl auth can-i create rayjobs.ray.io --namespace {self.namespace}"
            if error.status == 404:
                what = "KubeRay is not installed: the API server has no RayJob of ray.io/v1"
                fix = "helm install kuberay-operator kuberay/kuberay-operator"
            raise RequestError(Problem(what, fix=fix, key="cluster.kuberay")) from error
        except SweeperError as error:
            fix = "kubectl cluster-info; cluster.kuberay.context=NAME for another cluster"
            raise RequestError(Problem(str(error), fix=fix, key="cluster.kuberay.context")) from error
        try:
            with _asked():
                found = self._core.read_namespaced_persistent_volume_claim(
                    claim, self.namespace, _request_timeout=TIMEOUT_S
                )
        except SweeperError as error:
            fix = f"kubectl get pvc --namespace {self.namespace}"
            what = f"the claim {claim} cannot be used in {where}: {error}"
            raise RequestError(Problem(what, fix=fix, key="cluster.kuberay.claim")) from error
        modes = found.spec.access_modes or []
        if not {"ReadWriteMany"} & set(modes):
            what = f"the claim {claim} is {', '.join(modes) or 'of no mode'}: pods on other nodes could not mount it"
            raise RequestError(Problem(what, valid="ReadWriteMany", key="cluster.kuberay.claim"))

    def submit(self, secret: Mapping[str, Any], rayjob: Mapping[str, Any]) -> None:
        """Make the Secret and the RayJob; nothing is left if the server will not have it. RefusedError then."""
        name = rayjob["metadata"]["name"]
        with _asked():
            self._core.create_namespaced_secret(self.namespace, dict(secret), _request_timeout=TIMEOUT_S)
        try:
            with _asked():
                made = self._custom.create_namespaced_custom_object(
                    **API,
                    namespace=self.namespace,
                    body=dict(rayjob),
                    field_validation="Strict",
                    _request_timeout=TIMEOUT_S,
                )
        except SweeperError:
            self._delete_secret(name)
            raise
        owner = {
            "apiVersion": rayjob["apiVersion"],
            "kind": "RayJob",
            "name": name,
            "uid": made["metadata"]["uid"],
            "blockOwnerDeletion": False,
        }
        with _asked():
            body = {"metadata": {"ownerReferences": [owner]}}
            self._core.patch_namespaced_secret(name, self.namespace, body, _request_timeout=TIMEOUT_S)

    def look(self, names: tuple[str, ...]) -> Mapping[str, RayJob]:
        """What it says of those RayJobs, and of pods that are left of those that are gone."""
        pods: dict[str, list[Pod]] = {}
        with _asked():
            listed = self._core.list_namespaced_pod(
                self.namespace, label_selector=f"{LABEL}=true", _request_timeout=TIMEOUT_S
            )
        for pod in listed.items:
            if pod.status.phase not in ("Succeeded", "Failed") or pod.metadata.deletion_timestamp is None:
                pods.setdefault((pod.metadata.labels or {}).get(ATTEMPT, ""), []).append(Pod.of(pod))
        found = {name: RayJob(name, pods=tuple(left), deleted=True) for name, left in pods.items()}
        for said in self._jobs():
            name = said["metadata"]["name"]
            found[name] = RayJob.of(said, pods.get(name, ()))
        return {name: found[name] for name in names if name in found}

    def end(self, name: str, *, now: bool) -> None:
        """Delete the RayJob, and with it its pods, `now` without their grace."""
        self._delete(name)
        if now:
            with _asked():
                self._core.delete_collection_namespaced_pod(
                    self.namespace,
                    label_selector=f"{ATTEMPT}={name}",
                    grace_period_seconds=0,
                    _request_timeout=TIMEOUT_S,
                )

    def clear(self, name: str) -> None:
        """Delete what is left of an attempt that is on record: the RayJob, and the Secret with it."""
        self._delete(name)
        self._delete_secret(name)

    def _jobs(self, **how: Any) -> list[Mapping[str, Any]]:
        with _asked():
            listed = self._custom.list_namespaced_custom_object(
                **API, namespace=self.namespace, label_selector=f"{LABEL}=true", _request_timeout=TIMEOUT_S, **how
            )
        return list(listed["items"])

    def _delete(self, name: str) -> None:
        with _unless_gone():
            self._custom.delete_namespaced_custom_object(
                **API,
                namespace=self.namespace,
                name=name,
                grace_period_seconds=GRACE_S,
                propagation_policy="Background",
                _request_timeout=TIMEOUT_S,
            )

    def _delete_secret(self, name: str) -> None:
        with _unless_gone():
            self._core.delete_namespaced_secret(name, self.namespace, _request_timeout=TIMEOUT_S)


@contextmanager
def _asked() -> Iterator[None]:
    """Turn what the client raises into errors with words of the server's."""
    import urllib3
    from kubernetes.client.exceptions import ApiException

    try:
        yield
    except ApiException as error:
        try:
            words = str(json.loads(error.body)["message"])
        except (ValueError, KeyError, TypeError):
            words = str(error.reason)
        raise RefusedError(words, int(error.status or 0)) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise SweeperError(f"the Kubernetes API server does not answer: {error}") from error


@contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        with _asked():
            yield
    except RefusedError as error:
        if error.status != 404:
            raise


@lru_cache
def server(context: str | None, namespace: str) -> Server:
    """The one of this process. RequestError if there is no client, or no kubeconfig."""
    return Server(context, namespace)
