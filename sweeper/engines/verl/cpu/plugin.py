"""What verl loads in each of its processes on a CPU (`VERL_USE_EXTERNAL_MODULES`, read in verl/__init__.py).

Guarantees: importing it registers the platform and the rollout and applies the patches, once, and starts nothing.
"""

from __future__ import annotations

from typing import Any

from sweeper.engines.verl.cpu import patches, platform
from sweeper.engines.verl.cpu.settings import ROLLOUT

_ROLLOUT_MODULE = "sweeper.engines.verl.cpu.rollout"


def _register_rollout() -> None:
    """By name: the module is imported where it is used, and it may be what imports verl (and so this) first."""
    from verl.workers.rollout import base
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    def replica() -> Any:
        from sweeper.engines.verl.cpu.rollout import Replica

        return Replica

    base._ROLLOUT_REGISTRY[(ROLLOUT, "async")] = f"{_ROLLOUT_MODULE}.ServerAdapter"
    RolloutReplicaRegistry.register(ROLLOUT, replica)


platform.register()
patches.apply()
_register_rollout()
