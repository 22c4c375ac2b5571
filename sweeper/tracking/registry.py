"""Which checkpoints of a sweep are in MLflow's model registry, by whoever put them there.

Guarantees: nothing is written; a database file that is not there has none, and is not made; MLflow is imported when a
sweep that was tracked is asked for.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from sweeper.errors import SweeperError
from sweeper.tracking.address import shown, sqlite_file
from sweeper.tracking.spool import NAME
from sweeper.tracking.store import quiet, reason
from sweeper.trial.records import SweepFolder

PAGE = 1000
_MODEL = re.compile(r"\bm-[0-9a-f]{32}\b")


def held(sweep: Path) -> dict[Path, str]:
    """Checkpoint of the sweep, resolved -> the versions that it is, as people say them, in the sweep's tracking store.

    Args:
        sweep: the sweep's folder.

    Raises:
        SweeperError: the store does not answer.
    """
    uri = _uri(sweep)
    file = sqlite_file(uri) if uri else None
    if uri is None or (file is not None and not file.exists()):
        return {}
    quiet()
    from mlflow import MlflowClient

    found: dict[Path, list[str]] = {}
    models: dict[str, str] = {}
    try:
        client: Any = MlflowClient(tracking_uri=uri)
        for version in _versions(client):
            said_path = version.tags.get("sweeper.path") or _of_model(client, version, models)
            path = Path(said_path).resolve() if said_path else None
            if path and path.is_relative_to(sweep.resolve()):
                # What a search gives has no aliases (MLflow 3.17).
                aliases = client.get_model_version(version.name, version.version).aliases
                said = f"version {version.version} of {version.name}" + (f" ({', '.join(aliases)})" if aliases else "")
                found.setdefault(path, []).append(said)
    except Exception as error:
        again = f"sweeper gc {SweepFolder(sweep).typed}"
        raise SweeperError(
            f"MLflow at {shown(uri)} does not say what its model registry holds ({reason(error)})\n"
            f"  try:   {again}   (once it answers)"
        ) from error
    return {path: ", ".join(versions) for path, versions in found.items()}


def _uri(sweep: Path) -> str | None:
    """Where the sweep was tracked: its first call, which the spool keeps without passwords. MLflow takes those from its
    environment; a URI that had one is the environment's, where that is the same place."""
    try:
        with (sweep / NAME).open(encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return None
    said = str(first.get("uri") or "")
    ours = os.environ.get("MLFLOW_TRACKING_URI", "")
    return (ours if ours and shown(ours) == said else said) or None


def _versions(client: Any) -> Any:
    token = None
    while True:
        page = client.search_model_versions(max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _of_model(client: Any, version: Any, known: dict[str, str]) -> str:
    """Where the checkpoint is that a version which people made from one of our logged models stands for; empty where
    it is of something else. The store leaves `model_id` out, and the source names the model (MLflow 3.17)."""
    from mlflow.exceptions import MlflowException

    found = _MODEL.search(str(version.source or ""))
    if found is None:
        return ""
    name = found[0]
    if name not in known:
        try:
            known[name] = str(client.get_logged_model(name).tags.get("sweeper.path", ""))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            known[name] = ""  # deleted
    return known[name]
