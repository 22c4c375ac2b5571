"""What this machine has, found in milliseconds and without importing torch: cores, memory, accelerators."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sweeper.clusters.gang.devices import accelerators, cores
from sweeper.engines.base import Shape
from sweeper.errors import Problem, RequestError

GIB_PER_CPU_RANK = 4
"""A rank of the tiny model on the CPU peaks at 3.6 GiB over all its processes (measured with verl 0.9.1)."""


def available_gib() -> float:
    """Memory that can be had without swapping, within the limit of the control group."""
    meminfo = Path("/proc/meminfo").read_text()
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    available = int(found.group(1)) * 1024 if found else 0
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        available = min(available, limit - used)
    except (OSError, ValueError):  # no cgroup v2, or "max"
        pass
    return available / 2**30


def detect(name: str = "local", device: str = "auto", max_ranks: int | None = None) -> Shape:
    """This machine as a shape. `device` is auto, cpu or cuda; `max_ranks` caps what is used of it.

    On a CPU a rank stands where a GPU would: as many fit at once as there are cores, and memory for them.

    Raises:
        RequestError: It is no Linux machine, or has no GPU where one is asked for.
    """
    if sys.platform != "linux":
        # Processes are found through /proc and tied to their parents by prctl.
        raise RequestError(
            Problem(
                f"this machine runs {sys.platform}, and trials run on Linux only",
                valid="Linux, also inside Windows (WSL) or a container",
                fix="cluster=node_8gpu plan=true plans without running",
                key="cluster",
            )
        )
    gpus = accelerators() if device in ("auto", "cuda") else []
    if device == "cuda" and not gpus:
        raise RequestError(
            [
                Problem(
                    what="this machine has no visible NVIDIA GPU",
                    fix="cluster.device=cpu, or check nvidia-smi and CUDA_VISIBLE_DEVICES",
                    key="cluster.device",
                )
            ]
        )
    if gpus:
        ranks = len(gpus) if max_ranks is None else min(len(gpus), max_ranks)
        return Shape(
            name=name,
            device="cuda",
            nodes=1,
            gpus_per_node=ranks,
            gpu=gpus[0].name,
            gpu_memory_gib=min(gpu.memory_gib for gpu in gpus),
        )
    memory = available_gib()
    ranks = max(1, min(cores(), int(memory) // GIB_PER_CPU_RANK))
    if max_ranks is not None:
        ranks = max(1, min(ranks, max_ranks))
    return Shape(name=name, device="cpu", nodes=1, gpus_per_node=ranks, gpu_memory_gib=round(memory / ranks, 1))
