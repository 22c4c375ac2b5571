"""Real verl 0.9.1 on a CPU, through verl's own plug points.

Guarantees: the trainer that runs is verl's, unchanged; the same seed gives bit-identical metrics; nothing here is
loaded unless `environment()` is set in the processes of an attempt. This package imports neither torch nor verl.

- `settings`: the environment variables and config values of a CPU run (what the orchestrator reads)
- `plugin`: what verl loads in each of its processes (`platform`, `patches`, `rollout`)
- `agents`: verl's agent loops with fewer messages
- `sampling`: generation whose rows do not depend on each other
- `vllm_setup`, `vllm_plugin`: a real vLLM rollout instead, in an environment of its own (docs/placement.md)
- `determinism`: the seeded agent loop and the ordered replay buffer, named in the config
"""

from sweeper.engines.verl.cpu.settings import ROLLOUT, VLLM, VLLM_HEAD_DIMS, VLLM_PYTHON, environment, overlay

__all__ = ["ROLLOUT", "VLLM", "VLLM_HEAD_DIMS", "VLLM_PYTHON", "environment", "overlay"]
