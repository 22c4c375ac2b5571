"""The metrics of a run, step by step, and the first place where two runs part.

Guarantees: values are compared bit for bit, NaN equal to NaN; what measures the machine (time, memory) is told by the
engine and left out; a run of several attempts is one curve, a step that was trained twice counting with its latest
values. Nothing is imported beyond the standard library.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.engines.base import Engine
from sweeper.trial.records import Tail

if TYPE_CHECKING:
    from sweeper.lineage.find import Found

Curves = Mapping[int, Mapping[str, float]]
"""Step -> name of the metric -> value."""


@dataclass(frozen=True, slots=True)
class Parting:
    """One value that two runs do not share."""

    step: int
    metric: str
    a: float | None
    """None: the run has no such metric at that step."""
    b: float | None

    def __str__(self) -> str:
        return f"step {self.step}, {self.metric}: {shown(self.a)} and {shown(self.b)}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Compared:
    """Two curves side by side."""

    steps: int
    """Steps that both have."""
    values: int
    """Values that were compared."""
    partings: tuple[Parting, ...]
    """Every difference within the steps that were compared, by step and name."""
    only_a: tuple[int, ...] = ()
    """Steps that only the first run has."""
    only_b: tuple[int, ...] = ()

    @property
    def first(self) -> Parting | None:
        """The first difference; None where the curves are the same."""
        return self.partings[0] if self.partings else None


def read(
    files: Iterable[Path], engine: Engine, config: Mapping[str, Any], earlier: Curves | None = None
) -> dict[int, dict[str, float]]:
    """The metrics files of one run's attempts, oldest first, as one curve; a file that is not there has no steps.

    Args:
        earlier: what is known from elsewhere of the attempts before those of the files.

    Raises:
        RecordsError: a file is there and cannot be read.
    """
    found = {step: dict(values) for step, values in (earlier or {}).items()}
    for file in files:
        this: dict[int, dict[str, float]] = {}
        for line in Tail(file).read():
            if (progress := engine.progress(line, dict(config))) is not None:
                this.setdefault(progress.step, {}).update(progress.metrics)
        if this:
            # What an attempt repeats it repeats to the end: nothing later comes from the attempt before it. Its first
            # line may be only a validation of the checkpoint it went on from, which adds to that step.
            start = min(this)
            found = {step: values for step, values in found.items() if step <= start}
            found[start] = {**found.get(start, {}), **this.pop(start)}
            found.update(this)
    return found


def of(run: Found, engine: Engine) -> dict[int, dict[str, float]]:
    """The curve of a run, of all its attempts.

    Raises:
        RecordsError: a metrics file is there and cannot be read.
    """
    return read(run.metrics, engine, run.document["config"], run.earlier)


def scores(
    files: Iterable[Path], engine: Engine, config: Mapping[str, Any], earlier: Mapping[int, float] | None = None
) -> dict[int, float]:
    """The validation scores of one run, by step; `earlier` as `read` has it."""
    found = dict(earlier or {})
    for file in files:
        for line in Tail(file).read():
            progress = engine.progress(line, dict(config))
            if progress is not None and progress.score is not None:
                found[progress.step] = progress.score
    return found


def compare(a: Curves, b: Curves, ignored: Callable[[str], bool], unsigned: Collection[int] = ()) -> Compared:
    """Every value of the steps that both curves have, but for the metrics that are `ignored`.

    A metric that one run has at a step and the other has not is a difference. Steps that only one of them has are
    listed, not judged here. `unsigned`: steps at which a zero's sign is not known of one of them.
    """
    partings: list[Parting] = []
    values = 0
    both = sorted(a.keys() & b.keys())
    for step in both:
        one, other = a[step], b[step]
        for metric in sorted(one.keys() | other.keys()):
            if ignored(metric):
                continue
            values += 1
            x, y = one.get(metric), other.get(metric)
            if not same(x, y) and not (x == y == 0 and step in unsigned):
                partings.append(Parting(step, metric, x, y))
    return Compared(
        len(both), values, tuple(partings), tuple(sorted(a.keys() - b.keys())), tuple(sorted(b.keys() - a.keys()))
    )


def same(a: float | None, b: float | None) -> bool:
    """Whether two values are the same to the last bit; any NaN is any other."""
    if a is None or b is None:
        return a is b
    if a != a or b != b:  # noqa: PLR0124 - NaN
        return a != a and b != b  # noqa: PLR0124
    return struct.pack("<d", a) == struct.pack("<d", b)


def shown(value: float | None) -> str:
    """A value with all its digits."""
    return "nothing" if value is None else repr(value)


def until(curves: Curves, step: int) -> dict[int, Mapping[str, float]]:
    """The curve up to that step."""
    return {s: values for s, values in curves.items() if s <= step}


def span(steps: Sequence[int]) -> str:
    """Steps as people say them: `3 to 8`, `4`."""
    return "none" if not steps else str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
