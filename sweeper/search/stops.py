"""Health rules: when a training is ended early whatever its peers do, and with what evidence.

Guarantees: pure (no clock, no files); a signal that a trainer does not write never stops anything; a training step that
comes again after a resume counts once; feeding the same lines again after a restart gives the same answer.

The rules (config `stop`; null switches one off), each over `patience` training steps on end:
    nan                  loss, entropy, KL or reward is no finite number: at once, for no later step repairs it. The
                         gradient's norm has to stay so: trainers skip an update with such a gradient and go on
                         (verl/workers/engine/fsdp/transformer_impl.py, `optimizer_step`).
    entropy_below        the policy says one thing only: it no longer explores
    entropy_above        times the entropy of the first step: it says anything
    kl_above             the updates throw the policy far from itself
    kl_ref_above         the policy has left the reference that a KL term is to keep it near: a trainer measures that
                         distance only where such a term is on, so without one the rule is silent
    reward_spread_below  all responses of a step are rewarded alike, so there is nothing to learn from, while the
                         reward is no better than at the first step. A task that is solved has no spread either; that
                         is a success, and it is left to end as one.
    saturated_above      nearly all responses are cut at the length limit, which was not so at the first step (a limit
                         that is the length of an answer cuts all of them from the beginning, on purpose)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sweeper.engines.base import Progress
from sweeper.errors import Problem
from sweeper.search.base import Stop

KEYS = (
    "patience",
    "nan",
    "entropy_below",
    "entropy_above",
    "kl_above",
    "kl_ref_above",
    "reward_spread_below",
    "saturated_above",
)
_AT_ONCE = ("loss", "entropy", "kl", "kl_ref")


@dataclass(frozen=True, slots=True)
class _Rule:
    key: str
    reason: str
    signal: str
    what: str
    """In the line for people: `entropy {value} nats a token`."""
    broken: Callable[[_Step, float], bool]
    bound: Callable[[_Step, float], float] = lambda _step, setting: setting
    """What the value is held against; by default the setting itself."""
    side: str = "below"


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of the signal that a rule reads, and the first step there was."""

    value: float
    first: float
    reward: float | None
    first_reward: float | None


_RULES = (
    _Rule("entropy_below", "entropy-collapse", "entropy", "entropy (nats a token)", lambda s, x: s.value < x),
    _Rule(
        "entropy_above",
        "entropy-blow-up",
        "entropy",
        "entropy (nats a token)",
        lambda s, x: s.first > 0 and s.value > x * s.first,
        bound=lambda s, x: x * s.first,
        side="above",
    ),
    _Rule("kl_above", "kl-blow-up", "kl", "KL to the policy before the update", lambda s, x: s.value > x, side="above"),
    _Rule(
        "kl_ref_above",
        "kl-blow-up",
        "kl_ref",
        "KL to the reference policy (nats a token)",
        lambda s, x: s.value > x,
        side="above",
    ),
    _Rule(
        "reward_spread_below",
        "no-reward-variance",
        "reward_spread",
        "spread of the rewards of a step",
        lambda s, x: s.value < x and (s.reward is None or s.first_reward is None or s.reward <= s.first_reward),
    ),
    _Rule(
        "saturated_above",
        "length-saturation",
        "saturated",
        "share of responses cut at the length limit",
        lambda s, x: s.value > x >= s.first,
        side="above",
    ),
)


class Health:
    """Follows one training; give it every line, also those of earlier attempts."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings`: the config's `stop`, checked by `check`."""
        self._settings = settings
        self._patience = int(settings.get("patience") or 1)
        self._first: dict[str, float] = {}
        self._first_reward: float | None = None
        self._last: dict[str, int] = {}
        self._held: dict[str, list[int]] = {}

    def see(self, progress: Progress) -> Stop | None:
        """Take in one line; why the training should end, or None."""
        if progress.step < 1:  # a validation before training
            return None
        if self._settings.get("nan") and (stop := self._nan(progress)):
            return stop
        if self._first_reward is None and progress.reward is not None and math.isfinite(progress.reward):
            self._first_reward = progress.reward
        found = None
        for rule in _RULES:
            setting, value = self._settings.get(rule.key), progress.signals.get(rule.signal)
            if setting is None or value is None or not math.isfinite(value):
                continue
            first = self._first.setdefault(rule.signal, value)
            step = _Step(value, first, progress.reward, self._first_reward)
            if self._held_on(rule.key, progress.step, rule.broken(step, float(setting))):
                found = found or self._stop(rule, step, float(setting), progress.step)
        return found

    def _nan(self, progress: Progress) -> Stop | None:
        values = {name: progress.signals[name] for name in _AT_ONCE if name in progress.signals}
        if progress.reward is not None:
            values["reward"] = progress.reward
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            named = ", ".join(f"{name} is {value}" for name, value in bad.items())
            return Stop("nan", f"{named} at step {progress.step}", bad, progress.step)
        norm = progress.signals.get("grad_norm")
        if norm is not None and self._held_on("grad_norm", progress.step, not math.isfinite(norm)):
            steps = self._steps("grad_norm")
            return Stop("nan", f"the gradient's norm is {norm} {steps}", {"grad_norm": norm}, progress.step)
        return None

    def _held_on(self, what: str, step: int, broken: bool) -> bool:
        """Whether it has held for `patience` steps on end, this one included. A step seen before changes nothing."""
        held = self._held.setdefault(what, [])
        if step > self._last.get(what, 0):
            self._last[what] = step
            if broken:
                held.append(step)
            else:
                held.clear()
        return broken and len(held) >= self._patience

    def _steps(self, what: str) -> str:
        held = self._held[what][-self._patience :]
        return f"at step {held[0]}" if len(held) == 1 else f"for {len(held)} steps on end ({held[0]} to {held[-1]})"

    def _stop(self, rule: _Rule, step: _Step, setting: float, at: int) -> Stop:
        bound = rule.bound(step, setting)
        detail = f"{rule.what} is {step.value:.4g}, {rule.side} {bound:.4g} {self._steps(rule.key)}"
        evidence = {rule.signal: step.value, rule.key: setting}
        if bound != setting or rule.reason == "length-saturation":
            detail += f"; it was {step.first:.4g} at first"
            evidence[f"first_{rule.signal}"] = step.first
        if rule.reason == "no-reward-variance" and step.reward is not None and step.first_reward is not None:
            detail += f"; the reward is {step.reward:.4g}, at first {step.first_reward:.4g}"
            evidence |= {"reward": step.reward, "first_reward": step.first_reward}
        return Stop(rule.reason, detail, evidence, at)


def check(settings: Mapping[str, Any]) -> list[Problem]:
    """Everything that is wrong with the config's `stop`."""
    return list(_problems(settings))


def _problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    for key, value in settings.items():
        name = f"stop.{key}"
        if key not in KEYS:
            yield Problem(f"{name} is no health rule", valid=", ".join(KEYS), key=name)
        elif key == "nan":
            if not isinstance(value, bool | None):
                yield Problem(f"{name}={value} is neither true nor false", valid="true, false", key=name)
        elif key == "patience":
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                yield Problem(f"{name}={value} is no number of steps", valid="a whole number from 1", key=name)
        elif value is not None and (
            not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0
        ):
            yield Problem(f"{name}={value} is no bound", valid="a number from 0; null switches the rule off", key=name)
