"""The parts that stand in verl's processes, without starting verl: order, seeds, shared messages, refusals."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl.protocol import DataProto
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from sweeper.engines.verl.cpu import agents, determinism, rollout

FIELDS = {"index": 3, "session_id": 1, "priority": 0, "raw_prompt": [{"role": "user", "content": "What is 1+1?"}]}
SAMPLING = {"temperature": 1.0, "top_p": 1.0}


def test_a_seed_depends_on_what_makes_a_request_and_on_nothing_else():
    seed = determinism.request_seed(1, FIELDS, SAMPLING)
    assert seed == determinism.request_seed(1, {**FIELDS, "uid": "random", "global_steps": 9}, SAMPLING)
    assert seed == determinism.request_seed(1, {**FIELDS, "index": np.int64(3)}, SAMPLING)
    other = [
        determinism.request_seed(2, FIELDS, SAMPLING),
        determinism.request_seed(1, {**FIELDS, "index": 4}, SAMPLING),
        determinism.request_seed(1, {**FIELDS, "session_id": 2}, SAMPLING),
        determinism.request_seed(1, {**FIELDS, "priority": 2}, SAMPLING),
        determinism.request_seed(1, {**FIELDS, "raw_prompt": [{"role": "user", "content": "?"}]}, SAMPLING),
        determinism.request_seed(1, FIELDS, {"temperature": 0}),
    ]
    assert len({seed, *other}) == 7


def test_a_batch_is_in_the_data_loaders_order_whatever_arrived_first(monkeypatch):
    monkeypatch.setattr("verl.trainer.ppo.v1.replay_buffer.tq", SimpleNamespace(kv_clear=lambda **_: None))
    buffer = determinism.OrderedReplayBuffer(
        trainer_mode="sync",
        trainer_config={},
        max_off_policy_threshold=1,
        max_off_policy_strategy="drop",
        sampler_kwargs={"poll_interval": 0.05},
    )
    assert buffer.poll_interval == 0.05
    loaded = ["zz", "bb", "mm", "aa"]  # as put by the trainer
    buffer.prompt_global_steps["train"] = dict.fromkeys(loaded, 1) | {"old": 0}
    arrived = ["aa_1_0", "zz_1_0", "old_0_0", "mm_0_0", "zz_0_0", "aa_0_0", "bb_10_0", "bb_2_0", "bb_2_1"]
    buffer.partitions["train"] = {key: {"tag": key} for key in arrived}
    chosen, snapshot, _ = buffer._select_prompt_uids("train", {*loaded, "old"}, 4)
    assert chosen == ["old", "zz", "bb", "mm"]  # the oldest first, and no more than asked for
    batch = buffer._materialize_batch("train", chosen, snapshot)
    assert batch.keys == ["old_0_0", "zz_0_0", "zz_1_0", "bb_2_0", "bb_2_1", "bb_10_0", "mm_0_0"]
    assert [tag["tag"] for tag in batch.tags] == batch.keys


class Trainer:
    """What a replay buffer reaches of verl's trainer."""

    def __init__(self, metric):
        self.metric = metric
        self.config = SimpleNamespace(
            data=SimpleNamespace(train_batch_size=8),
            algorithm=SimpleNamespace(filter_groups={"max_inflight_gen_batches": 3}),
        )

    def _resolve_filter_groups_metric(self):
        return self.metric

    def refill(self, prompts):
        return prompts


def buffer_of(trainer):
    return determinism.OrderedReplayBuffer(
        trainer_mode="sync",
        trainer_config={},
        max_off_policy_threshold=1,
        max_off_policy_strategy="drop",
        sampler_kwargs={"poll_interval": 0.0},
        refill_fn=trainer.refill,
    )


def test_group_filtering_is_not_lost():
    on, off = buffer_of(Trainer("acc")), buffer_of(Trainer(None))
    assert (on.filter_groups_metric, on.train_batch_size, on.gen_batch_size, on.max_inflight_gen_batches) == (
        "acc",
        8,
        1,
        3,
    )
    assert off.filter_groups_metric is None


def test_the_buffer_looks_only_when_nothing_is_in_flight(monkeypatch):
    def tag(status):
        return {"is_prompt": True, "global_steps": 1, "status": status}

    looks = iter([["pending", "finished"], ["running", "finished"], ["finished", "failure"]])
    monkeypatch.setattr(
        "verl.trainer.ppo.v1.replay_buffer.tq",
        SimpleNamespace(kv_list=lambda: {"train": dict(zip("ab", map(tag, next(looks)), strict=True))}),
    )
    buffer = buffer_of(Trainer(None))
    buffer._sync_metadata_from_transfer_queue()
    assert buffer.finished_keys["train"] == {"a"}
    assert buffer.failure_keys["train"] == {"b"}


def test_calls_made_together_share_one():
    made = []

    async def together(calls):
        made.append(list(calls))
        return [ValueError("two") if call == 2 else call * 10 for call in calls]

    async def main():
        gather = agents.Gather(together)
        first = await asyncio.gather(*(gather(n) for n in (1, 2, 3)), return_exceptions=True)
        return first, await gather(4)

    (one, two, three), four = asyncio.run(main())
    assert (one, three, four) == (10, 30, 40)
    assert isinstance(two, ValueError)
    assert made == [[1, 2, 3], [4]]


def test_a_failed_shared_call_fails_each():
    async def together(calls):
        raise RuntimeError("server gone")

    async def main():
        gather = agents.Gather(together)
        return await asyncio.gather(gather(1), gather(2), return_exceptions=True)

    assert [str(error) for error in asyncio.run(main())] == ["server gone", "server gone"]


class Method:
    """A remote method: records what it was called with."""

    def __init__(self, function):
        self.function, self.calls = function, []

    async def remote(self, data):
        self.calls.append(data)
        return self.function(data)


def trajectory(prompt, response):
    both = torch.tensor([prompt + response])
    tensors = {
        "prompts": torch.tensor([prompt]),
        "responses": torch.tensor([response]),
        "input_ids": both,
        "attention_mask": torch.ones_like(both),
        "position_ids": torch.arange(both.shape[1])[None],
    }
    others = {
        "raw_prompt": np.array([[{"role": "user", "content": "x"}] * len(prompt)]),
        "reward_model": np.array([{"ground_truth": str(sum(response))}], dtype=object),
    }
    return DataProto(batch=TensorDict(tensors, batch_size=1), non_tensor_batch=others)


ROWS = [trajectory([1, 2], [3]), trajectory([4], [5, 6, 7]), trajectory([8, 9, 10], [11, 12])]


def test_rewards_of_a_batch_see_each_row_as_verl_would_show_it():
    batch = agents.padded(ROWS)
    for number, row in enumerate(ROWS):
        item, alone = batch[number], row[0]
        length = item.batch["attention_mask"][-item.batch["responses"].shape[-1] :].sum()
        assert item.batch["responses"][:length].tolist() == alone.batch["responses"].tolist()
        start = item.batch["prompts"].shape[-1]
        assert item.batch["input_ids"][start : start + length].tolist() == alone.batch["responses"].tolist()
        assert item.non_tensor_batch["reward_model"] == alone.non_tensor_batch["reward_model"]
        assert len(item.non_tensor_batch["raw_prompt"]) == len(alone.non_tensor_batch["raw_prompt"])


def test_a_reward_that_raises_is_one_callers_matter():
    def score(data):
        if data[len(data) - 1].batch["responses"].tolist() == [5, 6, 7]:
            raise ZeroDivisionError
        return {"reward_score": 1.0}

    def batch(data):
        raise ZeroDivisionError

    handle = SimpleNamespace(compute_score=Method(score), compute_score_batch=Method(batch))

    async def main():
        reward = agents.Reward(handle)
        return await asyncio.gather(*(reward.compute_score.remote(row) for row in ROWS), return_exceptions=True)

    first, second, third = asyncio.run(main())
    assert first == third == {"reward_score": 1.0}
    assert isinstance(second, ZeroDivisionError)
    assert len(handle.compute_score_batch.calls) == 1


def test_trajectories_of_many_sessions_go_in_one_put_with_nothing_changed():
    puts = []

    class Real:
        other = "untouched"

        async def async_kv_batch_put(self, **put):
            puts.append(put)

    def session(number, length):
        return {
            "responses": torch.arange(length),
            "rm_scores": torch.full((length,), float(number)),
            "extra_fields": {"turn_scores": [], "number": number},
            "reward_model": {"ground_truth": str(number)},
        }

    async def main():
        queue = agents.Queue(Real())
        assert queue.other == "untouched"
        await asyncio.gather(
            *(
                queue.async_kv_batch_put(
                    keys=[f"u_{n}_0"],
                    fields=list_of_dict_to_tensordict([session(n, 2 + n)]),
                    tags=[{"seq_len": n}],
                    partition_id="train",
                )
                for n in range(3)
            ),
            queue.async_kv_put(key="u", partition_id="train", tag={"status": "running"}),
            queue.async_kv_put(key="v", partition_id="val", tag={"status": "running"}),
        )

    asyncio.run(main())
    assert len(puts) == 3
    (data,) = [put for put in puts if put["fields"] is not None]
    assert data["keys"] == ["u_0_0", "u_1_0", "u_2_0"]
    assert data["tags"] == [{"seq_len": n} for n in range(3)]
    for n in range(3):
        row, expected = agents._row(data["fields"], n), session(n, 2 + n)
        assert torch.equal(row["responses"], expected["responses"])
        assert torch.equal(row["rm_scores"], expected["rm_scores"])
        assert row["extra_fields"] == expected["extra_fields"]
        assert row["reward_model"] == expected["reward_model"]


@pytest.mark.parametrize("key", ["tensor_model_parallel_size", "data_parallel_size", "pipeline_model_parallel_size"])
def test_a_rollout_split_over_processes_is_refused(key):
    config = SimpleNamespace(tensor_model_parallel_size=1, data_parallel_size=1, pipeline_model_parallel_size=1, **{})
    rollout.check(config)
    setattr(config, key, 2)
    with pytest.raises(ValueError, match=f"rollout.{key}=2"):
        rollout.check(config)
