"""What a trial will cost in GPU-hours, before it is started: an estimate from arithmetic, and said to be one.

Guarantees: no measurement, no network; the same config gives the same figure. It is an upper bound on the tokens (every
response as long as allowed) at an assumed utilisation, so it is right within a factor of a few and good for comparing
plans and for catching a sweep that is a thousand times too dear.
"""

from __future__ import annotations

from dataclasses import dataclass

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "B200": 2250.0, "RTX4090": 165.0}
"""Dense bf16 matrix throughput per GPU by the vendors' data sheets."""
TRAIN_UTILISATION = 0.35
"""Share of the peak in forward and backward passes; published RL post-training runs report 0.3 to 0.45."""
ROLLOUT_UTILISATION = 0.10
"""Share of the peak while generating, which is bound by memory and not by arithmetic."""


def peak_tflops(gpu: str) -> float | None:
    """Of a GPU by its name, `H100`; None where it is not known."""
    return PEAK_TFLOPS.get(gpu.upper().replace(" ", ""))


@dataclass(frozen=True, slots=True)
class Cost:
    """The estimate for one trial."""

    tokens: int
    """Prompt and response tokens over all steps, at most."""
    gpu_hours: float | None
    """None where the accelerator is unknown or the cluster has none."""


def estimate(
    *,
    params: int | None,
    steps: int,
    responses_per_step: int,
    max_prompt: int,
    max_response: int,
    forward_passes: int,
    critic: bool,
    gpu: str,
) -> Cost:
    """The cost of one trial.

    FLOPs by the usual rule of 2 per parameter and token for a forward pass and 6 for a training step (Kaplan et al.,
    2020, section 2.1). `forward_passes` counts the log-prob passes per step (old policy, reference).
    """
    tokens = steps * responses_per_step * (max_prompt + max_response)
    peak = peak_tflops(gpu)
    if params is None or peak is None:
        return Cost(tokens, None)
    models = 2 if critic else 1
    train = (6 * models + 2 * forward_passes + (2 if critic else 0)) * params * tokens
    rollout = 2 * params * tokens
    seconds = (train / TRAIN_UTILISATION + rollout / ROLLOUT_UTILISATION) / (peak * 1e12)
    return Cost(tokens, seconds / 3600)
