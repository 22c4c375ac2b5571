"""How a run trained: the health rules of sweeper/search/stops.py over its metrics, and where its time went.

Guarantees: the rules and their bounds are the sweep's own (config `stop`, else its defaults), so that what a sweep
would have ended early is what is told here; rules on time look at no run of fewer than `LEAST_STEPS` steps and leave
out the first, which loads and warms up; a metric that a trainer does not write is never guessed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sweeper.diagnose.cases import Case, Evidence, Finding
from sweeper.diagnose.failed import MOST_LINES, finding, hung
from sweeper.engines.base import Progress
from sweeper.search.stops import Health
from sweeper.trial.failures import Stalls

LEAST_STEPS = 4
ROLLOUT_SHARE = 0.85
"""Of a step: usual trainings with long answers spend 60 to 80 % of it generating."""
SLOWER = 3.0
"""Times the seconds a response token that a run's first steps took."""
STRAGGLER, STRAGGLER_SHARE = 3.0, 0.5
"""The slowest response's time over the mean, where the rollout is at least that share of the step."""
IMBALANCE = 0.3
_TIMES = "sweeper/diagnose/training.py"
_RULES = "sweeper/search/stops.py"
_CONF = Path(__file__).resolve().parents[2] / "conf" / "config.yaml"


def findings(case: Case) -> list[Finding]:
    """What is wrong with how it trained."""
    return [*_health(case), *_times(case)]


def stalled(case: Case, now: float) -> list[Finding]:
    """A run that says that it runs and has made no step for longer than the sweep's `failures` allow."""
    settings = {**_defaults("failures"), **(case.config.get("failures") or {})}
    try:
        moved = case.metrics.stat().st_mtime if case.progress else None
    except OSError:
        moved = None
    if case.started is None and moved is None:
        return []
    taken = [p.step_s for _, p in case.progress if p.step_s is not None]
    why = Stalls(settings).stalled(started=case.started or moved or now, progressed=moved, steps_s=taken, now=now)
    if not why:
        return []
    lines = [Evidence(case.metrics, case.progress[-1][0] if case.progress else 0, why)]
    lines += hung(case)
    return [finding(case, "stalled", lines, what=why, source="sweeper/trial/failures.py Stalls")]


def _health(case: Case) -> Iterator[Finding]:
    """The first time that each rule would have ended it."""
    settings = {**_defaults("stop"), **(case.config.get("stop") or {})}
    health, told = Health(settings), set[str]()
    for number, progress in case.progress:
        stop = health.see(progress)
        if stop is None or stop.reason in told:
            continue
        told.add(stop.reason)
        names = [name for name in stop.evidence if name in progress.signals or name == "reward"]
        lines = [e for n, p in case.progress if n <= number for e in [_line(case, n, p, names)]][-MOST_LINES:]
        yield finding(case, stop.reason, lines, what=stop.detail, source=_RULES)


def _line(case: Case, number: int, progress: Progress, names: list[str]) -> Evidence:
    values = {**progress.signals, **({"reward": progress.reward} if progress.reward is not None else {})}
    said = " ".join(f"{name}={values[name]:.4g}" for name in names if name in values)
    return Evidence(case.metrics, number, f"step {progress.step}: {said}")


def _times(case: Case) -> Iterator[Finding]:
    steps = [(n, p) for n, p in case.progress if p.step >= 1 and p.step_s][1:]
    if len(steps) + 1 < LEAST_STEPS:
        return
    if slow := _slow_rollout(steps):
        yield finding(case, "slow-rollout", _shown(case, steps, ["rollout_s"]), what=slow, source=_TIMES)
    if waiting := _waiting(steps):
        names = ["rollout_s", "straggler", "imbalance"]
        yield finding(case, "straggler", _shown(case, steps, names), what=waiting, source=_TIMES)


def _slow_rollout(steps: list[tuple[int, Progress]]) -> str:
    """Why the rollout is slow, in one line; empty where it is not, or its time is not known."""
    known = [p for _, p in steps if "rollout_s" in p.signals]
    if not known:
        return ""
    share = statistics.median(p.signals["rollout_s"] / p.step_s for p in known if p.step_s)
    if share > ROLLOUT_SHARE:
        return f"generating takes {share:.0%} of a step"
    each = [p.signals["rollout_s"] / p.signals["response_tokens"] for p in known if p.signals.get("response_tokens")]
    third = len(each) // 3
    if third >= 2:
        first, last = statistics.median(each[:third]), statistics.median(each[-third:])
        if first > 0 and last > SLOWER * first:
            return f"a response token takes {last / first:.1f} times as long as in the first steps"
    return ""


def _waiting(steps: list[tuple[int, Progress]]) -> str:
    def median(name: str) -> float:
        values = [p.signals[name] for _, p in steps if name in p.signals]
        return statistics.median(values) if values else 0.0

    shares = [p.signals["rollout_s"] / p.step_s for _, p in steps if p.step_s and "rollout_s" in p.signals]
    if (slowest := median("straggler")) > STRAGGLER and shares and statistics.median(shares) > STRAGGLER_SHARE:
        return f"the slowest response of a step takes {slowest:.1f} times as long as the mean one"
    if (idle := median("imbalance")) > IMBALANCE:
        return f"ranks wait {idle:.0%} of the time for the one with the most tokens"
    return ""


def _shown(case: Case, steps: list[tuple[int, Progress]], names: list[str]) -> list[Evidence]:
    lines = []
    for number, progress in steps[-MOST_LINES:]:
        said = " ".join(f"{name}={progress.signals[name]:.3g}" for name in names if name in progress.signals)
        lines.append(Evidence(case.metrics, number, f"step {progress.step}: {progress.step_s:.3g} s, {said}"))
    return lines


@lru_cache
def _defaults(section: str) -> Mapping[str, Any]:
    """The sweep's own defaults, for a run whose settings were not recorded."""
    import yaml

    found = yaml.safe_load(_CONF.read_text(encoding="utf-8"))[section]
    return dict(found)
