"""Each scheduler: its rule by the figures, its traps, and what is found at plan time."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from race import race

from sweeper.search import schedulers
from sweeper.search.base import Dim, Scheduler
from sweeper.search.schedulers import rules

ASHA = {"name": "asha", "grace_period": None, "reduction_factor": 3, "brackets": 1}
MEDIAN = {"name": "median", "grace_period": None, "min_samples": 3}
HYPERBAND = {"name": "hyperband", "reduction_factor": 3}
PBT = {"name": "pbt", "interval": None, "quantile": 0.25, "resample": 0.25}
PB2 = {"name": "pb2", "interval": None, "quantile": 0.25}
LR = Dim("lr", low=1e-6, high=1e-3, log=True)
EVERY = range(1, 101)


def make(settings: dict[str, Any], dims: list[Dim] | None = None, **changed: Any) -> Scheduler:
    how = {"mode": "max", "validations": range(10, 91, 10), "total_steps": 90, "seed": 0, **changed}
    return schedulers.make(settings, dims or [LR], **how)


def wrong(settings: dict[str, Any], **changed: Any) -> list[str]:
    """What is wrong, each with what is valid and what to type."""
    how = {"validations": range(10, 91, 10), "total_steps": 90, "dims": [LR], "checkpoints": EVERY, **changed}
    found = schedulers.check(settings, **how)
    for problem in found:
        assert problem.fix
        assert problem.key
    return [problem.what for problem in found]


def test_asha_stops_below_the_bound_of_those_before_and_says_it() -> None:
    asha = make(ASHA)
    for n, score in enumerate([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]):
        asha.added(str(n), {})
        assert asha.result(str(n), 10, score) == {}  # each is the best so far
    asha.added("low", {})
    verdict = asha.result("low", 10, 0.45)["low"]
    bound = float(np.percentile([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], 200 / 3))
    assert verdict.action == "stop"
    assert verdict.evidence == {"score": 0.45, "step": 10, "bound": pytest.approx(bound), "before": 7}
    assert verdict.why == (
        "asha: 0.45 at step 10 is worse than 0.5, the bound of the best third of the 7 that were there before"
    )


def test_asha_compares_only_at_rungs() -> None:
    asha = make(ASHA)
    asha.added("good", {})
    asha.added("fading", {})
    asha.result("good", 10, 0.5)
    asha.result("good", 20, 0.9)
    assert asha.result("fading", 10, 0.6) == {}
    assert asha.result("fading", 20, 0.0) == {}  # no rung
    asha.result("good", 30, 0.9)
    assert asha.result("fading", 30, 0.1)["fading"].action == "stop"


def test_asha_with_a_smaller_score_better_states_the_bound_as_it_is() -> None:
    asha = make(ASHA, mode="min")
    for n in range(3):
        asha.added(str(n), {})
    asha.result("0", 10, 2.0)
    asha.result("1", 10, 1.0)
    verdict = asha.result("2", 10, 5.0)["2"]
    assert verdict.evidence["bound"] == pytest.approx(4 / 3)


def test_asha_measures_by_its_first_ones_and_trains_none_of_them_further() -> None:
    asha = make({**ASHA, "bootstrap": 2}, candidates=5)
    for n in range(4):  # a fifth one is still to come
        asha.added(str(n), {})
    first = asha.result("0", 10, 0.9)["0"]
    assert first.action == "stop"
    assert first.evidence == {"score": 0.9, "step": 10, "before": 0}
    assert first.why == "asha: 0.9 at step 10 is one of the first 2, which the others are measured by"
    assert asha.result("1", 10, 0.1)["1"].action == "stop"
    assert asha.result("2", 10, 0.95) == {}  # better than what was there
    assert asha.result("3", 10, 0.5)["3"].why == (
        "asha: 0.5 at step 10 is worse than 0.9167, the bound of the best third of the 3 that were there before"
    )
    assert asha.result("2", 30, 0.2) == {}  # the first at a later rung passes


def test_asha_lets_its_last_one_pass_however_many_were_to_measure() -> None:
    asha = make({**ASHA, "bootstrap": 9}, candidates=4)
    done = race(asha, [{"lr": 1e-4}] * 4, gain=lambda _: 1.0, validations=range(10, 91, 10), total=90, slots=1)
    assert list(done.states().values()) == ["pruned"] * 3 + ["finished"]


def test_the_median_rule_by_its_figures() -> None:
    median = make(MEDIAN)
    for n, scores in enumerate([(0.2, 0.4), (0.4, 0.6), (0.6, 0.8)]):
        median.added(str(n), {})
        for step, score in zip((10, 20), scores, strict=True):
            assert median.result(str(n), step, score) == {}
    median.added("low", {})
    assert median.result("low", 10, 0.0) == {}  # before the grace period is over
    verdict = median.result("low", 20, 0.5)["low"]
    assert verdict.action == "stop"
    assert verdict.evidence == {"score": 0.5, "step": 20, "best": 0.5, "median": pytest.approx(0.6), "candidates": 3}


def bracket_of(count: int, **how: Any) -> Scheduler:
    """HyperBand after its first brackets, which are for 9 validations: 3 that never halve, then 5 that halve once."""
    made = make(HYPERBAND, **how)
    for n in range(3):
        made.added(f"free-{n}", {})
    for n in range(count):
        made.added(f"b-{n}", {})
    return made


def test_a_bracket_waits_for_its_last_candidate_and_keeps_the_best() -> None:
    made = bracket_of(5)
    for n in range(4):
        assert made.result(f"b-{n}", 30, float(n))[f"b-{n}"].action == "pause"
        assert made.resumable([f"b-{k}" for k in range(n + 1)]) == []
    answer = made.result("b-4", 30, 2.5)
    assert {c: v.action for c, v in answer.items()} == {"b-0": "stop", "b-1": "stop", "b-2": "stop"}
    assert answer["b-2"].evidence["bound"] == 2.5
    assert "not among the best 2 of its bracket" in answer["b-2"].why
    assert made.resumable(["b-3"]) == ["b-3"]


def test_a_bracket_whose_last_one_fails_goes_on_without_it() -> None:
    made = bracket_of(5)
    for n in range(4):
        made.result(f"b-{n}", 30, float(n))
    answer = made.ended("b-4")
    assert {c for c, v in answer.items() if v.action == "stop"} == {"b-0", "b-1"}
    assert made.resumable(["b-2", "b-3"]) == ["b-2", "b-3"]


def test_a_failure_after_the_first_rung_does_not_block_the_bracket_either() -> None:
    """Tune's own class looks at a bracket's failures only until its first halving."""
    made = bracket_of(5)
    deep = [f"d-{n}" for n in range(9)]
    for candidate in deep:  # the third bracket halves twice: after 1 validation and after 3
        made.added(candidate, {})
    for n, candidate in enumerate(deep):
        made.result(candidate, 10, float(n))
    assert made.resumable(["d-6", "d-7"]) == ["d-6", "d-7"]
    made.result("d-6", 30, 1.0)
    made.result("d-7", 30, 2.0)
    answer = made.ended("d-8")
    assert {c: v.action for c, v in answer.items()} == {"d-6": "stop"}
    assert made.resumable(["d-7"]) == ["d-7"]


def test_a_bracket_waits_for_candidates_that_are_to_come_and_no_longer() -> None:
    made = bracket_of(2, candidates=8)
    assert made.result("b-0", 30, 0.0)["b-0"].action == "pause"
    pause = made.result("b-1", 30, 1.0)["b-1"]
    assert pause.why == "hyperband: waits at step 30 until its bracket is there (2 of 5)"
    assert made.resumable(["b-0", "b-1"]) == []
    made.closed()
    assert made.resumable(["b-0", "b-1"]) == ["b-0", "b-1"]


def test_all_far_beyond_the_next_rung_are_still_not_forgotten() -> None:
    """An attempt may be at another validation before its pause ends it."""
    made = make({**HYPERBAND, "reduction_factor": 2}, validations=range(10, 81, 10), total_steps=80)
    names = [f"{n:02d}" for n in range(4 + 4 + 6)]  # brackets of 4, 4 and 6 for 8 validations
    for name in names:
        made.added(name, {})
    six = names[8:]
    # All of them are at 40, the second rung, before the first one was looked at.
    stopped = [
        c for n, name in enumerate(six) for c, v in made.result(name, 40, float(n)).items() if v.action == "stop"
    ]
    left = [name for name in six if name not in stopped]
    assert len(left) == 2
    assert set(made.resumable([name for name in left if name != six[-1]])) == set(left) - {six[-1]}


DIMS = [
    LR,
    Dim("kl", values=(0, 1e-4, 1e-3, 1e-2)),
    Dim("epochs", low=1, high=8, integer=True),
]


@pytest.mark.parametrize("settings", [{**PBT, "resample": 0.5}, PB2], ids=["pbt", "pb2"])
def test_new_values_are_within_the_dims_and_can_run(settings: dict[str, Any]) -> None:
    points = [{"lr": 10 ** (-6 + 3 * n / 9), "kl": DIMS[1].values[n % 4], "epochs": 1 + n % 8} for n in range(10)]  # type: ignore[index]

    steps = range(10, 80, 30 if settings is PB2 else 10)  # its model takes about a second for each

    def refuse(point: Any) -> str:
        return "too much" if point["epochs"] > 6 and point["kl"] == 1e-2 else ""

    made = make(settings, DIMS, validations=steps, total_steps=80, refuse=refuse)
    done = race(made, points, gain=lambda p: 1 + math.log10(p["lr"]) / 6, validations=steps, total=80, slots=10)
    forks = [v.fork for _, v in done.verdicts("fork")]
    assert forks
    for fork in forks:
        assert fork is not None
        assert set(fork.params) == {"lr", "kl", "epochs"}
        assert 1e-6 <= fork.params["lr"] <= 1e-3
        assert isinstance(fork.params["lr"], float)
        assert fork.params["kl"] in DIMS[1].values  # type: ignore[operator]
        assert isinstance(fork.params["epochs"], int)
        assert 1 <= fork.params["epochs"] <= 8
        assert refuse(fork.params) == ""
    assert len({fork.params["lr"] for fork in forks if fork}) > len(forks) / 2


def test_the_worst_take_over_the_best() -> None:
    pbt = make(PBT)
    for n in range(8):
        pbt.added(str(n), {"lr": 1e-5})
    for n in range(1, 8):
        assert pbt.result(str(n), 10, float(n)) == {}
    verdict = pbt.result("0", 10, 0.0)["0"]
    assert verdict.action == "fork"
    assert verdict.fork
    assert verdict.fork.donor in {"6", "7"}
    assert verdict.fork.step == 10
    assert verdict.evidence["donor_score"] == float(verdict.fork.donor)


def test_a_population_larger_than_the_machine_goes_on_side_by_side() -> None:
    made = make(PBT, candidates=6)
    points = [{"lr": 1e-5} for _ in range(6)]
    done = race(made, points, gain=lambda p: 1.0, validations=range(10, 91, 10), total=90, slots=2)
    assert set(done.states().values()) == {"finished"}
    reports = [(call[1], call[2]) for call in done.calls if call[0] == "result"]
    for n, (_, step) in enumerate(reports):  # nobody is ever more than two intervals ahead of anybody
        reached = dict.fromkeys(done.runners, 0) | dict(reports[:n])
        assert step - min(reached.values()) <= 30


def test_a_pb2_dim_is_a_place_between_0_and_1_on_its_own_scale() -> None:
    population = pytest.importorskip("sweeper.search.schedulers.population")
    assert population.place(LR, 1e-6) == 0.0
    assert population.place(LR, 10**-4.5) == pytest.approx(0.5)
    assert population.place(DIMS[1], 1e-3) == pytest.approx(2 / 3)
    for dim, values in ((LR, (1e-6, 3e-5, 1e-3)), (DIMS[1], DIMS[1].values or ()), (DIMS[2], range(1, 9))):
        for value in values:
            assert population.value_at(dim, population.place(dim, value)) == pytest.approx(value)


def test_the_kernel_of_pb2_is_that_of_its_paper() -> None:
    """Parker-Holder et al., 2020, section 3: a squared exponential, times (1 - eps)^(|t - t'| / 2)."""
    utils = pytest.importorskip("ray.tune.schedulers.pb2_utils")
    x = np.array([[0.0, 0.1, 0.2], [0.5, 0.4, 0.9], [1.0, 0.3, 0.3]])
    got = utils.TV_SquaredExp(variance=2.0, lengthscale=0.7, epsilon=0.2)(x)
    for i in range(3):
        for j in range(3):
            expected = 2.0 * math.exp(-np.sum((x[i, 1:] - x[j, 1:]) ** 2) / 0.7) * 0.8 ** (abs(x[i, 0] - x[j, 0]) / 2)
            assert got[i, j] == pytest.approx(expected)


@pytest.mark.parametrize("settings", [ASHA, MEDIAN, HYPERBAND, PBT, PB2], ids=lambda s: s["name"])
def test_without_a_score_before_the_end_nothing_can_be_compared(settings: dict[str, Any]) -> None:
    for none in ([], [90], [0, 90]):
        (what,) = wrong(settings, validations=none)
        assert "none of the 90 steps before the last one is validated" in what


@pytest.mark.parametrize(
    ("settings", "changed", "says"),
    [
        (ASHA, {"grace_period": 90}, "grace_period=90 leaves nothing to decide"),
        (ASHA, {"grace_period": 0}, "grace_period=0"),
        (ASHA, {"reduction_factor": 1}, "reduction_factor=1"),
        (ASHA, {"reduction_factor": "three"}, "reduction_factor=three"),
        (ASHA, {"reduction_factor": None}, "reduction_factor=null"),
        (ASHA, {"brackets": 9}, "brackets=9 are more than can compare"),
        (ASHA, {"brackets": 1.5}, "brackets=1.5"),
        (ASHA, {"brackets": None}, "brackets=null"),
        (ASHA, {"bootstrap": -1}, "bootstrap=-1"),
        (ASHA, {"bootstrap": None}, "bootstrap=null"),
        (MEDIAN, {"grace_period": 95}, "grace_period=95 leaves nothing to decide"),
        (MEDIAN, {"min_samples": 0}, "min_samples=0"),
        (MEDIAN, {"min_samples": None}, "min_samples=null"),
        (HYPERBAND, {"reduction_factor": 1.5}, "reduction_factor=1.5"),
        (HYPERBAND, {"reduction_factor": 20}, "reduction_factor=20 needs as many validations"),
        (PBT, {"interval": 7}, "interval=7 is not a step with a score"),
        (PBT, {"quantile": 0}, "quantile=0"),
        (PBT, {"quantile": 0.6}, "quantile=0.6"),
        (PBT, {"resample": 2}, "resample=2"),
        (PB2, {"interval": 0}, "interval=0"),
        (PB2, {"quantile": math.nan}, "quantile=nan"),
    ],
)
def test_a_setting_that_cannot_work_is_found_when_planning(
    settings: dict[str, Any], changed: dict[str, Any], says: str
) -> None:
    (what,) = wrong({**settings, **changed})
    assert what.startswith(f"scheduler={settings['name']}: {says}")


def test_all_problems_are_found_at_once() -> None:
    found = wrong({**PBT, "interval": -1, "quantile": 2, "resample": -1}, validations=[])
    assert len(found) == 4


def test_the_median_needs_two_validations() -> None:
    (what,) = wrong(MEDIAN, validations=[45, 90])
    assert "only one validation before the last step, at 45 of 90" in what


def test_a_population_needs_something_to_change() -> None:
    (what,) = wrong(PBT, dims=[])
    assert "there is none" in what
    (what,) = wrong(PB2, dims=[Dim("loss", values=("a", "b"))])
    assert "loss has others: a, b" in what
    assert wrong(PBT, dims=[Dim("loss", values=("a", "b"))]) == []


@pytest.mark.parametrize("settings", [HYPERBAND, PBT, PB2], ids=lambda s: s["name"])
def test_those_that_go_on_from_checkpoints_need_them(settings: dict[str, Any]) -> None:
    (what,) = wrong(settings, checkpoints=[])
    assert "not saved: 10" in what
    assert wrong(settings, checkpoints=range(10, 91, 10)) == []
    assert wrong(ASHA, checkpoints=[]) == []


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("count", [2, 3, 8, 9, 10, 27, 50])
def test_the_rungs_that_the_plan_reckons_with_are_tunes(factor: int, count: int) -> None:
    made = make({**HYPERBAND, "reduction_factor": factor}, validations=range(1, count + 1), total_steps=count)
    tune = made.tune  # type: ignore[attr-defined]
    sizes = [tune._get_n0(s) for s in range(tune._s_max_1) if tune._get_r0(s)]
    expected = rules.hyperband_rungs(count, factor)
    assert len(sizes) == len(expected)
    assert [r[0] for r in expected[1:]] == [tune._get_r0(s) for s in range(1, len(sizes))]


def test_planning_does_not_load_ray() -> None:
    code = (
        "import sys; from sweeper.search import schedulers as s; "
        f"s.check({ASHA!r}, validations=[1, 2], total_steps=3, dims=[], checkpoints=[]); "
        "s.make({'name': 'none'}, [], mode='max', validations=[], total_steps=3, seed=0); "
        "sys.exit(any(m in sys.modules for m in ('ray', 'numpy', 'pandas', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
