"""The schedulers of a search: Ray Tune's, asked one candidate at a time by a controller of ours.

Guarantees: `check` finds at plan time every setting that cannot work, without Ray; what a scheduler of `make` decides
follows from its seed and the calls until then alone: the same calls to a new one give the same decisions, which is how
a killed search gets it back; no Ray process is started; Python's and NumPy's random numbers are left as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sweeper.search.base import Dim, Refuse, Scheduler, Verdict
from sweeper.search.schedulers.rules import Steps, check

__all__ = ["check", "make"]


class Unjudged:
    """scheduler=none: every candidate runs to its last step."""

    def added(self, candidate: str, params: Mapping[str, Any]) -> None:
        """Nothing to remember."""

    def result(self, candidate: str, step: int, score: float) -> dict[str, Verdict]:  # noqa: ARG002
        """Goes on."""
        return {}

    def ended(self, candidate: str) -> dict[str, Verdict]:  # noqa: ARG002
        """Nobody waited for it."""
        return {}

    def closed(self) -> dict[str, Verdict]:
        """Nobody waited for more."""
        return {}

    def resumable(self, paused: Iterable[str]) -> list[str]:
        """It pauses none itself."""
        return list(paused)


def make(
    settings: Mapping[str, Any],
    dims: Sequence[Dim],
    *,
    mode: str,
    validations: Sequence[int],
    total_steps: int,
    seed: int,
    candidates: int | None = None,
    refuse: Refuse | None = None,
) -> Scheduler:
    """The scheduler of one arm.

    Args:
        settings: The composed option of conf/scheduler, one that `check` has no problem with.
        dims: Those of the arm; pbt and pb2 change their values.
        mode: Whether the best score is the `max` or the `min`.
        validations: Steps at which a score is known, rising.
        total_steps: Of a candidate that is left alone.
        seed: Of asha's choice of a bracket and of pbt's and pb2's new values.
        candidates: How many the arm will have. asha ends its first ones (`bootstrap`), hyperband
            waits at a rung for a bracket's last one, and pbt and pb2 give all the same share of the time, only where
            they know that there are more to come; None: they do not know.
        refuse: Why a point cannot run; pbt and pb2 go to no such point.

    Loads Ray Tune (one to four seconds), except for `none`.
    """
    name = settings["name"]
    if name == "none":
        return Unjudged()
    steps = Steps.of(validations, total_steps)
    if name == "asha":
        from sweeper.search.schedulers.asha import Asha

        return Asha(settings, steps, mode, seed, candidates)
    if name == "median":
        from sweeper.search.schedulers.median import Median

        return Median(settings, steps, mode, seed)
    if name == "hyperband":
        from sweeper.search.schedulers.hyperband import HyperBand

        return HyperBand(settings, steps, mode, seed, candidates)
    if name == "pbt":
        from sweeper.search.schedulers.population import Pbt

        return Pbt(settings, steps, mode, seed, candidates, dims, refuse)
    if name == "pb2":
        from sweeper.search.schedulers.population import Pb2

        return Pb2(settings, steps, mode, seed, candidates, dims, refuse)
    raise ValueError(f"no scheduler is called {name}")
