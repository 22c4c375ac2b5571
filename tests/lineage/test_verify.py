"""Judging a claim. The runs are fakes, written by hand; tests/real/test_verify.py has real ones."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from records_fake import CURVE, fake_input, fake_parent, fake_run

from sweeper.checkpoints import manifest
from sweeper.cli.main import main
from sweeper.errors import RequestError
from sweeper.lineage import diff, verify
from sweeper.lineage.find import Found, load


def run(tmp_path: Path, name: str, **changes: Any) -> Found:
    return load(fake_run(tmp_path, name, **changes))


def altered(step: int, metric: str, value: float) -> dict[int, dict[str, Any]]:
    curve: dict[int, dict[str, Any]] = {s: dict(values) for s, values in CURVE.items()}
    curve[step][metric] = value
    return curve


class TestExact:
    def test_runs_that_are_the_same_but_for_their_speed_pass(self, tmp_path: Path) -> None:
        again = run(tmp_path, "again/000", metrics=altered(2, "timing_s/step", 99.0))
        report = verify.judge_exact(run(tmp_path, "s/000"), again)
        assert (report.verdict, report.code) == ("pass", 0)
        assert report.facts["steps"] == 3 and report.facts["values"] == 6

    def test_one_bit_fails_with_its_step_its_name_and_both_values(self, tmp_path: Path) -> None:
        other = math.nextafter(0.2, 1.0)
        again = run(tmp_path, "again/000", metrics=altered(2, "actor/loss", other))
        report = verify.judge_exact(run(tmp_path, "s/000"), again)
        assert (report.verdict, report.code) == ("fail", 1)
        assert report.facts["first"] == {"step": 2, "metric": "actor/loss", "a": 0.2, "b": other}
        assert f"step 2, actor/loss: 0.2 and {other!r}" in report.text()

    def test_a_metric_that_is_gone_fails(self, tmp_path: Path) -> None:
        again = run(tmp_path, "again/000", metrics={**CURVE, 3: {"timing_s/step": 1.0}})
        report = verify.judge_exact(run(tmp_path, "s/000"), again)
        assert report.verdict == "fail" and "nothing" in report.why

    def test_a_recorded_step_that_the_new_run_lacks_fails(self, tmp_path: Path) -> None:
        again = run(tmp_path, "again/000", metrics={1: CURVE[1], 2: CURVE[2]})
        report = verify.judge_exact(run(tmp_path, "s/000"), again)
        assert report.verdict == "fail" and "no step 3" in report.why

    def test_steps_beyond_the_record_are_named_and_not_judged(self, tmp_path: Path) -> None:
        early = run(tmp_path, "s/000", metrics={1: CURVE[1]})
        report = verify.judge_exact(early, run(tmp_path, "again/000"))
        assert report.verdict == "pass" and "goes on to step 3" in report.why

    def resumed(self, tmp_path: Path, *, first: dict[int, Any] | None = None) -> tuple[Found, Path]:
        """A run of two attempts, and the metrics of the first."""
        path = fake_run(tmp_path, "s/000", metrics={1: CURVE[1], 2: CURVE[2]} if first is None else first)
        return run(tmp_path, "s/000", attempt=2, metrics={3: CURVE[3]}), path.with_name("metrics.jsonl")

    def test_a_run_of_two_attempts_is_judged_whole(self, tmp_path: Path) -> None:
        found, _ = self.resumed(tmp_path)
        report = verify.judge_exact(found, run(tmp_path, "again/000"))
        assert report.verdict == "pass" and report.facts["steps"] == 3
        report = verify.judge_exact(found, run(tmp_path, "other/000", metrics=altered(1, "actor/loss", 9.0)))
        assert report.verdict == "fail" and "step 1, actor/loss" in report.why

    def test_without_the_metrics_of_an_earlier_attempt_nothing_passes(self, tmp_path: Path) -> None:
        found, first = self.resumed(tmp_path)
        first.unlink()
        report = verify.judge_exact(found, run(tmp_path, "again/000", metrics=altered(1, "actor/loss", 9.0)))
        assert (report.verdict, report.code) == ("unjudged", 2)
        assert "steps 1 to 2 are not there" in report.why and str(first) in report.why
        assert report.facts["lost_steps"] == [1, 2] and "sweeper sync s" in report.text()
        alone = tmp_path / "alone"  # as whoever is given only the record and its metrics has it
        alone.mkdir()
        for name in ("lineage.json", "metrics.jsonl"):
            shutil.copy(found.path.with_name(name), alone / name)
        report = verify.judge_exact(
            load(alone / "lineage.json"), load(tmp_path / "again/trials/000/attempt-1/lineage.json")
        )
        assert report.verdict == "unjudged" and report.facts["lost_steps"] == [1, 2]
        report = verify.judge_exact(found, run(tmp_path, "other/000", metrics=altered(3, "actor/loss", 9.0)))
        assert report.verdict == "fail", "what is there and differs is a fail all the same"

    def test_without_the_metrics_of_the_last_attempt_nothing_passes(self, tmp_path: Path) -> None:
        found, _ = self.resumed(tmp_path)
        found.path.with_name("metrics.jsonl").unlink()
        report = verify.judge_exact(found, run(tmp_path, "again/000"))
        assert report.verdict == "unjudged" and "step 3 are not there" in report.why

    def test_an_attempt_that_never_had_a_step_is_not_missed(self, tmp_path: Path) -> None:
        first = fake_run(tmp_path, "s/000", metrics={})
        first.with_name("metrics.jsonl").unlink()
        found = run(tmp_path, "s/000", attempt=2)
        assert verify.judge_exact(found, run(tmp_path, "again/000")).verdict == "pass"

    @pytest.mark.parametrize(
        ("claim", "named"),
        [
            ({"score": 0.99}, "result.score: 0.99"),
            ({"best_score": 0.99}, "result.best_score: 0.99"),
            ({"step": 30}, "result.step: 30"),
        ],
    )
    def test_a_result_that_its_own_metrics_do_not_have_fails(
        self, tmp_path: Path, claim: dict[str, Any], named: str
    ) -> None:
        report = verify.judge_exact(run(tmp_path, "s/000", result=claim), run(tmp_path, "again/000"))
        assert report.verdict == "fail" and named in report.why

    def test_a_run_is_not_judged_by_itself(self, tmp_path: Path) -> None:
        found = run(tmp_path, "s/000")
        with pytest.raises(RequestError, match="by itself"):
            verify.against(found, found, "exact")

    def test_of_a_fork_the_steps_since_then_are_judged(self, tmp_path: Path) -> None:
        run(tmp_path, "s/000", fingerprint="e" * 64, metrics=altered(1, "actor/loss", 7.0))
        since = {step: CURVE[step] for step in (2, 3)}
        forked = [fake_parent("forked-from", trial="004", step=1)]
        found = run(tmp_path, "s/000", attempt=2, parents=forked, metrics=since)
        report = verify.judge_exact(found, run(tmp_path, "again/000", metrics=since))
        assert (report.verdict, report.facts["steps"]) == ("pass", 2), "not the step before, of other values"
        other = {**since, 2: {**since[2], "actor/loss": 9.0}}
        assert "step 2" in verify.judge_exact(found, run(tmp_path, "other/000", metrics=other)).why

    @pytest.mark.parametrize("metrics", [{}, {7: {"actor/loss": 1.0}}])
    def test_what_cannot_be_compared_is_no_pass(self, tmp_path: Path, metrics: dict[int, Any]) -> None:
        report = verify.judge_exact(run(tmp_path, "s/000", metrics=metrics), run(tmp_path, "again/000"))
        assert (report.verdict, report.code) == ("unjudged", 2)

    def test_what_measures_the_machine_alone_is_no_pass(self, tmp_path: Path) -> None:
        found, again = (run(tmp_path, f"{name}/000", metrics={1: {"timing_s/step": 1.0}}) for name in ("s", "again"))
        report = verify.judge_exact(found, again)
        assert (report.verdict, report.code) == ("unjudged", 2)


class TestStatistical:
    def scored(self, tmp_path: Path, recorded: Any, *scores: Any) -> verify.Report:
        again = [run(tmp_path, f"again/{i:03d}", result={"score": score}) for i, score in enumerate(scores)]
        return verify.judge_statistical(run(tmp_path, "s/000", result={"score": recorded}), again)

    def test_a_score_that_such_a_run_has_passes_and_another_fails(self, tmp_path: Path) -> None:
        assert self.scored(tmp_path / "a", 0.52, 0.50, 0.55, 0.47, 0.53, 0.49).code == 0
        report = self.scored(tmp_path / "b", 0.80, 0.50, 0.55, 0.47, 0.53, 0.49)
        assert report.code == 1
        low, high = report.facts["interval"]
        assert high < 0.80 and low < report.facts["mean"] < high

    def test_the_interval_is_the_one_of_the_textbook(self) -> None:
        # Scores 1, 2, 3: mean 2, s 1, t(2, 0.975) = 4.302653; half = 4.302653 * sqrt(4 / 3).
        low, high = verify.prediction([1.0, 2.0, 3.0])
        assert (low, high) == pytest.approx((2 - 4.968276, 2 + 4.968276), abs=1e-5)

    def test_a_sound_run_passes_as_often_as_promised(self) -> None:
        import numpy as np

        draws = np.random.default_rng(0).normal(0.5, 0.05, (1000, 6))
        inside = 0
        for *scores, one in draws.tolist():
            low, high = verify.prediction(scores)
            inside += low <= one <= high
        assert 0.93 < inside / 1000 < 0.97

    def test_no_spread_passes_only_the_same_score(self, tmp_path: Path) -> None:
        assert self.scored(tmp_path / "a", 0.5, 0.5, 0.5).code == 0
        assert self.scored(tmp_path / "b", 0.6, 0.5, 0.5).code == 1

    @pytest.mark.parametrize("scores", [(0.5,), (0.5, None), (0.5, "NaN")])
    def test_one_score_is_no_interval(self, tmp_path: Path, scores: tuple[Any, ...]) -> None:
        assert self.scored(tmp_path, 0.5, *scores).code == 2

    def test_a_record_without_a_score_cannot_be_judged(self, tmp_path: Path) -> None:
        assert self.scored(tmp_path, None, 0.5, 0.6).code == 2

    def test_a_recorded_nan_fails(self, tmp_path: Path) -> None:
        assert self.scored(tmp_path, "NaN", 0.5, 0.6).code == 1

    def test_the_new_seeds_are_none_that_a_search_uses(self, tmp_path: Path) -> None:
        seeds = verify.other_seeds(run(tmp_path, "s/000", run={"seed": 3}), 3)
        assert len(set(seeds)) == 3 and min(seeds) > 3 + 1000 + 100


class TestConfig:
    def test_the_same_identity_and_data_pass(self, tmp_path: Path) -> None:
        assert verify.same_config(run(tmp_path, "s/000"), run(tmp_path, "t/000")).code == 0

    def test_what_differs_is_named(self, tmp_path: Path) -> None:
        a = run(tmp_path, "s/000")
        other = run(tmp_path, "t/000", fingerprint="e" * 64, identity={"actor.lr": 0.01})
        report = verify.same_config(a, other)
        assert report.code == 1 and "actor.lr: 0.001 -> 0.01" in report.text()
        data = run(tmp_path, "u/000", inputs=[fake_input("train", "/data/train.parquet", sha256="1" * 64)])
        assert "train" in verify.same_config(a, data).why

    def test_an_input_that_nobody_hashed_is_no_pass(self, tmp_path: Path) -> None:
        unhashed = [fake_input("train", "s3://bucket/train.parquet", sha256=None)]
        a, b = (run(tmp_path, f"{name}/000", inputs=unhashed) for name in ("s", "t"))
        report = verify.against(a, b, "config")
        assert (report.verdict, report.code) == ("unjudged", 2) and "s3://bucket/train.parquet" in report.why
        report = verify.against(a, b, "exact")
        assert report.verdict == "pass" and "inputs.train: s3://bucket" in report.text(), "the bits are what is judged"
        assert any("s3://bucket" in note for note in diff.diff(a, b).notes)
        odd = [fake_input("file", "/nowhere/x", sha256=None)]
        a, b = (run(tmp_path, f"{name}/000", inputs=odd) for name in ("u", "v"))
        assert verify.against(a, b, "config").verdict == "pass", "what only sounds like a file is none"

    def test_a_path_that_names_the_same_content_is_the_same(self, tmp_path: Path) -> None:
        def at(name: str, place: str, **changes: Any) -> Found:
            inputs = [fake_input("train", f"{place}/train.parquet", **changes)]
            config, identity = {"data": {"train": f"{place}/train.parquet"}}, {"data.train": f"{place}/train.parquet"}
            return run(tmp_path, name, inputs=inputs, config=config, identity=identity, fingerprint=place * 8)

        a = at("s/000", "/here")
        report = verify.against(a, at("t/000", "/there"), "config")
        assert report.verdict == "pass" and "but for the paths in data.train" in report.why
        assert verify.against(a, at("u/000", "/there", sha256="1" * 64), "config").verdict == "fail"


class TestCheckpoints:
    def recorded(self, tmp_path: Path) -> tuple[Found, Path]:
        """A fake run with a fake checkpoint and the manifest that is written after a save."""
        folder = tmp_path / "s/trials/000/checkpoints"
        weights = folder / "global_step_2/actor/model.pt"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"weights")
        written = manifest.write(folder, 2, trial="000", attempt=1)
        assert written is not None
        saved = {"step": 2, "path": str(folder / "global_step_2"), "digest": written.digest, "bytes": 7, "files": 1}
        return run(tmp_path, "s/000", checkpoints=[saved]), weights

    def test_a_whole_one_and_one_that_is_gone_are_fine(self, tmp_path: Path) -> None:
        found, weights = self.recorded(tmp_path)
        assert verify.altered_checkpoints(found) == []
        shutil.rmtree(weights.parent)
        assert verify.altered_checkpoints(found) == []
        assert verify._gone(found) == ["the checkpoint of step 2 is gone, and was not looked at"]

    def test_one_whose_manifest_is_gone_is_read(self, tmp_path: Path) -> None:
        found, weights = self.recorded(tmp_path)
        shutil.rmtree(weights.parents[2] / "manifests")
        assert verify.altered_checkpoints(found) == [] == verify._gone(found)
        weights.write_bytes(b"weightt")
        assert "not the recorded one" in verify.altered_checkpoints(found)[0]

    def test_one_flipped_byte_fails_every_tier_and_names_the_file(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        found, weights = self.recorded(tmp_path)
        weights.write_bytes(b"weightt")
        for tier in verify.TIERS:
            assert main(["verify", str(found.path), "--tier", tier]) == 1
            said = capsys.readouterr().out
            assert said.startswith("FAIL") and "actor/model.pt" in said
            assert f"try:   sweeper reproduce {found.path}" in said
        fake_run(tmp_path, "t/000")
        assert main(["verify", str(found.path), "--against", "t/000", "--store", str(tmp_path)]) == 1
        assert "actor/model.pt" in capsys.readouterr().out
        again = manifest.write(weights.parents[2], 2)
        assert again is not None, "a manifest that was made to fit"
        assert again.digest in verify.altered_checkpoints(found)[0]


@pytest.mark.parametrize(
    ("asked", "device", "tier"),
    [
        ("auto", "cpu", "exact"),
        ("auto", "cuda", "statistical"),
        (True, "cuda", "exact"),
        (False, "cpu", "statistical"),
    ],
)
def test_the_tier_is_what_the_record_promises(tmp_path: Path, asked: Any, device: str, tier: str) -> None:
    found = run(tmp_path, "s/000", config={"deterministic": asked, "trainer": {"device": device}})
    assert verify.default_tier(found) == tier


class TestTheCommand:
    def test_against_a_run_that_is_there(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        fake_run(tmp_path, "s/000")
        fake_run(tmp_path, "t/000", metrics=altered(3, "actor/loss", 7.0))
        store = ["--store", str(tmp_path)]
        fake_run(tmp_path, "u/000")
        assert main(["verify", "s/000", "--against", "u/000", *store]) == 0
        assert capsys.readouterr().out.startswith("PASS  s/000/1 at tier exact")
        assert main(["verify", "s/000", "--against", "t/000", "--json", *store]) == 1
        report = json.loads(capsys.readouterr().out)
        assert report["first"]["step"] == 3 and report["first"]["metric"] == "actor/loss"

    def test_seeds_that_differ_fail_the_config_tier(self, tmp_path: Path) -> None:
        a, b = run(tmp_path, "s/000"), run(tmp_path, "t/000", seeds={"seed": 2})
        assert verify.against(a, run(tmp_path, "u/000"), "config").verdict == "pass"
        report = verify.against(a, b, "config")
        assert report.verdict == "fail" and report.why.startswith("seed")

    @pytest.mark.parametrize("tier", ["config", "exact"])
    @pytest.mark.parametrize(
        ("other", "named"),
        [
            ({"fingerprint": "e" * 64, "identity": {"actor.lr": 9.9}}, "identity.actor.lr"),
            ({"fingerprint": "e" * 64}, "fingerprint"),
            ({"inputs": [fake_input("train", "/x", sha256="1" * 64)]}, "inputs.train"),
            ({"seeds": {"seed": 2}}, "seeds.seed"),
        ],
    )
    def test_a_run_of_another_config_or_data_is_a_fail_though_its_bits_are_the_same(
        self, tmp_path: Path, tier: str, other: dict[str, Any], named: str
    ) -> None:
        report = verify.against(run(tmp_path, "s/000"), run(tmp_path, "t/000", **other), tier)
        assert (report.verdict, report.tier) == ("fail", tier) and report.why == f"{named} differs in t/000/1"

    def test_packages_that_compute_are_named_with_what_brings_them_back(self, tmp_path: Path) -> None:
        packages = {"numpy": "1.0", "pytest": "8.0", "vllm": "0.1"}
        a = run(tmp_path, "s/000", environment={"packages": packages})
        b = run(tmp_path, "t/000", environment={"packages": {"numpy": "2.0", "pytest": "9.0", "ray": "2.1"}})
        said = verify.against(a, b, "exact").text()
        assert "environment.packages.numpy, environment.packages.ray, environment.packages.vllm" in said
        assert "-m pip install numpy==1.0 vllm==0.1" in said and "-m pip uninstall ray" in said
        c = run(tmp_path, "u/000", environment={"packages": {**packages, "pytest": "9.0"}})
        assert "pip" not in verify.against(a, c, "exact").text(), "a package that computes nothing is only said"
        lock = {"file": "uv.lock", "sha256": "1" * 64}
        d = run(tmp_path, "v/000", environment={"packages": {**packages, "pytest": "9.0"}, "lock": lock})
        said = verify.against(a, d, "exact").text()
        assert "environment.lock" in said and "-m pip install pytest==8.0" in said

    def test_code_that_differs_is_named_as_far_as_it_can_be(self, tmp_path: Path) -> None:
        other = run(tmp_path, "t/000", code={"commit": "d" * 40})
        report = verify.against(run(tmp_path, "s/000"), other, "exact")
        assert report.verdict == "pass" and report.why.startswith("by other code than was recorded (code.commit): ")
        assert "which files of the code differ cannot be told: code.commit: the commit ccc" in report.text()

    def test_a_report_goes_beside_a_run_that_was_made_to_repeat_the_first_and_nowhere_else(
        self, tmp_path: Path
    ) -> None:
        a, b = run(tmp_path, "s/000"), run(tmp_path, "t/000")
        again = run(tmp_path, "again/000", parents=[fake_parent("reproduces", trial="000", attempt=1)])
        report = verify.against(a, again, "exact")
        assert verify.save_beside(report, a, b) is None
        assert verify.save_beside(report, a, again) == tmp_path / "again"
        assert json.loads((tmp_path / "again/verify.json").read_text())["verdict"] == "pass"
        assert not (tmp_path / "t/verify.json").exists()

    def test_a_checkpoint_that_is_gone_is_said(self, tmp_path: Path) -> None:
        gone = {"step": 2, "path": str(tmp_path / "gone/global_step_2"), "digest": "0" * 64, "bytes": 1, "files": 1}
        a, b = run(tmp_path, "s/000", checkpoints=[gone]), run(tmp_path, "t/000")
        report = verify.against(a, b, "exact")
        assert report.verdict == "pass" and "step 2 is gone" in report.text()

    def test_one_run_is_not_enough_for_the_statistical_tier(self, tmp_path: Path) -> None:
        fake_run(tmp_path, "s/000")
        fake_run(tmp_path, "t/000")
        assert main(["verify", "s/000", "--against", "t/000", "--tier", "statistical", "--store", str(tmp_path)]) == 2

    @pytest.mark.parametrize("seeds", ["1", "0", "-3", "many"])
    def test_fewer_runs_than_an_interval_needs_are_refused_before_anything_is_run(
        self, tmp_path: Path, seeds: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake_run(tmp_path, "s/000")
        with pytest.raises(SystemExit) as ended:
            main(["verify", "s/000", "--tier", "statistical", "--seeds", seeds, "--store", str(tmp_path)])
        assert ended.value.code == 2 and "at least 2" in capsys.readouterr().err

    def test_a_report_is_kept(self, tmp_path: Path) -> None:
        report = verify.judge_exact(run(tmp_path, "s/000"), run(tmp_path, "t/000"))
        assert json.loads(report.save(tmp_path).read_text())["verdict"] == "pass"


def test_statistical_against_one_run_is_refused_with_what_is_valid(tmp_path: Path) -> None:
    a = run(tmp_path, "s/000")
    with pytest.raises(RequestError, match="several"):
        verify.against(a, a, "statistical")
