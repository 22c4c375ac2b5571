"""The memory estimate against numbers worked out by hand, and what it says of plans that cannot work."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from sweeper.models import facts
from sweeper.models.facts import Architecture
from sweeper.plan.memory import Estimate, estimate

GIB = 2**30
H100 = 79.6


def arch_of(model: str) -> Architecture:
    return Architecture.from_facts(yaml.safe_load((facts.CONF / f"{model}.yaml").read_text())["model"]["arch"])


def config(**changes: Any) -> dict[str, Any]:
    """GRPO with a KL loss on 512 + 1024 tokens, as qwen7b's file sets it; `changes` are dotted keys with `__`."""
    made: dict[str, Any] = {
        "data": {"max_prompt_length": 512, "max_response_length": 1024},
        "algorithm": {"adv_estimator": "grpo", "use_kl_in_reward": False},
        "critic": {"enable": False, "use_dynamic_bsz": True, "ppo_max_token_len_per_gpu": 32768, "fsdp": {}},
        "actor_rollout_ref": {
            "model": {"enable_gradient_checkpointing": True, "lora_rank": 0},
            "actor": {
                "use_kl_loss": True,
                "use_dynamic_bsz": True,
                "ppo_max_token_len_per_gpu": 16384,
                "fsdp_config": {"model_dtype": "fp32", "param_offload": False, "optimizer_offload": False},
            },
            "ref": {"fsdp_config": {"param_offload": True}},
            "rollout": {"tensor_model_parallel_size": 2, "gpu_memory_utilization": 0.6, "free_cache_engine": True},
        },
    }
    for key, value in changes.items():
        *parts, last = key.split("__")
        place = made
        for part in parts:
            place = place[part]
        place[last] = value
    return made


def of(ranks: int, memory: float = H100, model: str = "qwen7b", **changes: Any) -> Estimate:
    found = estimate(config(**changes), arch_of(model), memory, ranks)
    assert found is not None
    return found


# By hand for Qwen2.5-7B: P = 7,615,616,512; 28 layers, hidden 3584, MLP 18944, vocabulary 152,064, untied.
STATE = 16 * 7_615_616_512 / GIB  # fp32 weights and gradients, two moments of Adam: 113.48 GiB over all ranks
GATHERED = 2 * (1_089_994_752 + 233_057_792) / GIB  # embeddings and one layer in bf16: 2.46 GiB
ACTIVATIONS = 16384 * (28 * 3584 * 2 + (10 * 3584 + 4 * 18944) * 2) / GIB  # 6.47 GiB
LOGITS = 16384 * 152_064 * 6 / GIB  # 13.92 GiB
LIBRARIES = 3.0


def test_qwen7b_on_sixteen_gpus_by_hand() -> None:
    found = of(16)
    assert pytest.approx(32.95, abs=0.01) == STATE / 16 + GATHERED + ACTIVATIONS + LOGITS + LIBRARIES
    assert found.train_gib == pytest.approx(32.95, abs=0.01)
    # While generating: weights and Adam stay (12 bytes a parameter), gradients are gone, vLLM takes its share.
    assert found.rollout_gib == pytest.approx(12 / 16 * STATE / 16 + 0.6 * H100 + LIBRARIES, abs=0.01)
    assert found.rollout_gib == pytest.approx(56.08, abs=0.01)
    assert found.total_gib == found.rollout_gib
    assert found.verdict == "fits" and found.min_gpus == 4


def test_qwen7b_on_one_gpu_by_hand() -> None:
    found = of(1)
    assert found.train_gib == pytest.approx(STATE + ACTIVATIONS + LOGITS + LIBRARIES, abs=0.01)  # nothing is gathered
    assert found.train_gib == pytest.approx(136.87, abs=0.01)
    assert found.verdict == "does_not_fit" and found.min_gpus == 4


def test_a_critic_is_a_second_model() -> None:
    alone, both = of(8), of(8, critic__enable=True)
    weights_and_adam = 12 * 7_615_616_512 / 8 / GIB  # of the critic, while the policy is updated
    assert both.train_gib - alone.train_gib == pytest.approx(weights_and_adam, abs=0.01)
    assert both.verdict == "tight"
    offloaded = of(8, critic__enable=True, critic__fsdp={"param_offload": True, "optimizer_offload": True})
    assert offloaded.rollout_gib == pytest.approx(alone.rollout_gib)


def test_gae_has_a_critic_unless_it_is_switched_off() -> None:
    with_critic = of(8, critic__enable=None, algorithm__adv_estimator="gae")
    assert with_critic == of(8, critic__enable=True)
    assert of(8, algorithm__adv_estimator="gae") == of(8)


def test_the_reference_counts_when_a_kl_gate_is_on_and_it_stays_on_the_gpu() -> None:
    here = {"actor_rollout_ref__ref__fsdp_config": {"param_offload": False}}
    gates_off = of(8, actor_rollout_ref__actor__use_kl_loss=False, **here)
    in_loss = of(8, **here)
    in_reward = of(8, actor_rollout_ref__actor__use_kl_loss=False, algorithm__use_kl_in_reward=True, **here)
    assert in_loss.train_gib - gates_off.train_gib == pytest.approx(4 * 7_615_616_512 / 8 / GIB)
    assert in_reward == in_loss
    assert of(8).train_gib == pytest.approx(gates_off.train_gib)  # offloaded


def test_offloading_makes_room_for_the_rollout_only() -> None:
    offload = {"model_dtype": "fp32", "param_offload": True, "optimizer_offload": True}
    found = of(8, actor_rollout_ref__actor__fsdp_config=offload)
    assert found.rollout_gib == pytest.approx(0.6 * H100 + LIBRARIES)
    assert found.train_gib == of(8).train_gib


def test_bf16_halves_the_state() -> None:
    half = of(8, actor_rollout_ref__actor__fsdp_config={"model_dtype": "bf16"})
    assert of(8).train_gib - half.train_gib == pytest.approx(STATE / 8 / 2)


def test_lora_has_neither_gradients_nor_moments_of_the_weights() -> None:
    lora = of(8, actor_rollout_ref__model__lora_rank=32)
    assert of(8).train_gib - lora.train_gib == pytest.approx(STATE / 8 * 12 / 16)


def test_without_checkpointing_every_layer_is_kept() -> None:
    full = of(8, actor_rollout_ref__model__enable_gradient_checkpointing=False)
    assert full.verdict == "does_not_fit"


def test_micro_batches_count_full_lengths() -> None:
    micro = {"use_dynamic_bsz": False, "ppo_micro_batch_size_per_gpu": 4}
    kept = {"use_kl_loss": True, "fsdp_config": {"model_dtype": "fp32"}}
    found = of(8, actor_rollout_ref__actor={**micro, **kept})
    same = of(8, actor_rollout_ref__actor__ppo_max_token_len_per_gpu=4 * (512 + 1024))
    assert found == same


def test_a_share_too_small_for_the_weights_of_a_copy_does_not_fit() -> None:
    found = of(16, actor_rollout_ref__rollout__gpu_memory_utilization=0.05)  # 4 GiB; half a copy takes 7.1
    assert found.total_gib < H100 and found.verdict == "does_not_fit" and found.min_gpus is None


def test_a_rollout_wider_than_the_ranks_does_not_fit() -> None:
    assert of(1, memory=1000.0).verdict == "does_not_fit"
    assert of(2, memory=1000.0).verdict == "fits"


def test_a_cache_that_is_not_freed_is_there_while_training() -> None:
    kept = of(16, actor_rollout_ref__rollout__free_cache_engine=False)
    assert kept.train_gib == pytest.approx(of(16).train_gib + 0.6 * H100)


def test_unknown_memory_is_taken_for_an_80_gb_gpu() -> None:
    assert of(16, memory=0.0) == of(16, memory=80.0)


@pytest.mark.parametrize("model, ranks", [("qwen0.5b", 1), ("qwen1.5b", 2), ("qwen3b", 2), ("r1_distill_1.5b", 2)])
def test_what_the_model_files_promise_fits(model: str, ranks: int) -> None:
    rollout = {"actor_rollout_ref__rollout__tensor_model_parallel_size": 1}
    assert of(ranks, model=model, **rollout).verdict in ("fits", "tight")


def test_a_model_of_unknown_size_has_no_estimate() -> None:
    moe = Architecture("qwen3_moe", 2, 64, 128, 4, 2, 16, 100, tied=False)
    assert estimate(config(), moe, H100, 8) is None
    assert estimate(config(), None, H100, 8) is None
