"""What a search is made of: dims, what a sampler proposes and is told, what a scheduler decides.

Guarantees: plain immutable data and two small protocols; nothing but the standard library is imported. A *candidate* is
a point of an arm under all its seeds: what a sampler proposes, a scheduler judges and a ranking ranks. A *trial* is a
candidate under one seed: what runs. With one seed they have the same id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Dim:
    """One thing that is searched: a config key and the values it may take."""

    key: str
    """As typed, with Hydra's prefix where it had one: `lr`, `+actor_rollout_ref.rollout.x`."""
    values: tuple[Any, ...] | None = None
    """A finite set, in order; None for an interval."""
    low: float = 0.0
    high: float = 0.0
    """Bounds of an interval, both included."""
    log: bool = False
    """Whether the interval is searched on a logarithmic scale."""
    integer: bool = False
    """Whether only whole numbers of the interval are meant."""
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """The arms it belongs to: key of the arm's config -> the values that it must have; empty: every arm."""

    @property
    def name(self) -> str:
        """The key without its prefix: what parameters are called."""
        return self.key.lstrip("+~")


@dataclass(frozen=True, slots=True)
class Ask:
    """What a sampler proposes."""

    number: int
    """Its place in the arm's study, from 0, refused points counted too."""
    params: Mapping[str, Any]
    """Name of each dim -> value."""
    refused: tuple[Mapping[str, Any], ...] = ()
    """The points that were proposed before it and refused, in order."""


@dataclass(frozen=True, slots=True)
class Told:
    """How a candidate ended, for the sampler."""

    state: str
    """`finished`; `pruned` (ended early: worse than its peers, or a health rule); `failed` (it says nothing)."""
    values: tuple[float, ...] = ()
    """One an objective, in their order; empty where there is none. May hold NaN."""
    scores: Mapping[int, float] = field(default_factory=dict)
    """Step -> score."""


@dataclass(frozen=True, slots=True)
class Past:
    """A candidate of the ledger, to give a sampler its memory back."""

    ask: Ask
    told: Told | None
    """None while it is not decided."""


Refuse = Callable[[Mapping[str, Any]], str]
"""Why a point cannot run; empty when it can."""


class Sampler(Protocol):
    """Proposes the points of one arm.

    What it proposes is a function of its seed, of how often it was asked and of what it was told until then, so that
    a search that was killed goes on with the very proposals of an uninterrupted one.
    """

    def ask(self, refuse: Refuse) -> Ask | None:
        """The next point: one that can run and was not proposed before. None: there is no such point left."""
        ...

    def tell(self, number: int, told: Told) -> None:
        """How that candidate ended. NaN is a result like others (the worst), never an error and never forgotten."""
        ...

    def replay(self, past: Iterable[Past]) -> None:
        """Give it the memory of an earlier process, in the order of the asks. Only before the first `ask`."""
        ...


@dataclass(frozen=True, slots=True)
class Fork:
    """PBT's exploit: go on from another candidate's checkpoint with other values."""

    donor: str
    params: Mapping[str, Any]
    """Every dim's value from now on."""
    step: int | None = None
    """The donor's step that was judged: the checkpoint to go on from; None: its latest."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a scheduler decides about a candidate that runs (or is paused)."""

    action: str
    """`go`, `stop`, `pause` (end its attempts; it may go on later from its checkpoints), or `fork`."""
    why: str = ""
    """In one line, with the figures: `asha: 0.31 at step 10; the best third of 9 has 0.42 and more`."""
    evidence: Mapping[str, float] = field(default_factory=dict)
    fork: Fork | None = None


class Scheduler(Protocol):
    """Compares the candidates of one arm while they train; each method returns what it decides, by candidate.

    A candidate that is not in an answer goes on as it is.
    """

    def added(self, candidate: str, params: Mapping[str, Any]) -> None:
        """A candidate will run."""
        ...

    def result(self, candidate: str, step: int, score: float) -> dict[str, Verdict]:
        """A validated score (the mean over its seeds). Steps of a candidate rise."""
        ...

    def ended(self, candidate: str) -> dict[str, Verdict]:
        """It will not run any more: finished, failed, or ended by another rule."""
        ...

    def closed(self) -> dict[str, Verdict]:
        """There will be no other candidate, though the plan had more (the sampler has no point left)."""
        ...

    def resumable(self, paused: Iterable[str]) -> list[str]:
        """Which of the paused candidates may go on now, the first one first. Only a question: it changes nothing.

        A new candidate, where there is one to come, goes before them.
        """
        ...


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a candidate was ended early: typed, with the evidence."""

    reason: str
    """`worse` (the scheduler), `nan`, `entropy-collapse`, `entropy-blow-up`, `kl-blow-up`, `no-reward-variance`,
    `length-saturation`."""
    detail: str
    """One line for people."""
    evidence: Mapping[str, float] = field(default_factory=dict)
    """Metric or bound -> value."""
    step: int | None = None
