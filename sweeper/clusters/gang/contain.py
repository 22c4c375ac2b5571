"""Starts a node's part of an attempt in a container, detached, and says what came of it as `node.py start` does.

    python -I -S contain.py FOLDER RANK -- docker run --name NAME ... node.py run FOLDER RANK --stdin --contained

The line on our stdin, with the secrets, is passed on to the container's: they are on no command line, in no file, and
not in what the container program keeps of a container's variables. Guarantees: standard library only, any Python from
3.9; when this returns, the guard runs in the container, or one line of JSON says why it does not: {"temp_dir",
"ranks"}, {"busy"}, {"error"}; an attempt that could not be ended from here is ended at once, with the reason. Who
started this may go: the container belongs to the container program. gang/RANK.image.json says which image it was.

What a container cannot do is done here, on the host: processes outside are not seen in it, so that what an attempt left
whose guard was killed is ended before; and only the host knows where it keeps its leases (SWEEPER_RUNTIME).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from sweeper.clusters.gang import janitor, leases, node
else:  # a script, with its neighbours
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import janitor
    import leases
    import node

BUSY = 75
"""How node.py ends when its ranks are held."""
POLL_S = 0.05
NAMED = "--name"
ASK_S = 30.0
"""For the container program to answer."""


def main() -> int:
    """Do what the command line says; the exit code."""
    folder, rank, command = Path(sys.argv[1]), sys.argv[2], sys.argv[4:]
    gang, line = folder / "gang", sys.stdin.buffer.readline()
    janitor.sweep()
    command = with_leases(command)
    answer = start(command, line, gang / f"{rank}.container.log", gang / f"{rank}.json")
    if "temp_dir" in answer:
        if why := out_of_reach(Path(answer["temp_dir"])):
            ask(command, "rm", "--force", name(command))
            answer = {"error": why}
        elif image := image_of(command):
            node.write_json(gang / f"{rank}.image.json", image)
    print(json.dumps(answer))
    return BUSY if "busy" in answer else 1 if "error" in answer else 0


def with_leases(command: list[str]) -> list[str]:
    """The command, for a container that leases ranks where this host does, if that is not below /tmp as usual."""
    if not os.environ.get(leases.RUNTIME) or NAMED not in command:
        return command
    where, at = str(leases.root().parent), command.index(NAMED)
    return [*command[:at], "--env", f"{leases.RUNTIME}={where}", "--volume", f"{where}:{where}", *command[at:]]


def out_of_reach(den: Path) -> str:
    """Why a guard cannot be asked from here; empty if it can, or has ended already."""
    try:
        (den / "control").stat()
    except FileNotFoundError:
        return ""
    except OSError:
        pass
    else:
        if os.access(den / "control", os.W_OK):
            return ""
    return f"{node.host()}: {den} belongs to the container's user, who is another than ours: cluster.docker.user=null"


def image_of(command: list[str]) -> dict[str, Any]:
    """The image that the container was made from: its id, and the digests under which registries have it. Empty if the
    program does not say (the attempt has ended already)."""
    known = name(command)
    number = ask(command, "container", "inspect", "--format", "{{.Image}}", known) if known else ""
    listed = ask(command, "image", "inspect", "--format", "{{json .RepoDigests}}", number) if number else ""
    with contextlib.suppress(ValueError):
        return {"id": number, "digests": json.loads(listed) or []}
    return {"id": number, "digests": []} if number else {}


def name(command: list[str]) -> str:
    """The container's; empty if it has none."""
    return command[command.index(NAMED) + 1] if NAMED in command else ""


def ask(command: list[str], *words: str) -> str:
    """What the container program says; empty if it fails."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [command[0], *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ASK_S, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""


def start(command: list[str], line: bytes, log: Path, own: Path) -> dict[str, Any]:
    """Run it until the node's record is there; what to answer."""
    with log.open("ab") as out:
        try:
            client = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return {"error": f"cannot run {command[0]}: {error.strerror}"}
    assert client.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        client.stdin.write(line)
        client.stdin.close()
    while client.poll() is None and not own.exists():  # pulling an image takes what it takes
        time.sleep(POLL_S)
    if own.exists():
        about = json.loads(own.read_text())
        return {"temp_dir": about["temp_dir"], "ranks": about["ranks"]}
    said = " ".join(log.read_text(errors="replace").split()[-80:])
    if client.returncode == BUSY:
        return {"busy": True, "error": said}
    return {"error": f"{command[0]} ended with code {client.returncode}: {said}"}


if __name__ == "__main__":
    sys.exit(main())
