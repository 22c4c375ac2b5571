"""Checkpoints that somebody outside the sweep needs: `{checkpoints}/pins/<name>.json`, {"step", "by", "why", "time"}.

Guarantees: a pinned checkpoint is freed neither by a sweep's budget nor by `sweeper gc`; a pin is whole or absent; one
that cannot be read holds every checkpoint of its trial, for nobody can say which it meant. Many may pin the same
checkpoint; each takes only its own pin away.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from sweeper.errors import Problem, RequestError
from sweeper.trial.records import cannot_write, now, write_json

FOLDER = "pins"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,199}")


@dataclass(frozen=True, slots=True)
class Pin:
    """Why a checkpoint stays."""

    name: str
    step: int | None
    """None: the pin cannot be read."""
    by: str
    """Who needs it: `mlflow`, `dvc`, a person."""
    why: str


def pin(folder: Path, step: int, by: str, why: str, *, name: str = "") -> Pin:
    """Keep that step of a trial's checkpoint folder from being freed; again with the same name: instead of before.

    `name` is by default made of `by` and the step.

    Raises:
        RequestError: There is no such checkpoint, or the name cannot name a file.
        RecordsError: It cannot be written.
    """
    name = name or f"{by}-{step}"
    if not _NAME.fullmatch(name):
        raise RequestError(Problem(f"a pin cannot be called {name!r}", valid="letters, digits, '.', '_', '@' and '-'"))
    if not (folder / f"global_step_{step}").is_dir():
        raise RequestError(Problem(f"there is no checkpoint of step {step} in {folder} to pin"))
    path = folder / FOLDER / f"{name}.json"
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    write_json(path, {"step": step, "by": by, "why": why, "time": now()})
    return Pin(name, step, by, why)


def unpin(folder: Path, name: str) -> bool:
    """Take a pin away; whether it was there."""
    try:
        (folder / FOLDER / f"{name}.json").unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise cannot_write(folder / FOLDER / f"{name}.json", error) from error
    return True


def pinned(folder: Path) -> list[Pin]:
    """The pins of a trial's checkpoint folder, by name."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            found.append(Pin(path.stem, int(said["step"]), str(said.get("by", "")), str(said.get("why", ""))))
        except (OSError, ValueError, KeyError, TypeError):
            found.append(Pin(path.stem, None, "", f"{path} cannot be read"))
    return found
