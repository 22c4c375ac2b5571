"""Hashes of files and folders: of one state, remembered only where that is safe."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sweeper.lineage import hashes
from sweeper.lineage.hashes import HashError, Hashes


@pytest.fixture
def memory(tmp_path: Path) -> Hashes:
    return Hashes(tmp_path / "cache" / "hashes.db")


def old(path: Path, content: bytes, age_s: float = 60.0) -> Path:
    """A file that was written a while ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    moment = time.time_ns() - int(age_s * 1e9)
    os.utime(path, ns=(moment, moment))
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content was read."""
    seen: list[str] = []
    real = hashes._hashed

    def counted(path: str | Path) -> Any:
        seen.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(hashes, "_hashed", counted)
    return seen


def test_a_content_is_read_once_and_again_when_the_file_changes(
    tmp_path: Path, memory: Hashes, reads: list[str]
) -> None:
    file = old(tmp_path / "a", b"one")
    assert memory.file(file) == memory.file(file) == hashlib.sha256(b"one").hexdigest()
    assert reads == ["a"]
    old(file, b"two", age_s=50)
    assert memory.file(file) == hashlib.sha256(b"two").hexdigest()
    other = old(tmp_path / "b", b"six", age_s=50)
    other.replace(file)  # the same size and perhaps the same time: another inode
    assert memory.file(file) == hashlib.sha256(b"six").hexdigest()


def test_fresh_finds_what_the_times_of_files_hide(tmp_path: Path, memory: Hashes) -> None:
    file = old(tmp_path / "a", b"one")
    memory.file(file)
    facts = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"two")
    os.utime(file, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
    assert memory.file(file) == hashlib.sha256(b"one").hexdigest(), "known by size, time and inode"
    assert memory.file(file, fresh=True) == hashlib.sha256(b"two").hexdigest()
    assert memory.file(file) == hashlib.sha256(b"two").hexdigest(), "and remembered"


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path, memory: Hashes, reads: list[str]) -> None:
    """It could be written again within the same tick of the file system's clock."""
    file = tmp_path / "a"
    file.write_bytes(b"one")
    moment = time.time_ns() + 10**9  # as far from settled as can be, whatever this machine's load
    os.utime(file, ns=(moment, moment))
    memory.file(file)
    memory.file(file)
    assert reads == ["a", "a"]
    coarse = tmp_path / "b"
    coarse.write_bytes(b"one")
    whole = (time.time_ns() // 10**9) * 10**9
    os.utime(coarse, ns=(whole, whole))
    memory.file(coarse)
    memory.file(coarse)
    assert reads.count("b") == 2, "times in whole seconds say less"


def test_a_file_that_changes_while_it_is_read_is_refused_and_never_remembered(
    tmp_path: Path, memory: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = old(tmp_path / "a", b"one")
    real = hashlib.file_digest
    times = [3]

    def meanwhile(opened: Any, name: str) -> Any:
        found = real(opened, name)
        if times[0]:
            times[0] -= 1
            old(file, b"x" * (times[0] + 5))
        return found

    monkeypatch.setattr(hashlib, "file_digest", meanwhile)
    with pytest.raises(HashError, match="a changes while it is read"):
        memory.file(file)
    assert memory.file(file) == hashlib.sha256(b"xxxxx").hexdigest(), "once it is still it is read anew"
    times[0] = 1
    assert memory.file(file, fresh=True) == hashlib.sha256(file.read_bytes()).hexdigest(), "read again by itself"


def test_a_folders_digest_is_that_of_its_files_list(tmp_path: Path, memory: Hashes) -> None:
    folder = tmp_path / "m"
    old(folder / "b" / "ü.txt", b"2")
    old(folder / "a.txt", b"11")
    (folder / "link").symlink_to(folder / "b")
    tree = memory.tree(folder)
    one, two = (hashlib.sha256(c).hexdigest() for c in (b"11", b"2"))
    assert tree.files == [("a.txt", 2, one), ("b/ü.txt", 1, two), ("link/ü.txt", 1, two)]
    written = json.dumps([list(f) for f in tree.files], separators=(",", ":"))
    assert tree.digest == hashlib.sha256(written.encode()).hexdigest()
    assert tree.bytes == 4
    assert hashes.digest(reversed(tree.files)) == tree.digest
    os.utime(folder / "a.txt")
    assert memory.tree(folder).digest == tree.digest, "content, not times"
    (folder / "a.txt").rename(folder / "c.txt")
    assert memory.tree(folder).digest != tree.digest


def test_a_circle_of_links_ends(tmp_path: Path, memory: Hashes) -> None:
    folder = tmp_path / "m"
    old(folder / "a", b"1")
    (folder / "self").symlink_to(folder)
    assert [f[0] for f in memory.tree(folder).files] == ["a"]


@pytest.mark.parametrize("kind", ["missing", "dangling"])
def test_what_cannot_be_read_is_named(tmp_path: Path, memory: Hashes, kind: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    if kind == "dangling":
        (folder / "weights").symlink_to(tmp_path / "gone")
    with pytest.raises(HashError, match="weights"):
        memory.tree(folder if kind == "dangling" else folder / "weights")


@pytest.mark.parametrize("damage", ["no database", "of another kind", "a folder"])
def test_a_memory_that_is_damaged_costs_nothing_but_time(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "hashes.db"
    if damage == "no database":
        path.write_bytes(b"garbage" * 100)
    elif damage == "a folder":
        path.mkdir()
    else:
        import sqlite3

        db = sqlite3.connect(path)
        db.execute("CREATE TABLE files (x)")
        db.close()
    file = old(tmp_path / "a", b"one")
    assert Hashes(path).file(file) == hashlib.sha256(b"one").hexdigest()


def test_many_processes_share_the_memory(tmp_path: Path) -> None:
    for number in range(40):
        old(tmp_path / "m" / str(number), str(number).encode())
    path = tmp_path / "hashes.db"
    script = (
        "import sys; from pathlib import Path; from sweeper.lineage.hashes import Hashes\n"
        "print(Hashes(Path(sys.argv[1])).tree(Path(sys.argv[2])).digest)"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path), str(tmp_path / "m")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = {process.communicate()[0].strip() for process in started}
    assert said == {Hashes(path).tree(tmp_path / "m").digest}


def test_what_takes_long_is_said_with_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "LONG_BYTES", 3000)
    monkeypatch.setattr(hashes, "SAY_S", 0.0)
    for name, size in (("a", 2000), ("b", 1000), ("c", 10)):
        (tmp_path / name).write_bytes(b"x" * size)
        os.utime(tmp_path / name, (1.5, 1.5))
    said: list[str] = []
    known = Hashes(tmp_path / "cache" / "hashes.db", say=said.append)
    whole = known.files([tmp_path / "a", tmp_path / "b"])
    assert said[0] == "hashing 0.0 GB in 2 files; it is remembered"
    assert len(said) == 3
    assert whole == [hashlib.sha256(b"x" * size).hexdigest() for size in (2000, 1000)]
    known.files([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert len(said) == 3, "neither what is known nor what is short"
