"""Why a verl run failed: the user's real error first, out of a log that repeats, wraps and interleaves it.

Guarantees: at most a dozen lines, empty only for a log in which nothing looks like an error; pure text, so that it also
works on a log from another machine; seconds at most for the tail that a controller hands over.

verl and Ray make the cause hard to see. A line of a worker is prefixed with its actor and process, and lines of several
workers mix. An exception crosses processes as `RayTaskError(X)`, whose text holds the remote traceback. A reward that
raises is logged and swallowed by the agent loop, and the run ends later, elsewhere, with another error. A worker
that is killed shows up as somebody else's `ActorDiedError`. So the log is split by process, every exception is
collected with its frames, consequences are told from causes, and equal ones are counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

MOST_LINES = 12
MOST_CHARACTERS = 500
"""Of one line: an exception may print a whole batch."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(r"^\((?P<who>[\w.:<>-]*) ?(?P<process>pid=\d+(?:, ip=[\d.]+)?)\) ?")
_RAYLET = re.compile(r"^\((raylet|autoscaler)[^)]*\) ?")
_FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+)(?:, in (?P<function>\S+))?')
_RAISED = re.compile(
    # NCCL's own name of what went wrong comes below the exception that it is the message of.
    r"^(?!nccl(?:System|Remote)Error: )"
    r"(?P<type>(?:[A-Za-z_]\w*\.)*[A-Za-z_]*(?:Error|Exception|Exit|Interrupt|NotFound|Unavailable|Invalid))"
    r"(?:: (?P<message>.*))?$"
)
_REMOTE = re.compile(r"^(?:ray\.exceptions\.)?RayTaskError(?:\([\w.]+\))?:")
_LOGGED = re.compile(
    r"^Training Progress|^(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)[: ]|^\d{4}-\d\d-\d\d |^Error executing job"
)
_UNDERLINE = re.compile(r"^\s*[\^~]+\s*$")
_NOT_THEIRS = re.compile(r"site-packages/|/lib/python3[\d.]*/|^<|/sweeper/engines/verl/cpu/")
VERL = re.compile(r"site-packages/(verl/.*)$")

CONSEQUENCE = re.compile(
    r"ActorDiedError|ActorUnavailableError|WorkerCrashedError|GetTimeoutError|OwnerDiedError|ObjectLostError|CancelledError"
    r"|terminal groups with no materializable|Aborted groups|BrokenPipeError|ConnectionResetError|EOFError"
    r"|DistBackendError|Connection closed by peer|KeyboardInterrupt|SystemExit|TCPStore"
    # transfer_queue/client.py:961, of a batch of which no response came back: the reward function raised in each.
    r"|Received an empty list as keys"
)
"""What happens to others when something else fails: never the cause while there is another candidate."""
_HARMLESS = re.compile(
    r"UserWarning|FutureWarning|DeprecationWarning|Exception ignored in|is not available: ModuleNotFoundError"
)


CRASHED = re.compile(r"^(?:Fatal Python error|Segmentation fault|Bus error)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sign:
    """Something that names a cause by itself, wherever it stands."""

    pattern: re.Pattern[str]
    says: str
    """What it means, in one line; empty: the line itself says it."""


_SIGNS = (
    Sign(
        re.compile(r"OutOfMemoryError|CUDA out of memory|HIP out of memory"),
        "the GPU ran out of memory: smaller micro-batches, actor.fsdp_config.optimizer_offload=true, or a lower "
        "rollout.gpu_memory_utilization",
    ),
    Sign(
        re.compile(r"No space left on device|Errno 28\b|Disk quota exceeded"),
        "the disk is full: free space where the sweep's store is, or fewer checkpoints (trainer.save_freq, "
        "trainer.max_actor_ckpt_to_keep)",
    ),
    Sign(
        # torch buffers what it writes, and so it reports that the file is short and not why.
        re.compile(
            r"inline_container\.cc.*unexpected pos|PytorchStreamWriter failed writing|basic_ios::clear: iostream"
        ),
        "a checkpoint could not be written: the disk is full, or a quota or size limit is reached",
    ),
    Sign(
        re.compile(r"OutOfMemoryError: Task was killed|low on memory|running low on memory|memory used by this worker"),
        "the machine ran out of memory: fewer trials at once (max_concurrent) or smaller batches",
    ),
    Sign(re.compile(r"No space left on device.*/dev/shm|/dev/shm.*(?:full|too small|not enough)"), "/dev/shm is full"),
    Sign(CRASHED, "a process crashed"),
    Sign(re.compile(r"CUDA error: |NCCL error|nvidia-smi has failed|no CUDA-capable device"), ""),
)
_PLAIN = re.compile(
    r"^(?:Could not |Key '.*' is not in struct|Error merging|Missing mandatory value|In '.*': |Cannot find primary"
    r"|Primary config|.*: No module named |bash: |/bin/\w+: |sweeper: |fork server: .* is not preloaded)"
)
"""Errors that come without a traceback."""


@dataclass(slots=True)
class Raised:
    """One exception that was printed."""

    type: str
    message: str
    frames: list[tuple[str, int, str]]
    who: str
    at: int
    """Line of the log."""
    more: list[str] = field(default_factory=list)
    """Lines of a message that has several."""

    @property
    def text(self) -> str:
        """As Python prints it."""
        return f"{self.type.rsplit('.', 1)[-1]}: {self.message}" if self.message else self.type

    @property
    def kind(self) -> tuple[str, str, tuple[str, int] | None]:
        """Equal for what is the same error on other data: numbers and quoted values are left out of the message."""
        place = self.place
        blurred = re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "", self.message)
        return self.type, blurred, place[:2] if place else None

    @property
    def place(self) -> tuple[str, int, str] | None:
        """The innermost frame of the user's own code, else of verl's, else of any."""
        inward = list(reversed(self.frames))
        own = [frame for frame in inward if not _NOT_THEIRS.search(frame[0])]
        verls = [frame for frame in inward if VERL.search(frame[0])]
        return next(iter([*own, *verls, *inward]), None)


def find(log: str) -> list[str]:
    """The lines that say why, most telling first; at most a dozen."""
    raised, signs, plain = read(log)
    cause = cause_of(raised)
    lines: list[str] = []
    if cause is not None:
        lines += _tell(cause, raised)
    for sign, line in signs:
        if not sign.says or sign.says in lines:
            continue
        if cause is None or CONSEQUENCE.search(cause.text):
            lines = [sign.says, line, *lines]
        elif sign.pattern.search(cause.text):
            lines.insert(0, sign.says)
    if cause is None or CONSEQUENCE.search(cause.text):
        lines = [*plain[-3:], *lines]
    if not lines:
        lines = [line for line in log.splitlines() if line.strip()][-3:]
    return [_short(line) for line in dict.fromkeys(lines)][:MOST_LINES]


def crashed(log: str) -> bool:
    """Whether a process of it was ended by a fault of its own code."""
    return any(sign.pattern is CRASHED for sign, _ in read(log)[1])


def read(log: str) -> tuple[list[Raised], list[tuple[Sign, str]], list[str]]:
    """Every exception in the order it was printed; signs with their lines; errors without a traceback."""
    raised: list[Raised] = []
    frames: dict[str, list[tuple[str, int, str]]] = {}
    last: dict[str, Raised | None] = {}
    signs: list[tuple[Sign, str]] = []
    plain: list[str] = []
    for number, raw in enumerate(log.splitlines()):
        line = _ANSI.sub("", raw).rstrip()
        prefix = _PREFIX.match(line) or _RAYLET.match(line)
        stream = prefix.group(0) if prefix else ""
        who = prefix.groupdict().get("who", "raylet") if prefix else ""
        text = line[prefix.end() :] if prefix else line
        if not text or _HARMLESS.search(text):
            last[stream] = None
            continue
        signs += [(sign, text) for sign in _SIGNS if sign.pattern.search(text)]
        if frame := _FRAME.match(text):
            frames.setdefault(stream, []).append((frame["file"], int(frame["line"]), frame["function"] or ""))
            last[stream] = None
        elif text.startswith("Traceback (most recent call last)") or _REMOTE.match(text):
            # After `RayTaskError(X): ray::actor.method()` comes the remote traceback: its frames, not those so far.
            frames[stream] = []
            last[stream] = None
        elif found := _RAISED.match(text):
            event = Raised(found["type"], found["message"] or "", frames.pop(stream, []), who or "", number)
            raised.append(event)
            last[stream] = event
        elif _LOGGED.match(text):
            last[stream] = None
        elif (event_now := last.get(stream)) is not None and not _UNDERLINE.match(text) and len(event_now.more) < 8:
            event_now.more.append(text.strip())
        elif _PLAIN.match(text):
            plain.append(text)
    return raised, signs, plain


def cause_of(raised: list[Raised]) -> Raised | None:
    """The last exception ended the run, unless it is the consequence of an earlier one: then the first of the most
    frequent others, nearest to the end."""
    if not raised:
        return None
    end = raised[-1]
    if not CONSEQUENCE.search(end.text):
        return _first(end, raised)
    causes = [r for r in raised if not CONSEQUENCE.search(r.text)]
    if not causes:
        return _first(end, raised)
    return _first(causes[-1], causes)


def _first(event: Raised, among: Iterable[Raised]) -> Raised:
    """The first of its kind that has frames: later copies were passed on by others."""
    same = [r for r in among if r.kind == event.kind or (r.type == event.type and r.message == event.message)]
    return next((r for r in same if r.frames), event)


def _tell(cause: Raised, raised: list[Raised]) -> list[str]:
    if died := _died(cause):
        lines = [died]
    else:
        lines = [cause.text, *(f"  {line}" for line in cause.more[:3])]
    if place := cause.place:
        lines.append(f"  at {shown(place)}")
    same = [r for r in raised if r.kind == cause.kind]
    if len(same) > 1 and len({r.message for r in same}) > 1:
        lines.append(f"  {len(same)} times in the log, the first by {cause.who or 'the trainer'}")
    end = raised[-1]
    if end.kind != cause.kind and end.text != cause.text:
        lines.append(f"it ended the run as {end.text}")
    told = "\n".join(lines)
    others = Counter(
        r.text
        for r in raised
        if r.kind not in (cause.kind, end.kind) and not CONSEQUENCE.search(r.text) and r.message not in told
    )
    lines += [f"also: {text}" for text, _ in others.most_common(2)]
    return lines


def shown(place: tuple[str, int, str]) -> str:
    """`FILE:LINE in FUNCTION`; a file of verl's is named from its package on."""
    file, line, function = place
    inside = VERL.search(file)
    return f"{inside[1] if inside else file}:{line}" + (f" in {function}" if function else "")


def _died(cause: Raised) -> str:
    """Ray's ten lines on a dead worker as one."""
    if not cause.type.endswith("ActorDiedError"):
        return ""
    facts = dict(line.split(": ", 1) for line in cause.more if ": " in line)
    who = facts.get("class_name", "").rsplit(".", 1)[-1] or "one of verl's processes"
    return (
        f"a worker process ended without a word of its own: {who}, pid {facts.get('pid', 'unknown')}; it was killed "
        "(by the kernel when memory runs out, or by hand), or it crashed"
    )


def _short(line: str) -> str:
    return line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]}..."
