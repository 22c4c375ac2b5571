"""SHA-256 of files and folders: once for a content, in parallel threads, remembered among processes.

Guarantees: a hash is of one state of a file: one that changes while it is read is read again, then refused; what is
remembered is known by (path, size, mtime, inode) and never of a file that could have changed without its time showing
it; any number of processes share the memory, and one that is missing, locked or damaged costs nothing but time;
`fresh=True` reads the content whatever is remembered; what takes long says so, and how far it is. Only the standard
library is imported.

The digest of a folder, and of a checkpoint, is the SHA-256 of the canonical JSON (no spaces, ASCII) of
`[[relative path with "/", bytes, sha256], ...]`, sorted by path.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sweeper import cache
from sweeper.checkpoints.manifest import digest
from sweeper.errors import SweeperError

THREADS = min(8, os.cpu_count() or 1)
"""hashlib lets go of the interpreter while it hashes, so that threads are enough."""
SETTLED_NS = 100_000_000
"""A file that was written less than this before it was read may be written again with the same time: a kernel's clock
for files ticks every 1 to 10 ms."""
SETTLED_COARSE_NS = 2_000_000_000
"""Likewise where the times of files are whole seconds (FAT: two)."""
LONG_BYTES = 2 * 2**30
"""From here on somebody waits: a core hashes 1 to 2 GB a second, a disk may give a tenth of that."""
SAY_S = 10.0
_TRIES = 3
_TABLE = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    sha256 TEXT NOT NULL
) WITHOUT ROWID
"""

File = tuple[str, int, str]
"""Relative path, bytes, sha256."""
_Hashed = tuple[tuple[int, int, int], str, bool]
"""What a file was, its hash, and whether that may be remembered."""


class HashError(SweeperError):
    """A file could not be hashed; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The content of a folder, or of a file alone (then its one path is its name)."""

    digest: str
    bytes: int
    files: list[File]
    """Sorted by path."""


def sha256(path: Path) -> str:
    """Of one file, by its content.

    Raises:
        HashError: it cannot be read, or changes all the time.
    """
    return _hashed(path)[1]


def walk(folder: Path) -> list[str]:
    """Relative paths of the regular files below a folder, sorted; links are followed, none twice in a circle.

    Raises:
        HashError: a folder cannot be read, or a link leads nowhere.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()

    def below(at: str, prefix: str) -> None:
        try:
            facts = Path(at).stat()
            if (facts.st_dev, facts.st_ino) in seen:
                return
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(at) as entries:
                for entry in entries:
                    if entry.is_dir():
                        below(entry.path, f"{prefix}{entry.name}/")
                    elif stat.S_ISREG(entry.stat().st_mode):
                        found.append(prefix + entry.name)
        except OSError as error:
            raise HashError(f"{error.filename or at} cannot be read: {error.strerror}") from error
        seen.discard((facts.st_dev, facts.st_ino))  # only a circle is passed over, not a folder linked twice

    below(str(folder), "")
    return sorted(found)


class Hashes:
    """Hashes with a memory. Thread-safe."""

    def __init__(self, cache_file: Path | None = None, say: Callable[[str], None] | None = None) -> None:
        """`cache_file`: by default `hashes.db` in the cache of this project; made when it is first needed. `say` is
        told of what takes long, in a line each."""
        self.path = cache_file or cache.root() / "hashes.db"
        self._say = say
        self._lock = threading.Lock()
        self._own: dict[str, tuple[tuple[int, int, int], str]] = {}
        """What this process has asked for: path -> what the file was, and its hash."""

    def file(self, path: Path, fresh: bool = False) -> str:
        """The SHA-256 of a file's content.

        Raises:
            HashError: it is missing or cannot be read.
        """
        return self.files([path], fresh)[0]

    def files(self, paths: Sequence[Path], fresh: bool = False) -> list[str]:
        """`file` of many, in parallel, in their order."""
        whole = [os.path.realpath(p) for p in paths]
        facts = {p: _facts(p) for p in whole}
        known = {} if fresh else self._known(facts)
        todo = sorted(facts.keys() - known.keys(), key=lambda p: (-facts[p][0], p))  # the longest first
        with ThreadPoolExecutor(min(THREADS, len(todo)) or 1) as pool:
            done = pool.map(_hashed, todo) if len(todo) > 1 else map(_hashed, todo)
            results = dict(zip(todo, self._said(done, [facts[p][0] for p in todo]), strict=True))
        self._learn([(p, *was, value) for p, (was, value, settled) in results.items() if settled])
        return [known[p] if p in known else results[p][1] for p in whole]

    def tree(self, path: Path, fresh: bool = False) -> Tree:
        """All files of a folder; of a file: it alone.

        Raises:
            HashError: it is missing, or something in it cannot be read.
        """
        names = walk(path) if path.is_dir() else [path.name]
        paths = [path / n for n in names] if path.is_dir() else [path]
        sizes = [_facts(p)[0] for p in paths]
        files: list[File] = list(zip(names, sizes, self.files(paths, fresh), strict=True))
        return Tree(digest(files), sum(sizes), files)

    def _said(self, done: Iterator[_Hashed], sizes: Sequence[int]) -> Iterator[_Hashed]:
        """The same, in the same order, with a word where it takes long."""
        total, so_far = sum(sizes), 0
        if self._say is None or total < LONG_BYTES:
            yield from done
            return
        self._say(f"hashing {total / 1e9:,.1f} GB in {len(sizes)} file{'s' * (len(sizes) > 1)}; it is remembered")
        last = time.monotonic()
        for one, size in zip(done, sizes, strict=True):
            yield one
            so_far += size
            if time.monotonic() - last >= SAY_S:
                last = time.monotonic()
                self._say(f"hashed {so_far / 1e9:,.1f} of {total / 1e9:,.1f} GB")

    # --- the memory ---

    def _known(self, wanted: Mapping[str, tuple[int, int, int]]) -> dict[str, str]:
        own = self._own
        found = {path: own[path][1] for path, facts in wanted.items() if path in own and own[path][0] == facts}
        if len(found) == len(wanted) or not self.path.exists():
            return found
        with contextlib.suppress(sqlite3.Error, OSError), self._lock, contextlib.closing(self._open()) as db:
            for path in wanted.keys() - found.keys():
                row = db.execute("SELECT size, mtime_ns, inode, sha256 FROM files WHERE path = ?", (path,)).fetchone()
                if row and tuple(row[:3]) == wanted[path]:
                    found[path] = str(row[3])
                    own[path] = (wanted[path], found[path])
        return found

    def _learn(self, rows: Sequence[tuple[str, int, int, int, str]]) -> None:
        if not rows:
            return
        self._own.update({path: ((size, mtime, inode), value) for path, size, mtime, inode, value in rows})
        with contextlib.suppress(sqlite3.Error, OSError), self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._open()) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = OFF")  # a power cut may cost the memory, which can be had again
                db.execute(_TABLE)
                db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
                db.commit()

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=2)


def _facts(path: str | Path) -> tuple[int, int, int]:
    """Size, time of the last change in nanoseconds, inode."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        raise HashError(f"{path} is not there") from None
    except OSError as error:
        raise HashError(f"{path} cannot be read: {error.strerror}") from error
    return _of(found)


def _of(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ino


def _hashed(path: str | Path) -> _Hashed:
    """What the file was, its hash, and whether that may be remembered."""
    for _ in range(_TRIES):
        started = time.time_ns()
        try:
            with Path(path).open("rb", buffering=0) as file:
                before = _of(os.fstat(file.fileno()))
                value = hashlib.file_digest(file, "sha256").hexdigest()
                after = _of(os.fstat(file.fileno()))
        except FileNotFoundError:
            raise HashError(f"{path} is not there") from None
        except OSError as error:
            raise HashError(f"{path} cannot be read: {error.strerror}") from error
        if before == after == _facts(path):
            settled = SETTLED_NS if before[1] % 1_000_000_000 else SETTLED_COARSE_NS
            return before, value, started - before[1] > settled
    raise HashError(f"{path} changes while it is read")
