"""What scores over seeds say."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sweeper.search.stats import among, compare, order, rank, seeds_needed, summarise

scores = st.floats(-1e6, 1e6)


def test_one_seed_has_a_mean_and_no_interval() -> None:
    one = summarise([0.4])
    assert one is not None and (one.n, one.mean, one.low, one.high) == (1, 0.4, None, None)
    assert summarise([]) is None


def test_two_and_three_seeds_have_their_range_for_an_interval() -> None:
    two, three = summarise([0.4, 0.6]), summarise([0.4, 0.6, 0.5])
    assert two is not None and (two.low, two.high) == (0.4, 0.6)
    assert three is not None and (three.low, three.high) == (pytest.approx(0.4), pytest.approx(0.6))


def test_seeds_that_agree_have_an_interval_of_no_width() -> None:
    same = summarise([0.3] * 6)
    assert same is not None and same.low == same.high == 0.3


def test_a_score_that_is_no_number_makes_a_mean_that_is_none() -> None:
    mean = summarise([0.5, math.nan])
    assert mean is not None and math.isnan(mean.mean) and mean.low is None
    assert compare([0.5, math.nan], [0.4, 0.4]) is None


@given(
    st.lists(st.floats() | st.sampled_from([math.inf, -math.inf, 1.8e308, -1.8e308, 2e154]), min_size=1, max_size=4),
    st.lists(st.floats(), min_size=1, max_size=4),
)
@example([1.7e308, 1.7e308], [0.1, 1.9e154])
@example([math.inf, -math.inf], [0.1])
def test_no_score_is_too_large_to_be_summed_up(one: list[float], other: list[float]) -> None:
    found = summarise(one)
    assert found is not None and found.n == len(one)
    assert found.low is None or found.low <= found.high  # type: ignore[operator]
    difference = compare(one, other)
    assert difference is None or max(map(abs, one + other)) <= 1e100


@settings(max_examples=40)
@given(st.lists(scores, min_size=2, max_size=12))
def test_the_interval_holds_the_mean_within_the_range_and_never_depends_on_the_order(values: list[float]) -> None:
    a, b = summarise(values), summarise(values[::-1])
    assert a == b
    assert a is not None and a.low is not None and a.high is not None
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= a.low <= a.mean + slack
    assert a.mean - slack <= a.high <= max(values) + slack


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = random.Random(1)
    means = [summarise([rng.gauss(0, 1) for _ in range(20)]) for _ in range(100)]
    covered = sum(m is not None and m.low is not None and m.high is not None and m.low <= 0 <= m.high for m in means)
    assert covered >= 88  # 95% asked for; a bootstrap of 20 reaches about 93%


def test_a_hundred_scores_have_the_interval_that_the_bootstrap_would_give() -> None:
    rng = random.Random(3)
    values = [rng.gauss(5, 2) for _ in range(120)]
    some, all_of = summarise(values[:99]), summarise(values)
    assert some is not None and all_of is not None
    assert some.low is not None and some.high is not None and all_of.low is not None and all_of.high is not None
    assert all_of.high - all_of.low == pytest.approx((some.high - some.low) * math.sqrt(99 / 120), rel=0.15)
    assert all_of.low < all_of.mean < all_of.high
    found = compare(values[:50], values[50:] * 2)
    assert found is not None and not found.told_apart
    same = compare(values, values)
    assert same is not None and same.low is not None and same.low < 0 and not same.told_apart


def test_groups_that_clearly_differ_are_told_apart() -> None:
    found = compare([0.80, 0.81, 0.79, 0.80], [0.50, 0.52, 0.51, 0.49])
    assert found is not None and found.told_apart and found.further is None
    assert found.low is not None and found.low > 0 and found.p is not None and found.p < 0.001


def test_groups_that_may_be_the_same_are_not_and_more_seeds_are_reckoned() -> None:
    found = compare([0.50, 0.60, 0.55], [0.52, 0.58, 0.50])
    assert found is not None and not found.told_apart and found.further is not None and found.further > 10


def test_three_seeds_of_nothing_are_rarely_told_apart() -> None:
    """A bootstrap alone would say so every sixth time or so; the t-test holds it to its 5%."""
    rng = random.Random(2)
    pairs = [[[rng.gauss(0, 1) for _ in range(3)] for _ in range(2)] for _ in range(200)]
    apart = sum((found := compare(a, b)) is not None and found.told_apart for a, b in pairs)
    assert apart <= 0.08 * 200


def test_of_five_equal_arms_none_is_told_apart_in_most_sweeps() -> None:
    """Without a correction for the choice of who is ahead it is so in about a quarter of them."""
    chance = random.Random(5)
    found, uncorrected = 0, 0
    for _ in range(100):
        arms = sorted(([chance.gauss() for _ in range(5)] for _ in range(5)), key=lambda a: -sum(a))
        found += any(d is not None and d.told_apart for d in among(arms))
        uncorrected += any(d is not None and d.told_apart for d in (compare(arms[0], other) for other in arms[1:]))
    assert found <= 5
    assert uncorrected > 2 * found


def test_one_that_is_clearly_behind_is_told_apart_among_equals() -> None:
    ahead, equal, behind = [0.61, 0.60, 0.62, 0.59], [0.60, 0.62, 0.58, 0.60], [0.30, 0.31, 0.29, 0.30]
    first, second = among([ahead, equal, behind])
    assert first is not None and not first.told_apart and first.further
    assert second is not None and second.told_apart


def test_one_seed_each_says_nothing() -> None:
    found = compare([0.9], [0.1])
    assert found is not None and not found.told_apart
    assert (found.low, found.p, found.further) == (None, None, None)
    assert compare([], [0.1]) is None


def test_seeds_without_spread_are_told_apart_by_any_difference() -> None:
    found, same = compare([0.5, 0.5], [0.4, 0.4]), compare([0.5, 0.5], [0.5, 0.5])
    assert found is not None and found.told_apart
    assert same is not None and not same.told_apart and same.further is None


def test_so_many_seeds_tell_them_apart_four_times_of_five() -> None:
    from scipy.stats import nct, t

    for difference in (0.5, 1.0, 2.0):
        n = seeds_needed(difference, (1.0, 1.0))
        assert n is not None
        free, shift = 2 * n - 2, difference / math.sqrt(2 / n)
        edge = t.ppf(0.975, free)
        power = 1 - nct.cdf(edge, free, shift) + nct.cdf(-edge, free, shift)
        assert 0.78 <= power <= 0.9, f"{n} seeds for {difference}"


def test_a_difference_too_small_to_be_worth_it_has_no_number_of_seeds() -> None:
    assert seeds_needed(0.0, (1.0, 1.0)) is None
    assert seeds_needed(1e-9, (1.0, 1.0)) is None
    assert seeds_needed(1e-300, (1.0, 1.0)) is None


@settings(max_examples=40)
@given(st.lists(scores, min_size=2, max_size=5), st.lists(scores, min_size=2, max_size=5))
def test_a_comparison_is_the_same_from_both_sides(a: list[float], b: list[float]) -> None:
    one, other = compare(a, b), compare(b, a)
    assert one is not None and other is not None
    assert one.mean == pytest.approx(-other.mean, abs=1e-6)
    assert one.further is None or one.further >= 1
    assert one.p == pytest.approx(other.p)


def test_ranking_shares_places_puts_nan_last_and_leaves_out_what_has_no_score() -> None:
    given = [("a", 0.5), ("b", math.nan), ("c", 0.9), ("d", None), ("e", 0.5), ("f", -math.inf)]
    assert rank(given) == [(1, "c"), (2, "a"), (2, "e"), (4, "f"), (5, "b")]
    assert rank(given, "min") == [(1, "f"), (2, "a"), (2, "e"), (4, "c"), (5, "b")]


@given(st.lists(st.none() | st.floats(allow_nan=True, allow_infinity=True)), st.sampled_from(["max", "min"]))
def test_every_score_has_a_place_and_none_is_before_a_better_one(values: list[float | None], mode: str) -> None:
    places = rank(enumerate(values), mode)
    assert sorted(k for _, k in places) == [i for i, v in enumerate(values) if v is not None]
    assert [p for p, _ in places] == sorted(p for p, _ in places)
    finite = [values[k] for _, k in places if not math.isnan(values[k] or 0.0)]
    assert finite == sorted(finite, key=lambda v: order(v, mode))


def test_the_module_needs_no_scipy_until_there_are_two_seeds() -> None:
    code = "import sys; from sweeper.search import stats; stats.summarise([1.0]); assert 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
