"""Every problem a user can cause, as data: what was given, what is valid, what to type instead.

Guarantees: problems are collected and raised once, in one `RequestError`; nothing here imports anything heavy.
Exit codes (docs/running.md): 0 all wanted trials done, 1 some trials failed, 2 the request itself was wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a request, in words a user can act on."""

    what: str
    """What was given and why it cannot work: `tp=3 does not divide the 28 attention heads of qwen7b`."""
    valid: str = ""
    """What is valid: `tp: 1, 2, 4`."""
    fix: str = ""
    """What to type instead: an override or a command."""
    key: str = ""
    """The config key at fault, under the name the user knows it by."""
    source: str = ""
    """Where the rule is from: `verl/utils/config.py validate_config`."""

    def lines(self) -> list[str]:
        """The problem as printed: one line, then indented lines for what is valid and the fix."""
        out = [self.what]
        if self.valid:
            out.append(f"  valid: {self.valid}")
        if self.fix:
            out.append(f"  try:   {self.fix}")
        return out


def section_replaced(key: str, value: object, valid: str) -> Problem:
    """A value where a mapping of keys must be."""
    return Problem(f"{key}={value} takes the place of a whole section", valid=valid, key=key)


class SweeperError(Exception):
    """A failure with a message for the user; never shown as a traceback."""

    exit_code = 1


class RequestError(SweeperError):
    """The request itself is wrong; nothing was launched, unless `left` says so. Carries every problem found."""

    exit_code = 2
    left = ""
    """Where it was found once something had been launched: what is there, and how to go on."""

    def __init__(self, problems: Iterable[Problem] | Problem) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(line for p in self.problems for line in p.lines()))
