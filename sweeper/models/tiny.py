"""The tiny model: a Qwen2 of under 100k parameters that can add a little, built here in seconds.

Guarantees: the same spec gives the same weights and tokenizer, byte for byte, on one machine and library version; the
folder appears whole or not at all; the warm-up never sees a validation or test question of the arithmetic task.
A random model never gets a reward, so no algorithm could learn from it: the warm-up, a short supervised training, lifts
its sampled accuracy well above zero and leaves room above.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeper import cache
from sweeper.environments import arithmetic

ARCHITECTURE: dict[str, int] = {
    "layers": 2,
    "hidden": 64,
    "intermediate": 128,
    "heads": 4,
    "kv_heads": 2,
    "max_positions": 512,
}
WARM_UP: dict[str, Any] = {
    "steps": 700,
    "batch": 32,
    "lr": 2e-3,
    "noise": 0.5,
    "seed": 0,
}
"""Steps and batch of AdamW without weight decay, gradient norm clipped to 1. `noise`: share of the warm-up's answers
that have an equals sign in front, which the task's reward does not accept: the model then knows more than it shows, and
reinforcement has something to bring out at once (the form) and something to improve slowly (the sums). `seed`: of the
initial weights, the batches and the noise."""

_VERSION = 1  # of the recipe: raise it when `build` makes something else from the same parameters

_SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
# A byte-level BPE vocabulary without merges is one token a character. Transformers 5 loads every qwen2 folder as
# Qwen2Tokenizer, and verl needs "\n" to be one token; Ġ and Ċ are how byte-level BPE spells space and newline.
_CHARACTERS = ("\u0120", "\u010a", *(chr(code) for code in range(33, 127)))
VOCABULARY = len(_SPECIAL) + len(_CHARACTERS)
"""Must be the model's vocab_size: verl masks ids beyond the tokenizer in vLLM and not in training."""

_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def spec(
    architecture: Mapping[str, Any] | None = None,
    warm_up: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the built folder depends on; each part is completed with the defaults.

    `task` holds the arithmetic parameters that the warm-up draws its questions from. Give the environment's own, so
    that its held-out questions stay unseen.
    """
    arch = {name: int((architecture or {}).get(name, default)) for name, default in ARCHITECTURE.items()}
    return {
        "kind": "tiny",
        "version": _VERSION,
        "architecture": arch,
        "warm_up": {name: (warm_up or {}).get(name, default) for name, default in WARM_UP.items()},
        "task": arithmetic.spec(task or {}),
    }


def path(cache_root: Path, built: Mapping[str, Any]) -> Path:
    """Where the folder of this spec lives, built or not."""
    return cache.folder(cache_root, "tiny", built)


def build(folder: Path, built: Mapping[str, Any]) -> Path:
    """Build the model unless it is there; returns the folder. Prints a line of progress now and then.

    When several processes ask at once, one of them builds and the others wait for it.
    """
    with cache.building(folder) as aside:
        if aside:
            _make(aside, built)
    return folder


def tokenizer() -> Any:
    """One token a printable ASCII character, and four special ones."""
    from transformers import Qwen2Tokenizer

    made = Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate((*_SPECIAL, *_CHARACTERS))},
        merges=[],
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        padding_side="left",
    )
    made.chat_template = _CHAT
    return made


def _make(folder: Path, built: Mapping[str, Any]) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    arch, warm_up = built["architecture"], built["warm_up"]
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    state = torch.get_rng_state()
    # A sum split over another number of threads rounds differently.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(warm_up["seed"])
    try:
        characters = tokenizer()
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=VOCABULARY,
                hidden_size=arch["hidden"],
                intermediate_size=arch["intermediate"],
                num_hidden_layers=arch["layers"],
                num_attention_heads=arch["heads"],
                num_key_value_heads=arch["kv_heads"],
                max_position_embeddings=arch["max_positions"],
                tie_word_embeddings=False,
                pad_token_id=characters.pad_token_id,
                eos_token_id=characters.eos_token_id,
                bos_token_id=None,
                attn_implementation="sdpa",
            )
        )
        _train(model, characters, built)
        model.save_pretrained(folder)
        characters.save_pretrained(folder)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_rng_state(state)


def _train(model: Any, characters: Any, built: Mapping[str, Any]) -> None:
    """The warm-up: next-token loss on the answers of the task's training questions."""
    import torch

    warm_up, task = built["warm_up"], built["task"]
    questions, held_out = arithmetic.pairs(task, "train"), arithmetic.pairs(task, "val")
    answers = [arithmetic.answer(pair) for pair in questions]
    unseen = _encode(characters, held_out, [arithmetic.answer(pair) for pair in held_out])
    optimizer = torch.optim.AdamW(model.parameters(), lr=warm_up["lr"], weight_decay=0.0)
    order = random.Random(warm_up["seed"])
    started = time.monotonic()
    for step in range(1, warm_up["steps"] + 1):
        chosen = [order.randrange(len(questions)) for _ in range(warm_up["batch"])]
        taught = [("=" if order.random() < warm_up["noise"] else "") + answers[i] for i in chosen]
        ids, labels, mask = _encode(characters, [questions[i] for i in chosen], taught)
        logits = _forward(model, ids, mask)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == warm_up["steps"]:
            print(
                f"tiny model: warm-up {step}/{warm_up['steps']}, loss {loss.item():.2f}, "
                f"held-out accuracy {_accuracy(model, *unseen):.2f}, {time.monotonic() - started:.0f} s",
                flush=True,
            )


def _encode(characters: Any, pairs: list[arithmetic.Pair], answers: list[str]) -> tuple[Any, Any, Any]:
    """Token ids padded on the left as verl does, labels (-100 outside the answer), attention mask."""
    import torch

    prompts = [
        characters.apply_chat_template(arithmetic.question(p), add_generation_prompt=True)["input_ids"] for p in pairs
    ]
    ends = [[*characters.encode(answer), characters.eos_token_id] for answer in answers]
    width = max(len(p) + len(a) for p, a in zip(prompts, ends, strict=True))
    ids, labels, mask = [], [], []
    for p, a in zip(prompts, ends, strict=True):
        space = width - len(p) - len(a)
        ids.append([characters.pad_token_id] * space + p + a)
        labels.append([-100] * (width - len(a)) + a)
        mask.append([0] * space + [1] * (len(p) + len(a)))
    return torch.tensor(ids), torch.tensor(labels), torch.tensor(mask)


def _forward(model: Any, ids: Any, mask: Any) -> Any:
    """Logits that predict columns 1.. of `ids`."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, :-1]


def _accuracy(model: Any, ids: Any, labels: Any, mask: Any) -> float:
    """Mean probability of the whole right answer when sampling at temperature 1."""
    import torch

    with torch.no_grad():
        logits = _forward(model, ids, mask).log_softmax(-1)
        target = labels[:, 1:]
        counted = target != -100
        chosen = logits.gather(-1, target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return float((chosen * counted).sum(-1).exp().mean())
