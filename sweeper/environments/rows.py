"""Data files in verl's columns: whether they can be read, how many rows they have and which rows are malformed.

Guarantees: a file is read once, however many trials use it; every problem names the file, the row, the field and what
was found there; nothing heavy is imported before a file has to be read.
The columns are those that verl reads: verl/utils/dataset/rl_dataset.py (`prompt`, `extra_info`) and
verl/experimental/reward_loop/reward_manager/naive.py (`data_source`, `reward_model.ground_truth`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sweeper.errors import Problem
from sweeper.models.facts import nearest_sibling

SUFFIXES = (".parquet", ".json", ".jsonl")
"""What verl's dataset reads (rl_dataset.py `_read_files_and_tokenize`)."""
SHOWN = 5
"""Malformed rows that are spelled out; the rest are counted."""
LIMIT = 200_000
"""Rows of a file that are looked at; a larger file is checked up to there."""

_COLUMNS = ["prompt", "data_source", "reward_model"]


@dataclass(frozen=True, slots=True)
class Report:
    """What one file holds."""

    rows: int
    sources: frozenset[str]
    """The distinct values of `data_source`."""
    malformed: tuple[str, ...]
    """The first few, in words."""
    malformed_count: int
    unreadable: str = ""
    """Why the file could not be read at all; empty when it could."""


def check(path: Path, key: str) -> list[Problem]:
    """Every problem of one file; `key` is the config key that names it."""
    if not path.is_file():
        return [missing(path, key)]
    if path.suffix not in SUFFIXES:
        return [Problem(f"{key}={path} is not a data file", valid=", ".join(SUFFIXES), key=key)]
    found = report(path)
    if found.unreadable:
        return [Problem(f"{path} cannot be read: {found.unreadable}", key=key)]
    if found.rows == 0:
        return [Problem(f"{path} has no rows", key=key)]
    if found.malformed_count:
        more = found.malformed_count - len(found.malformed)
        lines = [*found.malformed, *([f"and {more} more"] if more else [])]
        return [
            Problem(
                f"{path}: {found.malformed_count} of {found.rows} rows are malformed\n    " + "\n    ".join(lines),
                valid="data_source: text, prompt: list of {role, content}, reward_model: {ground_truth: ...}",
                key=key,
                source="verl/utils/dataset/rl_dataset.py",
            )
        ]
    return []


def missing(path: Path, key: str) -> Problem:
    """The file is not there; names the one that was probably meant."""
    if path.is_dir():
        return Problem(f"{key}={path} is a folder, not a file", valid=", ".join(SUFFIXES), key=key)
    near = nearest_sibling(path)
    return Problem(f"{key}={path} does not exist", fix=f"{key}={near}" if near else "", key=key)


def report(path: Path) -> Report:
    """What the file holds; cached by path, size and time of change."""
    stat = path.stat()
    return _report(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _report(path: str, _size: int, _mtime_ns: int) -> Report:
    count, bad = 0, 0
    malformed: list[str] = []
    sources: set[str] = set()
    answer_type = ""
    try:
        for place, row in read(Path(path)):
            count += 1
            if count > LIMIT:
                continue
            fault = _fault(row)
            if not fault:
                sources.add(row["data_source"])
                this = type(row["reward_model"]["ground_truth"]).__name__
                answer_type = answer_type or this
                if this != answer_type:  # one column has one type: the loader stops at such a row
                    fault = f"reward_model.ground_truth: {this}, but {answer_type} in the rows before"
            if fault:
                bad += 1
                if len(malformed) < SHOWN:
                    malformed.append(f"{place}: {fault}")
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        return Report(count, frozenset(), (), 0, unreadable=str(error).splitlines()[0])
    return Report(count, frozenset(sources), tuple(malformed), bad)


def read(path: Path, columns: list[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place (`row 3`, `line 3`; counted from 1). A line that is no JSON comes as a row of its error.

    Raises:
        OSError, ValueError: The file as a whole cannot be read.
    """
    if path.suffix == ".parquet":
        yield from _read_parquet(path, columns or _COLUMNS)
        return
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        for number, row in enumerate(json.loads(text), 1):
            yield f"row {number}", row
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            row = error
        yield f"line {number}", row


def _read_parquet(path: Path, columns: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    present = [c for c in columns if c in file.schema_arrow.names]
    number = 0
    if not present:
        for number in range(1, file.metadata.num_rows + 1):
            yield f"row {number}", {}
        return
    for batch in file.iter_batches(batch_size=4096, columns=present):
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", row


def _fault(row: Any) -> str:
    """What is wrong with one row, the first thing only; empty when nothing is."""
    if isinstance(row, ValueError):
        return f"not JSON: {row}"
    if not isinstance(row, dict):
        return f"{_seen(row)}, not an object"
    for column in _COLUMNS:
        if row.get(column) is None:
            near = f" (has {', '.join(sorted(row))})" if row else ""
            return f"{column}: missing{near if column not in row else ''}"
    if not isinstance(row["data_source"], str):
        return f"data_source: {_seen(row['data_source'])}, not text"
    return _prompt_fault(row["prompt"]) or _answer_fault(row["reward_model"])


def _prompt_fault(prompt: Any) -> str:
    if not isinstance(prompt, list):
        return f"prompt: {_seen(prompt)}, not a list of {{role, content}}"
    if not prompt:
        return "prompt: an empty list"
    for i, message in enumerate(prompt):
        if not isinstance(message, dict):
            return f"prompt[{i}]: {_seen(message)}, not {{role, content}}"
        if not isinstance(message.get("role"), str):
            return f"prompt[{i}].role: {_seen(message.get('role'))}"
        # The content of a multi-modal message is a list of parts.
        if not isinstance(message.get("content"), str | list):
            return f"prompt[{i}].content: {_seen(message.get('content'))}"
    return ""


def _answer_fault(reward_model: Any) -> str:
    if not isinstance(reward_model, dict):
        return f"reward_model: {_seen(reward_model)}, not {{ground_truth: ...}}"
    if reward_model.get("ground_truth") is None:
        return "reward_model.ground_truth: missing"
    return ""


def _seen(value: Any) -> str:
    if value is None:
        return "missing"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
