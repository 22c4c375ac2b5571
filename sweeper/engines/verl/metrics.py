"""verl's metrics in the words shared by all engines.

Guarantees: pure functions of a line and the config; a value that is no finite-or-infinite number is left out, never
guessed. A line is what verl's file logger writes, `{"step": n, "data": {name: value}}` (verl/utils/tracking.py:543).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sweeper.engines.base import Config, Progress

_CORE = re.compile(r"val-core/.+/(?P<variable>[^/]+)/mean@\d+")
"""`val-core/{data_source}/{variable}/mean@{n}` (verl/trainer/ppo/v1/trainer_base.py, `_val_metrics_update`): the mean
over the validation prompts of the mean over n answers. `best@n` and `maj@n` say something else."""


def progress(line: Mapping[str, Any], config: Config) -> Progress | None:
    """One line of the metrics file; None when it carries no step."""
    step, data = line.get("step"), line.get("data")
    if not isinstance(step, int) or not isinstance(data, Mapping):
        return None
    numbers = {str(name): float(value) for name, value in data.items() if _is_number(value)}
    tokens, seconds = numbers.get("perf/total_num_tokens"), numbers.get("perf/time_per_step")
    return Progress(
        step=step,
        metrics=numbers,
        # The score is what the reward function gave. `critic/rewards/mean` has the KL penalty taken off where
        # algorithm.use_kl_in_reward is set, so it cannot be compared between algorithms.
        reward=numbers.get("critic/score/mean", numbers.get("critic/rewards/mean")),
        score=_score(numbers, str((config.get("objective") or {}).get("metric", "auto"))),
        # verl's `perf/throughput` is this over the ranks of all its pools (trainer/ppo/metric_utils.py:655-688).
        tokens_per_s=tokens / seconds if tokens is not None and seconds else None,
        step_s=seconds,
    )


def available(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of all numeric metrics in these lines, sorted: what `objective.metric` can be."""
    names: set[str] = set()
    for line in lines:
        data = line.get("data")
        if isinstance(data, Mapping):
            names.update(str(name) for name, value in data.items() if _is_number(value))
    return sorted(names)


def _score(numbers: Mapping[str, float], metric: str) -> float | None:
    """The objective's value; `auto` is the first accuracy of the core validation metrics, else the first reward.

    verl itself calls `acc` the core variable where the reward function gives one, and `reward` otherwise
    (trainer_base.py, `core_var`). First is meant by name, so that it does not depend on the order of the rows.
    """
    if metric != "auto":
        return numbers.get(metric)
    found = {(m["variable"], name) for name in numbers if (m := _CORE.fullmatch(name))}
    for wanted in ("acc", "reward"):
        names = sorted(name for variable, name in found if variable == wanted)
        if names:
            return numbers[names[0]]
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
