"""The stages after the sweep, on the records of a fake one; what params.yaml stands for; what a request's files say."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pipeline_fake import fake_checkpoint, fake_sweep

from sweeper.checkpoints import manifest, pins, start
from sweeper.config.hydra_app import initialized
from sweeper.environments import arithmetic
from sweeper.errors import RequestError, SweeperError
from sweeper.lineage.find import find
from sweeper.pipeline import compose, evaluate, held_out, params, places, prepare, report, select, sweep
from sweeper.pipeline.__main__ import STAGES, main

ROOT = Path(__file__).resolve().parents[2]
NAN = float("nan")


def parameters(**changes: Any) -> dict[str, Any]:
    return {**yaml.safe_load((ROOT / "params.yaml").read_text()), **changes}


@pytest.fixture
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which the sweep `s` has run; its best trial is 001."""
    monkeypatch.chdir(tmp_path)
    fake_sweep(tmp_path / "runs", "s", {"lr=0.1": [0.3], "lr=0.2": [0.7], "lr=0.3": [NAN]})
    sweep.collect("s", places.SWEEP)
    places.REQUEST.mkdir(parents=True)
    places.write(compose.SWEEP, {"engine": {"verl": "0.9.1"}})
    return tmp_path


# --- parameters ---


def test_params_yaml_is_what_dvc_exp_run_composes() -> None:
    """Or the first `dvc exp run` without -S would change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert params.composed() == (ROOT / "params.yaml").read_text()
        assert params.differences(params.read()) == []
        assert params.differences({**params.read(), "algorithm": "rloo"}) == ["algorithm=rloo (conf/pipeline: grpo)"]


def test_dvc_yaml_names_every_parameter_and_every_stage() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(stages) == list(STAGES)
    assert {*stages["compose"]["params"], *stages["evaluate"]["params"]} == set(params.KEYS)
    assert all(stage["cmd"] == f"python -m sweeper.pipeline {name}" for name, stage in stages.items())


def test_parameters_become_a_request() -> None:
    asked = parameters(
        algorithm=["grpo", "ppo"], trials=3, sweep={"trainer": {"test_freq": 2}, "search": {"points": [{"lr": 0.1}]}}
    )
    lines = params.overrides(asked)
    assert "algorithm=grpo,ppo" in lines and "search.trials=3" in lines and "trainer.test_freq=2" in lines
    assert "search.points=[{lr:0.1}]" in lines
    assert "trainer.total_training_steps=8" in lines and "lr=choice(2e-4,5e-4)" in lines
    assert not any(line.startswith(("kl=", "evaluate")) for line in lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("algoritm: grpo\n", "-S algorithm=..."),
        ("rollout: 3\n", "-S +sweep.rollout=..."),
        ("evaluate: {seed: 1, seeds: 2, date: 3}\n", "evaluate.date"),
        ("evaluate: {seed: 1}\n", "evaluate.data, evaluate.seeds"),
        ("- a\n", "no mapping"),
        ("a: [\n", "cannot be read"),
    ],
)
def test_wrong_parameters_are_refused_by_name(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(RequestError, match=said.replace("+", r"\+").replace(".", r"\.")):
        params.read()


# --- compose ---


def described(*changes: str) -> dict[str, Any]:
    lines = [*params.overrides(parameters()), *changes]
    with initialized():
        return compose.described(compose.checked(lines))


def test_a_request_is_the_same_until_something_that_changes_a_result_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    base = described()
    assert described("cluster.max_ranks=1", "tracking=none", "max_concurrent=1") == base, "placement"
    assert str(ROOT) not in json.dumps(base), "it would differ in every checkout"
    for change in (
        "algorithm=rloo",
        "seed=2",
        "trainer.total_training_steps=9",
        "lr=choice(1e-4,5e-4)",
        "stop.patience=4",
        "environment.largest=28",
        "search.seeds=2",
    ):
        assert described(change) != base, change


def test_code_inside_the_trainer_is_part_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"engines/verl/cpu/rollout.py", "engines/verl/resume.py"} <= set(described("cluster.device=cpu")["code"])


def test_data_outside_the_checkout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a change of it would leave a stage fresh that is stale."""
    shutil.copytree(ROOT / "conf" / "pipeline", tmp_path / "conf" / "pipeline")
    (tmp_path / "reward.py").write_text("def compute_score(**_): return 0.0\n")
    asked = parameters(sweep={"reward": {"custom_reward_function": {"path": str(tmp_path / "x" / "reward.py")}}})
    (tmp_path / "x").mkdir()
    (tmp_path / "reward.py").rename(tmp_path / "x" / "reward.py")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(asked))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match="outside data/"):
        compose.run()
    assert not places.REQUEST.exists()


def test_every_file_of_the_users_is_seen_and_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the data and the reward alone: what decides a result is what lineage/inputs.py says."""
    monkeypatch.chdir(tmp_path)
    config: dict[str, Any] = {
        "environment": {"kind": "custom"},
        "model": {},
        "engine": {"name": "verl"},
        "data": {"train_files": str(tmp_path / "data/train.parquet"), "tool_config_path": "data/tools.yaml"},
        "actor_rollout_ref": {"model": {"path": "org/name", "lora_adapter_path": str(tmp_path / "data/adapter")}},
    }
    (tmp_path / "data/adapter").mkdir(parents=True)
    (tmp_path / "data/adapter/weights").write_text("w")
    monkeypatch.setattr(compose.prepare, "needed", lambda config: [])
    assert sorted(map(str, compose._own_files(config))) == ["data/tools.yaml", "data/train.parquet"]
    assert sorted(map(str, compose._own_models(config))) == ["data/adapter", "org/name"]
    assert list(prepare._source("data/adapter")["files"]) == ["weights"]


# --- prepare ---


def test_trials_read_what_dvc_has_or_are_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    places.REQUEST.mkdir(parents=True)
    build = {"what": "environment", "kind": "arithmetic", "spec": {}, "folder": "arithmetic-0"}
    places.write(compose.ENVIRONMENT, {"builds": [build], "files": ["data/mine.parquet"]})
    places.write(compose.MODEL, {"builds": [], "paths": []})
    (tmp_path / "cache" / "arithmetic-0").mkdir(parents=True)
    (tmp_path / "cache" / "arithmetic-0" / "train.parquet").write_text("rows")
    with pytest.raises(RequestError, match=r"data/mine\.parquet is not here"):
        prepare.data()
    assert not places.DATA.exists()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.parquet").write_text("my rows")
    places.write(compose.ENVIRONMENT, {"builds": [], "files": ["data/mine.parquet"]})
    prepare.data()
    shutil.copytree(tmp_path / "cache" / "arithmetic-0", places.DATA / "arithmetic-0")
    places.write(compose.ENVIRONMENT, {"builds": [build], "files": ["data/mine.parquet"]})
    prepare.model()
    prepare.restore()
    shutil.rmtree(tmp_path / "cache")
    prepare.restore()
    assert (tmp_path / "cache" / "arithmetic-0" / "train.parquet").read_text() == "rows", "as after dvc pull"
    (tmp_path / "cache" / "arithmetic-0" / "train.parquet").write_text("other")
    with pytest.raises(RequestError, match=r"train\.parquet is not the file"):
        prepare.restore()
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "data" / "mine.parquet").write_text("changed")
    with pytest.raises(RequestError, match=r"data/mine\.parquet has changed"):
        prepare.restore()


# --- sweep ---


def test_a_sweeps_name_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (places.DATA, places.MODEL):
        folder.mkdir(parents=True)
        (folder / "file").write_text("a")
    one = sweep.identity({"arms": [1]})
    assert sweep.identity({"arms": [1]}) == one and sweep.identity({"arms": [2]}) != one
    (places.DATA / "file").write_text("b")
    assert sweep.identity({"arms": [1]}) != one


def test_an_experiment_in_a_folder_of_its_own_keeps_its_records_with_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert places.store() == tmp_path / "runs"
    aside = tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "tmpabc"
    aside.mkdir(parents=True)
    monkeypatch.chdir(aside)
    assert places.store() == tmp_path / "runs"


def test_what_is_handed_on_holds_no_path_of_this_machine(swept: Path) -> None:
    about, rows = sweep.load(places.SWEEP)
    assert about["overrides"] == ["algorithm=grpo"]
    assert [row["place"] for row in rows] == ["s/trials/000", "s/trials/001", "s/trials/002"]
    assert rows[1]["scores"] == {"0": 0.1, "4": 0.7} and rows[1]["rewards"] == {"2": 0.2, "4": 0.3}
    assert str(swept) not in (places.SWEEP / sweep.TRIALS).read_text()


# --- select ---


def test_the_best_checkpoint_is_taken_and_the_original_pinned(swept: Path) -> None:
    assert select.run() == 0
    best = places.read(places.BEST / select.ABOUT)
    assert (best["from"], best["step"], best["score"]) == ("s/trials/001", 4, 0.7)
    theirs = swept / "runs" / "s" / "trials" / "001" / "checkpoints"
    ours = places.BEST / "checkpoint" / "global_step_4"
    assert places.files(ours) == places.files(theirs / "global_step_4")
    assert [(p.step, p.by) for p in pins.pinned(theirs)] == [(4, "dvc")]
    made = manifest.read(theirs, 4)
    assert made and made.digest == best["digest"]
    evaluate.whole(ours)
    assert manifest.read(ours.parent, 4) == made
    assert (places.PLOTS / "score.csv").read_text() == "step,score\n0,0.1\n4,0.7\n"
    assert select.record(best) == places.BEST / "trials/001/attempt-1/lineage.json"


def test_what_is_handed_on_is_enough_to_reproduce(swept: Path) -> None:
    """Records, patches and metrics of every attempt: where the sweep's own folder is not, as after `dvc pull`."""
    trial = swept / "runs/s/trials/001"
    shutil.copytree(trial / "attempt-1", trial / "attempt-2")
    for attempt in ("attempt-1", "attempt-2"):
        document = json.loads((trial / attempt / "lineage.json").read_text())
        patch = f"{attempt}\n".encode()
        document["code"]["patch"] = {
            "file": "code.patch",
            "sha256": hashlib.sha256(patch).hexdigest(),
            "bytes": len(patch),
        }
        (trial / attempt / "lineage.json").write_text(json.dumps(document))
        (trial / attempt / "code.patch").write_bytes(patch)
    sweep.collect("s", places.SWEEP)
    select.run()
    kept = {p.relative_to(trial): p.read_bytes() for p in trial.glob("attempt-*/*") if p.name != "spec.json"}
    shutil.rmtree(swept / "runs")
    for folder in (places.BEST / "trials/001", places.SWEEP / "trials/001"):
        run = find(str(folder), swept / "none")
        assert run.path == folder.absolute() / "attempt-2/lineage.json"
        assert [p.relative_to(folder.absolute()) for p in run.metrics] == [
            Path("attempt-1/metrics.jsonl"),
            Path("attempt-2/metrics.jsonl"),
        ]
        assert {p.relative_to(folder): p.read_bytes() for p in folder.glob("attempt-*/*")} == kept
    assert find("sweep/000", places.OUT).name == "s/000/1", "by its name too"
    assert start.origin(places.BEST.absolute() / "checkpoint/global_step_4").trial == "001"


def test_a_corrupted_checkpoint_is_not_taken(swept: Path) -> None:
    checkpoints = swept / "runs" / "s" / "trials" / "001" / "checkpoints"
    for step in (2, 4):
        manifest.write(checkpoints, step)
    file = checkpoints / "global_step_4" / "actor" / "model_world_size_1_rank_0.pt"
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(bytes(data))
    select.run()
    assert places.read(places.BEST / select.ABOUT)["step"] == 2


def test_the_best_of_several_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidate with the best mean, of it the best seed: not the luckiest single trial."""
    monkeypatch.chdir(tmp_path)
    fake_sweep(tmp_path / "runs", "s", {"lr=0.1": [0.1, 0.9], "lr=0.2": [0.6, 0.7]}, seeds=(1, 2))
    sweep.collect("s", places.SWEEP)
    row, score = select.best(*sweep.load(places.SWEEP))
    assert (row["id"], score) == ("001-s2", 0.7)


def test_no_trial_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fake_sweep(tmp_path / "runs", "s", {"lr=0.1": [NAN]})
    sweep.collect("s", places.SWEEP)
    with pytest.raises(RequestError, match="no best one"):
        select.best(*sweep.load(places.SWEEP))


def test_a_sweep_of_another_machine(swept: Path) -> None:
    shutil.rmtree(swept / "runs")
    with pytest.raises(RequestError, match="dvc pull, or dvc repro --force sweep"):
        select.run()
    assert not places.BEST.exists()


# --- evaluate ---


def test_the_seeds_are_fresh(swept: Path) -> None:
    about, rows = sweep.load(places.SWEEP)
    rows[0]["overrides"].append("seed=7")
    about["seeds"] = [3]
    taken = held_out.used(rows, about)
    assert taken == {3, 7}
    assert held_out.seeds({"seed": 10, "seeds": 2}, taken) == [10, 11]
    with pytest.raises(RequestError, match="under seed 7"):
        held_out.seeds({"seed": 6, "seeds": 2}, taken)
    with pytest.raises(RequestError, match=r"evaluate\.seeds=0"):
        held_out.seeds({"seed": 6, "seeds": 0}, taken)


def test_an_altered_checkpoint_is_named(swept: Path) -> None:
    select.run()
    at = places.BEST / "checkpoint" / "global_step_4"
    file = at / "data.pt"
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(RequestError, match=r"data\.pt is missing"):
        evaluate.whole(at)
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(RequestError, match=r"(?s)data\.pt has other content than was written.*dvc checkout"):
        evaluate.whole(at)


def test_held_out_data_is_never_what_the_scores_are_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path))

    def config(*typed: str) -> Mapping[str, Any]:
        with initialized():
            return compose.checked(typed).trials[0].config

    with pytest.raises(RequestError, match="dvc pull"):
        held_out.data("test", config("algorithm=grpo"))
    with pytest.raises(RequestError, match="outside data/"):
        held_out.data("/tmp/x.parquet", config("algorithm=grpo"))
    arithmetic.build(tmp_path / "data", arithmetic.spec({}))
    (tmp_path / "data" / "val.parquet").rename(tmp_path / "data" / "seen.parquet")
    seen = tmp_path / "data" / "seen.parquet"
    with pytest.raises(RequestError, match="is the set that the sweep's scores are from"):
        held_out.data("data/seen.parquet", config("algorithm=grpo", f"data.val_files={seen}"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seeds": 0}, "evaluate.seeds=0"),
        ({"seed": 1}, "under seed 1"),
        ({"data": "elsewhere.parquet"}, "outside data/"),
        ({"data": "data/none.parquet"}, "data/none.parquet is not here"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    asked = parameters()
    asked["evaluate"] |= changed
    params.FILE.write_text(yaml.safe_dump(asked))
    assert compose.run() == 0
    monkeypatch.setattr(prepare, "restore", lambda: None)
    monkeypatch.setattr(sweep, "execute", lambda *_: pytest.fail("it was started"))
    with pytest.raises(RequestError, match=said):
        sweep.run()


def test_an_evaluation_is_a_request_that_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the checkpoint, on the test set, under fresh seeds, without a step of training; also in an odd folder."""
    odd = tmp_path / "it's (1), a=b"
    checkpoint = fake_checkpoint(odd, 8)
    arithmetic.build(odd / "data", arithmetic.spec({}))
    typed = ["algorithm=ppo", "seed=3", "search=tpe", "search.trials=4", "lr=0.1", "trainer.total_training_steps=8"]
    lines = evaluate.request(typed, checkpoint, odd / "data" / "test.parquet", [11, 12])
    with initialized():
        plan = compose.checked([*lines, "cluster.device=cpu"])
    assert [t.config["seed"] for t in plan.trials] == [11, 12]
    for trial in plan.trials:
        assert trial.config["trainer"]["resume_from_path"] == str(checkpoint)
        assert trial.config["data"]["val_files"] == str(odd / "data" / "test.parquet")
        assert trial.config["trainer"]["val_only"] and trial.config["lr"] == 0.1


def test_an_evaluation_is_of_a_tree_that_has_the_plots(tmp_path: Path) -> None:
    """`select` has just written them, and they are in Git: what the sweep was refused for ends no evaluation."""
    lines = evaluate.request(["lr=0.1", "lineage.strict=true"], tmp_path / "global_step_8", tmp_path / "t.parquet", [1])
    assert "lr=0.1" in lines and not any(line.startswith("lineage") for line in lines)


def test_the_figures_have_an_interval() -> None:
    rows = [{"state": "finished", "step": 8}, {"state": "pruned", "step": None}]
    made = evaluate.metrics({"score": 0.5, "step": 8}, rows, [0.2, 0.3, 0.4])
    # Student's, two degrees of freedom: 4.302653 * 0.1 / sqrt(3)
    low, high = pytest.approx(0.3 - 0.2484138, abs=1e-6), pytest.approx(0.3 + 0.2484138, abs=1e-6)
    assert made["test"] == {"score": pytest.approx(0.3), "low": low, "high": high, "seeds": 3}
    assert made["sweep"] == {"trials": 2, "finished": 1, "steps": 8}
    assert evaluate.metrics({"score": 0.5, "step": 8}, rows, [0.2])["test"] == {"score": 0.2, "seeds": 1}
    with pytest.raises(SweeperError, match="no score"):
        evaluate.metrics({"score": 0.5, "step": 8}, rows, [])


# --- report ---


def test_the_report_stands_alone(swept: Path) -> None:
    select.run()
    places.write(places.METRICS, evaluate.metrics(places.read(places.BEST / select.ABOUT), [], [0.6, 0.65]))
    assert report.run() == 0
    page = (places.REPORT / report.PAGE).read_text()
    assert "0.625" in page and "lr=0.2" in page and "c" * 40 in page and "data:image/png;base64," in page
    assert "failed" in page and str(swept) not in page and "<script" not in page and "http" not in page
    before = (places.REPORT / report.PAGE).read_bytes()
    report.run()
    assert (places.REPORT / report.PAGE).read_bytes() == before


# --- the command ---


@pytest.mark.parametrize("stage", ["prepare", "model", "sweep", "select", "evaluate", "report"])
def test_a_stage_says_what_is_missing(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    assert main([stage]) == 2
    said = capsys.readouterr().err
    assert "is not here" in said and "dvc pull" in said and "Traceback" not in said


def test_an_unknown_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "compose, prepare, model, sweep" in capsys.readouterr().err
