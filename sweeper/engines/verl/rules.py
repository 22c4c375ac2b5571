"""Every reason why verl 0.9.1 could not run a config, found before anything is spent."""

from __future__ import annotations

from sweeper.engines.base import Config, Shape
from sweeper.errors import Problem


def check(config: Config, shape: Shape) -> list[Problem]:
    """All problems; empty when verl can run it on that shape."""
    return []
