"""What counts as a sign that a node is gone. On a real Slurm: test_slurm_cluster.py."""

from __future__ import annotations

import socket
from pathlib import Path

from sweeper.clusters.gang.node import GANG
from sweeper.clusters.slurm import pulse


def test_time_in_which_nobody_looked_does_not_count(tmp_path: Path) -> None:
    """A controller that was held, or whose own reads stalled, has seen nothing stand still."""
    beat = tmp_path / GANG / "beat"
    beat.parent.mkdir()
    one = pulse.Pulse(tmp_path)
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


def test_a_daemon_that_never_answered_is_not_missed() -> None:
    """A firewall between the login node and the nodes: Slurm's own word is waited for."""
    with socket.socket() as shut:
        shut.bind(("127.0.0.1", 0))  # and nobody listens
        daemon = pulse.Daemon("node1")
        daemon.at = shut.getsockname()
        daemon.ask(0.0)
        assert daemon._asking is not None
        daemon._asking.join()
        assert not daemon.known and not daemon.silent
