"""What looks at one node: sent to its `python3 -I -S -` on standard input, with a question; answers one JSON line.

Guarantees: only the standard library, Python 3.9 on; imports nothing of this project; writes nothing but files in a
folder that the asker made and removes; what fails in one look is told in its place (`{"error": "..."}`), so that the
others are answered all the same.

The rounds (`question["round"]`): `look` (software, GPUs, disk, paths, ports, names of secrets), `meet` (the nodes find
each other through the shared folder, read each other's files, connect to each other, resolve each other's names) and
`reduce` (a collective of the engine's torch over all nodes). A clock is read at the begin and end of each.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

Said = dict[str, Any]
MARK = "sweeper-doctor "
"""Before the answer: launchers and login shells print lines of their own."""
CARD, DONE = ".card", ".done"


def look(question: Said) -> Said:
    """This node by itself."""
    return {
        "host": socket.gethostname(),
        "user": _guarded(_user, os.getuid()),
        "python": ".".join(map(str, sys.version_info[:3])),
        "addresses": addresses(),
        "engine": _guarded(engine, question),
        "gpus": _guarded(gpus),
        "disk": {path: _guarded(disk, path) for path in question["folders"]},
        "paths": {path: _guarded(readable, path) for path in question["paths"]},
        "ports": {str(port): _guarded(port_free, port) for port in question["ports"]},
        "any_port": _guarded(port_free, 0),
        "own": {address: _guarded(port_free, 0, address) for address in question.get("own", ())},
        "names": {name: bool(os.environ.get(name)) for name in question["names"]},
        "containers": _guarded(containers, question.get("container_program", "")),
    }


def _guarded(what: Callable[..., Any], *args: Any) -> Any:
    try:
        return what(*args)
    except Exception as error:  # whatever is odd about a node is an answer
        return {"error": f"{type(error).__name__}: {error}"}


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container's
        return str(uid)


def _run(
    argv: list[str], stdin: str = "", timeout: float = 30.0, env: dict[str, str] | None = None
) -> tuple[int, str, str]:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, env=env, check=False)
    return done.returncode, done.stdout, done.stderr


def _last(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


# --- software ---


def engine(question: Said) -> Said:
    """What is installed in the engine's interpreter, by the names of distributions; nothing is imported."""
    python, env = question["python"], {**os.environ, **question["env"]}
    try:
        code, out, err = _run([python, "-", question["engine"]], question["installed"], question["timeout_s"], env)
    except OSError as error:
        return {"error": f"it cannot be started: {error.strerror}"}
    if code:
        return {"error": f"it ended with code {code}: {_last(err)}"}
    found = json.loads(out.splitlines()[-1])
    packages = found.get("packages") or {}
    wanted = {name: packages.get(name) for name in question["packages"]}
    return {"python": found.get("python"), "packages": wanted, "cuda": found.get("cuda"), "commit": found.get("commit")}


def containers(program: str) -> Said:
    """Whether what runs containers answers this user: `ps` asks Docker's daemon, and podman's store. Empty: no wish."""
    if not program:
        return {}
    try:
        code, out, err = _run([program, "ps", "--quiet"])
    except FileNotFoundError:
        return {"error": "it is not there", "missing": True}
    except PermissionError:
        return {"error": "it is no program that this user may run", "missing": True}
    except subprocess.TimeoutExpired:
        return {"error": "no answer within 30 s"}
    return {"error": _last(err or out) or f"it ended with code {code}"} if code else {}


# --- devices ---


def gpus() -> Any:
    """The NVIDIA GPUs with what others hold of them; empty without a driver."""
    tool, form = shutil.which("nvidia-smi"), "--format=csv,noheader,nounits"
    if not tool:
        return []
    code, out, err = _run([tool, "--query-gpu=index,uuid,name,memory.total,memory.used,driver_version", form])
    if code:
        return {"error": f"nvidia-smi ended with code {code}: {_last(err or out)}"}
    names = ("index", "uuid", "name", "total_mib", "used_mib", "driver")
    found: list[Said] = [dict(zip(names, _fields(line))) for line in out.splitlines() if line.strip()]  # noqa: B905
    _, held, _ = _run([tool, "--query-compute-apps=gpu_uuid,pid,used_gpu_memory", form])
    rows = [_fields(line) for line in held.splitlines() if line.count(",") == 2]
    for gpu in found:
        gpu["processes"] = [{"pid": r[1], "mib": r[2], "user": _owner(r[1])} for r in rows if r[0] == gpu["uuid"]]
    return found


def _fields(line: str) -> list[str]:
    return [part.strip() for part in line.split(",")]


def _owner(pid: str) -> str:
    try:
        return _user(Path("/proc", pid).stat().st_uid)
    except OSError:
        return ""


# --- files ---


def disk(path: str) -> Said:
    """Free space and inodes where the folder is or would be, and whether it can be written."""
    there = next(p for p in (Path(path), *Path(path).parents) if p.is_dir())
    facts = os.statvfs(there)
    return {
        "at": str(there),
        "free": facts.f_bavail * facts.f_frsize,
        "inodes": facts.f_favail if facts.f_files else None,  # some filesystems have no limit
        "writable": os.access(there, os.W_OK | os.X_OK),
    }


def readable(name: str) -> Said:
    """Whether a file or folder can be read; a file's size."""
    path = Path(name)
    if not path.exists():
        return {"error": "it is not there"}
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        return {"error": "it cannot be read"}
    return {} if path.is_dir() else {"bytes": path.stat().st_size}


# --- network ---


def port_free(port: int, address: str = "") -> Said:
    """OSError if nobody could listen there."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((address, port))
    return {}


def addresses() -> list[str]:
    """By which others may reach this node, likeliest first."""
    found = []
    told = os.environ.get("SSH_CONNECTION", "").split()
    if len(told) == 4:
        found.append(told[2])  # the one that the asker came by
    for name in filter(None, (os.environ.get("SLURMD_NODENAME"), socket.gethostname())):
        with suppress(OSError):
            found += resolve(name)
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("192.0.2.1", 9))  # nothing is sent: which address would be used is all that is asked
        found.append(one.getsockname()[0])
    first = found[:1] if len(told) == 4 else []
    return list(dict.fromkeys([*first, *sorted(found, key=lambda address: address.startswith("127."))]))


def resolve(name: str) -> list[str]:
    """The IPv4 addresses of a name. OSError if it has none."""
    return sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None, socket.AF_INET)})


class Meeting:
    """The nodes of one round find each other: each leaves a card in the shared folder and waits for the others'.

    While it lasts each listens on a port of all its addresses: which of them others can reach is what is asked. Who
    does not know the round's random word gets no answer that counts.
    """

    def __init__(self, question: Said) -> None:
        self.folder, self.count = Path(question["meet"]), int(question["count"])
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}, which the controller made, is not there")
        self.until = time.monotonic() + question["timeout_s"]
        self.me, self._word = secrets.token_hex(8), question["word"].encode()
        self.listener = socket.socket()
        # So that the port can be listened on again at once: by torch, for the collective.
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("", 0))
        self.listener.listen(256)
        port = self.listener.getsockname()[1]
        self.card: Said = {"addresses": addresses(), "port": port, "content": secrets.token_hex(64)}
        self._door = threading.Thread(target=self._answer, daemon=True)
        self._door.start()

    def cards(self) -> dict[str, Said]:
        """Everybody's, by id; those that came before the deadline."""
        partial = self.folder / f"{self.me}.partial"
        with partial.open("w") as file:
            file.write(json.dumps(self.card))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.folder / f"{self.me}{CARD}")
        found: dict[str, Said] = {}
        while len(found) < self.count and time.monotonic() < self.until:
            for path in self.folder.iterdir():  # listing also makes NFS look again
                if path.suffix == CARD and path.stem not in found:
                    with suppress(OSError, ValueError):  # not whole yet on this node
                        found[path.stem] = json.loads(path.read_text())
            if len(found) < self.count:
                time.sleep(0.05)
        return found

    def end(self) -> None:
        """Nobody closes his door before everybody has knocked."""
        (self.folder / f"{self.me}{DONE}").touch()
        while time.monotonic() < self.until:
            if sum(path.suffix == DONE for path in self.folder.iterdir()) >= self.count:
                break
            time.sleep(0.05)
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # closing alone would leave the port to the thread that accepts
        self._door.join(10)
        self.listener.close()

    def _answer(self) -> None:
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:  # closed
                return
            try:
                with one:
                    one.settimeout(5)
                    one.sendall(self._reply(one.recv(64)))
            except OSError:
                continue

    def reach(self, card: Said) -> Said:
        """The first of the other's addresses that answers as only it can, or why none does."""
        errors = []
        for address in card["addresses"]:
            asked = secrets.token_hex(32).encode()
            try:
                with socket.create_connection((address, card["port"]), timeout=5) as one:
                    one.sendall(asked)
                    if one.recv(64) == self._reply(asked):
                        return {"address": address}
                    errors.append(f"{address}: somebody else answers")
            except OSError as error:
                errors.append(f"{address}: {error.strerror or error}")
        return {"error": "; ".join(errors) or "it has no address"}

    def _reply(self, asked: bytes) -> bytes:
        return hashlib.sha256(self._word + asked).hexdigest().encode()


def meet(question: Said) -> Said:
    """The nodes with each other."""
    meeting = Meeting(question)
    cards = meeting.cards()
    reached: dict[str, Said] = {}

    def reach(key: str, card: Said) -> None:
        reached[key] = meeting.reach(card)

    others = [(key, card) for key, card in cards.items() if key != meeting.me]
    threads = [threading.Thread(target=reach, args=each, daemon=True) for each in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    meeting.end()
    controller = meeting.folder / "controller"
    return {
        "id": meeting.me,
        "wrote": _hash(meeting.card["content"]),
        "read": {key: _hash(str(card.get("content"))) for key, card in cards.items()},
        "controller": _hash(controller.read_text()) if controller.exists() else "",
        "addresses": meeting.card["addresses"],
        "reached": reached,
        "resolved": {name: _guarded(resolve, name) for name in question["nodes"]},
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- a collective ---

REDUCE = """
import datetime, os, sys
import torch, torch.distributed as dist
rank, size, device = (int(word) for word in sys.argv[1:4])
cuda = device >= 0
if cuda:
    torch.cuda.set_device(device)
left = datetime.timedelta(seconds=float(sys.argv[5]))
kind = "nccl" if cuda else "gloo"
dist.init_process_group(kind, init_method=sys.argv[4], rank=rank, world_size=size, timeout=left)
value = torch.full((1024,), float(rank + 1), device="cuda" if cuda else "cpu")
dist.all_reduce(value)
if cuda:
    torch.cuda.synchronize()
if value.tolist() != [size * (size + 1) / 2] * 1024:
    raise SystemExit("ValueError: the sum is wrong")
dist.destroy_process_group()
os._exit(0)  # unloading torch takes as long as loading it on a busy machine
"""
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception)\b.*")


def reduce(question: Said) -> Said:
    """An all-reduce by the engine's torch over all nodes: what a trainer's first collective would do."""
    meeting = Meeting(question)
    cards = meeting.cards()
    if len(cards) < meeting.count:
        return {"error": f"{len(cards)} of {meeting.count} nodes came within {question['timeout_s']:g} s"}
    order = sorted(cards)
    first, node, each = cards[order[0]], order.index(meeting.me), int(question["ranks"])
    way = {"address": "127.0.0.1"} if node == 0 else meeting.reach(first)
    meeting.end()
    if "error" in way:
        return {"error": f"the first node is not reached: {way['error']}"}
    left = max(10.0, meeting.until - time.monotonic())
    size = each * meeting.count
    children = []
    for device in range(each):
        where = [str(node * each + device), str(size), str(device if question["cuda"] else -1)]
        command = [question["python"], "-c", REDUCE, *where, f"tcp://{way['address']}:{first['port']}", f"{left:g}"]
        children.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **question["env"]},
                cwd="/",
                text=True,
            )
        )
    wrong = ""
    for child in children:
        try:
            text = child.communicate(timeout=max(1.0, meeting.until - time.monotonic() + 5))[0]
        except subprocess.TimeoutExpired:
            child.kill()
            text = f"{child.communicate()[0]}\nTimeoutError: no end within {left:g} s"
        if child.returncode:
            lines = [line.strip() for line in text.splitlines() if _ERROR.match(line.strip())]
            wrong = wrong or (lines or [_last(text)])[-1][:400]
    return {"error": wrong} if wrong else {"ranks": size}


def clock(_: Said) -> Said:
    """Nothing but the time."""
    return {}


def main(question: Said) -> None:
    """Answer on standard output."""
    begun = time.time()
    answer = _guarded({"look": look, "meet": meet, "reduce": reduce, "clock": clock}[question["round"]], question)
    sys.stdout.write(f"\n{MARK}{json.dumps({**answer, 'clock': [begun, time.time()]})}\n")
    sys.stdout.flush()
    os._exit(0)  # threads that wait for a caller are not waited for
