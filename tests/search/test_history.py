"""The curve of a trial."""

from __future__ import annotations

from sweeper.engines.base import Progress
from sweeper.search.history import Curve


def test_curve_tells_first_final_and_best_apart() -> None:
    curve = Curve()
    for step, score in ((0, 0.2), (10, 0.7), (20, 0.5)):
        curve.add(Progress(step, {}, score=score))
    curve.add(Progress(21, {}, reward=0.4))
    assert curve.summary() == {
        "step": 21,
        "first_score": 0.2,
        "final_score": 0.5,
        "best_score": 0.7,
        "best_step": 10,
        "final_reward": 0.4,
    }
    assert curve.best("min") == (0, 0.2)


def test_a_step_that_comes_again_after_a_resume_counts_once_with_its_latest_value() -> None:
    curve = Curve()
    curve.add(Progress(4, {}, score=0.1, reward=0.1))
    curve.add(Progress(5, {}, reward=0.2))
    curve.add(Progress(4, {}, score=0.3, reward=0.3))
    assert curve.scores == {4: 0.3}
    assert curve.rewards == {4: 0.3, 5: 0.2}
    assert curve.step == 5


def test_the_earliest_of_equal_best_scores_is_named() -> None:
    curve = Curve()
    for step in (5, 10):
        curve.add(Progress(step, {}, score=0.5))
    assert curve.best() == (5, 0.5)


def test_an_empty_curve_has_no_scores() -> None:
    assert set(Curve().summary().values()) == {None}
