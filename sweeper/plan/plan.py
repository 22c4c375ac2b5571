"""The plan of a sweep: every trial composed, checked, sized and costed before the first is started.

Guarantees: planning launches nothing and leaves nothing behind; all problems of all trials are collected, identical
ones merged; the same request gives the same trials with the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper import clusters, engines
from sweeper.config import schema, tree
from sweeper.config.compose import Composed, compose_points
from sweeper.config.space import points
from sweeper.engines.base import Config, Gang, Shape, Workload
from sweeper.engines.verl import base_config
from sweeper.errors import Problem, RequestError
from sweeper.plan.cost import Cost, estimate
from sweeper.trial.records import secret_name
from sweeper.trial.spec import Point, Trial

SWEEP_LEVEL = ("name", "project", "store", "plan", "output", "tracking", "search", "objective", "max_concurrent")
"""Root keys that belong to the sweep as a whole and so cannot differ between its trials."""

_ABSENT = object()
_CREDENTIALS = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_SECRET = re.compile(
    r"(^|_)(api_?key|(access|secret|private)_key|secret|passw(or)?d|(hf|api|auth|access|bearer|wandb)_token)s?$|^token$",
    re.IGNORECASE,
)
"""Names in lower case: narrower than those of variables, for `prompt_key` and `pad_token` name a column and a token."""


@dataclass(frozen=True, slots=True)
class Sized:
    """A trial with what it needs; that is not asked of a config that cannot run."""

    trial: Trial
    gang: Gang | None
    work: Workload | None
    cost: Cost | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is known of a sweep before it starts."""

    overrides: tuple[str, ...]
    sized: tuple[Sized, ...]
    shapes: Mapping[str, Shape]
    """The shape each trial is planned for, by trial id."""
    settings: Mapping[str, Any]
    """The sweep-level keys of the config."""
    notes: tuple[str, ...] = ()

    @property
    def trials(self) -> list[Trial]:
        """The trials in order."""
        return [s.trial for s in self.sized]

    @property
    def problems(self) -> list[tuple[Problem, list[str]]]:
        """Each distinct problem with the ids of the trials that have it, in the order of first appearance."""
        found: dict[Problem, list[str]] = {}
        for trial in self.trials:
            for problem in trial.problems:
                found.setdefault(problem, []).append(trial.id)
        return list(found.items())

    @property
    def gpu_hours(self) -> float | None:
        """The estimate for all trials that can run; None where none has one."""
        known = [s.cost.gpu_hours for s in self.sized if s.cost and s.cost.gpu_hours is not None]
        return sum(known) if known else None


def make(overrides: Sequence[str]) -> Plan:
    """Plan the request. Problems of single trials are in the plan, not raised.

    Raises:
        RequestError: The request as a whole is wrong (grammar, unknown keys or options): all of it in one.
    """
    space = points(overrides)
    composed = compose_points(space)
    settings = {key: composed[0].config.get(key) for key in SWEEP_LEVEL}
    if problems := [*_unsweepable(list(composed[0].point.varied)), *_secrets(composed)]:
        raise RequestError(problems)
    width = max(3, len(str(len(composed) - 1)))
    sized: list[Sized] = []
    shapes: dict[str, Shape] = {}
    known: dict[str, Shape] = {}
    for index, item in enumerate(composed):
        trial_id = f"{index:0{width}d}"
        if wrong := schema.check(item.config):
            trial = Trial(trial_id, item.point, item.config, tuple(wrong))
            sized.append(Sized(trial, None, None, None))
            continue
        key = repr(item.config["cluster"])
        if key not in known:
            known[key] = clusters.shape(item.config["cluster"])
        shapes[trial_id] = known[key]
        sized.append(_sized(trial_id, item.point, item.config, item.explicit, known[key]))
    return Plan(tuple(overrides), tuple(sized), shapes, settings, space.notes)


def unlaunchable(plan: Plan) -> list[tuple[Problem, list[str]]]:
    """What may be planned and not run, each with its trials: several clusters, a cluster that is only a shape."""
    on: dict[Shape, list[str]] = {}
    for trial_id, shape in plan.shapes.items():
        on.setdefault(shape, []).append(trial_id)
    found: list[tuple[Problem, list[str]]] = []
    if len(on) > 1:
        names = ", ".join(dict.fromkeys(shape.name for shape in on))
        what = f"the trials are for {len(on)} clusters ({names}), and a sweep runs on one"
        fix = "cluster=... once; plan=true compares several"
        found.append((Problem(what, valid="one cluster", fix=fix, key="cluster"), [*plan.shapes]))
    for shape, trials in on.items():
        if not shape.launchable:
            try:
                clusters.get(shape)
            except RequestError as error:
                found += [(problem, trials) for problem in error.problems]
    return found


def _sized(trial_id: str, point: Point, config: Config, explicit: Mapping[str, Any], shape: Shape) -> Sized:
    engine = engines.get(config["engine"]["name"])
    # Binding comes first: rules read what the trainer will read.
    problems = [*dict.fromkeys([*engine.bind(config, explicit, shape), *engine.check(config, shape)])]
    if problems:
        return Sized(Trial(trial_id, point, config, tuple(problems)), None, None, None)
    gang, work = engine.gang(config), engine.workload(config, shape)
    cost = estimate(
        params=work.params,
        steps=work.steps,
        responses_per_step=work.responses_per_step,
        max_prompt=work.max_prompt,
        max_response=work.max_response,
        forward_passes=work.forward_passes,
        critic=work.critic,
        gpu=shape.gpu,
    )
    return Sized(Trial(trial_id, point, config), gang, work, cost)


def _secrets(composed: Sequence[Composed]) -> list[Problem]:
    """A secret that is typed would be in every record of the request; one that is passed by name is in none."""
    found: dict[str, Problem] = {}
    for item in composed:
        for key, value in tree.leaves(dict(item.explicit)):
            if isinstance(value, str) and value and key not in found:
                problem = _secret(key, value, str(item.config.get("model_engine", "dp")))
                if problem is not None:
                    found[key] = problem
    return [found[key] for key in sorted(found)]


def _secret(key: str, value: str, model_engine: str) -> Problem | None:
    name = key.rsplit(".", maxsplit=1)[-1]
    if _CREDENTIALS.search(value):
        variables = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if key == "tracking.uri" else name
        fix = f"export {variables}, and {key}=... without the user and the password"
        if key.startswith("engine.env."):
            fix = f"export {name}=..., and engine.inherit=[...,{name}] where it is not in the list already"
        return Problem(
            f"{key} has a password in its address, and what is typed is recorded",
            valid="an address without one; the password in a variable of the environment",
            fix=fix,
            key=key,
        )
    if not (secret_name(name) and name.isupper()) and not (_SECRET.search(name) and not _verls(key, model_engine)):
        return None
    variable = name.upper()
    return Problem(
        f"{key} looks like a secret, and what is typed is recorded",
        valid="a variable of the environment, passed on by its name",
        fix=f"export {variable}=..., and engine.inherit=[...,{variable}] where it is not in the list already",
        key=key,
    )


def _verls(key: str, model_engine: str) -> bool:
    """Whether verl's config has this key itself: its own are no secrets, whatever they are called."""
    try:
        return tree.get(base_config.load(model_engine), key, _ABSENT) is not _ABSENT
    except (RequestError, KeyError):
        return False


def _unsweepable(varied: Sequence[str]) -> list[Problem]:
    return [
        Problem(
            f"{key} belongs to the whole sweep and cannot take several values",
            valid="one value",
            fix=f"give {key} once",
            key=key,
        )
        for key in varied
        if key.lstrip("+").split(".")[0] in SWEEP_LEVEL
    ]
