"""Where this package lies, and how another interpreter finds it. Only the standard library is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder that it is imported from."""


def installed() -> bool:
    """Whether it lies among installed packages, and not in a checkout."""
    return bool({"site-packages", "dist-packages"} & set(ROOT.parts))


def pythonpath(first: Path, environment: Mapping[str, str] | None = None) -> str:
    """PYTHONPATH with that folder before what is there (default: in this process's environment)."""
    others = (os.environ if environment is None else environment).get("PYTHONPATH")
    return os.pathsep.join([str(first), *([others] if others else [])])
