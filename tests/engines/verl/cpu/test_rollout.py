"""The generation server, called as verl calls it, without Ray."""

import asyncio
import random
from types import SimpleNamespace

import pytest
import torch

from sweeper.engines.verl.cpu.rollout import Server
from sweeper.models import tiny

CONFIG = SimpleNamespace(dtype="float32", ignore_eos=False, max_num_seqs=8, prompt_length=48, response_length=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    spec = tiny.spec(warm_up={"steps": 20})
    return tiny.build(tiny.path(tmp_path_factory.mktemp("cache"), spec), spec)


@pytest.fixture(scope="module")
def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def calls(count):
    order = random.Random(2)
    return [
        {
            "request_id": f"random {order.random()}",
            "prompt_ids": [order.randrange(4, 100) for _ in range(order.randint(8, 40))],
            "sampling_params": {"temperature": 1.0, "top_k": -1, "top_p": 1.0, "logprobs": True, "seed": number},
        }
        for number in range(count)
    ]


def start(folder, weights, version=1):
    async def made():
        server = Server(CONFIG, {"path": str(folder)})
        await server.load_weights(weights, version)
        return server

    return made()


def results(outputs):
    return [(o.token_ids, o.log_probs, o.extra_fields["global_steps"]) for o in outputs]


def test_responses_do_not_depend_on_when_requests_arrive(folder, weights):
    asked = calls(21)

    async def at_once():
        return results(await (await start(folder, weights)).generate_many(asked))

    async def trickling():
        server = await start(folder, weights)

        async def late(number):
            await asyncio.sleep((20 - number) * 0.004)
            return await server.generate(**asked[number])

        return results(await asyncio.gather(*map(late, range(21))))

    first = asyncio.run(at_once())
    assert first == asyncio.run(trickling())
    assert {version for *_, version in first} == {1}
    assert all(len(tokens) == len(log_probs) <= 4 for tokens, log_probs, _ in first)


def test_new_weights_draw_anew_even_when_they_are_equal(folder, weights):
    asked = calls(8)

    async def main():
        server = await start(folder, weights)
        before = results(await server.generate_many(asked))
        await server.load_weights(weights, 2)
        return before, results(await server.generate_many(asked))

    before, after = asyncio.run(main())
    assert [tokens for tokens, *_ in before] != [tokens for tokens, *_ in after]


def test_a_request_that_cannot_be_served_fails_alone(folder, weights):
    good, bad = calls(2)
    bad["sampling_params"]["repetition_penalty"] = 2.0

    async def main():
        server = await start(folder, weights)
        pair = await asyncio.gather(server.generate(**good), server.generate(**bad), return_exceptions=True)
        with pytest.raises(ValueError, match="text only"):
            await server.generate(**good, image_data=[1])
        return pair, await server.generate(**good)

    (served, refused), again = asyncio.run(main())
    assert served.token_ids == again.token_ids
    assert "repetition_penalty=2.0" in str(refused)


def test_an_error_while_generating_reaches_the_caller_and_the_server_lives_on(folder, weights):
    asked = calls(1)[0]

    async def main():
        server = await start(folder, weights)
        model, server._model = server._model, None
        with pytest.raises(TypeError):
            await server.generate(**asked)
        server._model = model
        return await server.generate(**asked)

    assert asyncio.run(main()).token_ids


def test_weights_of_another_model_are_refused(folder, weights):
    async def main():
        with pytest.raises(ValueError, match=r"missing \['model.norm.weight'\], unexpected \['other'\]"):
            other = {name: value for name, value in weights.items() if name != "model.norm.weight"}
            await start(folder, {**other, "other": torch.zeros(1)})

    asyncio.run(main())
