"""Where the processes of a stalled verl run were, out of the stacks that faulthandler left in its log.

Guarantees: pure text; a dump that is cut off, mixed with other lines or prefixed by Ray is read as far as it goes.

A dump is one or more blocks of `Current thread 0x... [name] (most recent call first):` (or `Thread 0x...`) with lines
`  File "...", line N in f`. The guard of a local attempt writes `sweeper: stacks of process PID (COMMAND):` before each
process's (clusters/gang/guard.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MOST_LINES = 12

_PREFIX = re.compile(r"^(?:\x1b\[[0-9;]*m)?\((?P<who>[^)]*pid=\d+[^)]*)\)(?:\x1b\[[0-9;]*m)? ?")
_PROCESS = re.compile(r"^sweeper: stacks of process (?P<pid>\d+)(?: \((?P<command>.*)\))?:?$")
_THREAD = re.compile(r"^(?P<current>Current thread|Thread) 0x[0-9a-fA-F]+.*\(most recent call first\):")
_FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+|\?\?\?) in (?P<function>.+)$')
_PACKAGES = re.compile(r".*/(?:site|dist)-packages/")
_STANDARD = re.compile(r"/lib(?:64)?/python3[\d.]*/(?!site-packages|dist-packages)|^<|/lib/python3[\d.]*\.zip/")
_WAITING = re.compile(r"site-packages/ray/|/sweeper/clusters/gang/")
"""What waits for others in every process of a run, and so says least about where it hangs."""


@dataclass(slots=True)
class _Thread:
    current: bool
    frames: list[tuple[str, str, str]] = field(default_factory=list)
    """File, line, function; innermost first."""

    def place(self) -> tuple[int, tuple[str, str, str]] | None:
        """How telling it is (2: code of the run, 1: only Ray's, 0: only the standard library) and its innermost frame
        of that kind."""
        outside = [f for f in self.frames if not _STANDARD.search(f[0])]
        own = [f for f in outside if not _WAITING.search(f[0])]
        for worth, frames in ((2, own), (1, outside), (0, self.frames)):
            if frames:
                return worth, frames[0]
        return None


@dataclass(slots=True)
class _Process:
    name: str
    threads: list[_Thread] = field(default_factory=list)

    def told(self) -> tuple[int, str] | None:
        """How telling the process is and where it was; of its threads the one that ran, unless another
        says more."""
        found = [(place, thread) for thread in self.threads if (place := thread.place())]
        if not found:
            return None
        (worth, (file, line, function)), _ = max(found, key=lambda f: (f[0][0], f[1].current))
        return worth, f"{_PACKAGES.sub('', file)}:{line} in {function}"


def hung_at(log: str) -> list[str]:
    """One line a process, `WHO: FILE:LINE in FUNCTION`, those in the run's own code first; at most a dozen.

    Processes that hang at the same place are told once, with their number.
    """
    told = [(told, process.name) for process in _read(log) if (told := process.told())]
    places: dict[str, list[str]] = {}
    for (_, place), who in sorted(told, key=lambda t: -t[0][0]):
        places.setdefault(place, []).append(who)
    lines = [f"{who[0]}{f' and {len(who) - 1} more' if len(who) > 1 else ''}: {place}" for place, who in places.items()]
    return lines[:MOST_LINES]


def _read(log: str) -> list[_Process]:
    processes: dict[str, _Process] = {}
    header = ""
    open_thread: dict[str, _Thread] = {}
    for raw in log.splitlines():
        if said := _PROCESS.match(raw):
            header = f"{_short(said['command'] or '')} (pid {said['pid']})".strip()
            open_thread.pop("", None)
            continue
        prefix = _PREFIX.match(raw)
        stream, text = (prefix["who"], raw[prefix.end() :]) if prefix else ("", raw)
        if started := _THREAD.match(text):
            name = stream or header or "a process"
            thread = _Thread(started["current"].startswith("Current"))
            processes.setdefault(name, _Process(name)).threads.append(thread)
            open_thread[stream] = thread
        elif (frame := _FRAME.match(text)) and stream in open_thread:
            open_thread[stream].frames.append((frame["file"], frame["line"], frame["function"]))
        elif text.strip():
            open_thread.pop(stream, None)
    return list(processes.values())


def _short(command: str) -> str:
    """A name for people: Ray names its workers in their command line, `ray::WorkerDict.method`."""
    words = command.split()
    if not words:
        return "a process"
    if words[0].startswith("ray::"):
        return words[0]
    module = next((words[i + 1] for i, word in enumerate(words[:-1]) if word == "-m"), "")
    return module or words[0].rpartition("/")[2]
