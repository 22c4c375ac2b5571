"""A lineage record with something in every field, for tests."""

from __future__ import annotations

from typing import Any

HASH = "0123456789abcdef" * 4


def a_record(**instead: Any) -> dict[str, Any]:
    """A valid record; `instead` replaces whole sections."""
    return {
        "kind": "sweeper.lineage",
        "schema": 1,
        "run": {
            "sweep": "s",
            "trial": "000",
            "attempt": 2,
            "label": "lr=0.001",
            "arm": "0",
            "candidate": "000",
            "seed": None,
            "kind": "search",
            "folder": "/store/s/trials/000/attempt-2",
        },
        "fingerprint": HASH,
        "overrides": ["lr=0.001"],
        "identity": {"actor.lr": 0.001, "seed": 1},
        "placement": {"lr": 0.001},
        "config": {"actor": {"lr": 0.001}, "lr": 0.001, "seed": 1},
        "inputs": [
            {
                "role": "train",
                "path": "/data/train.parquet",
                "sha256": HASH,
                "bytes": 10,
                "files": 1,
                "rows": 3,
                "built": {"what": "environment", "kind": "arithmetic", "spec": {"largest": 9}},
                "dvc": {"path": "/data/train.parquet.dvc", "md5": "abc"},
                "revision": None,
            }
        ],
        "code": {
            "root": "/code",
            "commit": "1" * 40,
            "branch": "main",
            "remote": "https://host/a/b",
            "dirty": True,
            "patch": {"file": "code.patch", "sha256": HASH, "bytes": 7},
            "left_out": [{"path": ".env", "bytes": 3, "why": "secret"}],
            "package_sha256": HASH,
        },
        "environment": {
            "python": "3.11.7",
            "platform": "Linux",
            "cpu": "some CPU",
            "cores": 2,
            "lock": {"file": "uv.lock", "sha256": HASH},
            "packages": {"torch": "2.13.0"},
            "engine": {"name": "verl", "version": "0.9.1", "commit": None},
            "gpus": ["H100"],
            "nodes": [{"host": "n0", "cpu": "EPYC", "gpus": ["H100"], "driver": "570"}],
            "driver": "570",
            "cuda": "12.8",
            "image": None,
        },
        "seeds": {"seed": 1},
        "parents": [
            {
                "relation": "previous-attempt",
                "sweep": "s",
                "trial": "000",
                "attempt": 1,
                "step": 2,
                "checkpoint": HASH,
                "lineage": None,
            }
        ],
        "checkpoints": [{"step": 4, "path": "/c/global_step_4", "digest": HASH, "bytes": 9, "files": 2}],
        "result": {
            "state": "finished",
            "reason": "exit",
            "exit_code": 0,
            "score": 0.5,
            "best_score": 0.6,
            "step": 4,
            "elapsed_s": 1.5,
            "gpu_hours": 0.1,
            "stop": None,
            "root_cause": [],
        },
        "times": {"created": "2026-01-01T00:00:00.000+00:00", "started": None, "ended": None},
        "hosts": ["h"],
        **instead,
    }
