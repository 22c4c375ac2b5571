"""The words for what can have happened to a run, what each means and what helps whatever the engine.

Guarantees: a cause that is found anywhere in sweeper/diagnose is here; what only an engine's own keys can do comes from
`Engine.remedies`. In what to change `{sweep}` stands for the sweep as after `sweeper resume`, `{doctor}` for
`sweeper doctor` of its request, `{log}` for the log of the node that is meant, without which such a line is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that can have happened."""

    what: str
    """In one sentence, for people."""
    change: tuple[str, ...] = ()
    """Commands, overrides or what to look at, likeliest first; after those of the engine."""


AGAIN = "sweeper resume {sweep}"
"""Where the same run may go well when what was around it is mended."""
LAST_WORDS = "tail {log}   in the attempt's folder: what that node said last"

CAUSES: Mapping[str, Cause] = {
    # --- memory, disk ---
    "gpu-memory": Cause("a GPU ran out of memory"),
    "host-memory": Cause("the machine ran out of memory", ("free -g   on the node: what else runs there",)),
    "kv-cache": Cause("the rollout's engine has no room for its KV cache on the GPU"),
    "shared-memory": Cause(
        "the machine's shared memory (/dev/shm) is too small",
        ("docker run --shm-size=16g ..., or --ipc=host; df -h /dev/shm shows it",),
    ),
    "disk-full": Cause(
        "the disk is full, or a quota is reached", ("df -h and df -i of the store", "sweeper gc {sweep} --yes", AGAIN)
    ),
    # --- processes and nodes ---
    "collective-timeout": Cause(
        "a rank waited for others in a collective until its time was up: one of them hangs, is slow, or cannot be "
        "reached",
        ("{doctor}   the nodes' reachability",),
    ),
    "worker-lost": Cause(
        "a process of the run was killed or crashed without a word of its own",
        ("dmesg -T | grep -i 'killed process'   on the node: the kernel when memory runs out", AGAIN),
    ),
    "node-lost": Cause("a node, or what held it for this run, was lost", ("{doctor}", LAST_WORDS, AGAIN)),
    "network": Cause(
        "processes of the run could not talk to each other: by a wrong network interface, a firewall, or because one "
        "of them was gone",
        (
            "{doctor}   the nodes' reachability",
            "engine.env.NCCL_SOCKET_IFNAME=INTERFACE   one that all nodes have: ip -br addr",
            "engine.env.NCCL_DEBUG=INFO   says more",
            AGAIN,
        ),
    ),
    "crash": Cause(
        "a process of the run crashed: a fault in compiled code, of a library or a driver",
        (
            "engine.env.PYTHONFAULTHANDLER=1   the log then shows where",
            "{doctor}   the versions on every node",
            AGAIN,
        ),
    ),
    "gpu-kernel": Cause(
        "a kernel did on a GPU what it may not; the traceback shows only where that was noticed",
        (
            "engine.env.CUDA_LAUNCH_BLOCKING=1   the traceback then shows which kernel",
            "{doctor}   the versions on every node",
            "nvidia-smi -q -d ECC,PAGE_RETIREMENT   on the node, where it is always the same GPU",
        ),
    ),
    "gpu-fault": Cause(
        "a GPU failed", ("nvidia-smi -q -d ECC,PAGE_RETIREMENT   on the node; leave the node out", AGAIN)
    ),
    "preempted": Cause("the run was ended from outside: by a scheduler, or by hand", (AGAIN,)),
    "port-clash": Cause(
        "a port that the run needs was in use", ("ss -ltnp 'sport = :PORT'   on the node: who listens there", AGAIN)
    ),
    "ray-start": Cause("the run's Ray cluster did not start", ("{doctor}", LAST_WORDS, AGAIN)),
    "stalled": Cause("the run made no step any more", (AGAIN,)),
    # --- the nodes of a gang: a launch that fails again until something is changed ---
    "nodes-differ": Cause(
        "the nodes of the gang do not run the same software",
        (
            "{doctor}   the versions on every node",
            "engine.python=...   an interpreter that is the same environment on all nodes",
            AGAIN,
        ),
    ),
    "node-missing": Cause(
        "a node of the gang and its first one did not come together",
        (
            "{doctor}   whether each node answers, sees the store and reaches the others",
            LAST_WORDS,
            "cluster.join_s=...   more seconds, where a node is only slow to start",
            AGAIN,
        ),
    ),
    "gang-token": Cause(
        "a process without the gang's secret answered as its node, or asked to join",
        (
            "pgrep -af guard.py   on the nodes: what still runs there of another attempt, or twice of this one",
            "keep SWEEPER_GANG_TOKEN in the environment: no wrapper, prolog or container may drop it on a node",
            "{doctor}   whether each node is who its address says",
            AGAIN,
        ),
    ),
    "gpus-missing": Cause(
        "a node shows another number of GPUs than is reserved on it",
        (
            "nvidia-smi -L; echo $CUDA_VISIBLE_DEVICES   on the node, as its part is started there",
            "{doctor}   the GPUs of every node, and who uses them",
            "cluster.gpus_per_node=...   as many as each node has",
            AGAIN,
        ),
    ),
    "store-unshared": Cause(
        "a node does not see the sweep's folder",
        (
            "{doctor}   whether the store is shared",
            "store=...   a folder on a filesystem that all nodes have under the same path",
        ),
    ),
    "interpreter": Cause(
        "the engine's interpreter, or the gang's, could not be started on a node",
        (
            "{doctor}",
            "engine.python=...   one that is there, under the same path, on all nodes",
            "cluster.python=...   likewise, where it is that which is named: any Python from 3.9",
            AGAIN,
        ),
    ),
    # --- software ---
    "version-mismatch": Cause(
        "versions that do not fit each other are installed", ("{doctor}   the versions on every node",)
    ),
    "package-missing": Cause(
        "the engine's interpreter lacks a package",
        ("{doctor}", "engine.python=...   the interpreter that has it"),
    ),
    # --- data, model, reward ---
    "data-schema": Cause(
        "the rows of the data are not as the trainer reads them",
        ("sweeper plan ...   checks the rows; data.prompt_key and data.reward_fn_key name the columns",),
    ),
    "data-missing": Cause(
        "a file of the data or the model is not there, or cannot be read",
        ("ls -l PATH   on the node", "{doctor}   looks on every node"),
    ),
    "hub-access": Cause(
        "the model hub refused, or has no such model",
        ("export HF_TOKEN=...   it is passed on by name (engine.inherit)", "a folder with the model as its path"),
    ),
    "hub-unreachable": Cause(
        "the model hub could not be reached from the node, and its cache has not what was asked for",
        (
            "curl -sI https://huggingface.co   on the node; engine.inherit=[HTTPS_PROXY,HF_ENDPOINT] passes a way on",
            "a folder with the model as its path",
            AGAIN,
        ),
    ),
    "tracker-access": Cause(
        "W&B refused the key, or was given none",
        ("wandb login --verify   here; export WANDB_API_KEY=...   it is passed on by name (engine.inherit)", AGAIN),
    ),
    "reward-raises": Cause(
        "the reward function raised", ("mend it: a response may hold anything; return 0 where it cannot be judged",)
    ),
    # --- training ---
    "nan": Cause(
        "the training left the numbers: a loss, gradient, entropy, KL or reward is NaN or infinite",
        ("sweeper plot {sweep}   where the gradient's norm or the KL began to grow",),
    ),
    "kl-blow-up": Cause("the updates threw the policy far from itself, or it left its reference"),
    "entropy-collapse": Cause("the policy says one thing only: it no longer explores"),
    "entropy-blow-up": Cause("the policy says anything: its entropy has grown many times"),
    "no-reward-variance": Cause(
        "all responses of a step were rewarded alike, so there was nothing to learn from",
        ("look at the reward: does it ever give another value for these prompts?",),
    ),
    "length-saturation": Cause("nearly all responses are cut at the length limit"),
    "slow-rollout": Cause("most of the time goes into generating responses, or it has become slower"),
    "straggler": Cause("GPUs wait for the slowest response or rank"),
    # --- anything else ---
    "refused-config": Cause("the trainer refused its configuration", ("sweeper plan ...   with the same overrides",)),
    "launch": Cause("the run could not be started", ("{doctor}", AGAIN)),
    "bug": Cause("the trainer raised an error", ("bash command.sh   in the attempt's folder runs it by hand",)),
    "unknown": Cause("the run ended early and its log does not say why", ("read the log's end",)),
}
