"""For all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# No time limit for an example: the first may import MLflow. In CI the same examples every time, so that a red run can
# be had again; on a developer's machine new ones.
settings.register_profile("ours", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("ours")


@pytest.fixture(autouse=True)
def ranks_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has the machine's ranks for itself, whatever sweeps or other tests run on it."""
    monkeypatch.setenv("SWEEPER_RUNTIME", str(tmp_path_factory.getbasetemp() / f"runtime-{os.urandom(4).hex()}"))
