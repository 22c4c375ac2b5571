"""SIGINT and SIGTERM while a sweep runs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any


class Signals(AbstractContextManager[None]):
    """SIGINT and SIGTERM call the handler; the handlers before it come back at the end."""

    def __init__(self, handler: Callable[[int, FrameType | None], None]) -> None:
        self._handler = handler
        self._old: Mapping[int, Any] = {}

    def __enter__(self) -> None:
        self._old = {n: signal.signal(n, self._handler) for n in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_exc: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
