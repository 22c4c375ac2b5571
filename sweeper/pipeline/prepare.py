"""Stages `prepare` and `model`: the data and the models of the sweep, in DVC's hands.

Guarantees: what is built here is the folder that every trial reads, taken from the cache or built into it; what the
trials read is compared with what DVC has before a sweep starts (`restore`), so dvc.lock never names other data than the
sweep saw; `dvc pull` on a machine without it is as good as building. A model of a hub or a folder is not copied: its
files' hashes are kept, and of a hub its revision.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeper import cache, prepare
from sweeper.environments.probe import Interpreter
from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.lineage import hashes
from sweeper.pipeline import compose, params, places

SOURCE = "sources.json"


def data() -> int:
    """Stage `prepare`; returns the exit code.

    Raises:
        SweeperError: A build failed, a file of the user's is not there.
    """
    wanted = places.read(compose.ENVIRONMENT)
    with places.replaced(places.DATA) as folder:
        _built(wanted, folder)
        missing = [path for path in wanted["files"] if not Path(path).exists()]
        if missing:
            raise RequestError(
                Problem(
                    f"{missing[0]} is not here",
                    fix=f"dvc pull {missing[0]}.dvc   (if it was added with `dvc add`), or put it there",
                    key="environment",
                )
            )
        places.write(folder / SOURCE, {path: _content(path) for path in wanted["files"]})
    return 0


def model() -> int:
    """Stage `model`; returns the exit code.

    Raises:
        SweeperError: A build or a download failed.
    """
    wanted = places.read(compose.MODEL)
    with places.replaced(places.MODEL) as folder:
        _built(wanted, folder)
        places.write(folder / SOURCE, {path: _source(path) for path in wanted["paths"]})
    return 0


def restore() -> None:
    """Give the trials exactly what DVC has: fill the cache where it lacks a folder, compare it where it has one.

    Raises:
        RequestError: The cache or a file of the user's holds something else than what `prepare` and `model` took.
    """
    for wanted, folder in ((compose.ENVIRONMENT, places.DATA), (compose.MODEL, places.MODEL)):
        for build in _builds(places.read(wanted)):
            ours = folder / Path(build.path).name
            if not ours.is_dir():
                raise places.missing(ours)
            with cache.building(Path(build.path)) as aside:
                if aside:
                    shutil.copytree(ours, aside, dirs_exist_ok=True)
            _same(ours, Path(build.path))
    for path, before in places.read(places.DATA / SOURCE).items():
        if _content(path) != before:
            raise RequestError(Problem(f"{path} has changed since `prepare` took it", fix="dvc repro"))


def _content(name: str) -> str:
    """The SHA-256 of a file, the digest of a folder."""
    path = Path(name)
    return hashes.Hashes().tree(path, fresh=True).digest if path.is_dir() else hashes.sha256(path)


def _same(ours: Path, theirs: Path) -> None:
    """Raises RequestError at the first file that differs."""
    there = {rel: sha for rel, _, sha in places.files(theirs)}
    for rel, _, sha in places.files(ours):
        if there.get(rel) != sha:
            raise RequestError(
                Problem(
                    f"{theirs / rel} is not the file that {ours} has: it was altered, or built by other code",
                    fix=f"rm -r {theirs} && dvc repro",
                    key="environment",
                )
            )


def _builds(wanted: Mapping[str, Any]) -> list[prepare.Build]:
    root = cache.root()
    return [prepare.Build(b["what"], b["kind"], b["spec"], str(root / b["folder"])) for b in wanted["builds"]]


def _built(wanted: Mapping[str, Any], folder: Path) -> None:
    builds = _builds(wanted)
    if missing := [b for b in builds if not Path(b.path).is_dir()]:
        python, env = _interpreter()
        prepare.run(missing, python, print, env)
    for build in builds:
        shutil.copytree(build.path, folder / Path(build.path).name)


def _interpreter() -> tuple[str, Mapping[str, str]]:
    """The engine's Python and its variables."""
    from sweeper.config.hydra_app import initialized

    with initialized():
        plan = compose.checked(params.overrides(params.read()))
    asked = Interpreter.of(next(compose.configs(plan)))
    return asked.python, asked.env


def _source(name: str) -> dict[str, Any]:
    """What a model that is not built here consists of."""
    folder, revision = Path(name), None
    if folder.is_file():  # a config, say
        return {"revision": None, "files": {folder.name: hashes.sha256(folder)}}
    if not folder.is_dir():
        folder = _fetched(name)
        revision = folder.name  # the hub's cache has a folder a commit
    return {"revision": revision, "files": {rel: sha for rel, _, sha in _weights(folder)}}


def _weights(folder: Path) -> Iterator[tuple[str, int, str]]:
    return (entry for entry in places.files(folder) if not entry[0].startswith("."))


def _fetched(name: str) -> Path:
    """A model of the hub, into the hub's own cache, where the trainer finds it."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name))
    except Exception as error:  # network, rights, a name that is none: many types, all said the same way
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise SweeperError(
            f"the model {name} could not be fetched: {said}\n  try:   -S +sweep.model.path=<a folder>, or HF_TOKEN=..."
        ) from error
