"""A checkpoint that a trial is told to start from: whose it is, whether it is as it was written, and that it stays.

Guarantees: what has a manifest is compared with it by content, read once a content (sweeper/lineage/hashes.py); what
lies in a sweep is pinned there, so that neither that sweep's budget nor `sweeper gc` frees it; what cannot be found out
about an origin is left open and never guessed.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.checkpoints import manifest, pins
from sweeper.checkpoints.manifest import Manifest
from sweeper.config.dims import text_of
from sweeper.errors import RequestError
from sweeper.lineage import document
from sweeper.lineage.hashes import HashError, Hashes
from sweeper.trial.records import SweepFolder, attempt_number

KEYS = ("trainer.resume_mode", "trainer.resume_from_path")
_STEP = re.compile(r"global_step_(\d+)")
_Facts = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Who wrote a checkpoint."""

    sweep: str
    """Its name; the checkpoint's folder where no sweep is known."""
    trial: str
    attempt: int | None
    step: int | None
    digest: str | None
    lineage: Path | None
    """The record of that attempt, where it is there."""


def named(config: Mapping[str, Any]) -> Path | None:
    """The checkpoint that a config says to start from; None: it says none, or the trainer would not look at it."""
    trainer = config.get("trainer")
    asked = trainer if isinstance(trainer, Mapping) else {}
    path = asked.get("resume_from_path")
    return Path(path).expanduser() if asked.get("resume_mode") == "resume_path" and path else None


def overrides(checkpoint: Path) -> list[str]:
    """The override lines that start a trial from it."""
    return [f"{key}={value}" for key, value in zip(KEYS, ("resume_path", text_of(str(checkpoint))), strict=True)]


def origin(checkpoint: Path) -> Origin:
    """By its manifest and the folder that it lies in: a trial's, or one that was handed on with a record beside it."""
    folder = checkpoint.parent
    found = _STEP.fullmatch(checkpoint.name)
    step = int(found[1]) if found else None
    written = _manifest(checkpoint)
    digest = written.digest if written else None
    if sweep := _sweep(folder):
        trial = written.trial if written and written.trial else folder.parent.name
        number = written.attempt if written else None
        wrote = sweep.trial(trial) / f"attempt-{number}" if number else sweep.latest_attempt(trial)
        attempt = attempt_number(wrote) if wrote else None
        return Origin(sweep.name, trial, attempt or None, step, digest, _record(wrote) if wrote else None)
    handed_on = SweepFolder(folder.parent)
    records = [r for t in handed_on.trial_ids() for a in handed_on.attempts(t) if (r := _record(a))]
    if records:
        record = next((r for r in records if written and f"attempt-{written.attempt}" == r.parent.name), records[-1])
        try:
            run = document.load(record)["run"]
            return Origin(str(run["sweep"]), str(run["trial"]), int(run["attempt"]), step, digest, record)
        except (RequestError, KeyError, TypeError, ValueError):
            pass
    trial = written.trial if written and written.trial else checkpoint.name
    return Origin(str(folder), trial, written.attempt if written else None, step, digest, None)


def wrong(checkpoint: Path, hashes: Hashes | None = None) -> list[str]:
    """What of it is not as its manifest says, a line each that begins with the file's name; empty where all of it is,
    or where nothing is known.

    Reads what was never hashed as it lies now, and says so where that takes long.
    """
    try:
        written = manifest.read(checkpoint.parent, int(checkpoint.name.rpartition("_")[2]))
    except manifest.DamagedError as error:
        return [str(error)]
    except (OSError, ValueError):
        return []
    if written is None:
        return []
    facts = tuple(_facts(checkpoint / rel) for rel, _, _ in written.files)
    known = _seen.get(checkpoint)
    if known is None or known[0] != (written.digest, facts):
        found = _compared(checkpoint, written, facts, hashes or Hashes(say=_say))
        known = _seen[checkpoint] = ((written.digest, facts), found)
    return known[1]


def hold(checkpoint: Path, sweep: Path) -> None:
    """Pin it for a sweep whose trials start from it, where it is a trial's; anything else nobody frees.

    Raises:
        SweeperError: The pin cannot be written.
    """
    owner, found = _sweep(checkpoint.parent), _STEP.fullmatch(checkpoint.name)
    if owner is None or found is None or not checkpoint.is_dir():
        return
    # Sweeps of one name may be in two stores.
    of = hashlib.sha256(str(sweep.absolute()).encode()).hexdigest()[:8]
    name = f"start-{of}-{found[1]}"
    if not any(p.name == name and p.step is not None for p in pins.pinned(checkpoint.parent)):
        pins.pin(checkpoint.parent, int(found[1]), f"sweep {sweep.name}", f"trials of {sweep} start from it", name=name)


_seen: dict[Path, tuple[tuple[str, _Facts], list[str]]] = {}
"""A plan asks for every trial."""


def _compared(checkpoint: Path, written: Manifest, facts: _Facts, hashes: Hashes) -> list[str]:
    lines = []
    for (rel, size, _), now in zip(written.files, facts, strict=True):
        if now is None:
            lines.append(f"{rel} is missing")
        elif now[0] != size:
            lines.append(f"{rel} has {now[0]} bytes, {size} were written")
    if lines:
        return lines  # known to be torn: no need to read it all
    try:
        read = hashes.files([checkpoint / rel for rel, _, _ in written.files])
    except HashError as error:
        return [str(error)]
    return [
        f"{rel} has other content than was written (sha256 {now[:12]}, was {sha[:12]})"
        for (rel, _, sha), now in zip(written.files, read, strict=True)
        if now != sha
    ]


def _facts(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def _manifest(checkpoint: Path) -> Manifest | None:
    try:
        return manifest.read(checkpoint.parent, int(checkpoint.name.rpartition("_")[2]))
    except (OSError, ValueError):  # damaged, or its name is no step's
        return None


def _sweep(folder: Path) -> SweepFolder | None:
    """The sweep that a trial's checkpoint folder is of."""
    at = folder.parents[2] if len(folder.parents) > 2 else folder
    ours = folder.parent.parent.name == "trials" and (at / "sweep.json").is_file()
    return SweepFolder(at) if ours else None


def _record(folder: Path) -> Path | None:
    path = folder / document.NAME
    return path if path.is_file() else None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
