"""Where a store is, as people write it: what MLflow cannot open is refused before anything is launched."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.tracking import address


def test_every_store_that_mlflow_opens_by_itself_is_taken_and_no_other() -> None:
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry

    assert set(address.SCHEMES) == set(_tracking_store_registry._registry) - {""}


@pytest.mark.parametrize(
    "uri",
    [
        None,
        "sqlite:///a.db",
        "mlruns",
        "/a/b",
        "file:///a/b",
        "https://h:1/x",
        "postgresql+psycopg2://h/d",
        "databricks",
    ],
)
def test_what_can_be_opened(uri: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert address.check({"name": "mlflow", "uri": uri}) == []


def test_a_store_of_no_kind_is_refused_with_what_was_given_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "foo://me:secret@x")
    (problem,) = address.check({"name": "mlflow", "uri": None})
    assert problem.what == "MLFLOW_TRACKING_URI=foo://x: MLflow has no store of the kind 'foo'"
    assert address.check({"name": "none"}) == []


def test_a_relative_one_means_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert address.absolute("sqlite:///a.db?x=1") == f"sqlite:///{tmp_path}/a.db?x=1"
    assert address.absolute("mlruns") == (tmp_path / "mlruns").as_uri()
