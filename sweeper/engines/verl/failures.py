"""What kind of failure ended a verl attempt, and what tells it from others.

Guarantees: the kind comes from the exception that ended the run (its type, its place, the form of its message), from
lines that only one thing writes, and from how the cluster saw it end; never from a word that happens to be in a log
(`nan` in the name of a metric). The signature is the same for the same failure with other numbers, addresses, paths,
ranks, processes, steps and folders, and another for another exception or place. Pure text.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from itertools import chain

from sweeper.engines import base
from sweeper.engines.base import Failure
from sweeper.engines.verl import root_cause
from sweeper.engines.verl.root_cause import CONSEQUENCE, Raised

_MOST_LINES = root_cause.MOST_LINES

# --- lines that say it by themselves, in the log or in what the cluster reports ---------------------------------------

_PREEMPTED = re.compile(
    r"\bnode (?:was|has been|is being) preempted\b"  # Ray's ActorDiedError
    r"|slurmstepd: error: .*\bDUE TO PREEMPTION\b"
    r"|\bspot (?:instance|VM)\b.*\b(?:interrupt|reclaim|terminat|preempt)"
    r"|\binstance was preempted\b",
    re.IGNORECASE,
)
_HOST_MEMORY = re.compile(
    r"Task was killed due to the node running low on memory"  # ray.exceptions.OutOfMemoryError
    r"|Workers \(tasks / actors\) killed due to memory pressure \(OOM\)"  # raylet
    r"|Out of memory: Killed process \d+|oom-kill:|Memory cgroup out of memory"  # the kernel
    r"|slurmstepd: error: Detected \d+ oom[_-]kill event"
)
_HARDWARE = re.compile(
    r"CUDA error: (?:uncorrectable ECC error|unspecified launch failure|device-side hardware)"
    r"|GPU (?:has )?fallen off the bus|NVRM: Xid|no CUDA-capable device is detected|nvidia-smi has failed"
)
_NO_INTERPRETER = re.compile(r"^(?:\S*python\S*: )?No module named |^bash: .*: command not found")

# --- an exception's type and message ----------------------------------------------------------------------------------

_GPU_MEMORY = re.compile(
    r"^(?:CUDA|HIP|MPS backend|NPU) out of memory|^CUDA error: out of memory"
    r"|^CUBLAS_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED when calling"
    # vLLM, while it sizes its cache
    r"|^No available memory for the cache blocks"
    r"|^Free memory on device .* is less than desired GPU memory utilization"
    r"|^To serve at least one request .* KV cache is needed"
)
_CPU_MEMORY = re.compile(r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)|\[Errno 12\]")
_DISK = re.compile(
    r"\[Errno (?:28|122)\]|No space left on device|Disk quota exceeded"
    r"|inline_container\.cc.*unexpected pos|PytorchStreamWriter failed writing|basic_ios::clear: iostream"
)
_NAN = re.compile(
    r"^probability tensor contains either `inf`, `nan` or element < 0"  # torch.multinomial
    r"|^Function '\w+' returned nan values in its \d+th output"  # autograd's anomaly mode
    r"|^Out of range float values are not JSON compliant"  # a NaN log-prob on its way out of a server
    r"|to satisfy the constraint .* but found invalid values:"  # torch.distributions
    r"|^(?:found )?(?:NaN|Inf)(?:/(?:NaN|Inf))? (?:in|found in) (?:local )?grad"  # Megatron
    r"|^(?:the )?(?:\w+ )?(?:loss|gradients?|grad(?:ient)? norm|logits|log_?probs?|rewards?|advantages?|values?)"
    r" (?:is|are|was|were|became|contains?|has|have) (?:nan|inf|not finite|non-finite)\b",
    re.IGNORECASE,
)
_BUSY_PORT = re.compile(r"\[Errno 98\]|^Address already in use|EADDRINUSE")
_NO_RAY = re.compile(
    r"^Could not find any running Ray instance|^Failed to connect to GCS|^ray client connection timeout", re.IGNORECASE
)
_DATA_TYPES = frozenset(
    {"FileNotFoundError", "IsADirectoryError", "ArrowInvalid", "ArrowTypeError", "ArrowKeyError", "TemplateError",
     "TemplateSyntaxError", "UndefinedError", "UnicodeDecodeError", "DatasetGenerationError", "DataFilesNotFoundError",
     "DatasetNotFoundError", "EntryNotFoundError", "LocalEntryNotFoundError", "RepositoryNotFoundError"}
)  # fmt: skip
_DATA_PLACES = re.compile(
    r"/verl/utils/(?:dataset/|tokenizer|chat_template|reward_score/__init__)"
    r"|site-packages/(?:datasets|pyarrow|jinja2|tokenizers)/|/transformers/tokenization_\w+\.py"
    r"|/transformers/utils/chat_template_utils\.py"
)
_REWARD_PLACES = re.compile(r"/verl/(?:experimental/reward_loop|workers/reward_manager|utils/reward_score)/")
_NO_FILE = re.compile(r"^Error no file named |^\S+ is not a local folder and is not a valid model identifier")
"""How transformers says that a model's files are not there (an OSError)."""

_TERMINATED = frozenset({-signal.SIGTERM, signal.SIGTERM, 128 + signal.SIGTERM})
"""Killed by the signal; by the handler of Ray's driver, which exits with its number (ray/_private/worker.py:1670); as a
shell says it."""
_KILLED = frozenset({-signal.SIGKILL, 128 + signal.SIGKILL})


def classify(log: str, reason: str, code: int | None, detail: str) -> Failure:
    """Kind, signature and the lines that say why; see engines.base.Engine.failure."""
    raised, _, plain = root_cause.read(log)
    cause = root_cause.cause_of(raised)
    own = cause if cause is not None and not CONSEQUENCE.search(cause.text) else None
    report = f"{log}\n{detail}"
    reasons = chain(
        _named(report, own, reason), _by_end(raised, plain, own, reason, code, detail, root_cause.crashed(log))
    )
    kind, told = next(reasons)
    if kind == "launch" and _DISK.search(detail):
        kind = "disk"
    lines = [*([told] if told else []), *_detail(detail), *root_cause.find(log)]
    if not lines:
        lines = [f"the trainer ended with code {code} and wrote nothing"]
    signature = _signature(kind, own, plain, reason, code, detail)
    return Failure(kind, signature, tuple(dict.fromkeys(lines))[:_MOST_LINES], _told(own))


def _told(own: Raised | None) -> base.Raised | None:
    if own is None:
        return None
    files = [file for file, _, _ in own.frames]
    judged = any(_REWARD_PLACES.search(f) for f in files) or any(f == "compute_score" for _, _, f in own.frames)
    read = any(_DATA_PLACES.search(f) for f in files)
    place = root_cause.shown(own.place) if own.place else ""
    part = "reward" if judged else "data" if read else ""
    return base.Raised(own.type.rsplit(".", 1)[-1], own.message, place, own.at + 1, part)


def _named(report: str, own: Raised | None, reason: str) -> Iterator[tuple[str, str]]:
    """Kinds that something in the log names, surest first, each with a line for what the log itself does not say."""
    if reason == "preempted":
        yield "preempted", ""
    if _PREEMPTED.search(report):
        yield "preempted", "the node was preempted"
    # What the trainer said is of no weight once what held the attempt was gone: it may have been caught before.
    if own is not None and reason != "lost" and (kind := _of_exception(own)):
        yield kind, ""
    if _HOST_MEMORY.search(report):
        yield "out-of-memory", "the machine ran out of memory"
    if _HARDWARE.search(report):
        yield "node-lost", "a GPU of the node failed"


def _by_end(
    raised: list[Raised],
    plain: list[str],
    own: Raised | None,
    reason: str,
    code: int | None,
    detail: str,
    crashed: bool,
) -> Iterator[tuple[str, str]]:
    """Kinds by how it ended, where nothing in the log names one."""
    if reason == "launch":
        yield "launch", ""
    if reason == "lost":
        # `detail` says which node, and why, where anybody noticed.
        yield "node-lost", "" if detail.strip() else "a process that held the attempt died"
    if own is not None:
        yield "bug", ""
    if reason == "exit" and code in _TERMINATED:
        yield "preempted", f"the trainer was terminated from outside (code {code})"
    if raised and not crashed:
        yield "node-lost", ""  # only what happens to others when a process is gone
    if reason == "exit" and code in _KILLED:
        yield "node-lost", "the trainer was killed without a word of its own"
    if any(_NO_INTERPRETER.match(line) for line in plain):
        yield "launch", ""
    yield "bug", ""


def _of_exception(cause: Raised) -> str:
    """The kind that an exception names by itself; empty: it is only an exception."""
    name, message = cause.type.rsplit(".", 1)[-1], cause.message
    place = cause.place
    if name in ("OutOfMemoryError", "MemoryError") or _GPU_MEMORY.search(message) or _CPU_MEMORY.search(message):
        return "out-of-memory"
    if _DISK.search(message):
        return "disk"
    if name == "FloatingPointError" or _NAN.search(message):
        return "nan"
    if _BUSY_PORT.search(message) or _NO_RAY.search(message):
        return "launch"
    if name in _DATA_TYPES or _NO_FILE.search(message) or (place is not None and _DATA_PLACES.search(place[0])):
        return "data"
    return ""


def _detail(detail: str) -> list[str]:
    """What it says and, below a traceback, how that ended."""
    lines = [line.strip() for line in detail.splitlines() if line.strip()]
    return lines if len(lines) <= 3 else [lines[0], *lines[-2:]]


# --- signature --------------------------------------------------------------------------------------------------------

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")
_PATH = re.compile(r"(?:\b\w+://)?(?<![\w/])~?/[\w.@+=%~-]+(?:/[\w.@+=%~-]*)*")
_NUMBERED = re.compile(r"[\w.+:@-]*\d[\w.+:@%-]*")
_LONGEST = 160


def _signature(kind: str, own: Raised | None, plain: list[str], reason: str, code: int | None, detail: str) -> str:
    if kind in ("preempted", "node-lost"):
        return kind  # where it struck is chance
    if own is not None:
        name = own.type.rsplit(".", 1)[-1]
        return f"{kind}: {name}{_at(own)}: {_blurred(own.message)}".rstrip(": ")
    if kind == "out-of-memory":
        return f"{kind}: machine"
    said = (_detail(detail) or plain[-1:] or [f"{reason} {code}"])[0]
    return f"{kind}: {_blurred(said)}"


def _at(cause: Raised) -> str:
    """` at FILE:LINE`: the file inside its package, or only its name, since the folder of a user's file may move."""
    if (place := cause.place) is None:
        return ""
    file, line, function = place
    inside = re.search(r"(?:site|dist)-packages/(.+)$", file)
    shown = inside[1] if inside else file.rpartition("/")[2]
    return f" at {shown}:{line}" + (f" in {function}" if function else "")


def _blurred(message: str) -> str:
    """The message's words; what is quoted, a path or holds a digit is left out, for it is of one run."""
    text = _NUMBERED.sub("#", _PATH.sub("<path>", _QUOTED.sub("<text>", message)))
    text = re.sub(r"#(?:[\s,;x×*()\[\]-]+#)+", "#", text)  # as many numbers as there happen to be
    return " ".join(text.split())[:_LONGEST]
