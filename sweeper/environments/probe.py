"""Asks the engine's own interpreter a question, so that a user's code or a heavy package is never imported here.

Guarantees: the answer comes on a pipe of its own, so what the asked code prints, or an exit in the middle of it, cannot
be mistaken for it; the asked process and its children are gone when the time is up; equal questions are asked once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sweeper.errors import SweeperError

TIMEOUT_S = 60.0
"""A reward that imports torch and transformers from a cold disk takes up to half of this."""


class ProbeError(SweeperError):
    """The question was not answered; the message says why in one line."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The engine's interpreter and what is set in its environment."""

    python: str = sys.executable
    env: Mapping[str, str] = field(default_factory=dict)
    stands_in: bool = False
    """Whether the engine's own is in a container image: what this one lacks, that one may have."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Interpreter:
        """The one of a config: `engine.python`, where null means this one, and `engine.env`. For one in a container
        image (`engine.image`), which is not here to be asked, this one stands in."""
        engine = config.get("engine") or {}
        env = {str(k): str(v) for k, v in (engine.get("env") or {}).items() if v is not None}
        if engine.get("image"):
            return cls(sys.executable, env, stands_in=True)
        return cls(engine.get("python") or sys.executable, env)


_asked: dict[tuple[Any, ...], Any] = {}


def ask(interpreter: Interpreter, script: str, question: Mapping[str, Any], *, stamp: str = "") -> Any:
    """Run `script` in the interpreter; it finds `question` (JSON-able) and leaves its JSON-able `answer`.

    Asked from `/`, as a trainer's workers do not run in the user's folder. `stamp` is part of what makes a question
    equal to an earlier one: the content of a file that the script reads.

    Raises:
        ProbeError: No answer: it could not be started, raised, exited, crashed or ran past `TIMEOUT_S`.
    """
    key = (
        interpreter.python,
        tuple(sorted(interpreter.env.items())),
        script,
        json.dumps(question, sort_keys=True),
        stamp,
    )
    if key not in _asked:
        try:
            _asked[key] = _run(interpreter, script, question)
        except ProbeError as error:
            _asked[key] = error
    if isinstance(_asked[key], ProbeError):
        raise _asked[key]
    return _asked[key]


_FRAME = """
import json, os, sys
_out = int(sys.argv[1])
question = json.loads(sys.argv[2])
{script}
os.write(_out, json.dumps(answer).encode())
os._exit(0)
"""


def _run(interpreter: Interpreter, script: str, question: Mapping[str, Any]) -> Any:
    read, write = os.pipe()
    try:
        with tempfile.TemporaryFile() as noise:
            try:
                child = subprocess.Popen(
                    [interpreter.python, "-c", _FRAME.format(script=script), str(write), json.dumps(question)],
                    pass_fds=(write,),
                    stdin=subprocess.DEVNULL,
                    stdout=noise,
                    stderr=noise,
                    cwd="/",
                    env={**os.environ, **interpreter.env},
                    start_new_session=True,
                )
            except OSError as error:
                raise ProbeError(f"{interpreter.python} cannot be started: {error.strerror}") from error
            finally:
                os.close(write)
            try:
                answer, in_time = _read(read, time.monotonic() + TIMEOUT_S)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
            if answer:
                return json.loads(answer)
            if not in_time:
                raise ProbeError(f"no answer within {TIMEOUT_S:.0f} s")
            noise.seek(0)
            raise ProbeError(_why(noise.read().decode(errors="replace"), code))
    finally:
        os.close(read)


def _read(descriptor: int, deadline: float) -> tuple[bytes, bool]:
    """All that is written until the other side closes, and whether that came in time."""
    said = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            break
        part = os.read(descriptor, 65536)
        if not part:
            return said, True
        said += part
    return b"", False


def _why(noise: str, code: int) -> str:
    lines = [line.strip() for line in noise.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return f"the process ended with code {code}{f': {last}' if last else ''}"
