"""The lineage record of an attempt: `lineage.json`, read, checked and written.

Guarantees: a record is either whole or absent (sweeper/trial/records.py); no value of a secret variable is written;
what is read is a record of this schema or one that is refused by name, never half understood; the published schema
(schema.json, JSON Schema 2020-12) says the same as the code that writes. Only the standard library is imported until a
record is checked against the schema.

Layout: a line a leaf, so that `diff` and `grep` work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sweeper.errors import Problem, RequestError
from sweeper.trial.records import to_json, write_text

NAME = "lineage.json"
PATCH = "code.patch"
"""Beside it: the code's whole difference to its commit, where there is one."""
KIND = "sweeper.lineage"
SCHEMA = 1
"""Raised when a field changes its meaning; a record with a higher one is refused."""
ELSEWHERE = "name the run by its MLflow run id: MLflow has a copy of its record"
"""What helps where a record's file does not."""
_FILE = Path(__file__).with_name("schema.json")


class UntrueError(RequestError):
    """What is there contradicts a record: its claim is false, and not only out of reach."""


def at_fault(field: str, what: str, *, valid: str = "", fix: str = "") -> Problem:
    """A problem with a field of a record, which the text names too."""
    return Problem(f"{field}: {what}", valid=valid, fix=fix, key=field)


def path_of(place: Path) -> Path:
    """The record's file, of an attempt's folder or of the file itself."""
    return place / NAME if place.is_dir() else place


def load(place: Path) -> dict[str, Any]:
    """A record, known by its kind and schema number alone: cheap, for those who wrote it themselves.

    Args:
        place: an attempt's folder, or the file.

    Raises:
        RequestError: there is none, it is no lineage record, or a newer sweeper wrote it.
    """
    path = path_of(place)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(
            Problem(f"there is no lineage record at {path}", valid=f"a {NAME} in an attempt's folder", fix=ELSEWHERE)
        ) from None
    except (OSError, ValueError) as error:
        raise RequestError(Problem(f"{path} could not be read: {error}", valid="a JSON file", fix=ELSEWHERE)) from error
    if not isinstance(value, dict) or value.get("kind") != KIND:
        what = f"{path} is no lineage record: its field `kind` is not {KIND}"
        raise RequestError(Problem(what, valid=f"a {NAME}", fix=ELSEWHERE, key="kind"))
    schema = value.get("schema")
    if type(schema) is not int or schema < 1:
        what = f"{path}: schema={schema!r} is no version"
        raise RequestError(Problem(what, valid=f"1 to {SCHEMA}", fix=ELSEWHERE, key="schema"))
    if schema > SCHEMA:
        raise RequestError(
            Problem(
                f"{path} was written by a newer sweeper: its field `schema` is {schema}",
                valid=f"up to {SCHEMA}, which is what this one reads",
                fix="git pull && make setup   (in the checkout of sweeper)",
                key="schema",
            )
        )
    if isinstance(value.get("environment"), dict):
        value["environment"].setdefault("nodes", [])  # records from before it was a field: nobody knows
    return value


def read(place: Path) -> dict[str, Any]:
    """A record, checked against the whole schema: for one that anybody may have edited.

    Raises:
        RequestError: as `load`, or a field is missing, unknown or of another type; the message names it.
    """
    value = load(place)
    if wrong := problems(value):
        *others, last = wrong[:5]
        at = path_of(place)
        problems_ = [Problem(f"{at}: {text}", key="lineage") for text in others]
        raise RequestError([*problems_, Problem(f"{at}: {last}", valid="the schema", fix=ELSEWHERE, key="lineage")])
    return value


def seeds(leaves: Mapping[str, Any]) -> dict[str, int]:
    """A record's `seeds`, of its identity and placement: every key that is called `seed` or ends with `_seed`."""
    return {
        key: value
        for key, value in sorted(leaves.items())
        if type(value) is int
        and (name := key.rpartition(".")[2].lower())
        and (name == "seed" or name.endswith("_seed"))
    }


def problems(document: Mapping[str, Any]) -> list[str]:
    """Where a record breaks the schema, each in one line that begins with the field; empty when it does not."""
    found = sorted(_validator().iter_errors(document), key=lambda e: [str(p) for p in e.absolute_path])
    return [f"{'.'.join(map(str, e.absolute_path)) or 'the record'}: {e.message[:300]}" for e in found]


def write(folder: Path, document: Mapping[str, Any]) -> Path:
    """Write the record of an attempt's folder, secrets masked; returns its path.

    Raises:
        RecordsError: it cannot be written.
    """
    path = folder / NAME
    write_text(path, dump(document))
    return path


def dump(document: Mapping[str, Any]) -> str:
    """The record as text: a line a leaf, and strict JSON as all records."""
    sections = []
    for key, value in document.items():
        text = to_json(value, between=",\n  ")  # in one call: `indent` would take the encoder that is not in C
        if isinstance(value, Mapping | list | tuple) and value:
            text = f"{text[0]}\n  {text[1:-1]}\n {text[-1]}"
        sections.append(f" {to_json(key)}: {text}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


@cache
def schema() -> dict[str, Any]:
    """The published JSON Schema."""
    value: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return value


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator  # here: it takes longer to import than a record to write

    return Draft202012Validator(schema())
