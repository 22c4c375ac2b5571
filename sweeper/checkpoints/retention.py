"""Frees checkpoints while a sweep runs, by `keep`; and the two things that this and `sweeper gc` share: looking at a
trial's checkpoints and removing one.

Guarantees: what keep.py protects stays; a checkpoint is never half there under its name (it is renamed first, then
deleted); where MLflow's model registry does not answer nothing is freed, and it is asked again a minute later at the
earliest; no error of it ends a sweep, the first is said; at a trial's end it looks at that trial's folder and, where
the whole sweep has a budget, at what it remembers of the others: 40 ms of a processor where 3,000 are done.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from sweeper.checkpoints import keep as rules
from sweeper.checkpoints import manifest, origin, pins
from sweeper.checkpoints.keep import Checkpoint, Forked, Keep, Standing
from sweeper.engines.base import Engine
from sweeper.errors import SweeperError
from sweeper.search.outcome import Outcome
from sweeper.trial.ledger import Event
from sweeper.trial.records import SweepFolder

GONE = ".gone-"
"""Begins the name of what is being deleted."""
AGAIN_S = 60.0
"""After MLflow did not answer. A client waits up to a minute for a server that hangs: no trial's end should."""


class Retention:
    """Of one sweep, while its controller runs."""

    def __init__(
        self,
        keep: Keep,
        engine: Engine,
        folder: SweepFolder,
        events: Callable[[int], Iterable[Event]],
        warn: Callable[[str], None],
        mode: str = "max",
    ) -> None:
        """`events`: those of the ledger with a number above the one given, of kind `trial_forked`."""
        self._keep, self._engine, self._folder, self._mode = keep, engine, folder, mode
        self._events, self._warn = events, warn
        self._forks: list[Forked] = []
        self._seen = 0
        self._done: dict[str, list[Checkpoint]] = {}
        """What is left of trials that are done, by trial."""
        self._said: set[str] = set()
        self._ask_at = 0.0
        """When the registry may be asked again; of the monotonic clock."""

    def ended(self, outcomes: Mapping[str, Outcome], trial: str) -> None:
        """A trial has ended: free what need not stay. Never raises."""
        try:
            self._ended(outcomes, trial)
        except Exception as error:
            # Whatever it is, the sweep's results do not depend on it.
            self._say(f"checkpoints are not freed: {str(error).splitlines()[0] if str(error) else repr(error)}")

    def _ended(self, outcomes: Mapping[str, Outcome], trial: str) -> None:
        whole_sweep = self._keep.top_k is not None or self._keep.gb is not None
        for event in self._events(self._seen):
            self._seen = event.seq
            self._forks += forked(event)
        if outcomes[trial].done and not any(fork.donor == trial for fork in self._forks):
            for path, _ in self._engine.leftovers(self._folder.checkpoints(trial)):
                remove(path)
        if not whole_sweep and self._keep.last is None:
            return
        self._done.pop(trial, None)
        # Without a budget of the whole sweep only this trial is judged, and those that came from it.
        asked = outcomes if whole_sweep else {trial, *(f.child for f in self._forks if f.child in outcomes)}
        found = [c for name in asked for c in self._held(outcomes[name])]
        standings = [standing(outcomes[name]) for name in asked]
        decision = rules.decide(found, standings, self._forks, self._keep, mode=self._mode)
        if decision.free:
            known = self._registered(found)
            if known is None:
                return
            decision = rules.decide(known, standings, self._forks, self._keep, mode=self._mode)
        for checkpoint, _ in decision.free:
            if checkpoint.trial != trial and not outcomes[checkpoint.trial].done:
                continue  # it was looked at for the budget; what it needs is judged at its own end
            if any(p.step in (None, checkpoint.step) for p in pins.pinned(checkpoint.path.parent)):
                self._done.pop(checkpoint.trial, None)  # pinned since it was looked at
                continue
            remove(checkpoint.path)
            if checkpoint.trial in self._done:
                self._done[checkpoint.trial].remove(checkpoint)
                if not self._done[checkpoint.trial]:
                    remove(checkpoint.path.with_name(origin.FOLDER))
        if decision.over and self._keep.gb is not None:
            gb = self._keep.gb + decision.over / rules.GB
            self._say(f"keep.gb={self._keep.gb:g}: {gb:.1f} GB of checkpoints must stay", once="over")

    def _registered(self, found: list[Checkpoint]) -> list[Checkpoint] | None:
        """With what is registered pinned; None: not a minute ago MLflow did not answer."""
        if time.monotonic() < self._ask_at:
            return None
        try:
            return registered(self._folder, found)
        except SweeperError:
            self._ask_at = time.monotonic() + AGAIN_S
            raise

    def _held(self, outcome: Outcome) -> list[Checkpoint]:
        """The checkpoints of a trial, those of one that is done from memory."""
        trial = outcome.trial.id
        if trial in self._done and outcome.done:
            return self._done[trial]
        if not outcome.attempts:  # it was not attempted, or stands on another sweep's
            return []
        found = scan(self._engine, self._folder.checkpoints(trial), trial)
        if outcome.done:
            self._done[trial] = found
        return list(found)

    def _say(self, message: str, once: str = "") -> None:
        if (once or message) not in self._said:
            self._said.add(once or message)
            self._warn(f"{message}; sweeper gc {self._folder.typed} shows them")


def standing(outcome: Outcome) -> Standing:
    """How a trial of a running controller stands."""
    trial, score = outcome.trial, outcome.curve.final_score
    return Standing(trial.id, outcome.state, trial.arm, trial.candidate or trial.id, trial.kind, score)


def forked(event: Event) -> list[Forked]:
    """What a `trial_forked` event says; nothing where the trial kept its own weights."""
    donor, step = event.data.get("donor"), event.data.get("step")
    if event.kind != "trial_forked" or not donor or event.trial is None:
        return []
    return [Forked(str(donor), None if step is None else int(step), event.trial)]


def scan(engine: Engine, folder: Path, trial: str) -> list[Checkpoint]:
    """The whole checkpoints of a trial's folder, with their pins and files; what the trial was forked from counts as a
    part of each, for it goes with the last. Links are not followed."""
    if not folder.is_dir():
        return []
    held = pins.pinned(folder)
    beside = files_of(folder / origin.FOLDER)
    return [
        Checkpoint(
            trial,
            saved.step,
            saved.path,
            (*files_of(saved.path), *beside),
            tuple(
                f"by {p.by} ({p.why})" if p.step is not None else p.why for p in held if p.step in (None, saved.step)
            ),
        )
        for saved in engine.kept(folder)
        if not saved.path.is_symlink()
    ]


def registered(folder: SweepFolder, checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """With what is in MLflow's model registry pinned too, whoever put it there. To be asked where something would go.

    Raises:
        SweeperError: MLflow does not answer.
    """
    from sweeper.tracking import registry

    held = registry.held(folder.path)
    return [
        replace(c, pins=(*c.pins, f"by mlflow ({said})")) if (said := held.get(c.path.resolve())) else c
        for c in checkpoints
    ]


def files_of(path: Path) -> tuple[tuple[int, int, int], ...]:
    """(device, inode, bytes) of every file below, or of the file itself; what goes away meanwhile is left out."""
    found = []
    paths = [path] if not path.is_dir() else [Path(at, name) for at, _, names in os.walk(path) for name in names]
    for file in paths:
        try:
            facts = file.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(facts.st_mode):
            found.append((facts.st_dev, facts.st_ino, facts.st_size))
    return tuple(sorted(found))


def remove(path: Path) -> None:
    """Delete a checkpoint, its manifest, or anything beside them. A kill leaves it whole, or under a name that nothing
    looks at; one that is gone already is no error.

    Raises:
        OSError: It cannot be deleted.
    """
    gone = path.with_name(f"{GONE}{path.name}")
    if gone.exists():  # of a removal that was cut off
        _delete(gone)
    try:
        path.rename(gone)
    except FileNotFoundError:
        return
    known = path.parent / manifest.FOLDER / f"{path.name}.json"
    known.unlink(missing_ok=True)
    _delete(gone)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
