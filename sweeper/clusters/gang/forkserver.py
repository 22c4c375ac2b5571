"""Pays for an attempt's imports once: it has imported the heavy modules and forks the trainer and every Ray worker.

    python -u forkserver.py SOCKET MODULE...      (its environment is the attempt's)

Guarantees: a fork behaves as `python -u ARGUMENTS` started by the client (forkclient.py) would: same stdio,
environment, directory, sys.argv and sys.path, exit code and deadly signal; it is in a session of its own (Ray kills the
process group of a dead worker) and dies with its client and with this server. A module that cannot be imported is
skipped, with a line on stderr. The socket listens before the imports, so clients may be started at the same time and
wait. When it forks, no thread that a fork would miss is running and CUDA is not initialised: with either it gives up,
and clients become plain interpreters.

Random numbers: numpy's global state is seeded anew in each fork, `random` does that itself, and torch's default
generator starts from its fixed seed, as in a new interpreter.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

HERE = str(Path(__file__).resolve().parent)
AT_START = ("PYTHONHASHSEED", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONOPTIMIZE", "PYTHONDEVMODE")
"""Variables that an interpreter or the dynamic linker reads only once, when it starts."""
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Makes torch.cuda.is_available() ask NVML, not the CUDA runtime: after the latter, no fork could use CUDA."""
FORK_AWARE = {"jemalloc_bg_thd"}
"""Threads of libraries that put themselves right in a fork: jemalloc (pyarrow's allocator) by pthread_atfork(3)."""
NOT_THE_PROGRAM = {__file__, runpy.__file__, "<frozen runpy>"}
"""Files whose frames a plain interpreter's traceback would not begin with."""
PR_SET_PDEATHSIG = 1
LENGTH = struct.Struct("!I")
STATUS = struct.Struct("!i")
REFUSED = STATUS.pack(0)


def say(line: str) -> None:
    """One line for the attempt's log."""
    print(f"fork server: {line}", file=sys.stderr, flush=True)


def unsafe_threads() -> list[str]:
    """Names of threads that a fork would miss: all but this one and those whose library handles forks."""
    pid = os.fork()  # OpenBLAS ends its threads when it sees a fork, and starts them again when it needs them
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    others = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    names = [(task / "comm").read_text().strip() for task in others]
    return [name for name in names if name not in FORK_AWARE]


def preload(modules: list[str]) -> str:
    """Import what can be imported. Returns why forking is unsafe afterwards; empty when it is safe."""
    start = time.monotonic()
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            say(f"{name} is not preloaded: {type(error).__name__}: {error}")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "a preloaded module initialised CUDA"
    if threads := unsafe_threads():
        return f"preloaded modules started threads ({', '.join(threads)})"
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page that it touches
    say(f"{len(modules)} modules ready after {time.monotonic() - start:.1f} s")
    return ""


class Request:
    """What a client asks for: the arguments of an interpreter and the three files that come with them."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(10)  # a client sends at once or not at all
        head, ancillary, _, _ = connection.recvmsg(LENGTH.size, socket.CMSG_SPACE(3 * 4))
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        self.stdio = list(fds)
        (size,) = LENGTH.unpack(head)
        body = b""
        while len(body) < size:
            part = connection.recv(size - len(body))
            if not part:
                raise ConnectionError("the client went away")
            body += part
        connection.settimeout(None)
        content: dict[str, Any] = json.loads(body)
        self.argv: list[str] = content["argv"]
        self.env: dict[str, str] = content["env"]
        self.cwd: str = content["cwd"]

    def possible(self) -> bool:
        """Whether a fork of this process can stand for the interpreter that is asked for."""
        return len(self.stdio) == 3 and all(self.env.get(k) == os.environ.get(k) for k in AT_START)

    def close(self) -> None:
        """Close this process's copies of the client's files."""
        for fd in self.stdio:
            os.close(fd)


def become(request: Request, server: int) -> NoReturn:
    """In the fork: be `python -u ARGV`, then exit."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server:
        os._exit(1)
    os.setsid()
    for target, fd in enumerate(request.stdio):
        os.dup2(fd, target)
    request.close()
    code = 1
    try:
        enter(request)
        run(request.argv)
        code = 0
    except SystemExit as error:
        if error.code is None:
            code = 0
        elif isinstance(error.code, int):
            code = error.code & 0xFF
        else:
            print(error.code, file=sys.stderr)
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename in NOT_THE_PROGRAM:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        if isinstance(error, KeyboardInterrupt):
            code = -signal.SIGINT
    finish(code)


def enter(request: Request) -> None:
    """Take on the client's environment, directory and search path, and what libraries read from them at import."""
    threads_then = os.environ.get("OMP_NUM_THREADS")
    path_then = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(request.env)
    os.chdir(request.cwd)
    path_now = [p for p in request.env.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:] = path_now + [p for p in sys.path if p not in path_then and p not in path_now]
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    threads = request.env.get("OMP_NUM_THREADS")
    if (torch := sys.modules.get("torch")) and threads != threads_then and threads and threads.isdigit():
        torch.set_num_threads(int(threads))  # Ray sets it for each worker; OpenMP read it at import


def run(argv: list[str]) -> None:
    """Run the script or module that the arguments name as `__main__`."""
    while argv[0] == "-u":
        argv = argv[1:]
    if argv[0] == "-m":
        sys.argv = argv[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        sys.path.insert(0, str(Path(argv[0]).resolve().parent))
        runpy.run_path(argv[0], run_name="__main__")


def finish(code: int) -> NoReturn:
    """What an interpreter does at its end, short of tearing down modules. A negative code is a signal to die of."""
    import atexit
    import threading

    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


class Server:
    """Forks on request and tells each client how its fork ended."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.clients: dict[int, tuple[int, socket.socket]] = {}
        """fd of a client's connection -> pid of its fork, connection."""
        self.signals, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.wakeup = wakeup
        self.ending = False
        signal.signal(signal.SIGTERM, self.end)

    def end(self, *_: object) -> None:
        """End when the last fork has: the kernel kills forks with their server, but they are to have their grace."""
        self.ending = True

    def serve(self) -> None:
        """Until told to end, and no fork is left."""
        while self.clients or not self.ending:
            ready, _, _ = select.select([self.listener.fileno(), self.signals, *self.clients], [], [])
            for fd in ready:
                if fd == self.listener.fileno():
                    self.accept()
                elif fd == self.signals:
                    os.read(self.signals, 4096)
                elif fd in self.clients:  # a client never writes again: readable means that it is gone
                    self.drop(fd)
            self.reap()

    def accept(self) -> None:
        """Take one request and fork."""
        connection, _ = self.listener.accept()
        try:
            request = Request(connection)
        except (OSError, ValueError, KeyError, struct.error):
            connection.close()
            return
        if not request.possible():
            with contextlib.suppress(OSError):
                connection.sendall(REFUSED)
            connection.close()
            request.close()
            return
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self.leave(connection)
            become(request, server)
        request.close()
        self.clients[connection.fileno()] = (pid, connection)
        with contextlib.suppress(OSError):
            connection.sendall(STATUS.pack(pid))

    def leave(self, connection: socket.socket) -> None:
        """In the fork: close what is the server's and restore default signal handling."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(self.signals)
        os.close(self.wakeup)
        self.listener.close()
        connection.close()
        for _, other in self.clients.values():
            other.close()

    def drop(self, fd: int) -> None:
        """A client was killed: so is its fork."""
        pid, connection = self.clients.pop(fd)
        connection.close()
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        """Report every fork that ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for fd, (known, connection) in list(self.clients.items()):
                if known == pid:
                    del self.clients[fd]
                    with contextlib.suppress(OSError):
                        connection.sendall(STATUS.pack(os.waitstatus_to_exitcode(status)))
                    connection.close()


def main() -> None:
    """Listen, import, serve."""
    path, *modules = sys.argv[1:]
    sys.path[:] = [p for p in sys.path if p != HERE]  # our neighbours must not shadow anybody's modules
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(128)
    asked = os.environ.get(NVML_CHECK)
    os.environ[NVML_CHECK] = "1"
    unsafe = preload(modules)
    os.environ.pop(NVML_CHECK) if asked is None else os.environ.update({NVML_CHECK: asked})
    if unsafe:
        say(f"{unsafe}; plain interpreters are used")
        Path(path).unlink()
        raise SystemExit(1)
    Server(listener).serve()


if __name__ == "__main__":
    main()
