"""The nearest valid names to one that is not valid. Only the standard library is imported."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher


def nearest(name: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """At most `count` of the valid names that look like `name`, best first; those with the same last segment rank high.

    A dotted key is as often right at its end (`optim.lr` under the wrong parent) as it is right at its start (a typo).
    """
    last = name.rpartition(".")[2]
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(name)
    scored = []
    for candidate in valid:
        matcher.set_seq1(candidate)
        # The cheap upper bounds first: most candidates are nothing like the name.
        same_end = candidate.rpartition(".")[2] == last
        if not same_end and (matcher.real_quick_ratio() < 0.6 or matcher.quick_ratio() < 0.6):
            continue
        score = matcher.ratio() + (0.3 if same_end else 0.0)
        if score >= 0.6:
            scored.append((-score, candidate))
    return [candidate for _, candidate in sorted(scored)[:count]]
