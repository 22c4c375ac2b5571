"""An attempt over the nodes of a gang, as the controller sees it; how a program gets onto a node is the launcher's.

Guarantees: what a node runs is in the sweep's folder and needs nothing but a Python 3.9 there; nothing that is written
holds a secret; an attempt has ended when no process of it is left on any node, and its record says so before `poll`
does; why it ended is what its first node wrote, else that the node was lost.

A launcher (ssh, slurm, ...) calls `prepare`, writes `attempt.json` (`started`), runs `argv` on each node with
`secrets` on stdin or in the environment, and hands out a `GangAttempt` over a `Control` of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets as random
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from sweeper import clusters
from sweeper.clusters.base import RECORD, Exit, Started, recorded
from sweeper.clusters.gang import leases
from sweeper.clusters.gang.node import GANG, TOKEN
from sweeper.engines.base import Job, Shape
from sweeper.errors import Problem
from sweeper.trial.records import write_text

VERSION = 1
"""Of gang.json and of what the nodes tell each other."""
SCRIPTS = Path(__file__).resolve().parent / "gang"
LOOK_S = 0.25
"""Between two looks at an attempt's records, which may lie on a network filesystem."""
ASK = "ask"
"""The file of gang/listen.py."""
RECORD_S = 3.0
"""How long the record of a first node that is gone may take to be seen from here, on such a filesystem."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a gang."""

    name: str = ""
    """What people call it; empty: not known yet, and it says itself."""
    address: str = ""
    """Where the gang's other nodes reach it; empty: it finds out itself. Never 127.0.0.1, which Ray replaces."""


class Control(Protocol):
    """How a launcher reaches an attempt's nodes."""

    def ask(self, folder: Path, what: bytes) -> None:
        """Pass `s` (stop), `k` (kill) or `d` (write stacks and stop) to every node's guard. Returns at once."""
        ...

    def alive(self, folder: Path) -> bool | None:
        """Whether any process of the attempt is left on any node; None: that cannot be told at this moment.

        Asked several times a second: it answers from what it knows, and finds out beside.
        """
        ...


def new_token() -> str:
    """A gang's secret: its Ray cluster's token, and what its nodes prove to each other."""
    return random.token_hex(32)


def secrets(job: Job, token: str) -> dict[str, str]:
    """The variables with secrets that a node's program must have in its environment: the token, what is inherited."""
    names = [name for name in (*job.inherit, leases.RUNTIME) if name in os.environ]
    return {TOKEN: token, **{name: os.environ[name] for name in names}}


def stdin(job: Job, token: str) -> str:
    """The same as the line that `node.py --stdin` reads."""
    env = secrets(job, token)
    return json.dumps({"token": env.pop(TOKEN), "env": env}) + "\n"


def home(folder: Path) -> Path:
    """Where the scripts go for an attempt's folder: into its sweep's."""
    return folder.parents[2] if folder.parent.parent.name == "trials" else folder.parent


@contextlib.contextmanager
def nonce(home: Path) -> Iterator[Path]:
    """A file in that folder whose content is its own name: who reads that sees the folder. OSError if it cannot be."""
    path = home / f".shared-{random.token_hex(6)}"
    path.write_text(path.name)
    try:
        yield path
    finally:
        path.unlink()


def unseen(node: str, home: Path, fix: str = "store=/shared/runs") -> Problem:
    """That a node does not see a folder of ours."""
    return Problem(
        f"{node} does not see {home}, where the records are",
        valid="a store on a filesystem that this machine and all nodes share, under the same path",
        fix=fix,
        key="store",
    )


def without(node: str, python: str) -> Problem:
    """That a node lacks the engine's interpreter."""
    return Problem(
        f"{node} has no {python}, the engine's interpreter",
        valid="an interpreter with the engine's packages, at the same path on all nodes",
        fix="engine.python=/shared/venv/bin/python",
        key="engine.python",
    )


def scripts(folder: Path) -> Path:
    """The folder of what a node runs; made if it is not there, once for a sweep and a version of this program."""
    files = sorted(SCRIPTS.glob("*.py"))
    content = hashlib.sha256(b"\0".join(file.name.encode() + b"\0" + file.read_bytes() for file in files))
    made = home(folder) / f"gang-{content.hexdigest()[:16]}"
    if not made.is_dir():
        aside = made.with_name(f".{made.name}-{os.getpid()}")
        aside.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, aside / file.name)
        try:
            aside.rename(made)
        except OSError:  # another controller was quicker
            shutil.rmtree(aside, ignore_errors=True)
    return made


def write_files(files: Mapping[str, str], folder: Path) -> None:
    """Write the job's files whole and without secrets; a script can be run by hand.

    Raises:
        RecordsError, OSError: One of them could not be written.
    """
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text, mode=0o755 if path.suffix == ".sh" else 0o644)


def describe(
    job: Job, nodes: Sequence[Node], *, shape: Shape, leases: bool, join_s: float, listen: bool = False
) -> dict[str, Any]:
    """The content of gang.json, which the node's scripts read. It holds no secret."""
    ray = {
        "cpus": job.ray_cpus_per_node,
        "gpus": job.gang.gpus_per_node,
        "object_store_bytes": job.object_store_bytes,
    }
    return {
        "version": VERSION,
        "argv": list(job.argv),
        "env": dict(job.env),
        "inherit": list(job.inherit),
        "python": job.python,
        "preload": list(job.preload),
        "fork_argv": list(job.fork_argv),
        "ray": ray if job.ray else None,
        "nodes": [asdict(node) for node in nodes],
        "ranks": job.gang.gpus_per_node,
        "device": shape.device,
        "slots": shape.gpus_per_node,
        "leases": leases,
        "listen": listen,
        "join_s": join_s,
    }


def prepare(
    job: Job,
    folder: Path,
    nodes: Sequence[Node],
    *,
    shape: Shape,
    leases: bool,
    join_s: float,
    listen: bool = False,
) -> None:
    """Write what the nodes need into the attempt's folder (absolute): the job's files, gang.json, the scripts.

    Args:
        nodes: In the order of their ranks; the trainer runs on the first.
        leases: Whether a node takes free ranks of its machine itself (gang/leases.py); else its launcher has given it
            its own, and CUDA_VISIBLE_DEVICES says which.
        join_s: Seconds that the nodes may take to find each other.
        listen: Whether the nodes do what is asked for by a file (`ask_by_file`) too.

    Raises:
        RecordsError, OSError: It could not be written.
    """
    write_files(job.files, folder)
    (folder / GANG).mkdir(exist_ok=True)
    if listen:
        (folder / GANG / ASK).touch()
    scripts(folder)
    gang = describe(job, nodes, shape=shape, leases=leases, join_s=join_s, listen=listen)
    (folder / GANG / "gang.json").write_text(json.dumps(gang, indent=1) + "\n")


def argv(
    folder: Path, rank: int | str, *, detached: bool = False, python: str = "python3", stdin: bool = False
) -> list[str]:
    """What a launcher runs on a node, whose part of the attempt it is: until that part has ended, or `detached`.

    `rank` may name a variable of the node's environment: `$SLURM_PROCID`. `stdin`: the program reads `stdin(...)`.
    """
    what = "start" if detached else "run"
    line = [python, "-I", "-S", str(scripts(folder) / "node.py"), what, str(folder), str(rank)]
    return [*line, "--stdin"] if stdin else line


def ask_argv(folder: Path, rank: int, what: bytes, *, python: str = "python3") -> list[str]:
    """What a launcher runs on a node to pass a request on to its guard."""
    script = str(scripts(folder) / "node.py")
    return [python, "-I", "-S", script, "ask", str(folder), str(rank), what.decode()]


def ask_by_file(folder: Path, what: bytes) -> None:
    """Leave a request where every node of the gang sees it that sees the attempt's folder (gang/listen.py). OSError if
    it cannot be written."""
    with (folder / GANG / ASK).open("ab") as file:
        file.write(what)


def look_argv(folders: Sequence[Path], *, python: str = "python3") -> list[str]:
    """What a launcher runs on a node to learn which of these attempts (at least one) live there: one line of JSON,
    {folder: {rank: alive}}. A rank that is not in it was not started there."""
    return [python, "-I", "-S", str(scripts(folders[0]) / "node.py"), "look", *map(str, folders)]


def started(folder: Path, kind: str, **what: Any) -> None:
    """Write attempt.json, before anything is started. No secrets.

    Raises:
        RecordsError: It cannot be written.
    """
    about = {"kind": kind, **what, "started": time.time()}
    write_text(folder / clusters.STARTED, json.dumps(about, indent=2) + "\n")


def record(ended: Exit, folder: Path) -> None:
    """Write the exit record of an attempt that cannot write its own, if it can be written."""
    try:
        partial = folder / f"{RECORD}.partial"
        partial.write_text(json.dumps(asdict(ended)))
        partial.replace(folder / RECORD)
    except OSError:
        pass


def not_launched(folder: Path, why: str) -> Exit:
    """The end of an attempt that could not be started, on record."""
    ended = Exit(None, "launch", why, time.time())
    record(ended, folder)
    return ended


def room(shape: Shape, most: int, held: Iterable[tuple[Sequence[int], int]]) -> tuple[int, ...]:
    """Ranks that a sweep may still ask a queue for, by place: the queue knows which nodes they are, we know how many.

    Args:
        most: Ranks for all attempts together.
        held: Of each attempt that has not ended its places and its ranks on each.
    """
    free, left = [shape.gpus_per_node] * shape.nodes, most
    for places, ranks in held:
        for place in places:
            left -= ranks
            if place < len(free):
                free[place] -= ranks
    return tuple(max(0, min(ranks, left)) for ranks in free)


class GangAttempt(Started):
    """A running gang; see `Attempt`. `folder` is absolute."""

    def __init__(self, folder: Path, control: Control) -> None:
        self.folder = folder
        self._control = control
        self._ended = recorded(folder)
        self._look_at = 0.0
        self._gone: float | None = None
        self._asked = False
        self._last_words: dict[int, Exit] = {}

    def poll(self) -> Exit | None:
        """How it ended, or None while any process of it remains."""
        now = time.monotonic()
        if self._ended is None and now >= self._look_at:
            self._look_at = now + LOOK_S
            self._ended = self._look(now)
        return self._ended

    def silent(self) -> str:
        """The nodes that the others of the gang lost: the attempt ends, and is over once their part has ended too."""
        lost = [word.detail for _, word in sorted(self._last_words.items()) if word.reason == "lost" and word.detail]
        return "" if self._ended or self._asked else "; ".join(dict.fromkeys(lost))

    def _look(self, now: float) -> Exit | None:
        nodes = self._read()
        if not nodes or len(self._last_words) < nodes:
            if self._control.alive(self.folder) is not False:
                self._gone = None
                return None
            self._read()
            self._gone = self._gone or now
            if 0 not in self._last_words and now < self._gone + RECORD_S:
                return None
        ended = self._why()
        record(ended, self.folder)
        return ended

    def _read(self) -> int:
        """The records of nodes whose part has ended; how many nodes there are."""
        folder = self.folder / GANG
        try:
            names = os.listdir(folder)  # noqa: PTH208  (one call, which a network filesystem's cache does not answer)
            for name in names:
                rank, _, rest = name.partition(".")
                if rest == RECORD and rank.isdigit() and int(rank) not in self._last_words:
                    self._last_words[int(rank)] = Exit(**json.loads((folder / name).read_text()))
            return len(json.loads((folder / "gang.json").read_text())["nodes"])
        except (OSError, ValueError, TypeError, KeyError):
            return 0

    def _why(self) -> Exit:
        head = self._last_words.get(0)
        if head is None:
            others = [w.detail for _, w in sorted(self._last_words.items()) if w.detail]
            first = f" ({name})" if (name := self._first()) else ""
            why = "; ".join([f"the first node{first} left no record of its end", *others])
            head = Exit(None, "stopped" if self._asked else "lost", "" if self._asked else why, time.time())
        elif self._asked and head.reason == "lost":  # by the end that we asked for
            head = Exit(head.code, "stopped", head.detail, head.ended)
        ended = max([head.ended, *(word.ended for word in self._last_words.values())])
        return Exit(head.code, head.reason, head.detail, ended)

    def _first(self) -> str:
        """The first node's name; empty where it is not known."""
        try:
            return str(json.loads((self.folder / GANG / "gang.json").read_text())["nodes"][0]["name"])
        except (OSError, ValueError, LookupError, TypeError):
            return ""

    def _ask(self, what: bytes) -> None:
        if self._ended is None:
            self._asked = True
            self._control.ask(self.folder, what)
