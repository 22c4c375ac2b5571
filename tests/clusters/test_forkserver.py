"""A fork must be as good as a new interpreter. Each case runs the same program both ways and compares."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweeper.clusters.gang import forkclient, forkserver

PYTHON = sys.executable
MODULES = ("decimal", "numpy")


class Server:
    """A running fork server and its client."""

    def __init__(self, tmp_path: Path, *modules: str, env: dict[str, str] | None = None) -> None:
        self.socket = tmp_path / "s"
        self.log = tmp_path / "server.log"
        self.env = {**os.environ, **(env or {})}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [PYTHON, "-u", forkserver.__file__, str(self.socket), *modules],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
            )
        wait_for(lambda: self.socket.exists() or self.process.poll() is not None)

    def command(self, *arguments: str) -> list[str]:
        return [PYTHON, "-I", "-S", forkclient.__file__, str(self.socket), PYTHON, *arguments]

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            check=False,
            capture_output=True,
            text=True,
            env={**self.env, **(env or {})},
            timeout=30,
            input="from stdin",
        )

    def ready(self) -> None:
        wait_for(lambda: "ready after" in self.log.read_text())


def wait_for(what: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("fork"), *MODULES)
    yield running
    running.process.kill()
    running.process.wait()


def program(tmp_path: Path, code: str) -> str:
    path = tmp_path / "program.py"
    path.write_text(code)
    return str(path)


SAME = {
    "says": "print('out'); import sys; print('err', file=sys.stderr)",
    "reads": "import sys; print(sys.stdin.read())",
    "exit 7": "raise SystemExit(7)",
    "exit none": "raise SystemExit",
    "exit beyond a byte": "raise SystemExit(256 + 3)",
    "exit negative": "raise SystemExit(-1)",
    "exit with words": "raise SystemExit('why')",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "crashed": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "terminated": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "_exit": "import os; os._exit(9)",
    "raises": "def f(): raise ValueError('bad')\nf()",
    "interrupted": "raise KeyboardInterrupt",
    "arguments": "import sys; print(sys.argv, __name__, __file__, sys.path[0], sys.executable)",
    "environment": "import os; print(sorted((k, v) for k, v in os.environ.items() if k not in ('_', 'LC_CTYPE')))",
    "at exit": "import atexit; atexit.register(print, 'last')",
    "a thread that goes on": """
import threading, time
threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()
""",
    "a child": "import subprocess, sys; print(subprocess.run([sys.executable, '-c', 'print(1); exit(3)']).returncode)",
    "a pool of processes": """
import multiprocessing
def square(x): return x * x
if __name__ == '__main__':
    with multiprocessing.get_context('spawn').Pool(1) as pool: print(pool.map(square, [2, 3]))
""",
    "signals": "import signal as s; print([s.getsignal(n) for n in (s.SIGCHLD, s.SIGTERM, s.SIGHUP, s.SIGINT)])",
    "open files": "import os; print(sorted(int(f) for f in os.listdir('/proc/self/fd'))[:3])",
}


@pytest.mark.parametrize("case", SAME)
def test_a_fork_does_what_an_interpreter_does(server: Server, tmp_path: Path, case: str) -> None:
    script = program(tmp_path, SAME[case])
    plain = subprocess.run(
        [PYTHON, "-u", script, "a b", "c"],
        check=False,
        capture_output=True,
        text=True,
        env=server.env,
        input="from stdin",
    )
    forked = server.run("-u", script, "a b", "c")
    assert (forked.returncode, forked.stdout, forked.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_it_is_a_fork(server: Server, tmp_path: Path) -> None:
    forked = server.run(program(tmp_path, "import sys, os; print('decimal' in sys.modules, os.getppid())"))
    assert forked.stdout.split() == ["True", str(server.process.pid)]


def test_a_module_runs_as_main(server: Server, tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mod.py").write_text("import sys; print(__name__, __spec__.name, sys.argv[1:])")
    forked = server.run("-m", "pack.mod", "x=1", env={"PYTHONPATH": str(tmp_path)})
    assert forked.stdout == "__main__ pack.mod ['x=1']\n"


def test_the_environment_is_the_clients(server: Server, tmp_path: Path) -> None:
    forked = server.run(program(tmp_path, "import os; print(os.environ['MINE'])"), env={"MINE": "yes"})
    assert forked.stdout == "yes\n"


def test_numpy_draws_differ_between_forks(server: Server, tmp_path: Path) -> None:
    script = program(tmp_path, "import numpy, random; print(numpy.random.random(), random.random())")
    draws = {value for _ in range(3) for value in server.run(script).stdout.split()}
    assert len(draws) == 6


def test_another_hash_seed_gets_an_interpreter_of_its_own(server: Server, tmp_path: Path) -> None:
    script = program(tmp_path, "import os; print(hash('word'), os.getppid())")
    env = {**server.env, "PYTHONHASHSEED": "3"}
    plain = subprocess.run([PYTHON, script], check=False, capture_output=True, text=True, env=env)
    forked = server.run(script, env={"PYTHONHASHSEED": "3"})
    assert forked.stdout.split()[0] == plain.stdout.split()[0]


@pytest.mark.parametrize("arguments", [["-c", "import sys; print(sys.flags.isolated, 5)"], ["-I", "-c", "print(1, 5)"]])
def test_options_of_an_interpreter_get_an_interpreter(server: Server, arguments: list[str]) -> None:
    assert server.run(*arguments).stdout.split()[1] == "5"


def test_a_signal_to_the_client_reaches_the_fork(server: Server, tmp_path: Path) -> None:
    code = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(6))\nprint('up')\ntime.sleep(60)"
    client = subprocess.Popen(
        server.command(program(tmp_path, code)), stdout=subprocess.PIPE, text=True, env=server.env
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "up\n"
    client.terminate()
    assert client.wait(10) == 6


def test_the_fork_dies_with_its_client(server: Server, tmp_path: Path) -> None:
    code = "import os, time\nprint(os.getpid())\ntime.sleep(60)"
    client = subprocess.Popen(
        server.command(program(tmp_path, code)), stdout=subprocess.PIPE, text=True, env=server.env
    )
    assert client.stdout is not None
    pid = int(client.stdout.readline())
    assert alive(pid)
    client.kill()
    client.wait()
    wait_for(lambda: not alive(pid), 5)


def test_the_forks_die_with_the_server_and_the_client_says_so(tmp_path: Path) -> None:
    server = Server(tmp_path)
    code = "import os, time\nprint(os.getpid())\ntime.sleep(60)"
    client = subprocess.Popen(server.command(program(tmp_path, code)), stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    pid = int(client.stdout.readline())
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not alive(pid), 5)
    assert client.wait(5) == -signal.SIGKILL


def test_a_terminated_server_lets_its_forks_finish(tmp_path: Path) -> None:
    server = Server(tmp_path)
    code = "import time\nprint('up')\ntime.sleep(1)\nraise SystemExit(4)"
    client = subprocess.Popen(server.command(program(tmp_path, code)), stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    client.stdout.readline()
    server.process.terminate()
    assert client.wait(10) == 4
    assert server.process.wait(5) == 0


def test_clients_may_come_before_the_imports_are_done(tmp_path: Path) -> None:
    (tmp_path / "slow_module.py").write_text("import time; time.sleep(1)")
    server = Server(tmp_path, "slow_module", env={"PYTHONPATH": str(tmp_path)})
    assert server.run(program(tmp_path, "import sys; print('slow_module' in sys.modules)")).stdout == "True\n"
    server.process.kill()
    server.process.wait()


def test_a_module_that_is_not_there_is_skipped_and_named(tmp_path: Path) -> None:
    server = Server(tmp_path, "no_such_module", "decimal")
    assert server.run(program(tmp_path, "import sys; print('decimal' in sys.modules)")).stdout == "True\n"
    assert "no_such_module is not preloaded: ModuleNotFoundError" in server.log.read_text()
    server.process.kill()
    server.process.wait()


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", "threads"),
        ("import os; os._exit(3)", ""),
    ],
)
def test_without_a_server_the_plain_interpreter_is_used(tmp_path: Path, trouble: str, said: str) -> None:
    (tmp_path / "trouble.py").write_text(f"import time; time.sleep(0.5)\n{trouble}")
    server = Server(tmp_path, "trouble", env={"PYTHONPATH": str(tmp_path)})
    answer = server.run(program(tmp_path, "import sys, json; print(json.dumps('trouble' in sys.modules)); sys.exit(2)"))
    assert (answer.returncode, json.loads(answer.stdout)) == (2, False)
    assert said in server.log.read_text()
    assert server.process.wait(5) != 0
    assert server.run(program(tmp_path, "print(1)")).stdout == "1\n"  # and later too
