"""What every engine promises (sweeper/engines/base.py), asked of each of them in the same words."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from sweeper import engines
from sweeper.config import hydra_app, tree
from sweeper.config.compose import compose_points
from sweeper.config.space import read
from sweeper.engines.base import AttemptPaths, Config, Engine, Saved, Shape, Sound
from sweeper.errors import SweeperError
from sweeper.trial.identity import fingerprint

CPU = Shape(name="local", device="cpu", nodes=1, gpus_per_node=2)


@pytest.fixture(params=["verl"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return engines.get(request.param)


def bound(engine: Engine, *overrides: str) -> Config:
    with hydra_app.initialized():
        (composed,) = compose_points(read([f"engine={engine.name}", *overrides]).arms)
    assert engine.bind(composed.config, composed.explicit, CPU) == []
    return composed.config


def test_the_default_trial_has_no_problem(engine: Engine) -> None:
    assert engine.check(bound(engine), CPU) == []


def test_checking_sizing_and_making_a_job_change_nothing(engine: Engine, tmp_path: Path) -> None:
    config = bound(engine)
    before = copy.deepcopy(config)
    engine.check(config, CPU)
    engine.workload(config, CPU)
    engine.gang(config)
    engine.job(config, AttemptPaths(tmp_path, tmp_path / "checkpoints"))
    assert config == before
    assert list(tmp_path.iterdir()) == [], "files are the cluster's to write"


def test_binding_twice_is_binding_once(engine: Engine) -> None:
    config = bound(engine)
    before = copy.deepcopy(config)
    assert engine.bind(config, {}, CPU) == []
    assert config == before


def test_the_same_config_gives_the_same_job(engine: Engine, tmp_path: Path) -> None:
    paths = AttemptPaths(tmp_path, tmp_path / "checkpoints")
    assert engine.job(bound(engine), paths) == engine.job(bound(engine), paths)


def test_a_job_fits_its_gang_and_can_be_written_down(engine: Engine, tmp_path: Path) -> None:
    config = bound(engine)
    job = engine.job(config, AttemptPaths(tmp_path, tmp_path / "checkpoints"))
    assert job.gang == engine.gang(config)
    assert job.gang.gpus <= CPU.gpus
    assert job.total_steps == engine.workload(config, CPU).steps > 0
    json.dumps([job.argv, dict(job.env), dict(job.files)])
    assert not any(Path(name).is_absolute() for name in job.files)


def test_every_problem_says_what_to_do(engine: Engine) -> None:
    problems = engine.check(bound(engine, "tp=3", "responses_per_step=1"), CPU)
    assert problems
    for problem in problems:
        assert problem.what
        assert problem.key
        assert problem.valid or problem.fix


def test_a_line_without_a_step_is_no_progress(engine: Engine) -> None:
    assert engine.progress({}, bound(engine)) is None


KINDS = {"preempted", "node-lost", "out-of-memory", "stalled", "nan", "data", "disk", "launch", "bug"}


@pytest.mark.parametrize("log", ["", "\n".join(f"ValueError: {i}" for i in range(10_000)), "\x00\xff\n" * 100])
@pytest.mark.parametrize(("reason", "code"), [("exit", 1), ("exit", -9), ("launch", None), ("lost", None)])
def test_a_failure_is_of_a_known_kind_and_short(engine: Engine, log: str, reason: str, code: int | None) -> None:
    found = engine.failure(log, reason, code, "the detail")
    assert found.kind in KINDS
    assert found.signature
    assert "\n" not in found.signature
    assert 0 < len(found.lines) <= 12
    assert engine.failure(log, reason, code, "the detail") == found


def test_a_log_without_stacks_hangs_nowhere(engine: Engine) -> None:
    assert engine.hung_at("step 1\nstep 2\n") == []


def test_relief_is_placement_and_comes_to_an_end(engine: Engine) -> None:
    config = bound(engine)
    before, identity = copy.deepcopy(config), fingerprint(config)
    times = 1
    while relieved := engine.relieve(config, times):
        changed, what = relieved
        assert fingerprint(changed) == identity
        assert changed != config
        assert what
        assert len(what.splitlines()) == 1
        times += 1
        assert times < 100
    assert config == before


def test_what_is_emitted_is_sorted_and_said_once(engine: Engine) -> None:
    names = engine.emits(bound(engine))
    assert names == sorted(set(names))
    assert names


def test_steps_with_a_score_and_with_a_checkpoint_are_steps_of_the_trial(engine: Engine) -> None:
    config = bound(engine)
    total = engine.workload(config, CPU).steps
    for steps in (engine.validates(config), engine.saves(config)):
        assert steps == sorted(set(steps))
        assert all(0 <= step <= total for step in steps)
    assert engine.validates(config)


@pytest.mark.parametrize("name", ["lr", "kl", "tp"])
def test_our_own_names_always_matter(engine: Engine, name: str) -> None:
    assert engine.idle(bound(engine), name) == ""


def test_an_empty_folder_has_no_checkpoint_and_nothing_is_written(engine: Engine, tmp_path: Path) -> None:
    assert engine.checkpoint(tmp_path) is None
    assert engine.checkpoint(tmp_path / "missing") is None
    for folder in (tmp_path, tmp_path / "missing"):
        assert engine.sound(folder) == Sound(None)
        assert engine.kept(folder) == []
        assert engine.leftovers(folder) == []
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_there_cannot_be_adopted(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(SweeperError):
        engine.adopt(Saved(3, tmp_path / "gone"), tmp_path / "own")
    assert engine.checkpoint(tmp_path / "own") is None


def test_every_placement_can_run_and_is_the_same_trial(engine: Engine) -> None:
    config = bound(engine)
    identity = fingerprint(config)
    found = engine.placements(config, CPU)
    assert found
    for knob in found:
        assert all(tree.get(config, key) == value for key, value in knob.settings[0].items()), "first the config's own"
        for setting in knob.settings:
            changed = copy.deepcopy(config)
            for key, value in setting.items():
                tree.put(changed, key, value)
            assert fingerprint(changed) == identity
            assert engine.check(changed, CPU) == []


def test_what_two_runs_of_a_cpu_config_share_is_said(engine: Engine) -> None:
    """The default trial on a CPU is promised to be the same again, but for what measures the machine."""
    config = bound(engine)
    assert engine.exact(config)
    assert not engine.exact(bound(engine, "deterministic=false"))
    assert {engine.of_machine(name) for name in engine.emits(config)} == {True, False}
