"""What a tracker was told, kept beside the records, so that it can be told again.

Guarantees: one line a call, appended in one write, secrets masked; a torn last line (a kill, a full disk) is passed
over when read. Metrics are not here, for `metrics.jsonl` has them: only the time of each step, which it has not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeper.trial.records import Tail, cannot_write, mask, to_json

NAME = "tracking.jsonl"

Call = dict[str, Any]
"""`call` says which method; the rest are its arguments as plain JSON, and `time` (Unix) when it was made."""


class Spool:
    """The file `tracking.jsonl` of a sweep; without a folder, nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` is the sweep's."""
        self.path = folder / NAME if folder else None

    def keep(self, call: Mapping[str, Any]) -> Call:
        """Append a call; returns it as it was kept: plain JSON, secrets masked.

        Raises:
            RecordsError: it cannot be written.
        """
        text = mask(to_json(call))
        if self.path:
            try:
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                try:
                    os.write(descriptor, text.encode() + b"\n")
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise cannot_write(self.path, error) from error
        kept: Call = json.loads(text)
        return kept

    def calls(self) -> list[Call]:
        """Every call so far, oldest first."""
        return [c for c in Tail(self.path).read() if "call" in c] if self.path else []
