"""What a host says when it is asked over a connection: what it has, what is free, which attempts live there.

The source of this module and of those that it imports is sent to the host's Python on stdin, with the question, because
a host that is asked for the first time has nothing of ours (clusters/hosts.py sends it). Guarantees:
standard library only, any Python from 3.9; one line of JSON; nothing is changed but that orphans are ended.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

if __package__:
    from sweeper.clusters.gang import devices, leases, node
else:
    import devices  # type: ignore[no-redef, import-not-found]
    import leases  # type: ignore[no-redef, import-not-found]
    import node  # type: ignore[no-redef, import-not-found]


def about(device: str) -> dict[str, Any]:
    """What the machine has. `device`: cpu does not look for GPUs."""
    gpus = devices.accelerators() if device != "cpu" else []
    ids = {f"gpu-{gpu.uuid or gpu.id}": gpu.id for gpu in gpus}
    return {
        "python": list(sys.version_info[:2]),
        "hostname": socket.gethostname(),
        "user": [os.getuid(), os.getgid()],
        "ids": ids,
        "gpu": gpus[0].name if gpus else "",
        "gpu_memory_gib": min((gpu.memory_gib for gpu in gpus), default=0.0),
        "cores": devices.cores(),
        "available_gib": available_gib(),
    }


def available_gib() -> float:
    """Memory that can be had without swapping; 0 if the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        return int(text.split("MemAvailable:")[1].split()[0]) / 2**20
    return 0.0


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """To each question that is asked, its answer under the same name.

    `about`: see above. `free`: a list of ranks -> those that nobody holds. `look`: folders of attempts -> which ranks
    of each live here. `read`: a file -> its text, None if it cannot be read. `which`: programs -> those that are
    not there.
    """
    said: dict[str, Any] = {}
    if "about" in asked:
        said["about"] = about(asked["about"])
    if "free" in asked:
        said["free"] = leases.free(asked["free"])
    if "look" in asked:
        said["look"] = node.look([Path(folder) for folder in asked["look"]])
    if "read" in asked:
        said["read"] = None
        with contextlib.suppress(OSError, ValueError):
            said["read"] = Path(asked["read"]).read_text()
    if "which" in asked:
        said["which"] = [program for program in asked["which"] if shutil.which(program) is None]
    return said
