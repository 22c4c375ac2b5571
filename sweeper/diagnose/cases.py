"""What an attempt left behind, read once: how it ended, what each of its nodes wrote, its metrics, its config.

Guarantees: only reads; a file that is missing, cut off or damaged is as if it were empty, for it is failed runs that
are looked at; evidence has the line number of the file it is in, also where only the end of a long log was read; the
logs of all nodes together are no more than twice what is read of one, but for `LEAST_BYTES` of each.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sweeper.clusters.base import RECORD, Exit, recorded
from sweeper.clusters.gang.node import GANG
from sweeper.engines.base import Engine, Progress
from sweeper.errors import SweeperError
from sweeper.trial.records import SweepFolder

LOG, STATUS, SPEC = "log.txt", "status.json", "spec.json"
BESIDE = ("ray.log", "slurm.log")
"""What the first node's Ray says, and what Slurm and its job's script do (clusters/slurm/script.py)."""
NODES_LOGS = "[0-9]*.log"
"""In the gang's folder: what the processes of each other node say, and its Ray (gang/agent.py)."""
TAIL_BYTES = 4_000_000
"""Of a log: what comes before it is hours older than the end."""
LEAST_BYTES = 100_000
"""Of the log of one node of many."""
RUNNING = ("starting", "running")
"""States of an attempt that has not ended."""
LONGEST = 300
"""Characters of a line that is shown."""

_OF_ONE_SWEEP = ("name", "store", "output", "detach")
"""Keys of a request that say where it leaves what; nothing of them is asked of a node, but the store."""
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_RAYS = re.compile(r"^\((?:[\w.:<>-]+ )?(?:pid=\d+|raylet|autoscaler)[^)]*\) ?")


@dataclass(frozen=True, slots=True)
class Evidence:
    """One line of a file."""

    file: Path
    line: int
    """From 1; 0: the file as a whole."""
    text: str

    @property
    def place(self) -> str:
        """`log.txt:123`, `gang/1.log:123`."""
        name = f"{GANG}/{self.file.name}" if self.file.parent.name == GANG else self.file.name
        return f"{name}:{self.line}" if self.line else name


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that happened."""

    cause: str
    """A word of sweeper/diagnose/causes.py."""
    what: str
    evidence: tuple[Evidence, ...] = ()
    change: tuple[str, ...] = ()
    source: str = ""
    """What writes the line that it was known by, or whose rule it is."""


@dataclass(frozen=True, slots=True)
class Log:
    """The end of a log, each line without colours and without the prefix of the process that wrote it."""

    file: Path
    lines: tuple[str, ...]
    """As the engine splits them: what a progress bar overwrites is a line of its own."""
    numbers: tuple[int, ...] = ()
    """Of each its number in the file, where such lines share one."""

    @classmethod
    def read(cls, file: Path, most: int | None = None) -> Log:
        """Its last `most` bytes, by default `TAIL_BYTES`; empty where it cannot be read."""
        try:
            with file.open("rb") as opened:
                size = opened.seek(0, 2)
                skipped = max(0, size - (TAIL_BYTES if most is None else most))
                opened.seek(0)
                before = sum(1 for _ in _newlines(opened, skipped)) if skipped else 0
                opened.seek(skipped)
                text = opened.read().decode(errors="replace")
        except OSError:
            return cls(file, ())
        whole = text.removesuffix("\n").split("\n") if text else []
        parts = [(part, n) for n, line in enumerate(whole, before + 1) for part in line.splitlines() or [""]]
        return cls(file, tuple(part for part, _ in parts), tuple(n for _, n in parts))

    @property
    def text(self) -> str:
        """As the engine reads it."""
        return "\n".join(self.lines)

    def plain(self, index: int) -> str:
        """A line by its place in `lines`, without colours and prefix."""
        return _RAYS.sub("", _ANSI.sub("", self.lines[index])).rstrip()

    def at(self, index: int) -> Evidence:
        """That line as evidence."""
        return Evidence(self.file, self.numbers[index], _short(self.plain(index).strip()))

    def holding(self, text: str) -> Evidence | None:
        """The last line that holds the text."""
        return next((self.at(i) for i in reversed(range(len(self.lines))) if text in self.plain(i)), None)


@dataclass(slots=True)
class Case:
    """One attempt."""

    folder: Path
    name: str
    """`SWEEP/TRIAL/ATTEMPT` where it is in a store, else the folder's name."""
    engine: Engine
    config: Mapping[str, Any]
    """All that was recorded of it: the engine's keys and ours."""
    log: Log
    """The trainer's, on the first node."""
    ended: Exit | None
    """None: it still runs, or nobody was there to write it."""
    status: Mapping[str, Any]
    """The controller's status.json; empty where there is none."""
    total_steps: int | None
    progress: list[tuple[int, Progress]] = field(default_factory=list)
    """Each step with the line of the metrics file that it is on."""
    metrics: Path = Path("metrics.jsonl")
    started: float | None = None
    """Unix time."""
    others: tuple[Log, ...] = ()
    """Of the gang's other nodes: of the node, of its Ray."""
    beside: tuple[Log, ...] = ()
    """What Ray on the first node, and who gave the nodes, said."""
    nodes: tuple[str, ...] = ()
    """Names of the gang's nodes by rank; empty: not known."""
    parts: Mapping[int, Exit] = field(default_factory=dict)
    """How each node's part ended, by rank, where it is on record."""

    @property
    def sweep(self) -> str:
        """The sweep as after `sweeper resume`: its name, `NAME` where it is not known, and the store that has it."""
        if home := self._home():
            return home.typed
        return self.name.split("/")[0] if "/" in self.name else "NAME"

    @property
    def doctor(self) -> str:
        """`sweeper doctor` of the sweep's own request, for it looks at the nodes that a request would use."""
        home = self._home()
        try:
            typed = home.overrides() if home else None
        except SweeperError:
            typed = None
        if home is None or typed is None:
            return "sweeper doctor cluster=... model=..."
        words = [word for word in typed if word.partition("=")[0] not in _OF_ONE_SWEEP]
        if home.path.parent.absolute() != Path("runs").absolute():
            words.append(f"store={home.path.parent}")
        return shlex.join(["sweeper", "doctor", *words])

    def _home(self) -> SweepFolder | None:
        home = self.folder.parents[min(2, len(self.folder.parents) - 1)]  # SWEEP/trials/TRIAL/attempt-K
        return SweepFolder(home) if (home / "sweep.json").is_file() else None

    @property
    def text(self) -> str:
        """As the engine reads it, and the controller did (search/running.py): the trainer's last words are its end."""
        return "\n".join(log.text for log in self._read_by_engine())

    def at(self, line: int) -> Evidence | None:
        """A line of `text`, from 1, as evidence; None if there is none."""
        index = line - 1
        for log in self._read_by_engine():
            if 0 <= index < len(log.lines):
                return log.at(index)
            index -= len(log.lines)
        return None

    def _read_by_engine(self) -> list[Log]:
        return [log for log in (*self.others, self.log) if log.lines]

    @property
    def logs(self) -> tuple[Log, ...]:
        """All, the trainer's first."""
        return (self.log, *self.beside, *self.others)

    def holding(self, text: str) -> Evidence | None:
        """The last line that holds the text, of the first log that has one."""
        return next((found for log in self.logs if (found := log.holding(text))), None)

    def log_of(self, node: str) -> str:
        """The log of a node that is called so in a sentence (`node n1 (10.0.0.2)`, `node 1`, `the first node`), from
        the folder; with an `N` where nobody knows the node, empty where it has none."""
        name = node.removeprefix("node ").partition(" ")[0]
        rank = self.nodes.index(name) if name in self.nodes else int(name) if name.isdecimal() else None
        if node == "the first node":
            rank = 0
        if rank is None:
            return f"{GANG}/N.log"
        log = f"{GANG}/{rank}.log" if rank else LOG
        return log if (self.folder / log).is_file() else ""

    def node_of(self, file: Path) -> str:
        """The node whose file that is, where it is one of the gang's others; empty otherwise."""
        rank = file.name.partition(".")[0]
        if file.parent.name != GANG or not rank.isdecimal():
            return ""
        return next((name for name in self.nodes[int(rank) : int(rank) + 1] if name), f"node {rank}")

    @property
    def state(self) -> str:
        """As status.json has it, else by how it ended: `running`, `finished`, `failed`, `stopped`, `pruned`."""
        said = str(self.status.get("state") or "")
        # A controller that died wrote last that it runs; the attempt's own record says more.
        if said and not (self.ended is not None and said in RUNNING):
            return said
        if self.ended is None:
            return "running"
        if self.ended.reason == "stopped":
            return "stopped"
        return "finished" if self.ended.code == 0 and not self._short_of() else "failed"

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than it was to."""
        return self.state == "failed" or bool(self.status.get("failure"))

    @property
    def step(self) -> int | None:
        """The last one it made."""
        return self.progress[-1][1].step if self.progress else None

    def _short_of(self) -> bool:
        return self.total_steps is not None and bool(self.total_steps > (self.step or 0))


def read(folder: Path, engine_name: str = "verl") -> Case:
    """The case of an attempt's folder.

    Raises:
        RequestError: Its engine is none of ours.
    """
    from sweeper import engines

    folder = folder.absolute()
    spec, status = _json(folder / SPEC), _json(folder / STATUS)
    config = {**_yaml(folder), **(spec.get("config") or {})}
    engine = engines.get(str((config.get("engine") or {}).get("name") or engine_name))
    metrics = folder / str(spec.get("metrics") or "metrics.jsonl")
    total = spec.get("total_steps") or status.get("total_steps")
    return Case(
        folder=folder,
        name=_name(folder, spec),
        engine=engine,
        config=config,
        log=Log.read(folder / LOG),
        ended=recorded(folder),
        status=status,
        total_steps=int(total) if total else None,
        progress=_progress(metrics, engine, config),
        metrics=metrics,
        started=_moment(status.get("started")),
        others=_others(folder / GANG),
        beside=tuple(Log.read(folder / name) for name in BESIDE),
        nodes=_nodes(folder / GANG),
        parts=_parts(folder / GANG),
    )


def _others(gang: Path) -> tuple[Log, ...]:
    """In the order in which the controller reads them."""
    files = sorted(gang.glob(NODES_LOGS))
    return tuple(Log.read(file, max(LEAST_BYTES, TAIL_BYTES // len(files))) for file in files)


def _nodes(gang: Path) -> tuple[str, ...]:
    nodes = _json(gang / "gang.json").get("nodes")
    return tuple(str(n.get("name") or "") for n in nodes if isinstance(n, dict)) if isinstance(nodes, list) else ()


def _parts(gang: Path) -> dict[int, Exit]:
    found = {}
    for file in gang.glob(f"[0-9]*.{RECORD}"):
        rank, said = file.name.partition(".")[0], _json(file)
        if rank.isdecimal() and said:
            found[int(rank)] = Exit(said.get("code"), str(said.get("reason")), str(said.get("detail") or ""))
    return dict(sorted(found.items()))


def _name(folder: Path, spec: Mapping[str, Any]) -> str:
    if spec.get("sweep") and spec.get("trial"):
        return f"{spec['sweep']}/{spec['trial']}/{spec.get('attempt', 1)}"
    return folder.name


def _progress(path: Path, engine: Engine, config: Mapping[str, Any]) -> list[tuple[int, Progress]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            continue
        made = engine.progress(said, dict(config)) if isinstance(said, dict) else None
        if made is not None:
            found.append((number, made))
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _yaml(folder: Path) -> dict[str, Any]:
    """The engine's own config, as the job's files have it."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            with path.open(encoding="utf-8") as file:
                loaded = yaml.load(file, Loader=loader)
        except (OSError, ValueError, yaml.YAMLError):
            continue
        found |= loaded if isinstance(loaded, dict) else {}
    return found


def _moment(said: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(said)).timestamp()
    except ValueError:
        return None


def _newlines(file: Any, until: int) -> Any:
    left = until
    while left > 0 and (part := file.read(min(left, 1 << 20))):
        left -= len(part)
        yield from range(part.count(b"\n"))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
