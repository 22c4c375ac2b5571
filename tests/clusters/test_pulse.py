"""What counts as a sign that a node is gone. On a real Slurm: test_slurm_cluster.py."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from sweeper.clusters.base import Exit
from sweeper.clusters.gang.node import GANG
from sweeper.clusters.pulse import Pulse
from sweeper.clusters.slurm.daemon import Daemon
from sweeper.clusters.slurm.jobs import JobAttempt


def test_time_in_which_nobody_looked_does_not_count(tmp_path: Path) -> None:
    """A controller that was held, or whose own reads stalled, has seen nothing stand still."""
    beat = tmp_path / GANG / "beat"
    beat.parent.mkdir()
    one = Pulse(tmp_path)
    one.look(0.0)
    assert not one.begun
    beat.write_text("1")
    for now in (1.0, 2.0, 3.0):
        one.look(now)
    assert one.begun and one.still_s == 2.0
    one.look(600.0)
    assert one.still_s == 0.0
    one.look(601.0)
    beat.write_text("2")
    one.look(602.0)
    assert one.still_s == 0.0
    one.look(603.0)
    beat.unlink()
    one.look(604.0)
    assert one.still_s == 0.0


def test_both_signs_count_at_once_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slurmd that was away in an earlier standstill, which passed, says nothing of a later one."""
    (tmp_path / GANG).mkdir()
    (tmp_path / GANG / "gang.json").write_text(json.dumps({"nodes": [{"name": "node1", "address": ""}]}))
    about = {"kind": "slurm", "mode": "job", "tag": "t", "job": "7", "nodes": [0], "gpus": 1, "poll_s": 60.0}
    attempt = JobAttempt(tmp_path, about)
    monkeypatch.setattr(Daemon, "ask", lambda *_, **__: None)
    daemon = attempt._daemon = Daemon("node1", tmp_path / "slurmd")
    daemon.at, daemon.known = ("10.0.0.7", 6818), True

    def look(seconds: range, *, beats: bool) -> Exit | None:
        for now in seconds:
            if beats:
                (tmp_path / GANG / "beat").write_text(str(now))
            attempt._watch.answered_at = float(now)
            if ended := attempt._first_lost(float(now), 1):
                return ended
        return None

    assert look(range(10), beats=True) is None
    daemon.silent, daemon.silent_at = "no answer within 1.5 s", 9.0
    assert look(range(10, 12), beats=True) is None
    assert look(range(12, 30), beats=False) is None
    daemon.silent, daemon.silent_at = "no answer within 1.5 s", 30.0
    ended = look(range(30, 32), beats=False)
    assert ended is not None and ended.reason == "lost"
    assert "its slurmd (10.0.0.7:6818) does not answer: no answer within 1.5 s; Slurm job 7 was" in ended.detail
    assert (tmp_path / GANG / "ask").read_bytes() == b"k"


def test_a_daemon_that_never_answered_is_not_missed(tmp_path: Path) -> None:
    """A firewall between the login node and the nodes: Slurm's own word is waited for."""
    with socket.socket() as shut:
        shut.bind(("127.0.0.1", 0))  # and nobody listens
        daemon = Daemon("node1", tmp_path / "slurmd")
        asked(daemon, shut.getsockname())
        assert not daemon.known and not daemon.silent


def test_a_daemon_that_answered_an_earlier_controller_of_this_machine_is_missed(tmp_path: Path) -> None:
    mark = tmp_path / "slurmd"
    with socket.create_server(("127.0.0.1", 0)) as server:
        at = server.getsockname()
        asked(Daemon("node1", mark), at)
    later = asked(Daemon("node1", mark), at)
    assert later.known and "refused" in later.silent
    mark.write_text("another-login-node")  # from which it may be out of reach
    other = asked(Daemon("node1", mark), at)
    assert not other.known and not other.silent


def asked(daemon: Daemon, at: tuple[str, int]) -> Daemon:
    daemon.at = at
    daemon.ask(0.0)
    assert daemon._asking is not None
    daemon._asking.join()
    return daemon
