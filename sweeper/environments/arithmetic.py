"""The default task: small additions, generated here.

Guarantees: the three sets never share a question, whatever the operands' range, because each pair's set is a function
of the pair, the share and the seed alone; the same spec gives the same files; nothing is downloaded. The tiny model's
warm-up takes its questions from the training set of the same split (`pairs`), so the held-out sets are new to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sweeper import cache
from sweeper.errors import Problem

Split = Literal["train", "val", "test"]
Pair = tuple[int, int]

DATA_SOURCE = "sweeper/arithmetic"
TRAIN, VAL, TEST, REWARD = "train.parquet", "val.parquet", "test.parquet", "reward.py"
"""Names of the files in the folder that `build` writes; every environment uses the same."""

DEFAULTS: dict[str, Any] = {"largest": 29, "held_out": 0.25, "seed": 0}
"""`largest`: operands are 0..largest. `held_out`: share of the pairs in each of val and test. `seed`: of the split."""

_VERSION = 1  # of the files' format: raise it when `build` writes something else from the same parameters

_REWARD = '''"""Reward of the arithmetic task: 1 when the response is the sum and nothing else, else 0."""


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    accuracy = float(solution_str.strip() == str(ground_truth).strip())
    return {"score": accuracy, "acc": accuracy}
'''


def spec(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What the built folder depends on: the environment's parameters, completed with defaults."""
    own = {name: environment.get(name, default) for name, default in DEFAULTS.items()}
    return {"kind": "arithmetic", "version": _VERSION, **own}


def path(cache_root: Path, built: Mapping[str, Any]) -> Path:
    """Where the folder of this spec lives, built or not."""
    return cache.folder(cache_root, "arithmetic", built)


def check(environment: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the parameters; empty when `build` can run."""
    problems = []
    unknown = sorted(set(environment) - set(DEFAULTS) - {"name", "kind"})
    if unknown:
        problems.append(
            Problem(
                what=f"environment.{unknown[0]} is not a parameter of the arithmetic task",
                valid=", ".join(DEFAULTS),
                key=f"environment.{unknown[0]}",
            )
        )
    values = spec(environment)
    largest, held_out, seed = values["largest"], values["held_out"], values["seed"]
    if not isinstance(largest, int) or isinstance(largest, bool) or not 4 <= largest <= 999:
        problems.append(
            Problem(
                what=f"environment.largest={largest}: operands are 0..largest",
                valid="a whole number from 4 to 999",
                fix=f"environment.largest={DEFAULTS['largest']}",
                key="environment.largest",
            )
        )
    if isinstance(held_out, bool) or not isinstance(held_out, int | float) or not 0.05 <= held_out <= 0.4:
        problems.append(
            Problem(
                what=f"environment.held_out={held_out}: the share of the questions in each of val and test",
                valid="0.05 to 0.4",
                fix=f"environment.held_out={DEFAULTS['held_out']}",
                key="environment.held_out",
            )
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        problems.append(
            Problem(
                what=f"environment.seed={seed} is not a whole number",
                fix=f"environment.seed={DEFAULTS['seed']}",
                key="environment.seed",
            )
        )
    return problems


def split_of(pair: Pair, held_out: float, seed: int) -> Split:
    """The set that a pair belongs to. Independent of the operands' range."""
    digest = hashlib.sha256(f"{seed}:{pair[0]}+{pair[1]}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < held_out:
        return "test"
    return "val" if place < 2 * held_out else "train"


def pairs(built: Mapping[str, Any], split: Split) -> list[Pair]:
    """The operands of one set, in the order of the file."""
    numbers = range(built["largest"] + 1)
    return [(a, b) for a in numbers for b in numbers if split_of((a, b), built["held_out"], built["seed"]) == split]


def question(pair: Pair) -> list[dict[str, str]]:
    """The prompt, as chat messages."""
    return [{"role": "user", "content": f"What is {pair[0]}+{pair[1]}?"}]


def answer(pair: Pair) -> str:
    """The one right response."""
    return str(pair[0] + pair[1])


def rows(built: Mapping[str, Any], split: Split) -> list[dict[str, Any]]:
    """One set in verl's schema (verl/utils/dataset/rl_dataset.py)."""
    return [
        {
            "data_source": DATA_SOURCE,
            "prompt": question(pair),
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": answer(pair)},
            "extra_info": {"split": split, "index": index},
        }
        for index, pair in enumerate(pairs(built, split))
    ]


def build(folder: Path, built: Mapping[str, Any]) -> Path:
    """Write the folder unless it is there; returns it. When several processes ask at once, one of them does it."""
    with cache.building(folder) as aside:
        if aside:
            _write(aside, built)
    return folder


def _write(folder: Path, built: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files: dict[Split, str] = {"train": TRAIN, "val": VAL, "test": TEST}
    for split, name in files.items():
        pq.write_table(pa.Table.from_pylist(rows(built, split)), folder / name)
    (folder / REWARD).write_text(_REWARD, encoding="utf-8")
