"""Placements of a verl trial that are worth a probe: sizes of the rollout's tensor parallelism.

Guarantees: each of them can run (`rules.check` finds nothing wrong with it), the first is the config's own, and nothing
but placement differs; a size that the user typed is not questioned.
"""

from __future__ import annotations

from typing import Any

from sweeper.config import tree
from sweeper.engines.base import Config, Shape
from sweeper.engines.verl import names, rules
from sweeper.engines.verl.cpu import ROLLOUT


def placements(config: Config, shape: Shape) -> list[dict[str, Any]]:
    """Engine key -> value, the config's own first, then smaller sizes before larger ones."""
    own = int(tree.get(config, names.TP))
    found: list[dict[str, Any]] = [{names.TP: own}]
    if config.get("tp") is not None or tree.get(config, f"{names.ROLLOUT}.name") == ROLLOUT:
        return found
    # A copy of the rollout that spans nodes passes every token between them: never faster where one node holds it.
    sizes = [2**power for power in range(shape.gpus_per_node.bit_length())]
    others = [size for size in sizes if size != own and not rules.check(_with(config, size), shape)]
    return found + [{names.TP: size} for size in others]


def _with(config: Config, size: int) -> Config:
    changed: Config = tree.copy(config)
    tree.put(changed, names.TP, size)
    return changed
