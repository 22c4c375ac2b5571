"""Which checkpoints of a sweep may be freed, and why the others stay.

`keep.last`: so many newest ones of a trial. `keep.top_k`: of the candidates that are done only the best so many of an
arm keep any. `keep.gb`: all of the sweep together; beyond it goes what matters least first: older ones before the
newest of a trial, those of trials that were ended early before finished ones, the worse before the better.

Guarantees: never freed, whatever is asked for, are
    - pinned ones (pins.py);
    - all of a trial that runs, or may run under a controller that has died, or is paused;
    - the newest of a trial that waits, was stopped or has failed: it goes on from it;
    - the newest of the best finished candidate of an arm, under all its seeds, its final ones too;
    - an ancestor: what a trial that is not done was forked from, or one of which a checkpoint stays, and what that was
      forked from. Where the budget takes a trial's last one, its ancestors may go after it.
What is decided follows from the arguments alone; nothing is read, written or deleted here. Files that several
checkpoints share by hard links count once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeper.search.stats import mean

GB = 10**9

_RUNS = frozenset({"running", "starting", "interrupted"})
_DONE = frozenset({"finished", "pruned"})


@dataclass(frozen=True, slots=True)
class Keep:
    """What a sweep keeps; None: all."""

    last: int | None = None
    top_k: int | None = None
    gb: float | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Keep:
        """From the config's `keep`; where there is none (an older sweep), everything is kept."""
        asked = config.get("keep") or {}
        return cls(asked.get("last"), asked.get("top_k"), asked.get("gb"))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One that is whole."""

    trial: str
    step: int
    path: Path
    files: tuple[tuple[int, int, int], ...]
    """(device, inode, bytes) of each file."""
    pins: tuple[str, ...] = ()
    """Who needs it, and why."""

    @property
    def key(self) -> tuple[str, int]:
        """Trial and step."""
        return self.trial, self.step

    @property
    def bytes(self) -> int:
        """Of its files, shared ones too."""
        return sum({(device, inode): size for device, inode, size in self.files}.values())


@dataclass(frozen=True, slots=True)
class Standing:
    """How a trial stands."""

    trial: str
    state: str
    arm: str = "0"
    candidate: str = ""
    kind: str = "search"
    score: float | None = None
    """The latest."""


@dataclass(frozen=True, slots=True)
class Forked:
    """A trial went on from another's checkpoint."""

    donor: str
    step: int | None
    """None: not known; all of the donor's then count."""
    child: str


@dataclass(slots=True)
class Decision:
    """What may go."""

    free: list[tuple[Checkpoint, str]] = field(default_factory=list)
    """With the reason, the first to go first."""
    protected: list[tuple[Checkpoint, str]] = field(default_factory=list)
    """What must stay, with the reason."""
    bytes: int = 0
    """That freeing gives back."""
    over: int = 0
    """Bytes beyond `keep.gb` that are left, since all of it must stay."""


def decide(
    checkpoints: Iterable[Checkpoint],
    standings: Iterable[Standing],
    forks: Iterable[Forked],
    keep: Keep,
    *,
    mode: str = "max",
) -> Decision:
    """What of these may be freed. A checkpoint of a trial that is not among the standings stays.

    `mode`: which score is best, `max` or `min`.
    """
    known = {s.trial: s for s in standings}
    of_trial: dict[str, list[Checkpoint]] = {}
    for checkpoint in sorted(checkpoints, key=lambda c: (c.trial, -c.step)):
        of_trial.setdefault(checkpoint.trial, []).append(checkpoint)
    ranked = _ranked(known.values(), mode)
    descent = _Descent(forks)
    reasons = _protected(of_trial, known, descent, ranked)
    every = [c for found in of_trial.values() for c in found]
    counts = Counter(inode for c in every for inode in set(c.files))
    made = Decision()
    gone: set[tuple[str, int]] = set()

    def free(checkpoint: Checkpoint, why: str) -> None:
        gone.add(checkpoint.key)
        made.free.append((checkpoint, why))
        of_trial[checkpoint.trial].remove(checkpoint)
        for inode in set(checkpoint.files):
            counts[inode] -= 1
            if not counts[inode]:
                made.bytes += inode[2]

    def needed(but: Iterable[Checkpoint] = ()) -> dict[tuple[str, int | None], str]:
        """What the checkpoints that stay come from, if those of `but` that may go do."""
        if not descent:
            return {}
        going = {c.key for c in but if c.key not in reasons}
        return descent.of((c.trial, c.step, c.trial) for c in every if c.key not in gone and c.key not in going)

    total = sum(inode[2] for inode in counts)
    while True:
        before = len(gone)
        wanted = _wanted(of_trial, ranked, keep)
        held = needed(c for c, _ in wanted)
        for checkpoint, why in wanted:
            if checkpoint.key not in reasons and checkpoint.key not in gone and not _in(held, checkpoint):
                free(checkpoint, why)
        if keep.gb is not None:
            why, left = (
                f"the sweep's checkpoints are more than {keep.gb:g} GB (keep.gb)",
                _least_first(of_trial, ranked),
            )
            held, at = needed(), 0
            while at < len(left) and total - made.bytes > keep.gb * GB:
                checkpoint = left[at]
                at += 1
                if checkpoint.key in reasons or checkpoint.key in gone or _in(held, checkpoint):
                    continue
                free(checkpoint, why)
                if descent.forked(checkpoint.trial):  # what it came from may matter least of all now
                    held, at = needed(), 0
            made.over = max(0, total - made.bytes - int(keep.gb * GB))
        if len(gone) == before or not descent:
            break
    held = needed()
    for checkpoint in (c for c in every if c.key not in gone):
        if why := reasons.get(checkpoint.key) or _in(held, checkpoint):
            made.protected.append((checkpoint, why))
    return made


def _wanted(
    of_trial: Mapping[str, Sequence[Checkpoint]], ranked: Mapping[str, Sequence[Sequence[Standing]]], keep: Keep
) -> list[tuple[Checkpoint, str]]:
    """What `keep.last` and `keep.top_k` have no use for."""
    found: list[tuple[Checkpoint, str]] = []
    if keep.last is not None:
        why = f"older than the newest {keep.last} of its trial (keep.last)"
        found += [(c, why) for ours in of_trial.values() for c in ours[keep.last :]]
    if keep.top_k is not None:
        why = f"not of the best {keep.top_k} of its arm (keep.top_k)"
        beyond = (t for candidates in ranked.values() for trials in candidates[keep.top_k :] for t in trials)
        found += [(c, why) for t in beyond for c in of_trial.get(t.trial, ())]
    return found


def _in(held: Mapping[tuple[str, int | None], str], checkpoint: Checkpoint) -> str:
    """Why a checkpoint is needed; empty where it is not."""
    child = held.get(checkpoint.key) or held.get((checkpoint.trial, None))
    return f"{child}, which stays, was forked from it" if child else ""


class _Descent:
    """Who was forked from what."""

    def __init__(self, forks: Iterable[Forked]) -> None:
        self._parents: dict[str, list[Forked]] = {}
        for fork in forks:
            self._parents.setdefault(fork.child, []).append(fork)

    def __bool__(self) -> bool:
        return bool(self._parents)

    def forked(self, trial: str) -> bool:
        """Whether it went on from another one's checkpoint."""
        return trial in self._parents

    def children(self) -> Iterable[str]:
        """The trials that did."""
        return self._parents

    def of(self, starts: Iterable[tuple[str, int | None, str]]) -> dict[tuple[str, int | None], str]:
        """(donor, step) -> who comes from it, over any number of forks, of checkpoints given as trial, step (None: all
        that it ever had) and a name for who that is. A checkpoint comes from the forks at its step or before it."""
        found: dict[tuple[str, int | None], str] = {}
        waiting = [start for start in starts if start[0] in self._parents]
        while waiting:
            trial, step, who = waiting.pop()
            for fork in self._parents.get(trial, ()):
                at = (fork.donor, fork.step)
                if at not in found and (step is None or fork.step is None or fork.step <= step):
                    found[at] = who
                    waiting.append((fork.donor, fork.step, who))
        return found


def _protected(
    of_trial: Mapping[str, Sequence[Checkpoint]],
    known: Mapping[str, Standing],
    descent: _Descent,
    ranked: Mapping[str, Sequence[Sequence[Standing]]],
) -> dict[tuple[str, int], str]:
    """What stays whatever goes, with the reason."""
    reasons: dict[tuple[str, int], str] = {}
    unfinished = (t for t in descent.children() if t not in known or known[t].state not in _DONE)
    ancestors = descent.of((trial, None, trial) for trial in unfinished)
    best = {t.trial: arm for arm, candidates in ranked.items() for t in _best(candidates)}
    for trial, found in of_trial.items():
        state = known[trial].state if trial in known else ""
        for place, checkpoint in enumerate(found):
            child = ancestors.get((trial, checkpoint.step)) or ancestors.get((trial, None))
            if checkpoint.pins:
                reason = f"pinned {', '.join(checkpoint.pins)}"
            elif not state:
                reason = "the ledger does not know its trial"
            elif state in _RUNS:
                reason = "its trial runs" if state != "interrupted" else "its trial may still run: its controller died"
            elif state == "paused":
                reason = "its trial is paused"
            elif state not in _DONE and not place:
                reason = f"its trial goes on from it ({state})"
            elif child:
                reason = f"{child} was forked from it and is not done"
            elif trial in best and not place:
                reason = "the best of its arm"
            else:
                continue
            reasons[checkpoint.key] = reason
    return reasons


def _ranked(standings: Iterable[Standing], mode: str) -> dict[str, list[list[Standing]]]:
    """By arm: the trials of each candidate whose search is done, final ones too; the best candidate first."""
    candidates: dict[tuple[str, str], list[Standing]] = {}
    for standing in standings:
        candidates.setdefault((standing.arm, standing.candidate or standing.trial), []).append(standing)
    arms: dict[str, list[list[Standing]]] = {}
    for (arm, _), trials in candidates.items():
        if all(t.state in _DONE for t in _search(trials)):
            arms.setdefault(arm, []).append(trials)
    sign = 1 if mode == "max" else -1
    for found in arms.values():
        found.sort(key=lambda trials: (_finished(trials), sign * _score(trials, -sign * math.inf)), reverse=True)
    return arms


def _best(candidates: Sequence[Sequence[Standing]]) -> Sequence[Standing]:
    """The best that is finished and has a score (as the search calls it, arm.best)."""
    first = candidates[0] if candidates else ()
    return first if first and _finished(first) and math.isfinite(_score(first, math.inf)) else ()


def _search(trials: Sequence[Standing]) -> Sequence[Standing]:
    return [t for t in trials if t.kind == "search"] or trials


def _finished(trials: Sequence[Standing]) -> bool:
    return all(t.state == "finished" for t in _search(trials))


def _score(trials: Sequence[Standing], missing: float) -> float:
    """The mean over the seeds of the search; `missing` where one has none or one that is no number."""
    scores = [t.score for t in _search(trials)]
    known = [s for s in scores if s is not None and not math.isnan(s)]
    return mean(known) if known and len(known) == len(scores) else missing


def _least_first(
    of_trial: Mapping[str, Sequence[Checkpoint]], ranked: Mapping[str, Sequence[Sequence[Standing]]]
) -> list[Checkpoint]:
    """Every checkpoint, what matters least first: by whether it is its trial's newest, then whether its trial finished,
    then how far from its arm's best it is, then its step."""
    places: dict[str, tuple[bool, float]] = {}
    for candidates in ranked.values():
        for place, trials in enumerate(candidates):
            for standing in trials:
                places[standing.trial] = (_finished(trials), -place / len(candidates))
    rows = []
    for trial, found in of_trial.items():
        # What is not done yet may become the best.
        finished, rank = places.get(trial, (True, 0.0))
        rows += [((not place, finished, rank, c.step, trial), c) for place, c in enumerate(found)]
    return [checkpoint for _, checkpoint in sorted(rows, key=lambda row: row[0])]
