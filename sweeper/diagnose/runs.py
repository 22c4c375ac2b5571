"""Which attempts a user means by a name.

Guarantees: `SWEEP`, `SWEEP/TRIAL`, `SWEEP/TRIAL/ATTEMPT`, a trial alone where one sweep has it, and a folder of any of
them are found without lineage records, for a run that failed may have none; what else `reproduce` and `diff` take (an
MLflow run id, a lineage.json) is found as they find it. Of a trial the latest attempt is meant, of a sweep that of
each; of a trial that was not run because one of another sweep stands for it, that one's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sweeper.diagnose.cases import LOG, SPEC
from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import SweepFolder, attempt_number, store_flag

SHOWN = 12
_MARKS = (SPEC, LOG, "exit.json", "metrics.jsonl", "status.json")
"""Any of these makes a folder that of an attempt."""


def find(run: str, store: Path, uri: str | None = None) -> list[Path]:
    """The folders of the attempts, in order.

    Raises:
        RequestError: There is none of that name, or a trial of that name is in several sweeps.
    """
    path = Path(run).expanduser()
    if path.is_dir() and (inside := list(_inside(path))):
        return inside
    if found := list(_named(run.strip("/"), store)):
        return found
    trials = [s.trial(run) for s in _sweeps(store) if s.trial(run).is_dir()] if "/" not in run.strip("/") else []
    if len(trials) > 1:
        there = ", ".join(f"{t.parents[1].name}/{run}" for t in trials[:SHOWN])
        raise RequestError(Problem(f"{run} is a trial of several sweeps", valid=there, key="RUN"))
    if trials and (found := list(_inside(trials[0]))):
        return found
    if len(run) == 32 or path.is_file():
        from sweeper.lineage.find import find as by_record

        known = by_record(run, store, uri)
        return list(_named(known.name, store)) or [known.path.parent]
    raise _unknown(run, store)


def _inside(path: Path) -> Iterator[Path]:
    """The attempts that a folder is, or has."""
    if (path / "sweep.json").is_file():
        sweep = SweepFolder(path)
        found = {t: latest for t in sweep.trial_ids() if (latest := sweep.latest_attempt(t))}
        yield from (attempt for _, attempt in sorted({**_reused(sweep), **found}.items()))
    elif attempts := sorted((attempt_number(p), p) for p in path.glob("attempt-*") if attempt_number(p)):
        yield attempts[-1][1]
    elif any((path / mark).is_file() for mark in _MARKS):
        yield path


def _named(run: str, store: Path) -> Iterator[Path]:
    sweep, _, rest = run.partition("/")
    trial, _, attempt = rest.partition("/")
    if not sweep or not (store / sweep / "sweep.json").is_file():
        return
    folder = SweepFolder(store / sweep)
    if not trial:
        yield from _inside(folder.path)
    elif attempt:
        path = folder.trial(trial) / f"attempt-{attempt.removeprefix('attempt-')}"
        yield from [path] if path.is_dir() else []
    elif latest := folder.latest_attempt(trial) or _reused(folder).get(trial):
        yield latest


def _reused(sweep: SweepFolder) -> dict[str, Path]:
    """Trial -> the attempt of another sweep that stands for it; none where the ledger cannot be read."""
    with contextlib.suppress(SweeperError):
        states = Ledger.read(sweep.path / "ledger.db").values()
        return {s.id: Path(s.folder) for s in states if s.reused and Path(s.folder).is_dir()}
    return {}


def _sweeps(store: Path) -> list[SweepFolder]:
    return [SweepFolder(p.parent) for p in sorted(store.glob("*/sweep.json"))]


def _unknown(run: str, store: Path) -> RequestError:
    sweep = SweepFolder(store / run.partition("/")[0])
    if sweep.name == run.strip("/") and (sweep.path / "sweep.json").is_file():
        what, fix = f"no trial of {sweep.name} has been attempted yet", f"sweeper status {sweep.typed}"
        return RequestError(Problem(what, valid="a sweep of which something ran", fix=fix, key="RUN"))
    ours = [f"{sweep.name}/{t}" for t in sorted({*sweep.trial_ids(), *_reused(sweep)})]
    there = ours or [s.name for s in _sweeps(store)]
    more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
    return RequestError(
        Problem(
            f"there is no run {run} in {store}",
            valid=f"{', '.join(there[:SHOWN])}{more}" if there else "SWEEP/TRIAL/ATTEMPT, or the folder of an attempt",
            fix=f"sweeper status{store_flag(store)}" if there else "--store FOLDER",
            key="RUN",
        )
    )
