"""For all tests."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import settings
from trained import place

from sweeper.config import compose, hydra_app

__all__ = ["place"]

# No time limit for an example: the first may import MLflow. In CI the same examples every time, so that a red run can
# be had again; on a developer's machine new ones.
settings.register_profile("ours", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("ours")


LONGEST = (
    "test_kill",
    "test_dstack",
    "test_rules",
    "test_slurm_cluster",
    "test_dvc",
    "test_cluster",
    "test_doctor",
    "test_ray_launcher",
)
"""Files that take minutes; they go first, lest one process is left alone with the last of them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)  # a stable sort: all else stays where it is


@pytest.fixture(autouse=True)
def ranks_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has the machine's ranks for itself, whatever sweeps or other tests run on it."""
    monkeypatch.setenv("SWEEPER_RUNTIME", str(tmp_path_factory.getbasetemp() / f"runtime-{os.urandom(4).hex()}"))


@pytest.fixture(autouse=True, scope="session")
def composes_are_remembered() -> Iterator[None]:
    """The latest composes of a test process, kept from one test to the next: most tests compose one of a few requests,
    and Hydra takes half a second for each. What is made from a compose shares nothing with it."""
    make, made = compose._composed, OrderedDict[Any, Any]()

    def remembered(lines: Sequence[Any], free: frozenset[str]) -> Any:
        key = (str(hydra_app.CONF), tuple((line.text, line.settable, line.free) for line in lines), free)
        if key not in made:
            made[key] = make(lines, free)
        made.move_to_end(key)
        while len(made) > 100:
            made.popitem(last=False)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "_composed", remembered)
        yield
