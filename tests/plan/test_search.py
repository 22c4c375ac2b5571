"""A plan of a search: arms, dims, what can run, and everything that is wrong said at once."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from sweeper.config.hydra_app import initialized
from sweeper.errors import RequestError
from sweeper.plan import render
from sweeper.plan.plan import Plan, make
from sweeper.trial.identity import fingerprint

TPE, LR, KL = "search=tpe", "lr=tag(log,interval(1e-6,1e-3))", "kl=choice(0,1e-3)"
CRITIC = "critic.optim.lr=tag(log,interval(1e-6,1e-4))"
NODE = ("cluster=node_8gpu", "model=qwen7b", "environment=gsm8k")


@pytest.fixture(autouse=True, scope="module")
def _hydra() -> Iterator[None]:
    with initialized():
        yield


def refused(*lines: str) -> str:
    with pytest.raises(RequestError) as caught:
        make(lines)
    return str(caught.value)


def text(plan: Plan) -> str:
    out = io.StringIO()
    render.text(plan, out)
    return out.getvalue()


def names(plan: Plan) -> list[list[str]]:
    return [[dim.name for dim in arm.dims] for arm in plan.arms]


def test_seeds_run_every_arm_and_are_in_the_ids() -> None:
    plan = make(["algorithm=grpo,ppo", "seed=7,9"])
    assert [t.id for t in plan.trials] == ["000-s7", "000-s9", "001-s7", "001-s9"]
    assert [(t.candidate, t.seed, t.config["data"]["seed"]) for t in plan.trials[:2]] == [("000", 7, 7), ("000", 9, 9)]
    assert plan.search.seeds == (7, 9) and len(plan.arms) == 2


def test_search_seeds_count_from_the_seed_and_final_ones_are_others() -> None:
    plan = make(["seed=5", "search.seeds=3", "search.final_seeds=2"])
    assert plan.search.seeds == (5, 6, 7)
    assert len(plan.search.final_seeds) == 2 and not set(plan.search.final_seeds) & {5, 6, 7}
    assert [t.config["data"]["seed"] for t in plan.trials] == [5, 6, 7]
    assert plan.total == 5
    assert make(["seed=5", "search.seeds=3", "search.final_seeds=2"]).search == plan.search


def test_a_gpu_that_nobody_knows_is_said_where_its_hours_are_missing() -> None:
    plan = make([*NODE, "cluster.gpu=H1000"])
    assert plan.gpu_hours is None
    assert any("cluster.gpu=H1000" in note and "H100" in note for note in plan.notes)
    assert not any("GPU-hours" in note for note in make([*NODE]).notes)


def test_one_seed_is_the_configs_own() -> None:
    plan = make(["seed=5"])
    assert plan.search.seeds == (None,)
    assert [(t.id, t.candidate, t.seed, t.config["data"]["seed"]) for t in plan.trials] == [("000", "000", None, 5)]


def test_a_grid_lists_what_can_run_and_counts_what_cannot() -> None:
    plan = make([*NODE, "search=grid", "algorithm=grpo,rloo", "tp=choice(1,2,4,8)", "lr=choice(1e-6,1e-5)"])
    assert not plan.problems and len(plan.trials) == 12
    assert [dict(t.params) for t in plan.trials[:3]] == [
        {"tp": 1, "lr": 1e-6},
        {"tp": 1, "lr": 1e-5},
        {"tp": 2, "lr": 1e-6},
    ]
    arm = plan.arms[0]
    assert (arm.size, arm.looked, arm.budget) == (8, 8, 6)
    assert [(r.points, "tp=8 does not divide the 28" in r.why) for r in arm.removed] == [(2, True)]
    assert [t.id for t in plan.trials] == [plan.candidate_id(a, n) for a in (0, 1) for n in range(6)]
    assert "8 points, 2 removed: tp=8 does not divide" in text(plan)
    assert all(t.params["tp"] != 8 for t in plan.trials)


def test_a_grid_of_which_nothing_can_run_says_all_reasons_with_what_to_do() -> None:
    message = refused(*NODE, "search=grid", "tp=choice(3,8)", "lr=choice(1e-6,1e-5)")
    assert "none of the 4 points" in message and "(2)" in message
    assert "tp=3" in message and "tp=8" in message and "valid: tp: 1, 2, 4" in message


def test_a_grid_may_have_a_budget_and_seeds() -> None:
    plan = make(["search=grid", "lr=choice(1e-6,1e-5,1e-4)", "search.trials=2", "seed=1,2"])
    assert [(t.id, t.params["lr"]) for t in plan.trials] == [
        ("000-s1", 1e-6),
        ("000-s2", 1e-6),
        ("001-s1", 1e-5),
        ("001-s2", 1e-5),
    ]


def test_a_sampler_has_a_budget_an_example_and_no_trial_yet() -> None:
    plan = make([TPE, "algorithm=grpo,ppo", LR, KL, "search.seeds=2", "search.final_seeds=3"])
    assert plan.trials == [] and plan.search.trials == 20
    assert plan.total == 2 * 20 * 2 + 2 * 3
    for arm in plan.arms:
        assert arm.example is not None and not arm.example.trial.problems and arm.example.gang is not None
        assert arm.size is None
    assert [plan.candidate_id(a, n) for n in (0, 1) for a in (0, 1)] == ["000", "001", "002", "003"]
    assert "2 arms x 20 points x 2 seeds + 2 best points x 3 final seeds = 86 trials" in text(plan)


def test_an_arm_makes_and_refuses_trials_while_the_sweep_runs() -> None:
    (arm,) = make([*NODE, TPE, LR, KL, "tp=choice(1,2,4,8)"]).arms
    point = {"lr": 3e-5, "kl": 1e-3, "tp": 2}
    sized = arm.sized(point, seed=11, candidate="004", trial_id="004-s11", kind="final")
    trial = sized.trial
    assert (trial.id, trial.candidate, trial.seed, trial.kind, trial.arm) == ("004-s11", "004", 11, "final", "0")
    assert not trial.problems and sized.gang is not None and sized.cost is not None
    actor = trial.config["actor_rollout_ref"]["actor"]
    assert actor["optim"]["lr"] == 3e-5 and actor["use_kl_loss"] and actor["kl_loss_coef"] == 1e-3
    assert dict(trial.params) == point and "lr=3e-05" in trial.label
    assert arm.refuse(point) == ""
    assert "tp=8 does not divide" in arm.refuse({**point, "tp": 8})
    assert "outside" in arm.refuse({**point, "lr": 1.0}) and "missing" in arm.refuse({"lr": 1e-5, "kl": 0})
    assert arm.sized({**point, "tp": 8}, seed=None, candidate="5", trial_id="5").trial.problems


def test_idle_dims_are_left_out_where_they_cannot_matter() -> None:
    plan = make([TPE, "algorithm=grpo,ppo", LR, CRITIC])
    assert names(plan) == [["lr"], ["lr", "critic.optim.lr"]]
    assert any("critic.optim.lr is not searched: " in note and "algorithm=grpo" in note for note in plan.notes)


def test_a_dim_that_matters_somewhere_in_the_space_stays() -> None:
    (arm,) = make([TPE, "algorithm=choice(grpo,ppo)", LR, CRITIC]).arms
    assert [d.name for d in arm.dims] == ["algorithm", "lr", "critic.optim.lr"]
    assert arm.sized(
        {"algorithm": "ppo", "lr": 1e-5, "critic.optim.lr": 1e-5}, seed=None, candidate="0", trial_id="0"
    ).trial.config["binding"]["critic"]


PBT = ("trainer.save_freq=1", "trainer.test_freq=1", "trainer.total_training_steps=8")
SPACE = "+search.space.lr='tag(log,interval(1e-6,1e-3))'"


@pytest.mark.parametrize("when", ["algorithm: ppo", "algorithm: [ppo,rloo]", "binding.critic: true"])
def test_a_dim_of_the_config_may_belong_to_some_arms(when: str) -> None:
    only = f"+search.space.kl={{dim: 'choice(0,0.1)', when: {{{when}}}}}"
    plan = make([TPE, "algorithm=grpo,ppo", SPACE, only])
    assert names(plan) == [["lr"], ["lr", "kl"]]


WHEN = "+search.space.critic.optim.lr={{dim: 'interval(1e-5,1e-3)', when: {{{0}}}}}"


@pytest.mark.parametrize(
    ("lines", "when", "said"),
    [
        (["algorithm=choice(grpo,ppo)"], "algorithm: ppo", "algorithm is searched, so an arm has no one algorithm"),
        (["algorithm=choice(ppo)"], "algorithm: ppo", "algorithm is searched"),
        (["algorithm=choice(grpo,ppo)"], "binding.critic: true", "algorithm is searched, so binding.critic follows it"),
        (["kl=choice(0,0.1)"], "kl: 0.1", "kl=0,0.1 in place of kl=choice(0,0.1)"),
        (["kl=choice(0,0.1)"], "actor_rollout_ref.actor.kl_loss_coef: 0.1", "kl is searched"),
        ([LR], "actor_rollout_ref.actor.optim.lr: 1e-4", "search.space.critic.optim.lr without `when`"),
        ([SPACE], "lr: 1e-4", "lr is searched"),
        ([LR], "critic.optim.lr: 1e-4", "critic.optim.lr is searched"),
    ],
)
def test_a_dim_cannot_belong_to_a_value_of_another_dim(lines: list[str], when: str, said: str) -> None:
    found = refused(TPE, *lines, WHEN.format(when))
    assert found.startswith("search.space.critic.optim.lr.when.") and said in found
    assert found.count("  try: ") == 1


def test_what_to_do_about_a_dim_of_another_dims_value_can_be_done() -> None:
    found = refused(TPE, "algorithm=choice(grpo,ppo)", WHEN.format("algorithm: ppo"))
    assert "try:   algorithm=grpo,ppo in place of algorithm=choice(grpo,ppo)" in found
    assert names(make([TPE, LR, "algorithm=grpo,ppo", WHEN.format("algorithm: ppo")])) == [
        ["lr"],
        ["lr", "critic.optim.lr"],
    ]


@pytest.mark.parametrize("lines", [["search=random", "critic.optim.lr=interval(1e-5,1e-3)"],
    ["search=grid", "critic.optim.lr=choice(1e-5,1e-3)"], ["search=tpe", "algorithm=grpo,rloo", CRITIC]])  # fmt: skip
def test_dims_that_belong_to_no_arm_are_nothing_to_search(lines: list[str]) -> None:
    found = refused(*lines)
    assert found.startswith(f"{lines[0]} has nothing to search: arm ")
    assert "critic.optim.lr is not searched: " in found and "search=none" in found


def test_a_dim_whose_arm_is_not_there_is_said_and_alone_refused() -> None:
    found = refused(TPE, WHEN.format("algorithm: ppo"))
    assert "nothing to search: critic.optim.lr is not searched: no arm has algorithm=ppo" in found
    plan = make([TPE, LR, WHEN.format("algorithm: [ppo,rloo]")])
    assert names(plan) == [["lr"]]
    assert "critic.optim.lr is not searched: no arm has algorithm=ppo or rloo" in plan.notes


def test_nested_keys_of_the_config_are_dims_too() -> None:
    plan = make([TPE, "+search.space.actor_rollout_ref.rollout.n=[4,8]"])
    assert names(plan) == [["actor_rollout_ref.rollout.n"]]


def test_what_is_typed_replaces_the_dim_of_the_config() -> None:
    plan = make([TPE, SPACE, "lr=choice(1e-5,1e-4)", KL])
    assert plan.arms[0].dims[0].values == (1e-5, 1e-4)
    assert names(make([TPE, SPACE, "lr=1e-5", KL])) == [["kl"]]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([TPE], "nothing to search"),
        (["search=none", LR], "search=tpe 'lr="),
        (["search=grid", LR], "an interval has no steps"),
        (["search=grid", SPACE], "an interval has no steps"),
        ([TPE, "lrr=interval(0,1)"], "unknown key lrr"),
        ([TPE, LR, "search.trials=0"], "search.trials=20"),
        ([TPE, LR, "search.trials=-1"], "search.trials=-1"),
        ([TPE, LR, "search.seeds=0"], "search.seeds=0"),
        ([TPE, LR, "search.seeds=3", "seed=1,2"], "both say which seeds"),
        ([TPE, LR, "search.seeds=3", "seed=null"], "seed is null"),
        ([TPE, LR, "search.objectives=[speed]"], "[score,gpu_hours]"),
        ([TPE, LR, "search.objectives=[]"], "[score,gpu_hours]"),
        ([TPE, LR, "search.objectives=[score,gpu_hours]", "scheduler=asha", "trainer.test_freq=5"], "scheduler=none"),
        ([TPE, LR, "search.startup=-1"], "search.startup=-1"),
        (["search=nsga2", LR, "search.population=1"], "search.population=1"),
        (["search.trials=3"], "search=none searches nothing"),
        ([TPE, LR, "search.points=[{lr: 1}]"], "search.points[0]: lr=1 is outside"),
        ([TPE, LR, "search.points=[{lrx: 1e-4}]"], "lr: 0.0001"),
        ([TPE, LR, "search.points=[3]"], "a list of points"),
        ([TPE, LR, "search.constraints=['lr <']"], "invalid syntax"),
        ([TPE, LR, "search.constraints=['lrr < 1']"], "lr < 1"),
        ([TPE, LR, "search.constraints=['lr * 2']"], "not true or false"),
        ([TPE, LR, "search.constraints=['lr > 1']"], "constraint: not lr > 1"),
        ([TPE, LR, "+search.space.kl={dim: [0,1], when: {algorthm: ppo}}"], "there is no algorthm"),
        ([TPE, LR, "+search.space.kl={dim: [0,1], when: {algorithm: pppo}}"], "there is no algorithm=pppo"),
        ([TPE, LR, "+search.space.seed=[1,2]"], "search.seeds=3"),
        ([TPE, LR, "+search.space.store=[a,b]"], "belongs to the whole sweep"),
        ([TPE, LR, "objective.metric=val-core/nothing"], "objective.metric=auto"),
        ([TPE, LR, "scheduler=asha", "trainer.test_freq=-1"], "trainer.test_freq"),
        ([TPE, LR, "scheduler=pbt", "trainer.test_freq=5", "trainer.save_freq=-1"], "trainer.save_freq"),
        ([TPE, LR, "stop.patience=0"], "stop.patience=0"),
        ([TPE, LR, "failures.retries=-1"], "failures.retries=-1"),
        ([TPE, LR, "placement.probe=perhaps"], "auto, true, false"),
        ([TPE, LR, "trainer.n_gpus_per_node=64"], "trainer.n_gpus_per_node=64: a node of cluster local has"),
        ([TPE, LR, "cluster.gpus_per_node=64"], "cluster.gpus_per_node=64: a node of cluster local has"),
        ([TPE, LR, "cluster.nodes=2"], "cluster.nodes=2: cluster local has 1 node"),
    ],
)
def test_what_is_wrong_with_a_search(lines: list[str], said: str) -> None:
    assert said in refused(*lines)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["search.space={lr: interval(1e-3,1e-5)}"], "in quotes"),
        (["search.space={lr: [1e-4,1e-3]}"], '"+search.space={lr: [1e-4,1e-3]}"'),
        (["scheduler.reduction_factor=2"], "scheduler=asha scheduler.reduction_factor=2"),
        (["scheduler.grace_period=2"], "scheduler=asha scheduler.grace_period=2"),
        (["search.startup=5", "search=random", LR], "search=tpe"),
        (["stop.foo=1"], "stop.nan"),
        (["search.points={lr: 1e-4}", "search=random", LR], "a list of points"),
        (["search.constraints={a: 1}", "search=random", LR], "a list of expressions"),
        (["model=choice(tiny,qwen0.5b)", "search=random", "scheduler=pbt", *PBT], "another model"),
        (["algorithm=choice(grpo,rloo)", "search=random", "scheduler=pb2", *PBT], "algorithm=grpo,rloo   (arms"),
        (["search.trials=1000000000", "search=random", LR], "at most 100,000"),
        (["search.objectives=[gpu_hours]", "search=random", LR, "scheduler=asha"], "scheduler=asha goes by the score"),
        (["search.objectives=[gpu_hours]", "search=random", LR, "search.final_seeds=2"], "final_seeds=2 goes by"),
    ],
)
def test_what_is_no_option_here_says_where_it_is_one(lines: list[str], said: str) -> None:
    found = refused(*lines)
    assert said in found and "stop=1 " not in found


@pytest.mark.parametrize(
    ("lines", "valid", "fix"),
    [
        (["scheduler.foo=1"], "scheduler=asha: grace_period, reduction_factor, brackets, b", "leave scheduler.foo out"),
        (["scheduler=median", "scheduler.min_sample=1"], "scheduler.grace_period, ", "scheduler.min_samples=1"),
        (["stop.foo=1"], "stop.patience, stop.nan, stop.entropy_below, ", "leave stop.foo out"),
        (["+stop.foo=1"], "stop.patience, stop.nan, stop.entropy_below, ", "leave stop.foo out"),
        (["+scheduler.min_sample=1", "scheduler=median"], "scheduler.grace_period, ", "scheduler.min_samples=1"),
        (["+scheduler.brackets=1", "scheduler=median"], "scheduler.grace_period, ", "leave scheduler.brackets out"),
        (["stop.entropy_belo=1"], "stop.patience, stop.nan, stop.entropy_below, ", "stop.entropy_below=1"),
        (["search=tpe", "search.statup=3", LR], "search.objectives, search.startup", "search.startup=3"),
        (["search=tpe", "+search.space={lr: {dims: [1e-4,1e-3]}}"], "dim, when", "lr: {dim: [a, b], when: "),
        (["search=tpe", "search.space.lr=[1e-4,1e-3]"], "", '"+search.space.lr=[1e-4,1e-3]"'),
    ],
)
def test_a_key_that_a_section_of_ours_does_not_have_says_which_it_has(lines: list[str], valid: str, fix: str) -> None:
    found = refused(*lines)
    assert valid in found and f"try:   {fix}" in found and "verl" not in found and ".name" not in found


def test_keys_of_the_space_may_be_nested() -> None:
    plan = make(["search=random", "+search.space={actor_rollout_ref: {actor: {optim: {lr: [1e-4,1e-3]}}}}"])
    assert names(plan) == [["actor_rollout_ref.actor.optim.lr"]]


@pytest.mark.parametrize("line", ["trainer.test_freq=-1", "trainer.total_training_steps=0"])
def test_what_is_wrong_at_every_point_is_not_said_of_the_space(line: str) -> None:
    said = refused("search=random", LR, line)
    assert said.startswith(line) and "points" not in said and "space" not in said


def test_all_that_is_wrong_is_said_at_once() -> None:
    message = refused(
        TPE, LR, "search.points=[{lr: 1}]", "search.constraints=['lr <']", "search.seeds=2", "seed=1,2",
        "+search.space.kl=3",
    )  # fmt: skip
    for part in ("search.points[0]", "search.constraints", "both say", "search.space.kl"):
        assert part in message


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["search=grid", "lr=choice(1e-4,abc)"], "lr=choice(0.0001,abc): abc is no number"),
        (["search=grid", "kl=choice(0,o,p)"], "kl=choice(0,o,p): o, p are no numbers"),
        (["search=random", "actor_rollout_ref.actor.clip_ratio=choice(0.2,x)"], "valid: numbers, as 0.2"),
        (["search=random", "+search.space={lr: [1e-4, l]}"], "in place of l"),
    ],
)
def test_a_text_where_a_number_belongs_is_refused_and_no_point_that_cannot_run(lines: list[str], said: str) -> None:
    found = refused(*lines)
    assert said in found and "points" not in found and len(found.splitlines()) == 3


def test_a_choice_of_texts_where_a_text_belongs_is_searched() -> None:
    mode = "actor_rollout_ref.actor.loss_agg_mode=choice(token-mean,seq-mean-token-sum)"
    assert len(make(["search=grid", mode]).trials) == 2


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (["objective.metric=val-core/nothing"], ["objective.metric=val-core/nothing is nothing that verl writes"]),
        (["stop.patience=0", "seed=1,2", "search.seeds=3"], ["stop.patience=0", "both say which seeds"]),
        (["trainer.total_training_steps=0"], ["total_training_steps=0"]),
    ],
)
def test_a_wrong_objective_does_not_hide_what_else_is_wrong(lines: list[str], parts: list[str]) -> None:
    message = refused("objective.mode=most", *lines)
    assert message.startswith("objective.mode=most\n  valid: max, min\n")
    assert all(part in message for part in parts) and message.count("objective.mode=most") == 1


def test_known_points_come_first_in_every_arm_that_has_them() -> None:
    points = "search.points=[{lr: 1e-4, critic.optim.lr: 1e-5},{lr: 2e-4}]"
    plan = make([TPE, "algorithm=grpo,ppo", LR, CRITIC, points])
    assert [dict(p) for p in plan.arms[0].points] == [{"lr": 1e-4}, {"lr": 2e-4}]
    assert [dict(p) for p in plan.arms[1].points] == [{"lr": 1e-4, "critic.optim.lr": 1e-5}, {"lr": 2e-4}]
    # The second point leaves a dim of ppo open, which is for the sampler to fill.
    assert [(t.id, t.arm) for t in plan.trials] == [("000", "0"), ("002", "0"), ("001", "1")]


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_more_known_points_than_an_arm_runs_are_refused(sampler: str) -> None:
    lines = [f"search={sampler}", "lr=choice(1e-5,1e-4,1e-3)", "search.points=[{lr: 1e-5},{lr: 1e-3},{lr: 1e-5}]"]
    said = refused(*lines, "search.trials=1")
    assert said.startswith("search.points has 2 points for an arm, and search.trials=1 runs no more")
    assert "try:   search.trials=2" in said and "at most 1 point\n" in said
    assert make([*lines, "search.trials=2"]).total == 2


def test_constraints_take_points_out_and_intervals_are_looked_into() -> None:
    plan = make([TPE, LR, KL, "search.constraints=['lr > 1e-5 and lr < 1e-4', 'kl < 1']"])
    (arm,) = plan.arms
    assert arm.example is not None and 1e-5 < arm.example.trial.params["lr"] < 1e-4
    assert arm.refuse({"lr": 1e-6, "kl": 0}).startswith("constraint: not lr > 1e-5")
    assert sum(r.points for r in arm.removed) > 0


def test_an_endless_space_says_which_share_of_it_cannot_run() -> None:
    plan = make([TPE, LR, "search.constraints=['lr < 1.1e-6 or lr > 9.9e-4']"])
    (arm,) = plan.arms
    (removed,) = arm.removed
    assert removed.points > 0.9 * arm.looked, "the bounds of the interval can run, and hardly anything between them"
    assert f"{removed.points:,} removed: constraint: not lr < 1.1e-6" in text(plan)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["kl=interval(-1,0)"], "kl"),
        (["lr=interval(1e-5,1e-3)", "search.constraints=['lr < 1.0001e-5']"], "constraint: not lr < 1.0001e-5"),
    ],
)
def test_a_space_of_which_only_a_bound_can_run_is_refused(lines: list[str], why: str) -> None:
    said = refused("search=random", "search.trials=5", *lines)
    assert "none of 1,024 points" in said and why in said


def test_a_scheduler_saves_and_the_plan_says_how_much() -> None:
    plan = make([*NODE, TPE, LR, "scheduler=asha", "trainer.test_freq=5"])
    assert plan.gpu_hours is not None and plan.expected_gpu_hours is not None and plan.pruned is not None
    assert plan.expected_gpu_hours == pytest.approx(plan.gpu_hours * plan.pruned)
    assert 0 < plan.pruned < 0.5
    assert "asha ends trials early" in text(plan)
    assert make([*NODE, TPE, LR]).expected_gpu_hours is None


def test_a_scheduler_without_a_search_is_useless_and_no_mistake() -> None:
    plan = make(["scheduler=asha", "trainer.test_freq=5"])
    assert not plan.problems and any("with search=none each has one" in note for note in plan.notes)


def test_the_identity_of_an_arm_is_without_what_is_searched() -> None:
    def leaves(*lines: str) -> dict[str, Any]:
        return make([TPE, *lines]).arms[0].identity()

    found = leaves(LR, KL)
    assert "actor_rollout_ref.actor.optim.lr" not in found and "actor_rollout_ref.actor.use_kl_loss" not in found
    assert "data.seed" not in found and found["seed"] == 1
    assert found == leaves("lr=tag(log,interval(1e-7,1e-2))", "kl=choice(0,1e-2)")
    assert found == leaves(LR, KL, "search.trials=7", "search.seeds=3")
    assert found != leaves(LR, KL, "updates_per_step=1") and found != leaves(LR, KL, "seed=2")


def test_the_same_request_is_the_same_plan() -> None:
    lines = [TPE, "algorithm=grpo,ppo", LR, CRITIC, KL]
    first, second = make(lines), make(lines)
    assert json.dumps(render.as_json(first)) == json.dumps(render.as_json(second))
    for a, b in zip(first.arms, second.arms, strict=True):
        assert a.identity() == b.identity()


def test_the_json_says_all_of_it() -> None:
    found = render.as_json(make([TPE, "algorithm=grpo,ppo", LR, KL, "search.seeds=2", "scheduler=none"]))
    json.dumps(found)
    assert found["planned"] == 80 and found["search"]["sampler"] == "tpe" and found["search"]["seeds"] == [1, 2]
    assert found["arms"][0]["dims"][0] == {
        "key": "lr", "values": None, "low": 1e-6, "high": 1e-3, "log": True, "integer": False, "when": {},
    }  # fmt: skip
    assert found["arms"][0]["budget"] == 20 and found["arms"][0]["size"] is None


def test_plain_arms_look_as_they_did() -> None:
    said = text(make(["algorithm=grpo,ppo"]))
    assert said.startswith("plan: 2 trials on local") and "budget" not in said and "space" not in said


def test_an_experiment_may_choose_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeper.config import experiment

    monkeypatch.setattr(
        experiment, "load", lambda _name: {"hydra": {"sweeper": {"params": {"lr": "choice(1e-5,1e-4)"}}}}
    )
    plan = make(["experiment=grpo_vs_ppo", "search=grid"])
    assert [t.params["lr"] for t in plan.trials] == [1e-5, 1e-4]


MICRO = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"


def alike(*lines: str) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    return [(group.common, {a: dict(v) for a, v in group.values.items()}) for group in make(lines).alike]


def test_arms_that_differ_in_placement_only_are_found() -> None:
    plan = make([f"{MICRO}=4096,8192"])
    assert [dict(group.values) for group in plan.alike] == [{"0": {MICRO: 4096}, "1": {MICRO: 8192}}]
    assert any(f"differ in {MICRO} only" in note and "none is reused" in note for note in plan.notes)
    assert alike(*NODE, "algorithm=grpo,rloo", "tp=1,2") == [
        ("algorithm=grpo", {"0": {"tp": 1}, "1": {"tp": 2}}),
        ("algorithm=rloo", {"2": {"tp": 1}, "3": {"tp": 2}}),
    ]
    assert alike(*NODE, TPE, LR, KL, "tp=1,2") == [("", {"0": {"tp": 1}, "1": {"tp": 2}})]
    assert alike(*NODE, "search=grid", "lr=choice(1e-6,1e-5)", "tp=1,2") != []


@pytest.mark.parametrize("line", ["algorithm=grpo,rloo", "lr=1e-6,1e-5", "kl=0,1e-3", "seed=1,2", "deterministic=true"])
def test_arms_that_differ_in_what_they_compute_are_not_alike(line: str) -> None:
    assert alike(line) == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["kl=0,0.0"], "kl=0 and kl=0.0 are one and the same arm: "),
        (["kl=0,0.0,-0.0"], "kl=0, kl=0.0 and kl=-0.0 are one and the same arm: "),
        ([TPE, LR, "kl=0,0.0"], "kl=0 and kl=0.0 are one and the same arm: "),
        (["algorithm=grpo,ppo", "kl=0,0.0"], "same arm (with algorithm=grpo; algorithm=ppo): "),
        ([f"{MICRO}=4096,8192", "kl=0,0.0"], f"same arm (with {MICRO}=4096; {MICRO}=8192): "),
    ],
)  # fmt: skip
def test_an_arm_that_is_there_twice_is_refused_by_both_names(lines: list[str], said: str) -> None:
    found = refused(*lines)
    assert found.startswith("kl=0") and said in found and "try:   kl=0 alone" in found
    assert found.count("one and the same") == 1


def test_arms_that_differ_in_a_key_that_is_not_read_are_trained_once() -> None:
    plan = make(["algorithm=grpo,ppo", "critic.optim.lr=1e-4,1e-3"])
    assert [(t.id, t.label) for t in plan.trials] == [
        ("000", "algorithm=grpo critic.optim.lr=0.0001"),
        ("001", "algorithm=ppo critic.optim.lr=0.0001"),
        ("002", "algorithm=ppo critic.optim.lr=0.001"),
    ]
    assert [arm.id for arm in plan.arms] == ["0", "1", "2"]
    said = "also for algorithm=grpo critic.optim.lr=0.001: critic.optim.lr is not read (there is no critic)"
    assert said in text(plan) and len(plan.untrained) == 1
    alone = make(["algorithm=grpo", "critic.optim.lr=1e-4"]).trials[0]
    assert fingerprint(dict(plan.trials[0].config)) == fingerprint(dict(alone.config))


def test_a_key_that_is_not_read_is_neither_in_a_search_nor_beside_a_placement() -> None:
    searched = make([TPE, LR, "algorithm=grpo,ppo", "critic.optim.lr=1e-4,1e-3"])
    assert [arm.label.partition(" ")[0] for arm in searched.arms] == [
        "algorithm=grpo",
        "algorithm=ppo",
        "algorithm=ppo",
    ]
    placed = make([f"{MICRO}=4096,8192", "critic.optim.lr=1e-4,1e-3"])
    assert len(placed.trials) == 2 and len(placed.alike) == 1
    everywhere = ["search=grid", "algorithm=choice(grpo,ppo)", "critic.optim.lr=1e-4,1e-3"]
    assert len(make(everywhere).trials) == 4 and make(everywhere).untrained == ()  # it is read in points of each arm


def test_many_arms_that_another_stands_for_are_counted() -> None:
    values = ",".join(f"{n}e-4" for n in range(1, 7))
    plan = make([f"critic.optim.lr={values}", "lr=1e-6,1e-5,1e-4,1e-3"])
    assert len(plan.trials) == 4
    assert len(plan.untrained) == 3 and "; and 2 more: " in plan.untrained[0]
    assert plan.untrained[-1].endswith("; and so on for 1 more")


def test_values_that_python_takes_for_equal_are_arms_of_their_own() -> None:
    plan = make(["+data.extra=1,true"])
    assert len(plan.trials) == 2 and plan.alike == ()


def test_a_cheap_plan_shows_its_cost() -> None:
    said = text(make(["model=qwen7b", "cluster=two_nodes_8gpu", "algorithm=grpo,ppo"])).splitlines()
    (line,) = [line for line in said if line.endswith("an estimate from above on tokens")]
    assert 0 < float(line.split()[1]) < 0.1
