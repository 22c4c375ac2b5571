"""Which line of a log means what: one sign a kind of line, with the code that writes it.

Guarantees: a sign is the form of one message, with the words around the telling ones; no sign is a word that names of
metrics, files or users may hold. The line is given without colours and Ray's prefix. A sign is only looked for in the
logs and records of a run that did not end well, and one of our own sentences only where we write them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sign:
    """A form of line."""

    cause: str
    """A word of sweeper/diagnose/causes.py."""
    pattern: re.Pattern[str]
    source: str
    consequence: bool = False
    """Whether it may be what happens to others when something else fails."""
    ours: bool = False
    """Whether it is a sentence of ours, in an exit record or after `OURS` in a log: what the pattern fits is told, and
    its group `node` is the node that is meant. Where its line ends with a colon, others' words follow."""


OURS = "sweeper: "
"""Begins a line of ours in a log."""


def _sign(cause: str, pattern: str, source: str, *, consequence: bool = False) -> Sign:
    return Sign(cause, re.compile(pattern), source, consequence)


def _said(cause: str, pattern: str, source: str, *, consequence: bool = False) -> Sign:
    return Sign(cause, re.compile(pattern), f"sweeper/clusters/{source}", consequence, ours=True)


_RAISED = r"(?:^|\s)(?:[\w.]+\.)?"
"""Before the type of an exception: the line's start, or a logger's words, and its module."""

_NODE = r"(?P<node>node \S+(?: \([^)\s]*\))?)"
"""As gang/agent.py calls one, `who`."""
_SAME = r"(?=: they must be the same on all nodes of a gang)"

GANG_SIGNS = (
    # --- a launch that fails again where nothing is changed ---
    _said(
        "nodes-differ",
        _NODE + r" has (?:Python|Ray|protocol) \S+, and node \S+ \(\S*\) has \S+?" + _SAME,
        "gang/agent.py Agent.compare",
    ),
    _said(
        "gpus-missing",
        _NODE + r" has visible GPUs \S+, and node \S+ \(\S*\) has \S+?" + _SAME,
        "gang/agent.py Agent.compare",
    ),
    _said("gpus-missing", r"(?P<node>\S+) shows \d+ GPUs, and \d+ were reserved there", "gang/agent.py Agent.about"),
    _said(
        "gpus-missing",
        r"the gang is not complete after \S+ s: each node must have \d+ GPUs \(.+\)",
        "gang/await_ray.py missing",
    ),
    _said("gang-token", r"sent away, for they did not know the gang's token: .+", "gang/agent.py Agent.who_is_missing"),
    _said(
        "gang-token",
        r"(?P<node>the first node) \(\S+\) sent us away: our token is not the gang's(?=, or)"
        r"|who answers at \S+ does not know the gang's token",
        "gang/link.py join",
    ),
    _said(
        "store-unshared", r"(?P<node>\S+) cannot read \S+gang\.json: .+(?=\. Is the store on a)", "gang/node.py read"
    ),
    _said("package-missing", r"\S+: \S+ has no Ray(?=; engine\.python names)", "gang/agent.py Agent.about"),
    _said(
        "interpreter",
        r"(?:\S+: )?cannot start \S+: .+|\S+: \S+ did not say its version within \d+ s|\S+: \S+ does not work: .+",
        "gang/agent.py Agent.spawn, Agent.ask_versions, Agent.about",
    ),
    _said(
        "interpreter",
        r"Slurm job \S+ ended before anything of it ran.*?: its script says: .+(?= \(cluster\.python is)",
        "slurm/states.py exit_of",
    ),
    _said("network", r"\S+ cannot listen on its address \S+: .+", "gang/agent.py Agent.not_its_address"),
    # --- what may have its reason in a node's own log ---
    _said(
        "node-missing",
        _NODE + r" did not join within \S+ s(?= \(cluster\.join_s\))",
        "gang/agent.py Agent.who_is_missing",
        consequence=True,
    ),
    _said("node-missing", r"(?P<node>the first node) could not be reached: .+", "gang/link.py join", consequence=True),
    _said(
        "node-missing",
        r"the gang is not complete after \S+ s: \d+ of \d+ nodes are there.*",
        "gang/await_ray.py missing",
        consequence=True,
    ),
    _said(
        "store-unshared",
        r"Slurm job \S+ ended before anything of it ran.*?: its node may not see the sweep's folder",
        "slurm/states.py exit_of",
        consequence=True,
    ),
    _said(
        "ray-start",
        _NODE + r": the attempt's Ray cluster ended on \S+ with code -?\d+",
        "gang/agent.py Agent.members",
        consequence=True,
    ),
    _said(
        "ray-start",
        r"the gang's Ray cluster is not what was reserved",
        "gang/agent.py Agent.bring_ray_up",
        consequence=True,
    ),
    _said(
        "node-lost",
        _NODE + r" was lost(?: before the trainer started)?: ?.*",
        "gang/agent.py Agent.members, Agent.said_by_members; slurm/attempt.py SlurmAttempt",
        consequence=True,
    ),
    _said(
        "node-lost",
        # Where the others never reached it, it is that which is told.
        r"(?P<node>the first node)(?: \(\S+\))? left no record of its end(?!.*the first node could not be reached).*",
        "gangs.py GangAttempt",
        consequence=True,
    ),
    _said(
        "node-lost",
        r"^the attempt's Ray cluster ended(?: on \S+)? with code -?\d+",
        "gang/agent.py Agent.ray_ended",
        consequence=True,
    ),
    _said("node-lost", r"^the agent ended with code \S+ and no report", "gang/guard.py Guard.run", consequence=True),
    _said(
        "node-lost",
        r"Slurm job \S+ (?:lost a node.*|left no record: .*)",
        "slurm/states.py exit_of",
        consequence=True,
    ),
)
"""What our own nodes say of a gang that did not come together, or broke."""

SIGNS = (
    *GANG_SIGNS,
    # --- memory ---
    _sign(
        "gpu-memory",
        _RAISED + r"OutOfMemoryError: (?:CUDA|HIP|NPU) out of memory|RuntimeError: CUDA error: out of memory"
        r"|CUBLAS_STATUS_ALLOC_FAILED when calling",
        "torch c10/cuda/CUDACachingAllocator.cpp, cuBLAS",
    ),
    _sign(
        "kv-cache",
        r"ValueError: (?:No available memory for the cache blocks"
        r"|Free memory on device .* is less than desired GPU memory utilization"
        r"|To serve at least one request .* KV cache is needed"
        r"|The model's max seq len \(\d+\) is larger than the maximum number of tokens that can be stored in KV cache)",
        "vllm v1/core/kv_cache_utils.py, v1/worker/gpu_worker.py",
    ),
    _sign(
        "host-memory",
        r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)"
        r"|"
        + _RAISED
        + r"(?:OSError|MemoryError|RuntimeError): \[Errno 12\] Cannot allocate memory|^MemoryError(?::|$)",
        "torch c10/core/impl/alloc_cpu.cpp, Python",
    ),
    _sign(
        "host-memory",
        r"Task was killed due to the node running low on memory"
        r"|Workers \(tasks / actors\) killed due to memory pressure \(OOM\)"
        r"|Out of memory: Killed process \d+|oom-kill:|Memory cgroup out of memory"
        r"|slurmstepd: error: Detected \d+ oom[_-]kill event",
        "Ray's raylet, the kernel, Slurm",
    ),
    _sign(
        "shared-memory",
        r"RuntimeError: unable to (?:open|write to|mmap|allocate) .*shared memory"
        r"|It is possible that dataloader's workers are out of shared memory",
        "torch utils/data/_utils/signal_handling.py, ATen/MapAllocator.cpp",
    ),
    _sign(
        "disk-full",
        r"\[Errno (?:28|122)\]|: No space left on device|: Disk quota exceeded"
        r"|PytorchStreamWriter failed writing|inline_container\.cc.*unexpected pos",
        "the operating system; torch caffe2/serialize/inline_container.cc",
    ),
    # --- hardware, preemption ---
    _sign(
        "gpu-fault",
        r"CUDA error: (?:uncorrectable ECC error|unspecified launch failure)|GPU (?:has )?fallen off the bus|NVRM: Xid",
        "the NVIDIA driver",
    ),
    _sign(
        "gpu-kernel",
        r"CUDA error: (?:an illegal memory access was encountered|an illegal instruction was encountered"
        r"|device-side assert triggered|misaligned address)",
        "the CUDA runtime",
    ),
    _sign(
        "preempted",
        r"slurmstepd: error: .*\bDUE TO (?:PREEMPTION|TIME LIMIT)\b|\bnode (?:was|has been|is being) preempted\b"
        r"|\binstance was preempted\b",
        "Slurm, Ray's ActorDiedError, a cloud",
    ),
    # --- software ---
    _sign(
        "version-mismatch",
        r"Version mismatch: The cluster was started with:",
        "ray _private/utils.py check_version_info",
    ),
    _sign(
        "version-mismatch",
        r"ImportError: .* is required for a normal functioning of this module, but found .*=="
        r"|ImportError: .*undefined symbol: |ImportError: cannot import name '"
        r"|The NVIDIA driver on your system is too old|CUDA driver version is insufficient for CUDA runtime version"
        r"|RuntimeError: The detected CUDA version .* mismatches the version that was used to compile",
        "transformers utils/versions.py, the dynamic linker, Python, torch",
    ),
    _sign("package-missing", r"(?:^|: )No module named \S+|ModuleNotFoundError: No module named '", "Python"),
    # --- launch ---
    _sign(
        "port-clash",
        r"name: EADDRINUSE|\[Errno 98\]|: Address already in use|Ray is trying to start at .*, but is already running",
        "torch csrc/distributed/c10d/socket.cpp, the operating system, ray",
    ),
    _sign(
        "ray-start",
        r"The current node timed out during startup|Could not find any running Ray instance"
        r"|ConnectionError: .*Failed to connect to GCS",
        "ray _private/node.py, worker.py",
    ),
    _said("ray-start", r"Ray did not start on \S+(?: \(\S*\))?", "gang/agent.py Agent.run_alone, Agent.bring_ray_up"),
    # --- data and hub ---
    _sign(
        "hub-access",
        r"GatedRepoError|RepositoryNotFoundError|is not a local folder and is not a valid model identifier"
        r"|401 Client Error: Unauthorized",
        "huggingface_hub, transformers",
    ),
    _sign(
        "hub-unreachable",
        r"OSError: We couldn't connect to 'https?://\S+' to load|LocalEntryNotFoundError: |OfflineModeIsEnabled: "
        r"|HTTPSConnectionPool\(host='huggingface\.co', port=443\): Max retries exceeded",
        "transformers utils/hub.py, huggingface_hub",
    ),
    _sign(
        "tracker-access",
        r"AuthenticationError: API key verification failed|UsageError: api_key not configured",
        "wandb sdk/wandb_login.py",
    ),
    # --- what happens to others ---
    _sign(
        "crash",
        r"^Fatal Python error: (?:Segmentation fault|Bus error|Aborted|Illegal instruction)"
        r"|(?:^|\s)(?:Segmentation fault|Bus error|Aborted|Illegal instruction)\s+\(core dumped\)",
        "Python's faulthandler, a shell",
        consequence=True,
    ),
    _sign(
        "collective-timeout",
        r"Watchdog caught collective operation timeout: WorkNCCL\(",
        "torch csrc/distributed/c10d/ProcessGroupNCCL.cpp",
        consequence=True,
    ),
    _sign(
        "collective-timeout",
        r"gloo/transport/.*Timed out waiting \d+ms for (?:recv|send) operation to complete"
        r"|DistStoreError: Timed out after \d+ seconds waiting for clients"
        r"|DistStoreError: wait timeout after \d+ms|Application timeout caused pair closure",
        "gloo transport/tcp/unbound_buffer.cc; torch TCPStore",
        consequence=True,
    ),
    _sign(
        "network",
        r"NCCL error(?: in)?: .*unhandled system error|^ncclSystemError: |socketStartConnect: Connect to .* failed"
        r"|NCCL WARN (?:Bootstrap|NET/\w+) : [Nn]o (?:socket )?interface found",
        "NCCL src/misc/socket.cc, src/bootstrap.cc",
        consequence=True,
    ),
    _sign(
        "worker-lost",
        r"gloo/transport/.*Connection closed by peer|NCCL error(?: in)?: .*(?:remote process|ncclRemoteError)"
        r"|ncclRemoteError: A call failed possibly due to a network error or a remote process exiting",
        "gloo transport/tcp/pair.cc, NCCL",
        consequence=True,
    ),
    _sign(
        "node-lost",
        r"marked dead because the detector has missed too many heartbeats|The actor died because its node has died"
        r"|slurmstepd: error: .*DUE TO NODE FAILURE",
        "ray src/ray/gcs, Slurm",
        consequence=True,
    ),
    _sign(
        "worker-lost",
        r"(?:^|\.)ActorDiedError: |A worker died or was killed while executing a task by an unexpected system error",
        "ray exceptions.py",
        consequence=True,
    ),
)
