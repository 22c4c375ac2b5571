"""A lineage record that is made up, whole by the schema: for tests, and for pictures of what MLflow shows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.lineage import document


def sha(text: str) -> str:
    """A SHA-256 for something that does not exist."""
    return hashlib.sha256(text.encode()).hexdigest()


def fake_record(
    folder: Path,
    *,
    steps: Sequence[int] = (),
    parents: Sequence[Mapping[str, Any]] = (),
    val: str = "val",
    **run: Any,
) -> dict[str, Any]:
    """The record of the attempt of that folder (`.../SWEEP/trials/TRIAL/attempt-N`).

    Args:
        folder: the attempt's.
        steps: of the checkpoints that it left; their folders are not made.
        parents: as the schema has them.
        val: what the validation data's digest is made of.
        run: fields of `run` instead of the usual ones.
    """
    sweep, trial, attempt = folder.parents[2].name, folder.parent.name, int(folder.name.partition("-")[2])
    inputs = [("train", "train", 5000), ("val", val, 500), ("model", "model", None)]
    return {
        "kind": document.KIND,
        "schema": document.SCHEMA,
        "run": {
            "sweep": sweep,
            "trial": trial,
            "attempt": attempt,
            "label": trial,
            "arm": "0",
            "candidate": trial,
            "seed": 1,
            "kind": "search",
            "folder": str(folder),
            **run,
        },
        "fingerprint": sha(trial),
        "overrides": [],
        "identity": {},
        "placement": {},
        "config": {"environment": {"name": "arithmetic"}, "objective": {"metric": "auto", "mode": "max"}},
        "inputs": [
            {
                "role": role,
                "path": f"/data/{role}.parquet",
                "sha256": sha(content),
                "bytes": 1000,
                "files": 1,
                "rows": rows,
                "built": None,
                "dvc": None,
                "revision": None,
            }
            for role, content, rows in inputs
        ],
        "code": {
            "root": "/code",
            "commit": sha("commit")[:40],
            "branch": "main",
            "remote": None,
            "dirty": True,
            "patch": {"file": document.PATCH, "sha256": sha("patch"), "bytes": 12},
            "left_out": [],
            "package_sha256": sha("package"),
        },
        "environment": {
            "python": "3.11",
            "platform": "linux",
            "cpu": "fake",
            "cores": 2,
            "lock": None,
            "packages": {},
            "engine": {"name": "fake", "version": "1", "commit": None},
            "gpus": [],
            "nodes": [],
            "driver": None,
            "cuda": None,
            "image": None,
        },
        "seeds": {"seed": 1},
        "parents": [dict(p) for p in parents],
        "checkpoints": [
            {
                "step": step,
                "path": str(folder.parent / "checkpoints" / f"global_step_{step}"),
                "digest": sha(f"{trial} {step}"),
                "bytes": 4_000_000,
                "files": 7,
            }
            for step in steps
        ],
        "result": None,
        "times": {"created": "2026-11-21T12:00:00+00:00", "started": None, "ended": None},
        "hosts": ["fake"],
    }


def write_fake(folder: Path, **what: Any) -> list[Path]:
    """Write the record and a patch into an attempt's folder; the two files."""
    document.write(folder, fake_record(folder, **what))
    patch = folder / document.PATCH
    patch.write_text("diff --git\n")
    return [folder / document.NAME, patch]
