"""What a node has, found in milliseconds and with the standard library only: its NVIDIA GPUs and its cores."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

NVIDIA = Path("/proc/driver/nvidia/gpus")


class Accelerator(NamedTuple):
    """One visible GPU."""

    id: str
    """What CUDA_VISIBLE_DEVICES calls it."""
    name: str
    memory_gib: float
    uuid: str = ""
    """Its name on any machine and in any container; empty if the driver gave none."""
    full_name: str = ""
    """As the driver says it."""
    driver: str = ""
    """The driver's version."""


def cores() -> int:
    """Cores that this process may use: its affinity, and the CPU quota of its control group."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return allowed


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
    query = "--query-gpu=index,uuid,name,memory.total,driver_version"
    try:
        answer = subprocess.run(
            [tool, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found: dict[str, Accelerator] = {}
    for line in answer.splitlines():
        index, uuid, name, mib, driver = (field.strip() for field in line.split(","))
        gib = round(float(mib) / 1024, 1)
        found[index] = found[uuid] = Accelerator(index, gpu_name(name), gib, uuid, name, driver)
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


def machine(device: str, ids: Collection[str] = ()) -> dict[str, Any]:
    """What an attempt is computed by here: {"cpu", "gpus", "driver"}; names as their makers say them.

    Args:
        device: on `cpu` no GPU is looked for.
        ids: of the GPUs that it has; empty: all that are visible.
    """
    gpus = [gpu for gpu in accelerators() if not ids or gpu.id in ids] if device != "cpu" else []
    return {"cpu": processor(), "gpus": [gpu.full_name for gpu in gpus], "driver": gpus[0].driver if gpus else None}


def processor() -> str:
    """The processor's name, or else its architecture."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def ranks(device: str, at_least: int) -> dict[str, str]:
    """The ranks of this node by the names that all sweeps know them by, each with the id of its GPU; empty on a CPU,
    where there are as many as cores, and at least so many."""
    if device == "cuda":
        return {f"gpu-{gpu.uuid or gpu.id}": gpu.id for gpu in accelerators()}
    return {f"cpu-{rank}": "" for rank in range(max(cores(), at_least))}
