"""Why a verl run failed, from its log."""

from __future__ import annotations


def find(log: str) -> list[str]:
    """The lines that say why, most telling first."""
    return [line for line in log.splitlines() if "Error" in line][-1:]
