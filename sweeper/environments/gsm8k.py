"""Grade-school maths (Cobbe et al., 2021) in verl's columns, scored by verl's own rule.

Guarantees: the rows equal those of verl's examples/data_preprocess/gsm8k.py, column by column, so published runs can be
repeated; rows that are already in that form are used where they lie; the hub is asked only while building.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sweeper import cache
from sweeper.environments import rows
from sweeper.errors import Problem, SweeperError
from sweeper.models.facts import nearest_sibling

DATA_SOURCE = "openai/gsm8k"
"""verl chooses its rule by this (verl/utils/reward_score/__init__.py), so no reward file is needed."""
INSTRUCTION = 'Let\'s think step by step and output the final answer after "####".'
SPLITS = {"train": "train.parquet", "test": "val.parquet"}
"""The data set's own splits and the files they become."""
_VERSION = 1  # of the files' format
_ANSWER = re.compile(r"#### (-?[0-9.,]+)")


def spec(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What the built folder depends on: the raw files' content, or the hub's id."""
    if not environment.get("path"):
        return {"kind": "gsm8k", "version": _VERSION, "hub": environment.get("hf_id") or DATA_SOURCE}
    found = {split: _file(_folder(environment), split) for split in SPLITS}
    return {
        "kind": "gsm8k",
        "version": _VERSION,
        "files": {s: {"path": str(f), "sha256": _digest(f)} for s, f in found.items() if f},
    }


def path(cache_root: Path, built: Mapping[str, Any]) -> Path:
    """Where the folder of this spec lives, built or not."""
    return cache.folder(cache_root, "gsm8k", built)


def in_place(environment: Mapping[str, Any]) -> tuple[Path, Path] | None:
    """The training and validation file when the user's folder is in verl's columns already, else None."""
    if not environment.get("path"):
        return None
    train, test = (_file(_folder(environment), split) for split in SPLITS)
    if train and test and all(_has_prompt(f) for f in (train, test)):
        return train, test
    return None


def count(environment: Mapping[str, Any]) -> int | None:
    """Training rows, where they can be known before the build."""
    if not environment.get("path"):
        return 7473 if environment.get("hf_id") in (None, DATA_SOURCE) else None  # the published training set
    train = _file(_folder(environment), "train")
    return _raw_report(train).rows if train and not _has_prompt(train) else rows.report(train).rows if train else None


def check(environment: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with a local copy; the hub is not asked."""
    if not environment.get("path"):
        return []
    folder, key = _folder(environment), "environment.path"
    if not folder.is_dir():
        near = nearest_sibling(folder)
        return [
            Problem(
                f"{key}={folder} is not a folder" if folder.exists() else f"{key}={folder} does not exist",
                valid="a folder with train and test as jsonl, json or parquet; null to fetch it from the hub",
                fix=f"{key}={near}" if near else f"{key}=null",
                key=key,
            )
        ]
    problems: list[Problem] = []
    for split in SPLITS:
        file = _file(folder, split)
        if file is None:
            there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            problems.append(
                Problem(
                    f"{folder} has no {split} file; it has {there}",
                    valid=f"{split}.jsonl, {split}.json, {split}.parquet or main/{split}-*.parquet",
                    key=key,
                )
            )
        else:
            problems += _check_file(file, key)
    return problems


def build(folder: Path, built: Mapping[str, Any]) -> Path:
    """Write the folder unless it is there; returns it.

    Raises:
        SweeperError: The hub cannot be reached and there is no local copy.
    """
    with cache.building(folder) as aside:
        if aside:
            import pyarrow as pa
            import pyarrow.parquet as pq

            for split, name in SPLITS.items():
                table = [convert(q, a, split, i) for i, (q, a) in enumerate(_questions(built, split))]
                pq.write_table(pa.Table.from_pylist(table), aside / name)
                print(f"gsm8k: {len(table)} rows of {split}", flush=True)
    return folder


def convert(question: str, answer: str, split: str, index: int) -> dict[str, Any]:
    """One row in verl's columns. The ground truth is the number after `#### `, without thousands separators.

    Raises:
        SweeperError: The answer has no such number.
    """
    number = _ANSWER.search(answer)
    if number is None:
        raise SweeperError(f"gsm8k: the answer of row {index + 1} of {split} has no number after '#### '")
    return {
        "data_source": DATA_SOURCE,
        "prompt": [{"role": "user", "content": f"{question} {INSTRUCTION}"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": number[1].replace(",", "")},
        "extra_info": {"split": split, "index": index, "answer": answer, "question": question},
    }


def _questions(built: Mapping[str, Any], split: str) -> Iterator[tuple[str, str]]:
    if "files" in built:
        for _, row in rows.read(Path(built["files"][split]["path"]), ["question", "answer"]):
            yield row["question"], row["answer"]
        return
    import datasets

    try:
        loaded = datasets.load_dataset(built["hub"], "main", split=split)
    except Exception as error:
        raise SweeperError(
            f"{built['hub']} could not be fetched ({str(error).splitlines()[0]}); "
            "give a local copy: environment.path=<folder with train.jsonl and test.jsonl>"
        ) from error
    for row in loaded:
        yield row["question"], row["answer"]


def _check_file(file: Path, key: str) -> list[Problem]:
    try:
        ready = _has_prompt(file)
    except (OSError, ValueError) as error:
        return [Problem(f"{file} cannot be read: {str(error).splitlines()[0]}", key=key)]
    if ready:
        problems = rows.check(file, key)
        others = sorted(rows.report(file).sources - {DATA_SOURCE})
        if not problems and others:
            problems.append(
                Problem(
                    f"{file} holds data_source {others[0]}, which is not scored as {DATA_SOURCE}",
                    fix="environment=custom",
                    key=key,
                )
            )
        return problems
    found = _raw_report(file)
    if found.rows == 0:
        return [Problem(f"{file} has no rows", key=key)]
    if found.malformed_count:
        more = found.malformed_count - len(found.malformed)
        lines = [*found.malformed, *([f"and {more} more"] if more else [])]
        return [
            Problem(
                f"{file}: {found.malformed_count} of {found.rows} rows are malformed\n    " + "\n    ".join(lines),
                valid="question: text, answer: text that ends in '#### <number>'",
                key=key,
            )
        ]
    return []


def _raw_report(file: Path) -> rows.Report:
    stat = file.stat()
    return _raw(str(file), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _raw(file: str, _size: int, _mtime_ns: int) -> rows.Report:
    count, bad = 0, 0
    malformed: list[str] = []
    for place, row in rows.read(Path(file), ["question", "answer"]):
        count += 1
        fault = _raw_fault(row)
        if fault:
            bad += 1
            if len(malformed) < rows.SHOWN:
                malformed.append(f"{place}: {fault}")
    return rows.Report(count, frozenset(), tuple(malformed), bad)


def _raw_fault(row: Any) -> str:
    if not isinstance(row, dict):
        return f"not JSON: {row}"
    for name in ("question", "answer"):
        if not isinstance(row.get(name), str):
            return f"{name}: {'missing' if row.get(name) is None else repr(row[name])[:60]}"
    return "" if _ANSWER.search(row["answer"]) else f"answer: no '#### <number>' in {row['answer'][-40:]!r}"


def _folder(environment: Mapping[str, Any]) -> Path:
    return Path(str(environment["path"])).expanduser().absolute()


def _file(folder: Path, split: str) -> Path | None:
    """The file of a split under any of the names that copies of the data set use; the hub's has it in `main`."""
    for pattern in (
        f"{split}.parquet",
        f"{split}.jsonl",
        f"{split}.json",
        f"main/{split}-*.parquet",
        f"{split}-*.parquet",
    ):
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
    return None


def _has_prompt(file: Path) -> bool:
    first = next(rows.read(file, ["prompt", "question"]), None)
    return first is not None and isinstance(first[1], dict) and "prompt" in first[1]


@lru_cache(maxsize=16)
def _sha256(file: str, _size: int, _mtime_ns: int) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _digest(file: Path) -> str:
    stat = file.stat()
    return _sha256(str(file), stat.st_size, stat.st_mtime_ns)
