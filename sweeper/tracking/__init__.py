"""Where people compare trials: `base` is the contract of a tracker, `mlflow` writes MLflow, `NoTracker` nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sweeper.errors import Problem, RequestError
from sweeper.tracking.base import NoTracker, Tracker

NAMES = ("mlflow", "none")


def get(settings: Mapping[str, Any], *, warn: Callable[[str], None]) -> Tracker:
    """The tracker that `tracking.name` asks for; `warn` is told, once, when its store cannot be written.

    Raises:
        RequestError: there is no such tracker.
    """
    name = settings["name"]
    if name == "none":
        return NoTracker()
    if name == "mlflow":
        from sweeper.tracking.mlflow import MlflowTracker

        return MlflowTracker(settings.get("uri"), warn=warn)
    raise RequestError(Problem(f"tracking={name}: unknown", valid=", ".join(NAMES), key="tracking"))
