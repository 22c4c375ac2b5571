"""What vLLM itself loads in each of its processes on a CPU: the entry point `vllm.general_plugins` of the distribution
that `vllm_setup` writes into the environment.

Guarantees: importing it imports nothing heavy and changes nothing; `register` replaces one function of vLLM 0.31, and
only where `SWEEPER_VLLM_CPU=1` (settings.vllm_environment), so that other uses of the environment have vLLM unchanged.
"""

from __future__ import annotations

import os
from typing import Any


def plain_linear(layer: Any, remove_weight: bool) -> None:  # noqa: ARG001  # vLLM's signature
    """Multiply by `layer.weight` as it is at the time of the call.

    vLLM packs a linear layer's weights for oneDNN when they are loaded and leaves an empty parameter behind
    (model_executor/layers/linear.py:216, remove_weight=True), so that verl, which loads the trainer's weights into
    the same parameters before every step, would find nothing to load into.
    """
    import torch

    layer.cpu_linear = torch.nn.functional.linear


def register() -> None:
    """Called by vLLM before it builds an engine or loads a model."""
    if os.environ.get("SWEEPER_VLLM_CPU") != "1":
        return
    from vllm.model_executor.layers import utils

    utils.dispatch_cpu_unquantized_gemm = plain_linear
