"""The record as a file: what is written can be read, what is not understood is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from records import a_record

from sweeper.errors import RequestError
from sweeper.lineage import document


def test_what_is_written_is_read_and_valid(tmp_path: Path) -> None:
    record = a_record()
    path = document.write(tmp_path, record)
    assert path == tmp_path / "lineage.json"
    assert document.read(tmp_path) == document.read(path) == document.load(path) == record
    assert document.problems(record) == []


def test_a_score_that_is_no_number_is_strict_json(tmp_path: Path) -> None:
    record = a_record()
    record["result"]["score"] = float("nan")
    document.write(tmp_path, record)
    assert document.read(tmp_path)["result"]["score"] == "NaN"


def test_a_record_of_a_newer_schema_is_refused_with_what_to_do(tmp_path: Path) -> None:
    document.write(tmp_path, {**a_record(), "schema": 2, "something": "new"})
    for reader in (document.load, document.read):
        with pytest.raises(RequestError) as raised:
            reader(tmp_path)
        text = str(raised.value)
        assert "newer" in text
        assert "`schema` is 2" in text
        assert "up to 1" in text
        assert "git pull" in text
        assert raised.value.problems[0].key == "schema"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no lineage record at"),
        ("{", "could not be read"),
        ("[]", "is no lineage record"),
        ('{"kind": "other", "schema": 1}', "`kind` is not sweeper.lineage"),
        ('{"kind": "sweeper.lineage"}', "schema=None"),
        ('{"kind": "sweeper.lineage", "schema": true}', "schema=True"),
        ('{"kind": "sweeper.lineage", "schema": 1}', "'run' is a required property"),
    ],
)
def test_what_is_no_record_is_refused_by_name(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "lineage.json").write_text(text)
    with pytest.raises(RequestError) as raised:
        document.read(tmp_path)
    assert said in str(raised.value)
    assert str(tmp_path / "lineage.json") in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("run.attempt", "one", "run.attempt"),
        ("run.more", 1, "'more' was unexpected"),
        ("fingerprint", 5, "fingerprint"),
        ("inputs.0.role", "side", "inputs.0.role"),
        ("inputs.0.sha256", "abc", "inputs.0.sha256"),
        ("code.patch.file", "../../etc/passwd", "code.patch"),
        ("environment.packages.torch", 2, "environment.packages.torch"),
        ("parents.0.relation", "cousin", "parents.0.relation"),
        ("seeds.seed", "1", "seeds.seed"),
    ],
)
def test_a_field_that_was_edited_is_named(tmp_path: Path, field: str, value: Any, said: str) -> None:
    record = a_record()
    *way, last = field.split(".")
    at: Any = record
    for part in way:
        at = at[int(part)] if part.isdigit() else at[part]
    at[last] = value
    document.write(tmp_path, record)
    with pytest.raises(RequestError) as raised:
        document.read(tmp_path)
    assert said in str(raised.value)


def test_the_schema_is_one_and_every_field_is_required() -> None:
    from jsonschema import Draft202012Validator

    schema = document.schema()
    Draft202012Validator.check_schema(schema)

    def closed(node: Any, at: str) -> None:
        if isinstance(node, dict):
            if "properties" in node:
                assert node["additionalProperties"] is False, at
                assert set(node["required"]) == set(node["properties"]), at
            for key, inner in node.items():
                closed(inner, f"{at}.{key}")
        elif isinstance(node, list):
            for inner in node:
                closed(inner, at)

    closed(schema, "")
    assert schema["properties"]["schema"]["const"] == document.SCHEMA
    assert schema["properties"]["kind"]["const"] == document.KIND


def test_no_value_of_a_secret_variable_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2-correct")
    record = a_record()
    record["config"]["some"] = {"deep": ["x hunter2-correct y"]}
    text = document.write(tmp_path, record).read_text()
    assert "hunter2-correct" not in text
    assert "<MY_TOKEN>" in text


def test_a_line_a_leaf(tmp_path: Path) -> None:
    """`diff` and `grep` of two records say something."""
    text = document.write(tmp_path, a_record()).read_text()
    assert '\n  "actor.lr": 0.001,\n' in text
    assert json.loads(text) == a_record()


def test_a_record_from_before_the_nodes_were_a_field_is_read(tmp_path: Path) -> None:
    record = a_record()
    document.write(tmp_path, record)
    before = json.loads((tmp_path / document.NAME).read_text())
    del before["environment"]["nodes"]
    (tmp_path / document.NAME).write_text(json.dumps(before))
    assert document.read(tmp_path)["environment"]["nodes"] == []
