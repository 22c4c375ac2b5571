"""The content of a checkpoint as it was written: `{checkpoints}/manifests/global_step_N.json`.

    {"kind": "sweeper.checkpoint", "schema": 1, "step", "trial", "attempt", "digest", "bytes",
     "files": [[relative path, bytes, sha256], ...], "written"}

Guarantees: a manifest is there whole or not at all (temp file, rename), and only of a checkpoint that did not change
while it was read; `verify` finds and names every file that is missing, longer, shorter or differs in one bit; a
manifest that is damaged itself is told from a checkpoint that is. `digest` is the SHA-256 of the canonical JSON of
`files`, sorted by path, so that equal content has equal digests wherever it lies. Files are read in parallel threads
(hashlib lets others run meanwhile). Only the standard library is imported, Python 3.10 included: an attempt's folder
holds a copy of this file, for interpreters without this project.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "manifests"
KIND, SCHEMA = "sweeper.checkpoint", 1
THREADS = min(16, 2 * (os.cpu_count() or 1))
"""More than cores: on a network file system they wait."""
_CHUNK = 4 << 20

Entry = tuple[str, int, str]
"""Relative path with `/`, bytes, SHA-256."""


class DamagedError(ValueError):
    """The manifest itself is not what was written."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of."""

    step: int
    trial: str
    attempt: int | None
    """Of the attempt that wrote the checkpoint; None for a run by hand."""
    digest: str
    bytes: int
    files: tuple[Entry, ...]
    written: float
    """Unix time."""


def name_of(step: int) -> str:
    """The checkpoint's folder; its manifest is named after it."""
    return f"global_step_{step}"


def path_of(folder: Path, step: int) -> Path:
    """Where the manifest of that step of a trial's checkpoint folder is, or would be."""
    return folder / FOLDER / f"{name_of(step)}.json"


def digest(files: Iterable[Entry]) -> str:
    """64 hexadecimal digits for a folder's content."""
    rows = [list(entry) for entry in sorted(files)]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def write(folder: Path, step: int, *, trial: str = "", attempt: int | None = None) -> Manifest | None:
    """Read the checkpoint of that step whole and note its content; None where it went away or changed meanwhile.

    Raises:
        OSError: It cannot be read, or the manifest cannot be written; no half manifest is left.
    """
    files = content(folder, step)
    if files is None:
        return None
    made = Manifest(step, trial, attempt, digest(files), sum(f[1] for f in files), files, time.time())
    path = path_of(folder, step)
    path.parent.mkdir(exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temp.write_text(_text(made), encoding="utf-8")
        temp.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise
    return made


def content(folder: Path, step: int) -> tuple[Entry, ...] | None:
    """The files of the checkpoint of that step, all of them read; None where it went away or changed meanwhile.

    Raises:
        OSError: It cannot be read.
    """
    at = folder / name_of(step)
    try:
        before = _look(at)
        hashes = _hashes([at / rel for rel in before])
        if not before or _look(at) != before:
            return None
    except FileNotFoundError:
        return None
    return tuple((rel, before[rel][0], sha) for rel, sha in zip(before, hashes, strict=True))


def read(folder: Path, step: int) -> Manifest | None:
    """The manifest of that step; None where there is none.

    Raises:
        DamagedError: It is not as it was written.
        OSError: It cannot be read.
    """
    path = path_of(folder, step)
    try:
        found = json.loads(path.read_bytes())
        files = tuple((str(rel), int(size), str(sha)) for rel, size, sha in found["files"])
        made = Manifest(
            step,
            str(found["trial"]),
            None if found["attempt"] is None else int(found["attempt"]),
            str(found["digest"]),
            int(found["bytes"]),
            files,
            float(found["written"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from None
    if digest(files) != made.digest or found.get("step") != step:
        raise DamagedError(f"{path} is damaged: its list of files is not the one that its digest was made of")
    return made


def listed(folder: Path) -> list[Manifest]:
    """The manifests of the checkpoints that are there, by step; damaged ones are passed over."""
    made = []
    for step in sorted(_steps(folder)):
        with contextlib.suppress(DamagedError, OSError):
            found = read(folder, step)
            if found is not None and not retired(folder, found):
                made.append(found)
    return made


def retired(folder: Path, manifest: Manifest) -> bool:
    """Whether the trainer itself has deleted that checkpoint: verl takes the folders of the weights away and leaves the
    rest (utils/checkpoint/checkpoint_manager.py:156)."""
    at = folder / name_of(manifest.step)
    parts = {rel.split("/")[0] for rel, _, _ in manifest.files if "/" in rel}
    return not at.is_dir() or any(not (at / part).exists() for part in parts)


def forget_retired(folder: Path) -> None:
    """Remove the manifests whose checkpoints the trainer has deleted."""
    for step in _steps(folder):
        with contextlib.suppress(DamagedError, OSError):
            found = read(folder, step)
            if found is not None and retired(folder, found):
                path_of(folder, step).unlink()


def verify(folder: Path, step: int) -> list[str]:
    """What of the checkpoint of that step is not as it was written, a line each that begins with the file's name; empty
    where all of it is, or where there is no manifest and so nothing is known. Files beside those of the manifest are
    nobody's and do no harm.

    Raises:
        DamagedError: The manifest itself is not as it was written.
        OSError: A file is there and cannot be read.
    """
    manifest = read(folder, step)
    if manifest is None:
        return []
    at = folder / name_of(step)
    wrong: list[str] = []
    same: list[Entry] = []
    for entry in manifest.files:
        rel, size, _ = entry
        try:
            now = (at / rel).stat()
        except (FileNotFoundError, NotADirectoryError):
            wrong.append(f"{rel} is missing")
            continue
        if now.st_size != size:
            wrong.append(f"{rel} has {now.st_size} bytes, {size} were written")
        else:
            same.append(entry)
    if wrong:
        return wrong  # known to be torn: no need to read it all
    hashes = _hashes([at / rel for rel, _, _ in same])
    return [
        f"{rel} has other content than was written (sha256 {now[:12]}, was {sha[:12]})"
        for (rel, _, sha), now in zip(same, hashes, strict=True)
        if now != sha
    ]


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(size for size, _ in _look(folder).values())


def _text(made: Manifest) -> str:
    about: dict[str, Any] = {"kind": KIND, "schema": SCHEMA, "step": made.step, "trial": made.trial}
    about |= {"attempt": made.attempt, "digest": made.digest, "bytes": made.bytes}
    about |= {"files": [list(entry) for entry in made.files], "written": made.written}
    return json.dumps(about, indent=1) + "\n"


def _steps(folder: Path) -> list[int]:
    digits = (p.stem.removeprefix("global_step_") for p in (folder / FOLDER).glob("global_step_*.json"))
    return [int(d) for d in digits if d.isdigit()]


def _look(at: Path) -> dict[str, tuple[int, int]]:
    """Relative path -> (bytes, mtime in ns) of each regular file, sorted; links are not followed."""
    found = {}
    for parent, _, names in os.walk(at):
        for name in names:
            path = Path(parent, name)
            facts = path.lstat()
            if stat.S_ISREG(facts.st_mode):
                found[path.relative_to(at).as_posix()] = (facts.st_size, facts.st_mtime_ns)
    return dict(sorted(found.items()))


def _hashes(paths: list[Path]) -> list[str]:
    with ThreadPoolExecutor(max(1, min(THREADS, len(paths)))) as threads:
        return list(threads.map(_hash, paths))


def _hash(path: Path) -> str:
    made, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            made.update(buffer[:count])
    return made.hexdigest()
