"""Population based training and bandits: Tune's PopulationBasedTraining and PB2.

Guarantees: a candidate of the worst share takes over one of the best share, at a step that is saved, with values that
are within the dims and not refused; a score that is no number is the worst; nobody changes at its last step; where more
candidates are known than run at once, those ahead are paused until the others have come as far.

PBT sees the values as they are: choices go to a neighbour or anywhere, intervals are multiplied by 0.8 or 1.2 or drawn
again, evenly on the dim's own scale (Jaderberg et al., 2017, as Tune does it). PB2 sees each dim as a place between 0
and 1, on the dim's own scale: Tune's model has one length for all dims, and a learning rate of 1e-6 and one of 1e-5
would be the same point to it. A choice of numbers is there by rank and goes to the nearest.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pb2 import PB2

from sweeper.search.base import Dim, Fork, Refuse, Verdict
from sweeper.search.schedulers import rules
from sweeper.search.schedulers.adaptor import PAUSED, SCORE, STEP, Stand, TuneScheduler, shown

TRIES = 100
"""New values that PBT draws before it keeps the donor's, when all are refused."""


class _Noted(PopulationBasedTraining):  # type: ignore[misc]
    """Remembers which candidate was taken over, which Tune only writes to a log, and refuses points that cannot run."""

    allowed: Callable[[Mapping[str, Any]], bool]
    """Whether a point, as this scheduler has it, can run."""

    def _checkpoint_or_exploit(
        self, trial: Stand, desk: Any, upper_quantile: list[Stand], lower_quantile: list[Stand]
    ) -> None:
        """Every step at which it decides is saved, not only those that were among the best when they came to it."""
        for donor in upper_quantile:
            self._trial_state[donor].last_checkpoint = donor.trial_id
        super()._checkpoint_or_exploit(trial, desk, upper_quantile, lower_quantile)

    def _exploit(self, desk: Any, trial: Stand, trial_to_clone: Stand) -> None:
        """Only from a better one: among equals (all at zero, none a number) a population would pass the checkpoints of
        those that are less far round and round, and never come to an end."""
        if self._trial_state[trial_to_clone].last_score <= self._trial_state[trial].last_score:
            return
        trial.donor, trial.forks = trial_to_clone, trial.forks + 1
        super()._exploit(desk, trial, trial_to_clone)


class TunePbt(_Noted):
    """Draws until the point can run."""

    def _get_new_config(self, trial: Stand, trial_to_clone: Stand) -> tuple[dict[str, Any], dict[str, Any]]:
        for _ in range(TRIES):
            config, operations = super()._get_new_config(trial, trial_to_clone)
            if self.allowed(config):
                return config, operations
        return dict(trial_to_clone.config), {}


class TunePb2(PB2, _Noted):  # type: ignore[misc]
    """Its model has one answer: refused, the donor's values are kept. Its memory has what really runs."""

    nearest: Callable[[Mapping[str, Any]], dict[str, Any]]
    """The place of the value that a place stands for: of a choice's, of a whole number."""

    def _get_new_config(self, trial: Stand, trial_to_clone: Stand) -> tuple[dict[str, Any], dict[str, Any]]:
        rows = len(self.data)
        config, operations = super()._get_new_config(trial, trial_to_clone)
        runs = self.nearest(config) if self.allowed(config) else dict(trial_to_clone.config)
        if len(self.data) > rows:
            self.data.loc[len(self.data) - 1, list(runs)] = list(runs.values())
        return runs, operations


class Population(TuneScheduler):
    """What PBT and PB2 share."""

    def __init__(
        self,
        tune: Any,
        settings: Mapping[str, Any],
        steps: rules.Steps,
        mode: str,
        seed: int,
        candidates: int | None,
        refuse: Refuse | None,
    ) -> None:
        super().__init__(tune, steps, mode, seed, candidates)
        self.quantile = float(settings["quantile"])
        tune.allowed = lambda config: refuse is None or not refuse(self.decode(config))
        self._to_come = Stand("", {})  # a pending trial, for Tune: reason enough to give way

    def decode(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A point as Tune has it, in the dims' values."""
        raise NotImplementedError

    def judge(self, stand: Stand, step: int, score: float) -> tuple[str, Verdict]:
        """Go on, give way to those behind, or take over another."""
        forks = stand.forks
        behind = [s for s in self.desk.stands.values() if self._behind(s, step)]
        self.desk.visible = [stand, *behind, *([self._to_come] if self.more else [])]
        population = len(self.desk.stands)
        action = self.ask(stand, step, self.number(score))
        if stand.forks == forks or stand.donor is None:
            waits = f"{self.name}: at step {step} it gives way to candidates that are not as far"
            return action, Verdict("pause", waits, {"score": score, "step": step, "behind": len(behind)})
        donor = stand.donor.trial_id
        state = self.tune._trial_state[stand.donor]
        theirs, at = self._score(state), int(state.last_train_time)
        params = self.decode(stand.config)
        given = {"score": score, "step": step, "donor_score": theirs, "donor_step": at, "candidates": population}
        words = ", ".join(f"{name}={_figure(value)}" for name, value in params.items())
        text = (
            f"{self.name}: {shown(score)} at step {step} is among the worst {self.quantile:.0%} of those that run; "
            f"goes on from step {at} of {donor}, which had {shown(theirs)}, with {words}"
        )
        return action, Verdict("fork", text, given, Fork(donor, params, at))

    def resumable(self, paused: Iterable[str]) -> list[str]:
        """In Tune's order, the one that is least far first; nobody while there are new ones to come."""
        stands = [self.desk.stands[c] for c in paused if not self.desk.stands[c].is_finished()]
        before = [s.status for s in stands]
        for stand in stands:
            stand.status = PAUSED
        self.desk.visible = [] if self.more else list(stands)
        order = []
        while (chosen := self.tune.choose_trial_to_run(self.desk)) is not None:
            order.append(chosen.trial_id)
            self.desk.visible.remove(chosen)
        for stand, status in zip(stands, before, strict=True):
            stand.status = status
        return order

    def removed(self, stand: Stand) -> None:
        """It is neither a donor nor one of the worst any more: Tune asks for its status."""

    def _behind(self, stand: Stand, step: int) -> bool:
        return stand.status == PAUSED and bool(self.tune._trial_state[stand].last_train_time < step)

    def _score(self, state: Any) -> float:
        return float(state.last_score) * (1.0 if self.mode == "max" else -1.0)


class Pbt(Population):
    """Jaderberg et al., 2017, by Ray Tune."""

    name = "pbt"

    def __init__(
        self,
        settings: Mapping[str, Any],
        steps: rules.Steps,
        mode: str,
        seed: int,
        candidates: int | None,
        dims: Sequence[Dim],
        refuse: Refuse | None,
    ) -> None:
        self.dims = {d.name: d for d in dims}
        tune = TunePbt(
            time_attr=STEP,
            metric=SCORE,
            mode=mode,
            perturbation_interval=rules.interval(settings, steps),
            quantile_fraction=float(settings["quantile"]),
            resample_probability=float(settings["resample"]),
            hyperparam_mutations={d.name: _draw(d) if d.values is None else list(d.values) for d in dims},
            custom_explore_fn=self._inside,
            log_config=False,
        )
        super().__init__(tune, settings, steps, mode, seed, candidates, refuse)

    def encode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """As they are; whole numbers as such, which Tune then keeps whole."""
        return {n: int(v) if n in self.dims and self.dims[n].integer else v for n, v in params.items()}

    def decode(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """As they are."""
        return dict(config)

    def _inside(self, config: dict[str, Any]) -> dict[str, Any]:
        """A factor may lead out of an interval."""
        for name, dim in self.dims.items():
            if dim.values is None:
                config[name] = _clamped(dim, config[name])
        return config


class Pb2(Population):
    """Parker-Holder et al., 2020, by Ray Tune."""

    name = "pb2"

    def __init__(
        self,
        settings: Mapping[str, Any],
        steps: rules.Steps,
        mode: str,
        seed: int,
        candidates: int | None,
        dims: Sequence[Dim],
        refuse: Refuse | None,
    ) -> None:
        self.dims = {d.name: d for d in dims}
        tune = TunePb2(
            time_attr=STEP,
            metric=SCORE,
            mode=mode,
            perturbation_interval=rules.interval(settings, steps),
            quantile_fraction=float(settings["quantile"]),
            hyperparam_bounds={name: [0.0, 1.0] for name in self.dims},
            log_config=False,
        )
        tune.nearest = lambda config: self.encode(self.decode(config))
        super().__init__(tune, settings, steps, mode, seed, candidates, refuse)

    def number(self, score: float) -> float:
        """Below the worst so far, by the spread so far: the model takes differences of scores."""
        if math.isfinite(score):
            return score
        known = [self._score(s) for s in self.tune._trial_state.values() if s.last_score is not None] or [0.0]
        gap = (max(known) - min(known)) or 1.0
        return min(known) - gap if self.mode == "max" else max(known) + gap

    def encode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Each dim's place between 0 and 1."""
        return {name: place(dim, params[name]) for name, dim in self.dims.items()}

    def decode(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The values at those places."""
        return {name: value_at(dim, float(config[name])) for name, dim in self.dims.items()}


def _draw(dim: Dim) -> Callable[[], Any]:
    """A value of the interval, evenly on its own scale."""
    return lambda: value_at(dim, random.random())


def _clamped(dim: Dim, value: Any) -> Any:
    inside = min(max(value, dim.low), dim.high)
    if not dim.integer:
        return float(inside)
    return min(max(round(inside), math.ceil(dim.low)), math.floor(dim.high))


def place(dim: Dim, value: Any) -> float:
    """Where a value is in its dim, 0 to 1, on the dim's own scale; of a choice, its rank."""
    if dim.values is not None:
        ranked = sorted(dim.values)
        return ranked.index(value) / max(1, len(ranked) - 1)
    low, high, at = (math.log(v) if dim.log else float(v) for v in (dim.low, dim.high, value))
    return min(max((at - low) / (high - low), 0.0), 1.0) if high > low else 0.0


def value_at(dim: Dim, at: float) -> Any:
    """The value at that place: the inverse of `place`, the nearest of a choice or of the whole numbers."""
    at = min(max(at, 0.0), 1.0)
    if dim.values is not None:
        return sorted(dim.values)[round(at * (len(dim.values) - 1))]
    low, high = (math.log(dim.low), math.log(dim.high)) if dim.log else (float(dim.low), float(dim.high))
    value = low + at * (high - low)
    return _clamped(dim, math.exp(value) if dim.log else value)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
