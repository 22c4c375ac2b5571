"""The study of an arm as Optuna's own tools open it: an Optuna journal file.

Guarantees: a record made from the sampler's memory, never read back, so that nothing done to the file can change a
search. At its beginning it replaces the file of an earlier process in one step; from then on it is complete after every
ask and tell. It is handed to the operating system then, not forced to the disk: after a power cut the next process
writes it anew. Values are the user's own (a list is its JSON text), refused points are FAIL with the reason in
`user_attrs["refused"]`, a result that is no number is COMPLETE with the worst infinite value and what was told in
`user_attrs["told"]`. Open it with
`optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(path)))`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from sweeper.search.samplers import models
from sweeper.search.samplers.memory import Entry
from sweeper.search.samplers.space import Axis, Space, text


class _Appended(BaseJournalBackend):
    """The file's end. Reads give what was just appended: the storage above is its only writer and knows the rest."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._lines: list[bytes] = []
        self._newest: list[dict[str, Any]] = []
        self._count = 0

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        unread = self._count - log_number_from
        return self._newest[len(self._newest) - unread :] if unread else []

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._newest = logs
        self._count += len(logs)
        self._lines += [json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs]

    def write(self) -> None:
        """All in one piece: a reader sees none of it or the whole."""
        self._file.write(b"".join(self._lines))
        self._file.flush()
        self._lines.clear()

    def sync(self) -> None:
        os.fsync(self._file.fileno())


class Journal:
    """The file of one arm. One process writes it."""

    def __init__(self, path: Path, space: Space, modes: Sequence[str], memory: Sequence[Entry]) -> None:
        """Replace the file by the study of `memory`. Raises OSError where it cannot be written."""
        self._single = len(modes) == 1
        self._directions = [StudyDirection.MAXIMIZE if m == "max" else StudyDirection.MINIMIZE for m in modes]
        self._ranges = {name: _shown(axis) for name, axis in space.axes.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        new.unlink(missing_ok=True)
        self._backend = _Appended(new)
        self._storage = JournalStorage(self._backend)
        self._study = self._storage.create_new_study(self._directions, path.stem)
        self._trials: list[int] = []
        self.add(memory)
        self._backend.sync()
        new.replace(path)  # the open file goes with its name

    def add(self, entries: Sequence[Entry]) -> None:
        """New numbers, in any state."""
        for entry in entries:
            state, values = self._end(entry)
            trial = create_trial(
                state=state,
                values=values,
                params={name: _plain(value) for name, value in entry.params.items()},
                distributions=self._ranges,
                user_attrs=self._attributes(entry),
                intermediate_values=dict(entry.scores) if self._single else {},
            )
            self._trials.append(self._storage.create_new_trial(self._study, trial))
        self._backend.write()

    def tell(self, entry: Entry) -> None:
        """A number is decided."""
        trial, (state, values) = self._trials[entry.number], self._end(entry)
        for step, score in entry.scores.items() if self._single else ():
            self._storage.set_trial_intermediate_value(trial, step, score)
        for name, value in self._attributes(entry).items():
            if name != "number":
                self._storage.set_trial_user_attr(trial, name, value)
        self._storage.set_trial_state_values(trial, state, values)
        self._backend.write()

    def _attributes(self, entry: Entry) -> dict[str, Any]:
        out: dict[str, Any] = {"number": entry.number}
        if entry.state in ("refused", "repeated"):
            out["refused"] = "cannot run" if entry.state == "refused" else "was proposed before"
        if entry.broken:
            out["told"] = [str(value) for value in entry.values]
        return out

    def _end(self, entry: Entry) -> tuple[TrialState, list[float] | None]:
        match entry.state:
            case "running":
                return TrialState.RUNNING, None
            case "finished" if entry.broken:
                up = StudyDirection.MAXIMIZE
                return TrialState.COMPLETE, [-math.inf if d == up else math.inf for d in self._directions]
            case "finished":
                return TrialState.COMPLETE, list(entry.values)
            case "pruned":
                # As Optuna does: the last validation is its value, where that is a number.
                last = entry.last if self._single else None
                return TrialState.PRUNED, [last[1]] if last and not math.isnan(last[1]) else None
        return TrialState.FAIL, None


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else text(value)


def _shown(axis: Axis) -> BaseDistribution:
    """The range with the values as the user knows them."""
    if axis.choices is None:
        return models.distribution(axis)
    return CategoricalDistribution([_plain(value) for value in axis.choices])
