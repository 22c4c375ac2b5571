"""Which checkpoint is whole, and taking over another trial's: with torn files and cuts at every point."""

from __future__ import annotations

import contextlib
import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sweeper.engines.base import Saved
from sweeper.engines.verl import checkpoints
from sweeper.errors import SweeperError


def archive(*names: str) -> bytes:
    """What torch.save leaves: a zip archive without compression."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name in names or ("data.pkl", "data/0", "version"):
            made.writestr(f"archive/{name}", name * 50)
    return out.getvalue()


def save(folder: Path, step: int, *, world: int = 1, critic: bool = False, note: bool = True) -> Path:
    """A checkpoint as verl's FSDP writes it, in its order."""
    path = folder / f"global_step_{step}"
    for part in ["actor", *(["critic"] if critic else [])]:
        (path / part / "huggingface").mkdir(parents=True)
        (path / part / "huggingface" / "config.json").write_text("{}")
        for rank in range(world):
            for kind in ("model", "optim", "extra_state"):
                (path / part / f"{kind}_world_size_{world}_rank_{rank}.pt").write_bytes(archive(kind, str(step)))
    (path / "data.pt").write_bytes(archive("data"))
    if note:
        (folder / checkpoints.TRACKER).write_text(str(step))
    return path


def step_of(folder: Path) -> int | None:
    found = checkpoints.newest(folder)
    return found.step if found else None


def test_the_newest_by_number(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "missing") is None
    assert checkpoints.newest(tmp_path) is None
    save(tmp_path, 8)
    save(tmp_path, 16)
    assert checkpoints.newest(tmp_path) == Saved(16, tmp_path / "global_step_16")


@pytest.mark.parametrize("torn", ["actor/optim_world_size_2_rank_1.pt", "data.pt", "critic"])
@pytest.mark.parametrize("cut", ["truncated", "missing", "empty"])
def test_a_torn_one_is_passed_over(tmp_path: Path, torn: str, cut: str) -> None:
    save(tmp_path, 1, world=2, critic=True)
    at = save(tmp_path, 2, world=2, critic=True) / torn
    if at.is_dir():
        shutil.rmtree(at)
    elif cut == "truncated":
        at.write_bytes(at.read_bytes()[:-30])
    elif cut == "empty":
        at.write_bytes(b"")
    else:
        at.unlink()
    assert step_of(tmp_path) == 1


def test_what_the_retention_of_verl_leaves_is_no_checkpoint(tmp_path: Path) -> None:
    shutil.rmtree(save(tmp_path, 1) / "actor")
    assert step_of(tmp_path) is None
    assert checkpoints.torn(tmp_path)


@pytest.mark.parametrize("note", ["", "2", "nonsense", None])
def test_verls_note_may_be_cut_off_or_behind(tmp_path: Path, note: str | None) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4, note=False)
    path = tmp_path / checkpoints.TRACKER
    path.unlink() if note is None else path.write_text(note)
    assert step_of(tmp_path) == 4


def test_an_asynchronous_trainers_queue_counts_only_with_the_note(tmp_path: Path) -> None:
    save(tmp_path, 2)
    (save(tmp_path, 4, note=False) / "transfer_queue").mkdir()
    assert step_of(tmp_path) == 2
    (tmp_path / checkpoints.TRACKER).write_text("4")
    assert step_of(tmp_path) == 4


def test_formats_of_other_engines_need_the_note(tmp_path: Path) -> None:
    for step in (1, 2):
        path = tmp_path / f"global_step_{step}"
        (path / "actor" / "dist_ckpt").mkdir(parents=True)
        (path / "data.pt").write_bytes(archive())
    (tmp_path / checkpoints.TRACKER).write_text("1")
    assert step_of(tmp_path) == 1


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class TestAdopting:
    def test_it_becomes_the_newest_and_what_was_there_is_moved_aside(self, tmp_path: Path) -> None:
        donor, own = tmp_path / "donor", tmp_path / "own"
        there, mine = save(donor, 6, critic=True), save(own, 6, critic=True)
        save(own, 9, critic=True)
        (there / "actor" / "model_world_size_1_rank_0.pt").write_bytes(archive("another"))
        before, had = contents(donor), contents(mine)
        checkpoints.adopt(Saved(6, there), own)
        found = checkpoints.newest(own)
        assert found == Saved(6, own / "global_step_6")
        assert contents(found.path) == contents(there)
        assert (own / checkpoints.TRACKER).read_text() == "6", "verl by hand goes on from it too"
        assert contents(own / "aside-1" / "global_step_6") == had
        assert {p.name for p in (own / "aside-1").iterdir()} == {"global_step_6", "global_step_9"}
        assert contents(donor) == before

    def test_into_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        checkpoints.adopt(Saved(6, save(tmp_path / "donor", 6)), tmp_path / "own" / "checkpoints")
        assert step_of(tmp_path / "own" / "checkpoints") == 6

    def test_what_the_adopter_saves_later_is_newer(self, tmp_path: Path) -> None:
        checkpoints.adopt(Saved(6, save(tmp_path / "donor", 6)), tmp_path)
        save(tmp_path, 7)
        assert step_of(tmp_path) == 7

    def test_the_donors_retention_does_not_take_it_away(self, tmp_path: Path) -> None:
        there = save(tmp_path / "donor", 6)
        checkpoints.adopt(Saved(6, there), tmp_path / "own")
        shutil.rmtree(there)
        assert step_of(tmp_path / "own") == 6

    @pytest.mark.parametrize("gone", ["all", "part"])
    def test_one_that_goes_away_meanwhile_changes_nothing(self, tmp_path: Path, gone: str) -> None:
        there, own = save(tmp_path / "donor", 6), tmp_path / "own"
        save(own, 9)
        before = contents(own)
        shutil.rmtree(there if gone == "all" else there / "actor")
        with pytest.raises(SweeperError, match="global_step_6"):
            checkpoints.adopt(Saved(6, there), own)
        assert contents(own) == before

    def test_a_file_system_without_links_gets_copies(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*_: Any) -> None:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr("os.link", refused)
        checkpoints.adopt(Saved(6, save(tmp_path / "donor", 6)), tmp_path / "own")
        assert step_of(tmp_path / "own") == 6

    @pytest.mark.parametrize("cut", range(1, 12))
    def test_a_kill_at_any_point_leaves_it_undone_or_done(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
    ) -> None:
        there, own = save(tmp_path / "donor", 6), tmp_path / "own"
        save(own, 6)
        save(own, 9)
        (there / "actor" / "model_world_size_1_rank_0.pt").write_bytes(archive("another"))
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
            for name in ("rename", "replace", "mkdir", "rmdir", "write_text"):
                patched.setattr(Path, name, counting(getattr(Path, name)))
            with contextlib.suppress(KeyboardInterrupt):
                checkpoints.adopt(Saved(6, there), own)
        found = checkpoints.newest(own)
        assert found is not None
        assert found.step in (6, 9)
        if found.step == 6:
            assert contents(found.path) == contents(there), "whole, and the donor's"
        checkpoints.adopt(Saved(6, there), own)  # and again, as a controller does that comes back
        assert step_of(own) == 6
