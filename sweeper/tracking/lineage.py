"""What a lineage record says in MLflow's words: tags to filter by, datasets, one model a checkpoint.

Guarantees: computed from the record alone, so that saying it again says the same; no MLflow is imported here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

DIGEST = 36
"""MLflow keeps so many characters of a dataset's digest (mlflow/utils/validation.py MAX_DATASET_DIGEST_SIZE): the
first of the SHA-256, whose whole is a tag of the input."""
ROLES = ("train", "val", "test")

Record = Mapping[str, Any]
"""A `lineage.json` (sweeper/lineage/document.py)."""


class Data(NamedTuple):
    """A dataset that a trial reads."""

    role: str
    """`train`, `val` or `test`."""
    name: str
    """The environment and the role: `gsm8k-train`."""
    digest: str
    sha256: str
    source: str
    """JSON: where it is."""
    profile: str
    """JSON: how much it is."""


def datasets(record: Record) -> list[Data]:
    """The data of a trial, in the record's order."""
    environment = (record["config"].get("environment") or {}).get("name") or "data"
    found = []
    for entry in record["inputs"]:
        if entry["role"] in ROLES and entry["sha256"]:  # without: it is not on this machine
            source = {"uri": entry["path"], **({"dvc": entry["dvc"]} if entry.get("dvc") else {})}
            profile = {"num_rows": entry["rows"], "num_bytes": entry["bytes"], "num_files": entry["files"]}
            found.append(
                Data(
                    entry["role"],
                    f"{environment}-{entry['role']}",
                    entry["sha256"][:DIGEST],
                    entry["sha256"],
                    json.dumps(source),
                    json.dumps({k: v for k, v in profile.items() if v is not None}),
                )
            )
    return found


def digest(record: Record, *roles: str) -> str:
    """One digest of the data of those roles, by default of all: the SHA-256 of [[role, SHA-256], ...], sorted."""
    pairs = sorted([d.role, d.sha256] for d in datasets(record) if d.role in (roles or ROLES))
    return _sha256(pairs) if pairs else ""


def tags(record: Record) -> dict[str, str]:
    """What runs are filtered by. The trial's own words (fingerprint, sweep, arm, seed) come with the call."""
    code = record["code"]
    found = {
        "sweeper.data": digest(record),
        "sweeper.commit": code["commit"] or "",
        "mlflow.source.git.commit": code["commit"] or "",  # the column `Version` of MLflow's table of runs
        "sweeper.branch": code["branch"] or "",
        "sweeper.dirty": str(bool(code["dirty"])).lower(),
        "sweeper.patch": (code["patch"] or {}).get("sha256", ""),
        "sweeper.parent": "; ".join(f"{p['relation']} {place(p)}" for p in record["parents"]),
    }
    return {k: v for k, v in found.items() if v}


def place(parent: Mapping[str, Any]) -> str:
    """A parent as people write it: `sweep/trial/attempt`, with `@step` where it is a checkpoint."""
    parts = [str(parent[k]) for k in ("sweep", "trial", "attempt") if parent.get(k) is not None]
    return "/".join(parts) + (f"@{parent['step']}" if parent.get("step") is not None else "")


def comparable(record: Record) -> str:
    """Equal for records whose scores mean the same: the same metric on the same validation data."""
    metric = (record["config"].get("objective") or {}).get("metric")
    return _sha256([metric, digest(record, "val")])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()
