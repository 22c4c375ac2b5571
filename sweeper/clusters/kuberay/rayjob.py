"""What Kubernetes is given: an attempt as a RayJob, and the Secret that it reads. Pure: nothing here asks anybody.

Guarantees: the manifest is complete (`kubectl apply -f` takes it, beside its Secret) and holds no secret; KubeRay
starts the pods, Ray in them and the entrypoint on the head, and tries nothing again (the sweep does, from the
checkpoint); a pod has all GPUs of a node of the gang, the head's too; when the entrypoint has ended, the pods are
deleted.

KubeRay starts Ray itself, so the entrypoint (`entry`) is the attempt on one node: guard and agent on the head, and the
trainer once exactly the gang's pods are in the cluster (gang/await_ray.py). There is no fork server: it would have to
run in every pod. That no process outlives the attempt is Kubernetes' doing: a pod's processes end with it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from sweeper.clusters.gang.node import TOKEN
from sweeper.engines.base import Gang, Job
from sweeper.errors import Problem, section_replaced

API = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}
LABEL, ATTEMPT = "sweeper.attempts", "sweeper.attempt"
"""Labels of all that is ours, and of what belongs to one attempt."""
AUTH = "auth_token"
"""The Secret's key that KubeRay takes Ray's token from."""
OF_RAY = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""What the trainer needs of the variables that Ray gives an entrypoint."""
ENTRY = "entry.sh"
GRACE_S = 5
"""From a pod's SIGTERM to its SIGKILL."""
KEYS = (
    "context", "namespace", "ray_version", "claim", "mount", "shm", "resources", "gpu_resource", "labels", "wait_s",
    "pod",
)  # fmt: skip
"""Keys of `cluster.kuberay`."""
MAPPINGS = {
    "resources": "{cpu: 64, memory: 900Gi}",
    "labels": "{kueue.x-k8s.io/queue-name: team}",
    "pod": "{serviceAccountName: trainer}",
}


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The group's `kuberay` section, every key there."""
    given = config.get("kuberay")
    return {key: (given or {}).get(key) for key in KEYS}


def problems(config: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the `cluster` group, without asking the API server."""
    if not isinstance(given := config.get("kuberay") or {}, Mapping):
        return [section_replaced("cluster.kuberay", given, f"a mapping with {', '.join(KEYS)}")]
    ours = settings(config)
    found = [
        Problem(f"cluster.{key} is not given", valid="a whole number from 1", key=f"cluster.{key}")
        for key in ("nodes", "gpus_per_node")
        if not config.get(key)
    ]
    found += [_wrong(key, given[key], "no key", ", ".join(KEYS)) for key in sorted(set(given) - set(KEYS))]
    for key, valid in MAPPINGS.items():
        if not isinstance(ours[key] or {}, Mapping):
            found.append(_wrong(key, ours[key], "no mapping", valid))
    for key in ("namespace", "ray_version", "mount"):
        if not isinstance(ours[key], str) or not ours[key]:
            found.append(_wrong(key, ours[key], "no text", "a text"))
    for key in ("context", "claim", "shm", "gpu_resource"):
        if not isinstance(ours[key] or "", str):
            found.append(_wrong(key, ours[key], "no text", "a text, or null"))
    wait = ours["wait_s"]
    if wait is not None and (not isinstance(wait, int) or isinstance(wait, bool) or wait < 1):
        found.append(_wrong("wait_s", wait, "no number of seconds", "a whole number from 1, or null"))
    if isinstance(ours["mount"], str) and not ours["mount"].startswith("/"):
        found.append(_wrong("mount", ours["mount"], "no absolute path", "/store"))
    if isinstance(ours["ray_version"], str) and _version(ours["ray_version"]) < (2, 52):
        found.append(
            _wrong("ray_version", ours["ray_version"], "too old for Ray's token authentication", "from 2.52.0")
        )
    if not ours["claim"]:
        fix = "cluster.kuberay.claim=NAME; kubectl get pvc lists those of the namespace"
        what = "cluster.kuberay.claim is not given: the pods share the sweep's store by a PersistentVolumeClaim"
        found.append(Problem(what, valid="a claim with ReadWriteMany", fix=fix, key="cluster.kuberay.claim"))
    return found


def _version(text: str) -> tuple[int, ...]:
    numbers = text.split(".")[:2]
    return tuple(int(n) for n in numbers) if all(n.isdigit() for n in numbers) else (0, 0)


def _wrong(key: str, value: Any, why: str, valid: str) -> Problem:
    return Problem(f"cluster.kuberay.{key}={value} is {why}", valid=valid, key=f"cluster.kuberay.{key}")


def unready(job: Job, folder: Path, config: Mapping[str, Any]) -> str:
    """Why the pods could not run this job in this folder; empty if they could."""
    mount = str(settings(config)["mount"])
    if not job.image:
        return "a pod needs an image that has Ray and the trainer: engine.image=REGISTRY/NAME:TAG engine.python=python3"
    if not PurePosixPath(folder).is_relative_to(mount):
        return (
            f"{folder} is not below {mount}, where the pods have the claim {settings(config)['claim']}, so that they "
            f"would not see it; mount the same filesystem there on this machine: store={mount}/runs"
        )
    return ""


def alone(job: Job, await_ray: Sequence[str]) -> Job:
    """The job as its head's guard and agent see it: no Ray to start, one node, and the trainer after `await_ray`."""
    command = (job.python, *await_ray, "--", *job.argv)
    gang = Gang(nodes=1, gpus_per_node=job.gang.gpus_per_node, cpus_per_node=job.gang.cpus_per_node)
    inherit = (*job.inherit, *OF_RAY)
    return replace(job, argv=command, gang=gang, ray=False, preload=(), fork_argv=(), inherit=inherit)


def entry(listen: Sequence[str], command: Sequence[str], gang: Path) -> str:
    """The entrypoint's script. It runs once: a RayJob that was suspended would start over in the same folder."""
    once = shlex.quote(str(gang / "entered"))
    return f"""#!/bin/sh
# The entrypoint of the RayJob, on its head. KubeRay has started Ray.
if ! mkdir -- {once}; then
    echo "sweeper: this attempt has run already; a retry is a new attempt" >&2
    exit 70
fi
{shlex.join(listen)} &
exec {shlex.join(command)}
"""


def secret(name: str, values: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, Any]:
    """The attempt's Secret: Ray's token, and the variables that are passed on."""
    data = {AUTH if key == TOKEN else key: value for key, value in values.items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": settings(config)["namespace"], "labels": _labels(name)},
        "type": "Opaque",
        "stringData": data,
    }


def rayjob(job: Job, config: Mapping[str, Any], *, name: str, script: Path, variables: Sequence[str]) -> dict[str, Any]:
    """The RayJob of one attempt.

    Args:
        job: what is run, with an image.
        config: the `cluster` group, without problems.
        name: of the RayJob and its Secret; at most 47 characters.
        script: the entrypoint's script.
        variables: names of variables that come from the Secret.
    """
    ours = settings(config)
    ray: dict[str, str] = {
        "num-cpus": str(job.ray_cpus_per_node),
        "num-gpus": str(job.gang.gpus_per_node),
        "object-store-memory": str(job.object_store_bytes),
    }
    spec: dict[str, Any] = {
        "entrypoint": shlex.join(["sh", str(script)]),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 0,
        "backoffLimit": 0,
        "rayClusterSpec": {
            "rayVersion": ours["ray_version"],
            "authOptions": {"mode": "token", "secretName": name},
            "headGroupSpec": {
                "rayStartParams": {"dashboard-host": "0.0.0.0", **ray},  # the submitter is another pod
                "template": _pod("ray-head", job, config, name, variables),
            },
        },
    }
    if job.gang.nodes > 1:
        count = job.gang.nodes - 1
        spec["rayClusterSpec"]["workerGroupSpecs"] = [
            {
                "groupName": "gang",
                "replicas": count,
                "minReplicas": count,
                "maxReplicas": count,
                "rayStartParams": ray,
                "template": _pod("ray-worker", job, config, name, variables),
            }
        ]
    if ours["wait_s"]:
        spec["preRunningDeadlineSeconds"] = int(ours["wait_s"])
    labels = {**_labels(name), **{str(k): str(v) for k, v in (ours["labels"] or {}).items()}}
    return {
        "apiVersion": f"{API['group']}/{API['version']}",
        "kind": "RayJob",
        "metadata": {"name": name, "namespace": ours["namespace"], "labels": labels},
        "spec": spec,
    }


def _labels(name: str) -> dict[str, str]:
    return {LABEL: "true", ATTEMPT: name}


def _pod(role: str, job: Job, config: Mapping[str, Any], name: str, variables: Sequence[str]) -> dict[str, Any]:
    ours = settings(config)
    limits = {str(k): str(v) for k, v in (ours["resources"] or {}).items() if v is not None}
    if config["device"] == "cuda":
        limits[str(ours["gpu_resource"] or "nvidia.com/gpu")] = str(job.gang.gpus_per_node)
    env: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in sorted(job.env.items())]
    env += [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}] if "RAY_USAGE_STATS_ENABLED" not in job.env else []
    # The gang's token is Ray's, which KubeRay puts into every container itself.
    env += [{"name": v, "valueFrom": {"secretKeyRef": {"name": name, "key": v}}} for v in variables if v != TOKEN]
    env += [{"name": TOKEN, "valueFrom": {"secretKeyRef": {"name": name, "key": AUTH}}}]
    container = {
        "name": role,
        "image": job.image,
        "env": env,
        "resources": {"limits": limits, "requests": dict(limits)},
        "volumeMounts": [{"name": "store", "mountPath": ours["mount"]}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    shm: dict[str, Any] = {"medium": "Memory"}
    if ours["shm"]:
        shm["sizeLimit"] = str(ours["shm"])
    spec = {
        "terminationGracePeriodSeconds": GRACE_S,
        "containers": [container],
        "volumes": [
            {"name": "store", "persistentVolumeClaim": {"claimName": ours["claim"]}},
            {"name": "shm", "emptyDir": shm},
        ],
        **(ours["pod"] or {}),
    }
    return {"metadata": {"labels": _labels(name)}, "spec": spec}


def to_yaml(made: Mapping[str, Any], *, head: str) -> str:
    """As a file, with a first line that says what it is."""
    return f"# {head}\n" + yaml.safe_dump(dict(made), sort_keys=False, width=200)
