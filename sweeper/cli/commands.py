"""What each subcommand of `sweeper` does.

Guarantees: reading commands (`plan`, `status`) change nothing; every error is a SweeperError.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sweeper.errors import Problem, RequestError


def run(args: argparse.Namespace) -> int:
    """`sweeper run`: the same path as sweep.py."""
    return _request([*args.overrides], args.json)


def plan(args: argparse.Namespace) -> int:
    """`sweeper plan`: the same path as `sweep.py ... plan=true`."""
    return _request([*args.overrides, "plan=true"], args.json)


def resume(args: argparse.Namespace) -> int:
    """`sweeper resume`: the request of that sweep again, under its name."""
    from sweeper.trial.records import SweepFolder

    folder = SweepFolder.existing(Path(args.store).absolute(), args.name)
    typed = [o for o in folder.overrides() if o.split("=")[0] not in ("name", "store", "output")]
    return _request([*typed, f"name={args.name}", f"store={args.store}"], args.json, resume=True)


def status(args: argparse.Namespace) -> int:
    """`sweeper status`: a table from the ledgers."""
    from sweeper.report.events import duration
    from sweeper.trial.ledger import Ledger
    from sweeper.trial.records import to_json

    store = Path(args.store).absolute()
    names = [args.name] if args.name else sorted(p.parent.name for p in store.glob("*/ledger.db"))
    if args.name and not (store / args.name / "ledger.db").exists():
        raise RequestError(
            Problem(
                f"no sweep named {args.name} in {store}",
                valid=", ".join(sorted(p.parent.name for p in store.glob("*/ledger.db"))) or "there is none yet",
                fix="sweeper status",
            )
        )
    found: dict[str, Any] = {}
    for name in names:
        trials = Ledger.read(store / name / "ledger.db")
        found[name] = trials
    if args.json:
        print(to_json({n: {t: s.as_dict() for t, s in trials.items()} for n, trials in found.items()}))
        return 0
    if not names:
        print(f"no sweeps in {store}")
    for name, trials in found.items():
        counts: dict[str, int] = {}
        for s in trials.values():
            counts[s.state] = counts.get(s.state, 0) + 1
        hint = f"; sweeper resume {name} goes on with it" if {"interrupted", "stopped", "failed"} & set(counts) else ""
        print(f"{name}: {', '.join(f'{n} {state}' for state, n in counts.items())}{hint}")
        if args.name:
            for trial, s in trials.items():
                score = "-" if s.final_score is None else f"{s.final_score:.3f}"
                step = "-" if s.last_step is None else s.last_step
                took = duration(s.elapsed_s) if s.elapsed_s else ""
                print(f"  {trial}  {s.state:9} score {score}  step {step}  {took}  {s.label}".rstrip())
    return 0


def plot(args: argparse.Namespace) -> int:
    """`sweeper plot`: validation score and training reward by step."""
    from sweeper.report.plots import curves
    from sweeper.trial.records import SweepFolder

    print(curves(SweepFolder.existing(Path(args.store).absolute(), args.name), Path(args.out)))
    return 0


def sync(args: argparse.Namespace) -> int:
    """`sweeper sync`: replay the records into the tracking store."""
    from sweeper.tracking.mlflow import replay
    from sweeper.trial.records import SweepFolder

    folder = SweepFolder.existing(Path(args.store).absolute(), args.name)
    print(replay(folder.path, args.uri))
    return 0


def _request(overrides: list[str], as_json: bool, *, resume: bool = False) -> int:
    from sweeper import app
    from sweeper.config.hydra_app import initialized

    with initialized():
        return app.run([*overrides, *(["output=json"] if as_json else [])], resume=resume)
