"""What an attempt that is a job and one that is a step have in common.

Guarantees: it has ended when each node's guard said so, when Slurm says that nothing of it is left, or when its first
node is gone (daemon.py); an end that Slurm brought about is not taken for the trainer's own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sweeper.clusters import gangs
from sweeper.clusters.base import Exit
from sweeper.clusters.gang import leases
from sweeper.clusters.gang.node import GANG, PASSED
from sweeper.clusters.pulse import STILL_S, Pulse
from sweeper.clusters.slurm import script, states
from sweeper.clusters.slurm.daemon import AGAIN_S, DAEMON, Daemon
from sweeper.clusters.slurm.watch import Watched, Watcher
from sweeper.engines.base import Job

STOP_S, KILL_S = 12.0, 4.0
"""After which an attempt that was to be stopped or killed is cancelled with all of its job or step (scancel)."""
FENCED_S = 5.0
"""After the first node gave one up, until that one has ended its part too: a network that is cut is cut for both, and
it has a few seconds for its processes. (What is cut in one direction only is ended by the kill that follows.)"""
TOLD_S = 10.0
"""After the first node ended because a node, maybe itself, was told to stop: so long Slurm has to say whether that was
by it. A node that is shut down tells its processes, too, and Slurm says `COMPLETING` until it gives the node up."""
SILENT_S = 10.0
"""Without a beat of the first node, after which it is named."""
WAITS_S = {"lost": FENCED_S, "stopped": TOLD_S}
"""How the first node ended -> how long the others, or Slurm, have to say more."""
OF_THE_NODE = frozenset({"TERM", "TMPDIR", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"})
"""Variables that Slurm or the node sets, and that of the host on which the sweep runs would be wrong."""


class SlurmAttempt(gangs.GangAttempt):
    """A gang of which Slurm starts the nodes; `name` is what people call it."""

    def __init__(self, folder: Path, watched: Watched, watch: Watcher) -> None:
        super().__init__(folder, self)
        self._lost_at: float | None = None
        self._pulse = Pulse(folder)
        self._daemon: Daemon | None = None
        self.watched, self._watch = watched, watch

    @property
    def name(self) -> str:
        """Its number, or what it is found by."""
        return self.watched.job or self.watched.tag

    def alive(self, folder: Path) -> bool | None:  # noqa: ARG002  (`Control`)
        """What Slurm said last."""
        state = self.watched.state
        return None if state is None else not state.ended

    def ask(self, folder: Path, what: bytes) -> None:
        """Pass it on to the guards; what does not help within a while is done by scancel."""
        job = self.watched
        job.expect()
        job.cancel_at = min(job.cancel_at, time.monotonic() + (KILL_S if what == b"k" else STOP_S))
        job.dropped = True
        self._watch.do(lambda: self.pass_on(folder, what.decode()))

    def pass_on(self, folder: Path, what: str) -> None:
        """Pass `s`, `k` or `d` on; in the watcher's thread. SlurmError if Slurm refuses."""
        raise NotImplementedError

    def _look(self, now: float) -> Exit | None:
        job = self.watched
        if job.refused and self._asked:
            ended = Exit(None, "stopped", job.refused, time.time())
            gangs.record(ended, self.folder)
            return ended
        if job.refused:
            return gangs.not_launched(self.folder, job.refused)
        nodes = self._read()
        head = self._last_words.get(0)
        if job.state is not None and job.state.ended:
            self._gone = self._gone or now
            if head is None and job.job and now < self._gone + gangs.RECORD_S:
                return None  # a network filesystem may show it late
        elif head is not None and head.reason in WAITS_S and self._fenced(now, WAITS_S[head.reason]):
            self.ask(self.folder, b"k")  # Slurm may take minutes to give the dead node up; we do not wait for it
        elif nodes and len(self._last_words) >= nodes:
            settled = head is not None and (head.reason == "launch" or (head.reason == "exit" and head.code == 0))
            if not (settled or self._asked):
                self._watch.hurry(job)  # was it Slurm that ended it?
                return None
        else:
            return self._first_lost(now, nodes) if head is None else None
        state = job.state or states.State("RUNNING")
        time_up = (self.folder / script.TIME_UP).exists()
        begun = any(self.folder.glob(f"{GANG}/[0-9]*.json"))
        log = "" if begun else script.said(self.folder)
        ended = states.exit_of(
            self.name, state, head, asked=self._asked, time_up=time_up, begun=begun, now=time.time(), log=log
        )
        said = [word.detail for _, word in sorted(self._last_words.items()) if word.detail]
        if head is None and said:
            ended = replace(ended, detail="; ".join([ended.detail, *said]))
        gangs.record(ended, self.folder)
        return ended

    def _fenced(self, now: float, within_s: float = FENCED_S) -> bool:
        """Whether a node of which the first one hears nothing has ended its own part by now."""
        self._lost_at = self._lost_at or now
        return now >= self._lost_at + within_s

    def _first_lost(self, now: float, nodes: int) -> Exit | None:
        """Its end, if its first node is gone while Slurm still takes it for running."""
        self._pulse.look(now)
        if not self._pulse.begun:
            return None
        self._daemon = self._daemon or Daemon(self._first(), self.folder / GANG / DAEMON)
        if self._pulse.still_s < STILL_S:
            self._daemon.silent = ""  # of an earlier standstill, which passed
            if not self._daemon.known:
                self._daemon.ask(now, every_s=AGAIN_S)
            return None
        self._daemon.ask(now)
        self._watch.hurry(self.watched)
        # Slurm has answered since: it is not we who are cut off.
        if not self._daemon.silent or self._watch.answered_at < self._daemon.silent_at:
            return None
        if self._lost_at is None:
            self._lost_at = now
            self.watched.cancel_at = now
            with contextlib.suppress(OSError):  # should it live after all, it ends as soon as it sees the folder again
                gangs.ask_by_file(self.folder, b"k")
        if len(self._last_words) < nodes - 1 and not self._fenced(now):
            return None
        name, (address, port) = self._daemon.node, self._daemon.at or ("", 0)
        why = (
            f"node {name} was lost: it has shown no life for {self._pulse.still_s:.0f} s and its slurmd "
            f"({address}:{port}) does not answer: {self._daemon.silent}; Slurm job {self.name} was cancelled"
        )
        ended = Exit(None, "stopped" if self._asked else "lost", why, time.time())
        gangs.record(ended, self.folder)
        return ended

    def silent(self) -> str:
        """Its nodes that are not heard from."""
        if self._ended is not None or self._asked or self._pulse.still_s < SILENT_S or self._daemon is None:
            return super().silent()
        return f"node {self._daemon.node} has written nothing to the store for {SILENT_S:.0f} s"

    def waiting(self) -> str:
        """Why it does not run yet, in Slurm's words; empty once it does."""
        state = self.watched.state
        if self._ended is not None or self.watched.over:
            return ""
        if state is None:
            return f"Slurm cannot be asked: {self._watch.trouble}" if self._watch.trouble else ""
        return f"Slurm job {self.name} waits: {state.waits}" if state.waits else ""


def passed(job: Job, environ: Mapping[str, str]) -> list[str]:
    """Names of the variables that the attempt sees of ours, those that are set."""
    names = dict.fromkeys((*(name for name in PASSED if name not in OF_THE_NODE), *job.inherit, leases.RUNTIME))
    return [name for name in names if name in environ and name not in script.OWN]
