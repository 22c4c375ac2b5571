"""A lineage record in MLflow, read back with its own client: datasets, tags, checkpoints, the best of a sweep."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_lineage import fake_record, sha
from mlflow_store import Server, Sweep, client, runs, until

from sweeper import engines
from sweeper.engines.base import Progress
from sweeper.errors import SweeperError
from sweeper.lineage import document
from sweeper.tracking import lineage, registry, views
from sweeper.tracking.mlflow import replay


class FakeEngine:
    name = "fake"

    def progress(self, line: dict[str, Any], config: dict[str, Any]) -> Progress:
        return Progress(line["step"], line["data"], score=line["data"].get("score"))


@pytest.fixture(autouse=True)
def _engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "get", lambda name: FakeEngine(), raising=False)


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/mlflow.db"


def whole_trial(sweep: Sweep, trial: str, score: float = 0.5, **said: Any) -> Path:
    """A trial of five steps with checkpoints at 2 and 4 and a score at 4, registered as the best."""
    here = sweep.start(trial, record=True, **said)
    for step in range(5):
        sweep.step(here, step, **({"score": score} if step == 4 else {}))
    sweep.end(here, steps=[2, 4], **said)
    return here


def told_best(sweep: Sweep, here: Path, score: float = 0.5, step: int = 4) -> None:
    sweep.tracker.best(here.parent.name, step, score, "max", here / document.NAME)
    sweep.tracker.sweep_ended("finished")


def models(uri: str) -> list[Any]:
    reader = client(uri)
    experiment = reader.get_experiment_by_name("proj").experiment_id
    return list(reader.search_logged_models([experiment]))


def everything(uri: str) -> dict[str, Any]:
    """What may be there twice: counted."""
    reader = client(uri)
    found = runs(uri)
    return {
        "runs": len(found),
        "models": sorted(m.name for m in models(uri)),
        "versions": len(reader.search_model_versions("")),
        "inputs": {t: len(r.inputs.dataset_inputs) for t, r in found.items()},
        "outputs": {t: len(r.outputs.model_outputs) for t, r in found.items()},
        "scores": {t: len(reader.get_metric_history(r.info.run_id, "score")) for t, r in found.items()},
    }


def read_back(uri: str, folder: Path) -> None:
    """What a person finds of `whole_trial` and `told_best`."""
    reader, run = client(uri), runs(uri)["000"]
    tags = run.data.tags
    assert tags["sweeper.commit"] == tags["mlflow.source.git.commit"] == sha("commit")[:40]
    assert (tags["sweeper.dirty"], tags["sweeper.branch"]) == ("true", "main")
    assert tags["sweeper.fingerprint"] == "f" * 64, "as the call says"
    assert len(tags["sweeper.data"]) == 64
    data = {d.dataset.name: (d.dataset, {t.key: t.value for t in d.tags}) for d in run.inputs.dataset_inputs}
    assert set(data) == {"arithmetic-train", "arithmetic-val"}, "the model is no dataset"
    train, said = data["arithmetic-train"]
    assert sha("train").startswith(train.digest)
    assert said == {"mlflow.data.context": "train", "sha256": sha("train")}
    assert json.loads(train.source)["uri"] == "/data/train.parquet"
    assert json.loads(train.profile)["num_rows"] == 5000
    artifacts = {a.path for a in reader.list_artifacts(run.info.run_id)}
    assert {"lineage.json", "code.patch"} <= artifacts
    by_step = {o.step: reader.get_logged_model(o.model_id) for o in run.outputs.model_outputs}
    assert set(by_step) == {2, 4}
    last = by_step[4]
    assert last.source_run_id == run.info.run_id
    assert str(last.status) == "READY"
    assert last.tags["sweeper.digest"] == last.params["digest"] == sha("000 4")
    assert last.tags["sweeper.path"] == str(folder / "trials" / "000" / "checkpoints" / "global_step_4")
    trained, validated = ("arithmetic-train", sha("train")[:36]), ("arithmetic-val", sha("val")[:36])
    assert measured(last) == {("reward", 0.4, 4, *trained), ("score", 0.5, 4, *validated)}
    assert measured(by_step[2]) == {("reward", 0.2, 2, *trained)}, "no score was measured at that step"
    version = reader.get_model_version_by_alias("proj", "best")
    assert version.version == reader.get_model_version_by_alias("proj", f"sweep-{folder.name}").version
    assert (version.run_id, version.tags["sweeper.trial"]) == (run.info.run_id, "000")
    assert version.tags["sweeper.digest"] == sha("000 4")
    assert version.tags["sweeper.fingerprint"] == sha("000")
    assert version.tags["sweeper.sweep"] == folder.name
    assert version.tags["sweeper.step"] == "4"
    reference = Path(reader.download_artifacts(run.info.run_id, "lineage.json"))
    assert json.loads(reference.read_text())["kind"] == document.KIND


def measured(model: Any) -> set[tuple[Any, ...]]:
    """What a model says of which data."""
    return {(m.key, m.value, m.step, m.dataset_name, m.dataset_digest) for m in model.metrics}


def test_a_model_is_linked_to_the_training_data_whatever_was_measured(uri: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    nan = float("nan")
    for trial, values in (
        ("000", {1: {}, 2: {"reward": nan, "score": nan}, 3: {}}),  # MLflow would have 0 of the model
        ("001", {3: {}}),
    ):
        here = sweep.start(trial, record=True)
        for step, said in values.items():
            sweep.step(here, step, **said)
        sweep.end(here, steps=[2])
    assert sweep.tracker.close(600), sweep.warnings
    trained = ("arithmetic-train", sha("train")[:36])
    found = {m.tags["sweeper.trial"]: measured(m) for m in models(uri)}
    assert found == {"000": {("reward", 0.1, 1, *trained)}, "001": {("trained_steps", 2.0, 2, *trained)}}


def test_a_record_is_found_where_mlflow_looks_and_only_once(uri: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    told_best(sweep, whole_trial(sweep, "000"))
    assert sweep.tracker.close(600), sweep.warnings
    assert sweep.warnings == []
    read_back(uri, sweep.folder)
    before = everything(uri)
    assert before["versions"] == 1
    client(uri).set_tag(runs(uri)["000"].info.run_id, "sweeper.ended", "")  # as if the end had not been said
    replay(sweep.folder, None)
    assert everything(uri) == before
    read_back(uri, sweep.folder)
    again = Sweep(tmp_path / "runs" / "s1", uri)  # resumed: the trial goes on where it was
    parents = [
        {"relation": "previous-attempt", "sweep": "s1", "trial": "000", "attempt": 1}
        | {"step": 4, "checkpoint": sha("000 4"), "lineage": None},
    ]
    here = again.start("000", attempt=2, record=True, parents=parents)
    again.step(here, 6, score=0.6)
    again.end(here, steps=[4, 6], parents=parents)
    told_best(again, here, 0.6, step=6)
    assert again.tracker.close(600), again.warnings
    after = everything(uri)
    assert after["models"] == ["s1-000-step-2", "s1-000-step-4", "s1-000-step-6"]
    assert after["outputs"]["000"] == 3
    assert after["inputs"] == before["inputs"]
    assert runs(uri)["000"].data.tags["sweeper.parent"] == "previous-attempt s1/000/1@4"
    assert client(uri).get_model_version_by_alias("proj", "best").tags["sweeper.step"] == "6"


def test_a_later_controller_names_the_best_of_those_before(uri: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    here = whole_trial(sweep, "000")
    assert sweep.tracker.close(600)  # killed before its last words
    again = Sweep(tmp_path / "runs" / "s1", uri)
    told_best(again, here)
    assert again.tracker.close(600)
    assert again.warnings == []
    read_back(uri, tmp_path / "runs" / "s1")


def test_what_a_store_that_is_away_does_not_take_is_synced(uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sweep = Sweep(tmp_path / "runs" / "s1", f"sqlite:///{tmp_path}/file/mlflow.db")
    told_best(sweep, whole_trial(sweep, "000"))
    until(lambda: sweep.warnings)
    assert not sweep.tracker.close(0.5)
    moved = sweep.folder.rename(tmp_path / "moved")  # records may be moved before they are sent
    assert "not taken" not in replay(moved, uri)
    read_back(uri, sweep.folder)
    before = everything(uri)
    replay(moved, uri)
    assert everything(uri) == before


def test_the_best_of_a_project_is_the_better_of_what_can_be_compared(uri: str, tmp_path: Path) -> None:
    def run(name: str, score: float, **said: Any) -> str:
        sweep = Sweep(tmp_path / "runs" / name, uri)
        told_best(sweep, whole_trial(sweep, "000", score, **said), score)
        assert sweep.tracker.close(600), sweep.warnings
        reader = client(uri)
        assert reader.get_model_version_by_alias("proj", f"sweep-{name}").tags["sweeper.sweep"] == name
        return str(reader.get_model_version_by_alias("proj", "best").tags["sweeper.sweep"])

    assert run("first", 0.5) == "first"
    assert run("worse", 0.4) == "first"
    assert run("better", 0.6) == "better"
    assert run("other-data", 0.1, val="another set") == "other-data", "scores on other data mean something else"


def test_what_a_user_registers_is_known_too(uri: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    told_best(sweep, whole_trial(sweep, "000"))
    assert sweep.tracker.close(600), sweep.warnings
    folder = tmp_path / "runs/s1"
    best, other = (folder / f"trials/000/checkpoints/global_step_{step}" for step in (4, 2))
    assert registry.held(folder) == {best: "version 1 of proj (best, sweep-s1)"}
    reader = client(uri)
    early = next(m for m in models(uri) if m.tags["sweeper.step"] == "2")
    reader.create_registered_model("mine")
    reader.create_model_version("mine", early.artifact_location, model_id=early.model_id)  # as the page does
    reader.create_model_version("mine", str(tmp_path), None)  # none of ours
    reader.set_registered_model_alias("mine", "figure-3", "1")
    assert registry.held(folder)[other] == "version 1 of mine (figure-3)"
    assert len(registry.held(folder)) == 2


def test_a_registry_that_is_away_or_was_never_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert registry.held(tmp_path) == {}, "it was not tracked"
    spool = tmp_path / "tracking.jsonl"
    spool.write_text(json.dumps({"call": "sweep_started", "uri": f"sqlite:///{tmp_path}/mlflow.db"}) + "\n")
    assert registry.held(tmp_path) == {} and not (tmp_path / "mlflow.db").exists()
    spool.write_text(json.dumps({"call": "sweep_started", "uri": "http://127.0.0.1:9"}) + "\n")
    with pytest.raises(SweeperError, match=r"127\.0\.0\.1:9 does not say .*no answer"):
        registry.held(tmp_path)


def test_a_parent_is_named_and_linked(uri: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    donor = sweep.start("000", record=True)
    sweep.end(donor, steps=[2])
    until(lambda: "000" in sweep.tracker.run_ids())
    fork = {"relation": "forked-from", "sweep": "s1", "trial": "000", "attempt": 1, "step": 2}
    child = sweep.start("001", record=True, parents=[{**fork, "checkpoint": None, "lineage": None}])
    sweep.end(child)
    assert sweep.tracker.close(600), sweep.warnings
    found = runs(uri)
    assert found["001"].data.tags["sweeper.parent"] == "forked-from s1/000/1@2"
    assert found["001"].data.tags["sweeper.parent_run"] == found["000"].info.run_id


def test_a_run_that_was_deleted_takes_no_other_with_it_and_sync_restores_it(uri: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    one, two = sweep.start("000", record=True), sweep.start("001", record=True)
    sweep.step(one, 0)
    until(lambda: len(sweep.tracker.run_ids()) == 2 and not sweep.tracker._box)
    deleted = sweep.tracker.run_ids()["000"]
    client(uri).delete_run(deleted)
    for here in (one, two):
        sweep.step(here, 1)
        sweep.end(here, steps=[1])
    told_best(sweep, one, step=1)
    assert not sweep.tracker.close(600)
    assert len(sweep.warnings) == 1
    assert "deleted" in sweep.warnings[0]
    assert set(runs(uri)) == {"s1", "001"}
    assert runs(uri)["001"].info.status == "FINISHED"
    replay(sweep.folder, None)
    assert runs(uri)["000"].info.run_id == deleted
    assert runs(uri)["000"].info.status == "FINISHED"
    assert client(uri).get_model_version_by_alias("proj", "best").run_id == deleted


def test_an_experiment_that_was_deleted_while_it_trains(uri: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    here = sweep.start("000", record=True)
    until(lambda: "000" in sweep.tracker.run_ids() and not sweep.tracker._box)
    client(uri).delete_experiment(client(uri).get_experiment_by_name("proj").experiment_id)
    sweep.step(here, 0)
    sweep.end(here, steps=[1])
    sweep.tracker.close(5)
    assert len(sweep.warnings) == 1, "and nothing was raised"
    replay(sweep.folder, None)
    assert client(uri).get_experiment_by_name("proj").lifecycle_stage == "active"
    assert runs(uri)["000"].info.status == "FINISHED"
    assert len(models(uri)) == 1


def test_a_record_of_a_newer_schema_is_refused_alone(uri: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    here = sweep.start("000", record=True)
    sweep.step(here, 0)
    until(lambda: "000" in sweep.tracker.run_ids() and not sweep.tracker._box)
    newer = {**fake_record(here), "schema": document.SCHEMA + 1}
    (here / document.NAME).write_text(json.dumps(newer))
    sweep.tracker.trial_ended("000", "finished", {"step": 0}, [here / document.NAME])
    assert not sweep.tracker.close(600)
    assert len(sweep.warnings) == 1
    assert "schema" in sweep.warnings[0]
    assert runs(uri)["000"].info.status == "FINISHED"


def test_a_store_without_a_registry_has_all_the_rest(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "nosuch://registry")
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    told_best(sweep, whole_trial(sweep, "000"))
    sweep.tracker.close(600)
    assert len(sweep.warnings) == 1
    assert "model registry" in sweep.warnings[0]
    assert len(models(uri)) == 2
    assert runs(uri)["s1"].info.status == "FINISHED"


def test_a_file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow 3.17 refuses one unless it is asked to; then all of it works there too."""
    monkeypatch.chdir(tmp_path)
    sweep = Sweep(tmp_path / "runs" / "s1", f"{tmp_path}/store")
    told_best(sweep, whole_trial(sweep, "000"))
    until(lambda: sweep.warnings)
    assert not sweep.tracker.close(0.5)
    assert "Traceback" not in sweep.warnings[0]
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    replay(sweep.folder, None)
    store = f"file://{tmp_path}/store"
    assert runs(store)["000"].info.status == "FINISHED"
    assert {d.dataset.name for d in runs(store)["000"].inputs.dataset_inputs} == {"arithmetic-train", "arithmetic-val"}
    assert len(models(store)) == 2


def test_a_server_has_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses a version whose source is not within its model, which a database does not."""
    monkeypatch.chdir(tmp_path)
    with Server(tmp_path) as server:
        sweep = Sweep(tmp_path / "runs" / "s1", server.uri)
        told_best(sweep, whole_trial(sweep, "000"))
        assert sweep.tracker.close(600), sweep.warnings
        assert sweep.warnings == []
        read_back(server.uri, sweep.folder)
        before = everything(server.uri)
        client(server.uri).set_tag(runs(server.uri)["000"].info.run_id, "sweeper.ended", "")
        replay(sweep.folder, None)
        assert everything(server.uri) == before


class _Closed(http.server.BaseHTTPRequestHandler):
    """A fake of a server behind a login: everything is 401."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"who are you?")

    do_POST = do_GET

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def closed() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Closed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_server_that_wants_a_login_is_said_once_and_synced_later(closed: str, uri: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs" / "s1", closed)
    told_best(sweep, whole_trial(sweep, "000"))
    until(lambda: sweep.warnings)
    assert not sweep.tracker.close(3)
    assert len(sweep.warnings) == 1
    assert "401" in sweep.warnings[0]
    replay(sweep.folder, uri)
    read_back(uri, sweep.folder)


def test_the_comparison_is_preset_and_a_users_own_kind_stays(uri: str, tmp_path: Path) -> None:
    reader = client(uri)
    experiment = reader.create_experiment("proj", tags={views.KIND: "mine"})
    sweep = Sweep(tmp_path / "runs" / "s1", uri)
    sweep.end(sweep.start("000"))
    assert sweep.tracker.close(600)
    tags = reader.get_experiment(experiment).tags
    assert tags[views.KIND] == "mine"
    view = json.loads(tags[f"{views.PREFIX}{views.TRIALS}"])
    charts = {c["type"]: c for c in view["compareRunCharts"]}
    assert charts["PARALLEL"]["selectedParams"] == ["lr", "kl", "tp"]
    assert view["groupBy"] is None
    arms = json.loads(tags[f"{views.PREFIX}{views.ARMS}"])
    assert arms["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "sweeper.arm"}]
    assert f"/experiments/{experiment}/runs?viewStateShareKey={views.TRIALS}" in sweep.tracker.page()


def test_two_sweeps_that_make_the_same_fresh_database_at_once(tmp_path: Path) -> None:
    """MLflow makes its tables without a lock: without one of ours the second finds half of them there."""
    code = (
        "import sys; from pathlib import Path; from sweeper.tracking.mlflow import MlflowTracker\n"
        "t = MlflowTracker(None, warn=print); t.sweep_started(sys.argv[1], 'p', {}, {})\n"
        "t.trial_started('0', 'x', {}, {}, []); t.trial_ended('0', 'finished', {}, []); t.sweep_ended('finished')\n"
        "assert t.close(200)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    both = [
        subprocess.Popen([sys.executable, "-c", code, name], cwd=tmp_path, env=env, stdout=-1, stderr=-1, text=True)
        for name in ("a", "b")
    ]
    for process in both:
        said = process.communicate(timeout=300)
        assert (process.returncode, *said) == (0, "", "")
    reader = client(f"sqlite:///{tmp_path}/mlflow.db")
    found = reader.search_runs([reader.get_experiment_by_name("p").experiment_id])
    assert len(found) == 4
    assert not list(tmp_path.glob("*.lock")), "nothing is left beside the database"


def test_the_fake_record_is_a_record(tmp_path: Path) -> None:
    folder = tmp_path / "s1" / "trials" / "000" / "attempt-1"
    assert document.problems(fake_record(folder, steps=[2])) == []


def test_data_digests_tell_data_apart(tmp_path: Path) -> None:
    folder = tmp_path / "s1" / "trials" / "000" / "attempt-1"
    one, other = fake_record(folder), fake_record(folder, val="another set")
    assert lineage.digest(one) != lineage.digest(other)
    assert lineage.digest(one, "train") == lineage.digest(other, "train")
    assert lineage.comparable(one) != lineage.comparable(other)
    one["inputs"][0]["sha256"] = None
    assert [d.role for d in lineage.datasets(one)] == ["val"], "data that is not on this machine has no digest"


@pytest.mark.long  # a browser; docs/screenshots.py says what it needs
def test_the_pages_of_the_ui_show_what_the_docs_promise(tmp_path: Path) -> None:
    python = os.environ.get("SWEEPER_PLAYWRIGHT", sys.executable)
    script = Path(__file__).resolve().parents[2] / "docs" / "screenshots.py"
    command = [sys.executable, str(script), "--folder", str(tmp_path / "demo"), "--out", str(tmp_path / "images")]
    done = subprocess.run([*command, "--python", python], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
