"""The interpolations of our configs beside OmegaConf's own.

Guarantees: registered once a process; pure functions of their arguments, which `compose` relies on.
"""

from __future__ import annotations

from omegaconf import OmegaConf


def floordiv(a: int, b: int) -> int:
    """`${floordiv:${a},${b}}`: how often b fits into a. Zero for b = 0, which the checks of a trial then name."""
    return int(a) // int(b) if int(b) else 0


def register() -> None:
    """Make them known to OmegaConf; may be called again."""
    OmegaConf.register_new_resolver("floordiv", floordiv, replace=True)
