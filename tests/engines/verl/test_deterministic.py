"""`deterministic` and `keep.last`: what they write into verl's keys, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from sweeper.config import tree
from sweeper.config.compose import compose_points
from sweeper.config.hydra_app import initialized
from sweeper.config.space import read
from sweeper.engines.base import Shape
from sweeper.engines.verl.engine import VerlEngine
from sweeper.errors import Problem
from sweeper.trial.identity import fingerprint

CPU = Shape("local", "cpu", nodes=1, gpus_per_node=2, gpu_memory_gib=8)
CUDA = Shape("node_8gpu", "cuda", nodes=1, gpus_per_node=8, gpu="H100", gpu_memory_gib=79.6)
ON_CUDA = ["model=qwen7b", "cluster=node_8gpu", "environment=gsm8k", "data.train_files=train.parquet"]
POLICY, ROLLOUT = "actor_rollout_ref.actor.fsdp_config.full_determinism", "actor_rollout_ref.rollout.full_determinism"
SAMPLER = "trainer.v1.sampler.custom_sampler.name"


def bound(*overrides: str, shape: Shape = CPU) -> dict[str, Any]:
    with initialized():
        (item,) = compose_points(read([*(ON_CUDA if shape is CUDA else []), *overrides]).arms)
    assert VerlEngine().bind(item.config, item.explicit, shape) == []
    return item.config


def refused(config: dict[str, Any], shape: Shape) -> list[Problem]:
    return [p for p in VerlEngine().check(config, shape) if p.key == "deterministic"]


def test_on_a_cpu_it_is_on_and_saying_so_changes_nothing() -> None:
    config = bound()
    assert tree.get(config, POLICY) is True
    assert tree.get(config, SAMPLER) == "OrderedReplayBuffer"
    said = bound("deterministic=true")
    assert fingerprint(said) == fingerprint(config)
    assert refused(said, CPU) == refused(config, CPU) == []


def test_on_a_cpu_it_can_be_switched_off_and_is_another_trial() -> None:
    config = bound("deterministic=false")
    assert tree.get(config, POLICY) is False
    assert tree.get(config, SAMPLER) is None
    agent = tree.get(config, "actor_rollout_ref.rollout.agent")
    assert (agent["default_agent_loop"], agent["agent_loop_config_path"]) == ("single_turn_agent", None)
    assert tree.get(config, "actor_rollout_ref.rollout.name") == "hf_cpu", "the rest of a CPU run stays"
    assert fingerprint(config) != fingerprint(bound())
    assert VerlEngine().check(config, CPU) == []


def test_what_was_typed_stays() -> None:
    assert tree.get(bound("deterministic=false", f"{POLICY}=true"), POLICY) is True


def test_a_typed_key_that_contradicts_it_is_refused() -> None:
    (problem,) = refused(bound("deterministic=true", f"{POLICY}=false"), CPU)
    assert POLICY in problem.what
    typed = "actor_rollout_ref.rollout.agent.default_agent_loop=single_turn_agent"
    (problem,) = refused(bound("deterministic=true", typed), CPU)
    assert "default_agent_loop=single_turn_agent" in problem.what


def test_on_a_cpu_a_vllm_server_cannot_promise_it() -> None:
    (problem, *_) = refused(bound("deterministic=true", "engine=verl_vllm_cpu"), CPU)
    assert "vLLM" in problem.what
    assert refused(bound("engine=verl_vllm_cpu"), CPU) == [], "nobody asked for it"


def test_on_a_gpu_it_is_off() -> None:
    config = bound(shape=CUDA)
    assert (tree.get(config, POLICY), tree.get(config, ROLLOUT)) == (False, False)
    assert fingerprint(bound("deterministic=false", shape=CUDA)) == fingerprint(config)


def test_on_a_gpu_it_is_verls_own_where_verl_promises_it() -> None:
    config = bound("deterministic=true", "trainer.use_v1=false", shape=CUDA)
    for part in ("actor_rollout_ref.actor.fsdp_config", "actor_rollout_ref.ref.fsdp_config", "critic.fsdp"):
        assert tree.get(config, f"{part}.full_determinism") is True
    assert tree.get(config, ROLLOUT) is True
    assert refused(config, CUDA) == []


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([], "V1 trainer"),
        (["trainer.use_v1=false", "actor_rollout_ref.rollout.name=sglang"], "sglang"),
        (["trainer.use_v1=false", "model_engine=megatron", "actor_rollout_ref.actor.strategy=megatron"], "megatron"),
        (["trainer.use_v1=false", "actor_rollout_ref.rollout.multi_turn.enable=true"], "single-turn"),
        (["trainer.use_v1=false", f"{ROLLOUT}=false"], ROLLOUT),
    ],
)
def test_on_a_gpu_what_cannot_be_promised_is_refused_with_the_way_out(typed: list[str], said: str) -> None:
    problems = refused(bound("deterministic=true", *typed, shape=CUDA), CUDA)
    (found,) = [p for p in problems if said in p.what]
    assert found.valid
    assert found.fix


@pytest.mark.parametrize("value", ["maybe", "1", "null"])
def test_other_values_are_refused(value: str) -> None:
    from sweeper.config import schema

    config = bound()
    config["deterministic"] = {"1": 1, "null": None}.get(value, value)
    assert [p.key for p in schema.check(config)] == ["deterministic"]


class TestKeep:
    KEYS = ("max_actor_ckpt_to_keep", "max_critic_ckpt_to_keep")

    @pytest.mark.parametrize(("last", "verls"), [("2", 2), ("5", 5), ("1", 2), ("null", None)])
    def test_verl_keeps_as_many_but_never_so_few_that_none_is_whole(self, last: str, verls: int | None) -> None:
        trainer = bound(f"keep.last={last}")["trainer"]
        assert [trainer[key] for key in self.KEYS] == [verls] * 2

    def test_the_default_is_what_it_was(self) -> None:
        assert [bound()["trainer"][key] for key in self.KEYS] == [2, 2]
        assert [bound(shape=CUDA)["trainer"][key] for key in self.KEYS] == [2, 2]

    @pytest.mark.parametrize(("typed", "last"), [("null", None), ("7", 7)])
    def test_what_was_typed_under_verls_name_is_what_the_sweep_keeps(self, typed: str, last: int | None) -> None:
        config = bound(f"trainer.max_actor_ckpt_to_keep={typed}")
        assert config["keep"]["last"] == last
        assert config["trainer"]["max_actor_ckpt_to_keep"] == last

    def test_it_is_the_same_trial(self) -> None:
        assert fingerprint(bound("keep.last=7", "keep.top_k=1", "keep.gb=3.5")) == fingerprint(bound())

    @pytest.mark.parametrize("bad", ["keep.last=0", "keep.top_k=0", "keep.gb=-1", "keep.gb=all"])
    def test_what_cannot_be_meant_is_refused(self, bad: str) -> None:
        from sweeper.config import schema

        config = bound()
        key, _, value = bad.partition("=")
        tree.put(config, key, value if value == "all" else int(value))
        assert [p.key for p in schema.check(config)] == [key]
