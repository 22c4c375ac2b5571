"""A manifest says what a checkpoint's content was: every byte of every file, and it is whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.checkpoints import manifest

FILES = {
    "data.pt": b"loader",
    "actor/model_world_size_1_rank_0.pt": bytes(range(256)) * 40,
    "actor/optim_world_size_1_rank_0.pt": b"\0" * 5000,
    "actor/huggingface/config.json": b"{}",
    "critic/empty.pt": b"",
}


def save(folder: Path, step: int = 4) -> Path:
    at = folder / f"global_step_{step}"
    for rel, content in FILES.items():
        (at / rel).parent.mkdir(parents=True, exist_ok=True)
        (at / rel).write_bytes(content)
    return at


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    save(tmp_path)
    made = manifest.write(tmp_path, 4, trial="007", attempt=2)
    assert made == manifest.read(tmp_path, 4)
    assert made is not None
    assert [rel for rel, _, _ in made.files] == sorted(FILES)
    assert made.bytes == sum(map(len, FILES.values()))
    assert (made.trial, made.attempt, made.step) == ("007", 2, 4)
    said = json.loads((tmp_path / "manifests/global_step_4.json").read_text())
    assert (said["kind"], said["schema"]) == ("sweeper.checkpoint", 1)
    assert manifest.verify(tmp_path, 4) == []
    assert manifest.listed(tmp_path) == [made]


def test_equal_content_has_an_equal_digest_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("one", "other"):
        save(tmp_path / name)
    made = [manifest.write(tmp_path / name, 4, trial=name) for name in ("one", "other")]
    assert made[0] is not None
    assert made[1] is not None
    assert made[0].digest == made[1].digest


@pytest.mark.parametrize("rel", [rel for rel, content in FILES.items() if content])
@given(place=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_found_and_named(
    tmp_path_factory: pytest.TempPathFactory, rel: str, place: float, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    at = save(folder) / rel
    manifest.write(folder, 4)
    facts = at.stat()
    content = bytearray(at.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    at.write_bytes(content)
    os.utime(at, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as a disk does it: nobody is told
    (found,) = manifest.verify(folder, 4)
    assert found.startswith(f"{rel} has other content")


@pytest.mark.parametrize("rel", FILES)
@pytest.mark.parametrize("how", ["missing", "longer", "shorter"])
def test_a_torn_file_is_named(tmp_path: Path, rel: str, how: str) -> None:
    at = save(tmp_path) / rel
    manifest.write(tmp_path, 4)
    if how == "missing":
        at.unlink()
    elif how == "longer":
        at.write_bytes(at.read_bytes() + b"x")
    elif FILES[rel]:
        at.write_bytes(at.read_bytes()[:-1])
    else:
        return
    (found,) = manifest.verify(tmp_path, 4)
    assert found.startswith(f"{rel} ")


def test_files_beside_those_of_the_manifest_do_no_harm(tmp_path: Path) -> None:
    (save(tmp_path) / "before.txt").write_text("x")
    manifest.write(tmp_path, 4)
    (tmp_path / "global_step_4" / "merged.safetensors").write_text("somebody's")
    assert manifest.verify(tmp_path, 4) == []


def test_without_a_manifest_nothing_is_known(tmp_path: Path) -> None:
    save(tmp_path)
    assert manifest.verify(tmp_path, 4) == []
    assert manifest.read(tmp_path, 4) is None
    assert manifest.listed(tmp_path) == []


@pytest.mark.parametrize("place", range(0, 600, 37))
def test_a_damaged_manifest_is_told_from_a_damaged_checkpoint(tmp_path: Path, place: int) -> None:
    save(tmp_path)
    made = manifest.write(tmp_path, 4)
    path = manifest.path_of(tmp_path, 4)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 2
    path.write_bytes(content)
    try:
        found = manifest.read(tmp_path, 4)
    except manifest.DamagedError as error:
        assert str(path) in str(error)
        return
    assert found is not None
    assert made is not None
    assert (found.files, found.digest) == (made.files, made.digest), "only what no content depends on may differ"


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_kill_at_any_moment_leaves_no_half_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    save(tmp_path)
    operations = 0

    def counting(real: Any) -> Any:
        def operation(*args: Any, **kwargs: Any) -> Any:
            nonlocal operations
            operations += 1
            if operations == cut:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return operation

    def half(self: Path, text: str, **_: Any) -> int:
        nonlocal operations
        operations += 1
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
            if operations == cut:
                raise KeyboardInterrupt
            return file.write(text[len(text) // 2 :])

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", half)
        for name in ("replace", "lstat", "mkdir", "open"):
            if name != "open" or cut % 2:
                patched.setattr(Path, name, counting(getattr(Path, name)))
        with contextlib.suppress(KeyboardInterrupt):
            manifest.write(tmp_path, 4)
    found = manifest.read(tmp_path, 4)
    assert found is None or manifest.verify(tmp_path, 4) == []
    assert manifest.write(tmp_path, 4) is not None, "and it can be made afterwards"


def test_what_changes_while_it_is_read_has_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = save(tmp_path) / "data.pt"
    read = manifest._hashes

    def slow(paths: list[Path]) -> list[str]:
        made = read(paths)
        at.write_bytes(b"written again")
        return made

    monkeypatch.setattr(manifest, "_hashes", slow)
    assert manifest.write(tmp_path, 4) is None
    assert manifest.read(tmp_path, 4) is None


@pytest.mark.parametrize("gone", ["before", "between"])
def test_what_goes_away_has_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    import shutil

    at = save(tmp_path)
    if gone == "before":
        shutil.rmtree(at)
    else:
        look = manifest._look
        monkeypatch.setattr(manifest, "_look", lambda p: (look(p), shutil.rmtree(p, ignore_errors=True))[0])
    assert manifest.write(tmp_path, 4) is None


def test_an_error_of_the_disk_is_raised_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            manifest.write(tmp_path, 4)
    assert list((tmp_path / "manifests").iterdir()) == []


def test_manifests_of_what_the_trainer_deleted_are_forgotten(tmp_path: Path) -> None:
    import shutil

    for step in (1, 2, 3):
        save(tmp_path, step)
        manifest.write(tmp_path, step)
    shutil.rmtree(tmp_path / "global_step_1")
    shutil.rmtree(tmp_path / "global_step_2" / "actor")  # what verl's retention does
    assert [m.step for m in manifest.listed(tmp_path)] == [3]
    manifest.forget_retired(tmp_path)
    assert [p.name for p in (tmp_path / "manifests").iterdir()] == ["global_step_3.json"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    (save(tmp_path) / "link.pt").symlink_to(tmp_path / "outside")
    made = manifest.write(tmp_path, 4)
    assert made is not None
    assert "link.pt" not in {rel for rel, _, _ in made.files}
