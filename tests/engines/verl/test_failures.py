"""Kinds and signatures of failures, on logs of real verl runs (logs/) and on the texts that Ray, torch, vLLM, Slurm and
the kernel write."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sweeper.engines.base import Failure
from sweeper.engines.verl.failures import classify

LOGS = Path(__file__).parent / "logs"

REAL = {
    "reward_raises": "bug",
    "reward_raises_in_validation": "bug",
    "worker_killed": "node-lost",
    "weights_missing": "data",
    "disk_full": "disk",
    "unknown_key": "bug",
    "unknown_loss": "bug",
    "unknown_rollout": "bug",
    "sequence_too_long": "bug",
    "no_micro_batch": "bug",
}


def of(log: str, reason: str = "exit", code: int | None = 1, detail: str = "") -> Failure:
    return classify(log, reason, code, detail)


def raised(line: str, place: str = "verl/workers/engine/fsdp/transformer_impl.py", number: int = 700) -> str:
    return (
        "Traceback (most recent call last):\n"
        f'  File "/venv/lib/python3.11/site-packages/{place}", line {number}, in step\n'
        f"{line}\n"
    )


@pytest.mark.parametrize("name", REAL)
def test_real_logs(name: str) -> None:
    found = of((LOGS / f"{name}.txt").read_text(encoding="utf-8"))
    assert found.kind == REAL[name]
    assert 0 < len(found.lines) <= 12


def test_every_real_failure_has_a_signature_of_its_own() -> None:
    found = {name: of((LOGS / f"{name}.txt").read_text(encoding="utf-8")).signature for name in REAL}
    assert len(set(found.values())) == len(found), found


@pytest.mark.parametrize("name", REAL)
def test_the_signature_is_the_same_in_another_run(name: str) -> None:
    log = (LOGS / f"{name}.txt").read_text(encoding="utf-8")
    other = re.sub(r"pid=\d+", "pid=77", log)
    other = re.sub(r"0x[0-9a-f]+", "0xdeadbeef01", other)
    other = re.sub(r"actor_id[:=] ?[0-9a-f]+", "actor_id=0badcafe02", other)
    other = re.sub(r"127\.0\.0\.\d+", "10.0.0.9", other)
    other = other.replace("/home/user/task", "/scratch/somebody/sweep-9/trials/014")
    other = re.sub(r"\b\d\d:\d\d:\d\d\b", "23:59:59", other.replace("302144", "99"))
    assert other != log
    assert of(other).signature == of(log).signature


SAID = {
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.11 GiB": "out-of-memory",
    "torch.cuda.OutOfMemoryError: CUDA out of memory.": "out-of-memory",
    "MemoryError": "out-of-memory",
    "RuntimeError: CUDA error: out of memory": "out-of-memory",
    "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": "out-of-memory",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
    "to allocate 4096000000000 bytes.": "out-of-memory",
    "OSError: [Errno 12] Cannot allocate memory": "out-of-memory",
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`": "out-of-memory",
    "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.": "out-of-memory",
    "OSError: [Errno 28] No space left on device: '/runs/s/checkpoints'": "disk",
    "OSError: [Errno 122] Disk quota exceeded": "disk",
    "RuntimeError: probability tensor contains either `inf`, `nan` or element < 0": "nan",
    "RuntimeError: Function 'MulBackward0' returned nan values in its 0th output.": "nan",
    "FloatingPointError: loss is nan": "nan",
    "ValueError: Out of range float values are not JSON compliant: nan": "nan",
    "FileNotFoundError: [Errno 2] No such file or directory: '/data/train.parquet'": "data",
    "pyarrow.lib.ArrowInvalid: Parquet magic bytes not found in footer.": "data",
    "jinja2.exceptions.UndefinedError: 'dict object' has no attribute 'role'": "data",
    "OSError: [Errno 98] Address already in use": "launch",
    "ConnectionError: Could not find any running Ray instance. Please specify the one to connect to": "launch",
    "ValueError: no rule for the answer": "bug",
    "KeyError: 'nan'": "bug",
    "ValueError: the column 'nanograms' is missing": "bug",
    "RuntimeError: disk geometry of the nanobot": "bug",
}


@pytest.mark.parametrize("line", SAID)
def test_what_an_exception_says(line: str) -> None:
    assert of(raised(line)).kind == SAID[line]


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("verl/utils/dataset/rl_dataset.py", "data"),
        ("verl/utils/reward_score/__init__.py", "data"),
        ("datasets/arrow_dataset.py", "data"),
        ("transformers/tokenization_utils_base.py", "data"),
        ("verl/trainer/ppo/core_algos.py", "bug"),
    ],
)
def test_where_an_exception_was_raised(place: str, kind: str) -> None:
    assert of(raised("KeyError: 'prompt'", place)).kind == kind


@pytest.mark.parametrize(
    ("log", "reason", "code", "detail", "kind"),
    [
        ("training\n", "exit", -15, "", "preempted"),
        ("training\n", "exit", 15, "", "preempted"),
        ("training\n", "exit", 143, "", "preempted"),
        ("slurmstepd: error: *** JOB 77 ON n1 CANCELLED AT 10:00 DUE TO PREEMPTION ***\n", "lost", None, "",
         "preempted"),
        ("ray.exceptions.ActorDiedError: The actor died because its node has died. The node was preempted.\n", "exit",
         1, "", "preempted"),
        ("training\n", "lost", None, "the attempt's Ray cluster ended with code 1:\nraylet exited", "node-lost"),
        ("training\n", "preempted", None, "Slurm job 7 reached its time limit (TimeLimit)", "preempted"),
        ("training\n", "lost", None, "Slurm job 7 lost a node (n[1-2])", "node-lost"),
        ("training\n", "lost", None, "Slurm job 7 was ended by Slurm: Memory cgroup out of memory", "out-of-memory"),
        ("training\n", "exit", -9, "", "node-lost"),
        ("training\nKilled\n", "exit", 137, "", "node-lost"),
        ("torch.distributed.DistBackendError: NCCL error in: /x/ProcessGroupNCCL.cpp:3384, remote process exited or "
         "there was a network error, NCCL version 2.27.5\nncclRemoteError: A call failed possibly due to a network "
         "error or a remote process exiting prematurely.\n", "exit", 1, "", "node-lost"),
        ("training\n", "exit", -9, "Out of memory: Killed process 77 (python) total-vm:99kB", "out-of-memory"),
        ("(raylet) 4 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed\n"
         "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.\n", "exit", 1, "",
         "out-of-memory"),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered\n", "exit", 1, "", "node-lost"),
        ("", "launch", None, "Ray did not start on 127.0.0.2:\nport in use", "launch"),
        ("", "launch", None, "[Errno 28] No space left on device", "disk"),
        ("/opt/python: No module named verl\n", "exit", 1, "", "launch"),
        ("Fatal Python error: Segmentation fault\n", "exit", -11, "", "bug"),
        ("", "exit", 3, "", "bug"),
        ("actor/pg_loss: nan - grad_norm:nan - all is nan\n", "exit", 3, "", "bug"),
    ],
)  # fmt: skip
def test_how_it_ended(log: str, reason: str, code: int | None, detail: str, kind: str) -> None:
    found = of(log, reason, code, detail)
    assert found.kind == kind, found
    assert found.lines
    assert found.signature.startswith(kind)


def test_what_was_lost_is_said_by_who_noticed_and_how_its_traceback_ended() -> None:
    detail = "the attempt's Ray cluster ended with code 1:\n  File a\n    call()\n  File b\nException: timed out"
    assert of("training\n", "lost", None, detail).lines[:3] == (
        detail.splitlines()[0],
        "File b",
        "Exception: timed out",
    )
    assert of("training\n", "lost", None, "").lines[0] == "a process that held the attempt died"
    broken = "RuntimeError: CUDA error: uncorrectable ECC error encountered\n"
    assert of(broken, "lost", None, "node1 was lost").lines[:2] == ("a GPU of the node failed", "node1 was lost")


def test_what_was_caught_before_a_lost_node_is_not_the_cause() -> None:
    assert of(raised("ValueError: tried again"), "lost", None, "the agent died").kind == "node-lost"
    assert of(raised("ValueError: tried again"), "preempted", 1, "it was preempted").kind == "preempted"


def test_a_stop_of_ours_is_no_preemption() -> None:
    assert of("training\n", "stopped", -15).kind != "preempted"


def test_other_places_and_other_exceptions_have_other_signatures() -> None:
    same = of(raised("ValueError: 7 is not 8 in /a/b at 0x7f12"))
    assert of(raised("ValueError: 70 is not 81 in /c/d/e at 0x99aa")).signature == same.signature
    assert of(raised("ValueError: 7 is not 8 in /a/b at 0x7f12", number=701)).signature != same.signature
    assert of(raised("TypeError: 7 is not 8 in /a/b at 0x7f12")).signature != same.signature
    assert of(raised("ValueError: 7 is less than 8 in /a/b at 0x7f12")).signature != same.signature


def test_a_users_file_is_known_by_its_name_wherever_it_lies() -> None:
    log = '  File "{}/rewards.py", line 3, in score\nValueError: no\n'
    assert of(log.format("/home/a/x")).signature == of(log.format("/tmp/run-7/003")).signature
