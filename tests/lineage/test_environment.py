"""What a trial is computed by, asked of the engine's own interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from sweeper.lineage import environment, probe


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with three packages of its own: a plain one, one from a commit, a checkout."""
    folder = tmp_path_factory.mktemp("bare") / "env"
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    checkout = folder.parent / "checkout"
    checkout.mkdir()
    for line in ("init -q", "-c user.name=n -c user.email=e commit -q --allow-empty -m x"):
        subprocess.run(["git", "-C", str(checkout), *line.split()], check=True)
    urls = {
        "Some_Thing-1.2": None,
        "fromgit-3.0rc1": {"url": "https://host/x", "vcs_info": {"vcs": "git", "commit_id": "c" * 40}},
        "own-0.0.1": {"url": f"file://{checkout}", "dir_info": {"editable": True}},
    }
    for name, url in urls.items():
        (site / f"{name}.dist-info").mkdir()
        if url:
            (site / f"{name}.dist-info" / "direct_url.json").write_text(json.dumps(url))
    (site / "torch").mkdir()
    (site / "torch" / "version.py").write_text("__version__ = '2.13.0+cu128'\ncuda: Optional[str] = '12.8'\n")
    return folder / "bin" / "python"


def test_another_interpreters_packages_are_its_own(bare: Path, tmp_path: Path) -> None:
    found = environment.capture(str(bare), "fromgit", tmp_path)
    assert found["packages"] == {"fromgit": "3.0rc1", "own": "0.0.1", "some-thing": "1.2"}
    assert found["engine"] == {"name": "fromgit", "version": "3.0rc1", "commit": "c" * 40}
    assert found["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert found["cuda"] == "12.8"
    own = environment.capture(str(bare), "own", tmp_path)["engine"]
    assert own["version"] == "0.0.1"
    assert len(own["commit"]) == 40, "a checkout's is what is checked out"


def test_our_own_packages_are_what_is_installed_here(tmp_path: Path) -> None:
    found = environment.capture(None, "no-such-engine", tmp_path)
    for name in ("pytest", "hydra-core", "PyYAML"):
        assert found["packages"][name.lower()] == metadata.version(name)
    assert found["engine"] == {"name": "no-such-engine", "version": None, "commit": None}
    assert found["cores"] > 0
    assert found["cpu"]


def test_the_lock_file_is_hashed(tmp_path: Path) -> None:
    assert environment.capture(None, "x", tmp_path)["lock"] is None
    (tmp_path / "constraints.txt").write_text("a==1\n")
    one = environment.capture(None, "x", tmp_path)["lock"]
    assert one["file"] == "constraints.txt"
    (tmp_path / "constraints.txt").write_text("a==2\n")
    assert environment.capture(None, "x", tmp_path)["lock"] != one
    (tmp_path / "uv.lock").write_text("")
    assert environment.capture(None, "x", tmp_path)["lock"]["file"] == "uv.lock"


def test_an_interpreter_that_does_not_answer_is_no_error(tmp_path: Path) -> None:
    found = environment.capture(str(tmp_path / "no-python"), "verl", tmp_path)
    assert (found["packages"], found["engine"]["version"], found["python"]) == ({}, None, "")


def test_gpus_and_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 570.86.15'\necho 'NVIDIA H100 80GB HBM3, 570.86.15'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert environment._gpus() == (["NVIDIA H100 80GB HBM3"] * 2, "570.86.15")
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    assert environment._gpus() == ([], None)
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment._gpus() == ([], None)


@pytest.mark.parametrize(
    ("environ", "podman", "image"),
    [
        ({}, None, None),
        ({"SWEEPER_IMAGE": "ghcr.io/a/b@sha256:00"}, None, "ghcr.io/a/b@sha256:00"),
        ({"APPTAINER_CONTAINER": "/images/x.sif"}, None, "/images/x.sif"),
        ({}, 'engine="podman-4.3.1"\nimage="docker.io/a/b:1"\nimageid="00ff"\n', "docker.io/a/b:1@sha256:00ff"),
        ({}, "", None),
    ],
)
def test_the_image_where_it_can_be_known(
    tmp_path: Path, environ: dict[str, str], podman: str | None, image: str | None
) -> None:
    file = tmp_path / ".containerenv"
    if podman is not None:
        file.write_text(podman)
    assert environment._image(environ, file) == image


@pytest.mark.parametrize(
    ("name", "said", "image"),
    [
        ("verl:1", None, ""),
        ("verl:1", {"id": "sha256:00", "digests": []}, "verl:1@sha256:00"),
        ("verl:1", {"id": "00", "digests": []}, "verl:1@sha256:00"),
        ("host:5000/a/verl:1", {"id": "sha256:00", "digests": ["b/c@sha256:ff", "host:5000/a/verl@sha256:11"]},
         "host:5000/a/verl:1@sha256:11"),
        ("a/verl@sha256:11", {"id": "sha256:00", "digests": ["a/verl@sha256:11"]}, "a/verl@sha256:11"),
    ],
)  # fmt: skip
def test_the_digest_that_a_launcher_found(tmp_path: Path, name: str, said: Any, image: str) -> None:
    (tmp_path / "gang").mkdir()
    if said is not None:
        (tmp_path / "gang" / "0.image.json").write_text(json.dumps(said))
    assert environment.image_of(tmp_path, name) == image


def test_what_is_in_an_image_is_not_asked_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWEEPER_IMAGE", raising=False)
    found = environment.capture(sys.executable, "verl", tmp_path, image="verl:1")
    assert (found["image"], found["python"], found["packages"]) == ("verl:1", "", {})
    assert found["engine"] == {"name": "verl", "version": None, "commit": None}
    assert found["cpu"], "the machine is"
    monkeypatch.setenv("SWEEPER_IMAGE", "verl:1@sha256:00")
    assert environment.capture(None, "verl", tmp_path, image="verl:1")["image"] == "verl:1@sha256:00"


def test_the_probe_needs_nothing_of_this_project() -> None:
    """It runs in interpreters that have none of it."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(probe.__file__), "verl"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert set(json.loads(done.stdout)) == {"python", "platform", "packages", "commit", "cuda"}


def test_what_a_package_carries_along_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing setuptools puts its `_vendor` folder on the path of our own process."""
    carried = tmp_path / "setuptools" / "_vendor"
    (carried / "carried_along-1.0.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(carried))
    assert "carried-along" not in probe.probe("verl")["packages"]
    (tmp_path / "installed-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "installed" in probe.probe("verl")["packages"]
