"""Stands in for a Python interpreter: asks the fork server for a process that has the heavy imports done already.

    python -I -S forkclient.py SOCKET PYTHON PYTHON-ARGUMENTS...

The new process has this one's stdin, stdout, stderr, environment, directory and arguments; signals sent to this process
go to it, its exit code or deadly signal becomes ours, and it dies if we are killed. What the fork server cannot do (an
option that an interpreter takes at its start, another hash seed, another preloaded library), and anything where there
is no fork server, is done by becoming the plain interpreter: slower, the same outcome.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LENGTH = struct.Struct("!I")
STATUS = struct.Struct("!i")


def forkable(arguments: list[str]) -> bool:
    """Whether a fork can stand for `python ARGUMENTS`: `-u` (always so in a fork) and then a script or a module."""
    while arguments and arguments[0] == "-u":
        arguments = arguments[1:]
    return bool(arguments) and (arguments[0] == "-m" or not arguments[0].startswith("-"))


def receive(connection: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, or fewer if the other side is gone."""
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            break
        data += part
    return data


def fork(path: str, arguments: list[str]) -> int | None:
    """Run in a fork; its wait status as of `os.waitstatus_to_exitcode`, or None if no fork could be had."""
    request = json.dumps({"argv": arguments, "env": dict(os.environ), "cwd": str(Path.cwd())}).encode()
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
        socket.send_fds(connection, [LENGTH.pack(len(request))], [0, 1, 2])
        connection.sendall(request)
        # Nothing may be lost between the fork and our handlers: hold signals back until we know the pid.
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        pid = STATUS.unpack(receive(connection, STATUS.size))[0]
    except (OSError, struct.error):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        connection.close()
        return None
    if pid <= 0:  # refused
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        connection.close()
        return None

    def pass_on(signum: int, _frame: object) -> None:
        with contextlib.suppress(OSError):
            os.kill(pid, signum)

    for signum in PASSED_ON:
        signal.signal(signum, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    status = receive(connection, STATUS.size)
    # No status: the fork server died, and the fork with it (PR_SET_PDEATHSIG).
    return int(STATUS.unpack(status)[0]) if len(status) == STATUS.size else -signal.SIGKILL


def main() -> None:
    """Be the interpreter."""
    path, python, *arguments = sys.argv[1:]
    code = fork(path, arguments) if forkable(arguments) else None
    if code is None:
        os.execv(python, [python, *arguments])
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
