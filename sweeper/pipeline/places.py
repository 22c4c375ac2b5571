"""Where the stages find and leave what they hand on, and where the sweeps' own records are.

Guarantees: everything is below the checkout that the stage runs in, but for the records of sweeps: those of an
experiment that DVC runs in a folder of its own (`dvc exp run --queue`) are kept with the main checkout's, or they would
be gone with that folder. A folder is replaced whole. What is missing is said with the command that brings it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeper.errors import Problem, RequestError
from sweeper.lineage import hashes
from sweeper.trial.records import cannot_write, write_json

OUT = Path("pipeline")
REQUEST, DATA, MODEL = OUT / "request", OUT / "data", OUT / "model"
SWEEP, BEST, REPORT = OUT / "sweep", OUT / "best", OUT / "report"
METRICS, PLOTS = OUT / "metrics.json", OUT / "plots"
OWN = Path("data")
"""The user's own files: what DVC sees a change of."""
STORE = "runs"


def store() -> Path:
    """The folder of the sweeps' records, absolute: `runs` of the checkout, or of the main one."""
    return main_checkout() / STORE


def main_checkout() -> Path:
    """This folder; of an experiment in a temporary copy (`.dvc/tmp/exps/...`) the checkout that it was started from."""
    here = Path.cwd()
    for parent in here.parents:
        if parent.name == "exps" and parent.parent.name == "tmp" and parent.parent.parent.name == ".dvc":
            return parent.parents[2]
    return here


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder to write in, which takes the place of `folder` when the block ends well.

    Raises:
        SweeperError: It cannot be written; what was there before is untouched.
    """
    aside = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        elif folder.exists() or folder.is_symlink():
            folder.unlink()
        aside.rename(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(aside, ignore_errors=True)


def write(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON file, keys sorted, so that equal content is equal bytes."""
    write_json(path, json.loads(json.dumps(value, sort_keys=True, default=str)))


def read(path: Path) -> dict[str, Any]:
    """A JSON file that an earlier stage wrote.

    Raises:
        RequestError: It is not there, or not what a stage writes.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, ValueError) as error:
        raise RequestError(Problem(f"{path} cannot be read: {error}", fix="dvc checkout, or dvc repro")) from error
    if not isinstance(found, dict):
        raise RequestError(Problem(f"{path} holds no JSON object", fix="dvc checkout, or dvc repro"))
    return found


def missing(path: Path) -> RequestError:
    """What an earlier stage makes is not here."""
    return RequestError(
        Problem(
            f"{path} is not here: an earlier stage makes it",
            valid="what dvc.lock names, from the cache or from a remote; or made anew",
            fix="dvc pull   (from a remote that has it), or dvc repro   (make it again)",
        )
    )


def files(folder: Path) -> list[tuple[str, int, str]]:
    """(relative path, bytes, SHA-256) of each file below, sorted.

    Raises:
        RequestError: The folder is not there.
    """
    if not folder.is_dir():
        raise missing(folder)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    hashed = hashes.Hashes().files(paths, fresh=True)
    names = (path.relative_to(folder).as_posix() for path in paths)
    return [(name, path.stat().st_size, sha) for name, path, sha in zip(names, paths, hashed, strict=True)]


def digest(value: Any) -> str:
    """Of any JSON value, in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def link(source: str, target: str) -> str:
    """For `shutil.copytree`: a hard link, or a copy where there can be none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
