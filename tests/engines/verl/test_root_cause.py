"""Logs of real verl runs with planted faults: the first lines must name what was planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.engines.verl.root_cause import MOST_LINES, find

LOGS = Path(__file__).parent / "logs"

PLANTED = {
    "reward_raises": (
        "cannot parse the answer '2' against '12'",
        "at /home/user/task/reward_raises.py:8 in compute_score",
    ),
    "reward_raises_in_validation": (
        "ZeroDivisionError: reward of a broken function",
        "at /home/user/task/reward.py:6 in compute_score",
    ),
    "worker_killed": ("a worker process ended without a word of its own: WorkerDict, pid 23378", "killed"),
    "weights_missing": ("no file named model.safetensors", "/home/user/task/no-weights"),
    "disk_full": ("the disk is full", "save_checkpoint"),
    "unknown_key": ("Could not override 'actor_rollout_ref.actor.nope'", "To append to your config use +"),
    "unknown_loss": ("Unsupported loss mode: nope", "core_algos.py:82 in get_policy_loss_fn"),
    "unknown_rollout": ("Rollout nope with mode async not found", "verl/workers/rollout/base.py"),
    "sequence_too_long": (
        "max_token_len must be greater than the sequence length",
        "verl/utils/seqlen_balancing.py:384",
    ),
    "no_micro_batch": ("FSDPActorConfig", "Please set at least one of 'actor.ppo_micro_batch_size'"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_planted_fault_comes_first(name: str) -> None:
    lines = find((LOGS / f"{name}.txt").read_text(encoding="utf-8"))
    first, also = PLANTED[name]
    assert first in lines[0]
    assert also in "\n".join(lines)
    assert len(lines) <= MOST_LINES
    assert not any("RayTaskError" in line or "\x1b" in line or "pid=" in line for line in lines)


def test_every_log_has_a_planted_fault() -> None:
    assert {p.stem for p in LOGS.glob("*.txt")} == set(PLANTED)


def test_a_swallowed_error_that_did_no_harm_is_not_the_cause() -> None:
    log = (LOGS / "weights_missing.txt").read_text(encoding="utf-8")
    harmless = "(Worker pid=7) Traceback (most recent call last):\n(Worker pid=7) ValueError: tried again later\n"
    lines = find(harmless + log)
    assert "model.safetensors" in lines[0]


def test_lines_of_two_workers_may_mix() -> None:
    log = "\n".join(
        [
            "(A pid=1) Traceback (most recent call last):",
            "(B pid=2) Traceback (most recent call last):",
            '(A pid=1)   File "/home/user/a.py", line 3, in score',
            '(B pid=2)   File "/home/user/b.py", line 9, in load',
            "(B pid=2) KeyError: 'answer'",
            "(A pid=1) ValueError: no number",
        ]
    )
    assert find(log)[:2] == ["ValueError: no number", "  at /home/user/a.py:3 in score"]


def test_memory_of_a_gpu_is_explained() -> None:
    log = (
        '  File "/venv/lib/python3.11/site-packages/verl/workers/engine/fsdp/transformer_impl.py", line 700, in step\n'
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.11 GiB in total"
    )
    lines = find(log)
    assert lines[0].startswith("the GPU ran out of memory: smaller micro-batches")
    assert "Tried to allocate 2.00 GiB" in lines[1]
    assert lines[2] == "  at verl/workers/engine/fsdp/transformer_impl.py:700 in step"


@pytest.mark.parametrize(
    "line",
    ["OSError: [Errno 28] No space left on device: '/runs/s/checkpoints'", "OSError: [Errno 122] Disk quota exceeded"],
)
def test_a_full_disk_is_explained(line: str) -> None:
    assert find(line)[0].startswith("the disk is full")


def test_a_missing_package_without_a_traceback() -> None:
    assert find("/opt/python: No module named verl.trainer") == ["/opt/python: No module named verl.trainer"]


def test_a_log_that_says_nothing_gives_its_end() -> None:
    assert find("one\ntwo\n\nthree\nfour\n") == ["two", "three", "four"]
    assert find("") == []
