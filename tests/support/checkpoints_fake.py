"""Checkpoints as verl lays them out, with nothing trained in them: fakes, for tests of what keeps and checks them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from sweeper.checkpoints import manifest


def save(folder: Path, step: int, weights: bytes = b"weights" * 1000) -> Path:
    """The folder of that step, with its manifest."""
    at = folder / f"global_step_{step}"
    (at / "actor").mkdir(parents=True)
    for file in (at / "actor" / "model_world_size_1_rank_0.pt", at / "data.pt"):
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("archive/data", weights)
    assert manifest.write(folder, step) is not None
    return at


def steps(folder: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("global_step_")) for p in folder.glob("global_step_*"))
