"""`sweeper cluster up|status|down`: the Ray cluster that sweeps share (clusters/shared_ray.py)."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from sweeper.clusters import shared_ray
from sweeper.errors import Problem, RequestError


def act(args: argparse.Namespace) -> int:
    """Do it; the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended with us
    store = Path(args.store).absolute()
    if args.what == "status":
        lines, all_up = shared_ray.status(store, args.name)
        print("\n".join(lines))
        return 0 if all_up else 1
    if args.what == "down":
        print(f"cluster {args.name} ended on {', '.join(shared_ray.down(store, args.name))}")
        return 0
    config = _config(list(args.overrides))
    python = str(config["engine"]["python"] or sys.executable)
    ports = {"port": args.port, "dashboard": args.dashboard_port}
    wrong = [
        Problem(f"--{name}={port}", valid="a port from 1024 to 65535", key=name)
        for name, port in (("port", args.port), ("dashboard-port", args.dashboard_port))
        if not 1024 <= port <= 65_535
    ]
    if wrong:
        raise RequestError(wrong)
    shared_ray.up(config["cluster"], store, python, **ports, say=lambda line: print(line, flush=True))
    return 0


def _config(overrides: list[str]) -> dict[str, Any]:
    """The config of those overrides. RequestError if it is none of one cluster of kind ssh."""
    from sweeper.config import schema
    from sweeper.config.compose import compose_points
    from sweeper.config.hydra_app import initialized
    from sweeper.config.space import read

    if not any(line.startswith("cluster=") for line in overrides):
        overrides = ["cluster=ssh", *overrides]
    with initialized():
        composed = compose_points(read(overrides).arms)
    config = composed[0].config
    found = [p for p in schema.check(config) if p.key.startswith(("cluster", "engine"))]
    if len(composed) > 1 or config["cluster"]["kind"] != "ssh":
        found.append(
            Problem(
                f"cluster={config['cluster']['name']}: a Ray cluster is started over hosts that are reached by SSH",
                valid="one cluster of kind ssh",
                fix="sweeper cluster up cluster=ssh cluster.ssh.hosts=[gpu1,gpu2]",
                key="cluster",
            )
        )
    if found:
        raise RequestError(found)
    return config
