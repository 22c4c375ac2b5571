"""What a request varies."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.config import dims
from sweeper.config.space import read, unsearched
from sweeper.errors import Problem, RequestError


def varied(*lines: str) -> list[dict[str, object]]:
    return [dict(p.varied) for p in read(lines).arms]


def refused(*lines: str) -> str:
    with pytest.raises(RequestError) as caught:
        read(lines)
    return str(caught.value)


def test_nothing_typed_is_one_point() -> None:
    (point,) = read([]).arms
    assert point.overrides == () and point.varied == {}


def test_commas_multiply_in_the_order_typed_the_last_fastest() -> None:
    assert varied("algorithm=grpo,ppo", "seed=7", "lr=1e-4,3e-4") == [
        {"algorithm": "grpo", "lr": 1e-4},
        {"algorithm": "grpo", "lr": 3e-4},
        {"algorithm": "ppo", "lr": 1e-4},
        {"algorithm": "ppo", "lr": 3e-4},
    ]
    assert read(["algorithm=grpo,ppo", "seed=7", "lr=1e-4,3e-4"]).arms[0].overrides == (
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
    found = read([line]).arms
    assert [p.varied.get("k") for p in found] == (values or [None])
    assert all("," not in p.overrides[0] or "[" in line or "{" in line or "'" in line for p in found)


def test_an_interpolation_among_the_choices_stays_one() -> None:
    assert [p.overrides[0] for p in read(["kl=${lr},0"]).arms] == ["kl='${lr}'", "kl=0"]


def test_globs_choose_among_the_options_of_a_group() -> None:
    assert varied("model=glob(qwen*)") == [{"model": m} for m in ("qwen0.5b", "qwen1.5b", "qwen3b", "qwen7b")]
    assert "valid: dapo" in refused("algorithm=glob(x*)")
    assert "options of a group" in refused("lr=glob(*)")


def test_choice_range_and_interval_are_searched_and_make_no_arms() -> None:
    space = read(["algorithm=grpo,ppo", "kl=choice(0,1e-3)", "updates_per_step=range(1,4)", "lr=interval(1e-6,1e-3)"])
    assert [dict(p.varied) for p in space.arms] == [{"algorithm": "grpo"}, {"algorithm": "ppo"}]
    assert [(d.name, d.values) for d in space.dims] == [
        ("kl", (0, 1e-3)),
        ("updates_per_step", (1, 2, 3)),
        ("lr", None),
    ]
    assert all(not point.overrides or "kl" not in str(point.overrides) for point in space.arms)


@pytest.mark.parametrize("line", ["seed=1,2,3", "seed=range(1,4)", "seed=choice(1,2,3)", "++seed=1,2,3"])
def test_a_choice_of_seed_is_the_seeds_and_no_arm(line: str) -> None:
    space = read(["lr=1,2", line])
    assert space.seeds == (1, 2, 3) and len(space.arms) == 2 and not space.dims


@pytest.mark.parametrize("line", ["seed=interval(1,4)", "seed=1,x", "seed=1.5,2", "seed=-1,2", "seed=choice(true,1)"])
def test_what_is_no_seed(line: str) -> None:
    assert "search.seeds=3" in refused(line)


def test_without_a_search_they_are_explained() -> None:
    space = read(["tp=range(1,4)", "lr=choice(1,2)", "kl=interval(0,1)"])
    fixes = [p.fix for p in unsearched(space, "none")]
    assert fixes == ["search=grid 'tp=range(1,4)'", "search=grid 'lr=choice(1,2)'", "search=tpe 'kl=interval(0,1)'"]


@pytest.mark.parametrize("line", ["lr=interval(1e-6,1e-3)", "lr=tag(log,interval(1e-6,1e-3))"])
def test_a_grid_has_no_steps_in_an_interval(line: str) -> None:
    (problem,) = unsearched(read([line, "tp=int(interval(1,4))"]), "grid")
    assert f"search=tpe '{line}'" in problem.fix and "choice" in problem.fix
    assert unsearched(read([line]), "random") == []


@pytest.mark.parametrize("line", ["lr=shuffle(1,2,3)", "lr=shuffle(choice(1,2))", "lr=shuffle(range(1,3))"])
def test_a_shuffled_choice_is_refused(line: str) -> None:
    assert "another one each time" in refused(line)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lr=interval(1e-3,1e-6)", "lr=interval(1e-06,0.001)"),
        ("lr=interval(1,1)", "both bounds are the same"),
        ("tp=int(interval(1.2,1.8))", "both bounds are the same"),
        ("lr=tag(log,interval(0,1))", "the logarithm of 0 does not exist"),
        ("lr=tag(log,interval(-1,1))", "the logarithm of -1 does not exist"),
        ("lr=interval(0,inf)", "finite"),
        ("lr=interval(nan,1)", "finite"),
        ("lr=choice(1,nan)", "no value to run with"),
        ("lr=choice()", "empty choice"),
        ("tp=range(4,1)", "tp=range(1,4)"),
        ("tp=range(1,4,0)", "step not 0"),
        ("tp=range(1,inf)", "finite"),
        ("tp=range(1,10000000)", "tp=int(interval(1,10000000))"),
        ("algorithm=interval(0,1)", "a group has options"),
        ("algorithm=choice(grpo,grp)", "algorithm=grpo"),
        ("store=choice(a,b)", "belongs to the whole sweep"),
        ("search.trials=range(1,4)", "belongs to the whole sweep"),
        ("scheduler=none,asha", "belongs to the whole sweep"),
        ("stop.patience=1,2", "belongs to the whole sweep"),
        ("lr=choice(glob(*))", "lr=choice(glob(*))"),
    ],
)
def test_a_dim_that_cannot_be_meant(line: str, said: str) -> None:
    assert said in refused(line)


@pytest.mark.parametrize(
    ("lines", "fix"),
    [
        (["lr=loguniform(1e-5,1e-3)"], "'lr=tag(log,interval(1e-5,1e-3))'"),
        (["lr=choice(1e-4,null)"], "lr=1e-4,null   (arms"),
        (["lr=interval(null,1e-3)"], "a number in its place"),
        (["lr=log(interval(1e-5,1e-3))"], "'lr=tag(log,interval(1e-5,1e-3))'"),
        (["lr=uniform(0.1, 0.2)"], "'lr=interval(0.1, 0.2)'"),
        (["+search.space.lr=tag(log,interval(1e-5,1e-3))"], "'lr=...'  or  '+search.space.lr=\"...\"'"),
    ],
)
def test_what_is_tried_next_searches(lines: list[str], fix: str) -> None:
    assert fix in refused(*lines)


@pytest.mark.parametrize(
    "line",
    [
        "lr=choice(1e-4,2e-4),3e-4", "lr=3e-4,choice(1e-4,2e-4)", "lr=interval(1e-5,1e-4),1e-3", "lr=range(1,3),4",
        "lr=choice(choice(1,2),3)", "lr=[interval(1e-4,1e-3)]", "lr={a: choice(1,2)}", "model=tiny,glob(*)",
    ],
)  # fmt: skip
def test_a_choice_inside_of_a_value_is_refused(line: str) -> None:
    said = refused(line)
    key = line.partition("=")[0]
    assert (
        line in said and f"{key}=choice(...) with every value in it" in said and f"searched: {key}=choice(a,b)" in said
    )


def test_a_list_whose_quotes_a_shell_took_is_shown_with_them() -> None:
    said = refused("cluster.slurm.sbatch=[--constraint=nvlink, --x]")
    assert "try:   \"cluster.slurm.sbatch=['--constraint=nvlink', '--x']\"" in said


def test_equal_numbers_are_one_value() -> None:
    assert read(["kl=choice(0,0.0,1e-3)"]).dims[0].values == (0, 1e-3)


def test_whole_numbers_are_not_drawn_from_an_interval_of_all() -> None:
    assert "tp=choice(1,2,4), tp=int(interval(1.0,4.0))" in refused("tp=interval(1.0,4.0)")
    assert read(["tp=int(interval(1,4))"]).dims[0].integer


def test_a_log_of_zero_keeps_the_upper_bound() -> None:
    assert "try:   lr=tag(log,interval(1e-7,1e-4))" in refused("lr=tag(log,interval(0,1e-4))").replace("0.0001", "1e-4")


parts = st.recursive(
    st.sampled_from(["1", "2e-4", "a", "null", "true", "'x y'"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda vs: f"choice({','.join(vs)})"),
        st.lists(inner, min_size=1, max_size=3).map(lambda vs: f"[{','.join(vs)}]"),
        st.tuples(inner, inner).map(lambda ab: f"interval({ab[0]},{ab[1]})"),
        st.tuples(inner, inner).map(lambda ab: f"range({ab[0]},{ab[1]})"),
        inner.map(lambda v: f"tag(log,{v})"),
        inner.map(lambda v: f"int({v})"),
        inner.map(lambda v: f"shuffle({v})"),
        inner.map(lambda v: f"{{k: {v}}}"),
    ),
    max_leaves=5,
)


@settings(max_examples=300)
@given(st.lists(parts, min_size=1, max_size=3))
def test_no_line_of_hydras_grammar_makes_a_traceback(values: list[str]) -> None:
    try:
        assert read([f"lr={','.join(values)}"]).arms
    except RequestError as error:
        assert error.problems and all(p.what for p in error.problems)


def test_a_value_typed_twice_is_run_once() -> None:
    space = read(["lr=1e-4,0.0001,2e-4", "kl=choice(1,1,2)"])
    assert [p.varied["lr"] for p in space.arms] == [1e-4, 2e-4]
    assert space.dims[0].values == (1, 2)
    assert len(space.notes) == 2 and all("twice" in note for note in space.notes)


def test_a_key_typed_twice_counts_as_typed_last() -> None:
    space = read(["lr=1,2", "seed=1", "lr=5"])
    assert [p.overrides for p in space.arms] == [("lr=5", "seed=1")]
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
    space = read([f"+{key}={','.join(map(typed, values))}" for key, values in choices.items()]).arms
    assert len(space) == prod(map(len, distinct.values()))
    swept = [k for k, vs in distinct.items() if len(vs) > 1]
    expected = [
        {k: v for k, v in zip(distinct, combination, strict=True) if k in swept}
        for combination in product(*distinct.values())
    ]
    assert [repr(dict(p.varied)) for p in space] == [repr(e) for e in expected]
    # Each line holds one value: read again it is one point, the same.
    for point in space[:5]:
        (again,) = read(point.overrides).arms
        assert again.overrides == point.overrides


@settings(max_examples=200)
@given(st.text(max_size=20))
def test_no_text_makes_a_traceback(line: str) -> None:
    try:
        assert read([line]).arms
    except RequestError as error:
        assert error.problems


bounds = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda v: v == 0 or abs(v) > 1e-12)


@settings(max_examples=150)
@given(bounds, bounds, st.booleans(), st.booleans())
def test_an_interval_is_what_hydra_says_or_refused(low: float, high: float, log: bool, integer: bool) -> None:
    text = f"interval({low!r},{high!r})"
    text = f"int({text})" if integer else text
    line = f"lr=tag(log,{text})" if log else f"lr={text}"
    hydra = OverridesParser.create().parse_override(line)._value
    if hydra.start >= hydra.end or (log and hydra.start <= 0):
        assert refused(line)
        return
    (dim,) = read([line]).dims
    assert (dim.low, dim.high, dim.log, dim.integer) == (hydra.start, hydra.end, log, integer)
    assert read([f"lr={dims.shown(dim)}"]).dims[0].log == log
    for point in [*dims.corners([dim]), *dims.sample([dim], 20, seed=1)]:
        assert dims.inside(dim, point["lr"]) and dims.outside([dim], point) == []
    assert not dims.inside(dim, dim.high + 1) and not dims.inside(dim, dim.low - 1)
    assert not dims.inside(dim, "x") and not dims.inside(dim, True)


@settings(max_examples=150)
@given(st.lists(scalars.filter(lambda v: v is not None), min_size=1, max_size=5))  # Hydra: no choice(null)
def test_a_choice_is_what_hydra_says_and_its_lines_set_it(listed: list[object]) -> None:
    listed = [v.replace("\\", "") if isinstance(v, str) else v for v in listed]
    line = f"+a.b=choice({','.join(map(typed, listed))})"
    (dim,) = read([line]).dims
    first: dict[object, object] = {}
    for v in listed:  # 0 and 0.0 are one value, False is another
        first.setdefault(("number", v) if isinstance(v, int | float) and not isinstance(v, bool) else repr(v), v)
    kept = list(first.values())
    assert [repr(v) for v in dim.values or ()] == [repr(v) for v in kept]
    for value in dim.values or ():
        again = OverridesParser.create().parse_override(dims.line(dim.key, value))
        assert not again.is_sweep_override()
        assert (type(again.value()), repr(again.value())) == (type(value), repr(value))


values = st.one_of(
    scalars,
    st.lists(st.integers(-9, 9), max_size=3),
    st.dictionaries(st.from_regex(r"[a-z]{1,4}x", fullmatch=True), st.text("abc '", max_size=4), max_size=2),
)


@settings(max_examples=200)
@given(values)
def test_the_line_of_a_value_means_that_value(value: object) -> None:
    override = OverridesParser.create().parse_override(dims.line("a.b", value))
    assert repr(override.value()) == repr(value)


LINES = [
    "algorithm=grpo,ppo",
    "model=tiny,qwen7b,qwen3b",
    "tp=1,2",
    "lr=interval(1e-6,1e-3)",
    "kl=choice(0,1e-3,1e-2)",
    "updates_per_step=range(1,5)",
    "+x.y=int(interval(1,9))",
    "seed=1,2",
]


@settings(max_examples=60)
@given(st.permutations(LINES), st.integers(0, len(LINES)))
def test_the_same_lines_give_the_same_space_and_arms_go_in_the_order_typed(lines: list[str], count: int) -> None:
    lines = lines[:count]
    first, second = read(lines), read(lines)
    assert first == second
    swept = {
        line.split("=")[0]: line.split("=")[1].split(",") for line in lines if "(" not in line and "seed" not in line
    }
    expected = [dict(zip(swept, combination, strict=True)) for combination in product(*swept.values())]
    assert [{k: str(v) for k, v in p.varied.items()} for p in first.arms] == expected
    assert [d.key for d in first.dims] == [line.split("=")[0] for line in lines if "(" in line]
    count_of = dims.size(first.dims)
    assert (count_of is None) == any(line.startswith("lr") for line in lines)
    if count_of is not None:
        every = [*dims.every(first.dims)]
        assert len(every) == count_of == len({repr(p) for p in every})
        assert all(dims.outside(first.dims, point) == [] for point in every)
    names = [d.name for d in first.dims]
    assert dims.outside(first.dims, {}) == [f"{name} is missing" for name in names]
    assert dims.sample(first.dims, 5, seed=3) == dims.sample(first.dims, 5, seed=3)


def test_a_dim_reads_like_it_is_typed() -> None:
    for text in ("tag(log,interval(1e-07,0.0001))", "int(interval(1,9))", "choice(0,0.001,a)"):
        (dim,) = read([f"lr={text}"]).dims
        assert dims.shown(dim) == text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "nothing to search"),
        ([], "nothing to search"),
        ("3", "is one value"),
        ("interval(3", "cannot read"),
        ("interval(3,1)", "below the lower"),
        ({"dim": "interval(1,3)", "whne": {}}, "whne"),
        ({"dim": "interval(1,3)", "when": "ppo"}, "when=ppo"),
        ({"when": {"algorithm": "ppo"}}, "nothing to search"),
    ],
)
def test_an_entry_of_the_config_that_cannot_be_meant(value: object, said: str) -> None:
    problems: list[Problem] = []
    assert dims.from_yaml("lr", value, problems, []) is None
    assert said in problems[0].what


def test_an_entry_of_the_config_is_a_text_a_list_or_one_with_when() -> None:
    problems: list[Problem] = []
    (typed_dim,) = read(["lr=tag(log,interval(1e-6,1e-3))"]).dims
    assert dims.from_yaml("lr", "tag(log,interval(1e-6,1e-3))", problems, []) == typed_dim
    listed = dims.from_yaml("kl", [0, 0.1], problems, [])
    assert listed is not None and listed.values == (0, 0.1)
    only = dims.from_yaml("kl", {"dim": [1, 2], "when": {"algorithm": "ppo", "tp": [1, 2]}}, problems, [])
    assert only is not None and only.when == {"algorithm": ("ppo",), "tp": (1, 2)} and not problems
