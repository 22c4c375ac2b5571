"""One node of a gang: takes its ranks, makes its private temp-dir, runs the guard (guard.py) and under it the agent.

    python -I -S node.py run   FOLDER RANK [--stdin]   until the node's part has ended (a Slurm step, a container)
    python -I -S node.py start FOLDER RANK [--stdin]   detached (ssh); says {"temp_dir", "ranks"}, {"busy"}, {"error"}
    python -I -S node.py ask   FOLDER RANK s|k|d|p     to the guard: stop, kill, write stacks and stop, notice
    python -I -S node.py look  FOLDER...               says {FOLDER: {RANK: whether it lives}}, of those started here

FOLDER is the attempt's, on a filesystem that the nodes share; what is to run is in its gang/gang.json (gangs.py). RANK
may be the name of a variable: `$SLURM_PROCID`. With `--stdin` the first line of stdin is {"token", "env"}: the gang's
secret and the inherited variables; without it they are in the environment, the secret as SWEEPER_GANG_TOKEN.
`--contained`: the processes of other attempts cannot be seen, and so not be ended from here (contain.py did).

Guarantees: standard library only, any Python from 3.9; before the guard runs, gang/RANK.json says where its temp-dir
is, and the temp-dir is locked, so that nothing is ever started that nobody can find; a secret is in no file and on no
command line; with `run`, the guard is this very process, and it ends the node's part when who started it dies; `look`
ends what a guard left that was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
if TYPE_CHECKING or __package__:
    from sweeper.clusters.gang import devices, janitor, leases
else:  # a script, with its neighbours
    sys.path.insert(0, str(HERE))
    import devices
    import janitor
    import leases

GANG = "gang"
"""The folder, in the attempt's, of what its nodes tell each other."""
TOKEN = "SWEEPER_GANG_TOKEN"
NAME = "SWEEPER_NODE"
"""Variable: this node's name, where the host's does not tell nodes apart."""
NODES = "SWEEPER_GANG_NODES"
"""Variable: `name=address,...` by rank, where they were not known when gang.json was written (a batch system)."""
LOCK = "lock"
"""In a temp-dir until the last process is gone and the record is written (guard.py)."""
BUSY = 75  # EX_TEMPFAIL
PR_SET_PDEATHSIG = 1

PASSED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "TERM", "TMPDIR",
    "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME",
    "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES", "VIRTUAL_ENV", "CONDA_PREFIX",
)  # fmt: skip
"""What an attempt sees of the environment that it is started in. A list of what may pass, because what must not
(tokens, RAY_* of an outer cluster, the state of a launcher) cannot be listed."""


class NodeError(Exception):
    """The node's part cannot be started; the message says why."""


def environment(inherit: Iterable[str], marker: str, gpus: Sequence[str]) -> dict[str, str]:
    """The environment that the guard starts with; the agent adds the job's. `gpus`: ids, where we chose them."""
    env = {name: os.environ[name] for name in (*PASSED, *inherit, TOKEN, NAME, NODES) if name in os.environ}
    if gpus:
        env.update({"CUDA_VISIBLE_DEVICES": ",".join(gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})  # nvidia-smi's order
    # Every interpreter writes the stacks of its threads when it gets SIGABRT: `stop(dump=True)`.
    return {"PYTHONFAULTHANDLER": "1", **env, janitor.MARKER: marker}


def command(record: Path, den: Path, held: Sequence[int], folder: Path, rank: int) -> list[str]:
    """The guard's command line, with the agent's."""
    script = [sys.executable, "-I", "-S"]
    fds = ",".join(map(str, held))
    agent = [*script, str(HERE / "agent.py"), str(folder), str(rank), str(den)]
    return [*script, str(HERE / "guard.py"), str(record), str(den), fds, "--", *agent]


def log(folder: Path, rank: int) -> Path:
    """What the node's processes write: the attempt's log on the first node, one of its own on the others."""
    return folder / "log.txt" if rank == 0 else folder / GANG / f"{rank}.log"


def start(
    folder: Path,
    rank: int,
    *,
    inherit: Iterable[str],
    ids: Mapping[str, str],
    taken: Mapping[str, int],
    record: Path,
    tell: Callable[[Path], None],
) -> subprocess.Popen[bytes]:
    """Start the node's guard, detached from us. `tell` writes where its temp-dir is, before it runs.

    Args:
        ids: Rank -> GPU, of all ranks of this node; `taken` are the gang's, each with the descriptor of its lock, which
            the guard inherits; ours stay open.
        record: Where the guard writes how it ended.

    Raises:
        OSError: It could not be started; nothing of it remains but files in its folder.
    """
    den = janitor.make_den()
    guard = None
    try:
        tell(den.path)
        held = [den.control, den.lock, *taken.values()]
        with log(folder, rank).open("ab") as out:
            guard = subprocess.Popen(
                command(record, den.path, held, folder, rank),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=out,
                env=environment(inherit, den.marker, [ids[name] for name in taken if ids[name]]),
                cwd=folder,
                start_new_session=True,
                pass_fds=held,
            )
    finally:
        den.close()
        if guard is None:
            janitor.sweep(den.path)
    return guard


def become(
    folder: Path,
    rank: int,
    *,
    inherit: Iterable[str],
    ids: Mapping[str, str],
    taken: Mapping[str, int],
    record: Path,
    tell: Callable[[Path], None],
) -> None:
    """Like `start`, but this process becomes the guard."""
    parent = os.getppid()
    den = janitor.make_den()
    try:
        tell(den.path)
    except OSError:
        den.close()
        janitor.sweep(den.path)
        raise
    held = [den.control, den.lock, *taken.values()]
    for fd in held:
        os.set_inheritable(fd, True)
    out = os.open(log(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 2)
    env = environment(inherit, den.marker, [ids[name] for name in taken if ids[name]])
    os.chdir(folder)
    # The guard ends the node's part when it gets SIGTERM, and so it does when its parent dies.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    line = command(record, den.path, held, folder, rank)
    os.execve(line[0], line, env)


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def boot() -> str:
    """This start of this machine."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def host() -> str:
    """The node's name."""
    return os.environ.get(NAME) or socket.gethostname()


def read(folder: Path) -> dict[str, Any]:
    """The attempt's gang.json. NodeError if it cannot be read here."""
    path = folder / GANG / "gang.json"
    try:
        gang: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise NodeError(f"{host()} cannot read {path}: {error}. Is the store on a shared filesystem?") from error
    return gang


def run(folder: Path, rank: int, *, detached: bool, contained: bool = False) -> dict[str, Any]:
    """Start or become the node's guard, as gang.json says; what to answer."""
    if not contained:
        janitor.sweep()  # a batch system kills guards, and nobody may look here before the next one comes
    gang = read(folder)
    own = folder / GANG / f"{rank}.json"
    ids = devices.ranks(gang["device"], gang["slots"]) if gang["leases"] else {}
    holder = str(folder)
    taken = leases.take(list(ids), gang["ranks"], holder) if gang["leases"] else {}
    if taken is None:
        free = len(leases.free(list(ids)))
        what = f"{gang['ranks']} of {len(ids)} ranks are asked for, and {free} are free"
        return {"busy": True, "error": f"{host()}: {what}"}

    machine = devices.machine(gang["device"], [ids[name] for name in taken])

    def tell(den: Path) -> None:
        about = {"host": host(), "boot": boot(), "temp_dir": str(den), "ranks": list(taken), "started": time.time()}
        write_json(own, {**about, "machine": machine})

    how: dict[str, Any] = {
        "inherit": gang["inherit"],
        "ids": ids,
        "taken": taken,
        "record": own.with_name(f"{rank}.exit.json"),
        "tell": tell,
    }
    if not detached:
        become(folder, rank, **how)
    start(folder, rank, **how)
    return {"temp_dir": json.loads(own.read_text())["temp_dir"], "ranks": list(taken)}


def ask(folder: Path, rank: int, what: bytes) -> bool:
    """Whether there was a guard to ask."""
    try:
        den = Path(json.loads((folder / GANG / f"{rank}.json").read_text())["temp_dir"])
    except (OSError, ValueError, KeyError):
        return False
    return janitor.ask(den, what)


def look(folders: Sequence[Path]) -> dict[str, dict[str, bool]]:
    """Which nodes of those attempts live, of those that were started on this host; orphans are ended first."""
    janitor.sweep()
    found: dict[str, dict[str, bool]] = {}
    for folder in folders:
        ranks = found.setdefault(str(folder), {})
        for path in (folder / GANG).glob("*.json"):
            if path.stem.isdigit():
                with contextlib.suppress(OSError, ValueError, KeyError):
                    about = json.loads(path.read_text())
                    if about["host"] == host():
                        den = Path(about["temp_dir"])
                        if den.parent != janitor.root():  # of a container, where TMPDIR is another
                            janitor.sweep(den)
                        ranks[path.stem] = about["boot"] == boot() and (den / LOCK).exists()
    return found


def take_secrets() -> None:
    """Into our environment, from stdin."""
    given = json.loads(sys.stdin.buffer.readline() or b"{}")
    os.environ.update(given.get("env") or {})
    if given.get("token"):
        os.environ[TOKEN] = given["token"]


def main() -> int:
    """Do what the command line says; the exit code."""
    what, *words = sys.argv[1:]
    if what == "look":
        print(json.dumps(look([Path(word) for word in words])))
        return 0
    folder, rank = Path(words[0]), int(os.environ[words[1][1:]] if words[1].startswith("$") else words[1])
    if what == "ask":
        print(json.dumps({"asked": ask(folder, rank, words[2].encode())}))
        return 0
    try:
        if "--stdin" in words:
            take_secrets()
        answer = run(folder, rank, detached=what == "start", contained="--contained" in words)
    except (NodeError, OSError, ValueError, KeyError) as error:
        answer = {"error": f"{host()}: {error}" if not isinstance(error, NodeError) else str(error)}
    if "error" in answer and what == "run":
        print(answer["error"], file=sys.stderr)
        with contextlib.suppress(OSError):
            ended = {"code": None, "reason": "launch", "detail": answer["error"], "ended": time.time()}
            write_json(folder / GANG / f"{rank}.exit.json", ended)
    elif what == "start":
        print(json.dumps(answer))
    return BUSY if "busy" in answer else 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
