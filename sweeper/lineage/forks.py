"""Where a run begins that went on from weights of other values than its own: a fork of population based training.

Guarantees: what a run is rebuilt from is the checkpoint that the record names by its hash, read whole; another one of
that step is never taken for it. A trial that kept its own weights under new values counts as a fork of itself. Nothing
is changed where the checkpoints are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sweeper.checkpoints import manifest, origin
from sweeper.errors import RequestError
from sweeper.lineage import document
from sweeper.lineage.find import Found


@dataclass(frozen=True, slots=True)
class Fork:
    """The latest one of a run."""

    file: int
    """Index of the forked attempt's file in `Found.metrics`: what is before it was trained under other values."""
    parent: Mapping[str, Any]
    """The record's entry of what it went on from."""

    @property
    def step(self) -> int | None:
        """Of the checkpoint; the run's own first step is the next one."""
        return None if self.parent["step"] is None else int(self.parent["step"])

    @property
    def donor(self) -> str:
        """`SWEEP/TRIAL`, and the step where it is known."""
        at = "" if self.step is None else f" at step {self.step}"
        return f"{self.parent['sweep']}/{self.parent['trial']}{at}"


def of(found: Found) -> Fork | None:
    """The fork that a run's values come from; None where a run from the start, with its config, is this one.

    Of attempts whose records are gone nothing is known.
    """
    attempts = list(_attempts(found))
    for (file, record), (_, before) in zip(attempts, [*attempts[1:], (0, None)], strict=True):
        for parent in record["parents"]:
            if parent["relation"] == "forked-from":
                return Fork(file, parent)
            other = before is not None and before["fingerprint"] != record["fingerprint"]
            if parent["relation"] == "previous-attempt" and other and parent["step"] is not None:
                return Fork(file, parent)
    return None


def _attempts(found: Found) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Index of the metrics file and record of the run's attempts, its own first, then backwards."""
    last = len(found.metrics) - 1
    yield last, found.document
    for file in range(last - 1, -1, -1):
        with contextlib.suppress(RequestError):
            yield file, document.load(found.metrics[file].parent)


def since(found: Found) -> Found:
    """The run from its fork on: what can be done again under its values; itself where it has none."""
    fork = of(found)
    if fork is None:
        return found
    return replace(found, metrics=found.metrics[fork.file :], earlier={}, earlier_scores={})


def checkpoint(found: Found, fork: Fork) -> Path:
    """The checkpoint that it went on from, where one with the recorded content lies.

    Raises:
        UntrueError: where it was there is another content.
        RequestError: it is nowhere.
    """
    tried: list[str] = []
    altered = False
    if fork.step is None or fork.parent["checkpoint"] is None:
        tried.append("its content was not recorded")
    else:
        for folder in _folders(found, fork):
            why, other = _unlike(folder, fork.step, str(fork.parent["checkpoint"]))
            if not why:
                return folder / manifest.name_of(fork.step)
            tried.append(why)
            altered = altered or other
    kind = document.UntrueError if altered else RequestError
    donor = fork.parent["lineage"] or f"{fork.parent['sweep']}/{fork.parent['trial']}"
    raise kind(
        document.at_fault(
            "parents",
            f"{found.name} went on from the checkpoint of {fork.donor}, under other values from there on, and cannot "
            f"be rebuilt without that: {'; '.join(tried)}",
            valid=f"a checkpoint of step {fork.step} with digest {fork.parent['checkpoint']}",
            fix=f"put it back, or sweeper reproduce {donor}   (what it was forked from)",
        )
    )


def _folders(found: Found, fork: Fork) -> list[Path]:
    """Where it may lie: kept by the trial that went on from it, or with the one that wrote it."""
    own = [
        trial / "checkpoints" for trial in (found.path.parents[1], Path(str(found.document["run"]["folder"])).parent)
    ]
    donors = [Path(str(fork.parent["lineage"])).parents[1] / "checkpoints"] if fork.parent["lineage"] else []
    return list(dict.fromkeys([*(folder / origin.FOLDER for folder in own), *own, *donors]))


def _unlike(folder: Path, step: int, digest: str) -> tuple[str, bool]:
    """Why the checkpoint there is not the one of that digest, empty where it is; and whether it was that one."""
    at = folder / manifest.name_of(step)
    try:
        written = manifest.read(folder, step)
        if written is None or manifest.retired(folder, written):
            return f"{at} is not there", False
        if written.digest != digest:
            return f"{at} has digest {written.digest}", False
        wrong = manifest.verify(folder, step)
    except (manifest.DamagedError, OSError) as error:
        return str(error), True
    return (f"{at}/{wrong[0]}", True) if wrong else ("", False)
