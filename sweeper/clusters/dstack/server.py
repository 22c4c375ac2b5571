"""A dstack server, by the REST API that its documentation gives for submitting and following runs.

Guarantees: only the standard library is needed, so that dstack may have an environment of its own (its pins are many),
or none on this machine; the token is read from where `dstack` itself keeps it and goes into a header and nowhere else;
what the server refuses is told in its own words with the command that mends it. Checked against dstack 0.22.5.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml

from sweeper.clusters.base import Exit
from sweeper.errors import Problem, RequestError, SweeperError

CONFIG = "~/.dstack/config.yml"
TIMEOUT_S = 30.0
FINISHED = ("terminated", "failed", "done")
NO_CAPACITY = "failed_to_start_due_to_no_capacity"
TAKEN = ("interrupted_by_no_capacity", "instance_access_revoked")
"""The provider took the node back."""
BEFORE_IT_RAN = (
    NO_CAPACITY, "creating_container_error", "waiting_instance_limit_exceeded", "waiting_runner_limit_exceeded",
    "ports_binding_failed", "volume_error",
)  # fmt: skip
FOLLOWS = "terminated_by_server"
"""What the other nodes' jobs end with once one has failed: never the cause."""


class RefusedError(SweeperError):
    """The server answered, and it was no."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Run:
    """What the server says of one of our runs."""

    name: str
    status: str
    """`pending`, `submitted`, `provisioning`, `running`, `terminating`, `terminated`, `failed` or `done`."""
    reason: str = ""
    """Why the run ended, or is about to."""
    job_reason: str = ""
    """Why the job that failed first did."""
    message: str = ""
    """The server's own words about that job."""
    exit_status: int | None = None
    """Of that job's command."""

    @property
    def over(self) -> bool:
        """Whether nothing of it is on any node."""
        return self.status in FINISHED

    @property
    def requeued(self) -> bool:
        """Never: a task of ours is tried again only while it waits for nodes."""
        return False

    @property
    def waiting(self) -> str:
        """Why it does not run yet; empty once it does."""
        if self.over or self.status in ("running", "terminating"):
            return ""
        why = f": {self.message}" if self.message else ""
        return f"dstack says {self.status}{why}"

    def exit(self) -> Exit:
        """How an attempt ended that left no record of its own."""
        said = f"dstack run {self.name} is {self.status}"
        why = " ".join(filter(None, [self.job_reason or self.reason, f"({self.message})" if self.message else ""]))
        said += f": {why}" if why else ""
        now = time.time()
        if self.reason in ("stopped_by_user", "aborted_by_user"):
            return Exit(None, "stopped", said, now)
        if self.job_reason == NO_CAPACITY:
            fix = (
                "no fleet has the nodes free, and none can be had: `dstack fleet` and `dstack offer` show what is, "
                "cluster.dstack.fleet names the fleet, cluster.dstack.wait=1d waits for one"
            )
            return Exit(None, "launch", f"{said}; {fix}", now)
        if self.job_reason in BEFORE_IT_RAN:
            return Exit(None, "launch", f"{said}; `dstack logs -d {self.name}` has more", now)
        if self.job_reason in TAKEN:
            return Exit(None, "preempted", said, now)
        if self.job_reason == "container_exited_with_error":
            code = "" if self.exit_status is None else f" with code {self.exit_status}"
            detail = f"{said}; the command ended{code} before the attempt had begun: `dstack logs {self.name}` says why"
            return Exit(None, "launch", detail, now)
        return Exit(None, "lost", f"{said}, and the attempt left no record", now)

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Run:
        """From the server's JSON."""
        latest = [job["job_submissions"][-1] for job in said.get("jobs") or [] if job.get("job_submissions")]
        failed = [j for j in latest if j.get("termination_reason") not in (None, FOLLOWS)]
        failed.sort(key=lambda j: j.get("finished_at") or "9")
        first: Mapping[str, Any] = failed[0] if failed else {}
        return cls(
            name=str((said.get("run_spec") or {}).get("run_name") or ""),
            status=str(said.get("status")),
            reason=str(said.get("termination_reason") or ""),
            job_reason=str(first.get("termination_reason") or ""),
            message=str(first.get("termination_reason_message") or said.get("error") or ""),
            exit_status=first.get("exit_status"),
        )


@dataclass(frozen=True, slots=True)
class Server:
    """One project of a dstack server."""

    url: str
    project: str
    token: str = field(repr=False)

    @classmethod
    def configured(cls, project: str | None) -> Server:
        """The project of that name (None: $DSTACK_PROJECT, else the default one) as the `dstack` command knows it.

        Raises:
            RequestError: There is none.
        """
        path = Path(CONFIG).expanduser()
        wanted = project or os.environ.get("DSTACK_PROJECT")
        try:
            known = [
                p for p in (yaml.safe_load(path.read_text()) or {}).get("projects") or [] if isinstance(p, Mapping)
            ]
        except (OSError, yaml.YAMLError, AttributeError):
            known = []
        for entry in known:
            if entry.get("name") == wanted if wanted else entry.get("default"):
                return cls(str(entry["url"]).rstrip("/"), str(entry["name"]), str(entry["token"]))
        names = ", ".join(str(p.get("name")) for p in known) or "none"
        what = f"dstack has no project {wanted}" if wanted else "dstack has no default project"
        fix = "dstack project add --name main --url http://HOST:3000 --token TOKEN, or cluster.dstack.project=NAME"
        raise RequestError(
            Problem(f"{what} in {CONFIG}", valid=f"projects: {names}", fix=fix, key="cluster.dstack.project")
        )

    def check(self) -> None:
        """Ask whether it is there and knows us.

        Raises:
            RequestError: It is not, or does not.
        """
        try:
            self._post(f"/api/projects/{self.project}/get", {})
        except RefusedError as error:
            known = error.status not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
            what = "has no such project" if known else "does not accept the token"
            problem = Problem(
                f"the dstack server {self.url} {what} of project {self.project}: {error}",
                fix=f"dstack project add --name {self.project} --url {self.url} --token TOKEN",
                key="cluster.dstack.project",
            )
            raise RequestError(problem) from error
        except SweeperError as error:
            problem = Problem(
                str(error), fix="dstack server starts one; `dstack project` lists those known", key="cluster.kind"
            )
            raise RequestError(problem) from error

    def fleets(self) -> dict[str, dict[str, Any]]:
        """The project's fleets by name."""
        found = self._post(f"/api/project/{self.project}/fleets/list", {})
        return {str(fleet["name"]): fleet for fleet in found or []}

    def plan(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """What the server would do with a task. RefusedError if it would do nothing."""
        return dict(self._post(f"/api/project/{self.project}/runs/get_plan", {"run_spec": _spec(task)}))

    def submit(self, task: Mapping[str, Any]) -> None:
        """Start a task. RefusedError if the server will not have it."""
        body = {"plan": {"run_spec": _spec(task)}, "force": False}
        self._post(f"/api/project/{self.project}/runs/apply", body)

    def run(self, name: str) -> Run | None:
        """The run of that name; None if there is none."""
        try:
            return Run.of(self._post(f"/api/project/{self.project}/runs/get", {"run_name": name}))
        except RefusedError as error:
            if error.status == HTTPStatus.BAD_REQUEST and "not found" in str(error).lower():
                return None
            raise

    def runs(self, names: Sequence[str]) -> dict[str, Run]:
        """The runs of those names, those that there are: one question for all that are active, one for each other."""
        body = {"project_name": self.project, "only_active": True, "limit": 100, "job_submissions_limit": 1}
        active = {run.name: run for run in map(Run.of, self._post("/api/runs/list", body) or [])}
        found = {name: active.get(name) or self.run(name) for name in names}
        return {name: run for name, run in found.items() if run is not None}

    def stop(self, name: str, *, abort: bool) -> None:
        """End a run, with `abort` without its consent. Nothing happens to one that has ended."""
        self._post(f"/api/project/{self.project}/runs/stop", {"runs_names": [name], "abort": abort})

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to a request.

        Raises:
            RefusedError: The server said no.
            SweeperError: It could not be asked.
        """
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise RefusedError(_words(error.read()) or str(error.reason), error.code) from error
        except (OSError, ValueError) as error:  # ValueError: no URL, or an answer that is no JSON
            reason = getattr(error, "reason", error)
            raise SweeperError(f"the dstack server {self.url} does not answer: {reason}") from error


def _spec(task: Mapping[str, Any]) -> dict[str, Any]:
    return {"run_name": task["name"], "configuration": dict(task)}


def _words(answer: bytes) -> str:
    """What a refusal says, without the JSON around it and without what was sent (it may hold a secret)."""
    text = answer.decode(errors="replace")
    try:
        detail = json.loads(text)["detail"]
    except (ValueError, KeyError, TypeError):
        return text[:300]
    said = []
    for entry in detail if isinstance(detail, list) else [detail]:
        if isinstance(entry, Mapping):
            where = ".".join(str(p) for p in entry.get("loc", ()) if p not in ("body", "run_spec", "plan"))
            said.append(f"{where}: {entry.get('msg')}" if where else str(entry.get("msg")))
        else:
            said.append(str(entry))
    return "; ".join(said)
