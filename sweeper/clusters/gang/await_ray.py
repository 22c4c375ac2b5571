"""Starts the trainer in a Ray cluster that somebody else has started, once exactly the gang's nodes are in it.

    PYTHON await_ray.py NODES GPUS JOIN_S -- COMMAND...     (the engine's interpreter; RAY_ADDRESS names the cluster)

Guarantees: the command is started only when NODES nodes with GPUs GPUs each are alive in the cluster, and no more of
them; until then the cluster is asked, never slept for; after JOIN_S seconds it gives up, says on stderr which nodes are
there and what is missing, and ends with code 69. The command then runs in this very process.
"""

from __future__ import annotations

import os
import sys
import time

ASK_S = 0.5
GAVE_UP = 69  # EX_UNAVAILABLE


def found(nodes: list[dict[str, object]]) -> dict[str, float]:
    """The GPUs of each node that is alive, by its address."""
    alive = [node for node in nodes if node.get("Alive")]
    return {str(n["NodeManagerAddress"]): float(n["Resources"].get("GPU", 0)) for n in alive}  # type: ignore[attr-defined]


def missing(there: dict[str, float], nodes: int, gpus: int) -> str:
    """What keeps the gang from being complete; empty when nothing does."""
    listed = ", ".join(f"{name} with {count:g}" for name, count in sorted(there.items())) or "none"
    if len(there) != nodes:
        return f"{len(there)} of {nodes} nodes are there (GPUs: {listed})"
    if any(count != gpus for count in there.values()):
        return f"each node must have {gpus} GPUs ({listed})"
    return ""


def look(nodes: int, gpus: int) -> str:
    """`missing` of the cluster as it is now, or why it does not answer."""
    import ray

    try:
        if not ray.is_initialized():
            ray.init("auto", log_to_driver=False, logging_level="ERROR")  # never one of our own
        return missing(found(ray.nodes()), nodes, gpus)
    except Exception as error:  # Ray has several for a head that is not there yet, or too busy
        ray.shutdown()
        return f"Ray at {os.environ.get('RAY_ADDRESS', 'auto')} does not answer: {error}"


def main() -> int:
    """Wait, then become the command."""
    nodes, gpus, join_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    command = sys.argv[sys.argv.index("--") + 1 :]
    import ray

    deadline = time.monotonic() + join_s
    while why := look(nodes, gpus):
        if time.monotonic() > deadline:
            print(f"sweeper: the gang is not complete after {join_s:g} s: {why}", file=sys.stderr, flush=True)
            return GAVE_UP
        time.sleep(ASK_S)
    ray.shutdown()
    return os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
