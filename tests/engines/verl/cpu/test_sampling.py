"""Sampling: the right distribution, and rows that do not know each other."""

import math
import random

import pytest
import torch

from sweeper.engines.verl.cpu.sampling import Request, draw, generate_block, log_distribution, uniforms

END = frozenset({2})


@pytest.fixture(scope="module")
def model():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in an attempt (settings.environment)
    torch.manual_seed(0)
    yield Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=100,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
            initializer_range=0.3,  # a peaked distribution: a wrong position or mask would show
        )
    ).eval()
    torch.set_num_threads(threads)


def requests(count, **params):
    order = random.Random(5)
    return [
        Request(
            prompt=tuple(order.randrange(3, 100) for _ in range(order.randint(17, 32))),
            seed=1000 + number,
            max_tokens=6,
            **params,
        )
        for number in range(count)
    ]


def plain(model, request, tokens):
    """Log-probabilities of `tokens` after the prompt by one forward pass without padding or cache."""
    ids = torch.tensor([[*request.prompt, *tokens]])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, len(request.prompt) - 1 : -1].float()
    return (logits / (request.temperature or 1.0)).log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_match_a_plain_forward_pass(model, temperature):
    batch = requests(7, temperature=temperature)
    for request, response in zip(batch, generate_block(model, batch, 8, END, 0), strict=True):
        expected = plain(model, request, response.tokens)
        got = torch.tensor(response.log_probs)
        want = expected.gather(-1, torch.tensor(response.tokens).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_temperature_zero_takes_the_most_likely_token(model):
    batch = requests(5, temperature=0.0)
    for request, response in zip(batch, generate_block(model, batch, 8, END, 0), strict=True):
        assert list(response.tokens) == plain(model, request, response.tokens).argmax(-1).tolist()


def test_a_row_is_the_same_bit_for_bit_whatever_stands_beside_it(model):
    batch = requests(16)
    alone = [generate_block(model, [request], 16, END, 0)[0] for request in batch]
    shuffled = random.Random(1).sample(range(16), 16)
    together = generate_block(model, [batch[i] for i in shuffled], 16, END, 0)
    assert [together[shuffled.index(i)] for i in range(16)] == alone


def test_greedy_and_sampled_rows_can_share_a_block(model):
    sampled, greedy = requests(4), requests(4, temperature=0.0)
    mixed = generate_block(model, sampled + greedy, 8, END, 0)
    assert mixed == generate_block(model, sampled, 8, END, 0) + generate_block(model, greedy, 8, END, 0)


def test_a_response_ends_with_its_end_token_or_at_its_limit(model):
    wide = frozenset(range(3, 60))
    responses = generate_block(model, requests(8), 8, wide, 0)
    for response in responses:
        assert not wide & set(response.tokens[:-1])
        assert response.tokens[-1] in wide or len(response.tokens) == 6
    assert len({len(r.tokens) for r in responses}) > 1


def test_other_seeds_give_other_samples(model):
    one = requests(1)[0]
    many = [Request(one.prompt, seed, 6) for seed in range(16)]
    assert len({r.tokens for r in generate_block(model, many, 16, END, 0)}) > 8


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    points = uniforms(3, 20_000)
    tokens = draw(probabilities.log().expand(20_000, 4), points)
    share = torch.bincount(tokens, minlength=4) / 20_000
    assert share[1] == 0
    torch.testing.assert_close(share, probabilities, atol=0.015, rtol=0)


def test_the_edges_of_the_unit_interval_draw_possible_tokens():
    log_probs = torch.tensor([[-math.inf, math.log(0.6), math.log(0.4), -math.inf]] * 2)
    assert draw(log_probs, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 2]


def test_top_k_and_top_p_keep_the_likeliest_and_renormalise():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4, 4)
    out = log_distribution(
        logits,
        torch.ones(4),
        torch.tensor([0, 2, 0, 1]),
        torch.tensor([1.0, 1.0, 0.7, 1.0]),
    ).exp()
    expected = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.625, 0.375, 0, 0], [0.625, 0.375, 0, 0], [1.0, 0, 0, 0]])
    torch.testing.assert_close(out, expected)


def test_a_longer_stream_starts_like_a_shorter_one():
    assert torch.equal(uniforms(9, 100)[:4], uniforms(9, 4))


def test_sampling_parameters_that_are_not_implemented_are_refused():
    with pytest.raises(ValueError, match=r"repetition_penalty=1\.2"):
        Request.parse([1], {"repetition_penalty": 1.2}, 0, 4)
    with pytest.raises(ValueError, match="empty prompt"):
        Request.parse([], {}, 0, 4)


def test_verl_sampling_parameters_are_read_as_vllm_means_them():
    request = Request.parse(
        [1, 2], {"top_k": -1, "top_p": 1.0, "temperature": 0.5, "repetition_penalty": 1.0, "logprobs": True}, 7, 4
    )
    assert request == Request((1, 2), 7, 4, 0.5, 0, 1.0)
    assert Request.parse([1], {"max_tokens": 2}, 0, 4).max_tokens == 2
    assert Request.parse([1], {"max_tokens": 20}, 0, 4).max_tokens == 4
