"""What every cluster must do, whatever it runs on. The trainers are fakes: a few lines of Python that behave badly.

A cluster joins by adding its factory to `CLUSTERS`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweeper.clusters.base import Attempt, Cluster, Exit
from sweeper.clusters.local import LocalCluster
from sweeper.engines.base import Gang, Job, Shape

SHAPE = Shape(name="here", device="cpu", nodes=1, gpus_per_node=2, gpu_memory_gib=4)
CLUSTERS: dict[str, Callable[[], Cluster]] = {"local": lambda: LocalCluster(SHAPE)}


@pytest.fixture(params=CLUSTERS)
def cluster(request: pytest.FixtureRequest) -> Cluster:
    return CLUSTERS[request.param]()


@pytest.fixture
def tag() -> str:
    """A word on the command line of every process of a test's attempts, by which the test finds them."""
    return f"tag-{time.time_ns()}"


@pytest.fixture(autouse=True)
def nothing_left(tag: str) -> Iterator[None]:
    yield
    left = tagged(tag)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def tagged(tag: str) -> list[int]:
    """Living processes with the tag on their command line, but for this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if tag.encode() in words:
                found.append(int(entry.name))
    return found


def fake(code: str, tag: str, **changes: object) -> Job:
    """A job whose trainer is `python -c code`, without Ray."""
    fields: dict[str, object] = {
        "argv": (sys.executable, "-c", code, tag),
        "env": {},
        "inherit": (),
        "files": {},
        "gang": Gang(nodes=1, gpus_per_node=1),
        "python": sys.executable,
        "metrics": "metrics.jsonl",
        "total_steps": 1,
        "ray": False,
    }
    return Job(**{**fields, **changes})  # type: ignore[arg-type]


def folder(tmp_path: Path, name: str = "attempt-1") -> Path:
    path = tmp_path / name
    path.mkdir()
    return path


def wait(attempt: Attempt, timeout_s: float = 20) -> Exit:
    deadline = time.monotonic() + timeout_s
    while (ended := attempt.poll()) is None:
        assert time.monotonic() < deadline, "the attempt did not end"
        time.sleep(0.02)
    return ended


def wait_for(what: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# -- how it ended


@pytest.mark.parametrize("code", [0, 3])
def test_reports_the_trainers_exit_code(cluster: Cluster, tmp_path: Path, tag: str, code: int) -> None:
    where = folder(tmp_path)
    ended = wait(cluster.start(fake(f"print('said'); raise SystemExit({code})", tag), where))
    assert (ended.code, ended.reason) == (code, "exit")
    assert abs(ended.ended - time.time()) < 10
    assert (where / "log.txt").read_text() == "said\n"


def test_reports_the_signal_that_killed_the_trainer(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    ended = wait(cluster.start(fake("import os; os.kill(os.getpid(), 11)", tag), folder(tmp_path)))
    assert (ended.code, ended.reason) == (-signal.SIGSEGV, "exit")


def test_an_interpreter_that_is_not_there_is_a_failed_launch(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    ended = wait(cluster.start(fake("", tag, argv=("/no/such/python", tag)), folder(tmp_path)))
    assert (ended.code, ended.reason) == (None, "launch")
    assert "/no/such/python" in ended.detail


def test_a_folder_that_cannot_be_written_is_a_failed_launch(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    where = folder(tmp_path)
    (where / "logs").write_text("a file where a folder is needed")
    ended = wait(cluster.start(fake("", tag, files={"logs/x": "text"}), where))
    assert ended.reason == "launch"
    assert "logs" in ended.detail


def test_the_end_is_on_record(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    where = folder(tmp_path)
    ended = wait(cluster.start(fake("raise SystemExit(5)", tag), where))
    record = json.loads((where / "exit.json").read_text())
    assert Exit(**record) == ended


# -- what the trainer sees


def test_the_jobs_files_are_there_and_scripts_can_be_run(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    where = folder(tmp_path)
    code = "import os; assert os.getcwd() == os.path.realpath(os.environ['WHERE']); print(open('conf/a.yaml').read())"
    job = fake(code, tag, files={"conf/a.yaml": "x: 1", "command.sh": "#!/bin/sh\n"}, env={"WHERE": str(where)})
    assert wait(cluster.start(job, where)).code == 0
    assert (where / "log.txt").read_text() == "x: 1\n"
    assert os.access(where / "command.sh", os.X_OK)


def test_only_listed_variables_pass(
    cluster: Cluster, tmp_path: Path, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somebody:1")
    monkeypatch.setenv("MY_TOKEN", "not-for-trials")
    where = folder(tmp_path)
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    assert wait(cluster.start(fake(code, tag, env={"SET": "1"}), where)).code == 0
    seen = json.loads((where / "log.txt").read_text())
    assert seen["SET"] == "1"
    assert seen["PATH"] == os.environ["PATH"]
    assert "RAY_ADDRESS" not in seen
    assert "MY_TOKEN" not in seen


def test_a_secret_reaches_the_trainer_and_nothing_else(
    cluster: Cluster, tmp_path: Path, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "s3cr3t-0451"
    monkeypatch.setenv("HF_TOKEN", secret)
    short_dir = Path(f"/tmp/t{time.time_ns() % 10**9}")
    short_dir.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(short_dir))
    where = folder(tmp_path)
    code = "import os, time; open('got', 'w').write(str(len(os.environ['HF_TOKEN']))); time.sleep(60)"
    attempt = cluster.start(fake(code, tag, inherit=("HF_TOKEN", "NOT_SET")), where)
    wait_for(lambda: (where / "got").exists() and (where / "got").read_text() == str(len(secret)))
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                assert secret.encode() not in (entry / "cmdline").read_bytes()
            except OSError:
                continue
    private = list(short_dir.rglob("*"))
    assert private  # the attempt's temp-dir is looked into as well
    for path in [*where.rglob("*"), *private]:
        if path.is_file():
            assert secret not in path.read_text(errors="replace"), path
    attempt.kill()
    wait(attempt)
    short_dir.rmdir()


# -- nothing remains

ESCAPES = {
    "a child": "import subprocess; subprocess.Popen(['sleep', '300', TAG])",
    "a session of its own": "import subprocess; subprocess.Popen(['sleep', '300', TAG], start_new_session=True)",
    "a daemon": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.chdir('/')
        for fd in range(3): os.close(fd)
        time.sleep(300)
    os._exit(0)
time.sleep(0.2)
""",
    "ignores SIGTERM": """
import signal, subprocess, sys
subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(300)', TAG])
import time; time.sleep(0.3)
""",
    "without the marker": "import subprocess; subprocess.Popen(['sleep', '300', TAG], env={}, start_new_session=True)",
}


@pytest.mark.parametrize("how", ESCAPES)
def test_no_process_outlives_the_trainer(cluster: Cluster, tmp_path: Path, tag: str, how: str) -> None:
    code = ESCAPES[how].replace("TAG", repr(tag)).replace("sleep', '300', ", "tail', '-f', '/dev/null', '--', ")
    ended = wait(cluster.start(fake(code, tag), folder(tmp_path)))
    assert tagged(tag) == []  # at the very moment that the end is reported
    assert (ended.code, ended.reason) == (0, "exit")


def test_a_stop_is_gentle_first(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    where = folder(tmp_path)
    code = "import signal, sys, time; signal.signal(15, lambda *_: (print('bye', flush=True), sys.exit(0)))"
    attempt = cluster.start(fake(code + "; print('up', flush=True); time.sleep(300)", tag), where)
    wait_for(lambda: "up" in (where / "log.txt").read_text())
    attempt.stop()
    attempt.stop()
    assert wait(attempt).reason == "stopped"
    assert (where / "log.txt").read_text() == "up\nbye\n"


def test_a_stop_releases_within_five_seconds_whatever_the_trainer_does(
    cluster: Cluster, tmp_path: Path, tag: str
) -> None:
    where = folder(tmp_path)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
    attempt = cluster.start(fake(code, tag), where)
    wait_for(lambda: "up" in (where / "log.txt").read_text())
    start = time.monotonic()
    attempt.stop()
    assert wait(attempt, 5).reason == "stopped"
    assert 1 < time.monotonic() - start < 5


def test_a_kill_is_immediate_even_during_a_stop(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    where = folder(tmp_path)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
    attempt = cluster.start(fake(code, tag), where)
    wait_for(lambda: "up" in (where / "log.txt").read_text())
    start = time.monotonic()
    attempt.stop()
    attempt.kill()
    assert wait(attempt).reason == "stopped"
    assert time.monotonic() - start < 1
    attempt.stop()  # after the end it does nothing
    attempt.kill()


CONTROLLER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_cluster as t
cluster = t.CLUSTERS[{name!r}]()
folder = Path({folder!r})
a = cluster.start(t.fake({code!r}, {tag!r}), folder / 'a')
b = cluster.start(t.fake({code!r}, {tag!r}), folder / 'b')
time.sleep(300)
"""


@pytest.mark.parametrize("name", CLUSTERS)
def test_everything_ends_when_the_controller_is_killed(tmp_path: Path, tag: str, name: str) -> None:
    for attempt in "ab":
        folder(tmp_path, attempt)
    code = "import subprocess, sys, time; subprocess.Popen(['tail', '-f', '/dev/null', '--', sys.argv[1]]); "
    code += "time.sleep(300)"
    script = CONTROLLER.format(tests=str(Path(__file__).parent), name=name, folder=str(tmp_path), code=code, tag=tag)
    controller = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    wait_for(lambda: len([p for p in tagged(tag) if is_tail(p)]) == 2, 20)
    controller.kill()
    controller.wait()
    wait_for(lambda: tagged(tag) == [], 5)
    for attempt in "ab":
        wait_for((tmp_path / attempt / "exit.json").exists)
        assert json.loads((tmp_path / attempt / "exit.json").read_text())["reason"] == "controller-gone"


def is_tail(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "tail"
    except OSError:
        return False


# -- several at once


def test_the_end_of_one_does_not_touch_another(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    one, two = folder(tmp_path, "one"), folder(tmp_path, "two")
    first = cluster.start(fake("import time; time.sleep(0.5)", tag), one)
    second = cluster.start(fake("import time; time.sleep(2); print('done')", tag), two)
    assert wait(first).code == 0
    assert second.poll() is None
    assert wait(second).code == 0
    assert (two / "log.txt").read_text() == "done\n"


def test_starting_does_not_block_the_controller(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    start = time.monotonic()
    attempt = cluster.start(fake("import time; time.sleep(300)", tag), folder(tmp_path))
    assert time.monotonic() - start < 0.25
    start = time.monotonic()
    assert attempt.poll() is None
    attempt.kill()
    assert time.monotonic() - start < 0.05
    wait(attempt)


def test_fits_counts_ranks(cluster: Cluster) -> None:
    ranks = cluster.shape.gpus
    one = Gang(nodes=1, gpus_per_node=1)
    assert cluster.fits(Gang(nodes=1, gpus_per_node=ranks), [])
    assert cluster.fits(one, [one] * (ranks - 1))
    assert not cluster.fits(one, [one] * ranks)
    assert not cluster.fits(Gang(nodes=cluster.shape.nodes + 1, gpus_per_node=1), [])
