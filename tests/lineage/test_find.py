"""Finding the run that a user means. The records are fakes, written by hand; MLflow is real."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from records_fake import CURVE, fake_run

from sweeper import engines
from sweeper.cli.main import main
from sweeper.errors import RequestError
from sweeper.lineage import curves
from sweeper.lineage.find import find, load
from sweeper.lineage.verify import judge_exact
from sweeper.search.history import Curve
from sweeper.tracking.base import measured
from sweeper.tracking.mlflow import MlflowTracker


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def refusal(run: str, store: Path, uri: str | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        find(run, store, uri)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_trial_of_a_sweep_is_its_latest_attempt_that_has_a_record(store: Path) -> None:
    fake_run(store, "s/000")
    second = fake_run(store, "s/000", attempt=2)
    (store / "s/trials/000/attempt-3").mkdir()
    found = find("s/000", store)
    assert found.path == second and found.name == "s/000/2"
    assert [p.parent.name for p in found.metrics] == ["attempt-1", "attempt-2"]


@pytest.mark.parametrize("named", ["s/000/1", "s/000/attempt-1"])
def test_an_attempt_is_named_by_its_number(store: Path, named: str) -> None:
    first = fake_run(store, "s/000")
    fake_run(store, "s/000", attempt=2)
    assert find(named, store).path == first


def test_a_path_is_the_file_or_the_folder_of_an_attempt_or_a_trial(store: Path, tmp_path: Path) -> None:
    path = fake_run(store, "s/000")
    for named in (path, path.parent, path.parent.parent, store / "s"):
        assert find(str(named), tmp_path / "elsewhere").path == path


def test_a_record_alone_is_enough(store: Path, tmp_path: Path) -> None:
    alone = tmp_path / "kept.json"
    alone.write_bytes(fake_run(store, "s/000").read_bytes())
    found = find(str(alone), tmp_path / "nothing")
    assert found.name == "s/000/1" and not found.metrics[0].exists()


def test_a_trial_alone_is_enough_where_one_sweep_has_it(store: Path) -> None:
    path = fake_run(store, "s/003")
    fake_run(store, "other/000")
    assert find("003", store).path == path
    assert find("s", store).path == path


def test_an_ambiguous_name_lists_what_it_fits(store: Path) -> None:
    fake_run(store, "a/000")
    fake_run(store, "b/000")
    said = refusal("000", store)
    assert "several" in said and "a/000" in said and "b/000" in said


def test_an_unknown_run_lists_what_is_there(store: Path) -> None:
    fake_run(store, "a/000")
    assert "a/000" in refusal("b/000", store)
    said = refusal("a/007", store)
    assert "a/000" in said and "sweeper status a" in said
    assert "none yet" in refusal("x", store / "empty")


def test_a_run_from_before_there_were_records_says_so(store: Path) -> None:
    (store / "old/trials/000/attempt-1").mkdir(parents=True)
    assert "no lineage.json" in refusal("old/000", store)


def test_a_record_of_a_newer_schema_names_the_field_and_the_next_command(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fake_run(store, "s/000", schema=7)
    said = refusal("s/000", store)
    assert "`schema` is 7" in said and "try:" in said
    for command in (["verify", str(path)], ["reproduce", str(path)], ["diff", str(path), str(path)]):
        assert main(command) == 2
        assert "`schema` is 7" in capsys.readouterr().err


def test_a_torn_or_altered_record_is_refused_by_its_field(store: Path) -> None:
    path = fake_run(store, "s/000", fingerprint=7)
    assert "fingerprint" in refusal(str(path), store)
    path.write_text(path.read_text()[:100])
    assert str(path) in refusal(str(path), store)


class TestMlflow:
    @pytest.fixture
    def uri(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/mlflow.db"

    def logged(self, uri: str, path: Path, *, name: str = "lineage.json") -> str:
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        at = client.create_experiment("e", artifact_location=(path.parents[4] / "artifacts").as_uri())
        run = client.create_run(at, tags={"sweeper.sweep": "s", "sweeper.kind": "trial"}).info.run_id
        if path.exists():
            for file in (path, path.with_name("metrics.jsonl")):
                client.log_artifact(run, str(file))
        return str(run)

    def test_a_run_is_found_by_its_id_where_its_records_are_gone(
        self, store: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
        path = fake_run(store, "s/000")
        run = self.logged(uri, path)
        path.unlink()
        found = find(run, tmp_path / "nothing", uri)
        assert found.name == "s/000/1"
        assert len(found.metrics[0].read_text().splitlines()) == len(CURVE)
        assert find(run, tmp_path / "nothing", uri).path == found.path, "it may be asked for again"

    def tracked(self, uri: str, *attempts: Path) -> str:
        """Those attempts of s/000, told to the tracker as the controller does it; the run's id."""
        engine, tracker = engines.get("verl"), MlflowTracker(uri, warn=pytest.fail)
        tracker.sweep_started("s", "p", {"sweeper.folder": str(attempts[0].parents[3])}, {})
        for number, path in enumerate(attempts, 1):
            metrics, config = path.with_name("metrics.jsonl"), load(path).document["config"]
            tracker.trial_started("000", "s/000", {"config": config}, {"attempt": str(number)}, [path])
            seen = Curve()
            for line in map(json.loads, metrics.read_text().splitlines()):
                progress = engine.progress(line, config)
                assert progress is not None
                seen.add(progress)
                tracker.metrics("000", progress.step, measured(progress), float(number))
            summary = {k: v for k, v in seen.summary().items() if v is not None}
            tracker.trial_ended("000", "finished", summary, [path, metrics])
        tracker.sweep_ended("finished")
        assert tracker.close(60.0)
        return tracker.run_ids()["000"]

    def test_the_steps_of_earlier_attempts_come_from_mlflows_own_metrics(
        self, store: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
        inf, nan, score = float("inf"), float("nan"), "val-core/x/acc/mean@1"
        odd = {"actor/loss": -0.0, "actor/x": inf, "actor/y": nan, "actor/z": 0.1 + 0.2}
        whole = {1: {**CURVE[1], **odd}, 2: {**CURVE[2], "actor/loss": math.nextafter(0.2, 1.0)}, 3: CURVE[3]}
        first = fake_run(store, "s/000", metrics={1: whole[1], 2: whole[2]})
        # The second begins with a validation of the checkpoint of step 2, as verl does.
        second = fake_run(store, "s/000", attempt=2, metrics={2: {score: CURVE[2][score]}, 3: whole[3]})
        run = self.tracked(uri, first, second)
        found = find(run, tmp_path / "nothing", uri)
        assert found.name == "s/000/2" and len(found.metrics) == 1
        expected = curves.of(load(second), engines.get("verl"))
        compared = curves.compare(curves.of(found, engines.get("verl")), expected, lambda _: False, found.earlier)
        assert compared.steps == 3 and not compared.partings and not compared.only_a and not compared.only_b
        again = load(fake_run(store, "again/000", metrics=whole))
        report = judge_exact(found, again)
        assert report.verdict == "pass", report.text()
        other = load(fake_run(store, "other/000", metrics={**whole, 1: {**whole[1], "actor/z": 0.3}}))
        report = judge_exact(found, other)
        assert report.verdict == "fail" and "step 1, actor/z: 0.30000000000000004 and 0.3" in report.why

    def test_a_run_without_a_record_says_how_to_send_it(self, store: Path, uri: str, tmp_path: Path) -> None:
        run = self.logged(uri, tmp_path / "runs/s/trials/000/attempt-1/lineage.json")
        said = refusal(run, store, uri)
        assert "no lineage.json" in said and "sweeper sync s" in said

    def test_an_id_that_mlflow_does_not_know(self, store: Path, uri: str, tmp_path: Path) -> None:
        self.logged(uri, tmp_path / "runs/s/trials/000/attempt-1/lineage.json")
        assert "not in" in refusal("0" * 32, store, uri)

    def test_a_database_that_is_not_there_is_not_made(self, store: Path, tmp_path: Path) -> None:
        assert "--uri" in refusal("0" * 32, store, f"sqlite:///{tmp_path}/no.db")
        assert not (tmp_path / "no.db").exists()

    def test_a_server_that_is_away(self, store: Path) -> None:
        said = refusal("0" * 32, store, "http://127.0.0.1:9")
        assert "does not answer" in said and "SWEEP/TRIAL" in said


def test_loading_keeps_the_document_as_it_is(store: Path) -> None:
    path = fake_run(store, "s/000")
    assert load(path).document == json.loads(path.read_text())
