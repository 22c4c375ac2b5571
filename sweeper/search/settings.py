"""How a sweep searches: sampler, scheduler, budget, seeds, objectives; read from the composed config.

Guarantees: plain immutable data; nothing but the standard library is imported; what cannot be meant is a problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeper.errors import Problem

SHARED = ("trials", "sampler_seed", "space", "points", "constraints", "seeds", "final_seeds", "objectives")
"""Keys of `search` that every sampler has; the others are the sampler's own options."""
TRIALS = 20
"""Points an arm with a sampler, where nothing else is said."""
MOST = 100_000
"""Points an arm may be asked for: as many as a grid may have. More is a slip of the keyboard."""
APART = 1000
"""Final seeds begin so far from the tuning ones."""


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """The keys `search`, `scheduler` and `objective` of a config, with their defaults filled in."""

    sampler: str = "none"
    """`none`, `grid`, `random`, `tpe`, `gp`, `qmc` or `nsga2`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the sampler's own file has beside its name: `startup`, `population`."""
    scheduler: str = "none"
    """`none`, `asha`, `median`, `hyperband`, `pbt` or `pb2`."""
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    """What the scheduler's own file has beside its name."""
    trials: int | None = None
    """Points an arm; None: all of a grid. An arm may have fewer points: `ArmPlan.budget`."""
    sampler_seed: int | None = None
    """Of what is drawn: proposals, and a scheduler's perturbations; None: the config's own `seed`."""
    seeds: tuple[int | None, ...] = (None,)
    """A candidate is run under each; `(None,)`: the config's own, which nothing varies."""
    final_seeds: tuple[int, ...] = ()
    """For the best candidate of each arm, after the search; none of them is in `seeds`."""
    objectives: tuple[str, ...] = ("score",)
    """`score`, `gpu_hours`: one or both."""
    metric: str = "auto"
    """Where the score is from: `auto`, or a metric of the engine."""
    mode: str = "max"
    constraints: tuple[str, ...] = ()
    """Expressions that must hold in every point (sweeper/search/constraints.py)."""

    @property
    def samples(self) -> bool:
        """Whether points are proposed while the sweep runs; else all are known before it starts."""
        return self.sampler not in ("none", "grid")


def read(config: Mapping[str, Any], typed: Sequence[int], problems: list[Problem]) -> SearchSettings:
    """The settings of a config that `schema.check` has no problem with; `typed` are the seeds of a choice `seed=1,2`.

    What contradicts itself is added to the problems.
    """
    search, scheduler, objective = config["search"], config["scheduler"], config["objective"]
    sampler, judge = str(search["name"]), str(scheduler["name"])
    seeds = _seeds(config, typed, problems)
    objectives = tuple(map(str, search["objectives"]))
    if len(objectives) > 1 and judge != "none":
        problems.append(
            Problem(
                f"scheduler={judge} compares by one score, and search.objectives has {len(objectives)}",
                valid="scheduler=none with two objectives, or one objective",
                fix="scheduler=none",
                key="scheduler",
            )
        )
    problems += _without_score(objectives, judge, int(search["final_seeds"]))
    if (search["trials"] or 0) > MOST:
        what = f"search.trials={search['trials']}: that many candidates are a slip"
        problems.append(Problem(what, valid=f"at most {MOST:,}", fix="search.trials=100", key="search.trials"))
    if sampler == "none":
        problems += _nothing_searched(search)
    trials = 1 if sampler == "none" else search["trials"] or (None if sampler == "grid" else TRIALS)
    return SearchSettings(
        sampler=sampler,
        options={k: v for k, v in search.items() if k not in (*SHARED, "name")},
        scheduler=judge,
        scheduler_options={k: v for k, v in scheduler.items() if k != "name"},
        trials=trials,
        sampler_seed=search["sampler_seed"],
        seeds=seeds,
        final_seeds=_final(config, seeds, int(search["final_seeds"])),
        objectives=objectives,
        metric=str(objective["metric"]),
        mode=str(objective["mode"]),
        constraints=tuple(map(str, search["constraints"])),
    )


def _without_score(objectives: Sequence[str], judge: str, finals: int) -> list[Problem]:
    """What goes by the score where the score is no objective."""
    if "score" in objectives:
        return []
    asked = {"scheduler": judge} if judge != "none" else {}
    asked |= {"search.final_seeds": str(finals)} if finals else {}
    what = f"goes by the score, and search.objectives is {', '.join(objectives)}"
    return [
        Problem(f"{key}={value} {what}", valid="an objective score", fix="search.objectives=[score]", key=key)
        for key, value in asked.items()
    ]


def _nothing_searched(search: Mapping[str, Any]) -> list[Problem]:
    found = []
    for key in ("trials", "space", "points"):
        if search[key]:
            what = f"search.{key} is given, and search=none searches nothing"
            found.append(
                Problem(what, valid="grid, random, tpe, gp, qmc, nsga2", fix="search=tpe", key=f"search.{key}")
            )
    return found


def _seeds(config: Mapping[str, Any], typed: Sequence[int], problems: list[Problem]) -> tuple[int | None, ...]:
    count = int(config["search"]["seeds"])
    if typed and count > 1:
        listed = ",".join(map(str, typed))
        problems.append(
            Problem(
                f"seed={listed} and search.seeds={count} both say which seeds a point is run under",
                valid="one of them",
                fix=f"seed={listed}  or  search.seeds={count}",
                key="search.seeds",
            )
        )
    if typed:
        return tuple(typed)
    if count == 1:
        return (None,)
    first = config.get("seed")
    if first is None:
        problems.append(
            Problem(f"search.seeds={count} counts from seed, and seed is null", fix="seed=1", key="search.seeds")
        )
        return (None,)
    return tuple(int(first) + i for i in range(count))


def _final(config: Mapping[str, Any], seeds: Sequence[int | None], count: int) -> tuple[int, ...]:
    own = config.get("seed")
    tuning = [s for s in seeds if s is not None] or [own if isinstance(own, int) else 0]
    first = max(tuning) + APART
    return tuple(range(first, first + count))
