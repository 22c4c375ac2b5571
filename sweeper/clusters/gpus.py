"""What GPUs of a name have, by their vendors: so that a plan for memory that none has is not made.

Guarantees: arithmetic only; a name that is not in the table is not judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeper.errors import Problem

MOST_GB = {
    "B200": 192,
    "H200": 141,
    "H100": 96,  # 80 as SXM and PCIe, 94 as NVL, 96 beside a Grace
    "A100": 80,
    "L40S": 48,
    "L40": 48,
    "A6000": 48,
    "L4": 24,
    "A10G": 24,
    "A10": 24,
    "RTX4090": 24,
    "RTX3090": 24,
    "V100": 32,
    "T4": 16,
}
"""GB of the largest variant of a name, by the vendor's data sheets."""
REPORTED = 0.93
"""GiB that the driver reports of a GB in the name, at least: 44.5 of an L40S's 48 with error correction."""


def most_gb(name: str) -> int | None:
    """The most memory that a GPU of that name has; None where it is not known."""
    return MOST_GB.get(name.upper().replace(" ", "").replace("-", ""))


def problems(config: Mapping[str, Any]) -> list[Problem]:
    """Whether the `cluster` group plans for more memory than its GPU has."""
    name, planned = config.get("gpu"), config.get("gpu_memory_gib")
    most = most_gb(name) if isinstance(name, str) else None
    if most is None or not isinstance(planned, int | float) or planned <= most:
        return []
    return [
        Problem(
            f"cluster.gpu_memory_gib={planned:g}, and the largest {name} has {most} GB",
            valid=f"what nvidia-smi reports of one: more than 0, at most {most}",
            fix=f"cluster.gpu_memory_gib={most * REPORTED:.1f}",
            key="cluster.gpu_memory_gib",
        )
    ]
