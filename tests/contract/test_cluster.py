"""What every cluster must do, whatever it runs on. The trainers are fakes: a few lines of Python that behave badly.

A cluster joins by adding its factory to `CLUSTERS`.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker_daemon
import fake_dstack
import fake_kubernetes
import pytest
import ray_cluster
import slurm_cluster
import ssh_cluster
import sshd

from sweeper.clusters import queued
from sweeper.clusters.base import Attempt, Cluster, Exit
from sweeper.clusters.local import LocalCluster
from sweeper.engines.base import Gang, Job, Shape

SHAPE = Shape(name="here", device="cpu", nodes=1, gpus_per_node=2, gpu_memory_gib=4)
CLUSTERS: dict[str, Callable[[], Cluster]] = {"local": lambda: LocalCluster(SHAPE)}
if sshd.installed():
    CLUSTERS["ssh"] = ssh_cluster.make
if not slurm_cluster.why_not():
    CLUSTERS["slurm"] = slurm_cluster.make
if not docker_daemon.why_not():
    CLUSTERS["docker"] = docker_daemon.make
if ray_cluster.loopback():
    CLUSTERS["ray"] = ray_cluster.make
    CLUSTERS["dstack"] = fake_dstack.make  # the queue is a fake, which runs what it is given
    if importlib.util.find_spec("kubernetes"):
        CLUSTERS["kuberay"] = fake_kubernetes.make  # Kubernetes and KubeRay are fakes, which run what they are given
NAMES = [pytest.param(name, marks=pytest.mark.real) if name == "ray" else name for name in CLUSTERS]
STOP_S = {"dstack": 7.0, "kuberay": 7.0}
"""What a stop may take, if not five seconds: a queue's node looks into a file every second, and we at the queue every
two."""


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cluster(name: str) -> Iterator[Cluster]:
    made = CLUSTERS[name]()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a queue that follows attempts for others (dstack, kuberay), for the tests' sake."""
    monkeypatch.setattr(queued, "LOOK_S", 0.2)


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


def launch(cluster: Cluster, job: Job, where: Path) -> Attempt:
    """As a sweep does: a cluster whose count of what is free lies a moment behind is asked again."""
    deadline = time.monotonic() + 10
    while (attempt := cluster.start(job, where, (0,))) is None:
        assert time.monotonic() < deadline, "its ranks do not come free"
        time.sleep(0.05)
    return attempt


def wait(attempt: Attempt, timeout_s: float = 60) -> Exit:
    deadline = time.monotonic() + timeout_s
    while (ended := attempt.poll()) is None:
        assert time.monotonic() < deadline, "the attempt did not end"
        time.sleep(0.02)
    return ended


def wait_for(what: Callable[[], object], timeout_s: float = 60) -> None:
    """Until it holds; a file that is not there yet may come (a job that waits in a queue)."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(FileNotFoundError):
            if what():
                return
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# -- how it ended


@pytest.mark.parametrize("code", [0, 3])
def test_reports_the_trainers_exit_code(cluster: Cluster, tmp_path: Path, tag: str, code: int) -> None:
    where = folder(tmp_path)
    ended = wait(launch(cluster, fake(f"print('said'); raise SystemExit({code})", tag), where))
    assert (ended.code, ended.reason) == (code, "exit")
    assert abs(ended.ended - time.time()) < 10
    assert (where / "log.txt").read_text() == "said\n"


def test_reports_the_signal_that_killed_the_trainer(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    ended = wait(launch(cluster, fake("import os; os.kill(os.getpid(), 11)", tag), folder(tmp_path)))
    assert (ended.code, ended.reason) == (-signal.SIGSEGV, "exit")


def test_an_interpreter_that_is_not_there_is_a_failed_launch(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    ended = wait(launch(cluster, fake("", tag, argv=("/no/such/python", tag)), folder(tmp_path)))
    assert (ended.code, ended.reason) == (None, "launch")
    assert "/no/such/python" in ended.detail


def test_a_folder_that_cannot_be_written_is_a_failed_launch(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    where = folder(tmp_path)
    (where / "logs").write_text("a file where a folder is needed")
    ended = wait(launch(cluster, fake("", tag, files={"logs/x": "text"}), where))
    assert ended.reason == "launch"
    assert "logs" in ended.detail


def test_the_end_is_on_record(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    where = folder(tmp_path)
    ended = wait(launch(cluster, fake("raise SystemExit(5)", tag), where))
    record = json.loads((where / "exit.json").read_text())
    assert Exit(**record) == ended


# -- what the trainer sees


def test_the_jobs_files_are_there_and_scripts_can_be_run(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    where = folder(tmp_path)
    code = "import os; assert os.getcwd() == os.path.realpath(os.environ['WHERE']); print(open('conf/a.yaml').read())"
    job = fake(code, tag, files={"conf/a.yaml": "x: 1", "command.sh": "#!/bin/sh\n"}, env={"WHERE": str(where)})
    assert wait(launch(cluster, job, where)).code == 0
    assert (where / "log.txt").read_text() == "x: 1\n"
    assert os.access(where / "command.sh", os.X_OK)


def test_only_listed_variables_pass(
    cluster: Cluster, tmp_path: Path, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somebody:1")
    monkeypatch.setenv("MY_TOKEN", "not-for-trials")
    where = folder(tmp_path)
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    assert wait(launch(cluster, fake(code, tag, env={"SET": "1"}), where)).code == 0
    seen = json.loads((where / "log.txt").read_text())
    assert seen["SET"] == "1"
    assert seen["PATH"]  # the node's own
    assert seen.get("RAY_ADDRESS") != "somebody:1"  # KubeRay's trainer has the address of its own Ray
    assert "MY_TOKEN" not in seen


def test_a_secret_reaches_the_trainer_and_nothing_else(
    cluster: Cluster, tmp_path: Path, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "s3cr3t-0451"
    monkeypatch.setenv("HF_TOKEN", secret)
    where = folder(tmp_path)
    code = "import os, time; open('got', 'w').write(str(len(os.environ['HF_TOKEN']))); time.sleep(60)"
    attempt = launch(cluster, fake(code, tag, inherit=("HF_TOKEN", "NOT_SET")), where)
    wait_for(lambda: (where / "got").exists() and (where / "got").read_text() == str(len(secret)))
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                assert secret.encode() not in (entry / "cmdline").read_bytes()
            except OSError:
                continue
    abouts = [json.loads(p.read_text()) for p in (where / "attempt.json", where / "gang" / "0.json") if p.exists()]
    dens = [Path(about["temp_dir"]) for about in abouts if "temp_dir" in about]
    private = [path for den in dens for path in den.rglob("*")]
    assert private  # the attempt's temp-dir is looked into as well
    for path in [*where.rglob("*"), *private]:
        if path.is_file():
            assert secret not in path.read_text(errors="replace"), path
    attempt.kill()
    wait(attempt)


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
    ended = wait(launch(cluster, fake(code, tag), folder(tmp_path)))
    assert tagged(tag) == []  # at the very moment that the end is reported
    assert (ended.code, ended.reason) == (0, "exit")


def test_a_stop_is_gentle_first(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    where = folder(tmp_path)
    code = "import signal, sys, time; signal.signal(15, lambda *_: (print('bye', flush=True), sys.exit(0)))"
    attempt = launch(cluster, fake(code + "; print('up', flush=True); time.sleep(300)", tag), where)
    wait_for(lambda: "up" in (where / "log.txt").read_text())
    attempt.stop()
    attempt.stop()
    assert wait(attempt).reason == "stopped"
    assert (where / "log.txt").read_text() == "up\nbye\n"


def test_a_stop_releases_within_five_seconds_whatever_the_trainer_does(
    cluster: Cluster, tmp_path: Path, tag: str, name: str
) -> None:
    where = folder(tmp_path)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
    attempt = launch(cluster, fake(code, tag), where)
    wait_for(lambda: "up" in (where / "log.txt").read_text())
    start, limit = time.monotonic(), STOP_S.get(name, 5.0)
    attempt.stop()
    assert wait(attempt, limit).reason == "stopped"
    assert 1 < time.monotonic() - start < limit


def test_a_kill_is_immediate_even_during_a_stop(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    where = folder(tmp_path)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
    attempt = launch(cluster, fake(code, tag), where)
    wait_for(lambda: "up" in (where / "log.txt").read_text())
    attempt.stop()
    attempt.kill()
    assert wait(attempt).reason == "stopped"
    attempt.stop()  # after the end it does nothing
    attempt.kill()


# -- an agent that dies


def agents(where: Path) -> dict[int, int]:
    """The agents of the attempt in that folder: pids by rank."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().decode(errors="replace").split("\0")
            at = next((n for n, word in enumerate(words) if word.endswith("/agent.py")), None)
            # A guard's command line ends with its agent's; an agent's begins with the interpreter.
            if at is not None and words[at + 1] == str(where) and not any(w.endswith("/guard.py") for w in words):
                found[int(words[at + 2])] = int(entry.parent.name)
    return found


def of_attempt(where: Path) -> list[str]:
    """Processes that have the attempt's folder on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().decode(errors="replace").split("\0")
            if str(where) in words:
                found.append(" ".join([entry.parent.name, *words]))
    return found


def test_an_agent_that_is_killed_loses_the_attempt_and_leaves_nothing(
    cluster: Cluster, tmp_path: Path, tag: str
) -> None:
    where = folder(tmp_path)
    attempt = launch(cluster, fake(WITH_A_CHILD.format(s=300), tag), where)
    wait_for(lambda: "up" in (where / "log.txt").read_text())
    os.kill(agents(where)[0], signal.SIGKILL)
    ended = wait(attempt)
    assert tagged(tag) == []
    assert (ended.code, ended.reason) == (None, "lost")
    assert "the agent ended with code -9" in ended.detail
    wait_for(lambda: of_attempt(where) == [])  # the guard itself, a moment after its record
    assert sum(cluster.free()) == cluster.shape.gpus


# -- two nodes

OF_TWO = [name for name in CLUSTERS if name in ("ssh", "slurm", "dstack", "kuberay")]
"""Those that have two nodes here. (A Ray cluster of two: test_ray_cluster.py.)"""
RANKS = {"kuberay": [0]}
"""Where a gang's nodes have an agent, if not all of them: KubeRay starts its other pods, with Ray alone."""


def of_two(cluster: Cluster, tmp_path: Path, code: str, tag: str) -> tuple[Attempt, Path]:
    """A gang of two nodes whose trainer runs."""
    where = folder(tmp_path)
    attempt = cluster.start(fake(code, tag, gang=Gang(nodes=2, gpus_per_node=1)), where, (0, 1))
    assert attempt is not None
    wait_for(lambda: "up" in (where / "log.txt").read_text())
    return attempt, where


@pytest.mark.parametrize("name", OF_TWO)
def test_a_gang_of_two_nodes_has_both_and_ends_on_both(cluster: Cluster, tmp_path: Path, tag: str, name: str) -> None:
    attempt, where = of_two(cluster, tmp_path, WITH_A_CHILD.format(s=2), tag)
    assert sorted(agents(where)) == RANKS.get(name, [0, 1])
    assert attempt.poll() is None
    assert sum(cluster.free()) == cluster.shape.gpus - 2
    ended = wait(attempt)
    assert tagged(tag) == []
    assert agents(where) == {}
    assert (ended.code, ended.reason) == (4, "exit")
    assert (where / "log.txt").read_text().splitlines().count("up") == 1
    wait_for(lambda: of_attempt(where) == [])
    assert cluster.free() == (cluster.shape.gpus_per_node,) * cluster.shape.nodes


@pytest.mark.parametrize("name", [name for name in OF_TWO if name not in RANKS])
def test_a_second_node_whose_agent_is_killed_loses_the_gang_and_leaves_nothing_on_either(
    cluster: Cluster, tmp_path: Path, tag: str, name: str
) -> None:
    attempt, where = of_two(cluster, tmp_path, WITH_A_CHILD.format(s=300), tag)
    os.kill(agents(where)[1], signal.SIGKILL)
    ended = wait(attempt)
    assert tagged(tag) == []
    assert agents(where) == {}
    assert ended.reason == "lost"
    wait_for(lambda: of_attempt(where) == [])
    assert cluster.free() == (cluster.shape.gpus_per_node,) * cluster.shape.nodes


# -- a controller that dies

CONTROLLER = """
import os, sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {support!r}]
import test_cluster as t
cluster = t.CLUSTERS[{name!r}]()
for name in {attempts!r}:
    cluster.start(t.fake({code!r}, {tag!r}), Path({folder!r}) / name, (0,))
print("started", flush=True)
time.sleep(300)
"""
WITH_A_CHILD = """
import subprocess, sys, time
subprocess.Popen(['tail', '-f', '/dev/null', '--', sys.argv[1]], start_new_session=True)
print('up', flush=True)
time.sleep({s})
raise SystemExit(4)
"""


class Controller:
    """Another process that starts attempts in folders of those names, and can be killed."""

    def __init__(self, cluster: str, tmp_path: Path, tag: str, code: str, attempts: str = "a", **how: object) -> None:
        CLUSTERS[cluster]().close()  # what is shared by both processes (servers) is to outlive the one that dies
        for name in attempts:
            folder(tmp_path, name)
        tests, support = str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")
        script = CONTROLLER.format(
            tests=tests, support=support, name=cluster, folder=str(tmp_path), code=code, tag=tag, attempts=attempts
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
            **how,  # type: ignore[call-overload]
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "started\n"
        for name in attempts:
            wait_for((tmp_path / name / "log.txt").read_text)

    def die(self) -> None:
        self.process.kill()
        self.process.wait()


def test_an_attempt_outlives_its_controller_and_is_taken_up_by_another(tmp_path: Path, tag: str, name: str) -> None:
    Controller(name, tmp_path, tag, WITH_A_CHILD.format(s=300), "ab").die()
    cluster = CLUSTERS[name]()
    a, b = (cluster.attach(tmp_path / x) for x in "ab")
    assert a is not None and b is not None
    assert (a.poll(), b.poll()) == (None, None)
    assert sum(cluster.free()) == cluster.shape.gpus - 2
    a.stop()
    assert wait(a, STOP_S.get(name, 5.0)).reason == "stopped"
    assert b.poll() is None
    assert len([p for p in tagged(tag) if is_tail(p)]) == 1
    assert sum(cluster.free()) == cluster.shape.gpus - 1
    b.kill()
    assert wait(b, STOP_S.get(name, 5.0)).reason == "stopped"
    assert tagged(tag) == []
    assert sum(cluster.free()) == cluster.shape.gpus


def test_an_attempt_that_ended_without_a_controller_is_known(tmp_path: Path, tag: str, name: str) -> None:
    Controller(name, tmp_path, tag, WITH_A_CHILD.format(s=0.5)).die()
    # Of the attempt on one machine, or of a gang's first node: the controller who takes it up says the rest.
    wait_for(lambda: any((tmp_path / "a" / at).exists() for at in ("exit.json", "gang/0.exit.json")))
    attempt = CLUSTERS[name]().attach(tmp_path / "a")
    assert attempt is not None
    ended = wait(attempt)
    assert (ended.code, ended.reason) == (4, "exit")
    assert tagged(tag) == []
    again = CLUSTERS[name]().attach(tmp_path / "a")
    assert again is not None and again.poll() == ended


def test_closing_the_terminal_ends_the_controller_only(tmp_path: Path, tag: str, name: str) -> None:
    ours, theirs = os.openpty()

    def of_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored, where the tests themselves outlive a terminal (nohup)
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    controller = Controller(
        name,
        tmp_path,
        tag,
        WITH_A_CHILD.format(s=300),
        start_new_session=True,
        preexec_fn=of_terminal,
    )
    os.close(theirs)
    os.close(ours)  # the kernel sends SIGHUP to what belongs to the terminal
    assert controller.process.wait(10) == -signal.SIGHUP
    attempt = CLUSTERS[name]().attach(tmp_path / "a")
    assert attempt is not None
    time.sleep(0.3)
    assert attempt.poll() is None
    assert len([p for p in tagged(tag) if is_tail(p)]) == 1
    attempt.kill()
    wait(attempt)


def test_nothing_was_started_in_a_new_folder(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.attach(folder(tmp_path)) is None


def test_what_never_started_can_be_attached_to_and_says_why(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    where = folder(tmp_path)
    (where / "logs").write_text("a file where a folder is needed")
    ended = wait(launch(cluster, fake("", tag, files={"logs/x": "text"}), where))
    attempt = cluster.attach(where)
    assert attempt is not None and attempt.poll() == ended
    assert ended.reason == "launch"


def is_tail(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "tail"
    except OSError:
        return False


# -- several at once


def test_the_end_of_one_does_not_touch_another(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    one, two = folder(tmp_path, "one"), folder(tmp_path, "two")
    first = launch(cluster, fake("import time; time.sleep(0.5)", tag), one)
    second = launch(cluster, fake("import time; time.sleep(2); print('done')", tag), two)
    assert wait(first).code == 0
    assert second.poll() is None
    assert wait(second).code == 0
    assert (two / "log.txt").read_text() == "done\n"


def test_starting_does_not_block_the_controller(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    attempt = launch(cluster, fake("import time; time.sleep(3600)", tag), folder(tmp_path))
    assert attempt.poll() is None
    attempt.kill()
    assert wait(attempt).reason == "stopped"


# -- ranks


def test_ranks_are_taken_all_or_none_and_come_back(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    whole = Gang(nodes=1, gpus_per_node=cluster.shape.gpus_per_node)
    assert cluster.free() == (cluster.shape.gpus_per_node,) * cluster.shape.nodes
    one = launch(cluster, fake("import time; time.sleep(300)", tag), folder(tmp_path, "one"))
    assert sum(cluster.free()) == cluster.shape.gpus - 1
    where = folder(tmp_path, "two")
    assert cluster.start(fake("", tag, gang=whole), where, (0,)) is None
    assert list(where.iterdir()) == []  # nothing was done
    one.kill()
    wait(one)
    assert sum(cluster.free()) == cluster.shape.gpus  # at the very moment that the end is reported
    assert wait(launch(cluster, fake("", tag, gang=whole), where)).code == 0


# A queue knows of both, and they do not know of each other.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("slurm", "dstack", "kuberay")])
def test_two_sweeps_never_hold_the_same_rank(tmp_path: Path, tag: str, name: str) -> None:
    first, second = CLUSTERS[name](), CLUSTERS[name]()
    hold = fake("import time; time.sleep(300)", tag)
    one = launch(first, hold, folder(tmp_path, "one"))
    two = launch(second, hold, folder(tmp_path, "two"))
    wait_for(lambda: sum(first.free()) == sum(second.free()) == first.shape.gpus - 2)
    if not sum(first.free()):
        assert first.start(hold, folder(tmp_path, "three"), (0,)) is None
    for attempt in (one, two):
        attempt.kill()
        wait(attempt)
    assert sum(first.free()) == sum(second.free()) == first.shape.gpus


# -- where it hangs

SLEEPS = """
import os, sys, threading, time
def parent_waits_here(): time.sleep(300)
def child_waits_here(): time.sleep(300)
def thread_waits_here(): time.sleep(300)
if os.fork() == 0:
    child_waits_here()
threading.Thread(target=thread_waits_here, daemon=True).start()
print("up", flush=True)
parent_waits_here()
"""


def test_a_dump_says_where_every_process_and_thread_is(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    where = folder(tmp_path)
    attempt = launch(cluster, fake(SLEEPS, tag), where)
    wait_for(lambda: "up" in (where / "log.txt").read_text())
    time.sleep(0.2)  # until both are asleep
    attempt.stop(dump=True)
    assert wait(attempt, 10).reason == "stopped"
    log = (where / "log.txt").read_text()
    for function in ("parent_waits_here", "child_waits_here", "thread_waits_here"):
        assert f"in {function}" in log
    assert log.count("sweeper: stacks of process") == 2
    assert not list(where.glob("core*"))


def test_a_dump_does_not_keep_a_stubborn_trainer_alive(cluster: Cluster, tmp_path: Path, tag: str) -> None:
    where = folder(tmp_path)
    code = "import faulthandler, signal, time; faulthandler.disable(); "
    code += "[signal.signal(s, signal.SIG_IGN) for s in (6, 15)]; print('up', flush=True); time.sleep(300)"
    attempt = launch(cluster, fake(code, tag), where)
    wait_for(lambda: "up" in (where / "log.txt").read_text())
    attempt.stop(dump=True)
    assert wait(attempt, 10).reason == "stopped"
