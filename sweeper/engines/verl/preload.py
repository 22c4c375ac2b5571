"""What a fork server imports for verl, and how verl's Ray workers are made to come from it.

Guarantees: none of the modules imports Ray or verl (Ray reads its settings when it is imported and starts threads),
initialises CUDA or starts a thread that a fork would miss. With them in place, importing Ray, verl's trainer and its
workers takes 0.3 s of CPU instead of 5 s, in each of about eight processes. What is not installed is skipped.
"""

from __future__ import annotations

MODULES = (
    # verl/protocol.py, verl/utils: most of the trainer's imports are these and what they import
    "torch", "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor",
    "tensordict", "datasets", "pandas", "pyarrow.parquet", "numpy", "PIL.Image",
    # transformers imports lazily: these are what its top level defers and verl then needs
    "transformers", "transformers.models.auto.modeling_auto", "transformers.models.auto.processing_auto",
    "transformers.models.auto.tokenization_auto", "transformers.generation.utils", "transformers.modeling_utils",
    "transformers.trainer_pt_utils", "peft", "accelerate", "sklearn.metrics", "scipy.stats",
    # the driver, the reward loop and the rollout's servers
    "hydra", "omegaconf", "aiohttp", "fastapi", "uvicorn", "zmq", "torchdata.stateful_dataloader", "cachetools",
    "codetiming", "orjson", "pydantic", "msgspec", "jsonschema", "requests", "psutil", "yaml", "rich",
)  # fmt: skip

FORK_ARGV = ("+ray_kwargs.ray_init.runtime_env.py_executable={python}",)
"""Makes Ray start its Python workers with the fork server's client (verl passes `ray_init` on to `ray.init`)."""


def modules(model_type: str = "") -> tuple[str, ...]:
    """The modules for a model of this type (`qwen2`: what Hugging Face's config.json calls it)."""
    return (*MODULES, f"transformers.models.{model_type}.modeling_{model_type}") if model_type else MODULES
