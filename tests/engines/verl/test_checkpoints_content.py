"""A checkpoint's content is compared with its manifest before it is used; what is corrupted is set aside and named."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sweeper.checkpoints import manifest
from sweeper.engines.base import Saved
from sweeper.engines.verl import checkpoints
from sweeper.errors import SweeperError

_spec = importlib.util.spec_from_file_location("made_checkpoints", Path(__file__).with_name("test_checkpoints.py"))
assert _spec is not None
assert _spec.loader is not None
_made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_made)
archive, contents = _made.archive, _made.contents

FILES = [
    "data.pt",
    "actor/huggingface/config.json",
    *(f"{part}/{kind}_world_size_2_rank_{rank}.pt"
      for part in ("actor", "critic") for kind in ("model", "optim", "extra_state") for rank in (0, 1)),
]  # fmt: skip


def save(folder: Path, step: int, **how: Any) -> Path:
    path: Path = _made.save(folder, step, **how)
    assert manifest.write(folder, step, trial="000", attempt=1) is not None
    return path


def flip(path: Path, place: int = -1) -> None:
    """One bit, and no trace of it in the file's facts."""
    facts = path.stat()
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("rel", FILES)
@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_a_corrupted_one_is_set_aside_named_and_the_one_before_is_taken(tmp_path: Path, rel: str, how: str) -> None:
    save(tmp_path, 2, world=2, critic=True)
    at = save(tmp_path, 4, world=2, critic=True)
    if how == "flipped":
        flip(at / rel, 40)
    elif how == "cut":
        (at / rel).write_bytes((at / rel).read_bytes()[:-1])
    else:
        (at / rel).unlink()
    left = contents(at)
    found = checkpoints.sound(tmp_path)
    assert found.saved == Saved(2, tmp_path / "global_step_2")
    (said,) = found.said
    assert rel in said
    assert "corrupt-global_step_4" in said
    assert contents(tmp_path / "corrupt-global_step_4") == left, "nothing is deleted"
    assert (tmp_path / "corrupt-global_step_4.json").exists()
    assert checkpoints.newest(tmp_path) == found.saved, "and from now on the cheap look agrees"
    assert checkpoints.sound(tmp_path) == checkpoints.Sound(found.saved)


def test_whole_ones_are_left_as_they_are(tmp_path: Path) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4)
    before = contents(tmp_path)
    assert checkpoints.sound(tmp_path).saved == Saved(4, tmp_path / "global_step_4")
    assert checkpoints.sound(tmp_path, 2).saved == Saved(2, tmp_path / "global_step_2")
    assert checkpoints.sound(tmp_path, 2).said == ()
    assert contents(tmp_path) == before


def test_only_what_is_used_is_read(tmp_path: Path) -> None:
    flip(save(tmp_path, 2) / "data.pt")
    save(tmp_path, 4)
    assert checkpoints.sound(tmp_path).said == ()
    assert (tmp_path / "global_step_2").exists()


def test_nothing_sound_is_left(tmp_path: Path) -> None:
    for step in (2, 4):
        flip(save(tmp_path, step) / "data.pt")
    found = checkpoints.sound(tmp_path)
    assert found.saved is None
    assert len(found.said) == 2
    assert checkpoints.torn(tmp_path), "verl's note names one that is not there: it must not follow it"


def test_a_second_corrupted_one_of_the_same_step_does_not_replace_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        flip(save(tmp_path, 4) / "data.pt")
        checkpoints.sound(tmp_path)
    assert {p.name for p in tmp_path.glob("corrupt-*")} >= {"corrupt-global_step_4", "corrupt-global_step_4-2"}


def test_a_checkpoint_of_an_older_release_has_no_manifest_and_is_checked_by_its_structure(tmp_path: Path) -> None:
    _made.save(tmp_path, 2)
    torn = _made.save(tmp_path, 4) / "data.pt"
    torn.write_bytes(torn.read_bytes()[:-30])
    assert checkpoints.sound(tmp_path) == checkpoints.Sound(Saved(2, tmp_path / "global_step_2"))


def test_what_verl_deleted_by_itself_is_not_corrupted(tmp_path: Path) -> None:
    shutil.rmtree(save(tmp_path, 2) / "actor")
    save(tmp_path, 4)
    assert checkpoints.sound(tmp_path, 2) == checkpoints.Sound(Saved(4, tmp_path / "global_step_4"))
    assert not list(tmp_path.glob("corrupt-*"))
    assert [p.name for p in (tmp_path / "manifests").iterdir()] == ["global_step_4.json"]


def test_a_damaged_manifest_is_said_and_the_structure_decides(tmp_path: Path) -> None:
    save(tmp_path, 4)
    manifest.path_of(tmp_path, 4).write_text('{"files": [["data.pt", 3')
    found = checkpoints.sound(tmp_path)
    assert found.saved == Saved(4, tmp_path / "global_step_4")
    assert "is damaged" in found.said[0]
    assert checkpoints.sound(tmp_path).said == ()


def test_what_cannot_be_read_is_no_corruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 4)

    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(manifest, "_hash", refused)
    with pytest.raises(SweeperError, match=r"Permission denied(.|\n)*fix: make .* readable") as raised:
        checkpoints.sound(tmp_path)
    assert "actor/extra_state_world_size_1_rank_0.pt" in str(raised.value)
    assert (tmp_path / "global_step_4").exists()


def test_what_cannot_be_moved_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(save(tmp_path, 4) / "data.pt")

    def refused(self: Path, *_: Any) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(SweeperError, match="Read-only file system"):
        checkpoints.sound(tmp_path)


class TestAdopting:
    def test_the_manifest_comes_with_it_and_the_adopters_own_go_aside(self, tmp_path: Path) -> None:
        donor, own = tmp_path / "donor", tmp_path / "own"
        there = save(donor, 6)
        (there / "actor" / "model_world_size_1_rank_0.pt").write_bytes(archive("another"))
        known = manifest.write(donor, 6, trial="001", attempt=3)
        save(own, 6)
        save(own, 9)
        checkpoints.adopt(Saved(6, there), own)
        assert manifest.listed(own) == [known], "whose it was is still said"
        assert checkpoints.sound(own) == checkpoints.Sound(Saved(6, own / "global_step_6"))
        assert {p.name for p in (own / "aside-1").glob("*.json")} == {"global_step_6.json", "global_step_9.json"}

    def test_one_without_a_manifest_does_not_get_the_adopters(self, tmp_path: Path) -> None:
        donor, own = tmp_path / "donor", tmp_path / "own"
        there = _made.save(donor, 6)
        shutil.rmtree(save(own, 6))  # verl deleted it, its manifest stayed
        checkpoints.adopt(Saved(6, there), own)
        assert manifest.listed(own) == []
        assert checkpoints.sound(own).said == ()

    def test_a_bit_that_flips_in_a_shared_file_is_found_in_both(self, tmp_path: Path) -> None:
        donor, own = tmp_path / "donor", tmp_path / "own"
        save(donor, 5)
        there = save(donor, 6)
        checkpoints.adopt(Saved(6, there), own)
        flip(own / "global_step_6" / "data.pt")
        assert "data.pt" in checkpoints.sound(own).said[0]
        assert checkpoints.sound(donor).saved == Saved(5, donor / "global_step_5")

    @pytest.mark.parametrize("cut", range(1, 24))
    def test_a_kill_at_any_point_never_pairs_a_checkpoint_with_anothers_manifest(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
    ) -> None:
        donor, own = tmp_path / "donor", tmp_path / "own"
        there = save(donor, 6)
        (there / "actor" / "model_world_size_1_rank_0.pt").write_bytes(archive("another"))
        manifest.write(donor, 6)
        save(own, 6)
        save(own, 9)
        operations = 0

        def counting(real: Any) -> Any:
            def operation(*args: Any, **kwargs: Any) -> Any:
                nonlocal operations
                operations += 1
                if operations >= cut:
                    raise KeyboardInterrupt
                return real(*args, **kwargs)

            return operation

        with monkeypatch.context() as patched:
            for name in ("rename", "replace", "mkdir", "rmdir", "write_text", "unlink"):
                patched.setattr(Path, name, counting(getattr(Path, name)))
            patched.setattr(shutil, "copyfile", counting(shutil.copyfile))
            with contextlib.suppress(KeyboardInterrupt):
                checkpoints.adopt(Saved(6, there), own)
        found = checkpoints.sound(own)
        assert found.said == ()
        assert found.saved is not None
        checkpoints.adopt(Saved(6, there), own)
        assert checkpoints.sound(own) == checkpoints.Sound(Saved(6, own / "global_step_6"))
        assert [m.step for m in manifest.listed(own)] == [6]


def test_leftovers_are_what_no_run_can_go_on_from(tmp_path: Path) -> None:
    shutil.rmtree(save(tmp_path, 1) / "actor")
    save(tmp_path, 2)
    (tmp_path / "adopting").mkdir()
    (tmp_path / "aside-1" / "global_step_1").mkdir(parents=True)
    (tmp_path / "corrupt-global_step_9").mkdir()
    (tmp_path / "global_step_7").symlink_to(tmp_path / "aside-1")
    found = checkpoints.leftovers(tmp_path)
    assert [path.name for path, _ in found] == ["adopting", "aside-1", "global_step_1"]
    assert all(why for _, why in found)
    assert checkpoints.leftovers(tmp_path / "missing") == []


def test_kept_is_every_one_that_can_be_loaded(tmp_path: Path) -> None:
    shutil.rmtree(save(tmp_path, 1) / "actor")
    for step in (10, 9):
        save(tmp_path, step)
    assert [saved.step for saved in checkpoints.kept(tmp_path)] == [9, 10]
