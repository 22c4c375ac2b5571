"""cluster=kuberay: what Kubernetes is given, checked against KubeRay's own schema, and how its answers are read.

There is no Kubernetes here: the API server is a fake (fake_kubernetes.py), and a test plays KubeRay's part in the
status. The schema of a RayJob is KubeRay's, where the data is (else those are skipped).
"""

from __future__ import annotations

import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray_cluster
import yaml
from fake_kubernetes import FakeKubernetes

from sweeper import clusters
from sweeper.clusters import kuberay, queued
from sweeper.clusters.gang import await_ray
from sweeper.clusters.kuberay import api, rayjob
from sweeper.config.compose import compose_points
from sweeper.config.hydra_app import initialized
from sweeper.config.space import read
from sweeper.engines.base import Gang, Job
from sweeper.errors import RequestError

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "clusters" / "kuberay"
CRD = ROOT.parent / "shared" / "data" / "kuberay" / "rayjobs.crd.yaml.gz"
CLAIM = "cluster.kuberay.claim=store"


def group(*overrides: str) -> dict[str, Any]:
    with initialized():
        (item,) = compose_points(read(["cluster=kuberay", *overrides]).arms)
    return dict(item.config["cluster"])


def job(nodes: int = 2, **how: Any) -> Job:
    fields: dict[str, Any] = {
        "argv": ("python3", "-m", "verl.trainer.main_ppo", "--config-name=trainer"),
        "env": {"PYTHONUNBUFFERED": "1", "VERL_FILE_LOGGER_PATH": "/store/runs/demo/trials/000/attempt-1/m.jsonl"},
        "inherit": ("HF_TOKEN",),
        "files": {},
        "gang": Gang(nodes=nodes, gpus_per_node=8, cpus_per_node=8),
        "python": "python3",
        "metrics": "metrics.jsonl",
        "total_steps": 10,
        "ray_cpus_per_node": 64,
        "image": "registry.example/verl:0.9.1",
    }
    return Job(**{**fields, **how})


def manifest(nodes: int, *overrides: str, **how: Any) -> dict[str, Any]:
    script = Path("/store/runs/demo/trials/000/attempt-1/gang/entry.sh")
    return rayjob.rayjob(
        job(nodes, **how), group(CLAIM, *overrides), name="demo-000-1-0123abcd", script=script, variables=["HF_TOKEN"]
    )


MANIFESTS = {
    "two_nodes": (2, []),
    "one_node": (1, []),
    "kueue": (
        4,
        [
            "cluster.nodes=4",
            "cluster.kuberay.resources={cpu: 64, memory: 900Gi}",
            "cluster.kuberay.labels={kueue.x-k8s.io/queue-name: team}",
            "cluster.kuberay.wait_s=3600",
            "cluster.kuberay.pod={nodeSelector: {pool: h100}, serviceAccountName: trainer}",
        ],
    ),
    "cpu": (2, ["cluster.device=cpu", "cluster.gpus_per_node=1", "cluster.gpu=null"]),
}


# -- the manifest


@pytest.mark.parametrize("name", MANIFESTS)
def test_golden(name: str) -> None:
    nodes, overrides = MANIFESTS[name]
    text = rayjob.to_yaml(manifest(nodes, *overrides), head="A RayJob of the tests.")
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("SWEEPER_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), "if this is meant: SWEEPER_UPDATE_GOLDEN=1 pytest tests/clusters/test_kuberay.py"


def test_the_entrypoints_script_is_as_on_record_and_shellcheck_finds_nothing() -> None:
    folder = Path("/store/lr search/trials/000/attempt-1")
    listen = ["python3", "-I", "-S", "/store/lr search/gang-0123/listen.py", str(folder), "0"]
    command = ["python3", "-I", "-S", "/store/lr search/gang-0123/node.py", "run", str(folder), "0"]
    text, path = rayjob.entry(listen, command, folder / "gang"), GOLDEN / "entry.sh"
    if os.environ.get("SWEEPER_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
    if checker := shutil.which("shellcheck"):
        done = subprocess.run([checker, str(path)], capture_output=True, text=True, check=False)
        assert done.stdout == ""


def schema() -> Any:
    """KubeRay's schema of a RayJob, closed as an API server closes it under strict validation."""
    if not CRD.exists():
        pytest.skip("KubeRay's definition of a RayJob is not here")
    crd = yaml.load(gzip.decompress(CRD.read_bytes()), Loader=yaml.CSafeLoader)
    (found,) = (v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1")

    def close(part: Any) -> None:
        if isinstance(part, list):
            for entry in part:
                close(entry)
        if not isinstance(part, dict):
            return
        opened = part.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in part
        if part.get("type") == "object" and "properties" in part and not opened:
            part["additionalProperties"] = False
        if part.pop("x-kubernetes-int-or-string", None):
            part.pop("type", None)
            part["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        for entry in list(part.values()):
            close(entry)

    close(found)
    found["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft7Validator(found)


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberays_schema_accepts_it(name: str) -> None:
    nodes, overrides = MANIFESTS[name]
    assert [error.message for error in schema().iter_errors(manifest(nodes, *overrides))] == []


def test_the_schema_would_find_a_mistake() -> None:
    made = manifest(2)
    made["spec"]["backofLimit"] = 0
    made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "1"
    del made["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert len(list(schema().iter_errors(made))) == 3


def test_a_gang_is_the_head_and_the_workers_with_all_gpus_of_a_node_each() -> None:
    cluster = manifest(4, "cluster.nodes=4")["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (3, 3, 3)
    for part in (cluster["headGroupSpec"], workers):
        (container,) = part["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
        assert part["rayStartParams"]["num-gpus"] == "8"


def test_a_secret_is_in_the_secret_only() -> None:
    values = {"SWEEPER_GANG_TOKEN": "t0k3n", "HF_TOKEN": "hf_s3cr3t"}
    config = group(CLAIM)
    made = rayjob.rayjob(job(), config, name="a", script=Path("/store/x"), variables=list(values))
    assert not any(value in json.dumps(made) for value in values.values())
    assert rayjob.secret("a", values, config)["stringData"] == {"auth_token": "t0k3n", "HF_TOKEN": "hf_s3cr3t"}
    env = made["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    by_name = {entry["name"]: entry for entry in env}
    assert by_name["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "a", "key": "HF_TOKEN"}
    assert made["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "a"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "claim is not given"),
        ([CLAIM, "cluster.kuberay.mount=store"], "no absolute path"),
        ([CLAIM, "cluster.kuberay.ray_version=2.40.0"], "too old for Ray's token"),
        ([CLAIM, "cluster.kuberay.resources=64"], "resources=64 is no mapping"),
        ([CLAIM, "+cluster.kuberay.pvc=store"], "pvc=store is no key"),
        (["cluster.kuberay=two"], "takes the place of a whole section"),
        ([CLAIM, "cluster.kuberay.wait_s=long"], "is no number of seconds"),
        ([CLAIM, "cluster.kuberay.shm=[a]"], "is no text"),
        ([CLAIM, "cluster.gpus_per_node=null"], "cluster.gpus_per_node is not given"),
    ],
)
def test_what_cannot_be_is_named_without_a_server(overrides: list[str], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        clusters.shape(group(*overrides))


# -- with a fake API server


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    pytest.importorskip("kubernetes")
    fake = FakeKubernetes()
    threading.Thread(target=fake.serve_forever, daemon=True).start()
    path = tmp_path / "kubeconfig"
    fake.kubeconfig(path)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    monkeypatch.setattr(queued, "LOOK_S", 0.05)
    api.server.cache_clear()
    kuberay.watcher.cache_clear()
    yield fake
    fake.shutdown()


def opened(tmp_path: Path, *overrides: str) -> kuberay.KubeRayCluster:
    config = group(CLAIM, f"cluster.kuberay.mount={tmp_path}", *overrides)
    made = kuberay.open(config, clusters.shape(config))
    assert isinstance(made, kuberay.KubeRayCluster)
    return made


def started(
    cluster: kuberay.KubeRayCluster, tmp_path: Path, trial: str = "000", places: tuple[int, ...] = (0, 1), **how: Any
) -> queued.QueuedAttempt:
    folder = tmp_path / "runs" / "demo" / "trials" / trial / "attempt-1"
    folder.mkdir(parents=True)
    attempt = cluster.start(job(**how), folder, places)
    assert isinstance(attempt, queued.QueuedAttempt)
    return attempt


def until(true: Any) -> Any:
    deadline = time.monotonic() + 600
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_a_rayjob_runs_to_its_end_and_leaves_nothing(
    kubernetes: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_s3cr3t")
    cluster = opened(tmp_path)
    assert cluster.free() == (8, 8)
    attempt = started(cluster, tmp_path)
    made = until(lambda: kubernetes.rayjobs.get(attempt.name))
    assert cluster.free() == (0, 0)
    until(lambda: kubernetes.secrets[attempt.name]["metadata"].get("ownerReferences"))
    assert kubernetes.secrets[attempt.name]["stringData"]["HF_TOKEN"] == "hf_s3cr3t"
    creation = next(q for method, path, q in kubernetes.queries if method == "POST" and path.endswith("rayjobs"))
    assert creation["fieldValidation"] == ["Strict"]
    assert yaml.safe_load((attempt.folder / "rayjob.yaml").read_text())["spec"] == made["spec"]
    for path in attempt.folder.rglob("*"):
        assert not path.is_file() or "hf_s3cr3t" not in path.read_text()
    kubernetes.run_pod(attempt.name, "head")
    kubernetes.run_pod(attempt.name, "worker")
    kubernetes.say(attempt.name, jobDeploymentStatus="Running", jobStatus="RUNNING")
    until(lambda: attempt.waiting() == "")
    assert attempt.poll() is None
    ended = {"code": 0, "reason": "exit", "detail": "", "ended": time.time()}
    (attempt.folder / "gang" / "0.exit.json").write_text(json.dumps(ended))
    kubernetes.say(attempt.name, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    time.sleep(0.3)
    assert attempt.poll() is None  # its pods are there
    kubernetes.pods.clear()
    end = attempt.wait(600)
    assert (end.code, end.reason) == (0, "exit")
    assert cluster.free() == (8, 8)
    until(lambda: not kubernetes.rayjobs and not kubernetes.secrets)


ENDS: dict[str, tuple[dict[str, str], str, str]] = {
    "no pods in time": (
        {"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded", "message": "3600 s"},
        "launch", "3600 s",
    ),
    "not submitted": ({"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed"}, "launch", "SubmissionFailed"),
    "refused by KubeRay": (
        {"jobDeploymentStatus": "ValidationFailed", "message": "rayVersion is too old"}, "launch", "too old",
    ),
    "head lost": ({"jobDeploymentStatus": "Failed", "reason": "AppFailed"}, "lost", "left no record"),
    "deadline": ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, "preempted", "DeadlineExceeded"),
    "stopped by hand": ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "stopped", "Complete"),
}  # fmt: skip


@pytest.mark.parametrize("how", ENDS)
def test_what_kuberay_says_of_an_end_without_a_record(kubernetes: FakeKubernetes, tmp_path: Path, how: str) -> None:
    status, reason, said = ENDS[how]
    attempt = started(opened(tmp_path), tmp_path)
    until(lambda: attempt.name in kubernetes.rayjobs)
    kubernetes.say(attempt.name, **status)
    end = attempt.wait(600)
    assert end.reason == reason
    assert said in end.detail and attempt.name in end.detail
    assert json.loads((attempt.folder / "exit.json").read_text())["reason"] == reason


def test_what_keeps_a_pod_from_running_is_told(kubernetes: FakeKubernetes, tmp_path: Path) -> None:
    attempt = started(opened(tmp_path), tmp_path)
    until(lambda: attempt.name in kubernetes.rayjobs)
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/4 nodes have GPUs"}
    kubernetes.run_pod(attempt.name, "head", phase="Pending", conditions=[condition])
    kubernetes.say(attempt.name, jobDeploymentStatus="Initializing")
    assert "head: Unschedulable: 0/4 nodes have GPUs" in until(
        lambda: attempt.waiting() if "0/4" in attempt.waiting() else ""
    )


def test_one_that_kueue_takes_the_pods_from_is_preempted_and_does_not_start_over(
    kubernetes: FakeKubernetes, tmp_path: Path
) -> None:
    attempt = started(opened(tmp_path), tmp_path)
    until(lambda: attempt.name in kubernetes.rayjobs)
    kubernetes.say(attempt.name, jobDeploymentStatus="Suspended")  # it has never run: it waits
    until(lambda: "Suspended" in attempt.waiting())
    assert attempt.poll() is None
    (attempt.folder / "gang" / "0.json").write_text("{}")
    until(lambda: attempt.poll() or attempt.name not in kubernetes.rayjobs)
    assert attempt.wait(600).reason == "preempted"


def test_a_stop_asks_in_the_file_and_a_kill_deletes(kubernetes: FakeKubernetes, tmp_path: Path) -> None:
    cluster = opened(tmp_path, "cluster.nodes=4")
    gentle, hard = started(cluster, tmp_path), started(cluster, tmp_path, "001", (2, 3))
    for attempt in (gentle, hard):
        until(lambda a=attempt: a.name in kubernetes.rayjobs)
        (attempt.folder / "gang" / "0.json").write_text("{}")
        kubernetes.run_pod(attempt.name, f"{attempt.name}-head")
        kubernetes.say(attempt.name, jobDeploymentStatus="Running")
    gentle.stop(dump=True)
    assert (gentle.folder / "gang" / "ask").read_bytes() == b"d"
    hard.kill()
    assert hard.wait(600).reason == "stopped"
    assert hard.name not in kubernetes.rayjobs and f"{hard.name}-head" not in kubernetes.pods
    assert gentle.name in kubernetes.rayjobs and gentle.poll() is None


def test_one_that_is_stopped_before_it_runs_is_deleted_at_once(kubernetes: FakeKubernetes, tmp_path: Path) -> None:
    attempt = started(opened(tmp_path), tmp_path)
    until(lambda: attempt.name in kubernetes.rayjobs)
    attempt.stop()
    assert attempt.wait(600).reason == "stopped"
    assert not kubernetes.rayjobs


def test_what_the_server_refuses_is_a_failed_launch_that_leaves_nothing(
    kubernetes: FakeKubernetes, tmp_path: Path
) -> None:
    cluster = opened(tmp_path)
    kubernetes.refuse["POST rayjobs"] = (400, 'strict decoding error: unknown field "spec.x"')
    end = started(cluster, tmp_path).wait(600)
    assert (end.code, end.reason) == (None, "launch")
    assert "unknown field" in end.detail
    assert not kubernetes.secrets
    assert cluster.free() == (8, 8)


def test_another_controller_takes_it_up(kubernetes: FakeKubernetes, tmp_path: Path) -> None:
    first = started(opened(tmp_path), tmp_path)
    until(lambda: first.name in kubernetes.rayjobs)
    kubernetes.say(first.name, jobDeploymentStatus="Running")
    kubernetes.run_pod(first.name, "head")
    cluster = opened(tmp_path)
    again = cluster.attach(first.folder)
    assert again is not None and again.poll() is None
    assert cluster.free() == (0, 0)
    kubernetes.rayjobs.clear()
    time.sleep(0.3)
    assert again.poll() is None  # its pod is there
    kubernetes.pods.clear()
    end = again.wait(600)  # type: ignore[attr-defined]
    assert end.reason == "lost" and "never submitted, or deleted" in end.detail


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda k: k.refuse.update({"GET rayjobs": (404, "not found")}), "KubeRay is not installed"),
        (lambda k: k.refuse.update({"GET rayjobs": (403, "me may not list")}), "me may not list"),
        (lambda k: k.claims.clear(), "claim store cannot be used"),
        (lambda k: k.claims["store"]["spec"].update(accessModes=["ReadWriteOnce"]), "pods on other nodes"),
        (lambda k: (k.shutdown(), k.server_close()), "does not answer"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_started(
    kubernetes: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any, said: str
) -> None:
    monkeypatch.setattr(api, "TIMEOUT_S", 2.0)
    how(kubernetes)
    with pytest.raises(RequestError, match=said) as error:
        opened(tmp_path)
    assert error.value.problems[0].fix or error.value.problems[0].valid


def test_no_kubeconfig_and_an_unknown_context(kubernetes: FakeKubernetes, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no context other"):
        opened(tmp_path, "cluster.kuberay.context=other")


@pytest.mark.parametrize(("how", "said"), [({"image": None}, "engine.image=REGISTRY"), ({}, "is not below /elsewhere")])
def test_a_job_that_the_pods_could_not_run_fails_at_launch(
    kubernetes: FakeKubernetes, tmp_path: Path, how: dict[str, Any], said: str
) -> None:
    mount = "/elsewhere" if not how else str(tmp_path)
    config = group(CLAIM, f"cluster.kuberay.mount={mount}")
    cluster = kuberay.open(config, clusters.shape(config))
    folder = tmp_path / "runs" / "demo" / "trials" / "000" / "attempt-1"
    folder.mkdir(parents=True)
    attempt = cluster.start(job(**how), folder, (0, 1))
    assert attempt is not None
    end = attempt.poll()
    assert end is not None and end.reason == "launch" and said in end.detail
    assert not kubernetes.rayjobs


# -- the entrypoint, with real Ray


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"a": 8.0, "b": 8.0}, ""),
        ({"a": 8.0}, "1 of 2 nodes are there (GPUs: a with 8)"),
        ({"a": 8.0, "b": 8.0, "c": 8.0}, "3 of 2 nodes"),
        ({"a": 8.0, "b": 7.0}, "each node must have 8 GPUs (a with 8, b with 7)"),
        ({}, "0 of 2 nodes are there (GPUs: none)"),
    ],
)
def test_a_gang_is_complete_with_exactly_its_nodes_and_gpus(there: dict[str, float], said: str) -> None:
    assert await_ray.missing(there, 2, 8).startswith(said) and bool(await_ray.missing(there, 2, 8)) == bool(said)


@pytest.mark.real
def test_the_trainer_starts_on_the_head_once_the_last_pod_is_there(tmp_path: Path) -> None:
    """The entrypoint as it is, in a real Ray cluster that we start as KubeRay does: the head, and later the worker."""
    config = group(CLAIM, f"cluster.kuberay.mount={tmp_path}", "cluster.device=cpu", "cluster.gpus_per_node=1")
    cluster = kuberay.KubeRayCluster(config, clusters.shape(config), server := Unasked())
    folder = tmp_path / "runs" / "demo" / "trials" / "000" / "attempt-1"
    folder.mkdir(parents=True)
    code = "from os import environ as e; print('trainer at', e['RAY_ADDRESS'], len(e['RAY_AUTH_TOKEN'])); exit(4)"
    gang = Gang(nodes=2, gpus_per_node=0)  # the raylets of the tests have no GPUs
    _, made = cluster.prepare(job(argv=(sys.executable, "-c", code), python=sys.executable, gang=gang), folder, "demo")
    with ray_cluster.Raylets(1) as ray:
        env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "RAY_ADDRESS": ray.address, **ray.env}
        entrypoint = shlex.split(made["spec"]["entrypoint"])
        head = subprocess.Popen(entrypoint, env=env, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            until((folder / "gang" / "0.json").exists)
            time.sleep(5)  # it asks twice a second; nothing that it could see has changed
            assert "trainer at" not in (folder / "log.txt").read_text()
            ray.join("127.0.0.3")
            head.wait(600)
        finally:
            head.kill()
        assert f"trainer at {ray.address} {len(ray.token)}" in (folder / "log.txt").read_text()
        said = json.loads((folder / "gang" / "0.exit.json").read_text())
        assert (said["code"], said["reason"]) == (4, "exit")
        again = subprocess.run(entrypoint, env=env, capture_output=True, text=True, check=False)
        assert again.returncode == 70 and "a retry is a new attempt" in again.stderr
    assert server.asked == 0


class Unasked(api.Server):
    """No API server: nothing that is tested with it asks one."""

    def __init__(self) -> None:
        self.context, self.namespace, self.asked = None, "default", 0

    def look(self, names: tuple[str, ...]) -> dict[str, api.RayJob]:
        self.asked += 1
        return {}
