"""The cache: whole folders only, built once, found again by what they were built from."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sweeper import cache


def test_the_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SWEEPER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.root() == tmp_path / ".cache" / "sweeper"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.root() == tmp_path / "xdg" / "sweeper"
    monkeypatch.setenv("SWEEPER_CACHE", "~/own")
    assert cache.root() == tmp_path / "own"


def test_a_folder_is_named_by_its_spec_whatever_the_order_of_keys(tmp_path: Path) -> None:
    one = cache.folder(tmp_path, "thing", {"a": 1, "b": {"c": 2.5, "d": None}})
    assert one == cache.folder(tmp_path, "thing", {"b": {"d": None, "c": 2.5}, "a": 1})
    assert one != cache.folder(tmp_path, "thing", {"a": 1, "b": {"c": 2.5, "d": 0}})
    kind, digits = one.name.split("-")
    assert kind == "thing" and len(digits) == 16 and int(digits, 16) >= 0


def test_a_build_appears_whole_and_is_not_made_again(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "thing-1"
    with cache.building(target) as aside:
        assert aside is not None
        (aside / "data").write_text("x")
        assert not target.exists()
    assert (target / "data").read_text() == "x"
    assert target.stat().st_mode & 0o777 == 0o755
    with cache.building(target) as again:
        assert again is None


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "thing-1"
    with pytest.raises(RuntimeError), cache.building(target) as aside:
        assert aside is not None
        (aside / "half").touch()
        raise RuntimeError
    assert [p for p in tmp_path.iterdir() if p.suffix != ".lock"] == []


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "thing-1"
    code = (
        "import os, pathlib, sys\nfrom sweeper import cache\n"
        "with cache.building(pathlib.Path(sys.argv[1])) as aside:\n"
        "    (aside / 'half').touch()\n    os.kill(os.getpid(), 9)\n"
    )
    root = Path(cache.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code, str(target)], cwd=root, check=False).returncode == -9
    assert list(tmp_path.glob(".thing-1.building-*")), "the test itself: something must be left behind"
    with cache.building(target) as aside:
        assert aside is not None and list(aside.iterdir()) == []
        (aside / "whole").touch()
    assert [p.name for p in target.iterdir()] == ["whole"]
    assert not list(tmp_path.glob(".thing-1.building-*"))


def test_two_at_once_do_the_work_once(tmp_path: Path) -> None:
    target, made = tmp_path / "thing-1", []

    def build() -> None:
        with cache.building(target) as aside:
            if aside:
                time.sleep(0.2)
                made.append(aside)

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and target.is_dir()
