"""Fake containers, for fake queues: what a container program does for a command, with processes of this machine.

    python containers.py COMMAND...      a container's init, which its program (`Container`) starts

A container's processes are what descends from its init, their subreaper: none escapes. When the command has ended, or
is to be killed, or who started the container is gone, all that is left is killed. /tmp (TMPDIR) is its own, and goes
with it. Files and network are this machine's.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

GANG = Path(__file__).resolve().parents[2] / "sweeper" / "clusters" / "gang"
TERM, KILL = signal.SIGTERM, signal.SIGUSR1
"""To an init: pass SIGTERM on to the command; kill all."""


class Container:
    """A running container. `env` is its whole environment, but for TMPDIR."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        init = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), *command]
        self._init = subprocess.Popen(
            init, env=dict(env), cwd="/", stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
        )

    @property
    def code(self) -> int | None:
        """How the command ended; None as long as a process of the container is left."""
        return self._init.poll()

    def stop(self, grace_s: float) -> None:
        """SIGTERM to its command, then an end to all of it. Returns at once."""
        self._signal(TERM)
        timer = threading.Timer(grace_s, self.kill)
        timer.daemon = True
        timer.start()

    def kill(self) -> None:
        """End all of it now."""
        self._signal(KILL)

    def _signal(self, signum: int) -> None:
        self._init.send_signal(signum)  # nothing happens to one that was seen to have ended


def _init(command: Sequence[str]) -> int:
    """Be the init; the exit code is the command's."""
    sys.path.insert(0, str(GANG))
    import guard  # type: ignore[import-not-found]

    waited = {signal.SIGCHLD, TERM, KILL}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    parent = os.getppid()
    guard.prctl(guard.PR_SET_CHILD_SUBREAPER, 1)
    tmp = tempfile.mkdtemp(prefix="box-", dir="/tmp")  # a short path: there are sockets below
    main = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": tmp},
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, waited),  # noqa: PLW1509  (no other thread)
    )
    while main.poll() is None and os.getppid() == parent:
        got = signal.sigtimedwait(waited, 0.5)
        if got and got.si_signo == KILL:
            break
        if got and got.si_signo == TERM:
            main.terminate()
        _reap(main.pid)
    while guard.descendants():  # again and again: a process may fork while it is being killed
        guard.send(guard.descendants(), signal.SIGKILL)
        signal.sigtimedwait(waited, 0.05)
        main.poll()
        _reap(main.pid)
    shutil.rmtree(tmp, ignore_errors=True)
    code = main.wait()
    return code if code >= 0 else 128 - code


def _reap(main: int) -> None:
    """The dead that are ours by adoption."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)) and ended.si_pid != main:
            os.waitpid(ended.si_pid, 0)


# -- the fake queue that starts them


def serving(variable: str, program: str) -> Path:
    """The folder of a fake queue, which is a program: it lives as long as the process that first asks for it, and
    outlives the controllers that this one starts (`variable` tells them)."""
    if variable not in os.environ:
        log = tempfile.TemporaryFile()  # noqa: SIM115  (the program's)
        process = subprocess.Popen(
            [sys.executable, program],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        folder = process.stdout.readline().strip()
        if not folder:
            log.seek(0)
            raise RuntimeError(f"{program} did not start: {log.read().decode(errors='replace')}")
        owner = os.getpid()

        def end() -> None:
            if os.getpid() == owner:
                process.stdin.close()  # type: ignore[union-attr]
                process.wait()

        atexit.register(end)
        os.environ[variable] = folder
    return Path(os.environ[variable])


def serve(server: ThreadingHTTPServer, folder: Path) -> None:
    """The program's side: serve, say where what one needs to know is, and go on until who started us is gone."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(folder, flush=True)
    sys.stdin.read()


class Within:
    """A cluster whose every call is made within a context: where the fake is what this machine's settings name."""

    def __init__(self, context: Callable[[], AbstractContextManager[Any]], make: Callable[[], Any]) -> None:
        self._context = context
        with context():
            self._cluster = make()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._cluster, name)

        def call(*words: Any) -> Any:
            with self._context():
                return found(*words)

        return call if callable(found) else found


if __name__ == "__main__":
    sys.exit(_init(sys.argv[1:]))
