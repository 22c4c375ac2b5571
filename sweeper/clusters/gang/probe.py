"""Waits until a Ray cluster has exactly the nodes that it is to have, each with exactly its ranks.

    python probe.py HOST:PORT '[["10.0.0.1", 8], ["10.0.0.2", 8]]' SECONDS      (in the engine's interpreter)

Ends with 0 when it has, else after so many seconds with 1 and a line that says what it has instead.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> int:
    """Ask Ray again and again; the exit code."""
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [path for path in sys.path if path != here]  # our neighbours must not shadow anybody's modules
    import ray

    at, expected, seconds = sys.argv[1], sorted(map(tuple, json.loads(sys.argv[2]))), float(sys.argv[3])
    deadline = time.monotonic() + seconds
    while True:
        try:
            ray.init(address=at, log_to_driver=False, configure_logging=False)
            break
        except ConnectionError:  # its own node is not in it yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    while True:
        there = sorted(
            (node["NodeManagerAddress"], int(node["Resources"].get("GPU", 0))) for node in ray.nodes() if node["Alive"]
        )
        if there == expected:
            return 0
        if time.monotonic() > deadline:
            print(f"sweeper: {expected} (address, ranks) were to be there within {seconds:g} s, and there is {there}")
            return 1
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
