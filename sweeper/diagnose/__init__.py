"""What happened to a run that failed or went badly, with the lines that show it and what to change.

`cases` reads what an attempt left, `signs` says which line means what, `failed` and `training` judge, `runs` finds the
attempts that a user names, `render` prints. Guarantees: nothing is changed, started or asked of a cluster; a run that
ended well and trained well gives nothing; every finding has its evidence as FILE:LINE.
"""

from __future__ import annotations

from sweeper.diagnose.cases import Case, Evidence, Finding
from sweeper.diagnose.judge import diagnose

__all__ = ["Case", "Evidence", "Finding", "diagnose"]
