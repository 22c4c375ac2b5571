"""What differs between two runs. The records are fakes, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from records_fake import CURVE, HASH, fake_document, fake_input, fake_parent, fake_run

from sweeper.cli.main import main
from sweeper.lineage import curves
from sweeper.lineage.diff import Diff, diff, environment, text
from sweeper.lineage.find import load


def between(tmp_path: Path, other: str = "s/001", **changes: Any) -> Diff:
    """The diff of a fake run and another that differs from it in these sections."""
    return diff(load(fake_run(tmp_path, "s/000")), load(fake_run(tmp_path, other, **changes)))


def differing(found: Diff) -> dict[str, list[str]]:
    return {part: [c.what for c in changes] for part, changes in found.parts.items() if changes}


def test_runs_that_differ_in_names_places_and_times_alone_are_equal(tmp_path: Path) -> None:
    found = between(
        tmp_path,
        "again/007",
        code={"root": "/elsewhere", "branch": None, "remote": "https://example.org/x.git"},
        times={"created": "2027-01-01T00:00:00.000+00:00", "started": None, "ended": None},
        hosts=["there"],
        parents=[fake_parent("reproduces", trial="000"), fake_parent("previous-attempt")],
        inputs=[fake_input("train", "/moved/train.parquet")],
        placement={"name": "again"},
    )
    assert found.equal, differing(found)
    assert "they are equal" in text(found)


def test_identity_and_placement_are_told_apart(tmp_path: Path) -> None:
    found = between(tmp_path, identity={"actor.lr": 0.01}, placement={"actor.micro": 4})
    assert differing(found) == {"config": ["actor.lr"], "placement": ["actor.micro"]}
    said = text(found)
    assert "actor.lr" in said and "0.001 -> 0.01" in said


def test_a_number_written_differently_is_no_difference(tmp_path: Path) -> None:
    assert between(tmp_path, identity={"seed": 1.0}).equal


def test_code_data_environment_and_seeds(tmp_path: Path) -> None:
    found = between(
        tmp_path,
        code={"commit": "d" * 40, "patch": {"file": "code.patch", "sha256": "1" * 64, "bytes": 7}},
        inputs=[fake_input("train", "/data/train.parquet", sha256="1" * 64), fake_input("val", "/data/val.parquet")],
        environment={"packages": {"torch": "2.14.0", "new": "1"}, "python": "3.12.1"},
        seeds={"seed": 2},
        parents=[fake_parent("forked-from")],
    )
    assert differing(found) == {
        "code": ["commit", "patch"],
        "data": ["train", "val"],
        "environment": ["python", "package new", "package torch", "package verl"],
        "seeds": ["seed"],
        "parents": ["made of"],
    }


def test_a_gangs_machines_are_compared_and_not_that_of_its_controller(tmp_path: Path) -> None:
    def of(gpu: str) -> dict[str, Any]:
        return {"cpu": "EPYC", "gpus": [gpu], "driver": "570", "host": "n0"}

    plain = fake_document(tmp_path / "attempt-1")["environment"]
    a = {**plain, "gpus": ["T4"], "cpu": "login", "nodes": [of("H100")]}
    b = {**plain, "gpus": [], "cpu": "laptop", "nodes": [{**of("H100"), "host": "n7"}]}
    assert list(environment(a, b)) == [], "the hosts' names are no difference"
    (change,) = environment(a, {**plain, "nodes": [of("A100")]})
    assert (change.what, change.a, change.b) == ("nodes", "EPYC, H100, driver 570", "EPYC, A100, driver 570")
    assert list(environment(a, plain)) == [], "before it is run nobody knows where"
    assert [c.what for c in environment(plain, {**plain, "gpus": ["T4"]})] == ["gpus"]


def test_curves_name_the_first_step_and_metric_that_part(tmp_path: Path) -> None:
    other = {step: dict(values) for step, values in CURVE.items()}
    other[2]["actor/loss"] = 0.25
    other[3]["actor/loss"] = 0.35
    other[1]["timing_s/step"] = 99.0
    found = between(tmp_path, metrics=other)
    assert differing(found) == {"curves": ["step 2 actor/loss", "step 3 actor/loss"]}
    assert "step 2, actor/loss: 0.2 and 0.25" in text(found)


def test_steps_that_one_run_lacks_are_a_difference(tmp_path: Path) -> None:
    found = between(tmp_path, metrics={1: CURVE[1]})
    assert differing(found) == {"curves": ["steps that the other has not"]}


def test_a_run_without_metrics_is_compared_in_all_else(tmp_path: Path) -> None:
    found = between(tmp_path, metrics={})
    assert found.equal and found.code == 2, "equal is not what nobody could see"
    assert "has no metrics" in text(found) and "equal in all but their curves" in text(found)
    assert found.as_dict()["curves_compared"] is False


def test_a_long_list_is_cut_for_people_and_whole_for_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(tmp_path, "s/000")
    fake_run(tmp_path, "s/001", identity={f"k{i}": i for i in range(40)})
    store = ["--store", str(tmp_path)]
    assert main(["diff", "s/000", "s/001", *store]) == 1
    assert "and 28 more" in capsys.readouterr().out
    assert main(["diff", "s/000", "s/001", *store, "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["config"]) == 40
    assert main(["diff", "s/000", "s/000", *store]) == 0


class TestCurves:
    def test_nan_is_nan_and_zero_is_not_minus_zero(self) -> None:
        nan = float("nan")
        assert curves.same(nan, -nan) and not curves.same(0.0, -0.0) and not curves.same(nan, 1.0)
        assert not curves.same(1.0, 1.0 + 2**-52)

    def test_what_a_resumed_attempt_repeats_counts_with_its_latest_values(self, tmp_path: Path) -> None:
        first = fake_run(tmp_path, "s/000", metrics={1: {"x/a": 1.0}, 2: {"x/a": 2.0}, 3: {"x/a": 3.0}})
        fake_run(tmp_path, "s/000", attempt=2, metrics={2: {"val/b": 0.5}, 3: {"x/a": 30.0}})
        from sweeper import engines

        found = load(first.parents[1] / "attempt-2/lineage.json")
        curve = curves.read(found.metrics, engines.get("verl"), found.document["config"])
        assert curve == {1: {"x/a": 1.0}, 2: {"x/a": 2.0, "val/b": 0.5}, 3: {"x/a": 30.0}}


def test_hashes_are_those_of_the_record(tmp_path: Path) -> None:
    found = between(tmp_path, inputs=[fake_input("train", "/data/train.parquet", sha256="1" * 64)])
    (change,) = found.parts["data"]
    assert HASH[:12] in change.a and "1" * 12 in change.b
