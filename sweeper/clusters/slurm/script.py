"""The scripts that Slurm runs: one a trial's attempt (`of_attempt`), or one for a whole sweep (`of_sweep`).

Guarantees: a script can be read, and submitted by hand; it holds no secret: inherited variables pass by name, and the
gang's token is made inside the job, in its environment alone; the same input gives the same text.

What Slurm 22.05 sends, as measured, when it preempts a job whose partition has GraceTime: SIGCONT and SIGTERM to the
tasks of its steps (our guards) and nothing to the script; with `preempt_send_user_signal` SIGCONT and the signal of
`--signal=B:` to the script and nothing to the steps. The job runs on until GraceTime is over (or some seconds more);
then tasks and script get SIGCONT and SIGTERM, and SIGKILL after KillWait. One that ends before has the state of its
exit code, not PREEMPTED. A task is what slurmstepd started with proctrack/cgroup and pgid; with linuxproc all
descendants get its signals. Our own stop is a signal to the script (jobs.py), which passes it to the guards as a byte.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeper.clusters.gang.guard import GRACE
from sweeper.clusters.gang.node import TOKEN
from sweeper.clusters.slurm.settings import Settings
from sweeper.engines.base import Gang

TAG = "sweeper:"
"""Begins the comment of each of our jobs; the rest is the attempt's own and never used twice."""
TIME_UP = "gang/time-is-up"
"""In an attempt's folder: the job script ended the attempt because the job's time was nearly over."""
ENDS_AT = "SWEEPER_ENDS_AT"
"""Variable of an attempt's processes: the Unix time by which it must be over, for a trainer that can save before."""
OWN = (TOKEN, ENDS_AT, GRACE)
"""What a node of the gang needs beside what passes."""
UNLESS_GIVEN_UP = '[ -e "$0/exit.json" ] || SWEEPER_NODE=$SLURMD_NODENAME exec "$@"'
"""For `sh -c`: what starts after the attempt was given up leaves its record as it is."""
LOG = "slurm.log"
"""What the job script itself and Slurm say, in the attempt's folder."""


@dataclass(frozen=True, slots=True)
class Run:
    """What the nodes run: argv of `gang/node.py` for each purpose, without a rank."""

    node: Sequence[str]
    """`python3 -I -S GANG/node.py`."""
    nodes_py: Path
    """gang/slurm_nodes.py, which says who the nodes are."""
    folder: Path
    """The attempt's."""


def said(folder: Path) -> str:
    """The last lines of an attempt's log of that name; empty: there is none."""
    try:
        return " ".join((folder / LOG).read_text(errors="replace").split("\n")[-6:]).strip()
    except OSError:
        return ""


def job_name(folder: Path) -> str:
    """`{sweep}-{trial}-{attempt}`, from {sweep}/trials/{trial}/attempt-{k}: what squeue shows, and of which a folder or
    a job array can be named (no blank, no %, [ or ])."""
    parts = [folder.parts[i] for i in (-4, -2, -1) if len(folder.parts) >= -i]
    parts[-1] = re.sub(r"^attempt-", "a", parts[-1])
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts))[:120]


def resources(settings: Settings, gang: Gang, *, gpus: bool, cpus: int | None) -> list[str]:
    """sbatch's options for what a gang holds. `cpus`: cores a node; None: the site's default."""
    options = [f"--nodes={gang.nodes}", "--ntasks-per-node=1"]
    options += [f"--gres={settings.gres}:{gang.gpus_per_node}"] if gpus else []
    options += [f"--cpus-per-task={cpus}"] if cpus else []
    options += [f"--mem={settings.mem_per_node}"] if settings.mem_per_node else []
    return options + placed(settings)


def placed(settings: Settings) -> list[str]:
    """sbatch's options for where a job runs, and how long."""
    named = (
        ("time", settings.time),
        ("partition", settings.partition),
        ("account", settings.account),
        ("qos", settings.qos),
    )
    return [f"--{option}={value}" for option, value in named if value]


def of_attempt(
    run: Run,
    settings: Settings,
    gang: Gang,
    *,
    tag: str,
    gpus: bool,
    cpus: int | None,
    passed: Sequence[str],
    image: str | None,
) -> str:
    """The job script of one attempt.

    Args:
        run: what its nodes run.
        settings: `cluster.slurm`.
        gang: what it holds.
        tag: the attempt's own, by which its job is found again.
        gpus: whether a rank is a GPU.
        cpus: cores a node; None: the site's default.
        passed: names of variables that the trainer sees of the environment that the job is submitted from.
        image: the engine's container image; None: none.
    """
    folder = run.folder
    options = [
        f"--job-name={job_name(folder)}",
        f"--comment={TAG}{tag}",
        *resources(settings, gang, gpus=gpus, cpus=cpus),
        f"--signal=B:USR1@{settings.lead_s}",
        "--no-requeue",
        "--open-mode=append",
        f"--output={folder / LOG}",
        f"--chdir={folder}",
        f"--export={','.join(passed) or 'NIL'}",
        *settings.sbatch,
    ]
    header = "\n".join(f"#SBATCH {_escaped(option)}" for option in options)
    names = ",".join((*passed, *OWN))
    step = [f"--nodes={gang.nodes}", f"--ntasks={gang.nodes}", "--ntasks-per-node=1"]
    start = ["srun", *step, *([f"--cpus-per-task={cpus}"] if cpus else []), "--kill-on-bad-exit=0", "--wait=20"]
    start += [f"--export={names}", *on_node(run.node, image, settings, folder)]
    ask = ["srun", "--overlap", *step, "--export=PATH", *run.node, "ask", str(folder), "$SLURM_PROCID"]
    setup = "".join(f"{line}\n" for line in settings.setup)
    about = _words([*run.node[:-1], str(run.nodes_py), str(folder), str(settings.lead_s)])
    return f"""#!/bin/bash
# shellcheck disable=SC2016 # what is in single quotes is for each node to expand
# One attempt of a trial as a Slurm job; a retry is another attempt, with a folder and a script of its own.
# The sweep submits it; by hand: sbatch {shlex.quote(str(folder / "job.sh"))}
{header}
set -u
folder={shlex.quote(str(folder))}

# Given up, or run before: what is on record is never overwritten.
if [[ -e $folder/exit.json ]]; then exit 0; fi

{setup}# The gang's secret is in the environment of its processes and nowhere else.
{TOKEN}=$({shlex.join(run.node[:-1])} -c 'import secrets; print(secrets.token_hex(32))') || exit 1
# Tells the gang who its nodes are; says when the attempt must be over, for a trainer that can save before.
{ENDS_AT}=$({about}) || exit 1
# Seconds from the notice of a preemption to the end of its grace (cluster.slurm.grace_s).
{GRACE}={settings.grace_s}
export {" ".join(OWN)}

# A byte for the guard on each node: s ends it gently, k at once, d with the stacks of its processes; p is the notice.
ask() {{
  {_words(ask)} "$1" &
}}
trap 'ask s' TERM
trap 'ask k' INT
trap 'ask d' USR2
# {settings.lead_s} s before the time limit, when the attempt must be over; what comes earlier is a preemption's notice.
trap 'if (($(date +%s) < {ENDS_AT})); then ask p; else touch "$folder/{TIME_UP}"; ask s; fi' USR1

{_words(start)} &
gang=$!
while :; do
  wait "$gang" # until it ends, or a signal was handled
  code=$?
  kill -0 "$gang" 2> /dev/null || exit "$code"
done
"""


def on_node(node: Sequence[str], image: str | None, settings: Settings, folder: Path) -> list[str]:
    """The words for srun that run `node.py run` on each node, with the name that Slurm has for it."""
    checked = ["sh", "-c", UNLESS_GIVEN_UP, str(folder), *node, "run", str(folder), "$SLURM_PROCID"]
    return in_container(checked, image, settings, folder)


def in_container(command: Sequence[str], image: str | None, settings: Settings, folder: Path) -> list[str]:
    """The words for srun that run a node's command in the engine's image: guard, Ray and trainer alike."""
    if not image:
        return list(command)
    # The sweep's folder has the attempt, the checkpoints and the gang's scripts.
    root = folder.parents[2] if len(folder.parts) > 3 else folder
    mounts = [str(root), *settings.mounts]
    if settings.container == "pyxis":
        both = [m if ":" in m else f"{m}:{m}" for m in mounts]
        options = [f"--container-image={image}", f"--container-mounts={','.join(both)}", "--no-container-mount-home"]
        return [*options, "--container-writable", f"--container-workdir={folder}", *command]
    binds = [option for m in mounts for option in ("--bind", m)]
    return ["apptainer", "exec", "--nv", *binds, "--pwd", str(folder), image, *command]


def of_sweep(
    settings: Settings,
    gang: Gang,
    start: Sequence[str],
    resume: Sequence[str],
    *,
    sweep: Path,
    gpus: bool,
    cpus: int | None,
    where: Path,
    environment: Mapping[str, str],
) -> str:
    """The script of a job in which a whole sweep runs.

    Args:
        settings: `cluster.slurm`.
        gang: the allocation: what all trials together may hold.
        start: the command that starts the sweep.
        resume: the command that goes on with it.
        sweep: its folder; once that is there it is gone on with.
        gpus: whether a rank is a GPU.
        cpus: cores a node; None: all of them.
        where: the folder in which the command is run.
        environment: what the sweep's own interpreter needs to be told (no secrets).
    """
    options = [
        "--job-name=sweep",
        *resources(settings, gang, gpus=gpus, cpus=cpus),
        *([] if cpus else ["--exclusive"]),
        f"--signal=B:TERM@{settings.lead_s}",
        "--no-requeue",
        "--open-mode=append",
        "--output=sweep-%j.log",
        f"--chdir={where}",
        *settings.sbatch,
    ]
    header = "\n".join(f"#SBATCH {_escaped(option)}" for option in options)
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(environment.items()))
    setup = "".join(f"{line}\n" for line in settings.setup)
    return f"""#!/bin/bash
# A whole sweep inside one Slurm allocation: its trials are steps of this job.
# Submit it again after its time is over: it goes on where it stopped.
{header}
set -u
{setup}{exports}
if [ -e {shlex.quote(str(sweep / "sweep.json"))} ]; then
  {_words(resume)} &
else
  {_words(start)} &
fi
sweep=$!
trap 'kill -INT "$sweep"' TERM # {settings.lead_s} s before the time limit: stop gently, resumable
while :; do
  wait "$sweep" # until it ends, or a signal was handled
  code=$?
  kill -0 "$sweep" 2> /dev/null || exit "$code"
done
"""


def _escaped(option: str) -> str:
    """An option on an #SBATCH line, which sbatch splits at blanks and in which # begins a comment."""
    return option if re.fullmatch(r"[^\s#'\"\\]+", option) else '"' + re.sub(r'(["\\])', r"\\\1", option) + '"'


def _words(command: Sequence[str]) -> str:
    """A command over several lines, options first. `$SLURM_PROCID` is for the node to read, so it is quoted."""
    lines, line = [], ""
    for word in map(shlex.quote, command):
        if line and len(line) + len(word) > 100:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return " \\\n    ".join([*lines, line])
