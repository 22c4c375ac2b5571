"""What a sampler remembers, and how a proposal becomes a point that may run.

Guarantees: `ask` ends, and returns only points that can run and were not returned before; the memory is a list with one
entry a number, and all that a model knows is made from it, so that `replay` gives back the very same sampler. Models
are asked for a proposal and told what became of each entry; no random state outlives an ask.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sweeper.search.base import Ask, Past, Refuse, Told
from sweeper.search.samplers.space import Codes, Space, text

if TYPE_CHECKING:
    from sweeper.search.samplers.journal import Journal

ENUMERABLE = 100_000
"""A space of so many points is gone through to its end before a sampler gives up."""
TRIES = 1_000
"""So many random points of a larger space are tried before it does."""
DRAWS = 10
"""So many values of the dims that a model does not see are tried with a proposal."""


@dataclass(slots=True)
class Entry:
    """One number of an arm's study."""

    number: int
    params: Mapping[str, Any]
    codes: Codes
    state: str
    """`running`, then `finished`, `pruned` or `failed`; or from the start `refused` (it cannot run) or `repeated`."""
    values: tuple[float, ...] = ()
    scores: Mapping[int, float] = field(default_factory=dict)

    @property
    def broken(self) -> bool:
        """Finished, but not with numbers. An infinite value is as little a result as NaN."""
        return self.state == "finished" and not all(map(math.isfinite, self.values))

    @property
    def last(self) -> tuple[int, float] | None:
        """Step and score of the last validation."""
        return max(self.scores.items()) if self.scores else None


Memory = Sequence[Entry]
"""By number."""


class Model(Protocol):
    """Proposes, of all dims or of those that it sees; a function of its seed and of the memory."""

    patience: int | None
    """After so many of its proposals on end that were refused another way is taken; None: there is no other way."""

    def propose(self, memory: Memory) -> Codes | None:
        """The proposal with the number `len(memory)`. None: it has no more."""
        ...

    def added(self, entry: Entry) -> None:
        """The memory has a new entry, in any state."""
        ...

    def decided(self, entry: Entry) -> None:
        """An entry of the memory is not running any more."""
        ...

    def reset(self) -> None:
        """The memory is empty; entries will be added again."""
        ...


def derived(seed: int, *what: object) -> int:
    """A seed below 2^32 for one purpose, independent of those for others."""
    digest = hashlib.blake2b(text([seed, *what]).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


class Study:
    """A `Sampler`: the memory, the known points, the refusals, around a model."""

    def __init__(
        self,
        space: Space,
        model: Model,
        *,
        seed: int,
        modes: Sequence[str],
        points: Sequence[Mapping[str, Any]],
        journal: Path | None,
    ) -> None:
        self._space, self._model, self._seed, self._modes = space, model, seed, tuple(modes)
        self._points = [space.known(point) for point in points]
        self._path = journal
        self._journal: Journal | None = None
        self._memory: list[Entry] = []
        self._returned: set[str] = set()
        self._opened = False

    def ask(self, refuse: Refuse) -> Ask | None:
        """The next point that can run and is new. None: a finite space is exhausted (up to 100,000 points are gone
        through), a grid is at its end, or none of 1,000 random points of a larger space could run."""
        self._open()
        start, streak = len(self._memory), 0
        while True:
            number = len(self._memory)
            if number < len(self._points):
                params = self._filled(number)
            elif self._space.size is not None and len(self._returned) >= self._space.size:
                params = None
            elif self._model.patience is not None and streak >= self._model.patience:
                params = self._leftover(number, refuse)
            else:
                codes = self._model.propose(self._memory)
                params = None if codes is None else self._completed(codes, number, refuse)
                streak += 1
            if params is None:
                # What was refused on the way is in no Ask, so a later process could not know it.
                self._restore(self._memory[:start])
                return None
            key = text(params)
            state = "repeated" if key in self._returned else "refused" if refuse(params) else "running"
            self._append(Entry(number, params, self._space.encode(params), state))
            if state == "running":
                if self._journal is not None:
                    self._journal.add(self._memory[start:])
                return Ask(number, params, tuple(entry.params for entry in self._memory[start:number]))

    def tell(self, number: int, told: Told) -> None:
        """How that candidate ended. Raises ValueError for a number that is not out, and for values of a wrong count."""
        if not 0 <= number < len(self._memory) or self._memory[number].state != "running":
            raise ValueError(f"candidate {number} was not asked for, or was told before")
        self._decide(self._memory[number], told)
        self._model.decided(self._memory[number])
        if self._journal is not None:
            self._journal.tell(self._memory[number])

    def replay(self, past: Iterable[Past]) -> None:
        """Raises ValueError after the first ask, where numbers are missing, and for points of another space."""
        if self._opened:
            raise ValueError("a sampler that was asked has a memory already")
        entries: list[Entry] = []
        returned: set[str] = set()
        for one in past:
            if len(entries) + len(one.ask.refused) != one.ask.number:
                raise ValueError(f"candidate {one.ask.number} is not the next one: {len(entries)} points come before")
            for refused in one.ask.refused:
                state = "repeated" if self._text(refused) in returned else "refused"
                entries.append(self._entry(len(entries), refused, state))
            entry = self._entry(one.ask.number, one.ask.params, "running")
            if one.told is not None:
                self._decide(entry, one.told)
            entries.append(entry)
            returned.add(text(entry.params))
        self._restore(entries)
        self._open()

    def _text(self, params: Mapping[str, Any]) -> str:
        return text(self._space.decode(self._space.encode(params)))

    def _entry(self, number: int, params: Mapping[str, Any], state: str) -> Entry:
        codes = self._space.encode(params)
        return Entry(number, self._space.decode(codes), codes, state)

    def _decide(self, entry: Entry, told: Told) -> None:
        if told.state not in ("finished", "pruned", "failed"):
            raise ValueError(f"a candidate ends finished, pruned or failed, not {told.state!r}")
        values = tuple(float(value) for value in told.values)
        if len(values) != len(self._modes) and (values or told.state == "finished"):
            raise ValueError(f"{len(values)} values for {len(self._modes)} objectives")
        entry.state, entry.values, entry.scores = told.state, values, dict(told.scores)

    def _append(self, entry: Entry) -> None:
        self._memory.append(entry)
        if entry.state not in ("refused", "repeated"):
            self._returned.add(text(entry.params))
        self._model.added(entry)

    def _restore(self, entries: Sequence[Entry]) -> None:
        if len(entries) == len(self._memory):
            return
        self._memory, self._returned = [], set()
        self._model.reset()
        for entry in entries:
            self._append(entry)

    def _open(self) -> None:
        """The study's file is begun when its past is known, never at an earlier moment."""
        if self._opened:
            return
        self._opened = True
        if self._path is not None:
            from sweeper.search.samplers.journal import Journal

            self._journal = Journal(self._path, self._space, self._modes, self._memory)

    def _drawn(self, *what: object) -> dict[str, Any]:
        """A random point, each dim on its scale."""
        rng = random.Random(derived(self._seed, *what))
        out = {}
        for name, axis in self._space.axes.items():
            dim, size = axis.dim, axis.size
            if size is not None and not (dim.log and dim.values is None):
                out[name] = axis.at(rng.randrange(size))
            elif dim.log:
                drawn = math.exp(rng.uniform(math.log(dim.low), math.log(dim.high)))
                drawn = min(max(drawn, dim.low), dim.high)
                out[name] = axis.decode(round(drawn) if dim.integer else drawn)
            else:
                out[name] = rng.uniform(dim.low, dim.high)
        return out

    def _completed(self, codes: Codes, number: int, refuse: Refuse) -> dict[str, Any]:
        """The point of a proposal, the dims that its model does not see drawn, and drawn anew while it cannot run: the
        model would take that for the fault of its own."""
        if codes.keys() == self._space.axes.keys():
            return self._space.decode(codes)
        point: dict[str, Any] = {}
        for attempt in range(DRAWS):
            drawn = self._drawn("apart", number, attempt)
            axes = self._space.axes.items()
            point = {name: axis.decode(codes[name]) if name in codes else drawn[name] for name, axis in axes}
            if not refuse(point):
                break
        return point

    def _filled(self, number: int) -> dict[str, Any]:
        point = self._points[number]
        drawn = self._drawn("known", number) if len(point) < len(self._space.axes) else {}
        return {name: point[name] if name in point else drawn[name] for name in self._space.axes}

    def _leftover(self, number: int, refuse: Refuse) -> dict[str, Any] | None:
        """A point that can run and is new, without the model; None where there is none (left)."""
        size = self._space.size
        if size is not None and size <= ENUMERABLE:
            order = random.Random(derived(self._seed, "leftover", number)).sample(range(size), size)
            points: Iterable[dict[str, Any]] = map(self._space.at, order)
        else:
            points = (self._drawn("leftover", number, attempt) for attempt in range(TRIES))
        return next((p for p in points if text(p) not in self._returned and not refuse(p)), None)
