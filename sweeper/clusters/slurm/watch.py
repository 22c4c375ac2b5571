"""One thread that talks to Slurm for all attempts of this process.

Guarantees: Slurm is asked about all jobs in one command, every `poll_s` seconds, and more often only while a job is
about to end; the caller never waits for Slurm; a controller that does not answer changes nothing of what is known, and
is asked again; what is to be done (submit, signal, cancel) is done in the order in which it was said.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sweeper.clusters.slurm.commands import SlurmError, run
from sweeper.clusters.slurm.script import TAG
from sweeper.clusters.slurm.states import State

SOON_S = 0.3
"""Between two looks while a job is expected to start or to end."""
PATIENCE_S = 60.0
"""So long a change is expected after something was done about a job; then it is looked at like others."""
ABSENT_S = 5.0
"""So long a job is looked for whose submission was not answered: a busy Slurm may take it up after sbatch gave up.
(One that comes later still finds that it was given up: script.py.)"""
FORMAT = "%i|%T|%r|%N|%k"
"""Number, state, reason, nodes, comment."""


@dataclass(slots=True)
class Watched:
    """A job, or one that is to be one."""

    tag: str
    job: str | None = None
    """Its number; None: not submitted, or not found yet."""
    state: State | None = None
    """None: nothing is known yet."""
    refused: str = ""
    """Why it was not submitted."""
    soon_until: float = 0.0
    """On the monotonic clock: until then a change is expected."""
    cancel_at: float = field(default=float("inf"))
    """On the monotonic clock: when it is cancelled the hard way, should it not have ended by then."""
    find: bool = False
    """It was submitted, if at all, by somebody who is gone or was not answered: its number is looked for by its tag."""
    unanswered: str = ""
    """What `refused` will be if a job of that tag stays absent."""
    absent_since: float | None = None
    """On the monotonic clock: since when Slurm answers and has no job of that tag."""
    dropped: bool = False
    """It is not to be submitted any more."""

    def expect(self, seconds: float = PATIENCE_S) -> None:
        """A change is expected within that time."""
        self.soon_until = max(self.soon_until, time.monotonic() + seconds)

    @property
    def over(self) -> bool:
        """Whether nothing more is to be learned of it."""
        return bool(self.refused) or (self.state is not None and self.state.ended)


class Watcher:
    """See the module. `look` may be called by a test; the thread starts with the first job."""

    def __init__(self, poll_s: float = 5.0) -> None:
        self.poll_s = poll_s
        self._jobs: list[Watched] = []
        self._todo: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self.trouble = ""
        """Why Slurm could not be asked the last time; empty when it could."""
        self.answered_at = float("-inf")
        """On the monotonic clock: when Slurm was asked what it answered last."""

    def watch(self, job: Watched) -> None:
        """Follow a job until it is over."""
        with self._wake:
            self._jobs = [j for j in self._jobs if not j.over]
            self._jobs.append(job)
            job.expect()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="slurm", daemon=True)
                self._thread.start()
            self._wake.notify()

    def do(self, what: Callable[[], None]) -> None:
        """Have that done by the thread; it raises SlurmError where Slurm refuses."""
        with self._wake:
            self._todo.append(what)
            self._wake.notify()

    def hurry(self, job: Watched) -> None:
        """Something is known of this job that Slurm will say soon."""
        if job.soon_until < time.monotonic():
            with self._wake:
                job.expect()
                self._wake.notify()

    def _run(self) -> None:
        while True:
            for what in self._taken():
                self._try(what)
            self._try(self.look)
            with self._wake:
                if not self._todo:
                    now = time.monotonic()
                    soon = any(job.soon_until > now and not job.over for job in self._jobs)
                    busy = any(not job.over for job in self._jobs)
                    self._wake.wait(min(SOON_S, self.poll_s) if soon else self.poll_s if busy else None)

    def _try(self, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:  # whatever it is, other attempts are still to be followed
            self.trouble = str(error)

    def _taken(self) -> list[Callable[[], None]]:
        with self._wake:
            todo, self._todo = self._todo, []
        return todo

    def look(self) -> None:
        """Ask Slurm about all jobs that are not over."""
        with self._wake:
            jobs = [job for job in self._jobs if not job.over]
        known = [job for job in jobs if job.job]
        lost = [job for job in jobs if job.find and job.job is None]
        now = time.monotonic()
        for job in known:
            if now > job.cancel_at:
                job.cancel_at = float("inf")
                with contextlib.suppress(SlurmError):
                    run(["scancel", str(job.job)])
        if not known and not lost:
            return
        try:
            by_tag = dict(_all()) if lost else {}
            by_job = by_tag and {number: (number, state) for number, state in by_tag.values()}
            by_job = by_job or {number: (number, state) for _, (number, state) in _some([str(j.job) for j in known])}
        except SlurmError as error:
            self.trouble = str(error)
            return
        self.trouble, self.answered_at = "", now
        for job in lost:
            self._found(job, by_tag.get(job.tag), now)
        for job in known:
            _, state = by_job.get(str(job.job), ("", State("")))
            if job.state is None or job.state.state != state.state:
                job.expect(2 * SOON_S)
            job.state = state

    @staticmethod
    def _found(job: Watched, there: tuple[str, State] | None, now: float) -> None:
        """What Slurm has of a job that is looked for by its tag."""
        if there is None and job.unanswered:
            job.absent_since = now if job.absent_since is None else job.absent_since
            if now < job.absent_since + ABSENT_S:
                return
            job.refused = job.unanswered
        job.job, job.state = there or (None, State("", "it was never submitted"))
        job.find = False


def _some(numbers: list[str]) -> Iterator[tuple[str, tuple[str, State]]]:
    if not numbers:
        return
    try:
        answer = run(["squeue", "--noheader", "--states=all", f"--jobs={','.join(numbers)}", f"--format={FORMAT}"])
    except SlurmError as error:
        if error.away or "invalid job id" not in str(error).lower():
            raise
        answer = ""  # what is said of one job alone that is forgotten; of several, the others are listed
    yield from _read(answer)


def _all() -> Iterator[tuple[str, tuple[str, State]]]:
    """Every job of this user that Slurm remembers."""
    yield from _read(run(["squeue", "--noheader", "--states=all", "--me", f"--format={FORMAT}"]))


def _read(answer: str) -> Iterator[tuple[str, tuple[str, State]]]:
    for line in answer.splitlines():
        number, state, reason, nodes, comment = (line.split("|", 4) + [""] * 5)[:5]
        yield comment.removeprefix(TAG).strip(), (number.strip(), State(state.strip(), reason.strip(), nodes.strip()))


_watcher: Watcher | None = None


def watcher(poll_s: float = 5.0) -> Watcher:
    """The one of this process."""
    global _watcher  # noqa: PLW0603  (one thread a process is the point)
    if _watcher is None:
        _watcher = Watcher(poll_s)
    _watcher.poll_s = min(_watcher.poll_s, poll_s)
    return _watcher
