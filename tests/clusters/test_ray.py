"""Two attempts at once, each with a real Ray cluster of its own and a fork server, on one machine."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sweeper.clusters.gang import janitor
from sweeper.clusters.local import LocalAttempt, LocalCluster
from sweeper.engines.base import Gang, Job, Shape

pytestmark = pytest.mark.real  # a Ray cluster wants the machine to itself to start in time

SHAPE = Shape(name="here", device="cpu", nodes=1, gpus_per_node=4, gpu_memory_gib=4)
TRAINER = """
import json, os, sys, time
import ray
ray.init(runtime_env={"py_executable": sys.argv[2]})

@ray.remote(num_gpus=1)
class Worker:
    def look(self):
        return {"pid": os.getpid(), "preloaded": "decimal" in sys.modules, "mine": os.environ["MINE"],
                "marker": os.environ["SWEEPER_ATTEMPT"], "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}

workers = [Worker.remote() for _ in range(2)]
seen = ray.get([w.look.remote() for w in workers])
(node,) = ray.nodes()
print(json.dumps({"seen": seen, "address": os.environ["RAY_ADDRESS"], "resources": node["Resources"],
                  "session": node["ObjectStoreSocketName"]}))
open("met", "w").close()
while not os.path.exists("../" + sys.argv[1] + "/met"): time.sleep(0.05)   # both are up at the same time
"""


def test_two_rays_at_once_are_strangers(tmp_path: Path) -> None:
    cluster = LocalCluster(SHAPE)
    attempts = []
    for name, other in (("a", "b"), ("b", "a")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "trainer.py").write_text(TRAINER)
        job = Job(
            argv=(sys.executable, str(folder / "trainer.py"), other),
            env={"MINE": name, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_LOG_TO_DRIVER": "0"},
            inherit=(),
            files={},
            gang=Gang(nodes=1, gpus_per_node=2),
            python=sys.executable,
            metrics="metrics.jsonl",
            total_steps=1,
            preload=("decimal",),
            fork_argv=("{python}",),
        )
        attempt = cluster.start(job, folder, (0,))
        assert isinstance(attempt, LocalAttempt)
        attempts.append(attempt)
    said: list[dict[str, Any]] = []
    for attempt in attempts:
        assert attempt.wait(120).code == 0, (attempt.folder / "log.txt").read_text()
        lines = (attempt.folder / "log.txt").read_text().splitlines()
        said.append(json.loads(next(line for line in lines if line.startswith("{"))))
    for name, one in zip("ab", said, strict=True):
        assert one["resources"]["GPU"] == 2
        assert one["resources"]["CPU"] == 16
        assert [w["mine"] for w in one["seen"]] == [name, name]
        assert all(w["preloaded"] for w in one["seen"])  # Ray's workers come from the fork server
        assert sorted(w["visible"] for w in one["seen"]) == ["0", "1"]
        assert one["address"].startswith("127.0.0.2:")
    assert said[0]["address"] != said[1]["address"]
    assert said[0]["session"].split("/")[2] != said[1]["session"].split("/")[2]
    for attempt in attempts:
        assert attempt.den is not None
        assert not attempt.den.exists()
        assert janitor.marked(attempt.den.name.removeprefix(janitor.PREFIX)) == []
        assert not any(Path(f"/proc/{w['pid']}").exists() for one in said for w in one["seen"])


HANGS = """
import sys, time
import ray
ray.init(runtime_env={"py_executable": sys.argv[1]} if sys.argv[1:] else None)

@ray.remote
class Worker:
    def worker_hangs_here(self):
        open("hangs", "w").close()
        time.sleep(600)

def driver_waits_here():
    ray.get(Worker.remote().worker_hangs_here.remote())

driver_waits_here()
"""


@pytest.mark.parametrize("forked", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_dump_shows_where_rays_workers_hang(tmp_path: Path, forked: bool) -> None:
    (tmp_path / "trainer.py").write_text(HANGS)
    job = Job(
        argv=(sys.executable, str(tmp_path / "trainer.py")),
        env={"RAY_LOG_TO_DRIVER": "0"},
        inherit=(),
        files={},
        gang=Gang(nodes=1, gpus_per_node=1),
        python=sys.executable,
        metrics="metrics.jsonl",
        total_steps=1,
        preload=("decimal",) if forked else (),
        fork_argv=("{python}",) if forked else (),
    )
    attempt = LocalCluster(SHAPE).start(job, tmp_path, (0,))
    assert isinstance(attempt, LocalAttempt)
    deadline = time.monotonic() + 240  # a loaded machine
    while not (tmp_path / "hangs").exists():
        assert attempt.poll() is None and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
        time.sleep(0.05)
    attempt.stop(dump=True)
    assert attempt.wait(60).reason == "stopped"
    log = (tmp_path / "log.txt").read_text()
    assert "in worker_hangs_here" in log
    assert "in driver_waits_here" in log
    assert log.count("sweeper: stacks of process") == 2  # the driver and the worker, none of Ray's own
