"""The places where verl 0.9.1 assumes an accelerator and offers no plug point.

Guarantees: each patch replaces one value, names the verl line it is for, and changes nothing that a GPU run uses
(this module is loaded only when the attempt's platform is the CPU).
"""

from __future__ import annotations

import functools
import resource
import sys
from typing import Any

import torch


def _resident(*_: Any, **__: Any) -> int:
    """Peak resident bytes of this process: what "device memory" means on a CPU."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but on macOS


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _torch_cpu() -> None:
    """Give `torch.cpu` what verl calls on its device module.

    Memory statistics: verl/workers/engine_workers.py:219; random state on resume: verl/utils/checkpoint/
    checkpoint_manager.py:218 (its state dict has the key "cpu", so the device branch is taken as well).
    """
    functions: dict[str, Any] = {
        "max_memory_allocated": _resident,
        "max_memory_reserved": _resident,
        "memory_allocated": _resident,
        "memory_reserved": _resident,
        "empty_cache": _nothing,
        "reset_peak_memory_stats": _nothing,
        "manual_seed": torch.manual_seed,
        "manual_seed_all": torch.manual_seed,
        "get_device_name": lambda *_: "CPU",
        "get_rng_state": torch.get_rng_state,
        "set_rng_state": torch.set_rng_state,
    }
    for name, function in functions.items():
        if not hasattr(torch.cpu, name):
            setattr(torch.cpu, name, function)


def _process_group() -> None:
    """verl/utils/distributed.py:89 builds "cpu:gloo,cpu:gloo", which torch rejects: duplicate device type."""
    import verl.utils.distributed as target

    original = target.initialize_global_process_group_ray

    @functools.wraps(original)
    def initialize(timeout_second: int | None = None, backend: str | None = None) -> Any:
        return original(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    target.initialize_global_process_group_ray = initialize


def _critic() -> None:
    """verl/utils/model.py:649 asks for flash_attention_2, which is CUDA only, whatever the config says."""
    import verl.utils.model as target

    def load(local_path: str, torch_dtype: torch.dtype, model_config: Any, trust_remote_code: bool) -> Any:
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification.from_pretrained(
            local_path,
            dtype=torch_dtype,
            config=model_config,
            attn_implementation="sdpa",
            trust_remote_code=trust_remote_code,
        )

    target.load_valuehead_model = load


def _reference() -> None:
    """verl/workers/engine/fsdp/transformer_impl.py:462 pins the reference model's memory: CUDA only."""
    import verl.utils.fsdp_utils as target

    original = target.CPUOffloadPolicy
    target.CPUOffloadPolicy = lambda **_: original(pin_memory=False)


def apply() -> None:
    """Apply every patch. The modules patched are imported by each verl process anyway."""
    _torch_cpu()
    _process_group()
    _critic()
    _reference()
