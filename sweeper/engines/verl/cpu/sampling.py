"""Generation with a Hugging Face causal model, where each row's result is its own.

Guarantees: the tokens and log-probabilities of a request are a function of the weights, its prompt, its sampling
parameters and its seed, bit for bit, whatever else is generated beside it and in whatever order it arrives.
Two things give that: every forward pass has the shape (rows, width) fixed by the caller, so that the same kernels see
the same sizes; and each row draws from a stream of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

WIDTH_STEP = 16
"""Prompts are padded to a multiple of this, so that few shapes exist and none depends on the neighbours."""


@dataclass(frozen=True, slots=True)
class Request:
    """One response to generate."""

    prompt: tuple[int, ...]
    seed: int
    max_tokens: int
    temperature: float = 1.0
    """0: the most likely token."""
    top_k: int = 0
    """Keep this many tokens; 0: all."""
    top_p: float = 1.0
    """Keep the likeliest tokens up to this probability; 1: all."""

    @property
    def width(self) -> int:
        """Columns of the block that this prompt belongs to."""
        return math.ceil(len(self.prompt) / WIDTH_STEP) * WIDTH_STEP

    @classmethod
    def parse(cls, prompt: Sequence[int], params: Mapping[str, Any], seed: int, limit: int) -> Request:
        """From verl's sampling parameters (vLLM's names).

        Raises ValueError for a parameter that changes the distribution and is not implemented here, rather than
        sampling from another one than was asked for.
        """
        known = {"temperature", "top_k", "top_p", "max_tokens", "max_new_tokens", "logprobs", "seed"}
        neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0, "n": 1}
        for name, value in params.items():
            if name not in known and value is not None and neutral.get(name, object()) != value:
                raise ValueError(f"hf_cpu does not implement the sampling parameter {name}={value!r}")
        if not prompt:
            raise ValueError("hf_cpu got an empty prompt")
        asked = params.get("max_tokens") or params.get("max_new_tokens") or limit
        return cls(
            prompt=tuple(prompt),
            seed=seed,
            max_tokens=max(1, min(int(asked), limit)),
            temperature=float(params.get("temperature", 1.0)),
            top_k=max(0, int(params.get("top_k") or 0)),  # verl: -1 keeps all
            top_p=float(params.get("top_p", 1.0)),
        )


@dataclass(frozen=True, slots=True)
class Response:
    """What was generated; one log-probability a token, under the distribution it was drawn from."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]


def uniforms(seed: int, count: int) -> torch.Tensor:
    """`count` numbers in [0, 1), float64, a function of the seed alone; the first k are the same for every count."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_distribution(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities that tokens are drawn from, (rows, vocabulary); the parameters have one value a row.

    Temperature first, then top-k, then top-p, then renormalised, as in vLLM. Rows with temperature 0 keep the model's
    own distribution (their token is the argmax).
    """
    scaled = logits / torch.where(temperature > 0, temperature, 1.0).unsqueeze(-1)
    vocabulary = logits.shape[-1]
    if bool(((top_k > 0) & (top_k < vocabulary) | (top_p < 1)).any()):
        ordered, index = scaled.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(vocabulary).expand_as(ordered)
        kept = torch.where(top_k > 0, top_k, vocabulary).unsqueeze(-1)
        ordered = ordered.masked_fill(rank >= kept, -math.inf)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        limit = torch.where(top_p < 1, top_p, math.inf).unsqueeze(-1)
        ordered = ordered.masked_fill(before > limit, -math.inf)
        scaled = torch.empty_like(scaled).scatter_(-1, index, ordered)
    return scaled.log_softmax(-1)


def draw(log_probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One token a row by inverting the cumulative distribution at `uniform` (rows,), in float64."""
    cumulative = log_probs.double().exp().cumsum(-1)
    # The sum is 1 only up to rounding; scaling keeps the point inside. `right=True`: a token of probability 0 has an
    # empty interval and is never drawn.
    point = (uniform * cumulative[:, -1]).unsqueeze(-1)
    token = torch.searchsorted(cumulative, point, right=True).squeeze(-1)
    return token.clamp(max=log_probs.shape[-1] - 1)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def generate_block(model: Any, requests: Sequence[Request], rows: int, end: frozenset[int], pad: int) -> list[Response]:
    """Generate one block: at most `rows` requests of one width. `end`: tokens that end a response (kept in it).

    Unused rows repeat the first request, so that the shape of every forward pass depends on `rows` and the width only.
    """
    from transformers import DynamicCache

    width = requests[0].width
    if len(requests) > rows or any(r.width != width for r in requests):
        raise ValueError("a block holds at most `rows` requests of one width")
    block = list(requests) + [requests[0]] * (rows - len(requests))
    ids = torch.tensor([[pad] * (width - len(r.prompt)) + list(r.prompt) for r in block])
    mask = torch.tensor([[0] * (width - len(r.prompt)) + [1] * len(r.prompt) for r in block])
    longest = max(r.max_tokens for r in requests)
    noise = torch.stack([uniforms(r.seed, longest) for r in block])
    temperature = torch.tensor([r.temperature for r in block])
    top_k = torch.tensor([r.top_k for r in block])
    top_p = torch.tensor([r.top_p for r in block])

    tokens: list[list[int]] = [[] for _ in requests]
    log_probs: list[list[float]] = [[] for _ in requests]
    live = set(range(len(requests)))
    cache, step_ids = DynamicCache(), ids
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for step in range(longest):
        logits = model(
            input_ids=step_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        distribution = log_distribution(logits.float(), temperature, top_k, top_p)
        chosen = torch.where(temperature > 0, draw(distribution, noise[:, step]), distribution.argmax(-1))
        chosen_log_probs = distribution.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).tolist()
        chosen_tokens = chosen.tolist()
        for row in tuple(live):
            tokens[row].append(chosen_tokens[row])
            log_probs[row].append(chosen_log_probs[row])
            if chosen_tokens[row] in end or len(tokens[row]) >= requests[row].max_tokens:
                live.discard(row)
        if not live:
            break
        step_ids = chosen.unsqueeze(-1)
        mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [Response(tuple(t), tuple(p)) for t, p in zip(tokens, log_probs, strict=True)]
