"""Placements that are worth a probe: what is offered, in which order, and what never is."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sweeper.config import hydra_app, tree
from sweeper.config.compose import compose_points
from sweeper.config.space import read
from sweeper.engines.base import Config, Shape
from sweeper.engines.verl import schedule
from sweeper.engines.verl.engine import VerlEngine
from sweeper.engines.verl.placement import PLACEMENT
from sweeper.plan import memory
from sweeper.search.placement import spec
from sweeper.trial.identity import fingerprint, is_placement

WORKER = "actor_rollout_ref"
TP, SHARE = f"{WORKER}.rollout.tensor_model_parallel_size", f"{WORKER}.rollout.gpu_memory_utilization"
ACTOR = f"{WORKER}.actor"
TOKENS, MICRO = f"{ACTOR}.ppo_max_token_len_per_gpu", f"{ACTOR}.ppo_micro_batch_size_per_gpu"
LOG_PROBS = f"{WORKER}.rollout.log_prob_max_token_len_per_gpu"
PARAMS, ADAM = f"{ACTOR}.fsdp_config.param_offload", f"{ACTOR}.fsdp_config.optimizer_offload"
REFERENCE = f"{WORKER}.ref.fsdp_config.param_offload"
SEVEN = ["model=qwen7b", "environment=gsm8k", "cluster=node_8gpu"]
SMALL = ["model=qwen0.5b", "environment=gsm8k", "cluster=node_8gpu"]
CPU = Shape(name="local", device="cpu", nodes=1, gpus_per_node=4)
NODE = Shape("node_8gpu", "cuda", 1, 8, gpu="H100", gpu_memory_gib=79.6, launchable=False)


def bound(*overrides: str, shape: Shape = NODE) -> tuple[Config, frozenset[str]]:
    with hydra_app.initialized():
        (composed,) = compose_points(read(list(overrides)).arms)
    assert VerlEngine().bind(composed.config, composed.explicit, shape) == []
    return composed.config, frozenset(composed.explicit)


def settings(config: Config, typed: frozenset[str] = frozenset(), shape: Shape = NODE) -> dict[str, list[Any]]:
    return {knob.name: [*knob.settings] for knob in VerlEngine().placements(config, shape, typed)}


def placements(*overrides: str, shape: Shape = NODE) -> dict[str, list[Any]]:
    return settings(*bound(*overrides, shape=shape), shape)


def test_the_configs_own_size_first_then_what_heads_and_nodes_allow() -> None:
    found = placements(*SEVEN)
    assert found["tensor parallel size"] == [{TP: 2}, {TP: 1}, {TP: 4}], "28 heads: 8 does not divide them"
    assert next(iter(found)) == "tensor parallel size"


def test_a_size_that_was_typed_is_not_questioned() -> None:
    assert placements(*SEVEN, "tp=4")["tensor parallel size"] == [{TP: 4}]
    assert placements(*SEVEN, f"{TP}=4")["tensor parallel size"] == [{TP: 4}]
    config, _ = bound(*SEVEN)
    assert settings(config, frozenset({"tp"}))["tensor parallel size"] == [{TP: 2}], "it is searched"


def test_our_cpu_rollout_has_one_placement() -> None:
    assert placements(shape=CPU) == {"tensor parallel size": [{TP: 1}]}


def test_micro_batches_grow_by_tokens_until_the_share_of_a_rank_is_in_one() -> None:
    sizes = [setting[TOKENS] for setting in placements(*SMALL)["micro-batches"]]
    assert sizes == [32768, 65536], "256 responses of 1536 tokens over 8 ranks are 49,152"
    whole = placements(*SMALL, "updates_per_step=16")["micro-batches"]
    assert [setting[TOKENS] for setting in whole] == [32768], "64 responses: they are in one already"
    assert all(setting[LOG_PROBS] == setting[TOKENS] for setting in placements(*SMALL)["micro-batches"])


def test_micro_batches_by_responses_divide_what_a_rank_has() -> None:
    config, _ = bound(*SMALL)
    for part, name in (("actor", "ppo"), ("rollout", "log_prob"), ("ref", "log_prob")):
        section = config[WORKER][part]
        section["use_dynamic_bsz" if name == "ppo" else "log_prob_use_dynamic_bsz"] = False
        section[f"{name}_micro_batch_size_per_gpu"] = 8
    assert VerlEngine().check(config, NODE) == []
    assert [s[MICRO] for s in settings(config)["micro-batches"]] == [8, 16, 32], "32 responses a rank"
    config[WORKER]["actor"]["ppo_micro_batch_size_per_gpu"] = 16
    assert [s[MICRO] for s in settings(config)["micro-batches"]] == [16, 32]


def test_less_is_offloaded_one_kind_after_the_other_where_it_fits() -> None:
    config, _ = bound(*SMALL)
    for key in (PARAMS, ADAM, REFERENCE):
        tree.put(config, key, True)
    own, *less = settings(config)["offloading"]
    assert own == {PARAMS: True, ADAM: True, REFERENCE: True}
    assert less == [
        {ADAM: False},
        {ADAM: False, PARAMS: False},
        {ADAM: False, PARAMS: False, REFERENCE: False},
    ]
    assert "offloading" not in placements(*SMALL), "nothing is offloaded"
    typed = settings(config, frozenset({ADAM}))["offloading"]
    assert not any(ADAM in setting for setting in typed)
    assert typed[-1] == {PARAMS: False, REFERENCE: False}


def test_what_needs_more_memory_is_there_only_with_room_to_spare() -> None:
    found = placements(*SEVEN)
    assert found["rollout's share of the memory"] == [{SHARE: 0.6}], "with 0.7 a node of eight would be tight"
    assert placements(*SMALL)["rollout's share of the memory"] == [{SHARE: 0.6}, {SHARE: 0.7}, {SHARE: 0.8}]
    little = Shape("small", "cuda", 1, 8, gpu="A10", gpu_memory_gib=24.0)
    config, _ = bound(*SMALL)
    config[WORKER]["actor"]["ppo_max_token_len_per_gpu"] = 8192
    assert [s[TOKENS] for s in settings(config)["micro-batches"]] == [8192, 16384, 32768]
    assert [s[TOKENS] for s in settings(config, shape=little)["micro-batches"]] == [8192, 16384]
    del config["model"]["arch"]["params"]
    config[WORKER]["model"]["path"] = "/nowhere"
    unknown = settings(config)
    assert all(len(unknown[name]) == 1 for name in unknown if name != "tensor parallel size"), "an unknown size"


@pytest.mark.parametrize(
    ("line", "knob", "key"),
    [
        (f"{TOKENS}=16384", "micro-batches", TOKENS),
        (f"{SHARE}=0.5", "rollout's share of the memory", SHARE),
        (f"{REFERENCE}=true", "offloading", REFERENCE),
        (f"{LOG_PROBS}=16384", "micro-batches", LOG_PROBS),
    ],
)
def test_a_key_that_was_typed_is_in_no_setting(line: str, knob: str, key: str) -> None:
    assert any(key in setting for setting in placements(*SEVEN).get(knob, ()))
    assert not any(key in setting for setting in placements(*SEVEN, line).get(knob, ()))


@pytest.mark.parametrize("overrides", [SEVEN, SMALL, [*SMALL, "algorithm=ppo"]], ids=["7b", "0.5b", "ppo"])
def test_every_setting_can_run_is_placement_and_has_room(overrides: list[str]) -> None:
    config, _ = bound(*overrides)
    identity = fingerprint(config)
    for knob in VerlEngine().placements(config, NODE):
        for number, setting in enumerate(knob.settings):
            assert all(is_placement(key, PLACEMENT) for key in setting)
            changed = copy.deepcopy(config)
            for key, value in setting.items():
                assert number or tree.get(config, key) == value, "the first is the config's own"
                tree.put(changed, key, value)
            assert fingerprint(changed) == identity
            assert VerlEngine().check(changed, NODE) == []
            if number and knob.ordered:
                needed = memory.estimate(changed, schedule.described(changed)[0], NODE.gpu_memory_gib, 8)
                assert needed is not None and needed.verdict == "fits"


# --- the facts that measurements are kept under ---


def facts(*overrides: str) -> dict[str, Any]:
    config, typed = bound(*overrides)
    knobs = {k.name: k.settings for k in VerlEngine().placements(config, NODE, typed) if len(k.settings) > 1}
    return spec(config, NODE, VerlEngine(), knobs)


def test_what_does_not_matter_to_speed_is_no_fact() -> None:
    other = ["lr=3e-6", "seed=7", "project=other", "trainer.total_training_steps=33", "trainer.test_freq=3", "kl=0.01"]
    other += [f"{ACTOR}.clip_ratio_high=0.4", f"{ACTOR}.loss_agg_mode=seq-mean-token-mean"]
    assert facts(*SEVEN, *other) == facts(*SEVEN)


@pytest.mark.parametrize(
    "line",
    [
        f"{WORKER}.model.enable_gradient_checkpointing=false",
        f"{ACTOR}.fsdp_config.model_dtype=bf16",
        f"{ACTOR}.fsdp_config.param_offload=true",
        f"{TP}=4",
        f"{TOKENS}=32768",
        f"{SHARE}=0.5",
        "kl=0",
    ],
)
def test_what_does_is_one_typed_or_not(line: str) -> None:
    assert facts(*SMALL, line) != facts(*SMALL)
