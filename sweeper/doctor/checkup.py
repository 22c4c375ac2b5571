"""Sends the probe to every node of a request's cluster, round after round, and has the answers judged.

Guarantees: each round runs on all nodes side by side; a node that does not answer the first one fails and is not given
that time again; a host of `cluster=ssh` that does not answer is told, whatever else is wrong with the request; the
folder that the nodes meet in is removed, also when it is interrupted; a store that was not there is gone again
afterwards. Where nodes are only made for a trial (`clusters.queued`), nothing of them is taken for well or for ill.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from sweeper import clusters
from sweeper.clusters.base import Answer
from sweeper.clusters.local import run_here
from sweeper.clusters.queued import QueueCluster
from sweeper.doctor import asked as asking
from sweeper.doctor import checks
from sweeper.doctor.asked import FAIL, OK, WARN, Asked
from sweeper.doctor.checks import Answers, Check
from sweeper.doctor.probe import MARK
from sweeper.engines.base import Gang, Job, Shape
from sweeper.errors import Problem, RequestError
from sweeper.plan.memory import USUAL_GPU_GIB
from sweeper.trial.records import RecordsError, cannot_write

ARGV = ("{python}", "-I", "-S", "-")
SPARE_S = 20.0
"""That a launcher may take to start a command on a node, beyond the probe's own time."""


_DULL = re.compile(r"Exited with exit code|^(?:valid|try): ")
"""Lines of a launcher that only say that it failed, or that are no cause."""
_NO_PYTHON = re.compile(r"No such file or directory|not found|Permission denied|cannot execute", re.IGNORECASE)
_REFUSED = re.compile(r"Unable to (?:allocate resources|create step|confirm allocation)|Requested node configuration")


class Nodes(Protocol):
    """What the doctor needs of a cluster."""

    def each(self, argv: Sequence[str], stdin: str, timeout_s: float) -> list[Answer]:
        """See `Cluster.each`."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """What came out."""

    cluster: str
    nodes: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def code(self) -> int:
        """The exit code: 1 where a check failed, else 0."""
        return 1 if any(c.state == FAIL for c in self.checks) else 0


def run(overrides: Sequence[str], timeout_s: float = 120.0) -> Report:
    """Look at the cluster of that request; Hydra is initialized.

    Args:
        overrides: as after `sweep.py -m`.
        timeout_s: that a node may take for each round.

    Raises:
        RequestError: The request is wrong, or its cluster can only be planned for.
        SweeperError: The cluster cannot be reached.
    """
    try:
        asked = asking.of(overrides)
        cluster = clusters.get(asked.config["cluster"], asked.shape)
    except RequestError as error:
        # A plan takes all hosts or none; here those that do not answer are what is looked for.
        if (report := _some(overrides, error, timeout_s)) is None:
            raise
        return report
    try:
        return examine(cluster, asked, timeout_s)
    finally:
        cluster.close()


def _some(overrides: Sequence[str], refused: RequestError, timeout_s: float) -> Report | None:
    """The same where hosts of `cluster=ssh` do not answer: they fail, the others are looked at, and what is wrong with
    the request besides fails with them. None: all answer, and what it was refused for is all there is to say."""
    from sweeper.clusters import ssh
    from sweeper.config import schema
    from sweeper.config.compose import compose_points
    from sweeper.config.space import read

    composed = compose_points(read(overrides).arms)[0]
    config = composed.config
    group, sections = config["cluster"], {problem.key.partition(".")[0] for problem in schema.check(config)}
    if "cluster" in sections or group["kind"] != "ssh" or ssh.problems(group):
        return None
    if (found := ssh.partly(group)) is None:
        return None
    try:
        if found.shape is None or "engine" in sections:
            rounds = _Rounds(found.hosts, timeout_s)
            rounds.ask("clock", {})
            report = Report(str(group["name"]), tuple(rounds.nodes), (*rounds.silent, *checks.clocks(rounds.clocks)))
            # Of the cluster it is only the hosts that it was refused for.
            wrong = tuple(problem for problem in refused.problems if not problem.key.startswith("cluster."))
        else:
            asked, wrong = asking.despite([*overrides, *_keys(found.shape)], composed, found.shape)
            report = examine(found.hosts, asked, timeout_s)
    finally:
        found.hosts.close()
    return replace(report, checks=(*map(_request, dict.fromkeys([*found.wrong, *wrong])), *report.checks))


def _keys(shape: Shape) -> list[str]:
    """Overrides with which a plan takes that shape and asks no host."""
    return [
        f"cluster.device={shape.device}",
        f"cluster.gpus_per_node={shape.gpus_per_node}",
        f"cluster.gpu_memory_gib={shape.gpu_memory_gib or USUAL_GPU_GIB}",
    ]


def _request(problem: Problem) -> Check:
    valid = f" (valid: {problem.valid})" if problem.valid else ""
    return Check("request", FAIL, f"{problem.what}{valid}", fix=problem.fix)


def examine(cluster: Nodes, asked: Asked, timeout_s: float) -> Report:
    """The rounds."""
    if isinstance(cluster, QueueCluster):
        return _from_here(cluster, asked, timeout_s)
    rounds = _Rounds(cluster, timeout_s)
    answers = rounds.ask("look", _look(asked, timeout_s))
    found = [*rounds.silent, *checks.looked(answers, asked)]
    if answers and not rounds.silent:
        found += _together(rounds, asked, answers, timeout_s)
    elif answers:
        found.append(Check("shared store", WARN, "not looked at: some nodes do not answer", fix="mend those first"))
    rounds.ask("clock", {}, 0.0 if rounds.silent else timeout_s)
    found += checks.clocks(rounds.clocks)
    found += checks.tokens(asked, asking.set_here(asked), answers)
    return Report(asked.shape.name, tuple(rounds.nodes), tuple(found))


def _from_here(cluster: QueueCluster, asked: Asked, timeout_s: float) -> Report:
    """The same where nodes are made for a trial: what this machine can tell of it."""
    rounds = _Rounds(_Here(), timeout_s)
    # What else the probe would look at is the nodes' own, and fails in its place.
    store = {"folders": [str(asked.store)], "paths": list(asked.paths), "ports": [], "names": []}
    answers = rounds.ask("look", store)
    job = Job((), {}, (), {}, Gang(asked.nodes, asked.gpus_per_node), asked.python, "", 0, image=asked.image or None)
    refused = cluster.unready(job, asked.store / "NAME" / "trials" / "000" / "attempt-1")
    # It says so of any folder; where it refuses the store's, maybe for another reason, that is mended first.
    unmounted = [path for path in asked.paths if not refused and cluster.unready(job, Path(path))]
    found = [
        *rounds.silent,
        *checks.made_for_a_trial(cluster.kind, cluster.elsewhere),
        # Who opened it has asked: a server that does not answer would have been an error.
        Check("server", OK, f"it answers, lets us in and has what cluster.{cluster.kind} names"),
        Check("submission", FAIL if refused else OK, refused or "its nodes mount what the store lies on"),
        *checks.from_here(answers, asked, unmounted),
        *checks.tokens(asked, asking.set_here(asked), {}),
    ]
    names = [answer.node for answer in cluster.each((), "", 0.0)]
    return Report(asked.shape.name, tuple(names), tuple(found))


class _Here:
    """This machine as the only node."""

    def each(self, argv: Sequence[str], stdin: str, timeout_s: float) -> list[Answer]:
        return [run_here("here", [sys.executable if word == "{python}" else word for word in argv], stdin, timeout_s)]


def _look(asked: Asked, timeout_s: float) -> dict[str, Any]:
    installed = files("sweeper.lineage").joinpath("probe.py").read_text(encoding="utf-8")
    return {
        "engine": asked.engine,
        "python": asked.python,
        "env": asked.env,
        "installed": installed,
        "packages": [asked.engine, *asking.PACKAGES],
        "folders": [str(asked.store), "/tmp", "/dev/shm"],  # where Ray keeps its session and its objects
        "paths": list(asked.paths),
        "ports": list(asked.ports),
        "own": sorted(set(asked.addresses.values())),
        "names": list(asked.names),
        "container_program": asked.container_program,
        "timeout_s": timeout_s,
    }


def _together(rounds: _Rounds, asked: Asked, looked: Answers, timeout_s: float) -> Iterator[Check]:
    """What takes several nodes at once."""
    names = tuple(looked)
    try:
        with _meeting(asked.store) as (folder, content):
            question = {"meet": str(folder), "count": len(names), "word": secrets.token_hex(16)}
            met = rounds.ask("meet", {**question, "timeout_s": min(30.0, timeout_s), "nodes": list(names)})
            together = list(checks.met(met, names, content, str(asked.store)))
    except RecordsError as error:
        fix = "store=FOLDER   that can be written, here and on all nodes"
        together = [Check("shared store", FAIL, str(error).splitlines()[0], fix=fix)]
    yield from together
    if asked.image:
        return  # torch is in there
    if any(c.state == FAIL for c in together):
        yield Check("all-reduce", WARN, "not tried: the nodes do not find each other", fix="mend those first")
        return
    if any("error" in (said.get("engine") or {}) for said in looked.values()):
        yield Check("all-reduce", WARN, "not tried: the engine's interpreter does not work", fix="mend that first")
        return
    cuda = asked.shape.device == "cuda"
    with _meeting(asked.store) as (folder, _):
        question = {"meet": str(folder), "count": len(names), "word": secrets.token_hex(16), "cuda": cuda}
        ranks = asked.gpus_per_node if cuda else 2 if len(names) == 1 else 1
        answers = rounds.ask(
            "reduce", {**question, "timeout_s": timeout_s, "ranks": ranks, "python": asked.python, "env": asked.env}
        )
    yield from checks.reduced(answers, asked)


@contextlib.contextmanager
def _meeting(store: Path) -> Iterator[tuple[Path, str]]:
    """A folder in the store for one round, with a file of ours; its content's hash."""
    made = [p for p in (store, *store.parents) if not p.exists()]
    folder = store / f".doctor-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, mode=0o700)
        content = secrets.token_hex(64)
        (folder / "controller").write_text(content)
        yield folder, hashlib.sha256(content.encode()).hexdigest()[:16]
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


class _Rounds:
    """Asks all nodes, keeps who is silent and how far clocks can be apart."""

    def __init__(self, cluster: Nodes, timeout_s: float) -> None:
        self._cluster, self._timeout_s = cluster, timeout_s
        self._source = files("sweeper.doctor").joinpath("probe.py").read_text(encoding="utf-8")
        self.nodes: list[str] = []
        self.silent: list[Check] = []
        self.clocks: dict[str, tuple[float, float]] = {}

    def ask(self, name: str, question: Mapping[str, Any], timeout_s: float | None = None) -> dict[str, dict[str, Any]]:
        """The answers of the nodes that gave one; of those that did not, a failed check is kept."""
        text = json.dumps({**question, "round": name})
        script = f"{self._source}\n\nmain(json.loads({text!r}))\n"
        before = time.time()
        said = self._cluster.each(list(ARGV), script, SPARE_S + (self._timeout_s if timeout_s is None else timeout_s))
        after = time.time()
        self.nodes = self.nodes or [answer.node for answer in said]
        found: dict[str, dict[str, Any]] = {}
        for answer in said:
            read = _read(answer)
            if read is None:
                self.silent.append(_silent(answer))
                continue
            begun, ended = read.pop("clock")
            self._bound(answer.node, ended - after, begun - before)
            found[answer.node] = read
        return found

    def _bound(self, node: str, low: float, high: float) -> None:
        """The node was asked after `before` and answered before `after`, both by our clock."""
        known = self.clocks.get(node, (low, high))
        self.clocks[node] = (max(low, known[0]), min(high, known[1]))


def _read(answer: Answer) -> dict[str, Any] | None:
    lines = [line for line in answer.out.splitlines() if line.startswith(MARK)]
    try:
        found = json.loads(lines[-1][len(MARK) :])
    except (IndexError, ValueError):
        return None
    return found if isinstance(found, dict) and "clock" in found else None


def _silent(answer: Answer) -> Check:
    lines = [line.strip() for line in answer.err.splitlines() if line.strip()]
    why = next((line for line in reversed(lines) if not _DULL.search(line)), lines[-1] if lines else "")
    how = "no answer" if answer.code is None else f"its command ended with code {answer.code}"
    return Check("node", FAIL, f"{how}{f': {why}' if why else ''}", answer.node, _mend(answer, lines))


def _mend(answer: Answer, lines: Sequence[str]) -> str:
    """What helps a node that gave no answer: as whoever reached for it says, else by what it said."""
    if told := next((line.removeprefix("try:").strip() for line in lines if line.startswith("try:")), ""):
        return told
    if any(_REFUSED.search(line) for line in lines):
        return "cluster.slurm.partition, account, qos and sbatch are what is asked for; sinfo shows what there is"
    if answer.code is None and not any(_NO_PYTHON.search(line) for line in lines):
        return "--timeout 600, where the node is only slow; else look whether it is up"
    return "cluster.python=PATH of a Python 3.9 or newer there"
