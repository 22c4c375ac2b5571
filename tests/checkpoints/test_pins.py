"""Pins of checkpoints: whole, by name, and the unreadable ones hold everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.checkpoints import pins
from sweeper.errors import RequestError


def test_a_pin_is_there_until_it_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "global_step_4").mkdir()
    made = pins.pin(tmp_path, 4, "mlflow", "version 3 of policy", name="mlflow-v3")
    pins.pin(tmp_path, 4, "dvc", "best.dvc")
    assert pins.pinned(tmp_path) == [pins.Pin("dvc-4", 4, "dvc", "best.dvc"), made]
    assert pins.unpin(tmp_path, "mlflow-v3")
    assert not pins.unpin(tmp_path, "mlflow-v3")
    assert [p.name for p in pins.pinned(tmp_path)] == ["dvc-4"]


def test_pinning_again_replaces_the_reason(tmp_path: Path) -> None:
    (tmp_path / "global_step_4").mkdir()
    pins.pin(tmp_path, 4, "me", "first")
    pins.pin(tmp_path, 4, "me", "second")
    assert [p.why for p in pins.pinned(tmp_path)] == ["second"]


def test_what_is_not_there_cannot_be_pinned(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no checkpoint of step 4"):
        pins.pin(tmp_path, 4, "me", "")


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "a b"])
def test_a_name_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "global_step_4").mkdir()
    with pytest.raises(RequestError, match="cannot be called"):
        pins.pin(tmp_path, 4, "me", "", name=name)


def test_a_pin_that_cannot_be_read_is_still_one(tmp_path: Path) -> None:
    (tmp_path / "pins").mkdir()
    (tmp_path / "pins" / "torn.json").write_text('{"step": ')
    (found,) = pins.pinned(tmp_path)
    assert found.step is None
    assert "cannot be read" in found.why
