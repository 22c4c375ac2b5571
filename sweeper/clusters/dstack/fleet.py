"""The fleet that a sweep's tasks run on, as a file for `dstack apply -f`.

python -m sweeper.clusters.dstack.fleet [cluster=dstack] [cluster.nodes=4 ...] > fleet.dstack.yml
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sweeper.clusters.dstack import task
from sweeper.config.compose import compose_points
from sweeper.config.hydra_app import initialized
from sweeper.config.space import read
from sweeper.errors import Problem, RequestError, SweeperError

HEAD = "The fleet of a sweep: dstack apply -f fleet.dstack.yml"


def text(overrides: Sequence[str]) -> str:
    """The file's text for a request; the cluster is dstack's unless the request names another config of that kind.

    Raises:
        RequestError: The request's cluster is wrong.
    """
    named = [*overrides] if any(o.startswith("cluster=") for o in overrides) else ["cluster=dstack", *overrides]
    with initialized():
        items = compose_points(read(named).arms)
    item = items[0]
    if len(items) > 1:
        what = f"{len(items)} requests in one, and a fleet is one"
        raise RequestError(Problem(what, valid="a value for each key", fix="cluster.nodes=4   (without commas)"))
    if (kind := item.config["cluster"]["kind"]) != "dstack":
        what = f"cluster={item.config['cluster']['name']} is of kind {kind}, and this makes fleets of dstack"
        raise RequestError(Problem(what, fix="cluster=dstack", key="cluster"))
    if wrong := task.problems(item.config["cluster"]):
        raise RequestError(wrong)
    return task.to_yaml(task.fleet(item.config["cluster"]), head=HEAD)


def main() -> int:
    """Print it; 2 if the request is wrong."""
    try:
        print(text(sys.argv[1:]), end="")
    except SweeperError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
