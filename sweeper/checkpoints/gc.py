"""`sweeper gc`: what of a store's checkpoints could be freed, why the rest stays, and freeing it.

Guarantees: without `free` nothing is changed; what keep.py protects is never freed; where a controller lives only
trials that are done are touched, and otherwise nobody can resume the sweep meanwhile; nothing outside the store is
looked at or deleted: a checkpoint folder that a symbolic link leads to is left alone and named; hard links count once;
what cannot be deleted is said and the rest goes on. Sweeps whose records cannot be read are named and left alone.

Beside checkpoints that `keep` does not want: what verl and adoptions left over, corrupted ones that were set aside,
removals and writes that a kill cut off.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweeper import engines
from sweeper.checkpoints import keep as rules
from sweeper.checkpoints import origin, retention
from sweeper.checkpoints.keep import Checkpoint, Forked, Keep, Standing
from sweeper.engines.base import Engine
from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.trial.ledger import DONE, Ledger, LedgerBusy, TrialState, holder
from sweeper.trial.records import SweepFolder, read_json

LEDGER = "ledger.db"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that can go, or must stay."""

    sweep: str
    trial: str
    """Empty: of the sweep or the store as a whole."""
    step: int | None
    path: Path
    bytes: int
    why: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        about = {"sweep": self.sweep, "trial": self.trial, "step": self.step, "path": str(self.path)}
        return {**about, "bytes": self.bytes, "why": self.why}


@dataclass(slots=True)
class Survey:
    """What a store holds."""

    free: list[Item] = field(default_factory=list)
    protected: list[Item] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was left alone, and why."""
    bytes: int = 0
    """That freeing all of `free` gives back: files that something else still holds give none."""
    freed: int | None = None
    """Bytes that were freed; None: nothing was asked to be."""


def survey(store: Path, name: str | None = None, asked: Keep | None = None, *, free: bool = False) -> Survey:
    """Look at one sweep or all of a store; with `free`, free what can go.

    `asked`: what is kept, where it is not None, instead of what each sweep was started with.

    Raises:
        RequestError: There is no such sweep, or so little cannot be kept.
    """
    _possible(asked)
    names = [name] if name else sorted(p.parent.name for p in store.glob("*/sweep.json"))
    made = Survey(freed=0 if free else None)
    for each in names:
        folder = SweepFolder.existing(store, each)
        with contextlib.ExitStack() as stack:
            live = False
            if free and (folder.path / LEDGER).exists():
                try:
                    stack.callback(Ledger.open(folder.path / LEDGER, create=False).close)  # nobody resumes it
                except LedgerBusy:
                    live = True
                except SweeperError as error:
                    made.notes.append(f"{each} is left alone: {error}")
                    continue
            try:
                found = _sweep(store, folder, asked, made, live=live or _live(folder, free))
            except SweeperError as error:
                made.notes.append(f"{each} is left alone: {error}")
                continue
            _take(made, found, free)
    if name is None:
        _take(made, list(_unborn(store)), free)
    return made


def _live(folder: SweepFolder, free: bool) -> bool:
    """Whether a controller writes it; with `free` the lock has said so already."""
    return not free and holder(folder.path / LEDGER) is not None


def _take(made: Survey, found: list[Item], free: bool) -> None:
    """Add what can go; free it."""
    before = _unshared(found)
    made.free += found
    made.bytes += before
    if not free:
        return
    failed = []
    for item in found:
        try:
            retention.remove(item.path)
        except OSError as error:
            failed.append(item)
            made.notes.append(f"{item.path} cannot be deleted: {error.strerror or error}")
    made.freed = (made.freed or 0) + before - (_unshared(failed) if failed else 0)


def _unshared(items: Sequence[Item]) -> int:
    """Bytes of the files that nothing but these items holds."""
    names: Counter[tuple[int, int]] = Counter()
    links: dict[tuple[int, int], tuple[int, int]] = {}
    for item in items:
        inside = [Path(at, name) for at, _, found in os.walk(item.path) for name in found]
        for path in inside or [item.path]:
            with contextlib.suppress(OSError):
                facts = path.lstat()
                if stat.S_ISREG(facts.st_mode):
                    names[facts.st_dev, facts.st_ino] += 1
                    links[facts.st_dev, facts.st_ino] = (facts.st_nlink, facts.st_size)
    return sum(links[inode][1] for inode, count in names.items() if count >= links[inode][0])


def _sweep(store: Path, folder: SweepFolder, asked: Keep | None, made: Survey, *, live: bool) -> list[Item]:
    """What of a sweep can go; what must stay is noted."""
    states = Ledger.read(folder.path / LEDGER) if (folder.path / LEDGER).exists() else {}
    history = Ledger.history(folder.path / LEDGER) if states else []
    forks = [fork for event in history if event.kind == "trial_forked" for fork in retention.forked(event)]
    mode = next((str(e.data.get("mode", "max")) for e in history if e.kind == "sweep_started"), "max")
    spec = _spec(folder)
    config = spec.get("config") or {}
    engine = engines.get(str((config.get("engine") or {}).get("name", "verl")))
    keep = _merged(Keep.of(config), asked)
    standings = [_standing(state) for state in states.values()]
    checkpoints: list[Checkpoint] = []
    idle: list[str] = []
    found: list[Item] = []
    for trial in folder.trial_ids():
        at = folder.checkpoints(trial)
        if not at.resolve().is_relative_to(store.resolve()):
            made.notes.append(f"{at} leads out of the store, to {at.resolve()}: left alone")
            continue
        checkpoints += retention.scan(engine, at, trial)
        state = states.get(trial)
        # It ran when its controller died: it may still. (Under our own lock it is said to be running.)
        may_run = state is None or state.state in ("running", "interrupted")
        if state is not None and (state.state in DONE or not (live or may_run)):
            idle.append(trial)
    decision = rules.decide(checkpoints, standings, forks, keep, mode=mode)
    if decision.free:
        checkpoints = retention.registered(folder, checkpoints)
        decision = rules.decide(checkpoints, standings, forks, keep, mode=mode)
    gone = {c.key for c, _ in decision.free}
    kept = {c.trial for c in checkpoints if c.key not in gone}
    for trial in idle:
        found += _left(engine, folder, trial, forks, states, kept)
    for checkpoint, why in decision.free:
        state = states.get(checkpoint.trial)
        if live and (state is None or state.state not in DONE):
            made.protected.append(_item(folder, checkpoint, "the sweep runs and its trial is not done"))
        else:
            found.append(_item(folder, checkpoint, why))
    made.protected += [_item(folder, checkpoint, why) for checkpoint, why in decision.protected]
    if decision.over and keep.gb is not None:
        over = keep.gb + decision.over / rules.GB
        made.notes.append(f"{folder.name}: {over:.1f} GB must stay, although keep.gb={keep.gb:g}")
    if live:
        made.notes.append(f"{folder.name} runs: only trials that are done are touched")
    return found


def _left(
    engine: Engine,
    folder: SweepFolder,
    trial: str,
    forks: Sequence[Forked],
    states: dict[str, TrialState],
    kept: Set[str],
) -> Iterator[Item]:
    """What lies beside the checkpoints of a trial that does not run. `kept`: trials of which a checkpoint stays."""
    at = folder.checkpoints(trial)
    children = [fork.child for fork in forks if fork.donor == trial and fork.child in states]
    # What it set aside may be what they were forked from.
    needed = states[trial].state not in DONE or any(c in kept or states[c].state not in DONE for c in children)
    rows = [(path, why) for path, why in engine.leftovers(at) if not (needed and path.name.startswith("aside-"))]
    if trial not in kept and (at / origin.FOLDER).is_dir():
        rows.append((at / origin.FOLDER, "what it was forked from; nothing else of the trial is left"))
    for path in sorted(at.iterdir()) if at.is_dir() else []:
        if path.name.startswith(retention.GONE):
            rows.append((path, "its removal was cut off"))
        elif path.name.startswith("corrupt-"):
            rows.append((path, "corrupted; it was set aside and not gone on from"))
        elif path.name.startswith(".") and path.name.endswith(".tmp"):
            rows.append((path, "a file whose writing was cut off"))
    rows += [(path, "a manifest whose writing was cut off") for path in sorted((at / "manifests").glob(".*.tmp"))]
    for path, why in rows:
        if not path.is_symlink():
            yield Item(folder.name, trial, None, path, sum(f[2] for f in retention.files_of(path)), why)


def _unborn(store: Path) -> Iterator[Item]:
    """Folders of sweeps whose making was cut off: `.{name}.{pid}.new` of a process that is gone."""
    for path in sorted(store.glob(".*.new")):
        pid = path.name.removesuffix(".new").rpartition(".")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and path.is_dir() and not path.is_symlink():
            yield Item(
                "", "", None, path, sum(f[2] for f in retention.files_of(path)), "a sweep that was never started"
            )


def _item(folder: SweepFolder, checkpoint: Checkpoint, why: str) -> Item:
    return Item(folder.name, checkpoint.trial, checkpoint.step, checkpoint.path, checkpoint.bytes, why)


def _standing(state: TrialState) -> Standing:
    return Standing(state.id, state.state, state.arm, state.candidate or state.id, state.kind, state.final_score)


def _spec(folder: SweepFolder) -> dict[str, Any]:
    """What the latest trial was started with: all trials of a sweep share `keep` and the engine."""
    for trial in reversed(folder.trial_ids()):
        for attempt in reversed(folder.attempts(trial)):
            with contextlib.suppress(SweeperError):
                return read_json(attempt / "spec.json")
    return {}


def _merged(keep: Keep, asked: Keep | None) -> Keep:
    if asked is None:
        return keep
    said = {name: getattr(asked, name) for name in ("last", "top_k", "gb") if getattr(asked, name) is not None}
    return replace(keep, **said)


def _possible(asked: Keep | None) -> None:
    counts = [n for n in (asked.last, asked.top_k) if n is not None] if asked else []
    if any(n < 1 for n in counts) or (asked and asked.gb is not None and not asked.gb >= 0):
        raise RequestError(Problem("--last and --top-k are at least 1, --gb at least 0", fix="sweeper gc --help"))


def render(found: Survey) -> Iterator[str]:
    """The lines that a person reads."""
    for title, items in (("can go", found.free), ("stays", found.protected)):
        if items:
            yield f"{title}:"
        for item in items:
            what = f"step {item.step}" if item.step is not None else item.path.name
            where = f"{item.sweep}/{item.trial}" if item.trial else str(item.path.parent)
            yield f"  {where}  {what:16}  {item.bytes / rules.GB:9.3f} GB  {item.why}"
    yield from found.notes
    if found.freed is not None:
        yield f"{found.freed / rules.GB:.3f} GB freed"
    elif found.free:
        yield f"{found.bytes / rules.GB:.3f} GB would be freed; nothing was: add --yes to free them"
    else:
        yield "nothing to free"
