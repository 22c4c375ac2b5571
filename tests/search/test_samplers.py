"""What the samplers learn, and what they make of dims, options and broken results."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
from typing import Any

import pytest

from sweeper.search import samplers
from sweeper.search.base import Dim, Past, Told

LR = Dim("lr", low=1e-7, high=1e-3, log=True)
X = Dim("x", low=0.0, high=1.0)
MODEL_BASED = ["tpe", "gp", "nsga2"]


def proposals(kind: str, dim: Dim, asks: int, told: Any, refuse: Any = lambda _: "", seed: int = 1, **more: Any) -> Any:
    """The asks of a search where each candidate is told before the next ask."""
    options = {"startup": 5, "population": 5}
    sampler = samplers.make(kind, (dim, X), seed=seed, options=options, **more)
    out = []
    for _ in range(asks):
        asked = sampler.ask(refuse)
        assert asked is not None
        out.append(asked)
        sampler.tell(asked.number, told(asked.params))
    return out


def test_a_grid_is_the_product_in_order_and_needs_values() -> None:
    sampler = samplers.make("grid", (Dim("a", values=(2, 1)), Dim("b", values=("x", "y"))), seed=1)
    asked = [sampler.ask(lambda _: "") for _ in range(5)]
    assert [tuple(one.params.values()) if one else None for one in asked] == [
        (2, "x"),
        (2, "y"),
        (1, "x"),
        (1, "y"),
        None,
    ]
    with pytest.raises(ValueError, match="lr"):
        samplers.make("grid", (LR,), seed=1)


def test_a_known_point_of_a_grid_is_not_run_twice() -> None:
    sampler = samplers.make("grid", (Dim("a", values=(1, 2, 3)),), seed=1, points=[{"a": 2.0}, {"a": 2}])
    asked = [sampler.ask(lambda _: "") for _ in range(4)]
    assert [one.params["a"] if one else None for one in asked] == [2, 1, 3, None]


@pytest.mark.parametrize("kind", MODEL_BASED)
def test_a_region_where_results_are_no_numbers_is_left(kind: str) -> None:
    def told(params: Any) -> Told:
        return Told("finished", (math.nan if params["lr"] > 1e-5 else -abs(params["x"] - 0.5),))

    asks, late = (16, 8) if kind == "gp" else (60, 20)
    seeds = [1] if kind == "gp" else [1, 2, 3]
    bad = {
        name: statistics.mean(
            one.params["lr"] > 1e-5 for seed in seeds for one in proposals(name, LR, asks, told, seed=seed)[late:]
        )
        for name in (kind, "random")
    }
    assert bad[kind] < 0.6 * bad["random"]


@pytest.mark.parametrize("state", ["pruned", "infinite"])
def test_tpe_leaves_a_region_where_candidates_are_pruned_or_infinite(state: str) -> None:
    def told(params: Any) -> Told:
        if params["lr"] > 1e-5:
            return Told("pruned", (), {1: 9.0}) if state == "pruned" else Told("finished", (math.inf,))
        return Told("finished", (-abs(params["x"] - 0.5),))

    bad = {
        kind: statistics.mean(one.params["lr"] > 1e-5 for one in proposals(kind, LR, 60, told)[20:])
        for kind in ("tpe", "random")
    }
    assert bad["tpe"] < 0.5 * bad["random"]


@pytest.mark.parametrize("kind", MODEL_BASED)
@pytest.mark.parametrize("modes", [("max", "min"), ("min", "max")])
def test_broken_and_pruned_candidates_harm_no_search_for_several_objectives(kind: str, modes: tuple[str, str]) -> None:
    ends = iter(
        [
            Told("finished", (math.nan, 1.0)),
            Told("pruned"),
            Told("pruned", (), {1: 0.1}),
            Told("finished", (math.inf, 0)),
        ]
    )
    asked = proposals(
        kind, LR, 9 if kind == "gp" else 40, lambda p: next(ends, Told("finished", (p["x"], p["lr"]))), modes=modes
    )
    assert asked[-1].params["lr"] > 0


@pytest.mark.parametrize("kind", [*MODEL_BASED, "qmc"])
def test_fewer_points_are_refused_where_there_is_a_model_and_never_more_than_by_chance(kind: str) -> None:
    def refuse(params: Any) -> str:
        return "too high" if params["lr"] > 1e-5 else ""  # half of the space

    def told(params: Any) -> Told:
        return Told("finished", (-abs(math.log10(params["lr"]) + 5.5) - abs(params["x"] - 0.5),))

    asks, late = (14, 6) if kind == "gp" else (60, 15)
    share = {}
    for name in (kind, "random"):
        ran = refused = 0
        for seed in [1] if kind == "gp" else [1, 2, 3]:
            for one in proposals(name, LR, asks, told, refuse, seed=seed)[late:]:
                ran += 1
                refused += sum(refuse(params) != "" for params in one.refused)  # not those that are repeated
        share[name] = refused / (ran + refused)
    assert share[kind] < (0.8 if kind in MODEL_BASED else 1.2) * share["random"]


@pytest.mark.parametrize("kind", MODEL_BASED)
def test_a_model_finds_better_points_than_chance(kind: str) -> None:
    def told(params: Any) -> Told:
        return Told("finished", (-abs(math.log10(params["lr"]) + 5.5) - abs(params["x"] - 0.3),))

    asks, late = (14, 8) if kind == "gp" else (60, 40)
    mean = {
        name: statistics.mean(told(one.params).values[0] for one in proposals(name, LR, asks, told)[late:])
        for name in (kind, "random")
    }
    assert mean[kind] > mean["random"]


def test_numbers_are_ranked_whatever_their_order_and_other_values_are_not() -> None:
    from sweeper.search.samplers.space import Space

    space = Space((Dim("kl", values=(1e-2, 0, 1e-4)), Dim("o", values=(True, 1, "a"))))
    assert [space.encode({"kl": kl, "o": True})["kl"] for kl in (0, 1e-4, 1e-2)] == [0, 1, 2]
    assert [space.encode({"kl": 0, "o": o})["o"] for o in (True, 1, "a")] == [0, 1, 2]
    assert [tuple(point.values()) for point in space.all()][:4] == [(1e-2, True), (1e-2, 1), (1e-2, "a"), (0, True)]
    with pytest.raises(ValueError, match="none of"):
        space.encode({"kl": False, "o": "a"})


def test_the_ledgers_points_must_be_of_this_space_and_without_gaps() -> None:
    sampler = samplers.make("random", (LR, X), seed=1)
    one, two = sampler.ask(lambda _: ""), sampler.ask(lambda _: "")
    assert one is not None and two is not None
    with pytest.raises(ValueError, match="lr"):
        samplers.make("random", (Dim("lr", low=1.0, high=2.0), X), seed=1).replay([Past(one, None)])
    with pytest.raises(ValueError, match="0 points come before"):
        samplers.make("random", (LR, X), seed=1).replay([Past(two, None)])


@pytest.mark.parametrize(
    ("kind", "dims", "more", "names"),
    [
        ("cma", (LR,), {}, "no sampler 'cma'"),
        ("tpe", (LR, LR), {}, "twice"),
        ("tpe", (Dim("lr", low=0.0, high=1.0, log=True),), {}, "log scale"),
        ("tpe", (Dim("lr", low=2.0, high=1.0),), {}, "no interval"),
        ("tpe", (Dim("lr", values=()),), {}, "no values"),
        ("nsga2", (LR,), {"options": {"population": 1}}, "population"),
        ("tpe", (LR,), {"modes": ("up",)}, "max or min"),
    ],
)
def test_what_cannot_be_searched_is_said(kind: str, dims: Any, more: Any, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        samplers.make(kind, dims, seed=1, **more)


def test_a_range_of_one_value_and_no_dims_at_all_are_searched_too() -> None:
    for kind in ("random", "tpe", "qmc", "nsga2", "gp"):
        one = samplers.make(kind, (Dim("a", low=1.0, high=1.0), Dim("b", values=("x",))), seed=1)
        asked = one.ask(lambda _: "")
        assert asked is not None and asked.params == {"a": 1.0, "b": "x"}
        assert one.ask(lambda _: "") is None
        empty = samplers.make(kind, (), seed=1)
        assert empty.ask(lambda _: "") is not None
        assert empty.ask(lambda _: "") is None


def test_nothing_heavy_is_imported_for_a_grid_and_no_torch_but_for_gp() -> None:
    code = """
import sys
from sweeper.search import samplers
from sweeper.search.base import Dim
samplers.make("grid", (Dim("a", values=(1, 2)),), seed=1).ask(lambda _: "")
assert not {"optuna", "torch", "scipy", "numpy", "ray"} & set(sys.modules)
for kind in ("tpe", "gp", "qmc", "nsga2"):
    samplers.make(kind, (Dim("a", low=0.0, high=1.0),), seed=1).ask(lambda _: "")
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


TP = Dim("tp", values=(1, 2, 4))


@pytest.mark.parametrize("kind", [k for k in samplers.KINDS if k not in ("none", "grid")])
class TestADimThatIsPlacement:
    """It is searched beside the model: what is told says nothing of it."""

    def asked(self, kind: str, told: Any, cut: int | None = None, refuse: Any = lambda _: "") -> list[dict[str, Any]]:
        def made() -> Any:
            options = {"startup": 4, "population": 4}
            return samplers.make(kind, (TP, X), seed=1, options=options, apart=["tp"])

        sampler, past, out = made(), [], []
        for turn in range(12):
            if turn == cut:  # the process died
                sampler = made()
                sampler.replay(past)
            asked = sampler.ask(refuse)
            assert asked is not None
            sampler.tell(asked.number, told(asked.params))
            past.append(Past(asked, told(asked.params)))
            out.append(dict(asked.params))
        return out

    def test_its_values_change_no_proposal_and_are_all_tried(self, kind: str) -> None:
        def told(params: Any) -> Told:
            return Told("finished", (-abs(params["x"] - 0.3),))

        points = self.asked(kind, told)
        assert {p["tp"] for p in points} == {1, 2, 4}
        # The same results under other sizes: the model proposes the same.
        moved = self.asked(kind, told, refuse=lambda p: "too large" if p["tp"] == 4 else "")
        assert [p["x"] for p in moved] == [p["x"] for p in points]
        assert {p["tp"] for p in moved} == {1, 2}

    def test_a_search_that_was_killed_goes_on_with_the_same(self, kind: str) -> None:
        def told(params: Any) -> Told:
            return Told("finished", (-abs(params["x"] - 0.3),))

        assert self.asked(kind, told, cut=7) == self.asked(kind, told)

    def test_where_nothing_else_is_searched_every_value_is_run_once(self, kind: str) -> None:
        sampler = samplers.make(kind, (TP,), seed=1, options={"startup": 1, "population": 2}, apart=["tp"])
        asked = []
        while (one := sampler.ask(lambda _: "")) is not None:
            asked.append(one.params["tp"])
            sampler.tell(one.number, Told("finished", (1.0,)))
        assert sorted(asked) == [1, 2, 4]
