"""What this machine has, found in milliseconds and without importing torch: cores, memory, accelerators."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from sweeper.engines.base import Shape
from sweeper.errors import Problem, RequestError

GIB_PER_CPU_RANK = 4
"""A rank of the tiny model on the CPU peaks at 3.6 GiB over all its processes (measured with verl 0.9.1)."""
NVIDIA = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One visible GPU."""

    id: str
    """What CUDA_VISIBLE_DEVICES calls it."""
    name: str
    memory_gib: float
    uuid: str = ""
    """Its name on any machine and in any container; empty if the driver gave none."""


def cores() -> int:
    """Cores that this process may use: its affinity, and the CPU quota of its control group."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return allowed


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


def gpu_name(driver_name: str) -> str:
    """The driver's name as people say it: `NVIDIA H100 80GB HBM3` -> `H100`."""
    name = re.sub(r"^NVIDIA\s+", "", driver_name.strip())
    name = re.sub(r"^(Tesla|Quadro)\s+", "", name)
    short = re.match(r"(GeForce RTX \d+\w*( Ti| SUPER)*|RTX \w+|[A-Z]+\d+\w*)", name)
    return short.group(0) if short else name


def accelerators() -> list[Accelerator]:
    """The NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves visible; empty without a driver."""
    tool = shutil.which("nvidia-smi")
    if not tool or not (NVIDIA.is_dir() or Path("/dev/dxg").exists()):  # the latter: Windows' Linux
        return []
    query = "--query-gpu=index,uuid,name,memory.total"
    try:
        answer = subprocess.run(
            [tool, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found: dict[str, Accelerator] = {}
    for line in answer.splitlines():
        index, uuid, name, mib = (field.strip() for field in line.split(","))
        found[index] = found[uuid] = Accelerator(index, gpu_name(name), round(float(mib) / 1024, 1), uuid)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [found[index] for index in found if index.isdigit()]
    # Entries after the first invalid one are ignored, as CUDA does.
    chosen = []
    for entry in (e.strip() for e in visible.split(",")):
        if entry not in found:
            break
        chosen.append(found[entry])
    return chosen


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
