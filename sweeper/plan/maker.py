"""How one point of an arm becomes a trial: composed, constrained, bound, checked, sized.

Guarantees: the same params give the same trial; nothing is written; what is wrong is returned, never raised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sweeper import engines
from sweeper.config import dims as space
from sweeper.config import schema
from sweeper.config.compose import MEANT, Composed, Composer
from sweeper.engines.base import Config, Shape, Workload
from sweeper.errors import Problem, RequestError
from sweeper.plan.arms import Sized
from sweeper.plan.cost import Cost, estimate
from sweeper.search.base import Dim
from sweeper.search.constraints import Constraint
from sweeper.trial.identity import identity_leaves, placement_of
from sweeper.trial.spec import Point, Trial, key_of


class Maker:
    """Makes the trials of one arm. Hydra must be initialized, as for all composing."""

    def __init__(
        self,
        *,
        arm: str,
        point: Point,
        dims: Sequence[Dim],
        shape: Shape | None,
        composer: Composer,
        constraints: Sequence[Constraint],
    ) -> None:
        """`shape` None: the arm's own config says nothing that a cluster could be looked up by."""
        self.arm, self._point, self._shape, self._composer = arm, point, shape, composer
        self.dims, self._constraints = tuple(dims), tuple(constraints)
        self._keys = {dim.name: dim.key for dim in dims}
        self._first: dict[str, Problem | None] = {}

    def compose(self, params: Mapping[str, Any], seed: int | None) -> Composed:
        """The config of a point under a seed, not bound.

        Raises:
            RequestError: Keys that do not exist, values that do not resolve.
        """
        lines, varied = self._point.overrides, {**self._point.varied, **params}
        if seed is not None:
            lines = tuple(line for line in lines if key_of(line) != "seed")
            lines, varied = (*lines, f"seed={seed}"), {**varied, "seed": seed}
        searched = (space.line(self._keys.get(name, name), value) for name, value in params.items())
        return self._composer.compose(Point((*lines, *searched), varied))

    def checked(self, composed: Composed) -> list[Problem]:
        """What is wrong with a composed config, which is bound by this, in place."""
        config = composed.config
        if problems := schema.check(config):
            return problems
        if self._shape is None:
            return []
        engine = engines.get(config["engine"]["name"])
        # Binding comes first: rules read what the trainer will read.
        problems = [*engine.bind(config, composed.explicit, self._shape), *engine.check(config, self._shape)]
        broken = [why for c in self._constraints if (why := c.broken(config, composed.choices))]
        problems += [Problem(why, key="search.constraints") for why in broken]
        return [*dict.fromkeys(problems)]

    def sized(
        self, params: Mapping[str, Any], *, seed: int | None, candidate: str, trial_id: str, kind: str = "search"
    ) -> Sized:
        """See `ArmPlan.sized`."""

        def trial(point: Point, config: Config, problems: Sequence[Problem]) -> Trial:
            return Trial(trial_id, point, config, tuple(problems), self.arm, candidate, seed, dict(params), kind)

        try:
            composed = self.compose(params, seed)
        except RequestError as error:
            return Sized(trial(self._point, {}, error.problems), None, None, None)
        config = composed.config
        problems = self.checked(composed)
        if problems or self._shape is None:
            return Sized(trial(composed.point, config, problems), None, None, None)
        engine = engines.get(config["engine"]["name"])
        work = engine.workload(config, self._shape)
        return Sized(trial(composed.point, config, ()), engine.gang(config), work, costed(work, self._shape))

    def refuse(self, params: Mapping[str, Any]) -> str:
        """See `ArmPlan.refuse`."""
        problem = self.first(params)
        return problem.what if problem else ""

    def first(self, params: Mapping[str, Any]) -> Problem | None:
        """The first reason why a point cannot run; asked once of each point."""
        key = repr(sorted(params.items()))
        if key not in self._first:
            found = [Problem(why, key="search.space") for why in space.outside(self.dims, params)]
            if not found:
                try:
                    found = self.checked(self.compose(params, None))
                except RequestError as error:
                    found = [*error.problems]
            self._first[key] = found[0] if found else None
        return self._first[key]

    def bound(self, params: Mapping[str, Any], seed: int | None = None) -> Config:
        """The config of a point with names bound, whatever else is wrong with it."""
        composed = self.compose(params, seed)
        if self._shape is not None and not schema.check(composed.config):
            engines.get(composed.config["engine"]["name"]).bind(composed.config, composed.explicit, self._shape)
        return composed.config

    def identity(self) -> dict[str, Any]:
        """See `ArmPlan.identity`.

        What a dim or the seed changes is found by changing each alone: its own key and those that it is bound to. A
        key that a name stands for belongs to it also where the name's values happen to leave it as it was: `kl=0` does
        not touch the coefficient, and another value may be the algorithm's own.
        """
        base = self._leaves(self.bound({}))
        moved = {key for dim in self.dims for key in MEANT.get(dim.key, ())}
        first = {dim.name: space.ends(dim)[0] for dim in self.dims}
        if self.dims:
            start = self._leaves(self.bound(first))
            moved |= _differences(base, start)
            for name, value in neighbours(self.dims):
                moved |= _differences(start, self._leaves(self.bound({**first, name: value})))
        # `seed` itself stays: a sweep from another seed on is another sweep.
        own = base.get("seed")
        other = self._leaves(self.bound({}, own + 1 if isinstance(own, int) else 1))
        moved |= _differences(base, other) - {"seed"}
        return {key: value for key, value in sorted(base.items()) if key not in moved}

    def _leaves(self, config: Config) -> dict[str, Any]:
        return dict(identity_leaves(config, placement_of(config)))


def neighbours(dims: Sequence[Dim]) -> Iterator[tuple[str, Any]]:
    """Every other value of each dim (of an interval the upper bound), to change one at a time."""
    for dim in dims:
        for value in space.ends(dim)[1:33]:
            yield dim.name, value


def costed(work: Workload, shape: Shape) -> Cost:
    """What so much work costs on that shape."""
    return estimate(
        params=work.params,
        steps=work.steps,
        responses_per_step=work.responses_per_step,
        max_prompt=work.max_prompt,
        max_response=work.max_response,
        forward_passes=work.forward_passes,
        critic=work.critic,
        gpu=shape.gpu,
    )


_ABSENT = object()


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> set[str]:
    # repr: 1 and True are equal in Python, and two values here.
    return {key for key in {*a, *b} if repr(a.get(key, _ABSENT)) != repr(b.get(key, _ABSENT))}
