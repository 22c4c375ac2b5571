"""The shipped model and environment files, composed: what they promise holds, and verl accepts the result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from omegaconf import OmegaConf

from sweeper.config.hydra_app import initialized
from sweeper.models import facts
from sweeper.plan import memory

GPU_MODELS = sorted(f.stem for f in facts.CONF.glob("*.yaml") if f.stem != "tiny")
ENVIRONMENTS = sorted(f.stem for f in (facts.CONF.parent / "environment").glob("*.yaml"))


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    with initialized():
        yield


def composed(*overrides: str) -> dict[str, Any]:
    made = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    assert isinstance(made, dict)
    return {str(k): v for k, v in made.items()}


def test_the_models_that_were_asked_for_are_there() -> None:
    assert GPU_MODELS == ["qwen0.5b", "qwen1.5b", "qwen3b", "qwen7b", "r1_distill_1.5b"]
    assert ENVIRONMENTS == ["arithmetic", "custom", "gsm8k", "reasoning_gym"]


@pytest.mark.parametrize("model", GPU_MODELS)
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_gpu_model_fits_eight_h100_by_default(model: str, algorithm: str) -> None:
    config = composed(f"model={model}", f"algorithm={algorithm}", "environment=gsm8k", "cluster=node_8gpu")
    arch, problems = facts.describe(config)
    assert arch is not None and not problems
    assert config["actor_rollout_ref"]["rollout"]["tensor_model_parallel_size"] in arch.valid_tp(8)
    found = memory.estimate(config, arch, 79.6, 8)
    assert found is not None and found.verdict in ("fits", "tight"), found
    # Below a full sequence verl's packing of a micro-batch refuses (verl/utils/seqlen_balancing.py:384).
    longest = config["data"]["max_prompt_length"] + config["data"]["max_response_length"]
    assert config["actor_rollout_ref"]["actor"]["ppo_max_token_len_per_gpu"] >= longest


@pytest.mark.parametrize("model", GPU_MODELS)
def test_a_local_path_takes_the_place_of_the_hub_id_everywhere(model: str) -> None:
    config = composed(f"model={model}")
    hf_id = config["model"]["hf_id"]
    paths = config["actor_rollout_ref"]["model"]["path"], config["critic"]["model"]["path"]
    assert paths == (hf_id, hf_id)
    config = composed(f"model={model}", "model.path=/models/mine")
    paths = config["actor_rollout_ref"]["model"]["path"], config["critic"]["model"]["path"]
    assert paths == ("/models/mine", "/models/mine")
    config = composed(f"model={model}", "actor_rollout_ref.model.path=/models/verl")
    assert config["critic"]["model"]["path"] == "/models/verl"


def test_rates_are_numbers() -> None:
    for model in [*GPU_MODELS, "tiny"]:
        config = composed(f"model={model}")
        assert isinstance(config["lr"], float) and isinstance(config["critic"]["optim"]["lr"], float)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_arms_see_the_same_number_of_responses_and_updates(environment: str, algorithm: str) -> None:
    config = composed(f"environment={environment}", f"algorithm={algorithm}")
    rollout, actor = config["actor_rollout_ref"]["rollout"], config["actor_rollout_ref"]["actor"]
    batch = config["data"]["train_batch_size"]
    assert batch * rollout["n"] == config["responses_per_step"]
    assert batch == actor["ppo_mini_batch_size"] * config["updates_per_step"]
    # The steps are the budget: verl also stops at total_epochs, which must never come first.
    assert config["trainer"]["total_training_steps"] < config["trainer"]["total_epochs"]
    assert config["trainer"]["test_freq"] > 0, "without it there is no validation score"


def skeleton(model: str, folder: Path) -> Path:
    """The model's config with a tokenizer and no weights: verl looks at both while it validates a critic."""
    from transformers import Qwen2Config

    from sweeper.models import tiny

    config = composed(f"model={model}")
    arch, _ = facts.describe(config)
    assert arch is not None
    made = Qwen2Config(
        vocab_size=arch.vocab,
        hidden_size=arch.hidden,
        intermediate_size=arch.intermediate,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        num_key_value_heads=arch.kv_heads,
        architectures=["Qwen2ForCausalLM"],
    )
    made.save_pretrained(folder / model)
    tiny.tokenizer().save_pretrained(folder / model)
    return folder / model


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
@pytest.mark.parametrize("cluster, ranks", [("node_8gpu", (1, 8)), ("two_nodes_8gpu", (2, 8))])
def test_verl_accepts_every_gpu_model(algorithm: str, cluster: str, ranks: tuple[int, int], tmp_path: Path) -> None:
    from verl.utils.config import validate_config

    for model in GPU_MODELS:
        config = composed(
            f"model={model}",
            f"algorithm={algorithm}",
            "environment=gsm8k",
            f"cluster={cluster}",
            f"model.path={skeleton(model, tmp_path)}",
        )
        config["trainer"]["nnodes"], config["trainer"]["n_gpus_per_node"] = ranks
        actor = config["actor_rollout_ref"]["actor"]
        reference = actor["use_kl_loss"] or config["algorithm"]["use_kl_in_reward"]
        assert actor["ppo_mini_batch_size"] * config["actor_rollout_ref"]["rollout"]["n"] % (ranks[0] * ranks[1]) == 0
        validate_config(OmegaConf.create(config), reference, bool(config["critic"]["enable"]))
