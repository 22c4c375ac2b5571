"""When the guard itself is killed, the kernel kills the agent and the janitor the rest; what has its guard is safe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweeper.clusters.gang import janitor
from sweeper.clusters.local import LocalAttempt, LocalCluster
from sweeper.engines.base import Gang, Job, Shape

SHAPE = Shape(name="here", device="cpu", nodes=1, gpus_per_node=2, gpu_memory_gib=4)
ROOT = janitor.root
SPAWNS = """
import subprocess, sys, time
child = subprocess.Popen(['tail', '-f', '/dev/null'], start_new_session=True)
open('child', 'w').write(str(child.pid))
time.sleep(300)
"""


@pytest.fixture(autouse=True)
def own_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Temp-dirs of this test alone, so that it neither ends nor counts another's."""
    root = Path(f"/tmp/jt{time.time_ns() % 10**9}")
    root.mkdir()
    monkeypatch.setattr(janitor, "root", lambda: root)
    yield root
    assert list(root.iterdir()) == []
    root.rmdir()


def start(cluster: LocalCluster, tmp_path: Path, name: str, code: str = SPAWNS) -> tuple[LocalAttempt, int]:
    """A running attempt and the pid of the process that its trainer started in a session of its own."""
    folder = tmp_path / name
    folder.mkdir()
    job = Job(
        argv=(sys.executable, "-c", code),
        env={},
        inherit=(),
        files={},
        gang=Gang(nodes=1, gpus_per_node=1),
        python=sys.executable,
        metrics="metrics.jsonl",
        total_steps=1,
        ray=False,
    )
    attempt = cluster.start(job, folder, (0,))
    assert isinstance(attempt, LocalAttempt)
    wait_for(lambda: (folder / "child").exists() and (folder / "child").read_text())
    return attempt, int((folder / "child").read_text())


def guard_of(attempt: LocalAttempt) -> int:
    """The pid of its guard: what carries the marker and has no parent that does."""
    assert attempt.den is not None
    pids = janitor.marked(attempt.den.name.removeprefix(janitor.PREFIX))
    (guard,) = [p for p in pids if b"guard.py" in Path(f"/proc/{p}/cmdline").read_bytes()]
    return guard


def wait_for(what: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_guard_leaves_nothing_and_is_reported_lost(tmp_path: Path) -> None:
    cluster = LocalCluster(SHAPE)
    attempt, child = start(cluster, tmp_path, "one")
    other, other_child = start(cluster, tmp_path, "two")
    os.kill(guard_of(attempt), signal.SIGKILL)
    ended = attempt.wait(10)
    assert (ended.code, ended.reason) == (None, "lost")
    assert "-9" in ended.detail
    assert not alive(child)
    assert (tmp_path / "one" / "exit.json").exists()
    assert other.poll() is None
    assert alive(other_child)
    other.kill()
    other.wait(10)


def test_a_new_cluster_ends_orphans_of_dead_controllers_and_nobody_elses(tmp_path: Path, own_root: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_janitor as t
t.janitor.root = lambda: Path({str(own_root)!r})
attempt, child = t.start(t.LocalCluster(t.SHAPE), Path({str(tmp_path)!r}), 'dead')
print(t.guard_of(attempt), child, flush=True)
time.sleep(300)
"""
    controller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert controller.stdout is not None
    guard, orphan = map(int, controller.stdout.readline().split())
    # The worst case: the controller and the guard are killed, and only what the trainer started lives on.
    os.kill(guard, signal.SIGKILL)
    wait_for(lambda: not alive(guard))
    controller.kill()
    controller.wait()
    assert alive(orphan)
    living, child = start(LocalCluster(SHAPE), tmp_path, "living")
    wait_for(lambda: not alive(orphan))
    assert janitor.sweep() == 0
    assert alive(child)
    wait_for(lambda: len(list(own_root.iterdir())) == 1)
    living.kill()
    living.wait(10)


def test_temp_dirs_are_private_short_and_unlike() -> None:
    dens = [janitor.make_den() for _ in range(2)]
    assert dens[0].path != dens[1].path
    for den in dens:
        assert den.path.stat().st_mode & 0o077 == 0
        # The longest name of a socket that Ray 2.60 makes in it.
        sockets = den.path / "session_2026-11-21_05-45-40_478065_4194304" / "sockets" / "plasma_store"
        assert len(os.fsencode(sockets)) <= 107
        den.close()
    assert janitor.sweep() == 0  # nobody's processes, but the temp-dirs go (see the fixture)


def test_a_long_temp_dir_of_the_user_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "root", ROOT)
    monkeypatch.setattr("tempfile.tempdir", "/some/very/long/folder/of/a/batch/system/job.123456")
    assert janitor.root() == Path("/tmp")
