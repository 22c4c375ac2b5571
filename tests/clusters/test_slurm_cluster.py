"""Attempts on a real Slurm: munge, slurmctld and two slurmd on this machine (support/slurm_cluster.py).

The trainers are fakes: a few lines of Python. Real verl on it: tests/real/test_slurm.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import slurm_cluster
from processes import left_over
from slurm_cluster import config

from sweeper import clusters
from sweeper.clusters import slurm
from sweeper.clusters.base import Attempt, Cluster, Exit
from sweeper.clusters.gang import janitor
from sweeper.clusters.slurm import watch
from sweeper.engines.base import Gang, Job
from sweeper.errors import RequestError

pytestmark = pytest.mark.skipif(bool(slurm_cluster.why_not()), reason=slurm_cluster.why_not())
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def real() -> Iterator[slurm_cluster.Slurm]:
    with slurm_cluster.running(nodes=2, gpus=8) as running:
        yield running


@pytest.fixture(autouse=True)
def _ours(real: slurm_cluster.Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SLURM_CONF", str(real.conf))
    monkeypatch.setattr(watch, "_watcher", None)
    yield
    if real.jobs("PENDING,RUNNING,COMPLETING"):
        real.run("scancel", "--user=root")
        real.wait(lambda: not real.jobs("PENDING,RUNNING,COMPLETING"))


def opened(**changes: Any) -> Cluster:
    said = config(**changes)
    return clusters.get(said, clusters.shape(said))


def fake(code: str, **changes: Any) -> Job:
    fields: dict[str, Any] = {
        "argv": (sys.executable, "-c", code),
        "env": {},
        "inherit": (),
        "files": {},
        "gang": Gang(nodes=1, gpus_per_node=1),
        "python": sys.executable,
        "metrics": "metrics.jsonl",
        "total_steps": 1,
        "ray": False,
    }
    return Job(**{**fields, **changes})


def attempt_folder(tmp_path: Path, name: str = "t-1", number: int = 1) -> Path:
    path = tmp_path / "trials" / name / f"attempt-{number}"
    path.mkdir(parents=True)
    return path


def launch(cluster: Cluster, job: Job, where: Path, nodes: tuple[int, ...] = (0,)) -> Attempt:
    attempt = cluster.start(job, where, nodes)
    assert attempt is not None
    return attempt


def wait(attempt: Attempt, timeout_s: float = 90) -> Exit:
    deadline = time.monotonic() + timeout_s
    while (ended := attempt.poll()) is None:
        assert time.monotonic() < deadline, f"the attempt did not end: {told(attempt.folder)}"
        time.sleep(0.05)
    return ended


def told(folder: Path) -> str:
    return "\n".join(p.read_text(errors="replace") for p in folder.rglob("*.log"))


def until(what: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def says(folder: Path, word: str) -> bool:
    log = folder / "log.txt"
    return log.exists() and word in log.read_text()


SLEEPS = "import time; print('up', flush=True); time.sleep(300)"


def test_an_attempt_is_a_job_and_its_end_is_the_trainers(tmp_path: Path, real: slurm_cluster.Slurm) -> None:
    where = attempt_folder(tmp_path)
    ended = wait(launch(opened(), fake("print('said'); raise SystemExit(3)"), where))
    assert (ended.code, ended.reason) == (3, "exit"), told(where)
    assert (where / "log.txt").read_text() == "said\n"
    assert Exit(**json.loads((where / "exit.json").read_text())) == ended
    assert any(name.endswith("-t-1-a1") for _, _, name in real.jobs())


def test_what_the_trainer_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: slurm_cluster.Slurm) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somebody:1")
    monkeypatch.setenv("SBATCH_EXPORT", "ALL")
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-0451")
    where = attempt_folder(tmp_path)
    code = "import json, os; json.dump(dict(os.environ), open('/dev/stdout', 'w'))"
    code = "import json, os; print(json.dumps({**os.environ, 'HF_TOKEN': str(len(os.environ['HF_TOKEN']))}))"
    assert wait(launch(opened(), fake(code, env={"SET": "1"}, inherit=("HF_TOKEN", "NOT_SET")), where)).code == 0
    seen = json.loads((where / "log.txt").read_text())
    assert (seen["SET"], seen["HF_TOKEN"], seen["PATH"]) == ("1", "11", os.environ["PATH"])
    assert "RAY_ADDRESS" not in seen
    assert float(seen["SWEEPER_ENDS_AT"]) > time.time()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert "s3cr3t" not in path.read_text(errors="replace"), path
    assert "SWEEPER_GANG_TOKEN=" in (where / "job.sh").read_text()  # how it is made, not what it is


def test_a_job_that_slurm_refuses_is_a_failed_launch_with_its_words(tmp_path: Path) -> None:
    where = attempt_folder(tmp_path)
    cluster = opened(slurm__sbatch=["--reservation=nobodys"])
    ended = wait(launch(cluster, fake("print('ran')"), where))
    assert ended.reason == "launch"
    assert "reservation" in ended.detail.lower()
    assert f"sbatch {where}/job.sh" in ended.detail
    assert not (where / "log.txt").exists()
    assert sum(cluster.free()) == 4


def test_what_slurm_will_always_refuse_ends_the_launches_and_names_the_key(tmp_path: Path) -> None:
    cluster = opened(slurm__sbatch=["--constraint=nobodys"])
    ended = wait(launch(cluster, fake("print('ran')"), attempt_folder(tmp_path)))
    assert ended.reason == "launch"
    with pytest.raises(RequestError, match="Invalid feature specification") as error:
        cluster.start(fake("print('ran')"), attempt_folder(tmp_path, number=2), (0,))
    assert [problem.key for problem in error.value.problems] == ["cluster.slurm.sbatch"]


def sbatch_that_says_it_timed_out(folder: Path, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake sbatch, which does what `first` says before it gives up."""
    folder.mkdir()
    says = 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2'
    (folder / "sbatch").write_text(f"#!/bin/sh\n{first}\n{says}\nexit 1\n")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_job_that_slurm_took_without_saying_so_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "ABSENT_S", 1.0)
    sbatch = shutil.which("sbatch")
    sbatch_that_says_it_timed_out(tmp_path / "bin", f'{sbatch} "$@" > /dev/null', monkeypatch)
    where = attempt_folder(tmp_path)
    cluster = opened()
    attempt = launch(cluster, fake(SLEEPS), where)
    until(lambda: says(where, "up"))
    for _ in range(20):
        assert attempt.poll() is None
        time.sleep(0.2)
    assert sum(cluster.free()) == 3
    attempt.stop()
    assert wait(attempt).reason == "stopped"
    assert left_over(tmp_path) == []


def test_a_job_that_slurm_did_not_take_is_a_failed_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch_that_says_it_timed_out(tmp_path / "bin", "", monkeypatch)
    cluster = opened()
    ended = wait(launch(cluster, fake("print('ran')"), attempt_folder(tmp_path)))
    assert ended.reason == "launch"
    assert "Socket timed out" in ended.detail and "Slurm has no such job" in ended.detail
    assert sum(cluster.free()) == 4


def test_a_stop_lets_the_trainer_end_and_releases_the_gang(tmp_path: Path, real: slurm_cluster.Slurm) -> None:
    where = attempt_folder(tmp_path)
    code = "import signal, sys, time; signal.signal(15, lambda *_: (print('bye', flush=True), sys.exit(0)))"
    cluster = opened()
    attempt = launch(cluster, fake(f"{code}; print('up', flush=True); time.sleep(300)"), where)
    until(lambda: says(where, "up"))
    assert sum(cluster.free()) == 3
    began = time.monotonic()
    attempt.stop()
    assert wait(attempt).reason == "stopped"
    print(f"stopped after {time.monotonic() - began:.1f} s")
    assert says(where, "bye")
    assert sum(cluster.free()) == 4
    real.wait(lambda: real.idle() == 2)
    assert left_over(tmp_path) == []


def test_a_kill_ends_all_of_it(tmp_path: Path) -> None:
    where = attempt_folder(tmp_path)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
    attempt = launch(opened(), fake(code), where)
    until(lambda: says(where, "up"))
    attempt.stop()
    attempt.kill()
    assert wait(attempt).reason == "stopped"
    assert left_over(tmp_path) == []


def test_a_dump_says_where_it_hangs(tmp_path: Path) -> None:
    where = attempt_folder(tmp_path)
    code = "import time\ndef hangs_here(): time.sleep(300)\nprint('up', flush=True)\nhangs_here()"
    attempt = launch(opened(), fake(code), where)
    until(lambda: says(where, "up"))
    attempt.stop(dump=True)
    assert wait(attempt).reason == "stopped"
    assert says(where, "in hangs_here")


def test_a_job_that_waits_says_why_and_can_be_stopped(tmp_path: Path, real: slurm_cluster.Slurm) -> None:
    cluster = opened(slurm__cpus_per_node=8, gpus_per_node=1, nodes=2)
    whole = fake(SLEEPS, gang=Gang(2, 1))
    first = launch(cluster, whole, attempt_folder(tmp_path, "first"), (0, 1))
    until(lambda: says(first.folder, "up"))
    second = launch(opened(slurm__cpus_per_node=8), whole, attempt_folder(tmp_path, "second"), (0, 1))
    until(lambda: "Resources" in second.waiting() or "Priority" in second.waiting())  # type: ignore[attr-defined]
    assert first.waiting() == ""  # type: ignore[attr-defined]
    second.stop()
    assert wait(second).reason == "stopped"
    assert not (second.folder / "log.txt").exists()
    first.kill()
    wait(first)


def test_a_scancel_by_somebody_is_a_preemption(tmp_path: Path, real: slurm_cluster.Slurm) -> None:
    attempt = launch(opened(), fake(SLEEPS), attempt_folder(tmp_path))
    until(lambda: says(attempt.folder, "up"))
    real.run("scancel", attempt.watched.job)  # type: ignore[attr-defined]
    ended = wait(attempt)
    assert ended.reason == "preempted"
    assert "cancelled by somebody" in ended.detail
    assert left_over(tmp_path) == []


def test_a_preempted_job_is_known_as_one(tmp_path: Path, real: slurm_cluster.Slurm) -> None:
    attempt = launch(opened(slurm__partition="spare", slurm__cpus_per_node=8), fake(SLEEPS), attempt_folder(tmp_path))
    until(lambda: says(attempt.folder, "up"))
    number = real.run("sbatch", "--parsable", "-p", "urgent", "-N2", "-c8", "--wrap=sleep 1", f"-o{tmp_path}/x").strip()
    ended = wait(attempt)
    assert ended.reason == "preempted"
    assert "was preempted" in ended.detail
    real.wait(lambda: number not in [n for n, _, _ in real.jobs("PENDING,RUNNING,COMPLETING")])


# -- a partition with GraceTime


@pytest.fixture(scope="module", params=["SIGTERM to the tasks", "the job's own signal"])
def with_grace(request: pytest.FixtureRequest) -> Iterator[slurm_cluster.Slurm]:
    """The two ways in which Slurm says that it takes a job back."""
    more = "" if "tasks" in request.param else "SlurmctldParameters=preempt_send_user_signal\n"
    with slurm_cluster.running(nodes=2, track="pgid", more=slurm_cluster.GRACE + more) as running:
        yield running


@pytest.fixture
def patient(with_grace: slurm_cluster.Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("SLURM_CONF", str(with_grace.conf))
    yield opened(slurm__partition="patient", slurm__grace_s=slurm_cluster.GRACE_S, slurm__cpus_per_node=8)
    with_grace.run("scancel", "--user=root")
    with_grace.wait(lambda: with_grace.idle() == 2)


def preempt(slurm: slurm_cluster.Slurm) -> float:
    """Submit what preempts all; when it was done."""
    slurm.run("sbatch", "-p", "urgent", "-N2", "-c8", "--wrap=sleep 1", "-o/dev/null")
    return time.monotonic()


SAVES = """
import os, sys, time
print("up", flush=True)
while not os.path.exists(os.environ["SWEEPER_TAKEN_BACK"]): time.sleep(0.1)
time.sleep(2)
print("saved", flush=True)
sys.exit(1)
"""


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_trainer_that_is_told_saves_and_ends_at_once(
    nodes: int, patient: Cluster, with_grace: slurm_cluster.Slurm, tmp_path: Path
) -> None:
    where = attempt_folder(tmp_path)
    attempt = launch(patient, fake(SAVES, gang=Gang(nodes, 1)), where, tuple(range(nodes)))
    until(lambda: says(where, "up"))
    began = preempt(with_grace)
    ended = wait(attempt)
    print(f"over after {time.monotonic() - began:.1f} s: {ended.detail}")
    assert says(where, "saved"), told(where)
    assert (ended.reason, "was preempted" in ended.detail) == ("preempted", True)
    assert time.monotonic() - began < slurm_cluster.GRACE_S - 5
    assert left_over(tmp_path) == []


def test_a_trainer_that_never_saves_is_ended_before_the_grace_is_over(
    patient: Cluster, with_grace: slurm_cluster.Slurm, tmp_path: Path
) -> None:
    where = attempt_folder(tmp_path)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
    attempt = launch(patient, fake(code, gang=Gang(2, 1)), where, (0, 1))
    until(lambda: says(where, "up"))
    began = preempt(with_grace)
    ended = wait(attempt)
    print(f"over after {time.monotonic() - began:.1f} s: {ended.detail}")
    assert (ended.reason, "after it was told" in ended.detail) == ("preempted", True)  # its guard ended it, not Slurm
    assert left_over(tmp_path) == []


def test_our_own_stop_is_not_a_notice(patient: Cluster, with_grace: slurm_cluster.Slurm, tmp_path: Path) -> None:
    """Before a notice, and after one that the trainer does not heed."""
    for name in ("before", "after"):
        where = attempt_folder(tmp_path, name)
        attempt = launch(patient, fake(SLEEPS), where)
        until(lambda where=where: says(where, "up"))
        if name == "after":
            preempt(with_grace)
            until(lambda where=where: (where / "gang/taken-back").exists())
        began = time.monotonic()
        attempt.stop()
        assert wait(attempt).reason == "stopped"
        took = time.monotonic() - began
        print(f"stopped after {took:.1f} s")
        assert took < 5
        assert (where / "gang/taken-back").exists() == (name == "after")
    assert left_over(tmp_path) == []


def test_near_the_time_limit_an_attempt_is_ended_and_counts_as_preempted(tmp_path: Path) -> None:
    where = attempt_folder(tmp_path)
    cluster = opened(slurm__time="1", slurm__lead_s=20)
    code = "import signal, sys, time; signal.signal(15, lambda *_: (print('bye', flush=True), sys.exit(0)))"
    attempt = launch(cluster, fake(f"{code}; print('up', flush=True); time.sleep(300)"), where)
    ended = wait(attempt, 240)
    assert ended.reason == "preempted"
    assert "near its time limit" in ended.detail
    assert says(where, "bye")
    assert left_over(tmp_path) == []


def test_a_node_that_dies_ends_the_gang_and_is_named(tmp_path: Path, real: slurm_cluster.Slurm) -> None:
    where = attempt_folder(tmp_path)
    attempt = launch(opened(gpus_per_node=1), fake(SLEEPS, gang=Gang(2, 1)), where, (0, 1))
    until(lambda: says(where, "up"), 120)
    real.kill_node(2)
    killed = time.monotonic()
    until((where / "gang" / "0.exit.json").exists)
    print(f"the first node knew after {time.monotonic() - killed:.1f} s")
    ended = wait(attempt, 180)
    print(f"the sweep knew after {time.monotonic() - killed:.1f} s")
    assert ended.reason == "lost"
    assert "node2" in ended.detail.replace("node[1-2]", "")  # by name, not only among the job's nodes
    real.start_node(2)
    real.wait(lambda: real.idle() == 2, 120)
    assert left_over(tmp_path) == []


# --- a node that dies under a job, on a Slurm that itself says so after minutes ---

LIMIT_S = 15.0


@pytest.fixture(scope="module")
def slow() -> Iterator[slurm_cluster.Slurm]:
    """It takes a node for dead after five minutes, as most do."""
    with slurm_cluster.running(nodes=2, gpus=2, more="SlurmdTimeout=300\n") as running:
        yield running


@pytest.fixture
def on_slow(slow: slurm_cluster.Slurm, monkeypatch: pytest.MonkeyPatch) -> slurm_cluster.Slurm:
    monkeypatch.setenv("SLURM_CONF", str(slow.conf))
    return slow


def trains(tmp_path: Path, nodes: int = 1) -> Attempt:
    """An attempt that trains, and whose first node has been heard from."""
    job = fake(SLEEPS, gang=Gang(nodes, 1))
    attempt = launch(opened(gpus_per_node=1), job, attempt_folder(tmp_path), tuple(range(nodes)))
    until(lambda: says(attempt.folder, "up"), 120)
    until(lambda: attempt.poll() is None and attempt._daemon is not None and attempt._daemon.known)  # type: ignore[attr-defined]
    return attempt


def daemon_of(on_slow: slurm_cluster.Slurm, node: int) -> psutil.Process:
    return psutil.Process(int((on_slow.base / "run" / f"slurmd.node{node}.pid").read_text()))


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_first_node_that_dies_is_known_within_15_s(tmp_path: Path, on_slow: slurm_cluster.Slurm, nodes: int) -> None:
    attempt = trains(tmp_path, nodes)
    on_slow.kill_node(1)
    killed = time.monotonic()
    ended = wait(attempt, 60)
    took = time.monotonic() - killed
    print(f"the sweep knew after {took:.1f} s: {ended.detail}")
    assert ended.reason == "lost", told(attempt.folder)
    assert took < LIMIT_S
    assert ended.detail.startswith("node node1 was lost: ")
    assert "its slurmd (127.0.0.2:" in ended.detail
    number = attempt.watched.job  # type: ignore[attr-defined]
    until(lambda: (number, "RUNNING") not in [(n, state) for n, state, _ in on_slow.jobs()], 10)  # it was cancelled
    on_slow.start_node(1)
    on_slow.wait(lambda: on_slow.idle() == 2, 120)
    assert left_over(tmp_path) == []


def test_another_node_that_is_shut_down_is_known_within_15_s(tmp_path: Path, on_slow: slurm_cluster.Slurm) -> None:
    """Its processes are told to stop before it is gone, and Slurm learns nothing of either."""
    attempt = trains(tmp_path, 2)
    gang = attempt.folder / "gang"
    marker = Path(json.loads((gang / "1.json").read_text())["temp_dir"]).name.removeprefix(janitor.PREFIX)
    daemon_of(on_slow, 2).kill()
    told_at = time.monotonic()
    for pid in janitor.marked(marker):
        if b"guard.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)
    until((gang / "0.exit.json").exists)
    on_slow.kill_node(2)
    ended = wait(attempt, 60)
    took = time.monotonic() - told_at
    print(f"the sweep knew after {took:.1f} s: {ended.detail}")
    assert (ended.reason, "node2" in ended.detail) == ("stopped", True), told(attempt.folder)
    assert took < LIMIT_S
    on_slow.start_node(2)
    on_slow.wait(lambda: on_slow.idle() == 2, 120)
    assert left_over(tmp_path) == []


def test_a_daemon_that_is_restarted_is_no_loss(tmp_path: Path, on_slow: slurm_cluster.Slurm) -> None:
    attempt = trains(tmp_path)
    daemon = daemon_of(on_slow, 1)
    daemon.kill()
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        assert attempt.poll() is None
        time.sleep(0.1)
    assert attempt.silent() == ""
    on_slow.start_node(1)
    attempt.stop()
    assert wait(attempt).reason == "stopped"


def test_a_store_that_stalls_is_no_loss_and_is_said(tmp_path: Path, on_slow: slurm_cluster.Slurm) -> None:
    """Nothing can be written for a while: the one that beats stands still, as it would in the kernel."""
    attempt = trains(tmp_path)
    (beats,) = [
        p
        for p in psutil.process_iter(["cmdline"])  # None of one that has just ended
        if str(attempt.folder) in (p.info["cmdline"] or ()) and "listen.py" in str(p.info["cmdline"])
    ]
    beats.send_signal(signal.SIGSTOP)
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        assert attempt.poll() is None
        time.sleep(0.1)
    assert attempt.silent() == "node node1 has written nothing to the store for 10 s"
    beats.send_signal(signal.SIGCONT)
    until(lambda: attempt.poll() is None and attempt.silent() == "")
    attempt.stop()
    assert wait(attempt).reason == "stopped"


CONTROLLER = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {support!r}]
import test_slurm_cluster as t
t.launch(t.opened(), t.fake(t.SLEEPS), Path({folder!r}))
print("started", flush=True)
time.sleep(300)
"""


def test_a_controller_that_dies_leaves_it_running_and_another_takes_it_up(tmp_path: Path) -> None:
    where = attempt_folder(tmp_path)
    tests = Path(__file__).parent
    script = CONTROLLER.format(tests=str(tests), support=str(tests.parent / "support"), folder=str(where))
    controller = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert controller.stdout is not None
    assert controller.stdout.readline() == "started\n"
    until(lambda: says(where, "up"))
    controller.kill()
    controller.wait()
    cluster = opened()
    attempt = cluster.attach(where)
    assert attempt is not None and attempt.poll() is None
    assert sum(cluster.free()) == 3
    attempt.stop()
    assert wait(attempt).reason == "stopped"
    assert sum(cluster.free()) == 4


def test_a_job_is_found_by_its_tag_when_its_number_was_never_written(tmp_path: Path) -> None:
    """The controller died between sbatch and its note of the number."""
    where = attempt_folder(tmp_path)
    launch(opened(), fake(SLEEPS), where)
    until(lambda: says(where, "up"))
    path = where / "attempt.json"
    started = json.loads(path.read_text())
    assert started["job"]
    path.write_text(json.dumps({**started, "job": None}))
    attempt = clusters.attach(where)
    assert attempt is not None
    attempt.kill()
    assert wait(attempt).reason == "stopped"


def test_a_store_that_a_node_does_not_see_is_a_failed_launch_that_says_so(tmp_path: Path) -> None:
    where = attempt_folder(tmp_path)
    attempt = launch(opened(slurm__sbatch=["--begin=now+3"]), fake("print('ran')"), where)
    until(lambda: attempt.watched.job)  # type: ignore[attr-defined]
    away = where.rename(where.with_name("away"))  # the one machine of this Slurm sees what we see, so for all of us
    until(lambda: attempt.watched.over, 60)  # type: ignore[attr-defined]
    away.rename(where)
    ended = wait(attempt)
    assert ended.reason == "launch", ended
    assert "may not see the sweep's folder" in ended.detail


def test_what_was_given_up_does_not_start_later(tmp_path: Path, real: slurm_cluster.Slurm) -> None:
    where = attempt_folder(tmp_path)
    attempt = launch(opened(slurm__sbatch=["--begin=now+3"]), fake("print('ran')"), where)
    until(lambda: attempt.watched.job)  # type: ignore[attr-defined]
    number = attempt.watched.job  # type: ignore[attr-defined]
    path = where / "attempt.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "job": None, "tag": "never-submitted"}))
    given_up = clusters.attach(where)
    assert given_up is not None
    assert wait(given_up).reason == "lost"
    record = (where / "exit.json").read_text()
    real.wait(lambda: (number, "COMPLETED") in [(n, s) for n, s, _ in real.jobs()], 90)
    assert not (where / "log.txt").exists()
    assert (where / "exit.json").read_text() == record


def test_gpus_of_two_jobs_on_one_node_are_not_the_same(tmp_path: Path) -> None:
    cluster = opened(device="cuda", gpus_per_node=8, nodes=1, slurm__cpus_per_node=1)
    code = "import os, time; print('gpus', os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(300)"
    attempts = [launch(cluster, fake(code, gang=Gang(1, 2)), attempt_folder(tmp_path, name)) for name in ("one", "two")]
    assert cluster.free() == (4,)
    for attempt in attempts:
        until(lambda where=attempt.folder: says(where, "gpus"))
    seen = [(a.folder / "log.txt").read_text().split()[1].split(",") for a in attempts]
    assert [len(gpus) for gpus in seen] == [2, 2]
    for attempt in attempts:
        attempt.kill()
    for attempt in attempts:
        assert wait(attempt).reason == "stopped"


def test_a_command_on_every_node() -> None:
    code = "import sys; print(sys.stdin.read().upper()); sys.exit(4)"
    answers = opened().each(["{python}", "-c", code], "hello", 30)
    assert [(a.node, a.code, a.out) for a in answers] == [("node1", 4, "HELLO\n"), ("node2", 4, "HELLO\n")]
    assert all(a.code is None and "nothing-there" in a.err for a in opened().each(["nothing-there"], "", 30))


@pytest.mark.parametrize(
    ("changes", "says", "valid"),
    [
        ({"slurm__partition": "nobodys"}, "no such partition", "main, small, urgent, spare"),
        ({"device": "cuda", "gpus_per_node": 9}, "a node of partition main has 8 GPUs", "up to 8"),
        ({"device": "cuda", "gpus_per_node": None, "slurm__gres": "gpu:h100"}, "0 GPUs of type h100", ""),
        ({"nodes": 3}, "partition main has 2", "up to 2"),
        ({"slurm__partition": "small", "slurm__time": "0:30:00"}, "lets a job take 10 minutes", "up to 10 minutes"),
        ({"slurm__mode": "allocation", "nodes": 3}, "partition main has 2", "up to 2"),
    ],
)
def test_what_the_cluster_has_not_is_said_before_anything_is_spent(
    changes: dict[str, Any], says: str, valid: str
) -> None:
    with pytest.raises(RequestError) as error:
        slurm.shape(config(**changes))
    assert says in str(error.value)
    assert valid in str(error.value)


def test_a_controller_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    port = slurm_cluster.free_ports(1)[0]
    text = Path(os.environ["SLURM_CONF"]).read_text()
    conf.write_text(
        "\n".join(f"SlurmctldPort={port}" if x.startswith("SlurmctldPort") else x for x in text.split("\n"))
    )
    (tmp_path / "gres.conf").write_text("")
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.setattr("sweeper.clusters.slurm.commands.TIMEOUT_S", 5.0)
    with pytest.raises(RequestError, match="Slurm cannot be asked") as error:
        slurm.shape(config())
    assert "scontrol ping" in str(error.value)


def test_what_the_partition_has_is_the_shape() -> None:
    shape = slurm.shape(config(device="cuda", gpus_per_node=None))
    assert (shape.nodes, shape.gpus_per_node, shape.launchable) == (2, 8, True)


@pytest.mark.parametrize("words", [["sweep.py", "-m"], ["/opt/venv/bin/sweeper", "plan"]])
def test_a_whole_sweep_in_one_job_is_shown_as_a_script(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [*words, "cluster=slurm", "name=s", "~x", "plan=true", "--json"])
    shape = slurm.shape(config(slurm__mode="allocation", device="cuda", gpus_per_node=8))
    (note,) = shape.notes
    assert "sbatch sweep.sbatch" in note
    assert "#SBATCH --gres=gpu:8" in note
    assert "sweeper.cli.main run cluster=slurm name=s '~x' &" in note  # without plan=true
    assert "sweeper.cli.main resume s --store runs &" in note
    with pytest.raises(RequestError, match="runs inside a job of Slurm's"):
        clusters.get(config(slurm__mode="allocation"), replace(shape, launchable=True))


# -- a sweep inside one allocation


@pytest.fixture
def inside(real: slurm_cluster.Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An allocation of both nodes with all their GPUs, as `sbatch` or `salloc` would put us into one."""
    told = subprocess.run(
        ["salloc", "--no-shell", "-N2", "--ntasks-per-node=1", "--gres=gpu:8", "--exclusive"],
        env=real.env(), capture_output=True, text=True, check=True, timeout=60,
    ).stderr  # fmt: skip
    job = next(line.split()[-1] for line in told.splitlines() if "Granted job allocation" in line)
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
    yield job
    real.run("scancel", job)


def allocated(**changes: Any) -> Cluster:
    return opened(slurm__mode="allocation", device="cuda", gpus_per_node=8, **changes)


GPUS = "import os, time; print('gpus', os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(300)"


def test_trials_share_the_nodes_of_an_allocation_and_no_gpu(inside: str, tmp_path: Path) -> None:
    cluster = allocated()
    assert cluster.free() == (8, 8)
    asked = [("one", 0), ("two", 0), ("three", 1)]
    attempts = [
        launch(cluster, fake(GPUS, gang=Gang(1, 4)), attempt_folder(tmp_path, name), (node,)) for name, node in asked
    ]
    assert cluster.free() == (0, 4)
    assert cluster.start(fake(GPUS), attempt_folder(tmp_path, "four"), (0,)) is None
    for attempt in attempts:
        until(lambda where=attempt.folder: says(where, "gpus"))
    seen = [set((a.folder / "log.txt").read_text().split()[1].split(",")) for a in attempts]
    assert [len(gpus) for gpus in seen] == [4, 4, 4]
    assert not seen[0] & seen[1]
    nodes = [json.loads((a.folder / "gang/0.json").read_text())["host"] for a in attempts]
    assert nodes == ["node1", "node1", "node2"]
    attempts[0].stop()
    attempts[1].kill()
    assert [wait(a).reason for a in attempts[:2]] == ["stopped", "stopped"]
    assert attempts[2].poll() is None
    assert cluster.free() == (8, 4)
    attempts[2].kill()
    wait(attempts[2])
    assert left_over(tmp_path) == []


def test_a_step_ends_with_its_trainer(inside: str, tmp_path: Path) -> None:
    where = attempt_folder(tmp_path)
    ended = wait(launch(allocated(), fake("print('said'); raise SystemExit(3)"), where, (1,)))
    assert (ended.code, ended.reason) == (3, "exit"), told(where)
    assert (where / "log.txt").read_text() == "said\n"


def test_a_step_that_cannot_start_is_a_failed_launch(inside: str, tmp_path: Path) -> None:
    cluster = allocated(slurm__cpus_per_node=999)
    ended = wait(launch(cluster, fake("print('ran')"), attempt_folder(tmp_path)))
    assert ended.reason == "launch"
    assert "srun could not start it" in ended.detail
    assert cluster.free() == (8, 8)


def test_a_step_outlives_its_controller_and_is_taken_up(inside: str, tmp_path: Path) -> None:
    where = attempt_folder(tmp_path)
    tests = Path(__file__).parent
    script = CONTROLLER.format(tests=str(tests), support=str(tests.parent / "support"), folder=str(where))
    script = script.replace("t.opened()", "t.allocated()")
    controller = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert controller.stdout is not None
    assert controller.stdout.readline() == "started\n"
    until(lambda: says(where, "up"))
    controller.kill()
    controller.wait()
    cluster = allocated()
    attempt = cluster.attach(where)
    assert attempt is not None and attempt.poll() is None
    assert cluster.free() == (7, 8)
    attempt.stop()
    assert wait(attempt).reason == "stopped"
    assert cluster.free() == (8, 8)


def test_a_command_on_every_node_of_an_allocation(inside: str) -> None:
    answers = allocated().each(["{python}", "-c", "print(1)"], "", 30)
    assert [(a.node, a.code, a.out) for a in answers] == [("node1", 0, "1\n"), ("node2", 0, "1\n")]


@pytest.mark.parametrize(
    ("changes", "says"), [({"gpus_per_node": 9}, "has 8 a node"), ({"nodes": 3}, "in which this runs, has 2")]
)
def test_what_an_allocation_has_not_is_said(inside: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        slurm.shape(config(**{"slurm__mode": "allocation", "device": "cuda", "gpus_per_node": 8, **changes}))
