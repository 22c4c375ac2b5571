"""A cluster of machines on which commands can be run: attempts are started, watched and ended by `gang/node.py` there.

Guarantees: a host needs a Python and the sweep's folder, nothing else of ours; ranks are leased on the hosts
themselves, so that several sweeps share them; hosts start in any order, side by side; one command a second asks a
host about all attempts on it; a host that cannot be reached holds up nobody, and what is not known is not made up: an
attempt is `lost` with its only host once that host was silent while others answered, for `ALONE_S` where its beat in
the store (pulse.py) has stopped too, else for `LOST_S`. (A gang's nodes end by themselves when they lose each other,
see gang/link.py; a host that comes back has what we gave up on it ended.)

How a command gets onto a host is the business of `Reach` (clusters/ssh.py).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sweeper import clusters
from sweeper.clusters import STARTED, docker, gangs
from sweeper.clusters.base import RECORD, Answer, Attempt, Ended, Exit
from sweeper.clusters.gang import leases
from sweeper.clusters.gang.node import GANG, NAME
from sweeper.clusters.gangs import GangAttempt, Node
from sweeper.clusters.pulse import STILL_S, Pulse
from sweeper.engines.base import Job, Shape
from sweeper.errors import Problem, RequestError
from sweeper.trial.records import RecordsError

LOOK_S, LOOK_STOPPING_S = 1.0, 0.3
"""Between two questions to a host that has attempts of ours; the latter while one of them is asked to end."""
FREE_S = 1.0
"""How old an answer may be that says which ranks are free."""
ASK_S = 60.0
"""For a host to answer a question: an interpreter's start on a busy machine."""
ANSWER_S = 30.0
"""What the others wait for a host to say which of its ranks are free, where that is not known; until it does, none is.
A busy host takes ten seconds to start an interpreter; one that hangs is waited for once, then it counts as silent."""
START_S, PULL_S = 60.0, 1800.0
"""For a host to start its part of an attempt, while nothing else is started; in a container, whose image it may have
to fetch first."""
ALONE_S, LOST_S = 14.0, 120.0
"""Silence after which a host's part of a gang is over: when the rest of the gang has ended (it ends by itself then:
after 10 s without a word, and a few for its processes) or its beat has stopped, and when nobody else of the gang is
there to say and the beat goes on, or cannot be read."""
REST_S = 3.0
"""That the rest of the gang must have been gone in the former case: the silent part notices that at the latest then."""
GONE_S = 15.0
"""For a gang that could not be started whole to be gone again."""

BOOT = (
    "import json,sys,types\n"
    "given=json.load(sys.stdin)\n"
    "for name,source in given['modules'].items():\n"
    "    made=sys.modules[name]=types.ModuleType(name)\n"
    "    made.__file__='/sent/'+name+'.py'\n"
    "    exec(compile(source,name+'.py','exec'),made.__dict__)\n"
    "print(json.dumps(sys.modules['host'].answer(given['asked'])))\n"
)
"""Runs what is sent: modules in the order in which they import each other, then the question."""
SENT = ("devices", "janitor", "leases", "node", "host")


class Reach(Protocol):
    """Runs commands on hosts; a place is an index into `names`."""

    names: tuple[str, ...]

    def submit(
        self, commands: Mapping[int, Sequence[str]], stdin: Mapping[int, str], timeout_s: float
    ) -> Future[dict[int, Answer]]:
        """Run a command on each of those places, side by side; returns at once. The future never fails."""
        ...

    def close(self) -> None:
        """Let go of the hosts; what runs there goes on."""
        ...


def question(asked: Mapping[str, Any]) -> str:
    """What BOOT reads."""
    folder = gangs.SCRIPTS
    return json.dumps({"modules": {name: (folder / f"{name}.py").read_text() for name in SENT}, "asked": dict(asked)})


def last_json(text: str) -> dict[str, Any] | None:
    """The last line that is an object: a login shell may say something before."""
    for line in reversed(text.splitlines()):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    return None


@dataclass
class _Seen:
    """What is known of a host."""

    asking: Future[dict[int, Answer]] | None = None
    asked_at: float = float("-inf")
    answered_at: float = field(default_factory=time.monotonic)
    """When it last answered; at first, when we began to ask."""
    silent: bool = False
    """Whether it did not answer the last time."""
    said: str = ""
    """Why, in that case."""
    free: int | None = None
    alive: dict[str, dict[str, bool]] = field(default_factory=dict)


class Hosts:
    """All that is asked of the hosts, from a thread of its own: the `Control` of every attempt on them."""

    def __init__(self, reach: Reach, *, python: str) -> None:
        self.reach, self.python = reach, python
        self._seen = [_Seen() for _ in reach.names]
        self._places: dict[str, tuple[int, ...]] = {}
        """Folder of an attempt -> the place of each rank."""
        self._stopping: set[str] = set()
        self._given_up: dict[int, set[str]] = {}
        """Place -> attempts that ended without it, and that are ended there when it comes back."""
        self._since: dict[str, float] = {}
        self._alone: dict[str, float] = {}
        """Folder of an attempt -> since when all of it that answers has ended."""
        self._pulses: dict[str, Pulse] = {}
        """Folder of an attempt of which no host answers -> its beat, looked at since then."""
        self.ids: list[list[str]] = [[] for _ in reach.names]
        """The ranks of each place, once they are known."""
        self._lock = threading.Lock()
        self._wake, self._closed = threading.Event(), False
        self._thread: threading.Thread | None = None

    def command(self, place: int, argv: Sequence[str]) -> list[str]:
        """What is run there, under the name that the host has in messages."""
        return ["env", f"{NAME}={self.reach.names[place]}", *argv]

    def ask_each(self, places: Iterable[int], asked: Mapping[str, Any]) -> dict[int, dict[str, Any] | Problem]:
        """Ask those places the same; what each said, or why it did not."""
        argv, text = [self.python, "-I", "-S", "-c", BOOT], question(asked)
        places = list(places)
        answers = self.reach.submit(
            {place: self.command(place, argv) for place in places}, dict.fromkeys(places, text), ASK_S
        ).result()
        return {place: last_json(a.out) or self._no_answer(a) for place, a in answers.items()}

    def _no_answer(self, answer: Answer) -> Problem:
        if answer.code is None:
            return Problem(answer.err, key="cluster.ssh.hosts")
        said = answer.err.strip().splitlines()[-1:] or ["nothing"]
        return Problem(
            f"host {answer.node} cannot run cluster.python={self.python}: {said[0]} (exit code {answer.code})",
            valid="a Python from 3.9, without packages, by its name or path there",
            fix="cluster.python=/usr/bin/python3   (install it there: apt-get install python3)",
            key="cluster.python",
        )

    def each(self, argv: Sequence[str], stdin: str, timeout_s: float) -> list[Answer]:
        """Run a command on every host, side by side; see `Cluster.each`."""
        words = [word.replace("{python}", self.python) for word in argv]
        places = range(len(self.reach.names))
        commands = {place: self.command(place, words) for place in places}
        answers = self.reach.submit(commands, dict.fromkeys(places, stdin), timeout_s).result()
        return [answers[place] for place in places]

    def watch(self, folder: Path, places: Sequence[int]) -> None:
        """Ask about that attempt from now on."""
        with self._lock:
            self._places[str(folder)] = tuple(places)
            self._since[str(folder)] = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hosts", daemon=True)
                self._thread.start()
        self._wake.set()

    def forget(self, folder: Path) -> None:
        """It ended."""
        with self._lock:
            self._places.pop(str(folder), None)
            self._alone.pop(str(folder), None)
            self._pulses.pop(str(folder), None)
            self._stopping.discard(str(folder))

    def ask(self, folder: Path, what: bytes) -> None:
        """Of `Control`: to every host of the attempt."""
        places = self._places.get(str(folder), ())
        self._stopping.add(str(folder))
        commands = {
            place: self.command(place, gangs.ask_argv(folder, rank, what, python=self.python))
            for rank, place in enumerate(places)
        }
        if commands:
            self.reach.submit(commands, {}, ASK_S).add_done_callback(lambda _: self._soon(places))

    def _soon(self, places: Iterable[int]) -> None:
        for place in places:
            self._seen[place].asked_at = float("-inf")
        self._wake.set()

    def alive(self, folder: Path) -> bool | None:
        """Of `Control`: from what the hosts said last."""
        key, now = str(folder), time.monotonic()
        places, since = self._places.get(key, ()), self._since.get(key, now)
        known: list[bool | None] = []
        for rank, place in enumerate(places):
            seen = self._seen[place]
            answered = seen.alive.get(key) if seen.answered_at > since else None
            known.append(None if seen.silent or answered is None else answered.get(str(rank), False))
        if any(known):  # somebody says that it lives
            self._alone.pop(key, None)
            self._pulses.pop(key, None)
            return True
        if None not in known:
            return False
        silent = [place for place, state in zip(places, known, strict=True) if state is None]
        if self._may_live(key, places, silent, now):
            return None
        with contextlib.suppress(OSError):
            # Whoever of it still lives sees the folder and ends, or does not see it and can write no checkpoint there.
            gangs.ask_by_file(folder, b"k")
        self.give_up(folder, silent)
        return False

    def _may_live(self, key: str, places: Sequence[int], silent: Sequence[int], now: float) -> bool:
        """Whether what is left of an attempt on hosts that say nothing may still run."""
        if any(not self._seen[place].silent for place in silent):
            return True  # it is being asked
        some = len(silent) < len(places)
        others = [seen for place, seen in enumerate(self._seen) if place not in places and not seen.silent]
        if not some and not others:
            return True  # nobody answers: it may be we who are cut off
        if some and now - self._alone.setdefault(key, now) < REST_S:
            return True
        patience = ALONE_S if some or self._stands_still(key, now) else LOST_S
        since = self._since.get(key, now)
        return any(now - max(self._seen[place].answered_at, since) < patience for place in silent)

    def _stands_still(self, key: str, now: float) -> bool:
        """Whether an attempt that showed life in the store does so no longer."""
        pulse = self._pulses.setdefault(key, Pulse(Path(key)))
        pulse.look(now)
        return pulse.begun and pulse.still_s >= STILL_S

    def give_up(self, folder: Path, places: Iterable[int]) -> None:
        """That attempt ended without us knowing of these places: what is left of it there ends when they answer."""
        with self._lock:
            for place in places:
                self._given_up.setdefault(place, set()).add(str(folder))
        self._wake.set()

    def free(self) -> list[int]:
        """How many ranks nobody holds on each host; 0 if it does not answer."""
        now = time.monotonic()
        for place, seen in enumerate(self._seen):
            if seen.free is None or now - seen.answered_at > FREE_S:
                self._ask(place, now)
        for seen in self._seen:
            if seen.free is None and seen.asking is not None and not seen.silent:
                with contextlib.suppress(TimeoutError):
                    seen.asking.result(max(0.0, now + ANSWER_S - time.monotonic()))
        return [0 if seen.silent or seen.free is None else seen.free for seen in self._seen]

    def stale(self, places: Iterable[int]) -> None:
        """What was said of free ranks there holds no longer."""
        for place in places:
            self._seen[place].free = None

    def close(self) -> None:
        """Stop asking."""
        self._closed = True
        self._wake.set()
        self.reach.close()

    def _run(self) -> None:
        while not self._closed:
            now = time.monotonic()
            with self._lock:
                watched = {place for places in self._places.values() for place in places} | set(self._given_up)
                hurried = {p for key in self._stopping for p in self._places.get(key, ())}
            watched |= {place for place in range(len(self._seen)) if any(self._seen[p].silent for p in watched)}
            for place in watched:
                if now - self._seen[place].asked_at >= (LOOK_STOPPING_S if place in hurried else LOOK_S):
                    self._ask(place, now)
            self._wake.wait(0.1)
            self._wake.clear()

    def _ask(self, place: int, now: float) -> None:
        seen = self._seen[place]
        if seen.asking is not None and not seen.asking.done():
            return
        with self._lock:
            folders = [key for key, places in self._places.items() if place in places]
            folders += self._given_up.get(place, ())
        seen.asked_at = now
        text = question({"look": folders, "free": self.ids[place]})
        argv = self.command(place, [self.python, "-I", "-S", "-c", BOOT])
        seen.asking = self.reach.submit({place: argv}, {place: text}, ASK_S)
        seen.asking.add_done_callback(lambda future: self._told(place, now, future.result()[place]))

    def _told(self, place: int, asked_at: float, answer: Answer) -> None:
        seen, said = self._seen[place], last_json(answer.out)
        if said is None:
            seen.silent, seen.said = True, answer.err
            return
        # As of when it was asked: what was started meanwhile is not in the answer.
        seen.alive, seen.free, seen.answered_at, seen.silent = said["look"], len(said["free"]), asked_at, False
        with self._lock:
            asked = self._given_up.get(place, set()) & said["look"].keys()  # others were given up since we asked
            self._given_up[place] = self._given_up.get(place, set()) - asked
            if not self._given_up[place]:
                del self._given_up[place]
        for key in asked:
            if any(said["look"][key].values()):
                for rank in said["look"][key]:
                    argv = gangs.ask_argv(Path(key), int(rank), b"k", python=self.python)
                    self.reach.submit({place: self.command(place, argv)}, {}, ASK_S)

    def why_silent(self, place: int) -> str:
        """What went wrong when it was last asked; empty if it answered."""
        return self._seen[place].said if self._seen[place].silent else ""


class HostsAttempt(GangAttempt):
    """A gang on hosts."""

    def __init__(self, folder: Path, hosts: Hosts, places: Sequence[int], ranks: int) -> None:
        super().__init__(folder, hosts)
        self.places, self.ranks, self._hosts = tuple(places), ranks, hosts
        if self._ended is None:
            hosts.watch(folder, places)

    def poll(self) -> Exit | None:
        """How it ended, or None while any process of it remains."""
        ended = super().poll()
        if ended is not None:
            self._hosts.forget(self.folder)
        return ended

    def silent(self) -> str:
        """The hosts that do not answer us, and those that the gang lost."""
        if self._ended is not None or self._asked:
            return ""
        return "; ".join(filter(None, [*self._unanswered(), super().silent()]))

    def _unanswered(self) -> list[str]:
        return [text for place in self.places if (text := self._hosts.why_silent(place))]

    def _why(self) -> Exit:
        """With the hosts that are silent, for they are why."""
        why = super()._why()
        silent = self._unanswered()
        # Stopped by what we left in the store when we gave it up, that is.
        given_up = why.reason == "stopped" and not self._asked
        if not silent or not (given_up or why.reason == "lost"):
            return why
        return Exit(why.code, "lost", "; ".join([why.detail, *silent]).strip("; "), why.ended)


class HostsCluster:
    """Those hosts. `started` is what `attempt.json` says beside the places."""

    def __init__(
        self,
        shape: Shape,
        hosts: Hosts,
        addresses: Sequence[str],
        *,
        limits: Sequence[int],
        join_s: float,
        kind: str,
        started: Mapping[str, Any],
        containers: Mapping[str, Any] | None = None,
        users: Sequence[Sequence[int]] = (),
    ) -> None:
        """`limits`: ranks of each host that may be used; `users`: uid and gid of ours there, for containers."""
        self.shape, self._hosts, self._addresses = shape, hosts, list(addresses)
        self._limits, self._join_s = list(limits), join_s
        self._kind, self._started = kind, dict(started)
        self._docker, self._users = containers, [list(user) for user in users]
        self._running: list[HostsAttempt] = []
        self._checked: set[tuple[str, str]] = set()

    def free(self) -> tuple[int, ...]:
        """Ranks that are free on each host now; none of a host that does not answer."""
        ours = [0] * len(self._limits)
        left = []
        for attempt in self._running:
            if attempt.poll() is None:
                left.append(attempt)
                for place in attempt.places:
                    ours[place] += attempt.ranks
            else:
                self._hosts.stale(attempt.places)
        self._running = left
        return tuple(
            max(0, min(limit - used, free))
            for limit, used, free in zip(self._limits, ours, self._hosts.free(), strict=True)
        )

    def start(self, job: Job, folder: Path, nodes: tuple[int, ...]) -> Attempt | None:
        """Start the job's gang on those hosts, the trainer on the first of them.

        Raises:
            RequestError: The folder is not shared with one of them, or the engine's interpreter is not there.
        """
        if len(nodes) != job.gang.nodes:
            raise ValueError(f"a gang of {job.gang.nodes} on the places {nodes}")
        folder = folder.resolve()
        self._check(job, folder, nodes)
        try:
            gang = [Node(self._hosts.reach.names[place], self._addresses[place]) for place in nodes]
            gangs.prepare(job, folder, gang, shape=self.shape, leases=True, join_s=self._join_s, listen=True)
            gangs.started(folder, self._kind, places=list(nodes), ranks=job.gang.gpus_per_node, **self._started)
        except (OSError, RecordsError) as error:
            return Ended(folder, gangs.not_launched(folder, str(error)))
        answers = self._launch(job, folder, nodes)
        attempt = HostsAttempt(folder, self._hosts, nodes, job.gang.gpus_per_node)
        failed = [f"host {name}: {why}" for name, why in answers if why]
        busy = [why for _, why in answers if why == "busy"]
        if failed:
            return self._undo(attempt, "" if len(busy) == len(failed) else "; ".join(failed))
        self._running.append(attempt)
        return attempt

    def _launch(self, job: Job, folder: Path, nodes: Sequence[int]) -> list[tuple[str, str]]:
        """Start each host's part: (host, what went wrong, `busy` or empty)."""
        # Where this machine's leases are is nothing to another machine.
        given = json.loads(gangs.stdin(job, gangs.new_token()))
        given["env"].pop(leases.RUNTIME, None)
        line = json.dumps(given) + "\n"
        commands = {
            place: self._hosts.command(place, self._part(job, folder, rank, place)) for rank, place in enumerate(nodes)
        }
        patience = PULL_S if job.image else START_S
        answers = self._hosts.reach.submit(commands, dict.fromkeys(nodes, line), patience).result()
        found = []
        for place in nodes:
            answer = answers[place]
            said = last_json(answer.out)
            if said is None:
                why = answer.err.strip() or f"node.py ended with code {answer.code}"
            else:
                why = "busy" if said.get("busy") else str(said.get("error", ""))
            found.append((answer.node, why))
        return found

    def _part(self, job: Job, folder: Path, rank: int, place: int) -> list[str]:
        """What starts a host's part."""
        python = self._hosts.python
        if not job.image:
            return gangs.argv(folder, rank, detached=True, python=python, stdin=True)
        name, user = self._hosts.reach.names[place], self._users[place]
        command = docker.argv(self._docker, job, folder, rank, user=user, node=name, device=self.shape.device)
        return docker.contained(folder, rank, command, python=python)

    def _undo(self, attempt: HostsAttempt, why: str) -> Attempt | None:
        """End what did start; None if only ranks were missing, as if nothing had happened."""
        with contextlib.suppress(OSError):
            gangs.ask_by_file(attempt.folder, b"k")  # reaches also what started on a host that cannot be asked now
        attempt.kill()
        gone = True
        try:
            attempt.wait(GONE_S)
        except TimeoutError:
            gone = False
            self._hosts.give_up(attempt.folder, attempt.places)
        self._hosts.forget(attempt.folder)
        self._hosts.stale(attempt.places)
        (attempt.folder / RECORD).unlink(missing_ok=True)
        if why:
            return Ended(attempt.folder, gangs.not_launched(attempt.folder, why))
        if gone:  # else by these it is found when its host answers, and ends by itself
            shutil.rmtree(attempt.folder / GANG, ignore_errors=True)
            (attempt.folder / STARTED).unlink(missing_ok=True)
        return None

    def _check(self, job: Job, folder: Path, nodes: Sequence[int]) -> None:
        """Once a host and store: it sees what we write, and has the engine's interpreter."""
        home, names = gangs.home(folder), self._hosts.reach.names
        program = "" if job.image else job.python
        new = [place for place in nodes if (names[place], f"{home} {program}") not in self._checked]
        if not new:
            return
        with gangs.nonce(home) as nonce:
            answers = self._hosts.ask_each(new, {"read": str(nonce), "which": [program] if program else []})
        found: list[Problem] = []
        for place, said in answers.items():
            if isinstance(said, Problem):
                found.append(said)
                continue
            if said["read"] != nonce.name:
                found.append(gangs.unseen(f"host {names[place]}", home))
            found += [gangs.without(f"host {names[place]}", missing) for missing in said["which"]]
        if found:
            raise RequestError(found)
        self._checked |= {(names[place], f"{home} {program}") for place in new}

    def attach(self, folder: Path) -> Attempt | None:
        """The attempt of that folder; see `Cluster.attach`."""
        return clusters.follow(folder, HostsAttempt, self._running)

    def each(self, argv: Sequence[str], stdin: str, timeout_s: float) -> list[Answer]:
        """Run a command on every host, side by side."""
        return self._hosts.each(argv, stdin, timeout_s)

    def close(self) -> None:
        """Close the connections. Attempts go on."""
        self._hosts.close()


def ids(about: Mapping[str, Any], device: str, slots: int) -> list[str]:
    """The ranks of a host that said that of itself."""
    if device == "cuda":
        return list(about["ids"])
    return [f"cpu-{rank}" for rank in range(max(int(about["cores"]), slots))]
