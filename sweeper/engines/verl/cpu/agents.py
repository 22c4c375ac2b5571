"""verl's agent loops with fewer messages: what takes most of a step when a response takes a millisecond.

Guarantees: the same agent loops, rewards and trajectories as verl's own workers; only how many messages carry them
changes. verl sends, for each response, two messages to its load balancer, one to a server, and four to its queue, and
builds an agent loop with Hydra; for a tiny model on two cores that is 60% of the processor time of a step. Here
concurrent calls of a worker share a message, the reward worker included, and the loop is built once.

Selected by `rollout.agent.agent_loop_manager_class`; null gives verl's own workers.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import hydra
import numpy as np
import ray
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict
from verl.experimental.agent_loop import AgentLoopManager
from verl.experimental.agent_loop import agent_loop as verl_loops
from verl.protocol import DataProto
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.utils.rollout_trace import rollout_trace_attr
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

LOOP = "seeded_single_turn"
"""The agent loop that is stateless, so that one instance serves every request (agent.yaml)."""

SHARE = 32
"""Requests a message to a server: small enough to spread a step over two servers."""

Call = TypeVar("Call")
Result = TypeVar("Result")


class Gather(Generic[Call, Result]):
    """Collects calls made within a moment of each other and makes one of them.

    A failure of the shared call is raised in every caller; an exception among its results in the one it belongs to.
    """

    def __init__(
        self, together: Callable[[list[Call]], Awaitable[Sequence[Result | BaseException]]], seconds: float = 0.003
    ) -> None:
        self._together = together
        self._seconds = seconds
        self._waiting: list[tuple[Call, asyncio.Future[Result]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, call: Call) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        if len(self._waiting) == 1:
            task = asyncio.create_task(self._flush())
            self._tasks.add(task)  # the event loop itself keeps no reference to a task
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _flush(self) -> None:
        seen = 0
        while seen != len(self._waiting):
            seen = len(self._waiting)
            await asyncio.sleep(self._seconds)
        waiting, self._waiting = self._waiting, []
        try:
            results = await self._together([call for call, _ in waiting])
        except Exception as error:  # belongs to the callers
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(waiting, results, strict=True):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)


class Client:
    """verl's `LLMServerClient`, many requests a message."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._gather: Gather[dict[str, Any], Any] = Gather(self._together)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def generate(self, request_id: str, **request: Any) -> Any:
        """One response, as verl/workers/rollout/llm_server.py generate()."""
        unused = ("audio_data", "mm_processor_kwargs", "mm_processor_output", "priority")
        kept = {name: value for name, value in request.items() if name not in unused}
        return await self._gather({"request_id": request_id, **kept})

    async def _together(self, requests: list[dict[str, Any]]) -> list[Any]:
        shares = [requests[start : start + SHARE] for start in range(0, len(requests), SHARE)]
        return [output for share in await asyncio.gather(*map(self._share, shares)) for output in share]

    async def _share(self, requests: list[dict[str, Any]]) -> list[Any]:
        first = requests[0]
        name = first["request_id"]
        server_id, server = await self._client._acquire_server(
            name, prompt_ids=first["prompt_ids"], sampling_params=first["sampling_params"]
        )
        try:
            outputs: list[Any] = await server.generate_many.remote(requests)
        finally:
            self._client._release_server(server_id, request_id=name)
        for output in outputs:
            version = output.extra_fields.get("global_steps")
            output.extra_fields |= {"min_global_steps": version, "max_global_steps": version}
        return outputs


class Queue:
    """The module `transfer_queue`, many puts a message."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._gather: dict[tuple[str, bool], Gather[tuple[str, Any, Any], None]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    async def async_kv_put(self, key: str, partition_id: str, tag: Mapping[str, Any]) -> None:
        """A tag alone: verl's marks of a prompt's status."""
        await self._put(partition_id, False)((key, None, dict(tag)))

    async def async_kv_batch_put(
        self, keys: list[str], fields: TensorDict, tags: list[dict[str, Any]], partition_id: str
    ) -> None:
        """The trajectories of one session."""
        rows = [_row(fields, number) for number in range(len(keys))]
        put = self._put(partition_id, True)
        await asyncio.gather(*(put(entry) for entry in zip(keys, rows, tags, strict=True)))

    def _put(self, partition_id: str, with_fields: bool) -> Gather[tuple[str, Any, Any], None]:
        kind = (partition_id, with_fields)
        if kind not in self._gather:

            async def together(entries: list[tuple[str, Any, Any]]) -> list[None]:
                keys, rows, tags = (list(column) for column in zip(*entries, strict=True))
                fields = list_of_dict_to_tensordict(rows) if with_fields else None
                await self._queue.async_kv_batch_put(keys=keys, fields=fields, tags=tags, partition_id=partition_id)
                return [None] * len(entries)

            self._gather[kind] = Gather(together)
        return self._gather[kind]


class Reward:
    """The handle of a reward worker, many responses a message (verl/experimental/reward_loop/reward_loop.py)."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._gather: Gather[DataProto, Any] = Gather(self._together)
        self.compute_score = self  # called as `handle.compute_score.remote(data)`

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def remote(self, data: DataProto) -> Awaitable[Any]:
        """The score of one trajectory. Several outputs of one session are scored together, verl's way."""
        return self._gather(data) if len(data) == 1 else self._handle.compute_score.remote(data)

    async def _together(self, rows: list[DataProto]) -> Sequence[Any]:
        try:
            scores: list[Any] = await self._handle.compute_score_batch.remote(padded(rows))
        except Exception:  # of some row: find out which, so that only its caller hears of it
            return await asyncio.gather(
                *(self._handle.compute_score.remote(row) for row in rows), return_exceptions=True
            )
        return scores


def padded(rows: Sequence[DataProto]) -> DataProto:
    """Rows of any length as one batch in verl's usual layout: prompts padded on the left, responses on the right."""
    left = max(row.batch["prompts"].shape[-1] for row in rows)
    right = max(row.batch["responses"].shape[-1] for row in rows)

    def pad(row: DataProto, name: str) -> torch.Tensor:
        value: torch.Tensor = row.batch[name]
        before = 0 if name == "responses" else left - row.batch["prompts"].shape[-1]
        after = 0 if name == "prompts" else right - row.batch["responses"].shape[-1]
        return torch.nn.functional.pad(value, (before, after))

    names = rows[0].batch.keys()
    tensors = {name: torch.cat([pad(row, name) for row in rows]) for name in names}
    others = {}
    for name in rows[0].non_tensor_batch:
        others[name] = np.empty(len(rows), dtype=object)  # one object a row, of whatever shape
        for number, row in enumerate(rows):
            others[name][number] = row.non_tensor_batch[name][0]
    return DataProto(batch=TensorDict(tensors, batch_size=len(rows)), non_tensor_batch=others)


def _row(fields: TensorDict, number: int) -> dict[str, Any]:
    """One row of a TensorDict as verl made it from a dict (list_of_dict_to_tensordict)."""
    row = {}
    for name, column in fields.items():
        if isinstance(column, NonTensorStack):
            row[name] = column[number].data
        elif isinstance(column, NonTensorData):
            row[name] = column.data
        else:
            row[name] = column[number]
    return row


class _Economical:
    """What both trainers' workers have in common; stands before verl's worker in the class order."""

    config: Any
    llm_client: Any
    reward_loop_worker_handles: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm_client = Client(self.llm_client)
        handles = self.reward_loop_worker_handles
        self.reward_loop_worker_handles = handles and [Reward(handle) for handle in handles]
        self._loop: Any = None

    async def _run_agent_loop(
        self, sampling_params: dict[str, Any], trajectory: dict[str, Any], *, agent_name: str, **fields: Any
    ) -> Any:
        if agent_name != LOOP:  # a loop that may keep state: verl's way, an instance a request
            return await super()._run_agent_loop(  # type: ignore[misc]
                sampling_params, trajectory, agent_name=agent_name, **fields
            )
        trace = fields.pop("trace", True)
        if self._loop is None:
            self._loop = self._make_loop()
        with rollout_trace_attr(
            step=trajectory["step"],
            sample_index=trajectory["sample_index"],
            rollout_n=trajectory["rollout_n"],
            validate=trajectory["validate"],
            name="agent_loop",
            trace=trace,
        ):
            output = await self._loop.run(sampling_params, **fields)
            return await self._agent_loop_postprocess(output, trajectory["validate"], **fields)  # type: ignore[attr-defined]

    def _make_loop(self) -> Any:
        this: Any = self  # the attributes are verl's
        return hydra.utils.instantiate(
            config=verl_loops._agent_loop_registry[LOOP],
            trainer_config=verl_loops.DictConfigWrap(config=this.config),
            server_manager=this.llm_client,
            tokenizer=this.tokenizer,
            processor=this.processor,
            hf_model_type=this.hf_model_type,
            dataset_cls=this.dataset_cls,
            data_config=verl_loops.DictConfigWrap(this.config.data),
            tools=verl_loops.ToolListWrap(this.tools),
        )


class WorkerV0(_Economical, verl_loops.AgentLoopWorker):  # type: ignore[misc]  # verl ships no usable types
    """For the V0 trainer, which takes trajectories from the reply."""


class WorkerV1(_Economical, agent_loop_tq.AgentLoopWorkerTQ.__ray_actor_class__):  # type: ignore[misc]
    """For the V1 trainer, which takes trajectories from TransferQueue."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The name that verl's worker puts through. Ray sends the base class by value (its own name in the module is the
        # decorated actor class), so its methods may have globals of their own beside the module's.
        for method in (self._run_prompt, self._agent_loop_postprocess):
            names = inspect.unwrap(method).__globals__
            if not isinstance(names["tq"], Queue):
                names["tq"] = Queue(names["tq"])


class ManagerV0(AgentLoopManager):  # type: ignore[misc]
    """verl's V0 manager with our workers."""

    agent_loop_workers_class = ray.remote(WorkerV0)


class ManagerV1(agent_loop_tq.AgentLoopManagerTQ):  # type: ignore[misc]
    """verl's V1 manager with our workers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(WorkerV1)


class Manager:
    """The one name in the config: both trainers call `create`, with `config` by name."""

    @classmethod
    def create(cls, *args: Any, **kwargs: Any) -> Any:
        """A manager for the trainer that the config selects (verl/trainer/main_ppo.py)."""
        manager = ManagerV1 if kwargs["config"].trainer.use_v1 else ManagerV0
        return manager.create(*args, **kwargs)
