"""What verl loads in each of its processes on a CPU (`VERL_USE_EXTERNAL_MODULES`, read in verl/__init__.py).

Guarantees: importing it registers the platform and the rollout and applies the patches, once, and starts nothing.
"""

from sweeper.engines.verl.cpu import patches, platform, rollout

platform.register()
patches.apply()
rollout.register()
