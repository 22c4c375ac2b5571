"""What a request varies."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.config.space import Space, points
from sweeper.errors import RequestError


def varied(*lines: str) -> list[dict[str, object]]:
    return [dict(p.varied) for p in points(lines)]


def refused(*lines: str) -> str:
    with pytest.raises(RequestError) as caught:
        points(lines)
    return str(caught.value)


def test_nothing_typed_is_one_point() -> None:
    (point,) = points([])
    assert point.overrides == () and point.varied == {}


def test_commas_multiply_in_the_order_typed_the_last_fastest() -> None:
    assert varied("algorithm=grpo,ppo", "seed=7", "lr=1e-4,3e-4") == [
        {"algorithm": "grpo", "lr": 1e-4},
        {"algorithm": "grpo", "lr": 3e-4},
        {"algorithm": "ppo", "lr": 1e-4},
        {"algorithm": "ppo", "lr": 3e-4},
    ]
    assert points(["algorithm=grpo,ppo", "seed=7", "lr=1e-4,3e-4"])[0].overrides == (
        "algorithm=grpo",
        "seed=7",
        "lr=0.0001",
    )


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("k=[1,2]", None),
        ("k=[1,2],[3]", [[1, 2], [3]]),
        ("k='a,b'", None),
        ("k='a,b',c", ["a,b", "c"]),
        ("k={a:1,b:2},{a:3}", [{"a": 1, "b": 2}, {"a": 3}]),
        ("k=null,true,1,1.5,x", [None, True, 1, 1.5, "x"]),
        ("k='1',1", ["1", 1]),
        ("k=a,'b c'", ["a", "b c"]),
    ],
)
def test_lists_quotes_and_types(line: str, values: list[object] | None) -> None:
    found = points([line])
    assert [p.varied.get("k") for p in found] == (values or [None])
    assert all("," not in p.overrides[0] or "[" in line or "{" in line or "'" in line for p in found)


def test_an_interpolation_among_the_choices_stays_one() -> None:
    assert [p.overrides[0] for p in points(["kl=${lr},0"])] == ["kl='${lr}'", "kl=0"]


def test_globs_choose_among_the_options_of_a_group() -> None:
    assert varied("model=glob(qwen*)") == [{"model": m} for m in ("qwen0.5b", "qwen1.5b", "qwen3b", "qwen7b")]
    assert "valid: dapo" in refused("algorithm=glob(x*)")
    assert "options of a group" in refused("lr=glob(*)")


def test_grid_enumerates_choice_and_range() -> None:
    assert varied("search=grid", "seed=range(1,4)", "lr=choice(1e-4,2e-4)") == [
        {"seed": s, "lr": lr} for s in (1, 2, 3) for lr in (1e-4, 2e-4)
    ]


def test_without_a_search_they_are_explained() -> None:
    message = refused("seed=range(1,4)", "lr=choice(1,2)")
    assert message.count("search=grid 'seed=range(1,4)'") == 1
    assert "search=grid 'lr=choice(1,2)'" in message


@pytest.mark.parametrize("line", ["lr=interval(1e-6,1e-3)", "lr=tag(log,interval(1e-6,1e-3))"])
@pytest.mark.parametrize("search", ["none", "grid"])
def test_an_interval_needs_a_sampler(line: str, search: str) -> None:
    message = refused(f"search={search}", line)
    assert "sampler" in message and "lr=1e-06,0.001" in message


def test_a_shuffled_choice_is_refused() -> None:
    assert "another one each time" in refused("seed=shuffle(1,2,3)")


def test_a_value_typed_twice_is_run_once() -> None:
    space = points(["lr=1e-4,0.0001,2e-4"])
    assert [p.varied["lr"] for p in space] == [1e-4, 2e-4]
    assert len(space.notes) == 1 and "twice" in space.notes[0]


def test_a_key_typed_twice_counts_as_typed_last() -> None:
    space = points(["lr=1,2", "seed=1", "lr=5"])
    assert [p.overrides for p in space] == [("lr=5", "seed=1")]
    assert "more than once" in space.notes[0]


def test_all_that_is_wrong_is_said_at_once() -> None:
    message = refused("algorithm=grp", "model=qwen7b,qwen8b", "lr=[1", "--foo", "foo", "=3")
    assert "try:   algorithm=grpo" in message
    assert "model=qwen8b" in message and "qwen0.5b" in message
    assert all(repr(line) in message for line in ("lr=[1", "--foo", "foo", "=3"))


def test_too_many_is_a_slip() -> None:
    hundred = ",".join(map(str, range(100)))
    assert "1,000,000 trials" in refused(f"a={hundred}", f"b={hundred}", f"c={hundred}")


def test_an_experiment_brings_its_choices_and_typed_ones_replace_them() -> None:
    assert varied("experiment=grpo_vs_ppo") == [{"algorithm": "grpo"}, {"algorithm": "ppo"}]
    assert varied("experiment=grpo_vs_ppo", "algorithm=rloo") == [{}]


scalars = st.one_of(
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.booleans(),
    st.none(),
    st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=12),
)


def typed(value: object) -> str:
    """A value as a careful user types it: text always in quotes."""
    if isinstance(value, str):
        # Before a closing quote Hydra reads backslashes in pairs; elsewhere as they are.
        text = value.replace("\\", "").replace("'", "\\'")
        return f"'{text}'"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    )


@settings(max_examples=150)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}x\.[a-z]{1,5}", fullmatch=True), st.lists(scalars, min_size=1, max_size=4), max_size=3
    )
)
def test_any_values_come_back_as_they_were_typed(choices: dict[str, list[object]]) -> None:
    choices = {k: [v.replace("\\", "") if isinstance(v, str) else v for v in vs] for k, vs in choices.items()}
    distinct = {k: list({(type(v).__name__, repr(v)): v for v in vs}.values()) for k, vs in choices.items()}
    space: Space = points([f"+{key}={','.join(map(typed, values))}" for key, values in choices.items()])
    assert len(space) == prod(map(len, distinct.values()))
    swept = [k for k, vs in distinct.items() if len(vs) > 1]
    expected = [
        {k: v for k, v in zip(distinct, combination, strict=True) if k in swept}
        for combination in product(*distinct.values())
    ]
    assert [repr(dict(p.varied)) for p in space] == [repr(e) for e in expected]
    # Each line holds one value: read again it is one point, the same.
    for point in space[:5]:
        (again,) = points(point.overrides)
        assert again.overrides == point.overrides


@settings(max_examples=200)
@given(st.text(max_size=20))
def test_no_text_makes_a_traceback(line: str) -> None:
    try:
        assert points([line])
    except RequestError as error:
        assert error.problems
