"""A controller that is killed while it starts an attempt: never two of one trial, never one that nobody knows of."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeper.clusters import gangs, local
from sweeper.clusters.base import Exit
from sweeper.clusters.gang import janitor, leases, node
from sweeper.clusters.local import LocalAttempt, LocalCluster
from sweeper.engines.base import Gang, Job, Shape
from sweeper.errors import RequestError, SweeperError

SHAPE = Shape(name="here", device="cpu", nodes=1, gpus_per_node=2, gpu_memory_gib=4)


def job(tag: str, code: str = "print('up', flush=True); import time; time.sleep(300)") -> Job:
    return Job(
        argv=(sys.executable, "-c", code, tag),
        env={},
        inherit=(),
        files={"trainer.yaml": "a: 1\n"},
        gang=Gang(nodes=1, gpus_per_node=1),
        python=sys.executable,
        metrics="metrics.jsonl",
        total_steps=1,
        ray=False,
    )


def tagged(tag: str) -> list[int]:
    """Living processes with the tag on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if tag.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def wait_for(what: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def started_by_another(folder: Path, tag: str, then: Callable[[], object]) -> None:
    """Another controller (a fork of this process) starts an attempt there; `then` runs in it first."""
    folder.mkdir()
    pid = os.fork()
    if pid == 0:
        try:
            then()
            LocalCluster(SHAPE).start(job(tag), folder, (0,))
            time.sleep(60)
        finally:
            os._exit(0)
    folder.with_name("pid").write_text(str(pid))


def kill_other(folder: Path) -> None:
    pid = int(folder.with_name("pid").read_text())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def check(folder: Path, tag: str) -> str:
    """Take the folder over as a resume does: what was found there, after it was made sure that nothing is wrong."""
    cluster = LocalCluster(SHAPE)
    attempt = cluster.attach(folder)
    if attempt is None:
        assert tagged(tag) == []
        found = "nothing"
    else:
        assert isinstance(attempt, LocalAttempt)
        log = folder / "log.txt"  # made by the attempt itself, some time after what an attach goes by
        wait_for(lambda: attempt.poll() or (log.exists() and "up" in log.read_text()))
        if (ended := attempt.poll()) is None:
            assert cluster.free() == (1,)
            assert len(tagged(tag)) == 1
            found = "running"
            attempt.kill()
            assert attempt.wait(10).reason == "stopped"
        else:
            assert ended.reason == "lost"
            assert json.loads((folder / "exit.json").read_text())["reason"] == "lost"
            found = "lost"
    assert tagged(tag) == []
    assert cluster.free() == (2,)
    return found


INSTANTS = {
    "after the ranks are taken": (leases, "take", "after", "nothing"),
    "after the files are written": (local, "write_files", "after", "nothing"),
    "after the temp-dir is made": (janitor, "make_den", "after", "nothing"),
    "before attempt.json": (gangs, "write_text", "attempt.json", "nothing"),
    "after attempt.json": (node.subprocess, "Popen", "before", "lost"),
    "after the guard is started": (node.subprocess, "Popen", "after", "running"),
}


@pytest.mark.parametrize("when", INSTANTS)
def test_a_controller_killed_at_this_instant(tmp_path: Path, when: str) -> None:
    module, name, how, expected = INSTANTS[when]
    tag = f"tag-{time.time_ns()}"

    def plant() -> None:
        real: Any = getattr(module, name)

        def deadly(*args: Any, **kwargs: Any) -> Any:
            if how == "before" or (how.endswith(".json") and args[0].name == how):
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **kwargs)
            if how == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(module, name, deadly)

    started_by_another(tmp_path / "a", tag, plant)
    os.waitpid(int((tmp_path / "pid").read_text()), 0)
    assert check(tmp_path / "a", tag) == expected


def test_a_controller_killed_at_random_instants(tmp_path: Path) -> None:
    chance = random.Random(3)
    found = []
    for i in range(20):
        folder, tag = tmp_path / str(i) / "a", f"tag-{time.time_ns()}"
        folder.parent.mkdir()
        started_by_another(folder, tag, lambda: None)
        time.sleep(chance.uniform(0, 0.06))
        kill_other(folder)
        found.append(check(folder, tag))
    assert set(found) <= {"nothing", "lost", "running"}


def test_a_guard_killed_while_no_controller_lives_is_a_lost_attempt(tmp_path: Path) -> None:
    folder, tag = tmp_path / "a", f"tag-{time.time_ns()}"
    started_by_another(folder, tag, lambda: None)
    wait_for(lambda: (folder / "log.txt").exists() and "up" in (folder / "log.txt").read_text())
    kill_other(folder)
    den = Path(json.loads((folder / "attempt.json").read_text())["temp_dir"])
    marked = janitor.marked(den.name.removeprefix(janitor.PREFIX))
    (guard,) = [p for p in marked if b"guard.py" in Path(f"/proc/{p}/cmdline").read_bytes()]
    os.kill(guard, signal.SIGKILL)
    attempt = LocalCluster(SHAPE).attach(folder)
    assert isinstance(attempt, LocalAttempt)
    assert attempt.wait(10).reason == "lost"
    assert check(folder, tag) == "lost"
    assert not den.exists()


def test_what_is_asked_before_the_guard_runs_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = LocalCluster(SHAPE).start(job("x"), tmp_path, (0,))
    assert isinstance(attempt, LocalAttempt)
    attempt.stop()  # it takes an interpreter's start until anybody reads that
    assert attempt.wait(10).reason == "stopped"


def test_an_attempt_of_another_host_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = LocalCluster(SHAPE)
    attempt = cluster.start(job("x"), tmp_path, (0,))
    assert isinstance(attempt, LocalAttempt)
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    with pytest.raises(RequestError, match="this is elsewhere") as refused:
        cluster.attach(tmp_path)
    assert "attempt.json" in str(refused.value)
    attempt.kill()
    ended = attempt.wait(10)
    again = cluster.attach(tmp_path)  # it has ended: where it ran does not matter any more
    assert again is not None and again.poll() == ended


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "attempt.json").write_text("{")
    with pytest.raises(SweeperError, match=r"attempt\.json cannot be read"):
        LocalCluster(SHAPE).attach(tmp_path)


def test_more_than_the_shape_is_never_held(tmp_path: Path) -> None:
    cluster = LocalCluster(Shape(name="here", device="cpu", nodes=1, gpus_per_node=1, gpu_memory_gib=4))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = cluster.start(job("x"), tmp_path / "a", (0,))
    assert isinstance(first, LocalAttempt)
    assert cluster.free() == (0,)
    assert cluster.start(job("x"), tmp_path / "b", (0,)) is None  # though the machine has another
    assert leases.holder("cpu-0") == str(tmp_path / "a")
    first.kill()
    assert isinstance(first.wait(10), Exit)


def test_a_gang_of_several_nodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one machine is one node"):
        LocalCluster(SHAPE).start(job("x"), tmp_path, (0, 1))
