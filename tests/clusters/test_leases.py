"""Ranks among processes that do not know of each other."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from sweeper.clusters.gang import leases
from sweeper.clusters.local import LocalCluster
from sweeper.engines.base import Shape
from sweeper.errors import SweeperError

RANKS = [f"cpu-{i}" for i in range(6)]


def release(taken: dict[str, int] | None) -> None:
    for lock in (taken or {}).values():
        os.close(lock)


def test_ranks_are_taken_all_or_none() -> None:
    two = leases.take(RANKS, 2, "a")
    four = leases.take(RANKS, 4, "b")
    assert two is not None and four is not None
    assert sorted([*two, *four]) == RANKS
    assert leases.take(RANKS, 1, "c") is None
    release(four)
    assert leases.take(RANKS, 5, "c") is None
    assert len(leases.free(RANKS)) == 4  # the four that could be had were given back
    release(two)
    assert leases.free(RANKS) == RANKS


def test_who_holds_a_rank_can_be_read() -> None:
    taken = leases.take(RANKS, 1, "runs/big/trials/003/attempt-1")
    assert leases.holder("cpu-0") == "runs/big/trials/003/attempt-1"
    assert leases.holder("cpu-5") == ""
    release(taken)


def test_a_killed_holder_frees_its_ranks() -> None:
    ready, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        leases.take(RANKS, 6, "a")
        os.write(say, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    assert leases.free(RANKS) == []
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert leases.free(RANKS) == RANKS


def test_many_at_once_never_hold_the_same(tmp_path: Path) -> None:
    """Eight processes take, mark and give back. A mark that is there already is a rank with two holders."""
    pids = []
    for me in range(8):
        pid = os.fork()
        if pid == 0:
            code, got = 0, 0
            end = time.monotonic() + 1.5
            while time.monotonic() < end and not code:
                taken = leases.take(RANKS, 1 + me % 4, str(me))
                try:
                    for name in taken or {}:
                        os.close(os.open(tmp_path / name, os.O_CREAT | os.O_EXCL))
                    got += bool(taken)
                    for name in taken or {}:
                        (tmp_path / name).unlink()
                except OSError:
                    code = 1
                release(taken)
            os._exit(code or (0 if got else 2))
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 8


def test_a_suspended_controller_does_not_make_others_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BUSY_S", 0.05)
    taking = os.open(leases.root() / "taking", os.O_RDWR | os.O_CREAT)
    fcntl.flock(taking, fcntl.LOCK_EX)  # as if it had been stopped in the middle of taking
    assert leases.take(RANKS, 1, "b") is None
    assert leases.free(RANKS) == []
    os.close(taking)
    assert leases.free(RANKS) == RANKS


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(leases.RUNTIME)
    monkeypatch.setattr("os.getuid", lambda: 12_345_678)  # so /tmp/sweeper-12345678, which we make, is not that user's
    try:
        with pytest.raises(PermissionError, match="SWEEPER_RUNTIME"):
            leases.free(RANKS)
        with pytest.raises(SweeperError, match="belongs to another user"):
            LocalCluster(Shape("here", "cpu", 1, 2)).free()
    finally:
        Path("/tmp/sweeper-12345678/ranks").rmdir()
        Path("/tmp/sweeper-12345678").rmdir()
