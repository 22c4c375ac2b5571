"""What a tracker is: it shows a sweep's trials to people, while they train and after.

Guarantees of every tracker: no method but `close` blocks, raises or waits for a store; calls of one trial take effect
in the order they were made; what a store does not take is not lost, for the records have it (`sweeper sync`).
All methods are called from one thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sweeper.engines.base import Progress


def measured(progress: Progress) -> dict[str, float]:
    """What is told of a step: the trainer's metrics, and what every engine has as `score` and `reward`."""
    plain = {"score": progress.score, "reward": progress.reward}
    return {**progress.metrics, **{k: v for k, v in plain.items() if v is not None}}


class Tracker(Protocol):
    """One sweep's line to a store."""

    def sweep_started(self, name: str, project: str, tags: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        """The first call. The tag `sweeper.folder` says where the sweep's records are."""
        ...

    def trial_started(
        self,
        trial_id: str,
        label: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        artifacts: Sequence[Path],
    ) -> None:
        """An attempt of a trial has started; later attempts of the same trial call it again.

        `params` holds what varies under the names that were typed, and the whole config under `config`.
        """
        ...

    def metrics(self, trial_id: str, step: int, values: Mapping[str, float], time_s: float) -> None:
        """What one step measured; `time_s` is Unix time. NaN and the infinities are values like others."""
        ...

    def tagged(self, trial_id: str, tags: Mapping[str, str]) -> None:
        """Something to be known of a trial that has been started; it stays with it over later attempts."""
        ...

    def trial_ended(self, trial_id: str, state: str, summary: Mapping[str, float], artifacts: Sequence[Path]) -> None:
        """The attempt has ended: `finished`, `failed` or `stopped`. Its files are complete and stay where they are."""
        ...

    def best(self, trial_id: str, step: int, score: float, mode: str, record: Path) -> None:
        """That checkpoint of that finished trial is the best of the sweep; said after the trial's end, may be repeated.

        `mode` is `max` or `min`; `record` the `lineage.json` of the attempt that left the checkpoint.
        """
        ...

    def sweep_ended(self, state: str) -> None:
        """No more trials: `finished`, `failed` or `stopped`."""
        ...

    def close(self, timeout_s: float) -> bool:
        """Wait until everything is in the store, at most so long; whether all of it is. The last call."""
        ...

    def run_ids(self) -> dict[str, str]:
        """Trial id -> the store's own id, of the trials that the store knows by now."""
        ...

    def open_command(self) -> str:
        """What to type, or the address to open, to see the comparison; empty when there is nothing to see."""
        ...

    def page(self) -> str:
        """The address of the comparison once what `open_command` says runs; empty when that is an address itself."""
        ...


class NoTracker:
    """`tracking=none`: the records are all there is."""

    def sweep_started(self, name: str, project: str, tags: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def trial_started(
        self,
        trial_id: str,
        label: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        artifacts: Sequence[Path],
    ) -> None:
        """Nothing to do."""

    def metrics(self, trial_id: str, step: int, values: Mapping[str, float], time_s: float) -> None:
        """Nothing to do."""

    def tagged(self, trial_id: str, tags: Mapping[str, str]) -> None:
        """Nothing to do."""

    def trial_ended(self, trial_id: str, state: str, summary: Mapping[str, float], artifacts: Sequence[Path]) -> None:
        """Nothing to do."""

    def best(self, trial_id: str, step: int, score: float, mode: str, record: Path) -> None:
        """Nothing to do."""

    def sweep_ended(self, state: str) -> None:
        """Nothing to do."""

    def close(self, timeout_s: float) -> bool:  # noqa: ARG002
        """There is nothing to wait for."""
        return True

    def run_ids(self) -> dict[str, str]:
        """No store, no ids."""
        return {}

    def open_command(self) -> str:
        """Nothing to see."""
        return ""

    def page(self) -> str:
        """Nothing to see."""
        return ""
