"""Our own keys are checked like the engine's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sweeper import app
from sweeper.config.hydra_app import initialized


@pytest.mark.parametrize(
    ("override", "valid"),
    [
        ("max_concurrent=many", "a whole number from 1, or null"),
        ("max_concurrent=0", "a whole number from 1, or null"),
        ("output=loud", "auto, rich, plain, json"),
        ("objective.mode=best", "max, min"),
        ("cluster.gpus_per_node=x", "a whole number from 1, or null"),
        ("cluster.device=tpu", "auto, cpu, cuda"),
        ("cluster.gpu=8", "the name of a GPU, H100"),
        ("cluster.gpu=80GB:8", "cluster.gpus_per_node says how many"),
        ("cluster.gpu=H100:8", "cluster.gpus_per_node says how many"),
        ("cluster.gpu=[1]", "the name of a GPU, H100"),
        ("cluster.gpu_memory_gib=80GB", "a number above 0"),
        ("cluster.gpu_memory_gib=-1", "a number above 0"),
        ("cluster.gpu_memory_gib=80000000000", "a number above 0"),
        ("cluster.name=[1]", "a text"),
        ("updates_per_step=0", "a whole number from 1"),
        ("engine.fork_server=perhaps", "true, false"),
        ("engine.env=3", "a mapping"),
        ("engine.inherit=3", "a list of names"),
        ("engine.inherit=[1]", "a list of names"),
        ("engine.python=/no/such/python", "an interpreter that can be run"),
        ("model.arch=null", "a mapping"),
        ("name=a/b", "letters, digits"),
        ("tracking.uri=foo://x", "a folder, or a URI that begins with sqlite, http"),
        ("tracking.uri=3", "an MLflow tracking URI"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named_with_what_can(
    override: str, valid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with initialized():
        assert app.run([override, "plan=true"]) == 2
    said = capsys.readouterr()
    assert override.replace("=null", "=None") in said.out + said.err
    assert valid in said.out + said.err


@pytest.mark.parametrize(
    ("override", "why"),
    [
        (
            "actor_rollout_ref.actor.entropy_coeff=nan",
            "actor_rollout_ref.actor.entropy_coeff is NaN, which equals nothing",
        ),
        ("actor_rollout_ref.actor.entropy_coeff=0.1,nan", "actor_rollout_ref.actor.entropy_coeff is NaN"),
        ("+actor_rollout_ref.foo={a: [nan]}", "actor_rollout_ref.foo.a[0] is NaN"),
        ("+actor_rollout_ref.foo={1: a}", "actor_rollout_ref.foo has the key 1, which is no string"),
    ],
)
def test_what_no_fingerprint_can_name_is_refused_before_anything_is_made(
    override: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with initialized():
        assert app.run([override, f"store={tmp_path}/runs", "tracking=none"]) == 2
    said = capsys.readouterr().err
    assert why in said and "valid: finite numbers" in said
    assert not (tmp_path / "runs").exists()


def test_all_wrong_keys_come_in_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    with initialized():
        assert app.run(["output=plain", "objective.mode=best", "cluster.nodes=0", "max_concurrent=-1"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("objective.mode=best", "cluster.nodes=0", "max_concurrent=-1"))


def test_the_interpreter_of_an_image_must_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    with initialized():
        assert app.run(["engine.image=verl:1", "plan=true"]) == 2
        said = capsys.readouterr().err
        assert "engine.python=python3" in said
        assert app.run(["engine.image=verl:1", "tp=3", "stop.nan=maybe", "plan=true"]) == 2
        said = capsys.readouterr().err
        assert all(word in said for word in ("engine.python=python3", "tp=3", "stop.nan=maybe")), said
        # Ours is one, too, where it is mounted into the container under its own path.
        assert app.run(["engine.image=verl:1", f"engine.python={sys.executable}", "plan=true"]) == 0


@pytest.mark.parametrize("override", ["name=2026", "name=first.try-2", "engine.python=python3", "engine.python=null"])
def test_names_and_interpreters_that_can_be_meant(override: str) -> None:
    with initialized():
        assert app.run([override, "plan=true"]) == 0


@pytest.mark.parametrize(
    "line", ["environment=null", "tracking=null", "model_engine=null", "algorithm=grpo,null", "~model"]
)
def test_a_group_that_a_trial_needs_cannot_be_left_out(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    group = line.lstrip("~").split("=")[0]
    with initialized():
        assert app.run([line, "plan=true"]) == 2
    said = capsys.readouterr().err
    assert f"a trial needs its {group}" in said and "valid:" in said


def test_no_experiment_is_none_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with initialized():
        assert app.run(["experiment=null", "plan=true"]) == 2
    assert "leave it out" in capsys.readouterr().err
