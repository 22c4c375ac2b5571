"""Environments: a task is its data and its reward.

Each kind is a module of plain functions: `spec` (what its files depend on), `path` (where they live in the cache),
`check` (what is wrong, cheap) and `build` (write them, heavy, whole or not at all). This module chooses between them.
Guarantees: choosing, checking and resolving import nothing heavy; a file is read once, however many trials use it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from sweeper import cache
from sweeper.environments import arithmetic, custom, gsm8k, reasoning_gym
from sweeper.environments.probe import Interpreter
from sweeper.errors import Problem

KINDS = ("arithmetic", "gsm8k", "reasoning_gym", "custom")


class Built(Protocol):
    """A kind whose files are made here, into the cache."""

    def spec(self, environment: Mapping[str, Any], /) -> dict[str, Any]:
        """What the files depend on, as plain values."""
        ...

    def path(self, cache_root: Path, built: Mapping[str, Any], /) -> Path:
        """Where the folder of this spec lives, built or not."""
        ...

    def build(self, folder: Path, built: Mapping[str, Any], /) -> Path:
        """Write the folder unless it is there."""
        ...


_BUILT: dict[str, Built] = {"arithmetic": arithmetic, "gsm8k": gsm8k, "reasoning_gym": reasoning_gym}


@dataclass(frozen=True, slots=True)
class EnvironmentFiles:
    """What a trainer is given. All paths are absolute; those of a built environment may not exist yet."""

    train: Path
    val: Path
    test: Path | None = None
    """Rows that neither training nor validation sees."""
    reward: Path | None = None
    """The reward function's file; None: the trainer's own rule for the rows' `data_source`."""
    reward_name: str | None = None
    folder: Path | None = None
    """The folder in the cache that holds the files; None where they are the user's own."""
    rows: int | None = None
    """Training rows, where they can be known before the build."""

    @property
    def needs_build(self) -> bool:
        """Whether `sweeper.prepare` has to make them first."""
        return self.folder is not None and not self.folder.is_dir()


def check(config: Mapping[str, Any]) -> list[Problem]:
    """Every problem of the config's environment, its rows against the batch included."""
    environment = config["environment"]
    interpreter = Interpreter.of(config)
    match environment["kind"]:
        case "arithmetic":
            problems = arithmetic.check(environment)
        case "gsm8k":
            problems = gsm8k.check(environment)
        case "reasoning_gym":
            problems = reasoning_gym.check(environment, interpreter)
        case "custom":
            problems = custom.check(environment, interpreter)
        case kind:
            near = difflib.get_close_matches(str(kind), KINDS, n=1)
            fix = f"environment.kind={near[0]}" if near else ""
            return [Problem(f"environment.kind={kind}", valid=", ".join(KINDS), fix=fix, key="environment.kind")]
    return problems or check_batch(resolve(config), config["data"]["train_batch_size"])


def check_batch(files: EnvironmentFiles, batch: int) -> list[Problem]:
    """A training set smaller than one batch gives no step at all: verl's loader drops the last, incomplete batch.

    verl/trainer/ppo/ray_trainer.py `_create_dataloader` (drop_last=True).
    """
    if files.rows is None or files.rows >= batch:
        return []
    return [
        Problem(
            f"the training set has {files.rows} rows, fewer than data.train_batch_size={batch}",
            valid=f"data.train_batch_size up to {files.rows}",
            fix="a smaller responses_per_step",
            key="data.train_batch_size",
            source="verl/trainer/ppo/ray_trainer.py",
        )
    ]


def resolve(config: Mapping[str, Any], cache_root: Path | None = None) -> EnvironmentFiles:
    """The files of the config's environment, built or not. Only after `check` found nothing."""
    environment = config["environment"]
    kind = environment["kind"]
    if kind == "custom":
        train, val = custom.files(environment)
        reward, name = custom.reward(environment) or (None, None)
        return EnvironmentFiles(train, val, None, reward, name, None, custom.count(environment))
    if kind == "gsm8k":
        rows = gsm8k.count(environment)
        own = gsm8k.in_place(environment)
        if own:
            return EnvironmentFiles(*own, rows=rows)
        folder = folder_of(environment, cache_root)
        return EnvironmentFiles(folder / "train.parquet", folder / "val.parquet", folder=folder, rows=rows)
    folder = folder_of(environment, cache_root)
    if kind == "arithmetic":
        test, rows = folder / arithmetic.TEST, _arithmetic_rows(json.dumps(arithmetic.spec(environment)))
    else:
        test, rows = None, environment["train_rows"]
    return EnvironmentFiles(
        folder / "train.parquet",
        folder / "val.parquet",
        test,
        folder / "reward.py",
        "compute_score",
        folder,
        rows,
    )


@lru_cache(maxsize=64)
def _arithmetic_rows(spec: str) -> int:
    """Counted once: it takes a hash for each pair, and a sweep asks a thousand times."""
    return len(arithmetic.pairs(json.loads(spec), "train"))


def is_built(environment: Mapping[str, Any]) -> bool:
    """Whether its files are made by us, into the cache; else they are the user's own, used where they lie."""
    kind = environment["kind"]
    return kind in _BUILT and not (kind == "gsm8k" and gsm8k.in_place(environment))


def spec_of(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What the built folder depends on; for the kinds that are built."""
    return _BUILT[environment["kind"]].spec(environment)


def folder_of(environment: Mapping[str, Any], cache_root: Path | None = None) -> Path:
    """Where the built folder lives; for the kinds that are built."""
    return _BUILT[environment["kind"]].path(cache_root or cache.root(), spec_of(environment))


def build(kind: str, folder: Path, spec: Mapping[str, Any]) -> Path:
    """Write the folder unless it is there; returns it.

    Raises:
        SweeperError: It cannot be built; the message says why.
    """
    return _BUILT[kind].build(folder, spec)
