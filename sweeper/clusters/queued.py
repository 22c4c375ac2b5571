"""Attempts that are handed to somebody else's queue, which starts their nodes and takes them back: dstack, KubeRay.

Guarantees: starting, stopping and looking never block the controller (one thread asks the queue about all attempts at
once, and does what is to be done in the order in which it was said); a queue that does not answer changes nothing of
what is known, and is asked again; an attempt is known to its folder, by a name that follows from the folder, before the
queue hears of it, so that a controller may be killed at any instant; an attempt has ended when the queue has nothing of
it on any node, and what its first node wrote says how, else what the queue says.

On such a node nothing can be started from outside, so a stop goes through a file that the node looks at
(gang/listen.py); what does not end by that is ended by the queue.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sweeper import clusters
from sweeper.clusters import gangs
from sweeper.clusters.base import RECORD, Answer, Attempt, Ended, Exit, Started, recorded
from sweeper.clusters.gang.node import GANG
from sweeper.engines.base import Job, Shape
from sweeper.errors import SweeperError
from sweeper.trial.records import RecordsError

LONGEST = 40
"""Characters of a name: dstack allows 41, KubeRay 47."""
LOOK_S = 2.0
"""Between two looks at the queue."""
STOP_S = 12.0
"""From the request in the file to the queue's own end of it: a dump takes 5 s, SIGTERM to SIGKILL 2 s more."""


def name(folder: Path) -> str:
    """`demo-003-2-1f0c9a4b`: sweep, trial and attempt as far as there is room, and a hash of the attempt's folder."""
    folder = folder.resolve()
    parts = [folder.parts[i] for i in (-4, -2) if len(folder.parts) >= -i]
    words = "-".join([*parts, folder.name.rpartition("-")[2]]).lower()
    plain = re.sub(r"[^a-z0-9]+", "-", words).strip("-")
    plain = plain if plain[:1].isalpha() else f"s-{plain}"
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return f"{plain[: LONGEST - 9].rstrip('-')}-{digest}"


class State(Protocol):
    """What a queue says of an attempt."""

    @property
    def over(self) -> bool:
        """Whether it has nothing of it on any node, and never will again."""
        ...

    @property
    def waiting(self) -> str:
        """Why it does not run yet, in the queue's words; empty once it does."""
        ...

    @property
    def requeued(self) -> bool:
        """Whether it lost its nodes to others, and the queue would start it anew."""
        ...

    def exit(self) -> Exit:
        """How it ended, where the attempt left no record itself."""
        ...


class Queue(Protocol):
    """How a queue is spoken with. Every method may take seconds and raises SweeperError."""

    def look(self, names: tuple[str, ...]) -> Mapping[str, State]:
        """What it says of those; one that it does not know is not there."""
        ...

    def end(self, name: str, *, now: bool) -> None:
        """Have it end that one; `now`: without giving it time. Nothing happens if it has ended."""
        ...

    def clear(self, name: str) -> None:
        """That one is over and on record: remove what is of no more use there."""
        ...


class Watcher:
    """The one thread that speaks with a queue."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self._states: dict[str, State | None] = {}
        self._watched: set[str] = set()
        self._todo: list[tuple[float, Callable[[], None]]] = []
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.trouble = ""
        """Why the queue could not be asked the last time; empty when it could."""

    def watch(self, name: str) -> None:
        """Look at that one from now on."""
        with self._wake:
            self._watched.add(name)
        self.do(lambda: None)

    def drop(self, name: str) -> None:
        """It has ended."""
        with self._wake:
            self._watched.discard(name)

    def do(self, what: Callable[[], None], *, after_s: float = 0.0) -> None:
        """Have that done by the thread, then look; it may raise SweeperError, which is remembered as trouble."""
        with self._wake:
            self._todo.append((time.monotonic() + after_s, what))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="queue", daemon=True)
                self._thread.start()
            self._wake.notify()

    def state(self, name: str) -> tuple[bool, State | None]:
        """(Whether the queue has been asked about it, what it said: None if it does not know it)."""
        with self._wake:
            return name in self._states, self._states.get(name)

    def close(self) -> None:
        """Do what is to be done at once, and look no more."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(10.0)

    def look(self) -> None:
        """Ask about all that are watched, in the caller's thread."""
        with self._wake:
            names = tuple(sorted(self._watched))
        if not names:
            return
        try:
            found = self.queue.look(names)
        except Exception as error:
            self.trouble = str(error) or repr(error)
            return
        self.trouble = ""
        with self._wake:
            self._states |= {name: found.get(name) for name in names}

    def _run(self) -> None:
        while True:
            for what in self._due():
                try:
                    what()
                except Exception as error:  # also an answer that is nothing like what was expected: we go on asking
                    self.trouble = str(error) or repr(error)
            self.look()
            with self._wake:
                if self._closed:
                    return
                now = time.monotonic()
                if all(when > now for when, _ in self._todo):
                    next_s = min([LOOK_S, *(when - now for when, _ in self._todo)])
                    self._wake.wait(next_s if self._watched or self._todo else None)

    def _due(self) -> list[Callable[[], None]]:
        with self._wake:
            now = time.monotonic()
            due = [what for when, what in self._todo if when <= now]
            self._todo = [(when, what) for when, what in self._todo if when > now]
        return due


class QueuedAttempt(Started):
    """An attempt that is in a queue, runs or has ended."""

    def __init__(self, folder: Path, started: Mapping[str, Any], watch: Watcher) -> None:
        """`started`: its `attempt.json`."""
        self.folder = folder
        self.name = str(started["name"])
        self.places: tuple[int, ...] = tuple(int(place) for place in started["places"])
        self.ranks = int(started["ranks"])
        self._watch = watch
        self._refused = ""
        self._asked = False
        self._gone: float | None = None
        self._taken: Exit | None = None
        self._ended: Exit | None = None

    def poll(self) -> Exit | None:
        """How it ended, or None while it waits or any process of it remains."""
        if self._ended is not None:
            return self._ended
        if self._refused:
            return self._end(Exit(None, "stopped" if self._asked else "launch", self._refused, time.time()))
        asked, state = self._watch.state(self.name)
        if not asked or (state is not None and not state.over):
            if state is not None and state.requeued and self._began() and not self._taken:
                self._taken = state.exit()  # it would start over in the same folder: the sweep does, in a new one
                self._watch.do(lambda: self._watch.queue.end(self.name, now=True))
            return None
        # On a network filesystem the record of a node that is gone may take a moment to be seen from here.
        self._gone = self._gone or time.monotonic()
        own = self._own()
        if own is None and self._began() and time.monotonic() < self._gone + gangs.RECORD_S:
            return None
        if own is not None and (own.reason != "stopped" or self._asked):
            return self._end(own)
        return self._end(self._told(state))  # if it was stopped, then not by us: the queue knows why

    def _began(self) -> bool:
        """Whether its first node runs, or ran."""
        return (self.folder / GANG / "0.json").exists()

    def _own(self) -> Exit | None:
        """What its first node wrote."""
        try:
            said = Exit(**json.loads((self.folder / GANG / f"0.{RECORD}").read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return Exit(said.code, "stopped", said.detail, said.ended) if self._asked and said.reason == "lost" else said

    def _told(self, state: State | None) -> Exit:
        """What the queue says."""
        if self._asked:
            return Exit(None, "stopped", "", time.time())
        if self._taken is not None:
            return self._taken
        if state is None:
            return Exit(
                None, "lost", f"{self.name} is not known there: it was never submitted, or deleted", time.time()
            )
        said = state.exit()
        begun = said.reason == "launch" and self._began()  # its nodes were there: they are not what it lacked
        return Exit(said.code, "lost", said.detail, said.ended) if begun else said

    def _end(self, ended: Exit) -> Exit:
        self._ended = ended
        self._watch.drop(self.name)
        if recorded(self.folder) != ended:
            gangs.record(ended, self.folder)
        self._watch.do(lambda: self._watch.queue.clear(self.name))
        return ended

    def waiting(self) -> str:
        """Why it does not run yet, in the queue's words; empty once it does."""
        if self._ended is not None or self._began():
            return ""
        asked, state = self._watch.state(self.name)
        if self._watch.trouble:
            return self._watch.trouble
        return state.waiting if state is not None else "" if asked else "submitted"

    def _ask(self, what: bytes) -> None:
        """By the file; the queue ends what has not ended by that after a while, what still waits, and what is to be
        killed."""
        if self._ended is not None:
            return
        self._asked = True
        with contextlib.suppress(OSError):
            gangs.ask_by_file(self.folder, what)
        after_s = STOP_S if self._began() and what != b"k" else 0.0

        def end() -> None:
            if self._ended is None and not self._over():
                self._watch.queue.end(self.name, now=after_s == 0.0)

        self._watch.do(end, after_s=after_s)

    def _over(self) -> bool:
        _, state = self._watch.state(self.name)
        return state is not None and state.over

    def submit(self, how: Callable[[], None]) -> None:
        """Have it submitted by the watcher's thread; `how` raises SweeperError if it is refused."""

        def submit() -> None:
            if self._asked:
                self._refused = "stopped before it was submitted"
                return
            try:
                how()
            except Exception as error:
                self._refused = str(error) or repr(error)
                return
            self._watch.watch(self.name)

        self._watch.do(submit)

    def follow(self) -> None:
        """Take it up, where another controller submitted it."""
        self._ended = recorded(self.folder)
        if self._ended is None:
            self._watch.watch(self.name)


class Places:
    """Which of a queue's nodes this sweep counts as taken: the queue knows which they are, we know how many."""

    def __init__(self, shape: Shape, max_ranks: int | None) -> None:
        self._shape, self._most = shape, max_ranks or shape.gpus
        self._running: list[QueuedAttempt] = []

    def add(self, attempt: Attempt | None) -> None:
        """Count it as long as it has not ended."""
        if isinstance(attempt, QueuedAttempt) and attempt.poll() is None:
            self._running.append(attempt)

    def free(self) -> tuple[int, ...]:
        """Ranks that the sweep may still ask for, by place."""
        self._running = [attempt for attempt in self._running if attempt.poll() is None]
        return gangs.room(self._shape, self._most, ((a.places, a.ranks) for a in self._running))

    def fit(self, job: Job, places: Iterable[int]) -> bool:
        """Whether the job's gang may be there."""
        free = self.free()
        return all(place < len(free) and free[place] >= job.gang.gpus_per_node for place in places)


class QueueCluster:
    """A queue as a place where gangs run; a kind says how an attempt is handed to it."""

    kind: str
    elsewhere: str
    """Why no command can be run on its nodes, and what tells about them instead."""

    def __init__(self, config: Mapping[str, Any], shape: Shape, watch: Watcher) -> None:
        self.shape = shape
        self._config, self._watch = config, watch
        self._places = Places(shape, config.get("max_ranks"))

    def unready(self, job: Job, folder: Path) -> str:
        """Why the job cannot be handed over from that folder, whatever the queue says; empty if it can."""
        raise NotImplementedError

    def submission(self, job: Job, folder: Path, name: str) -> tuple[Callable[[], None], dict[str, Any]]:
        """Write the attempt's files; what hands it over (SweeperError if it is refused), and what `attach` needs to
        find the queue again. RecordsError or OSError if they cannot be written."""
        raise NotImplementedError

    def free(self) -> tuple[int, ...]:
        """Ranks that this sweep may still ask for, on each of the nodes it counts with."""
        return self._places.free()

    def start(self, job: Job, folder: Path, nodes: tuple[int, ...]) -> Attempt | None:
        """Hand the attempt over; returns before the queue has answered."""
        if not self._places.fit(job, nodes):
            return None
        folder = folder.resolve()
        if why := self.unready(job, folder):
            return Ended(folder, gangs.not_launched(folder, why))
        own, places = name(folder), {"places": list(nodes), "ranks": job.gang.gpus_per_node}
        try:
            submit, where = self.submission(job, folder, own)
            gangs.started(folder, self.kind, name=own, **where, **places)
        except (OSError, RecordsError) as error:
            return Ended(folder, gangs.not_launched(folder, str(error)))
        attempt = QueuedAttempt(folder, {"name": own, **places}, self._watch)
        attempt.submit(submit)
        self._places.add(attempt)
        return attempt

    def attach(self, folder: Path) -> Attempt | None:
        """The attempt of that folder; see `clusters.attach`."""
        attempt = clusters.attach(folder)
        self._places.add(attempt)
        return attempt

    def each(self, argv: Sequence[str], stdin: str, timeout_s: float) -> list[Answer]:  # noqa: ARG002
        """Nothing can be run on such a node from outside."""
        return [Answer(f"node {number}", None, err=self.elsewhere) for number in range(self.shape.nodes)]

    def close(self) -> None:
        """Each request is a connection of its own, or ends with the process."""


def open_ask(folder: Path) -> None:
    """Make the empty file that a node looks at. OSError if it cannot be made."""
    (folder / GANG / gangs.ASK).write_bytes(b"")
    (folder / RECORD).unlink(missing_ok=True)


def listen_argv(folder: Path, rank: int | str, *, python: str) -> list[str]:
    """What runs beside node.py on a node, and passes on what is asked for in the file."""
    return [python, "-I", "-S", str(gangs.scripts(folder) / "listen.py"), str(folder), str(rank)]


def attached(folder: Path, started: Mapping[str, Any], watch: Watcher) -> QueuedAttempt:
    """The attempt of that folder, whose controller is gone.

    Raises:
        SweeperError: Its `attempt.json` cannot be read.
    """
    try:
        attempt = QueuedAttempt(folder, started, watch)
    except (KeyError, TypeError, ValueError) as error:
        path = folder / clusters.STARTED
        raise SweeperError(f"{path} cannot be read ({error}): whether the attempt still runs is not known") from error
    attempt.follow()
    return attempt
