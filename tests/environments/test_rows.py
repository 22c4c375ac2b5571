"""Data files in verl's columns: what is accepted, and what is said of files and rows that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweeper.environments import rows
from sweeper.errors import Problem

KEY = "environment.train"


def good(index: int = 0, **changes: Any) -> dict[str, Any]:
    row = {
        "data_source": "mine",
        "prompt": [{"role": "user", "content": f"What is {index}?"}],
        "reward_model": {"style": "rule", "ground_truth": str(index)},
        "extra_info": {"index": index},
    }
    return {**row, **changes}


def without(column: str) -> dict[str, Any]:
    return {k: v for k, v in good().items() if k != column}


def jsonl(file: Path, *items: Any) -> Path:
    file.write_text("".join(item if isinstance(item, str) else json.dumps(item) + "\n" for item in items))
    return file


def only(problems: list[Problem]) -> Problem:
    [problem] = problems
    assert problem.key == KEY
    return problem


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_good_rows_in_every_format(tmp_path: Path, suffix: str) -> None:
    file, items = tmp_path / f"train{suffix}", [good(i) for i in range(3)]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(items), file)
    elif suffix == ".json":
        file.write_text(json.dumps(items))
    else:
        jsonl(file, *items)
    assert rows.check(file, KEY) == []
    assert rows.report(file).rows == 3 and rows.report(file).sources == {"mine"}


def test_what_pandas_writes_is_accepted(tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame([good(i) for i in range(3)]).to_parquet(tmp_path / "train.parquet")
    assert rows.check(tmp_path / "train.parquet", KEY) == []


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", good())
    problem = only(rows.check(tmp_path / "tran.jsonl", KEY))
    assert "does not exist" in problem.what and problem.fix == f"{KEY}={tmp_path / 'train.jsonl'}"


def test_a_folder_an_unknown_suffix_and_an_empty_file(tmp_path: Path) -> None:
    assert "is a folder" in only(rows.check(tmp_path, KEY)).what
    (tmp_path / "train.csv").touch()
    assert ".parquet" in only(rows.check(tmp_path / "train.csv", KEY)).valid
    assert "has no rows" in only(rows.check(jsonl(tmp_path / "a.jsonl", "\n"), KEY)).what


def test_a_file_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_text("hello")
    assert "cannot be read" in only(rows.check(tmp_path / "train.parquet", KEY)).what
    (tmp_path / "train.json").write_text("[{")
    assert "cannot be read" in only(rows.check(tmp_path / "train.json", KEY)).what
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in only(rows.check(tmp_path / "binary.jsonl", KEY)).what


@pytest.mark.parametrize(
    "row, said",
    [
        (without("prompt"), "prompt: missing (has data_source, extra_info, reward_model)"),
        (good(prompt="What?"), "prompt: str 'What?', not a list of {role, content}"),
        (good(prompt=[]), "prompt: an empty list"),
        (good(prompt=["What?"]), "prompt[0]: str 'What?', not {role, content}"),
        (good(prompt=[{"role": "user"}]), "prompt[0].content: missing"),
        (good(prompt=[{"content": "a"}]), "prompt[0].role: missing"),
        (good(reward_model="4"), "reward_model: str '4', not {ground_truth: ...}"),
        (good(reward_model={"style": "rule"}), "reward_model.ground_truth: missing"),
        (good(reward_model={"ground_truth": 4}), "reward_model.ground_truth: int, but str in the rows before"),
        (without("data_source"), "data_source: missing"),
        (good(data_source=3), "data_source: int 3, not text"),
        ("[1, 2]\n", "list [1, 2], not an object"),
        ("{oops\n", "not JSON"),
    ],
)
def test_a_malformed_row_is_named_by_line_field_and_content(tmp_path: Path, row: Any, said: str) -> None:
    problem = only(rows.check(jsonl(tmp_path / "train.jsonl", good(), row, good()), KEY))
    assert "1 of 3 rows are malformed" in problem.what
    assert f"line 2: {said}" in problem.what


def test_five_malformed_rows_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "train.jsonl", *[without("prompt")] * 8, good())
    problem = only(rows.check(file, KEY))
    assert "8 of 9 rows" in problem.what and problem.what.count("line ") == 5 and "and 3 more" in problem.what


def test_malformed_rows_of_a_parquet_file(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist([good(), good(prompt=None), good(data_source=None)]), file)
    what = only(rows.check(file, KEY)).what
    assert "row 2: prompt: missing" in what and "row 3: data_source: missing" in what


def test_a_parquet_file_with_other_columns(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"question": ["a", "b"]}), file)
    assert "2 of 2 rows are malformed" in only(rows.check(file, KEY)).what


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "train.jsonl", good())
    assert rows.report(file).rows == 1
    jsonl(file, good(), good(1))
    assert rows.report(file).rows == 2
