"""What the end of a sweep says: who is ahead, who cannot be told apart, what was ended and why."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sweeper.engines.base import Progress
from sweeper.report import table
from sweeper.report.rows import Alike, Request
from sweeper.report.standings import standings
from sweeper.search.base import Stop
from sweeper.search.guard import Flag
from sweeper.search.history import Curve
from sweeper.trial.records import to_json
from sweeper.trial.spec import Point, Trial


@dataclass
class FakeOutcome:
    """A trial that was never run."""

    trial: Trial
    state: str = "finished"
    curve: Curve = field(default_factory=Curve)
    elapsed_s: float = 60.0
    gpu_hours: float = 0.5
    tokens_per_s: float | None = 1000.0
    root_cause: tuple[str, ...] = ()
    failure: str = ""
    stop: Stop | None = None
    folder: Path | None = None
    run_id: str | None = None
    reused: str = ""
    flagged: Flag | None = None


def outcome(
    candidate: str,
    score: float | None,
    *,
    arm: str = "0",
    seed: int | None = None,
    params: Mapping[str, Any] | None = None,
    kind: str = "search",
    **facts: Any,
) -> FakeOutcome:
    params = dict(params or {})
    name = candidate if seed is None else f"{candidate}-s{seed}"
    trial = Trial(
        name if kind == "search" else f"{name}-final",
        Point((), {"algorithm": ["grpo", "ppo", "rloo"][int(arm)], **params}),
        {},
        arm=arm,
        candidate=candidate,
        seed=seed,
        params=params,
        kind=kind,
    )
    curve = Curve()
    curve.add(Progress(0, {}, score=0.1))
    curve.add(Progress(20, {}, score=score, reward=0.5))
    return FakeOutcome(trial, curve=curve, **facts)


ARMS = {"0": "algorithm=grpo", "1": "algorithm=ppo", "2": "algorithm=rloo"}
ASKED = Request(arms=ARMS)


def shown(outcomes: Sequence[FakeOutcome], request: Request = ASKED) -> str:
    out = io.StringIO()
    table.render(outcomes, out, request)
    assert "\x1b" not in out.getvalue()
    return out.getvalue()


def seeds(arm: str, scores: Sequence[float], candidate: str = "", **facts: Any) -> list[FakeOutcome]:
    return [outcome(candidate or f"00{arm}", s, arm=arm, seed=i, **facts) for i, s in enumerate(scores, 1)]


def test_one_trial_is_a_simple_table_without_a_word_on_arms() -> None:
    text = shown([outcome("000", 0.6)], Request())
    assert "0.600" in text and "finished" in text
    assert "arm" not in text and "told apart" not in text


def test_arms_of_one_trial_are_a_simple_table_and_the_best_is_marked() -> None:
    text = shown([outcome("000", 0.5), outcome("001", 0.6, arm="1")])
    assert "001*" in text and "000*" not in text
    assert text.index("001*") < text.index("000 ")
    assert "one seed says nothing" in text and "search.seeds=3" in text


def test_one_final_seed_tells_no_arms_apart_and_more_final_seeds_are_what_would() -> None:
    tuned = [outcome(str(arm), 0.4, arm=str(arm), seed=seed) for arm in (0, 1) for seed in (1, 2)]
    finals = [outcome(str(arm), 0.5 - arm / 10, arm=str(arm), seed=1001, kind="final") for arm in (0, 1)]
    text = shown([*tuned, *finals])
    assert "one final seed says nothing" in text and "search.final_seeds=3" in text


@pytest.mark.parametrize("seeded", [False, True], ids=["simple", "candidates"])
def test_what_the_guard_flagged_is_marked_with_a_note(seeded: bool) -> None:
    flag = Flag(3, 0.2, 0.05, 1, {"rollout.tensor_model_parallel_size": 4})
    first = seeds("0", [0.5, 0.6]) if seeded else [outcome("000", 0.5)]
    first[-1].flagged = flag
    trials = [*first, *(seeds("1", [0.8, 0.9]) if seeded else [outcome("001", 0.6, arm="1")])]
    text = shown(trials)
    row, fine = (next(line for line in text.splitlines() if line.startswith(id)) for id in ("000", "001"))
    assert "!" in row and "!" not in fine
    assert f"! {first[-1].trial.id}, step 3 with tp=4" in text and "placement.mismatch_above=0.05" in text
    data = {r["trial"]: r["flagged"] for r in table.rows(trials, ASKED)}
    assert data.pop(first[-1].trial.id) == flag.as_dict()
    assert set(data.values()) == {None}
    many = [outcome(f"{i:03d}", 0.5, flagged=flag) for i in range(table.MAX_DETAILS + 2)]
    assert "! ... and 2 more flagged trials" in shown(many)


def test_arms_that_cannot_be_told_apart_are_named_with_the_seeds_that_would() -> None:
    text = shown([*seeds("0", [0.5, 0.6, 0.55]), *seeds("1", [0.52, 0.58, 0.50])])
    assert "algorithm=grpo and algorithm=ppo cannot be told apart" in text
    assert "more seeds each would tell" in text
    assert "0.550 (0.500 to 0.600)" in text, "mean and interval"


def test_arms_that_differ_are_said_to() -> None:
    text = shown([*seeds("0", [0.50, 0.51, 0.52]), *seeds("1", [0.80, 0.82, 0.81])])
    assert "algorithm=ppo and algorithm=grpo differ: difference 0.3" in text
    assert "told apart" not in text.replace("differ:", "")


def test_final_scores_decide_where_there_are_some_and_are_never_mixed_with_tuning_scores() -> None:
    outcomes = [
        *seeds("0", [0.90, 0.92]),
        *seeds("1", [0.70, 0.72]),
        *seeds("0", [0.50, 0.52], kind="final"),
        *seeds("1", [0.60, 0.62], kind="final"),
    ]
    found = standings(outcomes, ASKED)
    assert [a.id for a in found.arms] == ["1", "0"]
    assert found.arms[1].final_scores == [0.50, 0.52]
    assert found.arms[1].tuning_scores == [0.90, 0.92]
    assert [(v.kind, round(v.difference.mean, 3)) for v in found.versus] == [("final", 0.1)]
    text = shown(outcomes)
    assert "final score" in text and "score of the search" in text
    assert "2 and 2 final seeds" in text


def test_an_arm_whose_final_seeds_failed_is_behind_those_that_have_them_and_compared_by_tuning_scores() -> None:
    outcomes = [
        *seeds("0", [0.90, 0.92]),
        *seeds("0", [0.0, 0.0], kind="final", state="failed"),
        *seeds("1", [0.70, 0.72]),
        *seeds("1", [0.60, 0.62], kind="final"),
    ]
    found = standings(outcomes, ASKED)
    assert [a.id for a in found.arms] == ["1", "0"]
    assert [v.kind for v in found.versus] == ["tuning"]


def test_a_score_that_the_best_was_chosen_by_is_said_to_be_on_the_high_side() -> None:
    outcomes = [*seeds("0", [0.5, 0.6]), *seeds("0", [0.4, 0.4], "002"), *seeds("1", [0.52, 0.58])]
    assert "on the high side" in shown(outcomes)


def test_a_candidate_of_which_a_seed_failed_is_behind_those_that_finished() -> None:
    outcomes = [
        *seeds("0", [0.5, 0.5], "000"),
        outcome("001", 0.9, seed=1),
        outcome("001", None, seed=2, state="failed", failure="bug"),
    ]
    found = standings(outcomes, ASKED)
    assert [c.id for c in found.candidates] == ["000", "001"]
    assert found.best is not None and found.best.id == "000"
    text = shown(outcomes)
    assert "1 of 2" in text and "failed: bug" in text and "failed: 1 bug (001-s2)" in text


def test_what_was_pruned_is_shown_with_its_type_and_a_health_rule_with_its_figures() -> None:
    worse = Stop("worse", "asha: 0.1 at step 10", {"score": 0.1}, 10)
    sick = Stop(
        "kl-blow-up", "KL to the policy before the update is 3, above 1 for 5 steps on end (6 to 10)", {"kl": 3.0}
    )
    outcomes = [
        outcome("000", 0.5, params={"lr": 1e-4}),
        outcome("001", 0.9, params={"lr": 1e-3}, state="pruned", stop=worse),
        outcome("002", 0.2, params={"lr": 1e-2}, state="pruned", stop=sick),
    ]
    text = shown(outcomes)
    assert "000*" in text, "what was pruned with a better score at an earlier step is not the best"
    assert "pruned: worse" in text
    assert "pruned: 1 worse, 1 kl-blow-up" in text
    assert "002 kl-blow-up: KL to the policy before the update is 3" in text
    rows = {r["trial"]: r for r in table.rows(outcomes, ASKED)}
    assert (rows["002"]["reason"], rows["002"]["evidence"]) == ("kl-blow-up", {"kl": 3.0})


def test_reused_trials_are_marked_and_what_they_cost_is_not_counted_again() -> None:
    outcomes = [outcome("000", 0.5), outcome("001", 0.6, reused="monday/004", gpu_hours=7.0)]
    assert "finished (monday/004)" in shown(outcomes)
    arm = standings(outcomes, ASKED).arms[0]
    assert (arm.steps, arm.hours) == (20, 0.5)


def test_a_placement_that_is_searched_is_reported_apart_by_throughput_and_by_score() -> None:
    outcomes = [
        outcome("000", 0.50, params={"tp": 1, "lr": 1e-4}, tokens_per_s=1000.0),
        outcome("001", 0.52, params={"tp": 1, "lr": 1e-3}, tokens_per_s=1000.0),
        outcome("002", 0.51, params={"tp": 2, "lr": 1e-4}, tokens_per_s=1500.0),
        outcome("003", 0.49, params={"tp": 2, "lr": 1e-3}, tokens_per_s=1500.0),
    ]
    asked = Request(arms=ARMS, placement=("tp",))
    text = shown(outcomes, asked)
    assert "placement tp=2 in algorithm=grpo: 1,500 tokens/s over 2 candidates, 1.50 x that of tp=1" in text
    assert "not told apart from tp=1" in text
    effects = table.summary(outcomes, asked)["placement"]
    assert [(e["dim"], e["value"], e["tokens_per_s"]["mean"]) for e in effects] == [
        ("tp", 1, 1000.0),
        ("tp", 2, 1500.0),
    ]


def test_arms_that_differ_in_placement_only_are_reported_apart_as_a_searched_placement_is() -> None:
    outcomes = [
        outcome("000", 0.50, tokens_per_s=1000.0),
        outcome("001", 0.52, arm="1", tokens_per_s=1500.0),
        outcome("002", 0.40, arm="2", tokens_per_s=9000.0),
    ]
    asked = Request(arms=ARMS, alike=(Alike("lr=1e-5", {"1": {"tp": 2}, "0": {"tp": 1}}),))
    text = shown(outcomes, asked)
    assert "placement tp=1 in lr=1e-5: 1,000 tokens/s over 1 candidate; score 0.500" in text
    assert "placement tp=2 in lr=1e-5: 1,500 tokens/s over 1 candidate, 1.50 x that of tp=1; score 0.520" in text
    effects = table.summary(outcomes, asked)["placement"]
    assert [(e["arm"], e["arms"], e["dim"], e["value"]) for e in effects] == [
        ("0", ["0"], "tp", 1),
        ("1", ["1"], "tp", 2),
    ]


def test_each_of_several_placements_is_taken_over_the_values_of_the_others() -> None:
    outcomes = [outcome(f"00{arm}", 0.5, arm=str(arm), tokens_per_s=1000.0 * (arm + 1)) for arm in range(3)]
    values = {"0": {"tp": 1, "offload": False}, "1": {"tp": 1, "offload": True}, "2": {"tp": 2, "offload": True}}
    effects = table.summary(outcomes, Request(arms=ARMS, alike=(Alike("", values),)))["placement"]
    assert [(e["dim"], e["value"], sorted(e["arms"]), e["tokens_per_s"]["mean"]) for e in effects] == [
        ("tp", 1, ["0", "1"], 1500.0),
        ("tp", 2, ["2"], 3000.0),
        ("offload", False, ["0"], 1000.0),
        ("offload", True, ["1", "2"], 2500.0),
    ]


def test_two_objectives_have_a_front() -> None:
    pytest.importorskip("sweeper.search.pareto")
    outcomes = [
        outcome("000", 0.5, gpu_hours=1.0),
        outcome("001", 0.9, gpu_hours=5.0),
        outcome("002", 0.4, gpu_hours=2.0),
        outcome("003", float("nan"), gpu_hours=0.1),
    ]
    asked = Request(arms=ARMS, objectives=("score", "gpu_hours"))
    assert table.summary(outcomes, asked)["front"] == ["001", "000"]
    text = shown(outcomes, asked)
    assert "001*^" in text and "000 ^" in text and "002 ^" not in text
    assert "on the Pareto front of score, gpu_hours: 001, 000" in text


@pytest.mark.parametrize(
    ("outcomes", "why"),
    [
        ([outcome("000", 0.5, state="failed", failure="bug")], "no candidate has finished"),
        (
            [outcome("000", 0.5, seed=1), outcome("000", 0.5, seed=2, state="stopped")],
            "no candidate has finished under all its seeds",
        ),
        (
            [outcome("000", math.nan), outcome("001", math.nan)],
            "no candidate that finished has a score that is a number",
        ),
    ],
)
def test_an_empty_front_says_why(outcomes: list[Any], why: str) -> None:
    text = shown(outcomes, Request(arms=ARMS, objectives=("score", "gpu_hours")))
    assert f"on the Pareto front of score, gpu_hours: none, for {why}\n" in text


def test_the_lowest_is_best_where_the_objective_says_so() -> None:
    outcomes = [outcome("000", 0.5), outcome("001", 0.6)]
    assert [r["trial"] for r in table.rows(outcomes, Request(mode="min"))] == ["000", "001"]
    assert "000*" in shown(outcomes, Request(mode="min"))


def test_thousands_of_trials_fit_a_screen_and_every_failure_is_named() -> None:
    outcomes = [outcome(f"{i:04d}", i / 5000, params={"lr": i}) for i in range(3000)]
    outcomes += [outcome("9999", None, params={"lr": 1}, state="failed", failure="bug")]
    text = shown(outcomes)
    assert len(text.splitlines()) < 60
    assert "2999*" in text and "failed: 1 bug (9999)" in text and "3,000" not in text.splitlines()[1]
    assert "and 2981 more candidates" in text


def test_values_that_look_like_markup_are_printed_as_they_are() -> None:
    assert "[red]x[/red]" in shown([outcome("000", 0.5, params={"p": "[red]x[/red]"}), outcome("001", 0.4)])


def test_rows_are_plain_data_with_all_that_is_known() -> None:
    row = table.rows([outcome("003", 0.5, seed=2, params={"lr": 1e-4}, reused="a/001", run_id="r")], ASKED)[0]
    wanted = {
        "trial": "003-s2", "candidate": "003", "arm": "0", "seed": 2, "kind": "search", "params": {"lr": 1e-4},
        "state": "finished", "reason": "", "reused": "a/001", "tokens_per_s": 1000.0, "gpu_hours": 0.5,
        "final_score": 0.5, "run_id": "r",
    }  # fmt: skip
    assert {k: row[k] for k in wanted} == wanted
    json.loads(to_json(row))


states = st.sampled_from(["finished", "pruned", "failed", "stopped", "paused", "waiting", "running"])
anything = st.builds(
    outcome,
    st.sampled_from(["000", "001", "002"]),
    st.none() | st.floats(allow_nan=True, allow_infinity=True),
    arm=st.sampled_from("012"),
    seed=st.integers(1, 3),
    kind=st.sampled_from(["search", "search", "final"]),
    params=st.fixed_dictionaries({"tp": st.sampled_from([1, 2, None, "x"])}),
    state=states,
    stop=st.none() | st.just(Stop("worse", "w")),
    tokens_per_s=st.none() | st.just(10.0),
)


@settings(max_examples=40)
@given(st.lists(anything, max_size=12))
@example([outcome("000", score, state="finished", arm="0", seed=seed) for seed, score in ((1, 0.1), (2, 1.9e154))])
def test_whatever_came_of_the_trials_there_is_a_report_and_it_counts_them_all(outcomes: list[FakeOutcome]) -> None:
    asked = Request(arms={"0": "a"}, placement=("tp",))
    text = shown(outcomes, asked)
    assert text
    found = table.summary(outcomes, asked)
    assert sum(sum(a["states"].values()) for a in found["arms"]) == len(outcomes) == len(table.rows(outcomes, asked))
    json.loads(to_json(found))
