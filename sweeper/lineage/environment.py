"""What a trial is computed by: interpreter, packages, engine, machine.

Guarantees: it is asked of the engine's interpreter, which may be another than ours; nothing that is installed is
imported; each interpreter is asked once a process; what cannot be known is null, never an error; what is in an image
that the trial runs in is not asked of this machine, for the image's digest says it. Only the standard library is
imported.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sweeper.clusters.gang import devices
from sweeper.lineage import hashes, probe

LOCKS = ("uv.lock", "poetry.lock", "requirements.lock", "constraints.txt")
"""Files beside the code that pin what is installed; the first that is there."""
IMAGE = "SWEEPER_IMAGE"
"""Variable: the image, where only people know it."""
TIMEOUT_S = 20.0
"""An interpreter's start from a cold disk takes seconds; a driver that hangs is not waited for."""


def capture(
    python: str | None, engine: str, root: Path, env: Mapping[str, str] | None = None, image: str | None = None
) -> dict[str, Any]:
    """The section `environment` of the lineage record.

    Args:
        python: the engine's interpreter; None or empty: ours.
        engine: the engine's name, which is its distribution's.
        root: the code's folder, where a lock file is looked for.
        env: variables that the engine is given beside ours.
        image: the container image that has `python` and the engine; None or empty: none.
    """
    if image:
        return {**_machine(), "image": os.environ.get(IMAGE) or image, "lock": _lock(root), **_described({}, engine)}
    pythonpath = str((env or {}).get("PYTHONPATH") or "")
    return {**_machine(), "lock": _lock(root), **_installed(python or sys.executable, engine, pythonpath)}


@cache
def _installed(python: str, engine: str, pythonpath: str) -> dict[str, Any]:
    found = probe.probe(engine) if python == sys.executable and not pythonpath else _asked(python, engine, pythonpath)
    return _described(found, engine)


def _described(found: Mapping[str, Any], engine: str) -> dict[str, Any]:
    packages = found.get("packages") or {}
    return {
        "python": found.get("python") or "",
        "platform": found.get("platform") or "",
        "packages": packages,
        "engine": {"name": engine, "version": packages.get(engine.lower()), "commit": found.get("commit")},
        "cuda": found.get("cuda"),
    }


def _asked(python: str, engine: str, pythonpath: str) -> dict[str, Any]:
    env = {**os.environ, **({"PYTHONPATH": pythonpath} if pythonpath else {})}
    try:
        done = subprocess.run(
            [python, str(probe.__file__), engine],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=env,
            cwd="/",
            check=False,
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}
    return found if isinstance(found, dict) else {}


@cache
def _machine() -> dict[str, Any]:
    gpus, driver = _gpus()
    return {
        "cpu": devices.processor(),
        "cores": os.cpu_count() or 0,
        "gpus": gpus,
        "driver": driver,
        "image": _image(os.environ, Path("/run/.containerenv")),
        "nodes": [],  # known once it has ended
    }


def _gpus() -> tuple[list[str], str | None]:
    """Names of the GPUs of this machine, and the driver's version; at once where there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [], None
    try:
        done = subprocess.run(
            [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return [], None
    if done.returncode:
        return [], None
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if "," in line]
    return [row[0] for row in rows], rows[0][1] if rows else None


def _image(environ: Mapping[str, str], podman: Path) -> str | None:
    """The container image, with its digest where that is known. Docker and Kubernetes do not say it inside, so
    `SWEEPER_IMAGE` may; Apptainer and podman do."""
    for name in (IMAGE, "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        if environ.get(name):
            return environ[name]
    try:
        told = dict(re.findall(r'^(image|imageid)="([^"]*)"$', podman.read_text(encoding="utf-8"), re.MULTILINE))
    except OSError:
        return None
    name, number = told.get("image", ""), told.get("imageid", "")
    return f"{name}@sha256:{number}" if name and number else name or None


def image_of(attempt: Path, name: str) -> str:
    """The image of that name that an attempt's first node ran in, with the digest that was found there
    (clusters/gang/contain.py); empty where none was."""
    try:
        found = json.loads((attempt / "gang" / "0.image.json").read_text(encoding="utf-8"))
        number, digests = str(found["id"]), [str(digest) for digest in found["digests"]]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return _with_digest(name, number, digests)


def image_here(program: str, name: str) -> str:
    """The image of that name as a container program of this machine would run it now, with its digest as `image_of` has
    it; empty where the program or the image is not here."""
    try:
        done = subprocess.run(
            [program, "image", "inspect", "--format", "{{.Id}} {{json .RepoDigests}}", name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        number, _, listed = done.stdout.strip().partition(" ")
        digests = [str(digest) for digest in json.loads(listed) or []]
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""
    return _with_digest(name, number, digests)


def _with_digest(name: str, number: str, digests: list[str]) -> str:
    known = name.partition("@")[0]
    repository = known.rpartition("/")[2].partition(":")[0]
    pulled = [d.partition("@")[2] for d in digests if d.partition("@")[0].rpartition("/")[2] == repository]
    return f"{known}@{[*pulled, number if ':' in number else f'sha256:{number}'][0]}"


def _lock(root: Path) -> dict[str, str] | None:
    for name in LOCKS:
        if (root / name).is_file():
            try:
                return {"file": name, "sha256": hashes.sha256(root / name)}
            except hashes.HashError:
                return None
    return None
