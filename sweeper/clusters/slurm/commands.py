"""Slurm's own commands, run and read.

Guarantees: no call waits longer than its limit; what goes wrong is a `SlurmError` that says which command failed and
why, in Slurm's words; no secret is on a command line.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeper.errors import Problem, RequestError, SweeperError

TIMEOUT_S = 30.0
"""A controller that is busy answers late; one that is down, never."""
COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
_AWAY = re.compile(
    r"Unable to contact slurm controller|Connection refused|Socket timed out|Zero Bytes were transmitted"
    r"|Unable to establish controller machine|fetch_config|Could not establish a configuration source",
    re.IGNORECASE,
)
_SETTINGS = {
    "qos": ("qos", "sacctmgr show qos"),
    "account": ("account", "sacctmgr show assoc"),  # before the partition, for it may be named with it
    "partition": ("partition", "sinfo --summarize"),
    "gres": ("gres", "sinfo -o %P,%G"),
    "time": ("time", "sinfo -o %P,%l"),
    "memory": ("mem_per_node", "sinfo -o %P,%m"),
}
"""Word of a refusal -> the key of cluster.slurm that it is about, and the command that shows what is valid."""
_OPTION = ("sbatch", "scontrol show node; scontrol show reservation")
"""The same of every other one: what only sbatch's own options ask for (features, reservations, licenses)."""


class SlurmError(SweeperError):
    """A command of Slurm's failed; `away`: because the controller did not answer, so that it may be asked again."""

    def __init__(self, said: str, *, away: bool = False) -> None:
        self.away = away
        super().__init__(said)


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> str:
    """The command's stdout.

    Raises:
        SlurmError: It is not there, failed, or did not answer in time.
    """
    try:
        done = subprocess.run(
            list(argv), input=stdin, capture_output=True, text=True, timeout=timeout_s, env=env, check=False
        )
    except FileNotFoundError as error:
        raise SlurmError(f"{argv[0]} is not there: Slurm's commands are not on PATH") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{argv[0]} did not answer within {timeout_s:.0f} s", away=True) from error
    except OSError as error:
        raise SlurmError(f"{argv[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = _said(done.stderr) or f"{argv[0]} failed with code {done.returncode}"
        raise SlurmError(said, away=bool(_AWAY.search(done.stderr)))
    return done.stdout


def _said(stderr: str) -> str:
    """What it complained of, without its `sbatch: error: ` before each line."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line).strip() for line in stderr.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))


def wrong_setting(error: SlurmError) -> Problem | None:
    """What of the request sbatch refused and always will; None for what may pass by itself.

    Slurm's words for that begin with `Invalid`; a credential is invalid while clocks or munge are wrong. An option that
    sbatch does not have is refused by getopt.
    """
    said = str(error)
    if not re.search(r"\b(?:invalid\b(?!.*credential)|(?:unrecognized|ambiguous) option\b)", said, re.IGNORECASE):
        return None
    setting, look = next((found for word, found in _SETTINGS.items() if word in said.lower()), _OPTION)
    key = f"cluster.slurm.{setting}"
    return Problem(
        f"sbatch refuses every job of this sweep: {said}",
        valid="what this Slurm has",
        fix=f"{key}=...   ({look} shows it)",
        key=key,
    )


def fields(record: str) -> dict[str, str]:
    """One line of `scontrol --oneliner show`: `Name=value` with blanks between; a value may have blanks itself."""
    places = [(m.start(1), m.end()) for m in re.finditer(r"(?:^|\s)([A-Z][\w:/]*)=", record)]
    found: dict[str, str] = {}
    for (start, end), (after, _) in zip(places, [*places[1:], (len(record), 0)], strict=True):
        found.setdefault(record[start : end - 1], record[end:after].strip())
    return found


@dataclass(frozen=True, slots=True)
class Partition:
    """What a partition's nodes have."""

    name: str
    nodes: int
    """Nodes that are not down for good."""
    gpus: int
    """GPUs of the node that has most of them; of the asked type, where one was."""
    cpus: int
    """Cores of that node."""
    types: tuple[str, ...] = ()
    """Types of GPUs that there are."""
    longest: float | None = None
    """Minutes that a job may take; None: no limit."""


def partition(name: str | None, gres: str) -> Partition:
    """The partition of that name, or the default one, with what its nodes have.

    Args:
        name: the partition's; None: the cluster's default.
        gres: the kind of GPU that counts: `gpu`, `gpu:h100`.

    Raises:
        RequestError: Slurm is not there or does not answer, or has no such partition; says what it has.
    """
    try:
        answer = run(["sinfo", "--noheader", "--all", "--format=%P|%D|%t|%c|%G|%l"])
    except SlurmError as error:
        raise RequestError(unreachable(error)) from error
    rows = [line.split("|") for line in answer.splitlines() if line.count("|") == 5]
    names = list(dict.fromkeys(row[0].rstrip("*") for row in rows))
    chosen = name or next((row[0].rstrip("*") for row in rows if row[0].endswith("*")), None)
    if chosen is None or chosen not in names:
        what = f"cluster.slurm.partition={name}: this Slurm has no such partition"
        if name is None:
            what = "this Slurm has no default partition, and cluster.slurm.partition is not set"
        fix = f"cluster.slurm.partition={names[0]}" if len(names) == 1 else "sinfo --summarize"
        raise RequestError(Problem(what, valid=", ".join(names), fix=fix, key="cluster.slurm.partition"))
    nodes, best, types, longest = 0, (0, 0), [], None
    for where, count, state, cpus, has, limit in rows:
        if where.rstrip("*") != chosen:
            continue
        gpus, longest = of_gres(has), minutes(limit)
        types += [t for t, _ in gpus if t]
        if not state.startswith(("down", "inval", "unk", "fail")):
            nodes += int(count)
        wanted = gres.partition(":")[2]
        best = max(best, (sum(n for t, n in gpus if not wanted or t == wanted), int(re.sub(r"\D", "", cpus) or 0)))
    return Partition(chosen, nodes, best[0], best[1], tuple(dict.fromkeys(types)), longest)


def minutes(text: str) -> float | None:
    """A time limit as Slurm writes it (`30`, `10:00`, `8:00:00`, `1-12`, `1-00:00:00`), in minutes (sbatch's manual,
    `--time`); None: there is none, or it cannot be read."""
    days, dash, rest = text.strip().rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        whole = int(days) * 1440.0 if dash else 0.0
    except ValueError:
        return None
    units = (60.0, 1.0, 1 / 60) if dash or len(parts) == 3 else (1.0, 1 / 60)
    return whole + sum(part * unit for part, unit in zip(parts, units, strict=False))


def of_gres(text: str) -> list[tuple[str, int]]:
    """(type, count) of the GPUs in what sinfo says a node has: `gpu:h100:8(S:0-1),tmpdisk:100`."""
    parts = re.sub(r"\([^)]*\)", "", text).split(",")
    found = (re.fullmatch(r"gpu(?::([^:]*[^:\d][^:]*))?:(\d+)", part.strip()) for part in parts)
    return [(matched[1] or "", int(matched[2])) for matched in found if matched]


def unreachable(error: SlurmError) -> Problem:
    """What to say when Slurm is not there, or not now."""
    conf = os.environ.get("SLURM_CONF")
    fix = "scontrol ping; sinfo" + (f" (SLURM_CONF={conf})" if conf else "")
    if not error.away:
        fix = "run this on a login node of the cluster, where sbatch and squeue work; cluster=node_8gpu plan=true plans"
    return Problem(f"Slurm cannot be asked: {error}", fix=fix, key="cluster")
