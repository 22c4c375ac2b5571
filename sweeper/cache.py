"""Where built things live: folders named by what they were built from, so that the same request finds them again.

Guarantees: a folder in the cache is whole, for it is built aside and renamed, and what its files were is known from
then on (`built`); two processes that build the same one at once do the work once; what a killed build left behind is
removed by the next build of the same folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any


def root() -> Path:
    """`$SWEEPER_CACHE`, else `$XDG_CACHE_HOME/sweeper`, else `~/.cache/sweeper`; absolute, perhaps not there yet."""
    own = os.environ.get("SWEEPER_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(own or f"{base}/sweeper", os.environ.get("HOME")).absolute()


@lru_cache(maxsize=8)
def _expanded(path: str, _home: str | None) -> Path:
    """A plan asks ten times for a trial, and a path takes long to make."""
    return Path(path).expanduser()


def folder(cache_root: Path, kind: str, spec: Mapping[str, Any]) -> Path:
    """Where the thing built from this spec lives, built or not: `<kind>-<16 hex digits>`.

    The digits are the SHA-256 of the spec as JSON with sorted keys, so the order of keys does not matter.
    """
    return _folder(cache_root, kind, json.dumps(spec, sort_keys=True, separators=(",", ":")))


@lru_cache(maxsize=64)
def _folder(cache_root: Path, kind: str, canonical: str) -> Path:
    return cache_root / f"{kind}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


@contextmanager
def building(target: Path) -> Iterator[Path | None]:
    """An empty folder to build in, renamed to `target` when the block ends well; None when `target` is there already.

    A second process waits for the first and then finds the folder. Where file locks do not work (some network file
    systems) both build and the first to finish wins.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.parent / f".{target.name}.lock"):
        if target.is_dir():
            yield None
            return
        for left_behind in target.parent.glob(f".{target.name}.building-*"):
            shutil.rmtree(left_behind, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.building-", dir=target.parent))
        try:
            yield aside
            aside.chmod(0o755)  # mkdtemp's is private; a shared cache is read by others
            _files(target).write_text(json.dumps(_content(aside)) + "\n", encoding="utf-8")
            try:
                aside.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def built(target: Path) -> list[tuple[str, int, str]] | None:
    """Relative path, bytes and SHA-256 of each file as it was built; None where nobody knows."""
    try:
        return [(str(rel), int(size), str(sha)) for rel, size, sha in json.loads(_files(target).read_bytes())]
    except (OSError, ValueError, TypeError):
        return None


def _files(target: Path) -> Path:
    return target.parent / f".{target.name}.files"


def _content(folder: Path) -> list[tuple[str, int, str]]:
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
        found.append((path.relative_to(folder).as_posix(), path.stat().st_size, sha))
    return found


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        with suppress(OSError):  # no locks on this file system: the rename still decides
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield  # closing the file releases the lock; the empty file stays, as removing it would race
