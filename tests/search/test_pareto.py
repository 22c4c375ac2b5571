"""The front holds what nothing beats."""

from __future__ import annotations

import math
import random

import pytest

from sweeper.search.pareto import pareto


def test_a_score_and_its_price() -> None:
    values = [(0.5, 1.0), (0.6, 2.0), (0.55, 3.0), (0.7, 9.0), (0.5, 2.0)]
    assert pareto(values, ("max", "min")) == [0, 1, 3]


def test_one_objective_has_its_best_and_equals_stand_together() -> None:
    assert pareto([(1.0,), (3.0,), (3.0,)], ("max",)) == [1, 2]
    assert pareto([(1.0,), (3.0,), (1.0,)], ("min",)) == [0, 2]
    assert pareto([], ("max", "min")) == []


def test_what_is_no_number_is_not_on_the_front() -> None:
    assert pareto([(math.nan, 0.0), (math.inf, 1.0), (0.1, 5.0)], ("max", "min")) == [2]


def test_it_is_the_definition() -> None:
    rng = random.Random(0)
    for _ in range(50):
        rows = [tuple(rng.randrange(5) for _ in range(3)) for _ in range(20)]

        def beats(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
            at_least = a[0] >= b[0] and a[1] <= b[1] and a[2] >= b[2]
            return at_least and a != b

        expected = [i for i, row in enumerate(rows) if not any(beats(other, row) for other in rows)]
        assert pareto(rows, ("max", "min", "max")) == expected


def test_rows_and_modes_must_fit() -> None:
    with pytest.raises(ValueError, match="2 values for 1"):
        pareto([(1.0, 2.0)], ("max",))
    with pytest.raises(ValueError, match="modes"):
        pareto([(1.0,)], ("up",))
