"""What a Slurm cluster is told and what its words mean, without a Slurm. With one: test_slurm_cluster.py."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeper.clusters import gangs, slurm
from sweeper.clusters.base import Exit
from sweeper.clusters.gang import slurm_nodes
from sweeper.clusters.gang.guard import GRACE
from sweeper.clusters.slurm import commands, each, script, states
from sweeper.clusters.slurm.allocation import per_node
from sweeper.clusters.slurm.jobs import submission_environment
from sweeper.clusters.slurm.settings import Settings, problems
from sweeper.clusters.slurm.states import State
from sweeper.engines.base import Gang, Job, Shape
from sweeper.errors import RequestError

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "clusters" / "slurm"
SWEEP = Path("/store/lr search")
RUN = script.Run(
    ("python3", "-I", "-S", str(SWEEP / "gang-0a/node.py")),
    SWEEP / "gang-0a/slurm_nodes.py",
    SWEEP / "trials/grpo-003/attempt-2",
)
EIGHT_EACH = Gang(2, 8, 8)
PLAIN = Settings(partition="h100", account="rl", qos="high", time="8:00:00")


def attempt(settings: Settings, gang: Gang = EIGHT_EACH, **how: Any) -> str:
    how = {"gpus": True, "cpus": 96, "image": None, **how}
    return script.of_attempt(RUN, settings, gang, tag="0451", passed=("PATH", "HOME", "HF_TOKEN"), **how)


def config(**changes: Any) -> dict[str, Any]:
    said = yaml.safe_load((ROOT / "conf/cluster/slurm.yaml").read_text())
    for key, value in changes.items():
        where, _, name = key.rpartition("__")
        (said[where] if where else said)[name] = value
    return said


CASES = {
    "two_nodes": lambda: attempt(PLAIN),
    "one_cpu": lambda: attempt(Settings(lead_s=30, grace_s=120), Gang(1, 1, 1), gpus=False, cpus=1),
    "options": lambda: attempt(
        Settings(
            gres="gpu:h100",
            mem_per_node="900G",
            sbatch=("--constraint=nvlink&ib", "--mail-user=a b"),
            setup=("module load cuda/12.8",),
        )
    ),
    "pyxis": lambda: attempt(
        Settings(mounts=("/data", "/models:/models:ro")), image="nvcr.io#nvidia/pytorch:25.02-py3"
    ),
    "apptainer": lambda: attempt(Settings(container="apptainer", mounts=("/data",)), image="/images/verl.sif"),
    "whole_sweep": lambda: script.of_sweep(
        PLAIN,
        Gang(4, 8, 8),
        ["/opt/venv/bin/python", "-m", "sweeper.cli.main", "run", "algorithm=grpo,ppo", "cluster=slurm", "name=s"],
        ["/opt/venv/bin/python", "-m", "sweeper.cli.main", "resume", "s", "--store", "runs"],
        sweep=Path("/home/a/runs/s"),
        gpus=True,
        cpus=None,
        where=Path("/home/a"),
        environment={"PYTHONPATH": "/home/a/sweeper"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_slurm_runs_is_as_on_record(case: str) -> None:
    """SWEEPER_UPDATE_GOLDEN=1 writes the files anew."""
    path = GOLDEN / f"{case}.sh"
    text = CASES[case]()
    if os.environ.get("SWEEPER_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("case", CASES)
def test_shellcheck_finds_nothing(case: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", str(GOLDEN / f"{case}.sh")], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_a_script_has_names_of_secrets_only() -> None:
    text = attempt(PLAIN)
    assert "--export=PATH,HOME,HF_TOKEN\n" in text
    assert "SWEEPER_GANG_TOKEN=$(" in text  # made in the job, not written down


def test_a_job_is_named_after_sweep_trial_and_attempt() -> None:
    assert script.job_name(RUN.folder) == "lr_search-grpo-003-a2"
    name = script.job_name(Path("/s/a[1]%/trials/ö b/attempt-12"))
    assert name.endswith("-a12")
    assert not set("[]%, ") & set(name)


# -- what a user may say


def test_the_config_as_it_is_has_no_problem() -> None:
    assert problems(config()) == []
    assert Settings.of(config()) == Settings()


@pytest.mark.parametrize(
    ("changes", "says", "fix"),
    [
        ({"slurm__gres": "gpu:8"}, "cluster.slurm.gres=gpu:8 has a count", "gres=gpu cluster.gpus_per_node=8"),
        ({"slurm__gres": "gpu:h100:8"}, "has a count", "cluster.slurm.gres=gpu:h100 cluster.gpus_per_node=8"),
        ({"slurm__gres": "8xH100"}, "no kind of GPU", ""),
        ({"slurm__gres": "gpu:h100; rm -rf /"}, "no kind of GPU", ""),
        ({"slurm__mode": "array"}, "cluster.slurm.mode=array", ""),
        ({"slurm__time": "8 hours"}, "cluster.slurm.time=8 hours", ""),
        ({"slurm__partition": "a b"}, "cluster.slurm.partition=a b", ""),
        ({"slurm__mem_per_node": "lots"}, "cluster.slurm.mem_per_node=lots", ""),
        ({"slurm__lead_s": 0}, "cluster.slurm.lead_s=0", ""),
        ({"slurm__grace_s": 5}, "cluster.slurm.grace_s=5", ""),
        ({"slurm__grace_s": 60, "slurm__mode": "allocation"}, "an allocation that is taken back", ""),
        ({"slurm__sbatch": ["--partition=x"]}, "--partition is set by the sweep", "cluster.slurm.partition=..."),
        ({"slurm__sbatch": ["--requeue"]}, "--requeue is set by the sweep", ""),
        ({"slurm__sbatch": 5}, "cluster.slurm.sbatch=5", ""),
        ({"nodes": None}, "cluster.nodes is not given", ""),
        ({"slurm__sbatch": ["nvlink"]}, "'nvlink' is no option", ""),
        ({"slurm__mounts": ["data"]}, "cluster.slurm.mounts", ""),
        ({"slurm__partitions": "x"}, "cluster.slurm.partitions is not known", "cluster.slurm.partition"),
        ({"slurm": None}, "cluster.slurm=None is no mapping", ""),
        ({"device": "auto"}, "cluster.device=auto", ""),
    ],
)
def test_what_cannot_be_meant_is_said(changes: dict[str, Any], says: str, fix: str) -> None:
    (problem,) = problems(config(**changes))
    assert says in problem.what
    assert fix in problem.fix
    assert problem.valid


def test_without_slurm_it_is_said_where_to_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(RequestError, match="sinfo is not there") as error:
        slurm.shape(config())
    assert "login node" in str(error.value)


def test_what_overrules_a_script_is_not_passed_on() -> None:
    environ = {"SBATCH_EXPORT": "ALL", "SLURM_JOB_ID": "1", "SLURM_CONF": "/x", "HF_TOKEN": "t", "SRUN_DEBUG": "1"}
    assert submission_environment(environ) == {"SLURM_CONF": "/x", "HF_TOKEN": "t"}


# -- a job that is taken back


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A node whose program is a child of a shell, as it is one of slurmstepd's, with a minute of notice."""
    (folder := tmp_path / "attempt-1").mkdir()
    code = "import time; print('up', flush=True); time.sleep(300)"
    job = Job(
        argv=(sys.executable, "-c", code), env={}, inherit=(GRACE,), files={}, gang=Gang(1, 1), python=sys.executable,
        metrics="metrics.jsonl", total_steps=1, ray=False,
    )  # fmt: skip
    gangs.prepare(job, folder, [gangs.Node("n")], shape=Shape("here", "cpu", 1, 1), leases=False, join_s=60)
    command = shlex.join(gangs.argv(folder, 0, python=sys.executable))
    begun = f"{command} & echo $! > {tmp_path}/pid; wait"
    shell = subprocess.Popen(["sh", "-c", begun], env={**os.environ, GRACE: "60"})
    until(lambda: (folder / "log.txt").exists() and "up" in (folder / "log.txt").read_text())
    yield shell
    shell.kill()
    shell.wait()


def until(what: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_a_signal_is_the_notice_and_another_the_end(guarded: subprocess.Popen[bytes], tmp_path: Path) -> None:
    guard, gang = int((tmp_path / "pid").read_text()), tmp_path / "attempt-1" / "gang"
    os.kill(guard, signal.SIGTERM)
    until((gang / "taken-back").exists)
    time.sleep(1)
    assert not (gang / "0.exit.json").exists()
    os.kill(guard, signal.SIGTERM)
    until((gang / "0.exit.json").exists, 5)
    assert json.loads((gang / "0.exit.json").read_text())["reason"] == "preempted"


def test_who_lost_its_parent_has_no_notice(guarded: subprocess.Popen[bytes], tmp_path: Path) -> None:
    gang = tmp_path / "attempt-1" / "gang"
    guarded.kill()
    until((gang / "0.exit.json").exists, 5)
    assert json.loads((gang / "0.exit.json").read_text())["reason"] == "lost"
    assert not (gang / "taken-back").exists()


# -- what Slurm says


def test_gpus_of_a_node() -> None:
    assert commands.of_gres("gpu:8") == [("", 8)]
    assert commands.of_gres("gpu:h100:8(S:0-1),gpu:a100_80gb:2,tmpdisk:900") == [("h100", 8), ("a100_80gb", 2)]
    assert commands.of_gres("(null)") == []


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("Batch job submission failed: Invalid feature specification", "cluster.slurm.sbatch"),
        ("unrecognized option '--constrant=nvlink'; Try \"sbatch --help\"", "cluster.slurm.sbatch"),
        ("invalid partition specified: x; Batch job submission failed: Invalid partition name specified",
         "cluster.slurm.partition"),
        ("Invalid account or account/partition combination specified", "cluster.slurm.account"),
        ("Invalid qos specification", "cluster.slurm.qos"),
        ("Invalid generic resource (gres) specification", "cluster.slurm.gres"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "cluster.slurm.time"),
    ],
)  # fmt: skip
def test_what_is_refused_for_ever_names_its_key(said: str, key: str) -> None:
    wrong = commands.wrong_setting(commands.SlurmError(said))
    assert wrong is not None and wrong.key == key
    assert wrong.fix.startswith(f"{key}=")


@pytest.mark.parametrize("said", ["Invalid authentication credential", "Job violates accounting/QOS policy"])
def test_what_may_pass_by_itself_is_no_wrong_setting(said: str) -> None:
    assert commands.wrong_setting(commands.SlurmError(said)) is None


def test_what_a_job_has_on_the_node_with_fewest() -> None:
    record = (
        "JobId=7 JobName=x Nodes=node1 CPU_IDs=0-3,6 Mem=0 GRES=gpu:8(IDX:0-7) Nodes=node2 CPU_IDs=0-1 Mem=0 "
        "GRES=gpu:h100:4(IDX:0-3) MinCPUsNode=1"
    )
    assert per_node(record) == (4, 2)
    assert per_node("JobId=7 Nodes=node1 CPU_IDs=0 Mem=0 GRES= MinCPUsNode=1") == (0, 1)


RECORD = Exit(1, "exit", "", 5.0)


@pytest.mark.parametrize(
    ("state", "record", "how", "reason", "says"),
    [
        (State("COMPLETED"), Exit(0, "exit", "", 5.0), {}, "exit", ""),
        (State("FAILED", "NonZeroExitCode"), RECORD, {}, "exit", ""),
        (State("PREEMPTED"), RECORD, {}, "preempted", "was preempted"),  # it fell to the preemption
        (State("PREEMPTED"), Exit(0, "exit", "", 5.0), {}, "exit", ""),  # it had finished
        (State("COMPLETED"), Exit(1, "preempted", "it ended", 5.0), {}, "preempted", "was preempted; it ended"),
        (State("COMPLETED"), Exit(1, "preempted", "", 5.0), {"asked": True}, "stopped", ""),
        (State("TIMEOUT", "TimeLimit"), None, {}, "preempted", "time limit (TimeLimit)"),
        (State("TIMEOUT"), Exit(None, "stopped", "", 5.0), {}, "preempted", "time limit"),
        (State("COMPLETED"), Exit(None, "stopped", "", 5.0), {"time_up": True}, "preempted", "near its time limit"),
        (State("CANCELLED"), None, {}, "preempted", "cancelled by somebody"),
        (State("CANCELLED"), None, {"asked": True}, "stopped", ""),
        (State("NODE_FAIL", "None", "node[1-2]"), None, {}, "lost", "lost a node (node[1-2])"),
        (State("NODE_FAIL"), Exit(None, "lost", "node2 is gone", 5.0), {}, "lost", "lost a node"),
        (State("OUT_OF_MEMORY"), None, {}, "lost", "Memory cgroup out of memory"),
        (State("BOOT_FAIL"), None, {}, "launch", "did not boot"),
        (State("FAILED", "BadConstraints"), None, {}, "launch", "no node can ever satisfy"),
        (State(""), None, {}, "lost", "does not know it any more"),
        (State("FAILED", "NonZeroExitCode"), None, {}, "lost", "left no record: it ended as FAILED"),
        (State("FAILED", "NonZeroExitCode"), None, {"begun": False}, "launch", "may not see the sweep's folder"),
        (
            State("FAILED", "NonZeroExitCode"),
            None,
            {"begun": False, "log": "slurm_script: line 23: /nope/python: No such file or directory"},
            "launch",
            "/nope/python: No such file or directory (cluster.python is what it runs)",
        ),
        (State("COMPLETED"), Exit(None, "launch", "no python", 5.0), {}, "launch", "no python"),
    ],
)
def test_how_a_job_ended(state: State, record: Exit | None, how: dict[str, Any], reason: str, says: str) -> None:
    ended = states.exit_of("12", state, record, now=9.0, **{"asked": False, "time_up": False, "begun": True, **how})
    assert ended.reason == reason
    assert says in ended.detail
    assert ended.ended == (record.ended if record else 9.0)


def test_why_a_job_waits_is_said_and_whether_it_may_wait_for_ever() -> None:
    assert State("PENDING", "Priority").waits == "Priority"
    assert State("RUNNING", "None").waits == ""
    assert State("PENDING", "None").waits == ""
    assert State("CONFIGURING", "None").waits == "configuring"
    for reason, words in {
        "BadConstraints": "no node can ever",
        "AssocGrpGRES": "a limit of the account",
        "(PartitionNodeLimit)": "more nodes than the partition allows",
        "ReqNodeNotAvail, UnavailableNodes:node1": "down, drained or reserved",
    }.items():
        assert words in State("PENDING", reason).waits


def test_the_end_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert slurm_nodes.end_of("StartTime=x EndTime=2026-11-21T20:34:27 Deadline=N/A") == 1795293267
    assert slurm_nodes.end_of("EndTime=Unknown") == float("inf")


def test_an_address_is_one_that_other_nodes_reach() -> None:
    assert slurm_nodes.reached_at("10.1.2.3", []) == "10.1.2.3"
    assert slurm_nodes.reached_at("127.0.0.3", []) == "127.0.0.3"  # said so: several nodes on one machine
    assert slurm_nodes.reached_at("localhost", ["127.0.0.9"]) == "127.0.0.1"


def test_the_gang_learns_who_its_nodes_are(tmp_path: Path) -> None:
    """A fake scontrol; the real one is in test_slurm_cluster.py."""
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(
        """#!/bin/sh
case "$2" in
hostnames) echo node1; echo node2 ;;
node) echo "NodeName=$3 NodeAddr=10.0.0.${3#node} NodeHostName=x" ;;
job) echo "JobId=7 EndTime=2026-11-21T20:34:27 Deadline=N/A" ;;
esac
"""
    )
    fake.chmod(0o755)
    (tmp_path / "gang").mkdir()
    (tmp_path / "gang/gang.json").write_text(json.dumps({"nodes": [{}, {}], "ranks": 8}))
    env = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "x", "TZ": "UTC"}
    out = subprocess.run(
        [sys.executable, "-I", "-S", slurm_nodes.__file__, str(tmp_path), "30"],
        env=env, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert int(out) == 1795293267 - 30 - 60
    nodes = [{"name": "node1", "address": "10.0.0.1"}, {"name": "node2", "address": "10.0.0.2"}]
    assert json.loads((tmp_path / "gang/gang.json").read_text()) == {"nodes": nodes, "ranks": 8}


def test_a_node_that_gives_no_answer_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for srun that prints what srun does when the interpreter is not there."""
    fake = tmp_path / "srun"
    said = "slurmstepd: error: execve(): /nope/py: No such file or directory"
    fake.write_text(
        f"#!/bin/sh\necho '{said}' >&2\necho 'srun: error: n7: task 0: Exited with exit code 2' >&2\nexit 2\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (answer,) = each.run_each(["{python}", "-"], "", 5.0, nodes=1, options=[], python="/nope/py")
    assert (answer.node, answer.code) == ("n7", None)
    assert said in answer.err


def test_the_command_that_shows_the_script_is_the_sweeps_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/venv/bin/sweeper", "doctor", "cluster=slurm", "lr=1e-6", "--json"])
    for name in [n for n in os.environ if n.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    with pytest.raises(RequestError) as error:
        slurm.open(config(slurm__mode="allocation"), Shape("slurm", "cuda", 1, 8))
    assert "python sweep.py -m cluster=slurm lr=1e-6 plan=true" in str(error.value)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("30", 30), ("10:00", 10), ("8:00:00", 480), ("0:30:00", 30), ("1-12", 2160), ("1-00:00:00", 1440),
        ("2-01:30", 2970), ("infinite", None), ("UNLIMITED", None), ("", None),
    ],
)  # fmt: skip
def test_time_limits_are_read_as_slurm_writes_them(text: str, minutes: float | None) -> None:
    assert commands.minutes(text) == minutes
