"""What Tune's schedulers ask of Tune, without Tune: stand-ins for its trials and its controller, and what all share.

Guarantees: a scheduler of Tune meets only the attributes here (ray 2.60; an upgrade that wants others fails in the
contract tests, with an AttributeError); it is never told a score that is no number; its random numbers come from the
seed and the number of calls, and the process's own generators are left as they were.
"""

from __future__ import annotations

import logging
import math
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import TrialScheduler

from sweeper.search.base import Verdict
from sweeper.search.schedulers.rules import Steps

# Tune tells every exploit in four lines; ours are in the ledger and in the display.
logging.getLogger("ray.tune.schedulers").setLevel(logging.WARNING)

STEP, SCORE = "step", "score"
WORST = 1e300
"""In place of a score that is no number: worse than any, and Tune's percentiles can still compute with it."""

PENDING, RUNNING, PAUSED, TERMINATED = "PENDING", "RUNNING", "PAUSED", "TERMINATED"


class Stand:
    """A candidate as Tune's schedulers see it: in place of `ray.tune.experiment.Trial`."""

    def __init__(self, candidate: str, params: Mapping[str, Any]) -> None:
        self.trial_id = candidate
        self.config = dict(params)
        self.evaluated_params: dict[str, Any] = {}
        self.experiment_tag = ""
        self.status = PENDING
        self.is_saving = False
        self.checkpoint = None
        self.temporary_state = SimpleNamespace(saving_to=None)
        self.run_metadata = SimpleNamespace(
            checkpoint_manager=SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        )
        self.donor: Stand | None = None
        """The candidate that Tune copied into this one last."""
        self.forks = 0

    def __str__(self) -> str:
        return self.trial_id

    def is_finished(self) -> bool:
        """Whether it will not run any more."""
        return self.status == TERMINATED

    def set_experiment_tag(self, tag: str) -> None:
        """Tune's label with the values; ours are in the ledger."""
        self.experiment_tag = tag

    def set_config(self, config: Mapping[str, Any]) -> None:
        """New values."""
        self.config = dict(config)


class Desk:
    """In place of Tune's controller: notes what a scheduler wants of candidates that it is not asked about."""

    search_alg = None

    def __init__(self) -> None:
        self.stands: dict[str, Stand] = {}
        self.stopped: list[Stand] = []
        self.visible: list[Stand] = []
        """What `get_trials` gives: see each scheduler."""
        self.tune: Any = None

    def get_trials(self) -> list[Stand]:
        """Of Tune's controller."""
        return self.visible

    def get_live_trials(self) -> list[Stand]:
        """Likewise."""
        return [s for s in self.visible if not s.is_finished()]

    def stop_trial(self, stand: Stand) -> None:
        """As Tune's controller: it tells the scheduler that a trial which does not run is gone."""
        stand.status = TERMINATED
        self.stopped.append(stand)
        self.tune.on_trial_remove(self, stand)

    def pause_trial(self, stand: Stand, should_checkpoint: bool = True) -> None:  # noqa: ARG002
        """Only before an exploit: a pause of its own is what a scheduler returns."""
        stand.status = PAUSED

    def _schedule_trial_save(self, stand: Stand, result: Mapping[str, Any] | None = None) -> str:  # noqa: ARG002
        """Validated steps at which these schedulers decide are saved; that there is a checkpoint is all they ask."""
        return stand.trial_id


class TuneScheduler:
    """A scheduler of Tune behind our protocol; each subclass says which, and puts its decisions into words."""

    name: str

    def __init__(self, tune: Any, steps: Steps, mode: str, seed: int, candidates: int | None = None) -> None:
        self.tune, self.steps, self.mode, self.seed = tune, steps, mode, seed
        self.desk = Desk()
        self.desk.tune = tune
        self._calls = 0
        self._expected = candidates
        self._last: dict[str, tuple[int, float]] = {}

    # What the protocol asks.

    def added(self, candidate: str, params: Mapping[str, Any]) -> None:
        """A candidate will run."""
        stand = Stand(candidate, self.encode(params))
        self.desk.stands[candidate] = stand
        with self._seeded():
            self.tune.on_trial_add(self.desk, stand)

    def result(self, candidate: str, step: int, score: float) -> dict[str, Verdict]:
        """A validated score; one of a candidate that is over is ignored."""
        stand = self.desk.stands[candidate]
        if stand.is_finished():
            return {}
        stand.status = RUNNING
        self._last[candidate] = step, score
        # At its last step the trainer ends by itself: Tune's stop at max_t would look like "worse than its peers".
        if step >= (self.steps.validated or (self.steps.total,))[-1]:
            self.last(stand, step, score)
            return {}
        with self._seeded():
            action, verdict = self.judge(stand, step, score)
        found = self._others()
        if action == TrialScheduler.STOP:
            stand.status = TERMINATED
            found[candidate] = verdict
        elif action == TrialScheduler.PAUSE:
            stand.status = PAUSED
            found[candidate] = verdict
        elif verdict.action == "fork":
            stand.status = RUNNING
            found[candidate] = verdict
        return found

    def ended(self, candidate: str) -> dict[str, Verdict]:
        """It is over; told twice, or of one that was stopped here, it is nothing."""
        stand = self.desk.stands[candidate]
        if stand.is_finished():
            return {}
        stand.status = TERMINATED
        with self._seeded():
            self.removed(stand)
        return self._others()

    def closed(self) -> dict[str, Verdict]:
        """There will be no more candidates than there are."""
        self._expected = len(self.desk.stands)
        with self._seeded():
            self.full()
        return self._others()

    def resumable(self, paused: Iterable[str]) -> list[str]:
        """Those that were paused by someone else may go on, in the order given; none that is over."""
        return [c for c in paused if not self.desk.stands[c].is_finished()]

    # What a subclass says.

    def encode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The values as Tune's scheduler is to see them."""
        return dict(params)

    def judge(self, stand: Stand, step: int, score: float) -> tuple[str, Verdict]:
        """Ask Tune: its action, and the verdict if it is not to go on."""
        raise NotImplementedError

    def last(self, stand: Stand, step: int, score: float) -> None:
        """The score of a last step, which decides nothing for its candidate."""

    def removed(self, stand: Stand) -> None:
        """A candidate ended by itself or by another rule."""
        self.tune.on_trial_remove(self.desk, stand)

    def full(self) -> None:
        """No candidate will come any more."""

    def why_stopped(self, stand: Stand) -> Verdict:
        """The verdict of a paused candidate that Tune stopped on another one's occasion."""
        raise NotImplementedError

    # Shared.

    @property
    def more(self) -> bool:
        """Whether candidates are known to come."""
        return self._expected is not None and len(self.desk.stands) < self._expected

    def number(self, score: float) -> float:
        """A score that Tune can compute with."""
        return score if math.isfinite(score) else (-WORST if self.mode == "max" else WORST)

    def ask(self, stand: Stand, time: int, score: float) -> str:
        """Tune's decision."""
        return str(self.tune.on_trial_result(self.desk, stand, {STEP: time, SCORE: score}))

    def stop(self, text: str, evidence: Mapping[str, float]) -> Verdict:
        """A verdict in one line."""
        return Verdict("stop", f"{self.name}: {text}", evidence)

    def _others(self) -> dict[str, Verdict]:
        found = {stand.trial_id: self.why_stopped(stand) for stand in self.desk.stopped}
        self.desk.stopped.clear()
        return found

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Tune draws from the process's generators: seeded by the call's number, then put back."""
        python, numpy = random.getstate(), np.random.get_state()
        mixed = int(np.random.SeedSequence([abs(self.seed), self._calls]).generate_state(1)[0])
        self._calls += 1
        random.seed(mixed)
        np.random.seed(mixed)
        try:
            with warnings.catch_warnings():  # PB2's fits of few points end at their bounds, and scikit-learn says so
                warnings.simplefilter("ignore")
                yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def share(factor: float) -> str:
    """One in `factor`, in words."""
    return {2.0: "half", 3.0: "third", 4.0: "quarter"}.get(factor, f"1/{factor:g}")


def shown(value: float) -> str:
    """A score in a line for people."""
    return f"{value:.4g}" if abs(value) < WORST else "no number"
