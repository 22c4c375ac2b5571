"""Stage `compose`: conf/ and params.yaml -> what each later stage works from, in pipeline/request/.

    environment.json    what `prepare` makes or takes: builds by their specification, the user's own files
    model.json          likewise for the models
    sweep.json          what the sweep is: arms, spaces, identity leaves, budget, seeds, rules that end a trial, engine
                        version, and the hashes of the code that runs inside the trainer

Guarantees: a file changes exactly when what it stands for changes: not by a comment in conf/, the order of keys, a
choice that nothing uses, the folder of the checkout, or placement (cluster, micro-batches), which cannot change a
result. So a plain `dvc repro`, which composes nothing itself, re-runs what an edit of conf/ concerns and nothing else.
A request that cannot run is refused here, before anything is built.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper import prepare
from sweeper.config.hydra_app import initialized
from sweeper.errors import Problem, RequestError
from sweeper.lineage import hashes, inputs
from sweeper.pipeline import params, places
from sweeper.plan import plan as planning
from sweeper.plan.plan import Plan
from sweeper.prepare import Build
from sweeper.search import request
from sweeper.trial.records import versions

ENVIRONMENT, MODEL, SWEEP = (places.REQUEST / f"{name}.json" for name in ("environment", "model", "sweep"))

INSIDE_THE_TRAINER: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("verl", "cpu"): ("engines/verl/cpu", "engines/verl/resume.py"),
    ("verl", "cuda"): ("engines/verl/resume.py",),
}
"""Engine and device -> modules that the trainer itself loads: the only code of ours that a result comes from. All other
code decides what is run and how it is recorded; what builds data and models has versions of its own."""
_PACKAGE = Path(__file__).resolve().parents[1]


def run() -> int:
    """Compose, check, write; returns the exit code.

    Raises:
        RequestError: All that is wrong with the parameters.
    """
    asked = params.read()
    differs = params.differences(asked)
    for line in differs:
        print(f"params.yaml: {line}")
    if differs:
        print("params.yaml is what runs; what conf/pipeline says instead: python -m sweeper.pipeline params")
    with initialized():
        plan = checked(params.overrides(asked))
        builds = [*{b.path: b for config in configs(plan) for b in prepare.needed(config)}.values()]
        own = sorted({str(path) for config in configs(plan) for path in _own_files(config)})
        models = sorted({str(path) for config in configs(plan) for path in _own_models(config)})
        sweep = described(plan)
    if strange := [path for path in own if not Path(path).is_relative_to(places.OWN)]:
        raise RequestError(
            Problem(
                f"{strange[0]} is outside {places.OWN}/, where a change of it would go unnoticed",
                valid=f"the pipeline's own data below {places.OWN}/ of the checkout",
                fix=f"cp {strange[0]} {places.OWN}/ && dvc add {places.OWN}/{Path(strange[0]).name}",
                key="environment",
            )
        )
    places.REQUEST.mkdir(parents=True, exist_ok=True)
    places.write(ENVIRONMENT, {"builds": _specs(builds, "environment"), "files": own})
    places.write(MODEL, {"builds": _specs(builds, "model"), "paths": models})
    places.write(SWEEP, sweep)
    return 0


def checked(lines: Sequence[str]) -> Plan:
    """The plan of a request that can run. Hydra must be initialized.

    Raises:
        RequestError: Everything that is wrong with it.
    """
    plan = planning.make(lines)
    if found := [problem for problem, _ in plan.problems]:
        raise RequestError(found)
    return plan


def described(plan: Plan) -> dict[str, Any]:
    """What the sweep of a plan is: equal for two plans exactly when their sweeps should have the same result."""
    config = next(configs(plan))
    engine = str(config["engine"]["name"])
    inside = {path for shape in plan.shapes.values() for path in INSIDE_THE_TRAINER.get((engine, shape.device), ())}
    found = {
        "schema": 1,
        **request.describe(plan),
        "budgets": {arm.id: arm.budget for arm in plan.arms},
        "trials": config["search"]["trials"],  # a sweep keeps to the number that it was started with
        "stop": config["stop"],
        "engine": versions(engine),
        "code": dict(_code(sorted(inside))),
    }
    here = json.dumps(f"{Path.cwd()}/")[1:-1]
    relative: dict[str, Any] = json.loads(json.dumps(found, default=str).replace(here, "./"))
    return relative


def specification(build: Build) -> dict[str, Any]:
    """A build without the place that it is made in."""
    return {"what": build.what, "kind": build.kind, "spec": build.spec, "folder": Path(build.path).name}


def _specs(builds: Sequence[Build], what: str) -> list[dict[str, Any]]:
    return sorted((specification(b) for b in builds if b.what == what), key=lambda b: str(b["folder"]))


def configs(plan: Plan) -> Iterator[Mapping[str, Any]]:
    """Of the trials that are known, and of an example of each arm."""
    yield from (s.trial.config for s in plan.sized)
    yield from (arm.example.trial.config for arm in plan.arms if arm.example)


def _own_files(config: Mapping[str, Any]) -> Iterator[Path]:
    """The user's data, reward and other files of a config, relative where they are in the checkout."""
    yield from (path for role, path in _own(config) if role != "model")


def _own_models(config: Mapping[str, Any]) -> Iterator[Path]:
    """Folders and hub ids that are not built here."""
    yield from (path for role, path in _own(config) if role == "model")


def _own(config: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    built = [Path(b.path) for b in prepare.needed(config)]
    for role, _, named in inputs.listed(config):
        path = Path(named).expanduser()
        path = path.absolute() if role != "model" or path.exists() else path  # else an id of the model hub
        installed = path.is_relative_to(_PACKAGE) or path.is_relative_to(sys.prefix)
        if not installed and not any(path.is_relative_to(folder) for folder in built):
            yield role, _relative(path)


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _code(modules: Sequence[str]) -> Iterator[tuple[str, str]]:
    for module in modules:
        at = _PACKAGE / module
        for path in sorted(at.rglob("*.*")) if at.is_dir() else [at]:
            if path.suffix in (".py", ".yaml"):
                yield path.relative_to(_PACKAGE).as_posix(), hashes.sha256(path)
