"""The readable files of a sweep and its attempts, and the reader of growing metrics files.

Guarantees: a file is either whole or absent (temp file in the same folder, rename; a power cut may take the latest, as
it may the ledger's last events: an fsync a file would cost more than all else that is done for a trial); an attempt's
folder is made once and never reused (`os.mkdir` is the lock); no value of a secret variable is written; a full disk is
a SweeperError that names the path and the space left. Only the standard library is imported.

Layout (docs/records.md):
    {store}/{sweep}/sweep.json                              what was asked for, when, with which versions
    {store}/{sweep}/trials/{id}/checkpoints/                shared by the attempts of the trial
    {store}/{sweep}/trials/{id}/attempt-{k}/spec.json       what this attempt is
    {store}/{sweep}/trials/{id}/attempt-{k}/status.json     how it goes, and how it ended
The engine's own files (its config, command.sh) come with the job and are written by the cluster.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from sweeper.engines.base import Job
from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.trial.identity import OURS, canonical
from sweeper.trial.spec import Trial

SCHEMA = 1
"""Version of spec.json, status.json and sweep.json; raised when a field changes its meaning."""

CONTROLLER_LOG = "controller.log"
"""In a sweep's folder: what its controller said while it was detached."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""What a sweep may be called: its name is a folder's."""
_SECRET_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD", re.IGNORECASE)
_SECRET_NAME = re.compile(r"(^|_)(API_?)?(KEY|TOKEN|SECRET|PASSWORD|PASSWD)S?(_|$)", re.IGNORECASE)
_SHORTEST_SECRET = 8
"""Shorter values (`true`, `1`) are no secrets, and masking them would tear the text apart."""


class RecordsError(SweeperError):
    """A record could not be written or read; the message names the path and the reason."""


# --- writing -----------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace `path` by `text` in one step, secrets masked.

    Raises:
        RecordsError: it could not be written; what was there before is untouched and no temp file is left.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(mask(text))
        temp.chmod(mode)  # the umask may have taken bits that a script needs
        temp.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise cannot_write(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """`write_text` of `to_json(value)`, indented for people."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, *, indent: int | None = None, between: str | None = None) -> str:
    """Strict JSON: NaN and the infinities, which JSON has not, become the strings `NaN`, `Infinity`, `-Infinity`.

    Python's own `json` writes them bare, which most other readers refuse; `float()` reads the strings back.
    `between`: what stands between two items instead of `, `.
    """
    separators = None if between is None else (between, ": ")
    try:
        return json.dumps(value, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(
            _finite(value), indent=indent, separators=separators, ensure_ascii=False, allow_nan=False, default=str
        )


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def number(value: Any) -> float | None:
    """A number that `to_json` wrote, where the non-finite ones are strings; None stays None."""
    return None if value is None else float(value)


def store_flag(store: Path) -> str:
    """` --store FOLDER` for a command that is shown; empty for the store that commands look into without one."""
    return "" if store.absolute() == Path("runs").absolute() else f" --store {shlex.quote(str(store))}"


def plain_name(key: str, name: str, *, fix: str = "") -> None:
    """Refuse what cannot name a folder: a path, an option, nothing at all.

    Raises:
        RequestError: with the key that it was given by.
    """
    if not NAME.fullmatch(name):
        valid = "letters, digits, '.', '_' and '-', starting with a letter or digit"
        raise RequestError(Problem(f"{key}={name} cannot name a folder", valid=valid, fix=fix, key=key))


def cannot_write(path: Path, error: OSError) -> RecordsError:
    """The same sentence for every record that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RecordsError(
            f"the disk is full: {path} could not be written ({_free(path)} free there)\n"
            "  try:   free some space, then `sweeper resume`; records written so far are whole"
        )
    return RecordsError(f"{path} could not be written: {error.strerror or error}")


def _free(path: Path) -> str:
    for parent in path.parents:
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(parent).free / 2**20:.1f} MiB"
    return "an unknown amount"


# --- secrets -----------------------------------------------------------------------------------------------------


def mask(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Replace the values of secret variables of the environment by `<NAME>`.

    A variable is secret when its name contains KEY, TOKEN, SECRET or PASSWORD. Short values and existing paths are
    not masked: the first are switches, the second say where a secret is and not what it is.
    """
    for name, value in (os.environ if environ is None else environ).items():
        if (
            len(value) >= _SHORTEST_SECRET
            and _SECRET_VARIABLE.search(name)
            and value in text
            and not (value.startswith("/") and Path(value).exists())
        ):
            text = text.replace(value, f"<{name}>")
    return text


def secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret: `WANDB_API_KEY` does, `TOKENIZERS_PARALLELISM` does not."""
    return bool(_SECRET_NAME.search(name))


def without_secrets(env: Mapping[str, Any]) -> dict[str, Any]:
    """Variables with the names of secrets in place of their values: `<WANDB_API_KEY>`."""
    return {k: f"<{k}>" if secret_name(k) else v for k, v in env.items()}


# --- folders -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """Everything that a sweep leaves behind."""

    path: Path

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.path.name

    @classmethod
    def create(cls, store: Path, name: str, overrides: Sequence[str]) -> SweepFolder:
        """Make the folder of a new sweep; a name that is taken by now gets `-2`, `-3`, ...

        Raises:
            RequestError: the name is no plain folder name.
            RecordsError: the store cannot be written.
        """
        plain_name("name", name)
        path = store / name
        made = store / f".{name}.{os.getpid()}.new"
        about = {
            "schema": SCHEMA,
            "overrides": list(overrides),
            "created": now(),
            "host": socket.gethostname(),
            "cwd": str(Path.cwd()),
            "python": sys.executable,
            "versions": versions("sweeper", "hydra-core", "mlflow"),
        }
        try:
            store.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(made, ignore_errors=True)  # of a process of the same number that was killed right here
            (made / "trials").mkdir(parents=True)
            number = 1
            while True:
                path = store / (name if number == 1 else f"{name}-{number}")
                write_json(made / "sweep.json", {**about, "name": path.name})
                try:
                    if not path.exists():
                        made.rename(path)  # whole or not at all, and refused where there is something
                        return cls(path)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                number += 1
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            raise cannot_write(path, error) from error

    @classmethod
    def existing(cls, store: Path, name: str) -> SweepFolder:
        """The folder of a sweep that was started before.

        Raises:
            RequestError: there is no such sweep in the store.
        """
        path = store / name
        if (path / "ledger.db").is_file() and not (path / "sweep.json").is_file():
            raise RequestError(_unsaid(path / "sweep.json", "is missing"))
        if not (path / "sweep.json").is_file():
            there = sorted(p.parent.name for p in store.glob("*/sweep.json"))
            raise RequestError(
                Problem(
                    f"no sweep named {name} in {store}",
                    valid=", ".join(there[-20:]) or "there is none yet",
                    fix=f"sweeper status{store_flag(store)}" if there else "",
                    key="name",
                )
            )
        return cls(path)

    @property
    def typed(self) -> str:
        """As it stands in a command that is shown: its name, and its store where the command would not look there."""
        return f"{self.name}{store_flag(self.path.parent)}"

    def overrides(self) -> list[str]:
        """The override lines that it was started with, as typed.

        Raises:
            RequestError: the file that says so is damaged.
        """
        path = self.path / "sweep.json"
        try:
            lines = read_json(path)["overrides"]
            if isinstance(lines, list):
                return [str(line) for line in lines]
            why = "has no list of override lines"
        except RecordsError as error:
            why = f"cannot be read: {error}"
        except (KeyError, TypeError):
            why = "has no list of override lines"
        raise RequestError(_unsaid(path, why))

    def trial(self, trial_id: str) -> Path:
        """Where the attempts of a trial are."""
        return self.path / "trials" / trial_id

    def checkpoints(self, trial_id: str) -> Path:
        """Where the trial's checkpoints go; shared by its attempts."""
        return self.trial(trial_id) / "checkpoints"

    def attempts(self, trial_id: str) -> list[Path]:
        """Its attempts' folders, oldest first."""
        numbered = ((attempt_number(p), p) for p in self.trial(trial_id).glob("attempt-*"))
        return [path for number, path in sorted(numbered) if number]

    def latest_attempt(self, trial_id: str) -> Path | None:
        """The folder of its latest attempt, if it has one."""
        return attempts[-1] if (attempts := self.attempts(trial_id)) else None

    def trial_ids(self) -> list[str]:
        """The trials that have been attempted."""
        return sorted(p.name for p in (self.path / "trials").glob("*") if p.is_dir())

    def new_attempt(self, trial_id: str) -> AttemptFolder:
        """Make the folder of the trial's next attempt.

        Raises:
            RecordsError: the folder cannot be made.
        """
        parent = self.trial(trial_id)
        path = parent / "attempt-?"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            attempts = self.attempts(trial_id)
            number = attempt_number(attempts[-1]) + 1 if attempts else 1
            while True:
                path = parent / f"attempt-{number}"
                try:
                    path.mkdir()
                    return AttemptFolder(path, number, self.name, attempts[-1].name if attempts else None)
                except FileExistsError:
                    number += 1
        except OSError as error:
            raise cannot_write(path, error) from error


@dataclass(slots=True)
class AttemptFolder:
    """The records of one attempt."""

    path: Path
    number: int
    sweep: str
    previous: str | None
    """Folder name of the attempt before it."""
    _started: float = 0.0

    def write_spec(self, trial: Trial, job: Job, tags: Mapping[str, Any]) -> None:
        """Write spec.json.

        Raises:
            RecordsError: it cannot be written.
        """
        config = trial.config
        engine = dict(config.get("engine") or {})
        ours = {k: config[k] for k in OURS if k in config}
        if engine.get("env"):
            ours["engine"] = {**engine, "env": without_secrets(engine["env"])}
        theirs = {k: v for k, v in config.items() if k not in OURS}
        here = job.python == sys.executable  # another interpreter's packages are not known here
        write_json(
            self.path / "spec.json",
            {
                "schema": SCHEMA,
                "sweep": self.sweep,
                "trial": trial.id,
                "label": trial.label,
                "attempt": self.number,
                "previous": self.previous,
                "varied": dict(trial.point.varied),
                "overrides": list(trial.point.overrides),
                "fingerprint": tags.get("sweeper.fingerprint"),
                "config": ours,
                "engine_config_sha256": hashlib.sha256(canonical(theirs).encode()).hexdigest(),
                "gang": {
                    "nodes": job.gang.nodes,
                    "gpus_per_node": job.gang.gpus_per_node,
                    "cpus_per_node": job.gang.cpus_per_node,
                },
                "total_steps": job.total_steps,
                "metrics": job.metrics,
                "argv": list(job.argv),
                "env": without_secrets(job.env),
                "inherit": list(job.inherit),
                "python": job.python,
                "tags": dict(tags),
                "versions": versions("sweeper", str(engine.get("name", "")), *(("torch", "ray") if here else ())),
                "created": now(),
            },
        )

    def write_status(self, state: str, **facts: Any) -> None:
        """Write status.json: `starting`, `running`, `finished`, `failed` or `stopped`, and what is known.

        Raises:
            RecordsError: it cannot be written.
        """
        moment = time.time()
        self._started = self._started or moment
        ended = state in ("finished", "failed", "stopped")
        write_json(
            self.path / "status.json",
            {
                "schema": SCHEMA,
                "state": state,
                **facts,
                "attempt": self.number,
                "host": socket.gethostname(),
                "started": now(self._started),
                "updated": now(moment),
                **({"ended": now(moment)} if ended else {}),
            },
        )


def read_json(path: Path) -> dict[str, Any]:
    """One of our JSON records.

    Raises:
        RecordsError: it is missing or not one of ours.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordsError(f"{path} could not be read: {error}") from error
    if not isinstance(value, dict):
        raise RecordsError(f"{path} could not be read: it holds no JSON object")
    return value


def now(moment: float | None = None) -> str:
    """A time as records say it: UTC, ISO 8601, milliseconds."""
    return datetime.fromtimestamp(time.time() if moment is None else moment, UTC).isoformat(timespec="milliseconds")


def versions(*packages: str) -> dict[str, str | None]:
    """The installed version of each distribution, without importing it; None when it is not installed here."""
    return {package: _version(package) for package in filter(None, packages)}


@lru_cache
def _version(package: str) -> str | None:
    from importlib import metadata  # here: it is slow to import, and a plan does not need it

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def attempt_number(path: Path) -> int:
    """The number of an attempt's folder; 0 for any other."""
    digits = path.name.removeprefix("attempt-")
    return int(digits) if digits.isdigit() else 0


# --- tailing -----------------------------------------------------------------------------------------------------


class Tail:
    """Reads the objects that a JSONL file gains, while another process writes it.

    A half-written last line waits for its end; a file that shrank or was replaced is read from its start; lines that
    are no JSON object are counted in `skipped` and passed over; NaN and the infinities are read as floats.
    """

    def __init__(self, path: Path) -> None:
        """The file need not exist yet."""
        self.path = path
        self.skipped = 0
        self._offset = 0
        self._inode = 0
        self._partial = b""

    def read(self) -> list[dict[str, Any]]:
        """Every whole line since the last call; empty when there is none.

        Raises:
            RecordsError: the file is there and cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                facts = os.fstat(file.fileno())
                if facts.st_size < self._offset or (self._inode and facts.st_ino != self._inode):
                    self._offset, self._partial = 0, b""
                self._inode = facts.st_ino
                if facts.st_size == self._offset:
                    return []
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RecordsError(f"{self.path} could not be read: {error.strerror}") from error
        self._offset += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [found for line in lines if (found := self._parse(line)) is not None]

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        if not line.strip():
            return None
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            return value
        self.skipped += 1
        return None


def _unsaid(path: Path, why: str) -> Problem:
    return Problem(
        f"{path} {why}: it says what the sweep was started with",
        valid='{"overrides": [...]}, as it was written when the sweep started',
        fix="restore it from a backup; or start anew under another name: finished trials of this store are reused",
        key="name",
    )
