"""What the config says of a Slurm cluster, checked.

Guarantees: every key is looked at and all that is wrong is returned at once, without asking Slurm; what passes can be
written into a script or a command line as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sweeper.config.nearest import nearest
from sweeper.errors import Problem

MODES = ("job", "allocation")
CONTAINERS = ("pyxis", "apptainer")
_WORD = re.compile(r"[A-Za-z0-9_][\w.,+-]*")
_GRES = re.compile(r"gpu(:[A-Za-z0-9_][\w.-]*)?")
_TIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}|infinite|unlimited", re.IGNORECASE)
_MEMORY = re.compile(r"\d+[KMGT]?", re.IGNORECASE)
_MOUNT = re.compile(r"/[^\s,:]*(:/[^\s,:]*)?(:[a-z+]+)?")
OURS = (
    "job-name", "comment", "nodes", "ntasks", "ntasks-per-node", "gres", "gpus", "gpus-per-node", "cpus-per-task",
    "output", "error", "chdir", "export", "signal", "requeue", "no-requeue", "open-mode", "array", "partition",
    "account", "qos", "time", "mem", "wrap", "wait", "parsable",
)  # fmt: skip
"""Options of sbatch that we set ourselves: said twice, one of the two would be lost without a word."""
_OWN_KEY = {"cpus-per-task": "cpus_per_node", "mem": "mem_per_node"} | {
    name: name for name in ("gres", "partition", "account", "qos", "time")
}


@dataclass(frozen=True, slots=True)
class Settings:
    """`cluster.slurm`; conf/cluster/slurm.yaml says what each is."""

    mode: str = "job"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    gres: str = "gpu"
    cpus_per_node: int | None = None
    mem_per_node: str | None = None
    lead_s: int = 60
    grace_s: int = 0
    poll_s: float = 5.0
    container: str = "pyxis"
    mounts: tuple[str, ...] = ()
    sbatch: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        """From a `cluster` group that has no problems."""
        said = dict(config.get("slurm") or {})
        lists = {name: tuple(said[name] or ()) for name in ("mounts", "sbatch", "setup") if name in said}
        # YAML reads 200000 as a number, and 1:30:00 as one in base 60 in old readers: what Slurm takes is text.
        texts = {name: str(said[name]) for name in ("time", "mem_per_node") if said.get(name) is not None}
        return cls(**{**said, **lists, **texts})


def problems(config: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the `cluster` group, without asking anybody."""
    said = config.get("slurm")
    if not isinstance(said, Mapping):
        what = f"cluster.slurm={said} is no mapping"
        return [Problem(what, valid="a mapping: conf/cluster/slurm.yaml has its keys", key="cluster.slurm")]
    known = [field.name for field in fields(Settings)]
    found = [_unknown(key, known) for key in said if key not in known]
    for key, (good, valid) in _CHECKS.items():
        value = said.get(key, getattr(Settings(), key))
        if not good(value):
            found.append(Problem(f"cluster.slurm.{key}={value}", valid=valid, key=f"cluster.slurm.{key}"))
    found += _gres(said.get("gres", "gpu"))
    options = said.get("sbatch")
    for option in options if isinstance(options, list | tuple) else ():
        found += _option(option)
    if config.get("nodes") is None:
        found.append(Problem("cluster.nodes is not given", valid="a whole number from 1", key="cluster.nodes"))
    if said.get("mode") == "allocation" and said.get("grace_s"):
        what = "cluster.slurm.grace_s: an allocation that is taken back is not waited for"
        found.append(Problem(what, valid="0 with mode=allocation", key="cluster.slurm.grace_s"))
    if config.get("device") == "auto":
        found.append(
            Problem(
                "cluster.device=auto: what a rank is cannot be seen from where jobs are submitted",
                valid="cluster.device: cuda, cpu",
                key="cluster.device",
            )
        )
    return found


def _unknown(key: str, known: list[str]) -> Problem:
    near = nearest(key, known)
    fix = f"cluster.slurm.{near[0]}" if near else ""
    return Problem(f"cluster.slurm.{key} is not known", valid=", ".join(known), fix=fix, key=f"cluster.slurm.{key}")


def _gres(value: Any) -> list[Problem]:
    if isinstance(value, str) and _GRES.fullmatch(value) and not re.fullmatch(r"gpu:\d+", value):
        return []
    counted = re.fullmatch(r"(gpu(?::[A-Za-z0-9_][\w.-]*?)?):(\d+)", str(value))
    fix = f"cluster.slurm.gres={counted[1]} cluster.gpus_per_node={counted[2]}" if counted else "cluster.slurm.gres=gpu"
    what = f"cluster.slurm.gres={value} " + (
        "has a count in it" if counted else "is no kind of GPU as Slurm names them"
    )
    return [Problem(what, valid="gpu, or gpu:TYPE (gpu:h100)", fix=fix, key="cluster.slurm.gres")]


def _option(option: Any) -> list[Problem]:
    key = "cluster.slurm.sbatch"
    if not isinstance(option, str) or not re.fullmatch(r"--[a-z][a-z-]*(=[^\n]*)?", option):
        return [Problem(f"{key}: {option!r} is no option of sbatch", valid="['--constraint=nvlink']", key=key)]
    name = option[2:].partition("=")[0]
    if name not in OURS:
        return []
    own = _OWN_KEY.get(name)
    fix = f"cluster.slurm.{own}=..." if own else ""
    return [Problem(f"{key}: --{name} is set by the sweep", valid="options that it does not set", fix=fix, key=key)]


def _or_null(pattern: re.Pattern[str]) -> Any:
    return lambda value: value is None or (not isinstance(value, bool) and bool(pattern.fullmatch(str(value))))


def _lines(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(line, str) and "\n" not in line for line in value)


def _mounts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(m, str) and bool(_MOUNT.fullmatch(m)) for m in value)


def _count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


def _lead(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65_535  # what --signal takes


def _grace(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (value == 0 or 10 <= value <= 65_535)


def _seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.1 <= value <= 600


_CHECKS: dict[str, tuple[Any, str]] = {
    "mode": (lambda value: value in MODES, ", ".join(MODES)),
    "partition": (_or_null(_WORD), "a partition's name, or null"),
    "account": (_or_null(_WORD), "an account's name, or null"),
    "qos": (_or_null(_WORD), "a QOS's name, or null"),
    "time": (_or_null(_TIME), "minutes, H:MM:SS or D-HH:MM:SS (quoted); or null"),
    "cpus_per_node": (_count, "a whole number from 1, or null"),
    "mem_per_node": (_or_null(_MEMORY), "megabytes, or a number with K, M, G or T; or null"),
    "lead_s": (_lead, "whole seconds from 1 to 65535"),
    "grace_s": (_grace, "whole seconds from 10 to 65535, or 0"),
    "poll_s": (_seconds, "seconds from 0.1 to 600"),
    "container": (lambda value: value in CONTAINERS, ", ".join(CONTAINERS)),
    "mounts": (_mounts, "a list of folders: [/data, '/models:/models:ro']"),
    "sbatch": (lambda value: isinstance(value, list | tuple), "a list of options: ['--constraint=nvlink']"),
    "setup": (_lines, "a list of shell lines: ['module load cuda/12.8']"),
}
