"""The plan of a sweep: every trial composed, checked, sized and costed before the first is started.

Guarantees: planning launches nothing and leaves nothing behind; all problems of all trials are collected, identical
ones merged; the same request gives the same trials with the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from sweeper import clusters
from sweeper.config import schema, tree
from sweeper.config.compose import Composed, Composer, compose_points
from sweeper.config.dims import MOST, ends, every
from sweeper.config.dims import size as size_of
from sweeper.config.space import SWEEP_LEVEL, read
from sweeper.engines.base import Shape
from sweeper.engines.verl import base_config
from sweeper.errors import Problem, RequestError
from sweeper.plan import alike, checks, spaces
from sweeper.plan.arms import ArmPlan, Sized
from sweeper.plan.cost import PEAK_TFLOPS, peak_tflops
from sweeper.plan.feasible import Looked, Tally, look, none_left
from sweeper.plan.maker import Maker
from sweeper.report.rows import Alike
from sweeper.search import settings
from sweeper.search.arm import trial_id
from sweeper.search.base import Dim
from sweeper.search.constraints import Constraint, parse
from sweeper.search.settings import SearchSettings
from sweeper.trial.identity import refused
from sweeper.trial.records import secret_name
from sweeper.trial.spec import Trial, key_of

_ABSENT = object()
_APART = ("objective.", "stop.", "failures.", "keep.", "engine.image")
"""Keys that say how trials are judged, kept and contained: no trial is another one for them."""
_CREDENTIALS = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_SECRET = re.compile(
    r"(^|_)(api_?key|(access|secret|private)_key|secret|passw(or)?d|(hf|api|auth|access|bearer|wandb)_token)s?$|^token$",
    re.IGNORECASE,
)
"""Names in lower case: narrower than those of variables, for `prompt_key` and `pad_token` name a column and a token."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is known of a sweep before it starts."""

    overrides: tuple[str, ...]
    arms: tuple[ArmPlan, ...]
    search: SearchSettings
    sized: tuple[Sized, ...]
    """The trials that are known before the start: all of them with search=none or grid, else the known points."""
    shapes: Mapping[str, Shape]
    """The shape each arm is planned for, by arm id."""
    settings: Mapping[str, Any]
    """The sweep-level keys of the config."""
    pruned: float | None = None
    """Expected share of the search's steps that the scheduler leaves; None where it ends nothing early."""
    notes: tuple[str, ...] = ()
    alike: tuple[Alike, ...] = ()
    """Groups of arms that differ in placement only. No two arms differ in nothing, or in nothing that is read."""
    untrained: tuple[str, ...] = ()
    """Of the arms that were asked for and are not there, since another one computes the same: a line each."""

    @property
    def trials(self) -> list[Trial]:
        """The known trials in order."""
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
    def candidates(self) -> int:
        """Points that will be run, over all arms."""
        return sum(arm.budget for arm in self.arms)

    @property
    def finals(self) -> int:
        """Trials under final seeds."""
        return len(self.arms) * len(self.search.final_seeds)

    @property
    def total(self) -> int:
        """Trials in all: points x seeds, and the finals."""
        return self.candidates * len(self.search.seeds) + self.finals

    @property
    def gpu_hours(self) -> float | None:
        """The estimate for all trials that can run, none of them ended early; None where there is none."""
        found = self._hours(1.0)
        return sum(found) if found else None

    @property
    def expected_gpu_hours(self) -> float | None:
        """The same with what the scheduler is expected to end early (sweeper/plan/pruning.py)."""
        found = self._hours(self.pruned) if self.pruned is not None else []
        return sum(found) if found else None

    def _hours(self, share: float) -> list[float]:
        """GPU-hours of parts of the sweep; `share` of the search's, all of the finals'."""
        found = []
        for arm in self.arms:
            each = _hours(arm.example)
            if self.search.samples:
                search = [each * arm.budget * len(self.search.seeds)] if each is not None else []
            else:
                known = (_hours(s) for s in self.sized if s.trial.arm == arm.id)
                search = [h for h in known if h is not None]
            found += [h * share for h in search]
            if each is not None and self.search.final_seeds:
                found.append(each * len(self.search.final_seeds))
        return found

    def candidate_id(self, arm: int, number: int) -> str:
        """The id of the `number`-th candidate (from 0) of the arm at that place.

        It does not depend on timing. Where a sweep can be extended by more candidates the arms take turns, so that it
        keeps its ids; else they come one after the other.
        """
        if self.search.samples or (self.search.sampler == "grid" and self.search.trials is not None):
            return f"{number * len(self.arms) + arm:03d}"
        width = max(3, len(str(max(0, self.candidates - 1))))
        return f"{sum(a.budget for a in self.arms[:arm]) + number:0{width}d}"


def _hours(sized: Sized | None) -> float | None:
    return sized.cost.gpu_hours if sized is not None and sized.cost is not None else None


def make(overrides: Sequence[str], grid: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> Plan:
    """Plan the request. Problems of single trials are in the plan, not raised.

    Args:
        overrides: as typed.
        grid: arm -> its points, where the sweep is gone on with and its ledger has them (`search.request.grid`): they
            are not composed, and not in `sized`.

    Raises:
        RequestError: The request as a whole is wrong (grammar, unknown keys or options, a space of which no point can
            run, a scheduler or objective that cannot work): all of it in one.
    """
    space = read(overrides)
    composer = Composer()
    bases = compose_points(space.arms, composer)
    problems = [*_secrets(bases), *_nameless(bases), *(p for base in bases for p in schema.check(base.config))]
    if problems:
        raise RequestError(dict.fromkeys([*problems, *_beside(overrides, problems)]))
    notes = [*space.notes]
    search = settings.read(bases[0].config, space.seeds, problems)
    dims = spaces.collect(space, bases, search, problems, notes)
    constraints = parse(search.constraints, problems)
    points = bases[0].config["search"]["points"] if search.sampler != "none" else []
    if search.sampler != "none":
        problems += spaces.check_points(points, dims)
        problems += spaces.unsettled(dims, bases, composer)
    if problems:
        raise RequestError(dict.fromkeys(problems))
    builder = _Builder(search, dims, constraints, points, composer, notes, grid or {})
    plan = builder.plan(tuple(overrides), bases)
    if builder.problems:
        raise RequestError(dict.fromkeys(builder.problems))
    return plan


def _beside(overrides: Sequence[str], problems: Sequence[Problem]) -> list[Problem]:
    """What else is wrong with a request, where all of these are of keys that nothing else of a plan depends on."""
    keys = {problem.key for problem in problems}
    rest = [line for line in overrides if key_of(line) not in keys]
    if not all(key.startswith(_APART) for key in keys) or len(rest) == len(overrides):
        return []
    try:
        return [problem for problem, _ in make(rest).problems]
    except RequestError as error:
        return [*error.problems]


class _Builder:
    """Plans the arms of one request, one after the other."""

    def __init__(
        self,
        search: SearchSettings,
        dims: Sequence[Dim],
        constraints: Sequence[Constraint],
        points: Sequence[Any],
        composer: Composer,
        notes: list[str],
        grid: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> None:
        self._grid_of = grid
        self._search, self._dims, self._constraints, self._points = search, dims, constraints, points
        self._composer, self.notes = composer, notes
        self.problems: list[Problem] = []
        self._idle: list[str] = []
        """What is not searched somewhere, and why."""
        self._shapes: dict[str, Shape] = {}
        self._untrained: list[str] = []

    def plan(self, overrides: tuple[str, ...], bases: Sequence[Composed]) -> Plan:
        """The whole plan; what is wrong with the request is in `problems`."""
        before = [*self.notes]
        self._idle = spaces.homeless(self._dims, bases)
        planned = [found for n, base in enumerate(bases) if (found := self._arm(str(n), base)) is not None]
        self.notes += self._idle
        arms = tuple(arm for arm, _ in planned)
        if self._dims and not self.problems and not any(arm.dims for arm in arms):
            self.problems.append(spaces.none_lives(self._search, self._idle))
        top = {key: bases[0].config.get(key) for key in SWEEP_LEVEL}
        shapes = {arm.id: arm.shape for arm in arms}
        draft = Plan(overrides, arms, self._search, (), shapes, top)
        if self.problems:
            return draft
        sized = [s for n, (arm, listed) in enumerate(planned) for s in self._trials(draft, n, arm, listed)]
        if not self._search.samples:
            # The example of an arm without a search is its first trial that can run.
            arms = tuple(
                arm if arm.example else replace(arm, example=next((s for s in sized if _runs(s, arm)), None))
                for arm in arms
            )
        for arm in arms:
            self.problems += checks.arm(arm, self._search)
        same = alike.find(arms)
        self.problems += same.problems
        if same.instead and not self.problems:
            # Planned anew without them, for the ids of arms and trials have no gaps.
            self._untrained += alike.untrained(arms, same.instead)
            self.notes = before
            kept = [base for arm, base in zip(arms, bases, strict=True) if arm.id not in same.instead]
            return self.plan(overrides, kept)
        self.notes += [*self._untrained, *alike.note(same.groups)]
        share = None if self.problems else checks.share(arms, self._search)
        self._say()
        notes = tuple(dict.fromkeys(self.notes))
        untrained = tuple(self._untrained)
        return replace(
            draft, arms=arms, sized=tuple(sized), pruned=share, notes=notes, alike=same.groups, untrained=untrained
        )

    def _say(self) -> None:
        if self._search.scheduler != "none" and self._search.sampler == "none":
            self.notes.append(
                f"scheduler={self._search.scheduler} compares the points of an arm, and with search=none each has one"
            )

    def _arm(self, arm_id: str, base: Composed) -> tuple[ArmPlan, list[Sized]] | None:
        """An arm, and its points where they are known, under the first seed; None where it cannot be planned."""
        label = Trial("", base.point, {}).label
        live = tuple(dim for dim in self._dims if spaces.belongs(dim, base))
        try:
            shape = self._shape(base)
            maker = self._maker(arm_id, base, live, shape)
            if live:
                maker.bound({dim.name: ends(dim)[0] for dim in live})  # keys that do not exist are found here
            kept = spaces.without_idle(maker, label, self._idle)
        except RequestError as error:
            self.problems += error.problems
            return None
        if kept != live:
            maker = self._maker(arm_id, base, kept, shape)
        if wrong := self._expressions(maker):
            self.problems += wrong
            return None
        before: Sequence[Mapping[str, Any]] = ()
        known = spaces.points_of(self._points, maker, label, self.notes, whole=self._search.sampler == "grid")
        if (many := spaces.too_many(known, self._search)) is not None:
            self.problems.append(many)
            return None
        if not self._search.samples and not kept:
            looked, listed = Looked(1, 1, 1, {}, (), ()), [self._unnamed(maker, {})]  # may have problems
        elif before := self._before(maker):
            looked, listed = Looked(size_of(kept), len(before), len(before), before[0], (), ()), []
        elif self._search.sampler == "grid":
            if (size := (size_of(kept) or 0) * len(self._search.seeds)) > MOST:
                what = f"the grid has {size:,} trials"
                self.problems.append(Problem(what, valid=f"at most {MOST:,}", fix="search=random", key="search"))
                return None
            looked, listed = self._grid(maker, known)
        else:
            looked, listed = look(maker, kept), list[Sized]()
        if looked.first is None:
            self.problems += none_left(looked, label)
            return None
        example = None
        if self._search.samples or kept:
            example = maker.sized(looked.first, seed=None, candidate="", trial_id=f"example-{arm_id}")
        arm = ArmPlan(
            id=arm_id,
            point=base.point,
            label=label,
            dims=kept,
            shape=shape,
            budget=self._budget(looked, label),
            size=looked.size,
            looked=looked.points,
            removed=looked.removed,
            points=known,
            example=example,
            maker=maker,
            planned=bool(before),
        )
        return arm, listed

    def _before(self, maker: Maker) -> Sequence[Mapping[str, Any]]:
        """The arm's points by an earlier plan; none where the first of them would not be planned now."""
        found = self._grid_of.get(maker.arm, ())
        return found if found and set(found[0]) == {d.name for d in maker.dims} and not maker.refuse(found[0]) else ()

    def _maker(self, arm_id: str, base: Composed, dims: Sequence[Dim], shape: Shape) -> Maker:
        return Maker(
            arm=arm_id,
            point=base.point,
            dims=dims,
            shape=shape,
            composer=self._composer,
            constraints=self._constraints,
        )

    def _shape(self, base: Composed) -> Shape:
        key = repr(base.config["cluster"])
        if key not in self._shapes:
            shape = self._shapes[key] = clusters.shape(base.config["cluster"])
            if shape.device == "cuda" and peak_tflops(shape.gpu) is None:
                known = ", ".join(PEAK_TFLOPS)
                what = f"cluster.gpu={shape.gpu}" if shape.gpu else "cluster.gpu is not given"
                self.notes.append(f"no GPU-hours are estimated: {what}, and what is known is {known}")
        return self._shapes[key]

    def _expressions(self, maker: Maker) -> list[Problem]:
        if not self._constraints:
            return []
        composed = maker.compose({dim.name: ends(dim)[0] for dim in maker.dims}, None)
        maker.checked(composed)  # binds, as where the expressions are asked
        found = (c.problem(composed.config, composed.choices) for c in self._constraints)
        return [problem for problem in found if problem is not None]

    def _budget(self, looked: Looked, label: str) -> int:
        asked = self._search.trials
        least = looked.able if looked.whole or self._search.sampler == "grid" else looked.size
        if asked is None or (least is not None and least < asked):
            if asked is not None:
                self.notes.append(f"arm {label}: the space has {least:,} points that can run, fewer than {asked:,}")
            return least or 0
        return asked

    def _unnamed(self, maker: Maker, params: Mapping[str, Any]) -> Sized:
        return maker.sized(params, seed=self._search.seeds[0], candidate="", trial_id="")

    def _grid(self, maker: Maker, known: Sequence[dict[str, Any]]) -> tuple[Looked, list[Sized]]:
        """Every point, the known ones first; those that can run are listed."""
        tally, listed = Tally(), []
        first = {repr(sorted(point.items())) for point in known}
        rest = (point for point in every(maker.dims) if repr(sorted(point.items())) not in first)
        for point in chain(known, rest):
            sized = self._unnamed(maker, point)
            problems = sized.trial.problems
            tally.add(point, problems[0] if problems else None)
            if not problems:
                listed.append(sized)
        return tally.looked(size_of(maker.dims)), listed

    def _trials(self, draft: Plan, place: int, arm: ArmPlan, listed: Sequence[Sized]) -> Iterator[Sized]:
        """The trials of an arm that are known before the start, those of a candidate under its seeds together."""
        names, seeds = {dim.name for dim in arm.dims}, self._search.seeds
        if self._search.samples:
            listed = [self._unnamed(arm.maker, point) for point in arm.points if set(point) == names]
        for number, made in enumerate(listed[: arm.budget]):
            candidate = draft.candidate_id(place, number)
            ids = [trial_id(candidate, seed, len(seeds)) for seed in seeds]
            yield replace(made, trial=replace(made.trial, id=ids[0], candidate=candidate))
            for seed, name in zip(seeds[1:], ids[1:], strict=True):
                yield arm.sized(made.trial.params, seed=seed, candidate=candidate, trial_id=name)


def _runs(sized: Sized, arm: ArmPlan) -> bool:
    return sized.trial.arm == arm.id and not sized.trial.problems


def unlaunchable(plan: Plan) -> list[tuple[Problem, list[str]]]:
    """What may be planned and not run, each with its trials: several clusters, a cluster that is only a shape."""
    on: dict[Shape, list[str]] = {}
    for arm, shape in plan.shapes.items():
        on.setdefault(shape, []).extend(trial.id for trial in plan.trials if trial.arm == arm)
    found: list[tuple[Problem, list[str]]] = []
    if len(on) > 1:
        names = ", ".join(dict.fromkeys(shape.name for shape in on))
        what = f"the trials are for {len(on)} clusters ({names}), and a sweep runs on one"
        fix = "cluster=... once; plan=true compares several"
        found.append((Problem(what, valid="one cluster", fix=fix, key="cluster"), [t.id for t in plan.trials]))
    for shape, trials in on.items():
        if not shape.launchable:
            found.append((clusters.unlaunchable(shape), trials))
    return found


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


def _nameless(composed: Sequence[Composed]) -> list[Problem]:
    """What no fingerprint can name, so that nobody could say whether two runs are the same. Of the first the whole
    config, of the others what was typed: a config has a thousand leaves, a request may have ten thousand arms."""
    found = dict(refused(composed[0].config))
    for item in composed[1:]:
        found.update(refused(dict(item.explicit)))
    valid = "finite numbers, inf, texts, true, false, null, and lists and mappings of them, whose keys are texts"
    # A key without a dot is one of our own, and what it may be is said better elsewhere.
    return [Problem(why, valid=valid, key=key) for key, why in sorted(found.items()) if "." in key]


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
