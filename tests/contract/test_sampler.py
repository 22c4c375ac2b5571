"""What every sampler promises, whatever proposes inside."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sweeper.search import samplers
from sweeper.search.base import Ask, Dim, Past, Sampler, Told

Make = Callable[..., Sampler]

VALUES = (Dim("kl", values=(0, 1e-4, 1e-3, 1e-2)), Dim("+optim", values=("adam", None, [1, 2], True)))
INTERVALS = (Dim("lr", low=1e-7, high=1e-3, log=True), Dim("n", low=1, high=64, log=True, integer=True))
OPTIONS = {"population": 4, "startup": 4}


@pytest.fixture(params=samplers.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def dims(kind: str) -> tuple[Dim, ...]:
    return {"none": (), "grid": VALUES}.get(kind, (*VALUES, *INTERVALS))


@pytest.fixture
def make(kind: str) -> Make:
    def made(**more: Any) -> Sampler:
        return samplers.make(kind, dims(kind), **{"seed": 1, "options": OPTIONS} | more)

    return made


def anything(params: object) -> str:
    return ""


def small(params: Any) -> str:
    return "too large" if params.get("n", 0) > 8 or params.get("optim", 0) is None else ""


def run(
    make: Callable[[], Sampler], asks: int, objectives: int, cuts: Collection[int] = (), refuse: Any = small
) -> list[Ask | None]:
    """Asks with several candidates out and tells in another order; at each cut the process dies and another goes on."""
    sampler, rng, out = make(), random.Random(0), []
    past: dict[int, Past] = {}
    waiting: list[Ask] = []
    for turn in range(asks):
        if turn in cuts:
            sampler = make()
            sampler.replay(list(past.values()))
        asked = sampler.ask(refuse)
        out.append(asked)
        if asked is None:
            break
        past[asked.number] = Past(asked, None)
        waiting.append(asked)
        while len(waiting) > 2 or (waiting and rng.random() < 0.5):
            ended = waiting.pop(rng.randrange(len(waiting)))
            score = -abs(math.log10(ended.params.get("lr", 1e-5)) + 5) - ended.params.get("kl", 0)
            values = (score, float(ended.params.get("n", 1)))[:objectives]
            told = rng.choice(
                [
                    *[Told("finished", values, {1: score - 1, 2: score})] * 4,
                    Told("pruned", (), {1: score - 1}),
                    Told("finished", (math.nan, *values[1:])),
                    Told("failed"),
                ]
            )
            sampler.tell(ended.number, told)
            past[ended.number] = Past(ended, told)
    return out


@pytest.mark.parametrize("objectives", [1, 2])
def test_a_killed_search_goes_on_as_if_nothing_had_been(kind: str, make: Make, objectives: int) -> None:
    def again() -> Sampler:
        return make(modes=("max", "min")[:objectives], points=[{"kl": 0.0}] if kind not in ("none", "grid") else [])

    asks = 9 if kind == "gp" else 30  # a proposal of gp is the work of a second
    whole = run(again, asks, objectives)
    assert run(again, asks, objectives, cuts=range(asks)) == whole


def test_points_can_run_are_new_and_carry_what_was_refused_before_them(kind: str, make: Make) -> None:
    asked = [one for one in run(make, 8, 1) if one is not None]
    expected = 0
    for one in asked:
        assert small(one.params) == ""
        expected += len(one.refused)
        assert one.number == expected
        expected += 1
        assert list(one.params) == [dim.name for dim in dims(kind)]
    points = [str(sorted(one.params.items(), key=str)) for one in asked]
    assert len(set(points)) == len(points)


def test_values_are_the_dims_own_and_intervals_are_kept(kind: str, make: Make) -> None:
    for one in run(make, 8, 1, refuse=anything):
        for dim in dims(kind) if one is not None else ():
            assert one is not None
            value = one.params[dim.name]
            if dim.values is not None:
                assert any(value is v for v in dim.values)
            else:
                assert dim.low <= value <= dim.high
                assert isinstance(value, int) == dim.integer


def test_none_comes_when_a_finite_space_is_exhausted_and_stays(kind: str) -> None:
    finite = () if kind == "none" else (Dim("a", values=(1, 2, 4)), Dim("b", low=1, high=2, integer=True))
    if kind == "grid":
        finite = (Dim("a", values=(1, 2, 4)), Dim("b", values=(1, 2)))
    sampler = samplers.make(kind, finite, seed=3, options=OPTIONS)
    seen = []
    while (one := sampler.ask(lambda p: "no" if p.get("a") == 4 else "")) is not None:
        seen.append(tuple(one.params.values()))
        sampler.tell(one.number, Told("finished", (float(len(seen)),)))
    assert sorted(seen) == ([()] if kind == "none" else [(1, 1), (1, 2), (2, 1), (2, 2)])
    assert sampler.ask(anything if kind == "none" else lambda p: "no") is None


def test_a_space_where_nothing_can_run_ends(make: Make) -> None:
    assert make().ask(lambda _: "no") is None


def test_known_points_come_first(kind: str, make: Make) -> None:
    if kind == "none":
        pytest.skip("has no dims")
    whole = {"kl": 1e-3, "optim": [1, 2]} | ({} if kind == "grid" else {"lr": 1e-4, "n": 8})
    sampler = make(points=[whole, {"kl": 1e-2, "another arm's": 1}])
    first, second = sampler.ask(anything), sampler.ask(anything)
    assert first is not None and first.params == whole
    assert second is not None and second.params["kl"] == 1e-2
    with pytest.raises(ValueError, match="kl"):
        make(points=[{"kl": 5}])


def test_what_is_told_wrongly_is_refused(make: Make) -> None:
    sampler = make()
    with pytest.raises(ValueError, match="not asked"):
        sampler.tell(0, Told("finished", (1.0,)))
    asked = sampler.ask(anything)
    assert asked is not None
    with pytest.raises(ValueError, match="2 values for 1"):
        sampler.tell(asked.number, Told("finished", (1.0, 2.0)))
    with pytest.raises(ValueError, match="0 values"):
        sampler.tell(asked.number, Told("finished"))
    with pytest.raises(ValueError, match="waiting"):
        sampler.tell(asked.number, Told("waiting"))
    sampler.tell(asked.number, Told("finished", (1.0,)))
    with pytest.raises(ValueError, match="told before"):
        sampler.tell(asked.number, Told("failed"))
    with pytest.raises(ValueError, match="memory already"):
        sampler.replay([])


def test_optunas_tools_open_the_study_at_any_instant(kind: str, make: Make, tmp_path: Path) -> None:
    path = tmp_path / "study.log"

    def load() -> optuna.Study:
        return optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(path))))

    sampler = make(journal=path)
    past, ends = [], [Told("finished", (math.nan,)), Told("pruned", (), {1: 0.5}), Told("finished", (0.7,), {3: 0.7})]
    for told in [*ends, Told("failed")]:
        asked = sampler.ask(small)
        if asked is None:
            break
        running = load().trials[asked.number]
        assert running.state == TrialState.RUNNING and running.user_attrs["number"] == asked.number
        sampler.tell(asked.number, told)
        past.append(Past(asked, told))
    before = [(t.number, t.state, t.params, t.values, t.user_attrs, t.intermediate_values) for t in load().trials]
    assert [b[1] for b in before if "refused" not in b[4]] == [
        {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[p.told.state]
        for p in past
        if p.told is not None
    ]
    assert before[past[0].ask.number][3] == [-math.inf]
    path.write_text("another program's\n")
    make(journal=path).replay(past)
    after = [(t.number, t.state, t.params, t.values, t.user_attrs, t.intermediate_values) for t in load().trials]
    assert after == before
    assert [p.name for p in tmp_path.iterdir()] == ["study.log"]
