"""What every engine promises (sweeper/engines/base.py), asked of each of them in the same words."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from sweeper import engines
from sweeper.config import hydra_app
from sweeper.config.compose import compose_points
from sweeper.config.space import read
from sweeper.engines.base import AttemptPaths, Config, Engine, Shape

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


def test_a_root_cause_is_short(engine: Engine) -> None:
    log = "\n".join(f"ValueError: {i}" for i in range(10_000))
    assert 0 < len(engine.root_cause(log)) <= 12
    assert engine.root_cause("") == []
