"""`cluster=dstack`: an attempt is a task of a dstack server, a gang is the task's nodes.

Guarantees: planning asks nobody; before the first trial is started, the server, the token, the project and the fleet
are known to be there; what a task is made from is in the attempt's folder (`task.dstack.yml`), without secrets.

The modules: `task` makes what dstack is given, `server` speaks with it; sweeper.clusters.queued follows attempts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sweeper.clusters import gangs, planned, queued
from sweeper.clusters.base import Attempt, Cluster
from sweeper.clusters.dstack import server, task
from sweeper.engines.base import Job, Shape
from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.trial.records import write_text

KIND = "dstack"
TASK = "task.dstack.yml"


class Tasks:
    """The server's runs, as a queue."""

    def __init__(self, at: server.Server) -> None:
        self.server = at

    def look(self, names: tuple[str, ...]) -> Mapping[str, server.Run]:
        """What the server says of those runs."""
        return self.server.runs(names)

    def end(self, name: str, *, now: bool) -> None:
        """Stop a run."""
        self.server.stop(name, abort=now)

    def clear(self, name: str) -> None:
        """Nothing: `dstack ps -a` is a history."""


@lru_cache
def watcher(at: server.Server) -> queued.Watcher:
    """The one of this process for that project."""
    return queued.Watcher(Tasks(at))


class DstackCluster(queued.QueueCluster):
    """A dstack project as a place where each trial is a task."""

    kind = KIND
    elsewhere = (
        "dstack starts nodes for a task and runs nothing beside it: `dstack fleet` and `dstack offer` say what is"
    )

    def __init__(self, config: Mapping[str, Any], shape: Shape, at: server.Server) -> None:
        super().__init__(config, shape, watcher(at))
        self._server = at

    def unready(self, job: Job, folder: Path) -> str:  # noqa: ARG002
        """Whether the task's nodes see the folder."""
        return task.mounted(folder, self._config)

    def submission(self, job: Job, folder: Path, name: str) -> tuple[Callable[[], None], dict[str, Any]]:
        """Its task."""
        made, values = self.prepare(job, folder, name)
        where = {"project": self._server.project, "url": self._server.url}
        return lambda: self._server.submit(task.filled(made, values)), where

    def prepare(self, job: Job, folder: Path, name: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Write the attempt's files; its task, and the values of the variables that are in it by name."""
        values = gangs.secrets(job, gangs.new_token())
        unknown = [gangs.Node() for _ in range(job.gang.nodes)]
        gangs.prepare(job, folder, unknown, shape=self.shape, leases=False, join_s=float(self._config["join_s"]))
        queued.open_ask(folder)
        python = str(self._config["python"])
        made = task.task(
            job,
            self._config,
            name=name,
            command=gangs.argv(folder, task.RANK, python=python),
            listen=queued.listen_argv(folder, task.RANK, python=python),
            variables=list(values),
        )
        head = "An attempt of a trial. The sweep submits it; variables without a value come from the environment."
        write_text(folder / TASK, task.to_yaml(made, head=head))
        return made, values


shape = planned.said
problems = task.problems


def open(config: Mapping[str, Any], shape: Shape) -> Cluster:
    """The project, once its server, our token and the fleet are known to be there.

    Raises:
        RequestError: One of them is not.
    """
    ours = task.settings(config)
    at = server.Server.configured(ours["project"])
    at.check()
    wanted = ours["fleet"]
    try:
        fleets = at.fleets()
    except SweeperError as error:
        raise RequestError(Problem(str(error), key="cluster.kind")) from error
    if wanted and wanted not in fleets:
        raise RequestError(
            Problem(
                f"project {at.project} of dstack has no fleet {wanted}",
                valid=f"fleets: {', '.join(sorted(fleets)) or 'none'}",
                fix="python -m sweeper.clusters.dstack.fleet cluster=dstack > fleet.dstack.yml; "
                "dstack apply -f fleet.dstack.yml",
                key="cluster.dstack.fleet",
            )
        )
    return DstackCluster(config, shape, at)


def attach(folder: Path, started: Mapping[str, Any]) -> Attempt | None:
    """The attempt of that folder, whose controller is gone.

    Raises:
        SweeperError: Its server is not known to the `dstack` command on this machine.
    """
    at = server.Server.configured(str(started.get("project") or "") or None)
    return queued.attached(folder, started, watcher(at))
