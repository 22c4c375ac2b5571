"""The Pareto front: the points that no other point beats in every objective.

Guarantees: plain functions of numbers; nothing but the standard library is imported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def pareto(values: Sequence[Sequence[float]], modes: Sequence[str]) -> list[int]:
    """Indices of the points that are not dominated, rising.

    `values` holds a row a point with one value an objective, `modes` `max` or `min`, one an objective. A point
    dominates another when it is as good in every objective and better in one, so equal points stand together. A row
    with a value that is not finite is never on the front. Raises ValueError for a row of the wrong length or an unknown
    mode.
    """
    if any(mode not in ("max", "min") for mode in modes):
        raise ValueError(f"modes are max or min, not {list(modes)}")
    losses: list[tuple[tuple[float, ...], int]] = []
    for index, row in enumerate(values):
        if len(row) != len(modes):
            raise ValueError(f"{len(row)} values for {len(modes)} objectives in row {index}")
        if all(map(math.isfinite, row)):
            losses.append((tuple(-v if m == "max" else v for v, m in zip(row, modes, strict=True)), index))
    front: list[tuple[tuple[float, ...], int]] = []
    # In this order a point can only be dominated by one that came before it, hence by one of the front.
    for loss, index in sorted(losses):
        if not any(other != loss and all(a <= b for a, b in zip(other, loss, strict=True)) for other, _ in front):
            front.append((loss, index))
    return sorted(index for _, index in front)
