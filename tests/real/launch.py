"""Real verl with a composed config, as one process; what the real tests and measurements start.

Guarantees: nothing survives `run`: the attempt is its own process group and session folder, and is killed at the end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sweeper.engines.verl.cpu import environment, overlay

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    code: int
    log: str
    lines: list[dict[str, Any]]
    """The metrics file: {"step": n, "data": {...}} a line."""

    def series(self, key: str) -> list[tuple[int, float]]:
        return [(line["step"], line["data"][key]) for line in self.lines if key in line["data"]]

    def comparable(self) -> list[dict[str, Any]]:
        """All values but those that measure time, memory or the machine."""
        noise = ("timing", "perf/", "perf_", "throughput")
        return [
            {k: v for k, v in line["data"].items() if not any(n in k for n in noise)} | {"line": line["step"]}
            for line in self.lines
        ]


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making mappings on the way."""
    *path, last = key.split(".")
    for name in path:
        if not isinstance(config.get(name), dict):
            config[name] = {}
        config = config[name]
    config[last] = value


def merge(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(under.get(key), dict):
            merge(under[key], value)
        else:
            under[key] = value
    return under


def compose(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """verl's own composed config, the CPU values over it, then the overrides."""
    spec = importlib.util.find_spec("verl")
    assert spec is not None and spec.origin is not None
    text = (Path(spec.origin).parent / "trainer/config/_generated_ppo_trainer.yaml").read_text(encoding="utf-8")
    config = merge(yaml.load(text, Loader=yaml.CSafeLoader), overlay())
    for key, value in overrides.items():
        put(config, key, value)
    return config


def run(folder: Path, overrides: Mapping[str, Any], ranks: int = 1, timeout: float = 400) -> Run:
    """Train to the end; `folder` takes the config, the log and the metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    sockets = tempfile.mkdtemp(prefix="sw", dir="/tmp")  # short: socket paths end at 107 bytes
    config = compose(
        {
            "trainer.n_gpus_per_node": ranks,
            "trainer.default_local_dir": str(folder.parent / "checkpoints"),
            "trainer.logger": ["console", "file"],
            "ray_kwargs.ray_init": {
                "num_cpus": 16,
                "num_gpus": ranks,
                "_temp_dir": sockets,
                "include_dashboard": False,
                "object_store_memory": 200_000_000,
            },
            **overrides,
        }
    )
    config["hydra"] = {"run": {"dir": str(folder)}, "output_subdir": None}
    (folder / "trainer.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    metrics = folder / "metrics.jsonl"
    env = {
        **os.environ,
        **environment(),
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HYDRA_FULL_ERROR": "1",
    }
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "verl.trainer.main_ppo",
                f"--config-path={folder}",
                "--config-name=trainer",
            ],
            cwd=folder,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        finally:
            kill_session(sockets, process)
            shutil.rmtree(sockets, ignore_errors=True)
    text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return Run(code, text, lines)


def kill_session(sockets: str, process: subprocess.Popen[bytes]) -> None:
    """Kill the trainer and whatever carries its session folder on its command line (Ray's daemons and workers)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if entry.name.isdigit() and sockets.encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
    process.wait()
