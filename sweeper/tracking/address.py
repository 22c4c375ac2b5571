"""Where an MLflow store is, as people write it.

Guarantees: nothing is opened or asked, MLflow is not imported; what is shown or recorded has no password.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from sweeper.errors import Problem

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "file", "databricks", "databricks-uc", "uc")
"""That MLflow can open by itself (3.17: mlflow/tracking/_tracking_service/utils.py); a plugin may bring others."""


def check(tracking: Mapping[str, Any]) -> list[Problem]:
    """Whether MLflow knows a store of that kind, for the config group `tracking`; whether it answers is not asked."""
    if tracking.get("name") != "mlflow":
        return []
    given = tracking.get("uri")
    if given is not None and not (isinstance(given, str) and given):
        return [Problem(f"tracking.uri={given}", valid="an MLflow tracking URI, or null", key="tracking.uri")]
    scheme = address(given).partition(":")[0].partition("+")[0]
    if scheme in SCHEMES or scheme in {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}:
        return []
    name = f"tracking.uri={given}" if given else f"MLFLOW_TRACKING_URI={os.environ['MLFLOW_TRACKING_URI']}"
    return [
        Problem(
            f"{shown(name)}: MLflow has no store of the kind {scheme!r}",
            valid="a folder, or a URI that begins with " + ", ".join(SCHEMES),
            fix="tracking.uri=sqlite:///mlflow.db",
            key="tracking.uri",
        )
    ]


def sqlite_file(uri: str) -> Path | None:
    """The database file of a `sqlite:///` URI."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def address(uri: str | None) -> str:
    """The store that is meant, absolute: the one that is named, else `$MLFLOW_TRACKING_URI`, else `sqlite:///mlflow.db`
    in the current folder, which a plain `mlflow ui` opens there."""
    return absolute(uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")


def absolute(uri: str) -> str:
    """A relative `sqlite:///` URI or plain path made absolute, so that it means the same from any folder."""
    file = sqlite_file(uri)
    if file and not file.is_absolute():
        return "sqlite:///" + str(Path.cwd() / file) + uri.removeprefix(f"sqlite:///{file}")
    return uri if "://" in uri or uri.startswith("databricks") else Path(uri).absolute().as_uri()


def shown(uri: str) -> str:
    """A URI without the name and password that may be in it; a password may itself hold `@` and `/`."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else uri
