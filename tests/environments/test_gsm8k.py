"""GSM8K: verl's rows from a raw copy, rows that are verl's already, and what is said of copies that are neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweeper import environments, prepare
from sweeper.environments import gsm8k
from sweeper.errors import SweeperError

RAW = [
    ("Ann has 3 apples and buys 4. How many?", "3 + 4 = <<3+4=7>>7.\n#### 7"),
    ("A house costs $1,000 and another twice that. Both?", "It is 1,000 + 2,000.\n#### 3,000"),
    ("What is 2 less than nothing?", "Below zero.\n#### -2"),
    ('She said "half".', "0.5\n#### 0.5"),
]
SUFFIX = ' Let\'s think step by step and output the final answer after "####".'


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    for split, items in (("train", RAW), ("test", RAW[:2])):
        text = "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in items)
        (folder / f"{split}.jsonl").write_text(text)
    return folder


def config(path: Path | None, batch: int = 2) -> dict[str, Any]:
    return {
        "environment": {
            "name": "gsm8k",
            "kind": "gsm8k",
            "path": None if path is None else str(path),
            "hf_id": "openai/gsm8k",
        },
        "data": {"train_batch_size": batch, "train_files": None},
        "model": {"build": None, "path": "x"},
        "actor_rollout_ref": {"model": {"path": "x"}},
        "engine": {"python": None, "env": {}},
    }


def build(path: Path, cache: Path) -> environments.EnvironmentFiles:
    [made] = prepare.missing([config(path)], cache)
    environments.build(made.kind, Path(made.path), made.spec)
    return environments.resolve(config(path), cache)


def test_the_rows_are_verls(raw: Path, tmp_path: Path) -> None:
    files = build(raw, tmp_path / "cache")
    rows = pq.read_table(files.train).to_pylist()
    assert list(rows[0]) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert rows[1] == {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": RAW[1][0] + SUFFIX}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "3000"},
        "extra_info": {"split": "train", "index": 1, "answer": RAW[1][1], "question": RAW[1][0]},
    }
    assert [r["reward_model"]["ground_truth"] for r in rows] == ["7", "3000", "-2", "0.5"]
    assert [r["extra_info"]["split"] for r in pq.read_table(files.val).to_pylist()] == ["test", "test"]
    assert files.reward is None  # verl's own rule, by data_source


def test_verls_rule_scores_the_raw_answers_as_right(raw: Path, tmp_path: Path) -> None:
    from verl.utils.reward_score import gsm8k as rule

    for row in pq.read_table(build(raw, tmp_path / "cache").train).to_pylist():
        truth = row["reward_model"]["ground_truth"]
        assert rule.compute_score(row["extra_info"]["answer"], truth) == 1.0
        assert rule.compute_score("#### 12345", truth) == 0


@pytest.mark.parametrize("layout", ["{split}.parquet", "main/{split}-00000-of-00001.parquet", "{split}.json"])
def test_every_layout_of_a_copy_gives_the_same_rows(raw: Path, tmp_path: Path, layout: str) -> None:
    other = tmp_path / "other"
    for split in ("train", "test"):
        file = other / layout.format(split=split)
        file.parent.mkdir(parents=True, exist_ok=True)
        items = [json.loads(line) for line in (raw / f"{split}.jsonl").read_text().splitlines()]
        if file.suffix == ".json":
            file.write_text(json.dumps(items))
        else:
            pq.write_table(pa.Table.from_pylist(items), file)
    ours, theirs = build(raw, tmp_path / "a"), build(other, tmp_path / "b")
    assert environments.check(config(other)) == []
    assert pq.read_table(ours.train) == pq.read_table(theirs.train)


def test_rows_in_verls_columns_are_used_where_they_lie(raw: Path, tmp_path: Path) -> None:
    made = build(raw, tmp_path / "cache")
    ready = tmp_path / "ready"
    ready.mkdir()
    made.train.rename(ready / "train.parquet")
    made.val.rename(ready / "test.parquet")
    assert environments.check(config(ready)) == []
    files = environments.resolve(config(ready), tmp_path / "other")
    assert (files.train, files.val) == (ready / "train.parquet", ready / "test.parquet")
    assert not files.needs_build and files.rows == 4
    assert prepare.missing([config(ready)], tmp_path / "other") == []


def test_rows_with_another_source_would_be_scored_by_another_rule(tmp_path: Path) -> None:
    row = {
        "data_source": "mine",
        "prompt": [{"role": "user", "content": "?"}],
        "reward_model": {"ground_truth": "1"},
    }
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    problem, *_ = environments.check(config(tmp_path, batch=1))
    assert "data_source mine" in problem.what and problem.fix == "environment=custom"


def test_a_changed_copy_is_another_folder(raw: Path, tmp_path: Path) -> None:
    before = environments.resolve(config(raw), tmp_path).folder
    with (raw / "train.jsonl").open("a") as file:
        file.write(json.dumps({"question": "more?", "answer": "#### 1"}) + "\n")
    after = environments.resolve(config(raw), tmp_path)
    assert after.folder != before and after.rows == 5


def test_a_missing_folder_names_the_nearest(raw: Path) -> None:
    [problem] = environments.check(config(raw.parent / "gsm8"))
    assert problem.fix == f"environment.path={raw}"


def test_a_folder_without_a_split_says_what_it_has(raw: Path) -> None:
    (raw / "test.jsonl").rename(raw / "dev.jsonl")
    [problem] = environments.check(config(raw))
    assert "no test file; it has dev.jsonl, train.jsonl" in problem.what


def test_malformed_raw_rows_are_named(raw: Path) -> None:
    lines = [
        json.dumps({"question": "a", "answer": "no number"}),
        json.dumps({"question": None, "answer": "#### 1"}),
        "{",
        json.dumps({"question": "a", "answer": "#### 1"}),
    ]
    (raw / "train.jsonl").write_text("\n".join(lines))
    [problem] = environments.check(config(raw))
    assert "3 of 4 rows" in problem.what
    assert "line 1: answer: no '#### <number>' in 'no number'" in problem.what
    assert "line 2: question: missing" in problem.what and "line 3: not JSON" in problem.what


def test_fewer_rows_than_a_batch(raw: Path) -> None:
    [problem] = environments.check(config(raw, batch=5))
    assert "4 rows" in problem.what


def test_the_hub_is_not_asked_before_the_build_and_its_absence_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def away(*_args: object, **_kwargs: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", away)
    assert environments.check(config(None, batch=1024)) == []
    [made] = prepare.missing([config(None)], tmp_path)
    with pytest.raises(SweeperError, match=r"openai/gsm8k could not be fetched \(no route\).*environment.path="):
        gsm8k.build(Path(made.path), made.spec)
    assert [p for p in tmp_path.iterdir() if p.suffix != ".lock"] == []


def test_the_hub_gives_the_same_rows(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def hub(name: str, subset: str, split: str) -> Any:
        assert (name, subset) == ("openai/gsm8k", "main")
        return [json.loads(line) for line in (raw / f"{split}.jsonl").read_text().splitlines()]

    monkeypatch.setattr(datasets, "load_dataset", hub)
    [made] = prepare.missing([config(None)], tmp_path / "hub")
    gsm8k.build(Path(made.path), made.spec)
    local = build(raw, tmp_path / "local")
    assert pq.read_table(Path(made.path) / "train.parquet") == pq.read_table(local.train)
