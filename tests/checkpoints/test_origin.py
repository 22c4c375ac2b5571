"""What a trial was forked from is there while the trial is, whatever the trainer deletes. Checkpoints are fakes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from checkpoints_fake import save, steps

from sweeper import engines
from sweeper.checkpoints import manifest, origin
from sweeper.search.takeover import take_over

VERL = engines.get("verl")


def taken_over(theirs: Path, mine: Path, step: int) -> None:
    assert take_over(VERL, mine, theirs, step, names=("001", "000"), warn=pytest.fail) is not None


def test_it_outlives_the_donors_and_the_copy_and_costs_nothing_before(tmp_path: Path) -> None:
    theirs, mine = tmp_path / "000/checkpoints", tmp_path / "001/checkpoints"
    mine.mkdir(parents=True)
    written = manifest.read(theirs, 2) if save(theirs, 2, b"donor" * 1000) else None
    taken_over(theirs, mine, 2)
    weights = Path("global_step_2/actor/model_world_size_1_rank_0.pt")
    assert (theirs / weights).samefile(mine / origin.FOLDER / weights), "a link"
    shutil.rmtree(theirs)
    shutil.rmtree(mine / "global_step_2")  # as verl rotates
    assert written is not None and manifest.read(mine / origin.FOLDER, 2) == written
    assert manifest.verify(mine / origin.FOLDER, 2) == []


def test_the_latest_fork_has_it_and_the_trainer_does_not_see_it(tmp_path: Path) -> None:
    theirs, mine = tmp_path / "000/checkpoints", tmp_path / "001/checkpoints"
    mine.mkdir(parents=True)
    save(theirs, 2), save(theirs, 4)
    taken_over(theirs, mine, 2)
    save(mine, 3)
    taken_over(theirs, mine, 4)
    assert steps(mine / origin.FOLDER) == [4]
    assert [saved.step for saved in VERL.kept(mine)] == [4]


def test_a_trial_that_keeps_its_own_weights_is_its_own_origin(tmp_path: Path) -> None:
    theirs, mine = tmp_path / "000/checkpoints", tmp_path / "001/checkpoints"
    theirs.mkdir(parents=True)
    save(mine, 3)
    said: list[str] = []
    assert take_over(VERL, mine, theirs, 2, names=("001", "000"), warn=said.append) is None
    assert steps(mine / origin.FOLDER) == [3] and "keeps its own weights" in said[0]


def test_without_links_there_is_none_and_the_fork_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, mine = tmp_path / "000/checkpoints", tmp_path / "001/checkpoints"
    mine.mkdir(parents=True)
    save(theirs, 2)

    def refused(*_args: object, **_options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    taken_over(theirs, mine, 2)
    assert sorted(p.name for p in mine.iterdir() if p.is_dir()) == ["global_step_2", "manifests"]
