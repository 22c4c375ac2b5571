"""Two attempts at once, each with a real Ray cluster of its own and a fork server, on one machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sweeper.clusters.gang import janitor
from sweeper.clusters.local import LocalAttempt, LocalCluster
from sweeper.engines.base import Gang, Job, Shape

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
