"""The rollout `hf_cpu`: a token-in token-out server that generates with a Hugging Face model on the CPU.

Guarantees: its log-probabilities are those of the trainer's model (same code, same float32 weights); a request that
cannot be served raises in the caller, and the server lives on; results do not depend on batching (see `sampling`).
verl's side of it: a `BaseRollout` in each actor worker that hands the weights over, a `RolloutReplica` that starts the
server actor (verl/workers/rollout/{base,replica}.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from sweeper.engines.verl.cpu.sampling import Request, Response, generate_block
from sweeper.engines.verl.cpu.settings import ROLLOUT

GATHER_SECONDS = 0.01
"""A block that is not full waits until no request has come for this long. It bounds waste, never results."""


def server_name(replica_rank: int) -> str:
    """Name of a replica's actor in the attempt's own Ray cluster."""
    return f"{ROLLOUT}_server_{replica_rank}"


def check(config: Any) -> None:
    """Raise ValueError, naming the key, for rollout settings that this server cannot honour."""
    parallel = {
        "tensor_model_parallel_size": config.tensor_model_parallel_size,
        "data_parallel_size": config.data_parallel_size,
        "pipeline_model_parallel_size": config.pipeline_model_parallel_size,
    }
    for key, value in parallel.items():
        if value != 1:
            raise ValueError(
                f"actor_rollout_ref.rollout.{key}={value}: the rollout {ROLLOUT} holds the whole model in one process; "
                f"valid: 1 (every rank gets a server of its own, so all {value} ranks still generate)"
            )


class ServerAdapter(BaseRollout):  # type: ignore[misc]  # verl ships no usable types
    """Lives in an actor worker and pushes its weights to the server of its rank."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any = None, replica_rank: int = -1, **_: Any):
        super().__init__(config, model_config, device_mesh)
        check(self.config)
        self._replica_rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank
        self._server: Any = None

    async def resume(self, tags: list[str]) -> None:
        """The server keeps its weights and no cache between requests."""

    async def release(self) -> None:
        """As `resume`."""

    async def update_weights(
        self, weights: Any, global_steps: int | None = None, wire_format: str = "named_tensors", **kwargs: Any
    ) -> None:
        """Copy the trainer's weights into the server. Collective: every rank must take all of `weights`."""
        if wire_format != "named_tensors" or kwargs.get("peft_config"):
            raise ValueError(f"{ROLLOUT} takes whole weights only, not {wire_format} or LoRA adapters")
        if hasattr(weights, "__aiter__"):
            state = {name: tensor.detach().cpu().contiguous() async for name, tensor in weights}
        else:
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights}
        if self._server is None:
            self._server = ray.get_actor(server_name(self._replica_rank))
        await self._server.load_weights.remote(state, global_steps)


@dataclass(slots=True)
class _Waiting:
    request: Request
    done: asyncio.Future[Response]


class Server:
    """The actor that generates. One forward pass at a time; requests are gathered into blocks of equal shape."""

    def __init__(self, config: Any, model_config: Any) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        path = model_config.local_path if hasattr(model_config, "local_path") else model_config["path"]
        hf_config = AutoConfig.from_pretrained(path, attn_implementation="sdpa")
        dtype = getattr(torch, config.dtype)
        self._model = AutoModelForCausalLM.from_config(hf_config, dtype=dtype).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
        end = hf_config.eos_token_id if hf_config.eos_token_id is not None else tokenizer.eos_token_id
        self._end = frozenset() if config.ignore_eos else frozenset(end if isinstance(end, list) else [end])
        self._pad = tokenizer.pad_token_id or 0
        self._rows = int(config.max_num_seqs)
        self._prompt_length = int(config.prompt_length)
        self._response_length = int(config.response_length)
        self._version: int | None = None
        self._waiting: dict[int, list[_Waiting]] = defaultdict(list)
        self._worker: asyncio.Task[None] | None = None
        self._arrivals = 0
        self._busy = asyncio.Lock()

    def address(self) -> str:
        """Where the server runs, for verl's records; nothing listens there."""
        return f"{ray.util.get_node_ip_address()}:{os.getpid()}"

    async def load_weights(self, state: dict[str, torch.Tensor], version: int | None) -> None:
        """Replace the weights between two blocks. Raises ValueError when they are not this model's."""
        async with self._busy:
            missing, unexpected = self._model.load_state_dict(state, strict=False)
            missing = [name for name in missing if "lm_head" not in name]  # absent when tied to the embedding
            if missing or unexpected:
                raise ValueError(f"weights do not fit the model: missing {missing}, unexpected {unexpected}")
            self._version = version

    async def generate(
        self,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        request_id: str,
        image_data: Any = None,
        video_data: Any = None,
        **_: Any,
    ) -> TokenOutput:
        """Generate one response. Raises ValueError for images, video and unknown sampling parameters."""
        if image_data is not None or video_data is not None:
            raise ValueError(f"{ROLLOUT} generates from text only")
        limit = min(self._response_length, self._prompt_length + self._response_length - len(prompt_ids))
        request = Request.parse(prompt_ids, sampling_params, self._seed(sampling_params.get("seed"), request_id), limit)
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._waiting[request.width].append(waiting)
        self._arrivals += 1
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        response = await waiting.done
        return TokenOutput(
            token_ids=list(response.tokens),
            log_probs=list(response.log_probs) if sampling_params.get("logprobs") else None,
            stop_reason="completed",
            num_preempted=0,
            extra_fields={"global_steps": self._version},
        )

    async def generate_many(self, requests: list[dict[str, Any]]) -> list[TokenOutput]:
        """`generate` for each, one message for all (see `agents`)."""
        return list(await asyncio.gather(*(self.generate(**request) for request in requests)))

    def _seed(self, asked: int | None, request_id: str) -> int:
        """The request's seed, mixed with the version of the weights so that a prompt seen again is drawn anew."""
        own = asked if asked is not None else request_id
        return int.from_bytes(hashlib.sha256(f"{own}|{self._version}".encode()).digest()[:7], "big")

    async def _work(self) -> None:
        while any(self._waiting.values()):
            seen = self._arrivals
            if max(len(queue) for queue in self._waiting.values()) < self._rows:
                await asyncio.sleep(GATHER_SECONDS)
                if self._arrivals != seen:
                    continue
            width = max(self._waiting, key=lambda w: len(self._waiting[w]))
            block = self._waiting[width][: self._rows]
            del self._waiting[width][: self._rows]
            try:
                async with self._busy:
                    responses = await asyncio.to_thread(
                        generate_block, self._model, [w.request for w in block], self._rows, self._end, self._pad
                    )
            except Exception as error:  # belongs to the callers: the server must outlive it
                for waiting in block:
                    if not waiting.done.done():
                        waiting.done.set_exception(error)
                continue
            for waiting, response in zip(block, responses, strict=True):
                if not waiting.done.done():
                    waiting.done.set_result(response)

    async def _nothing(self, *_: Any, **__: Any) -> None:
        """Life-cycle calls that free or restore GPU memory, or profile it."""

    sleep = wake_up = abort_all_requests = resume_generation = set_global_steps = _nothing
    clear_kv_cache = release_kv_cache = resume_kv_cache = start_profile = stop_profile = _nothing


class Replica(RolloutReplica):  # type: ignore[misc]  # verl ships no usable types
    """Starts one server beside the actor worker whose weights it mirrors."""

    async def launch_servers(self) -> None:
        """Called by verl once a rank."""
        check(self.config)
        if not self.workers:
            raise ValueError(f"{ROLLOUT} runs beside the trainer only (trainer.v1.trainer_mode=sync)")
        node = await self.workers[0].__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
        server = (
            ray.remote(Server)
            .options(
                name=server_name(self.replica_rank),
                max_concurrency=self.max_concurrency,
                num_cpus=1,
                scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                    node_id=node, soft=False
                ),
            )
            .remote(self.config, self.model_config)
        )
        self.servers = [server]
        self._server_handle = server
        self._server_address = await server.address.remote()
