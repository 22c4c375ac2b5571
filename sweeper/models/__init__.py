"""Models: their facts (`facts`), the tiny one that is built here (`tiny`), and where a config's own build lives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeper import cache


def build_spec(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the model that this config builds depends on; None where the model is a folder or an id of the hub."""
    model = config.get("model") or {}
    if model.get("build") != "tiny" or model.get("path"):
        return None
    from sweeper.models import tiny  # imports sweeper.environments, which stands on this package's facts

    environment = config.get("environment") or {}
    # The warm-up must not see what the trial's own task holds out.
    task = environment if environment.get("kind") == "arithmetic" else None
    return tiny.spec(model.get("arch"), model.get("warm_up"), task)


def build_folder(config: Mapping[str, Any], cache_root: Path | None = None) -> Path | None:
    """Where the model that this config builds lives, built or not; None where nothing is built."""
    spec = build_spec(config)
    if spec is None:
        return None
    from sweeper.models import tiny

    return tiny.path(cache_root or cache.root(), spec)
