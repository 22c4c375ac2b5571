"""The tiny model: the same bytes each time, whole or absent, new to the held-out questions."""

import hashlib
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sweeper.environments import arithmetic
from sweeper.models import tiny

SHORT = tiny.spec(warm_up={"steps": 3})


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    return tiny.build(tiny.path(root, SHORT), SHORT)


def test_the_same_spec_gives_the_same_bytes_in_another_process(built, tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(tiny.build, [(tiny.path(tmp_path, SHORT), SHORT)] * 2)  # at the same time
    (again,) = (p for p in tmp_path.iterdir() if p.is_dir())
    assert again.name == built.name
    assert digest(again) == digest(built)


def test_another_seed_gives_other_weights(built, tmp_path):
    other = tiny.spec(warm_up={"steps": 3, "seed": 1})
    folder = tiny.build(tiny.path(tmp_path, other), other)
    assert digest(folder)["model.safetensors"] != digest(built)["model.safetensors"]


def test_a_failed_build_leaves_nothing(tmp_path):
    broken = tiny.spec({"heads": 3})  # does not divide the hidden size
    with pytest.raises(RuntimeError, match="must match the size"):
        tiny.build(tiny.path(tmp_path, broken), broken)
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []


def test_builders_at_the_same_time_do_the_work_once(tmp_path, monkeypatch):
    made = []

    def slow(folder, _):
        made.append(folder)
        time.sleep(0.2)

    monkeypatch.setattr(tiny, "_make", slow)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: tiny.build(tiny.path(tmp_path, SHORT), SHORT), range(3)))
    assert len(made) == 1 and tiny.path(tmp_path, SHORT).is_dir()


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(folder, _):
        (folder / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "_make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny.build(tiny.path(tmp_path, SHORT), SHORT)
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []


def test_a_cache_of_before_stays_valid(tmp_path):
    assert tiny.path(tmp_path, tiny.spec()).name == "tiny-6bf0186b755d0c3c"


def test_building_leaves_the_callers_random_state_and_settings(tmp_path):
    import torch

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    settings = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    tiny.build(tiny.path(tmp_path, SHORT), SHORT)
    assert torch.equal(torch.rand(1), expected)
    assert settings == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())


def test_what_verl_needs_of_the_folder(built):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokens, config = AutoTokenizer.from_pretrained(built), AutoConfig.from_pretrained(built)
    assert len(tokens) == config.vocab_size == tiny.VOCABULARY
    assert sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(built).parameters()) < 100_000
    assert len(tokens.encode("\n")) == 1
    assert config.eos_token_id == tokens.eos_token_id
    text = tokens.apply_chat_template(arithmetic.question((3, 4)), add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nWhat is 3+4?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokens.apply_chat_template(arithmetic.question((3, 4)), add_generation_prompt=True)["input_ids"]
    assert tokens.decode(ids, skip_special_tokens=False) == text


def test_the_warm_up_sees_training_questions_only(monkeypatch):
    seen = []
    encode = tiny._encode

    def spy(characters, pairs, answers):
        seen.append(list(pairs))
        return encode(characters, pairs, answers)

    monkeypatch.setattr(tiny, "_encode", spy)
    import torch

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(tiny.VOCABULARY))

    monkeypatch.setattr(tiny, "_forward", lambda model, ids, mask: model.weight.expand(*ids.shape, -1)[:, :-1])
    monkeypatch.setattr(tiny, "_accuracy", lambda *_: 0.0)
    tiny._train(Model(), tiny.tokenizer(), tiny.spec(warm_up={"steps": 50}))
    held_out, *batches = seen
    assert set(held_out) == set(arithmetic.pairs(SHORT["task"], "val"))
    taught = {pair for batch in batches for pair in batch}
    assert len(batches) == 50
    assert taught <= set(arithmetic.pairs(SHORT["task"], "train"))


def test_naming_a_folder_needs_no_torch(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from sweeper.models import tiny; "
        "tiny.path(Path('x'), tiny.spec()); assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
