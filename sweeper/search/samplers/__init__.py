"""The samplers: what proposes the points of an arm, for every `search=`.

Guarantees: whatever the kind, what is proposed is a function of the seed, of the number of the ask and of the set of
results told until then; the order in which they were told, and whether a process died in between, change nothing.
Optuna is imported by `make` for the kinds that are its own and where a study is written, torch by `gp` alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.search.base import Dim, Sampler
from sweeper.search.samplers.grid import Grid
from sweeper.search.samplers.memory import Model, Study
from sweeper.search.samplers.space import Space

KINDS = ("none", "grid", "random", "tpe", "gp", "qmc", "nsga2")


def make(
    kind: str,
    dims: Sequence[Dim],
    *,
    seed: int,
    modes: Sequence[str] = ("max",),
    options: Mapping[str, Any] | None = None,
    points: Sequence[Mapping[str, Any]] = (),
    apart: Collection[str] = (),
    journal: Path | None = None,
) -> Sampler:
    """The sampler of one arm.

    `modes` holds `max` or `min`, one an objective. `options`: `startup` (tpe, gp: decided points before the model),
    `population` (nsga2). `points` are proposed first, in order; what a point leaves open is drawn at random, and a name
    that is no dim of this arm is passed over (the point of another arm). `apart` names dims that no model sees, such as
    placement, which says how fast and not how good: they are drawn at random (a grid has every value). `journal` is
    where the study that Optuna's tools open is written; it appears with the first ask or with `replay`. Raises
    ValueError where a point is outside its dim, for `grid` over an interval, and for what Optuna refuses as a range.
    """
    if kind not in KINDS:
        raise ValueError(f"no sampler {kind!r}; there are {', '.join(KINDS)}")
    if not modes or any(mode not in ("max", "min") for mode in modes):
        raise ValueError(f"modes are max or min, one an objective, not {list(modes)}")
    space = Space(() if kind == "none" else dims)
    model: Model
    if kind in ("none", "grid"):
        model = Grid(space, first=len(points))
    else:
        from sweeper.search.samplers import models

        modelled = Space([dim for dim in dims if dim.name not in apart])
        model = models.make(kind, modelled, seed, modes, options or {})
    return Study(space, model, seed=seed, modes=modes, points=points, journal=journal)


__all__ = ["KINDS", "make"]
