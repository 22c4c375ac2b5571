"""Hydra on our conf/, as every request has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sweeper.config.hydra_app import initialized


@pytest.fixture(autouse=True, scope="module")
def _hydra() -> Iterator[None]:
    with initialized():
        yield
