"""Model facts: exact counts against transformers, the tensor parallel sizes that work, paths that cannot work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeper.models import facts
from sweeper.models.facts import Architecture

FILES = sorted(facts.CONF.glob("*.yaml"))


def model_of(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(file.read_text())
    return loaded["model"]


def instantiate(config: Any) -> int:
    """The number of parameters of the model that transformers makes of the config, without allocating it."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(config).num_parameters())


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_counts_of_the_shipped_models_are_those_of_transformers(file: Path) -> None:
    from transformers import Qwen2Config

    arch = Architecture.from_facts(model_of(file)["arch"])
    made = instantiate(
        Qwen2Config(
            vocab_size=arch.vocab,
            hidden_size=arch.hidden,
            intermediate_size=arch.intermediate,
            num_hidden_layers=arch.layers,
            num_attention_heads=arch.heads,
            num_key_value_heads=arch.kv_heads,
            tie_word_embeddings=arch.tied,
        )
    )
    assert made == arch.params == arch.count()
    assert arch.head_dim * arch.heads == arch.hidden  # Qwen2 has no head_dim of its own


@pytest.mark.parametrize(
    "family, extra",
    [
        ("Qwen3Config", {"head_dim": 48, "tie_word_embeddings": True}),
        ("Qwen3Config", {"head_dim": 32, "attention_bias": True}),
        ("LlamaConfig", {}),
        ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
        ("LlamaConfig", {"head_dim": 64, "tie_word_embeddings": True}),
        ("MistralConfig", {}),
    ],
)
def test_the_counts_of_other_families_are_those_of_transformers(family: str, extra: dict[str, Any]) -> None:
    import transformers

    sizes = {
        "vocab_size": 1000,
        "hidden_size": 256,
        "intermediate_size": 600,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    }
    config = getattr(transformers, family)(**sizes, **extra)
    assert Architecture.from_hf(config.to_dict()).params == instantiate(config)


def test_a_mixture_of_experts_is_not_counted() -> None:
    from transformers import Qwen3MoeConfig

    arch = Architecture.from_hf(Qwen3MoeConfig(num_hidden_layers=2).to_dict())
    assert arch.params is None and arch.layers == 2


@pytest.mark.parametrize(
    "model, node, valid",
    [
        ("qwen7b", 8, [1, 2, 4]),  # 28 heads, 4 KV heads
        ("qwen7b", 2, [1, 2]),
        ("qwen7b", 6, [1, 2]),
        ("qwen3b", 8, [1, 2, 4, 8]),  # 16 heads; 2 KV heads are repeated
        ("qwen1.5b", 8, [1, 2, 4]),
        ("qwen1.5b", 6, [1, 2]),  # 12 heads allow 6, the MLP of 8960 does not
        ("qwen0.5b", 8, [1, 2]),  # 14 heads; 7 would split the 2 KV heads unevenly
        ("tiny", 8, [1, 2, 4]),
    ],
)
def test_the_tensor_parallel_sizes_that_work(model: str, node: int, valid: list[int]) -> None:
    arch = Architecture.from_facts(model_of(facts.CONF / f"{model}.yaml")["arch"])
    assert arch.valid_tp(node) == valid


def test_a_hub_id_is_known_with_and_without_instruct() -> None:
    for hf_id in ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B"):
        arch = facts.known(hf_id)
        assert arch is not None and arch.params == 7_615_616_512
    assert facts.known("Qwen/Qwen3-8B") is None


def config_of(path: str | None, model: dict[str, Any]) -> dict[str, Any]:
    return {"model": model, "actor_rollout_ref": {"model": {"path": path}}}


def test_a_model_that_is_built_here_has_the_facts_of_its_file() -> None:
    arch, problems = facts.describe(config_of(None, model_of(facts.CONF / "tiny.yaml")))
    assert arch is not None and arch.model_type == "qwen2" and arch.params == arch.count() and not problems


def test_no_model_at_all_is_a_problem() -> None:
    arch, [problem] = facts.describe(config_of(None, {"path": None, "build": None}))
    assert arch is None and "no model" in problem.what and "model.path=" in problem.fix


def test_a_hub_id_that_is_not_known_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert facts.at("someone/new-model") == (None, [])


def test_a_relative_folder_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole(tmp_path / "models" / "qwen")
    _, [problem] = facts.at("models/qwne")
    assert "models/qwne does not exist" in problem.what
    assert problem.fix == "model.path=models/qwen"


def whole(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "vocab_size": 100,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    (folder / "tokenizer.json").touch()
    return folder


def test_a_local_folder_speaks_for_itself_whatever_the_group_says(tmp_path: Path) -> None:
    folder = whole(tmp_path / "mine", num_key_value_heads=1)
    arch, problems = facts.describe(config_of(str(folder), model_of(facts.CONF / "qwen7b.yaml")))
    assert not problems
    assert arch is not None and (arch.model_type, arch.heads, arch.kv_heads, arch.head_dim) == ("llama", 4, 1, 16)


def test_a_folder_far_from_any_that_is_there_is_not_guessed(tmp_path: Path) -> None:
    """/opt is near /nope, and no model is in it."""
    (tmp_path / "opt").mkdir()
    (tmp_path / "models" / "qwen").mkdir(parents=True)
    assert facts.nearest_sibling(tmp_path / "nope" / "model") is None
    assert facts.nearest_sibling(tmp_path / "nope") is None
    assert facts.nearest_sibling(tmp_path / "model" / "llama") is None
    assert facts.nearest_sibling(tmp_path / "model" / "qwne") == tmp_path / "models" / "qwen"
    (problem,) = facts.at("/nope/model")[1]
    assert problem.fix == ""


def test_a_missing_folder_names_the_one_that_was_meant(tmp_path: Path) -> None:
    whole(tmp_path / "checkpoints" / "qwen-7b")
    _, [problem] = facts.at(str(tmp_path / "chekpoints" / "qwen-7b"))
    assert problem.fix == f"model.path={tmp_path / 'checkpoints' / 'qwen-7b'}"


@pytest.mark.parametrize(
    "remove, what",
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_an_incomplete_folder_says_what_it_lacks(tmp_path: Path, remove: str, what: str) -> None:
    folder = whole(tmp_path / "m")
    (folder / remove).unlink()
    _, [problem] = facts.at(str(folder))
    assert what in problem.what and str(folder) in problem.what


def test_a_half_finished_download_names_the_missing_shard(tmp_path: Path) -> None:
    folder = whole(tmp_path / "m")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _, [problem] = facts.at(str(folder))
    assert "no model-00002-of-00002.safetensors" in problem.what


def test_the_folder_above_a_model_points_to_it(tmp_path: Path) -> None:
    inner = whole(tmp_path / "above" / "huggingface")
    _, [problem] = facts.at(str(tmp_path / "above"))
    assert problem.fix == f"model.path={inner}"


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama"}'])
def test_a_broken_config_is_named_without_a_traceback(tmp_path: Path, text: str) -> None:
    folder = whole(tmp_path / "m")
    (folder / "config.json").write_text(text)
    arch, [problem] = facts.at(str(folder))
    assert arch is None and "does not describe a decoder" in problem.what


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    _, [problem] = facts.at(str(tmp_path / "weights.bin"))
    assert "is a file" in problem.what


def test_a_path_on_a_remote_file_system_is_left_to_the_trainer() -> None:
    assert facts.at("hdfs://models/qwen") == (None, [])
