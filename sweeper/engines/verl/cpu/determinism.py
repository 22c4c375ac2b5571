"""Same seed, same run: the parts of verl where chance or timing would enter, replaced through verl's own config.

Guarantees, with `sampling` (whose rows do not depend on each other): a response is a function of the weights and their
version, the prompt, its place in the data and the sample's number, never of arrival order, of the server that made it
or of the load; a batch is trained on in the order in which it left the data loader.
Without them verl passes no seed to the server (experimental/agent_loop/single_turn_agent_loop.py:66), takes
trajectories in arrival order under random keys (trainer/ppo/v1/replay_buffer.py:367), and no two runs are alike.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any

from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

_TOKENISED_PROMPTS = 10_000
"""Prompts whose tokens are kept; a few megabytes for short ones."""


def request_seed(base: int, fields: Mapping[str, Any], sampling: Mapping[str, Any]) -> int:
    """The seed of one request, below 2**56.

    `fields` are the data fields that verl hands to an agent loop. The sample's number is `session_id` in the V1 trainer
    and `priority` in V0, which repeats rows instead (experimental/agent_loop/agent_loop.py, generate_sequences); rows
    that have the same prompt, index and number share their seed. The temperature tells ReMax's greedy baseline and
    validation from training. The step is not here: the server adds the version of its weights.
    """
    parts = (
        base,
        fields.get("index"),
        fields.get("session_id"),
        fields.get("priority"),
        [(m.get("role"), m.get("content")) for m in fields.get("raw_prompt", ())],
        sampling.get("temperature"),
    )
    return int.from_bytes(hashlib.sha256(repr([str(p) for p in parts]).encode()).digest()[:7], "big")


class SeededSingleTurnAgentLoop(SingleTurnAgentLoop):  # type: ignore[misc]  # verl ships no usable types
    """verl's single-turn loop, with a seed for each request. Keeps no state but the prompts it has tokenised."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tokens: dict[str, list[int]] = {}

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **fields: Any) -> Any:
        """One response; the arguments are verl's."""
        seed = request_seed(int(self.rollout_config.get("seed", 0)), {**fields, "priority": priority}, sampling_params)
        return await super().run({**sampling_params, "seed": seed}, priority=priority, **fields)

    async def ct_build_initial_tokens(self, messages: list[dict[str, Any]], **kwargs: Any) -> list[int]:
        """A prompt's tokens, made once for its n samples and for every validation: they cost more than a response."""
        if any(kwargs.values()):  # images, tools, ...: verl's way
            return list(await super().ct_build_initial_tokens(messages, **kwargs))
        key = repr(messages)
        if key not in self._tokens:
            if len(self._tokens) >= _TOKENISED_PROMPTS:
                self._tokens.clear()
            self._tokens[key] = list(await super().ct_build_initial_tokens(messages, **kwargs))
        return list(self._tokens[key])


def _filtering(refill_fn: Any) -> dict[str, Any]:
    """What verl tells its own buffer about group filtering and leaves out for any other (trainer_base.py:170-184).

    The trainer is reached through the one thing of it that every buffer is given, its bound `refill_fn`.
    """
    trainer = getattr(refill_fn, "__self__", None)
    metric = trainer._resolve_filter_groups_metric() if trainer is not None else None
    if trainer is None or metric is None:
        return {}
    return {
        "filter_groups_metric": metric,
        "train_batch_size": trainer.config.data.train_batch_size,
        "gen_batch_size": 1,
        "max_inflight_gen_batches": trainer.config.algorithm.filter_groups.get("max_inflight_gen_batches", 1),
    }


class OrderedReplayBuffer(ReplayBuffer):  # type: ignore[misc]  # verl ships no usable types
    """verl's synchronous replay buffer, in the order of the data loader and with a poll interval of its own.

    `sampler_kwargs.poll_interval`: seconds between two looks at the queue (verl: 2.0, not configurable).
    Group filtering (DAPO) works as in verl's own buffer.
    """

    def __init__(self, *args: Any, refill_fn: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, refill_fn=refill_fn, **kwargs, **_filtering(refill_fn))
        self.poll_interval = float(self.sampler_kwargs.get("poll_interval", 2.0))

    def _sync_metadata_from_transfer_queue(self) -> None:
        # Look only when nothing is in flight: what DAPO's filter sees half-way, and so how many prompts it asks for,
        # would be a matter of timing. The synchronous trainer waits for all of them anyway.
        super()._sync_metadata_from_transfer_queue()
        while any(self.pending_keys.values()) or any(self.running_keys.values()):
            time.sleep(self.poll_interval)
            super()._sync_metadata_from_transfer_queue()

    def _select_prompt_uids(
        self, partition_id: str, sampleable_keys: set[str], batch_size: int
    ) -> tuple[list[str], dict[str, dict[str, Any]], dict[str, int]]:
        # The controller lists keys in the order in which they were put, and the trainer puts a batch's prompts in
        # the data loader's order (trainer_base.py, _submit_batch_to_rollout); the set's own order is a hash's.
        steps = dict(self.prompt_global_steps[partition_id])
        place = {uid: number for number, uid in enumerate(steps)}
        chosen = sorted(sampleable_keys, key=lambda uid: (steps[uid], place[uid]))[:batch_size]
        return chosen, dict(self.partitions[partition_id]), steps

    def _materialize_batch(
        self, partition_id: str, selected_prompt_uids: list[str], partition_snapshot: dict[str, dict[str, Any]]
    ) -> KVBatchMeta:
        place = {uid: number for number, uid in enumerate(selected_prompt_uids)}

        def order(key: str) -> tuple[int, int, int]:
            uid, session, part = key.rsplit("_", 2)  # {uid}_{session_id}_{index}, replay_buffer.py:69
            return place[uid], int(session), int(part)

        keys = sorted((k for k in partition_snapshot if k.rsplit("_", 2)[0] in place), key=order)
        ordered = {key: partition_snapshot[key] for key in keys}
        return super()._materialize_batch(partition_id, selected_prompt_uids, ordered)
