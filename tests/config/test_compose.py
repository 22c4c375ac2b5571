"""The quick way to a config gives what Hydra's own compose gives, and every refusal says what to type instead."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sweeper.config import compose as quick
from sweeper.config import tree
from sweeper.config.compose import compose_points
from sweeper.config.space import read
from sweeper.errors import RequestError


def hydra(*lines: str) -> dict[str, Any]:
    """The reference: Hydra alone."""
    config = OmegaConf.to_container(compose("config", overrides=list(lines)), resolve=True)
    assert isinstance(config, dict)
    return config  # type: ignore[return-value]


def refused(*lines: str) -> list[str]:
    with pytest.raises(RequestError) as caught:
        compose_points(read(lines).arms)
    return ["\n".join(p.lines()) for p in caught.value.problems]


def same(a: Any, b: Any) -> bool:
    """Equal with equal types: 1 is not 1.0 nor True."""
    return list(tree.leaves(a)) == list(tree.leaves(b)) and repr(a) == repr(b)


ROLLOUT, ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"

# Each of them is read by interpolations, directly or through others, or has one of the forms `+`, `++`, list, null.
SWEPT: list[tuple[str, list[str]]] = [
    ("algorithm", ["grpo", "ppo", "dapo", "dr_grpo"]),
    ("model", ["tiny", "qwen7b"]),
    ("cluster", ["local", "two_nodes_8gpu"]),
    (f"{ROLLOUT}.n", ["1", "2", "8", "0"]),
    ("responses_per_step", ["64", "256"]),
    ("updates_per_step", ["1", "2"]),
    ("binding.group", ["2", "16"]),
    ("data.max_prompt_length", ["32", "33"]),
    ("data.max_response_length", ["5", "1024"]),
    ("data.train_batch_size", ["7", "64"]),
    (f"{ACTOR}.strategy", ["fsdp", "fsdp2"]),
    (f"{ACTOR}.use_dynamic_bsz", ["true", "false"]),
    (f"{ACTOR}.ppo_micro_batch_size_per_gpu", ["null", "4"]),
    (f"{ACTOR}.loss_agg_mode", ["token-mean", "'seq-mean-token-sum'"]),
    (f"{ACTOR}.checkpoint.save_contents", ["[model]", "[model,optimizer]"]),
    (f"{ACTOR}.fsdp_config.qat.mode", ["w4a16", "nvfp4"]),
    ("actor_rollout_ref.model.path", ["/a/b", "'x y'", "null"]),
    ("actor_rollout_ref.model.mtp.enable", ["true", "false"]),
    ("critic.ppo_max_token_len_per_gpu", ["1024", "2048"]),
    ("trainer.n_gpus_per_node", ["2", "4"]),
    ("trainer.experiment_name", ["a", "b"]),
    ("global_profiler.tool", ["nsys", "null"]),
    ("global_profiler.global_tool_config.nsys.discrete", ["true", "false"]),
    ("lr", ["1e-6", "${critic.optim.lr}"]),
    ("kl", ["0", "0.0", "1", "0.001", "true"]),
    ("+environment.extra", ["1", "x"]),
    ("++critic.optim.lr", ["1e-3", "2e-3"]),
    ("+trainer.note", ["'a'", "{k:1}"]),
]
PLAIN = [
    "~trainer.esi_redundant_time",
    "+data.more.deep=3",
    "seed=5",
    "++data.shuffle=false",
    "search=grid",
    "store=/x",
]


@settings(max_examples=8)  # each is several composes by Hydra, at 130 ms
@given(
    st.lists(st.sampled_from(SWEPT), max_size=4, unique_by=lambda s: s[0]).flatmap(
        lambda chosen: st.tuples(
            *(
                st.lists(st.sampled_from(v), min_size=1, unique=True).map(lambda vs, k=k: f"{k}={','.join(vs)}")
                for k, v in chosen
            )
        )
    ),
    st.lists(st.sampled_from(PLAIN), max_size=3, unique=True),
    st.randoms(use_true_random=False),
)
def test_every_point_is_what_hydra_composes(swept: tuple[str, ...], plain: list[str], random: Any) -> None:
    lines = [*swept, *plain]
    random.shuffle(lines)
    space = read(lines).arms
    chosen = random.sample(range(len(space)), min(3, len(space)))
    try:
        composed = compose_points([space[i] for i in chosen])
    except RequestError as error:  # pragma: no cover - would be a combination that does not compose at all
        pytest.fail(str(error))
    for index, item in zip(chosen, composed, strict=True):
        assert item.point is space[index]
        assert same(item.config, hydra(*item.point.overrides)), item.point.overrides


def test_an_override_of_what_is_around_a_swept_key_keeps_its_place() -> None:
    for lines in (
        ["trainer.v1.sampler.max_off_policy_threshold=1,2", "++trainer.v1.sampler={max_off_policy_threshold:9}"],
        ["++trainer.v1.sampler={max_off_policy_threshold:9}", "trainer.v1.sampler.max_off_policy_threshold=1,2"],
    ):
        for item in compose_points(read(lines).arms):
            assert same(item.config, hydra(*item.point.overrides))


def test_configs_share_nothing_that_can_be_changed() -> None:
    first, second = compose_points(read(["lr=1,2"]).arms)
    first.config["actor_rollout_ref"]["actor"]["optim"]["betas"][0] = "changed"
    first.config["critic"]["optim"].clear()
    assert second.config["actor_rollout_ref"]["actor"]["optim"]["betas"][0] == 0.9
    assert second.config["critic"]["optim"]


def test_explicit_is_what_was_typed_as_values_of_keys() -> None:
    (item,) = compose_points(
        read(
            [
                "model=qwen7b",
                f"{ROLLOUT}.n=4",
                "+a.b={c:1,d:{e:2}}",
                "kl=${lr}",
                "~trainer.esi_redundant_time",
                "tp=null",
            ]
        ).arms
    )
    assert item.explicit == {f"{ROLLOUT}.n": 4, "a.b.c": 1, "a.b.d.e": 2, "kl": 1e-6, "tp": None}


def test_a_script_of_verl_pastes_unchanged() -> None:
    script = """algorithm.adv_estimator=grpo data.train_files=['/d/a.parquet','/d/b.parquet'] data.train_batch_size=1024
        actor_rollout_ref.model.path=Qwen/Qwen3-8B actor_rollout_ref.actor.optim.lr=1e-6
        actor_rollout_ref.actor.use_kl_loss=True
        +actor_rollout_ref.model.override_config.attn_implementation=eager trainer.logger=["console","wandb"]
        actor_rollout_ref.rollout.tensor_model_parallel_size=2 trainer.nnodes=1 model_engine=dp trainer.test_freq=5"""
    (item,) = compose_points(read(script.split()).arms)
    assert item.config["data"]["train_files"] == ["/d/a.parquet", "/d/b.parquet"]
    assert item.config["actor_rollout_ref"]["actor"]["use_kl_loss"] is True
    assert item.config["trainer"]["logger"] == ["console", "wandb"]
    assert item.config["actor_rollout_ref"]["model"]["override_config"] == {"attn_implementation": "eager"}


@pytest.mark.parametrize(
    ("line", "what", "fix"),
    [
        ("trainer.nnode=2", "unknown key trainer.nnode", "trainer.nnodes=2"),
        (f"{ACTOR}.lr=1e-6", f"unknown key {ACTOR}.lr", f"{ACTOR}.optim.lr=1e-06"),
        ("responses_per_stp=2", "unknown key responses_per_stp", "responses_per_step=2"),
        ("trainer.nnodes.x=true", "trainer.nnodes is a value", "trainer.nnodes=true"),
        ("+trainer.nnodes=2", "there already", "trainer.nnodes=2"),
        ("~trainer.nnode", "no trainer.nnode to delete", "valid: trainer.nnodes"),
        (f"{ROLLOUT}.tp_size_check=False", "tp_size_check is not a key of verl 0.9.1", "leave"),
        ("actor_rollout_ref.rollout_filter_strategy=std", "RAGEN", "leave"),
        ("agent.num_chains=8", "AgentFly", f"{ROLLOUT}.n=8"),
        ("agent.agent_type=react", "AgentFly", "leave"),
        ("dataset.train_bs_n_seqs=32", "AReaL", "data.train_batch_size=32"),
        ("critic.model.fsdp_config.param_offload=True", "critic.fsdp.param_offload", "critic.fsdp.param_offload=true"),
        ("ray_init.num_cpus=4", "ray_kwargs.ray_init.num_cpus", "ray_kwargs.ray_init.num_cpus=4"),
        ("custom_reward_function.path=r.py", "moved to", "reward.custom_reward_function.path=r.py"),
        ("reward_model.reward_manager=dapo", "moved to", "reward.reward_manager.name=dapo"),
        (
            "+reward_model.reward_kwargs.max_resp_len=9",
            "moved to reward.reward_kwargs.max_resp_len",
            "+reward.reward_kwargs.max_resp_len=9",
        ),
    ],
)
def test_a_key_that_is_not_there_is_explained(line: str, what: str, fix: str) -> None:
    (problem,) = refused(line)
    assert what in problem.splitlines()[0]
    assert fix in problem


@pytest.mark.parametrize("line", ["+trainer.extra_key=1", "++trainer.nnodes=2", "~trainer.esi_redundant_time"])
def test_hydras_own_ways_to_add_and_delete_work(line: str) -> None:
    (item,) = compose_points(read([line]).arms)
    assert same(item.config, hydra(line))


def test_what_is_said_to_be_typed_instead_composes() -> None:
    problems = refused("trainer.nnode=2", "critic.model.fsdp_config.param_offload=True", "agent.num_chains=8")
    fixes = [p.split("try:   ")[1].split("  or,")[0] for p in problems]
    assert len(fixes) == 3
    assert compose_points(read(fixes).arms)


def test_all_problems_of_all_trials_come_at_once_each_with_its_trials() -> None:
    problems = refused("algorithm=grpo,ppo", "trainer.nnode=1,2", "critic.optimm.lr=3")
    assert [p.splitlines()[0] for p in problems] == ["unknown key trainer.nnode", "unknown key critic.optimm.lr"]
    (problem,) = refused("algorithm=grpo,ppo", "reward_model.enable=false,null")
    assert "(2 of 4 trials)" in problem


def test_an_interpolation_to_nowhere_is_a_problem() -> None:
    (problem,) = refused("kl=${no.such.key}")
    assert "no.such.key" in problem and "kl" in problem


def test_a_thousand_points_are_a_few_composes_by_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = ",".join(f"{i}e-7" for i in range(1, 126))
    space = read(["algorithm=grpo,ppo", f"lr={rates}", f"{ROLLOUT}.n=1,2,4,8"]).arms
    assert len(space) == 1000
    asked: list[Any] = []
    from sweeper.config import compose as module

    def by_hydra(*args: Any, **named: Any) -> Any:
        asked.append(args)
        return real(*args, **named)

    real = module.compose
    monkeypatch.setattr(module, "compose", by_hydra)
    composed = compose_points(space)
    assert len(asked) <= 4, "one for each choice of groups, and not one for each point"
    probe = composed[777]
    assert same(probe.config, hydra(*probe.point.overrides))


def test_lines_are_parsed_as_hydra_parses_them() -> None:
    parser = OverridesParser.create()
    for line in ["a='x'", "+a.b=1", "~a", "a={b:[1,2]}", "a=null"]:
        assert quick.grammar.parse(line).value() == parser.parse_override(line).value()
