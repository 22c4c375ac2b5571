"""Where a run hangs, out of what faulthandler really writes, as the guard leaves it in a log."""

from __future__ import annotations

import subprocess
import sys

from sweeper.engines.verl.stacks import hung_at

TRAINER = """\
step:3 - actor/pg_loss:0.1

sweeper: stacks of process 901 (ray::WorkerDict.actor_rollout_update_actor):
Fatal Python error: Aborted

Thread 0x00007f0000000001 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait
  File "/venv/lib/python3.11/site-packages/tqdm/_monitor.py", line 60 in run

Current thread 0x00007f0000000002 (most recent call first):
  File "/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 4811 in barrier
  File "/venv/lib/python3.11/site-packages/verl/workers/engine/fsdp/transformer_impl.py", line 892 in save_checkpoint
  File "/venv/lib/python3.11/site-packages/ray/_private/worker.py", line 1070 in main_loop

Extension modules: numpy._core._multiarray_umath (total: 1)

sweeper: stacks of process 902 (ray::WorkerDict.actor_rollout_update_actor):
Fatal Python error: Aborted

Current thread 0x00007f0000000002 (most recent call first):
  File "/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 4811 in barrier

sweeper: stacks of process 77 (/venv/bin/python -u -m verl.trainer.main_ppo --config-name=trainer):
Fatal Python error: Aborted

Current thread 0x00007f0000000009 (most recent call first):
  File "/venv/lib/python3.11/site-packages/ray/_private/worker.py", line 2961 in get_objects
  File "/venv/lib/python3.11/site-packages/ray/_private/worker.py", line 3009 in get
"""


def test_each_process_with_its_innermost_frame_those_that_only_wait_last() -> None:
    barrier = "torch/distributed/distributed_c10d.py:4811 in barrier"
    assert hung_at(TRAINER) == [
        f"ray::WorkerDict.actor_rollout_update_actor (pid 901) and 1 more: {barrier}",
        "verl.trainer.main_ppo (pid 77): ray/_private/worker.py:2961 in get_objects",
    ]


def test_lines_that_ray_prefixed_are_told_apart() -> None:
    log = "\n".join(
        [
            "\x1b[36m(AgentLoop pid=5)\x1b[0m Current thread 0x00007f01 (most recent call first):",
            "(Reward pid=6) Thread 0x00007f02 [worker] (most recent call first):",
            '\x1b[36m(AgentLoop pid=5)\x1b[0m   File "/home/u/agent.py", line 3 in step',
            '(Reward pid=6)   File "/home/u/reward.py", line 9 in score',
        ]
    )
    assert hung_at(log) == ["AgentLoop pid=5: /home/u/agent.py:3 in step", "Reward pid=6: /home/u/reward.py:9 in score"]


def test_a_dump_of_this_python_is_read() -> None:
    script = (
        "import faulthandler, threading, time\n"
        "def sleeper():\n    time.sleep(60)\n"
        "threading.Thread(target=sleeper, daemon=True).start()\n"
        "def score():\n    faulthandler.dump_traceback()\n"
        "score()\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    (line,) = hung_at(ran.stderr)
    assert line == "a process: <string>:6 in score"


def test_nothing_to_tell() -> None:
    assert hung_at("") == []
    assert hung_at('Traceback (most recent call last):\n  File "a.py", line 3, in f\nValueError: no\n') == []
    cut = hung_at(TRAINER[: TRAINER.index(", line 4811")])
    assert all("WorkerDict" in line for line in cut)


def test_a_thousand_processes_are_a_dozen_lines() -> None:
    one = "sweeper: stacks of process {0} (x):\nCurrent thread 0x1 (most recent call first):\n"
    one += '  File "/u/{0}.py", line 1 in f\n'
    assert len(hung_at("".join(one.format(n) for n in range(1000)))) == 12
