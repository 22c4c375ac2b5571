"""Who the nodes of this Slurm job are, and when it ends.

    python3 -I -S slurm_nodes.py FOLDER LEAD_S      (in the job's batch script)

Writes the nodes into FOLDER/gang/gang.json, in the order of their ranks, each with an address at which the others reach
it; Slurm had not chosen them when that was written. Prints the Unix time at which the attempt must be over: LEAD_S
before the job's end, and a minute, because Slurm may send its signal so much earlier; a year from now where the job
has no limit. Only the standard library.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

EARLY_S = 60
"""How much earlier than asked the signal before the time limit may come (sbatch(1), --signal)."""
YEAR_S = 365 * 86_400


def scontrol(*words: str) -> str:
    """What scontrol says; ends the program if it fails, with its words on stderr."""
    env = {**os.environ, "SLURM_TIME_FORMAT": "standard"}  # the user's may leave out the day
    done = subprocess.run(["scontrol", *words], stdout=subprocess.PIPE, text=True, check=True, env=env)
    return done.stdout


def reached_at(name: str, others: list[str]) -> str:
    """An address by which other nodes reach it. On the node itself its name may stand for a loopback address."""
    if re.fullmatch(r"[\d.]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*", name):
        return name
    address = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
    if not str(address).startswith(("127.", "::1")):
        return str(address)
    for other in others:  # the address that we would be seen with there; nothing is sent
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((other, 9))
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return str(address)


def addresses(names: list[str]) -> list[str]:
    """The address of each node, as Slurm knows it."""
    found = []
    for name in names:
        shown = scontrol("show", "node", name, "--oneliner")
        matched = re.search(r"\bNodeAddr=(\S+)", shown)
        found.append(matched.group(1) if matched else name)
    return [reached_at(name, [other for other in found if other != name]) for name in found]


def end_of(record: str) -> float:
    """The Unix time of a job's end in what `scontrol show job` says; infinite without a limit."""
    matched = re.search(r"\bEndTime=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", record)
    return time.mktime(time.strptime(matched.group(1), "%Y-%m-%dT%H:%M:%S")) if matched else float("inf")


def main() -> None:
    """Write the nodes, print the time."""
    names = scontrol("show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()
    path = Path(sys.argv[1]) / "gang" / "gang.json"
    gang = json.loads(path.read_text())
    pairs = zip(names, addresses(names))  # noqa: B905  (Python 3.9 has no strict)
    gang["nodes"] = [{"name": name, "address": address} for name, address in pairs]
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(gang, indent=1) + "\n")
    partial.replace(path)
    end = end_of(scontrol("show", "job", os.environ["SLURM_JOB_ID"], "--oneliner"))
    print(int(min(end - float(sys.argv[2]) - EARLY_S, time.time() + YEAR_S)))


if __name__ == "__main__":
    main()
