"""Whether a slurmd answers; that a node is gone Slurm itself says after minutes (SlurmdTimeout).

A node is gone by two signs at once: its beat stands still (clusters/pulse.py), and its slurmd, which has answered
before, takes no connection. Either alone is something else: a filesystem that stalls, a daemon that is restarted, a
firewall. Guarantees: a slurmd that never answered this machine is not missed, and one that did is by a later
controller too; the caller never waits.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from pathlib import Path

from sweeper.clusters.slurm.commands import SlurmError, fields, run

KNOCKS, KNOCK_S, PAUSE_S = 3, 1.5, 0.5
"""How often slurmd is asked, how long each waits for an answer, and between them. With the beat: 13 s in all."""
AGAIN_S = 20.0
"""Between two tries to reach a slurmd that has never answered."""
DAEMON = "slurmd"
"""File in an attempt's gang folder: the machine to which the first node's slurmd has answered."""
OURS = frozenset({errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE, errno.EACCES})
"""Errors that say something of this machine, and nothing of the node."""


class Daemon:
    """The slurmd of one node.

    `mark`: a file that remembers to which machine it has answered.
    """

    def __init__(self, node: str, mark: Path) -> None:
        self.node = node
        self.at: tuple[str, int] | None = None
        self._mark = mark
        self.known = False
        """Whether it has answered this machine: else its silence says nothing."""
        with contextlib.suppress(OSError):
            self.known = mark.read_text() == socket.gethostname()
        self.silent, self.silent_at = "", 0.0
        """Why it did not answer when it was asked the last time, and since when that is known."""
        self._asking: threading.Thread | None = None
        self._asked_at = float("-inf")

    def ask(self, now: float, *, every_s: float = 0.0) -> None:
        """Find out whether it answers, beside; unless that is being done, or was `every_s` ago."""
        if now < self._asked_at + every_s or (self._asking is not None and self._asking.is_alive()):
            return
        self._asked_at = now
        self._asking = threading.Thread(target=self._ask, name=f"slurmd of {self.node}", daemon=True)
        self._asking.start()

    def _ask(self) -> None:
        why = ""
        try:
            self.at = self.at or listens_at(self.node)
            for _ in range(KNOCKS):
                if not (why := knock(self.at)):
                    self.silent = ""
                    self._answered()
                    return
                time.sleep(PAUSE_S)
        except (SlurmError, OSError, ValueError, LookupError, StopIteration):
            return  # it cannot be asked from here, which says nothing of it
        if self.known:
            self.silent_at = self.silent_at if self.silent else time.monotonic()
            self.silent = why

    def _answered(self) -> None:
        if not self.known:
            self.known = True
            with contextlib.suppress(OSError):  # then a later controller waits for Slurm's word
                self._mark.write_text(socket.gethostname())


def listens_at(node: str) -> tuple[str, int]:
    """Address and port of a node's slurmd. An error of some kind if Slurm does not say."""
    said = fields(run(["scontrol", "show", "node", node, "--oneliner"]))
    port = said.get("Port")  # only where it is not that of the others
    if port is None:
        config = (line.partition("=") for line in run(["scontrol", "show", "config"]).splitlines())
        port = next(value.strip() for name, _, value in config if name.strip() == "SlurmdPort")
    return said["NodeAddr"], int(port)


def knock(at: tuple[str, int]) -> str:
    """Why nobody answers there; empty if somebody does. OSError if it is this machine that cannot ask."""
    try:
        socket.create_connection(at, timeout=KNOCK_S).close()
    except TimeoutError:
        return f"no answer within {KNOCK_S:g} s"
    except OSError as error:
        if error.errno in OURS or isinstance(error, socket.gaierror):
            raise
        return str(error.strerror or error)
    return ""
