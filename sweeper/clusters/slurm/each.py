"""A command on every node of a Slurm job or partition, side by side.

Guarantees: an answer a node; what goes wrong on one is said in its answer, and nothing is raised; no shared filesystem
is needed.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Mapping, Sequence

from sweeper.clusters.base import Answer

ON_NODE = """
import base64, json, os, socket, subprocess, sys
limit, *argv = sys.argv[1:]
try:
    done = subprocess.run(argv, input=sys.stdin.read(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, errors="replace", timeout=float(limit))
    said = [done.returncode, done.stdout, done.stderr]
except Exception as error:
    said = [None, "", "%s: %s" % (type(error).__name__, error)]
name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
rank = os.environ.get("SLURM_PROCID", "0")
text = base64.b64encode(json.dumps([name, *said]).encode()).decode()
for start in range(0, len(text), 600):
    print("SWEEPER", rank, text[start:start + 600], flush=True)
print("SWEEPER", rank, ".", flush=True)
"""
"""Runs a command and says all about it in short lines that carry the rank, since srun mixes the nodes' output: line by
line, and in the middle of a line where it is longer than the 1,024 bytes of one of its messages. A "." ends it."""
_OF_TASK = re.compile(r"^srun: error: ([\w.-]+): task (\d+): ", re.MULTILINE)
"""How srun names a node whose command did not run: the only word of it where it gave no answer."""
GRANT_S = 60.0
"""For Slurm to grant the nodes and start the step, beside the command's own time."""


def run_each(
    argv: Sequence[str],
    stdin: str,
    timeout_s: float,
    *,
    nodes: int,
    options: Sequence[str],
    python: str,
    env: Mapping[str, str] | None = None,
) -> list[Answer]:
    """Answers of `nodes` nodes, in Slurm's order; `options` for srun say which. `{python}` in `argv` is the node's."""
    command = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--wait=0", "--quiet", *options]
    inner = [word.replace("{python}", python) for word in argv]
    command += [python, "-I", "-S", "-c", ON_NODE, str(timeout_s), *inner]
    out, err = "", ""
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=timeout_s + GRANT_S, env=env, check=False
        )
        out, err = done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        out = (error.stdout or b"").decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        err = f"Slurm did not start it on every node within {timeout_s + GRANT_S:.0f} s"
    except OSError as error:
        err = f"srun cannot be run: {error.strerror}"
    answers = _answers(out)
    names = {int(rank): name for name, rank in _OF_TASK.findall(err)}
    why = err.strip() or "it gave no answer"
    return [answers.get(rank, Answer(names.get(rank, f"node {rank}"), None, "", why)) for rank in range(nodes)]


def _answers(out: str) -> dict[int, Answer]:
    """The answers that arrived whole, by rank; what else was written to the same output is passed over."""
    parts: dict[int, list[str]] = {}
    answers: dict[int, Answer] = {}
    for line in out.splitlines():
        words = line.split()
        if len(words) != 3 or words[0] != "SWEEPER" or not words[1].isdecimal():
            continue
        rank, part = int(words[1]), words[2]
        if part != ".":
            parts.setdefault(rank, []).append(part)
            continue
        name, code, said, complained = json.loads(base64.b64decode("".join(parts.get(rank, []))))
        answers[rank] = Answer(name, code, said, complained)
    return answers
