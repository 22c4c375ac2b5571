"""What must be true of a whole search before it starts: its objective is written, its scheduler has what it needs.

Guarantees: arithmetic on the arms' examples; nothing is imported that runs anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sweeper import engines
from sweeper.config.nearest import nearest
from sweeper.engines.base import Engine
from sweeper.errors import Problem
from sweeper.plan import pruning
from sweeper.plan.arms import ArmPlan
from sweeper.search.schedulers import rules
from sweeper.search.schedulers.rules import Steps
from sweeper.search.settings import SearchSettings


def arm(planned: ArmPlan, search: SearchSettings) -> list[Problem]:
    """What is wrong with the search of one arm; nothing is asked of an arm without a trial that can run."""
    if planned.example is None or planned.example.work is None:
        return []
    config = dict(planned.example.trial.config)
    engine = engines.get(config["engine"]["name"])
    found = _metric(search.metric, engine, config)
    if search.scheduler != "none" and search.sampler != "none":
        found += rules.check(
            _options(search),
            validations=engine.validates(config),
            total_steps=planned.example.work.steps,
            dims=planned.dims,
            checkpoints=engine.saves(config),
            forkable=engine.forkable,
        )
    elif search.scheduler != "none" and not engine.validates(config):
        found += rules.check(
            {"name": "asha", **_options(search)},
            validations=[],
            total_steps=planned.example.work.steps,
            dims=planned.dims,
            checkpoints=[],
        )
    return found


def share(arms: Sequence[ArmPlan], search: SearchSettings) -> float | None:
    """The expected share of the search's steps that the scheduler leaves, the mean over the arms."""
    if search.scheduler == "none" or search.sampler == "none":
        return None
    found = []
    for planned in arms:
        if planned.example is None or planned.example.work is None:
            continue
        config = dict(planned.example.trial.config)
        validated = engines.get(config["engine"]["name"]).validates(config)
        part = pruning.share(_options(search), Steps.of(validated, planned.example.work.steps))
        if part is None:
            return None
        found.append(part)
    return sum(found) / len(found) if found else None


def _options(search: SearchSettings) -> Mapping[str, Any]:
    return {"name": search.scheduler, **search.scheduler_options}


def _metric(metric: str, engine: Engine, config: dict[str, Any]) -> list[Problem]:
    if metric == "auto":
        return []
    names = engine.emits(config)
    if any(_matches(name, metric) for name in names):
        return []
    close = nearest(metric, names)
    listed = [*close, *(name for name in names if name not in close)]
    return [
        Problem(
            f"objective.metric={metric} is nothing that {engine.name} writes",
            valid=", ".join(listed),
            fix=f"objective.metric={close[0]}" if close and "*" not in close[0] else "objective.metric=auto",
            key="objective.metric",
        )
    ]


def _matches(name: str, metric: str) -> bool:
    """`*` stands for one part, which may hold slashes itself (the name of a data set)."""
    return re.fullmatch(".+".join(map(re.escape, name.split("*"))), metric) is not None
