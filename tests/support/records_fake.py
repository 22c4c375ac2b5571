"""Lineage records and metrics written by hand, for tests of what reads them. All are fakes: nothing was run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HASH = "0" * 64


def fake_document(folder: Path, **changes: Any) -> dict[str, Any]:
    """A whole record of the attempt in `{store}/{sweep}/trials/{trial}/attempt-{k}`; `changes` replace sections, or
    single fields where a section is given as a mapping."""
    sweep, trial, attempt = folder.parts[-4], folder.parts[-2], int(folder.name.rpartition("-")[2])
    made: dict[str, Any] = {
        "kind": "sweeper.lineage",
        "schema": 1,
        "run": {
            "sweep": sweep,
            "trial": trial,
            "attempt": attempt,
            "label": "algorithm=grpo",
            "arm": "0",
            "candidate": trial,
            "seed": None,
            "kind": "search",
            "folder": str(folder),
        },
        "fingerprint": "f" * 64,
        "overrides": ["algorithm=grpo"],
        "identity": {"seed": 1, "actor.lr": 0.001},
        "placement": {"actor.micro": 8, "trainer.dir": str(folder.parent / "checkpoints"), "name": sweep},
        "config": {
            "engine": {"name": "verl", "python": None, "env": {}},
            "objective": {"metric": "auto"},
            "trainer": {"device": "cpu"},
        },
        "inputs": [fake_input("train", "/data/train.parquet")],
        "code": {
            "root": "/src",
            "commit": "c" * 40,
            "branch": "main",
            "remote": None,
            "dirty": False,
            "patch": None,
            "left_out": [],
            "package_sha256": HASH,
        },
        "environment": {
            "python": "3.11.7",
            "platform": "Linux",
            "cpu": "a processor",
            "cores": 2,
            "lock": None,
            "packages": {"torch": "2.13.0", "verl": "0.9.1"},
            "engine": {"name": "verl", "version": "0.9.1", "commit": None},
            "gpus": [],
            "nodes": [],
            "driver": None,
            "cuda": None,
            "image": None,
        },
        "seeds": {"seed": 1},
        "parents": [],
        "checkpoints": [],
        "result": {
            "state": "finished",
            "reason": "exit",
            "exit_code": 0,
            "score": 0.5,
            "best_score": 0.5,
            "step": 3,
            "elapsed_s": 1.0,
            "gpu_hours": 0.1,
            "stop": None,
            "root_cause": [],
        },
        "times": {"created": "2026-01-01T00:00:00.000+00:00", "started": None, "ended": None},
        "hosts": ["here"],
    }
    for key, value in changes.items():
        made[key] = {**made[key], **value} if isinstance(value, Mapping) and made[key] else value
    return made


def fake_input(role: str, path: str, **changes: Any) -> dict[str, Any]:
    """An input of the user's own."""
    made = {"role": role, "path": path, "sha256": HASH, "bytes": 10, "files": 1, "rows": 4}
    return {**made, "built": None, "dvc": None, "revision": None, **changes}


def fake_parent(relation: str, **changes: Any) -> dict[str, Any]:
    made = {"relation": relation, "sweep": "s", "trial": "009", "attempt": 1, "step": 4}
    return {**made, "checkpoint": HASH, "lineage": None, **changes}


def fake_metrics(steps: Mapping[int, Mapping[str, Any]]) -> str:
    """A metrics file as verl's file logger writes it."""
    return "".join(json.dumps({"step": step, "data": dict(values)}) + "\n" for step, values in steps.items())


CURVE = {
    step: {"actor/loss": 0.1 * step, "val-core/x/acc/mean@1": 0.1 + step / 10, "timing_s/step": 1.0 + step}
    for step in (1, 2, 3)
}


def fake_run(
    store: Path,
    name: str,
    *,
    attempt: int = 1,
    metrics: Mapping[int, Mapping[str, Any]] | None = None,
    **changes: Any,
) -> Path:
    """Write the records of an attempt of `SWEEP/TRIAL`; its lineage.json. The result is the curve's, or is given."""
    curve = CURVE if metrics is None else metrics
    scores = [v for step in sorted(curve) for k, v in curve[step].items() if k.startswith("val-core/")]
    told = {
        "score": scores[-1] if scores else None,
        "best_score": max(scores, default=None),
        "step": max(curve, default=0),
    }
    changes["result"] = {**told, **changes.get("result", {})}
    sweep, _, trial = name.partition("/")
    folder = store / sweep / "trials" / trial / f"attempt-{attempt}"
    folder.mkdir(parents=True)
    (store / sweep / "sweep.json").write_text("{}")
    (folder / "metrics.jsonl").write_text(fake_metrics(curve))
    (folder / "lineage.json").write_text(json.dumps(fake_document(folder, **changes)))
    return folder / "lineage.json"
