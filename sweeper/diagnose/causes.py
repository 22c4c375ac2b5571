"""The words for what can have happened to a run, what each means and what helps whatever the engine.

Guarantees: a cause that is found anywhere in sweeper/diagnose is here; what only an engine's own keys can do comes from
`Engine.remedies`.
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
        ("sweeper doctor   the nodes' reachability",),
    ),
    "worker-lost": Cause(
        "a process of the run was killed or crashed without a word of its own",
        ("dmesg -T | grep -i 'killed process'   on the node: the kernel when memory runs out", AGAIN),
    ),
    "node-lost": Cause("a node, or what held it for this run, was lost", ("sweeper doctor", AGAIN)),
    "network": Cause(
        "processes of the run could not talk to each other: by a wrong network interface, a firewall, or because one "
        "of them was gone",
        (
            "sweeper doctor   the nodes' reachability",
            "engine.env.NCCL_SOCKET_IFNAME=INTERFACE   one that all nodes have: ip -br addr",
            "engine.env.NCCL_DEBUG=INFO   says more",
            AGAIN,
        ),
    ),
    "crash": Cause(
        "a process of the run crashed: a fault in compiled code, of a library or a driver",
        (
            "engine.env.PYTHONFAULTHANDLER=1   the log then shows where",
            "sweeper doctor   the versions on every node",
            AGAIN,
        ),
    ),
    "gpu-kernel": Cause(
        "a kernel did on a GPU what it may not; the traceback shows only where that was noticed",
        (
            "engine.env.CUDA_LAUNCH_BLOCKING=1   the traceback then shows which kernel",
            "sweeper doctor   the versions on every node",
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
    "ray-start": Cause("the run's Ray cluster did not start", ("sweeper doctor", AGAIN)),
    "stalled": Cause("the run made no step any more", (AGAIN,)),
    # --- software ---
    "version-mismatch": Cause(
        "versions that do not fit each other are installed", ("sweeper doctor   the versions on every node",)
    ),
    "package-missing": Cause(
        "the engine's interpreter lacks a package",
        ("sweeper doctor", "engine.python=...   the interpreter that has it"),
    ),
    # --- data, model, reward ---
    "data-schema": Cause(
        "the rows of the data are not as the trainer reads them",
        ("sweeper plan ...   checks the rows; data.prompt_key and data.reward_fn_key name the columns",),
    ),
    "data-missing": Cause(
        "a file of the data or the model is not there, or cannot be read",
        ("ls -l PATH   on the node; sweeper doctor looks on every node",),
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
    "kl-blow-up": Cause("the updates threw the policy far from itself"),
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
    "launch": Cause("the run could not be started", (AGAIN,)),
    "bug": Cause("the trainer raised an error", ("bash command.sh   in the attempt's folder runs it by hand",)),
    "unknown": Cause("the run ended early and its log does not say why", ("read the log's end",)),
}
