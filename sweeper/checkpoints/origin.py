"""What a trial was forked from, kept beside its checkpoints: `{checkpoints}/origin/global_step_N` and its manifest.

The trainer deletes its older checkpoints by itself, the donor's and the trial's copy too, and without the checkpoint a
fork cannot be run again (sweeper/lineage/forks.py).

Guarantees: it is whole or absent; files are linked and never copied, so that it costs space only once the others are
deleted; where the file system has no links there is none. There is one, of the latest fork, until nothing else of the
trial is left.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sweeper.checkpoints import manifest

FOLDER = "origin"
_PARTIAL = f".{FOLDER}.tmp"


def keep(checkpoint: Path, folder: Path) -> None:
    """Make that checkpoint, which has a manifest, the origin in a trial's checkpoint folder.

    Raises:
        OSError: It cannot be linked; there is none then.
    """
    known = checkpoint.parent / manifest.FOLDER / f"{checkpoint.name}.json"
    partial = folder / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    try:
        shutil.copytree(checkpoint, partial / checkpoint.name, copy_function=os.link)
        (partial / manifest.FOLDER).mkdir()
        shutil.copyfile(known, partial / manifest.FOLDER / known.name)
        partial.rename(folder / FOLDER)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"{checkpoint} cannot be linked in {folder}: {error}") from error
