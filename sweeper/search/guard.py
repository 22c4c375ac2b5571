"""The numerics guard: which trials' rollouts do not draw from the distribution that their trainers compute, and under
which placement.

Guarantees: a trial is flagged once, also over resumes, for what was flagged is told to the guard again; a flag is plain
data that any record can hold and be read back from; nothing heavy is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sweeper.engines.base import Progress

_SHORT = {"tensor_model_parallel_size": "tp"}


def placed(keys: Mapping[str, Any]) -> str:
    """A placement as people read it: the last part of each key, `tensor_model_parallel_size` as `tp`.

    Keys of the same name and value are said once; of the same name and other values with the part before it.
    """
    parts: dict[str, Any] = {}
    for key, value in keys.items():
        *_, section, last = ("", *key.split("."))
        said = _SHORT.get(last, last.removesuffix("_per_gpu"))
        if said in parts and parts[said] != value:
            said = f"{section}.{said}"
        parts[said] = value
    return " ".join(f"{said}={value}" for said, value in parts.items()) or "as composed"


@dataclass(frozen=True, slots=True)
class Flag:
    """That a placement changed the numbers of a trial."""

    step: int
    mismatch: float
    """Mean absolute difference of the probabilities by rollout and trainer; NaN where there was none to compute."""
    above: float
    """`placement.mismatch_above` then."""
    attempt: int = 0
    placement: Mapping[str, Any] = field(default_factory=dict)
    """Of that attempt: engine key -> value, of the knobs that a probe may turn."""

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> Flag | None:
        """Read back from a record; None where there is none, or it is no flag."""
        if not record:
            return None
        try:
            # What is no number is a string in JSON (trial/records.py, to_json); float() reads both.
            return cls(
                int(record["step"]),
                float(record["mismatch"]),
                float(record["above"]),
                int(record.get("attempt") or 0),
                dict(record.get("placement") or {}),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def as_dict(self) -> dict[str, Any]:
        """For a record."""
        return asdict(self)

    @property
    def text(self) -> str:
        """What was seen, in one line, without the trial."""
        return (
            f"step {self.step} with {placed(self.placement)}: the rollout's probabilities differ from the trainer's by "
            f"{self.mismatch:.3g} on average, more than placement.mismatch_above={self.above:g}; "
            "this placement changes the results"
        )


class Guard:
    """Tells, once a trial, that its rollout does not draw from the distribution that its trainer computes."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings` is the config's `placement`; a null `mismatch_above` switches the guard off."""
        above = settings.get("mismatch_above")
        self._above = math.inf if above is None else float(above)
        self._off = above is None
        self._told: set[str] = set()

    def see(self, trial: str, progress: Progress) -> Flag | None:
        """What is wrong; None where nothing is, or it was told before."""
        value = progress.signals.get("mismatch")
        if value is None or self._off or trial in self._told or value <= self._above:
            return None  # NaN is not at most anything: it is told
        self._told.add(trial)
        return Flag(progress.step, value, self._above)

    def told(self, trial: str) -> None:
        """That trial was flagged before."""
        self._told.add(trial)
