"""What each subcommand of `sweeper` does.

Guarantees: reading commands (`plan`, `status`) change nothing; every error is a SweeperError.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
    """`sweeper resume`: the request of that sweep again, under its name; with --fork, under a new one."""
    typed = _request_of(args)
    if args.fork:
        return _request([*_without(typed, args.overrides), *args.overrides, f"name={args.fork}"], args.json)
    changed = [*_without(typed, args.overrides), *args.overrides]
    return _request([*changed, f"name={args.name}"], args.json, resume=True, before=typed)


def extend(args: argparse.Namespace) -> int:
    """`sweeper extend`: more candidates, or more steps from the checkpoints."""
    from sweeper import engines
    from sweeper.trial.records import store_flag

    more = [f"search.trials={args.trials}"] if args.trials is not None else []
    if args.steps is not None:
        more.append(f"{engines.get(_engine_of(args)).steps_key}={args.steps}")
    if not more:
        raise RequestError(
            Problem(
                "nothing to extend by",
                valid="--trials N, --steps N",
                fix=f"sweeper extend {args.name}{store_flag(_store(args))} --trials 40",
            )
        )
    typed = _request_of(args)
    if all(o in typed for o in more):
        what = f"{args.name} has been asked for {' '.join(more)} already"
        raise RequestError(
            Problem(
                what,
                valid="larger totals",
                fix=f"sweeper resume {args.name}{store_flag(_store(args))}   (to go on with it)",
            )
        )
    return _request([*_without(typed, more), *more, f"name={args.name}"], args.json, resume=True)


def stop(args: argparse.Namespace) -> int:
    """`sweeper stop`: end what runs of a sweep, whether its controller lives or not; it can be resumed."""
    from sweeper.search.stopping import end

    print(end(Path(args.store).absolute(), args.name))
    return 0


def logs(args: argparse.Namespace) -> int:
    """`sweeper logs`: what a detached sweep, or a trial, says."""
    from sweeper.cli.logs import show

    show(Path(args.store).absolute(), args.run, lines=args.lines, follow=args.follow)
    return 0


def _request_of(args: argparse.Namespace) -> list[str]:
    """What the sweep is asked for by now: as it was started, or as it was last extended."""
    from sweeper.trial.ledger import Ledger
    from sweeper.trial.records import SweepFolder

    folder = SweepFolder.existing(Path(args.store).absolute(), args.name)
    ledger = folder.path / "ledger.db"
    asked = [e.data for e in Ledger.history(ledger) if e.kind == "sweep_extended"] if ledger.exists() else []
    typed = [str(o) for o in asked[-1]["overrides"]] if asked else folder.overrides()
    return [*(o for o in typed if o.split("=")[0] not in ("name", "store", "output", "detach")), f"store={args.store}"]


def _engine_of(args: argparse.Namespace) -> str:
    chosen = [o.partition("=")[2] for o in _request_of(args) if o.startswith("engine=")]
    return "verl" if not chosen or chosen[-1].startswith("verl") else chosen[-1]


def _without(typed: list[str], replaced: list[str]) -> list[str]:
    """What was typed, but for the keys that are typed anew."""
    from sweeper.trial.spec import key_of

    keys = {key_of(line) for line in replaced}
    return [line for line in typed if key_of(line) not in keys]


def status(args: argparse.Namespace) -> int:
    """`sweeper status`: a table from the ledgers. A damaged one among others is named and does not hide them."""
    import sys

    from sweeper.cli.steps import brought_up
    from sweeper.errors import SweeperError
    from sweeper.report.events import duration
    from sweeper.search.guard import Flag
    from sweeper.trial.ledger import Ledger, holder
    from sweeper.trial.records import store_flag, to_json

    store = _store_there(args)
    names = [args.name] if args.name else sorted(p.parent.name for p in store.glob("*/ledger.db"))
    if args.name and not (store / args.name / "ledger.db").exists():
        raise RequestError(
            Problem(
                f"no sweep named {args.name} in {store}",
                valid=", ".join(sorted(p.parent.name for p in store.glob("*/ledger.db"))) or "there is none yet",
                fix=f"sweeper status{store_flag(store)}",
            )
        )
    found: dict[str, Any] = {}
    damaged: list[SweeperError] = []
    for name in names:
        try:
            found[name] = brought_up(Ledger.read(store / name / "ledger.db"))
        except SweeperError as error:
            if args.name:
                raise
            damaged.append(error)
    for problem in damaged:
        print(problem, file=sys.stderr)
    if args.json:
        print(to_json({n: {t: s.as_dict() for t, s in trials.items()} for n, trials in found.items()}))
        return 2 if damaged else 0
    if not names:
        print(f"no sweeps in {store}")
    for name, trials in found.items():
        counts: dict[str, int] = {}
        for s in trials.values():
            counts[s.state] = counts.get(s.state, 0) + 1
        left = {"interrupted", "stopped", "failed", "waiting", "paused"} & set(counts)
        idle = left and not holder(store / name / "ledger.db")
        hint = f"; sweeper resume {name}{store_flag(store)} goes on with it" if idle else ""
        print(f"{name}: {', '.join(f'{n} {state}' for state, n in counts.items()) or 'nothing has run yet'}{hint}")
        if args.name:
            for trial, s in trials.items():
                score = "-" if s.final_score is None else f"{s.final_score:.3f}"
                step = "-" if s.last_step is None else s.last_step
                took = duration(s.elapsed_s) if s.elapsed_s else ""
                why = f"  ({s.reason})" if s.state in ("pruned", "failed") and s.reason else ""
                why = f"  (reused: {s.reused})" if s.reused else why
                flag = Flag.of(s.flagged)
                mark = "!" if flag else " "
                print(f"  {trial}{mark} {s.state:9} score {score}  step {step}  {took}  {s.label}{why}".rstrip())
                if flag:
                    print(f"    ! {flag.text}")
    return 2 if damaged else 0


def gc(args: argparse.Namespace) -> int:
    """`sweeper gc`: the checkpoints that can be freed; with --yes they are."""
    from sweeper.checkpoints import gc as collector
    from sweeper.checkpoints.keep import Keep
    from sweeper.trial.records import to_json

    asked = Keep(args.last, args.top_k, args.gb)
    found = collector.survey(_store_there(args), args.name, asked, free=args.yes)
    if args.json:
        lists = {"free": [i.as_dict() for i in found.free], "protected": [i.as_dict() for i in found.protected]}
        print(to_json({**lists, "notes": found.notes, "bytes": found.bytes, "freed": found.freed}))
    else:
        print("\n".join(collector.render(found)))
    return 0


def pin(args: argparse.Namespace) -> int:
    """`sweeper pin`: keep a checkpoint of a trial, whatever its sweep's budget."""
    from sweeper.checkpoints import pins

    made = pins.pin(_checkpoints(args), args.step, args.by, args.why, name=args.name or "")
    print(f"{args.run} step {made.step} is pinned as {made.name}")
    return 0


def unpin(args: argparse.Namespace) -> int:
    """`sweeper unpin`: take a pin away, or list those of a trial."""
    from sweeper.checkpoints import pins

    folder = _checkpoints(args)
    there = pins.pinned(folder)
    if args.name is None:
        print("\n".join(f"{p.name}  step {p.step}  {p.by}  {p.why}".rstrip() for p in there) or "no pins")
        return 0
    if not pins.unpin(folder, args.name):
        what = f"{args.run} has no pin {args.name}"
        raise RequestError(Problem(what, valid=", ".join(p.name for p in there) or "it has none", key="NAME"))
    print(f"{args.name} is gone from {args.run}")
    return 0


def _checkpoints(args: argparse.Namespace) -> Path:
    """The checkpoint folder of SWEEP/TRIAL."""
    from sweeper.trial.records import SweepFolder, store_flag

    store = _store(args)
    sweep, _, trial = args.run.strip("/").partition("/")
    folder = SweepFolder.existing(store, sweep)
    if trial not in folder.trial_ids():
        there = ", ".join(f"{sweep}/{t}" for t in folder.trial_ids()[:12])
        what = f"{args.run} is no trial of {sweep}"
        raise RequestError(Problem(what, valid=there, fix=f"sweeper status {sweep}{store_flag(store)}", key="RUN"))
    return folder.checkpoints(trial)


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


def reproduce(args: argparse.Namespace) -> int:
    """`sweeper reproduce`: the trial of a record again, as a sweep of its own."""
    from sweeper.lineage import reproduce as again
    from sweeper.lineage.diff import listed
    from sweeper.lineage.find import find
    from sweeper.lineage.tree import shown

    store = Path(args.store).absolute()
    found = find(args.run, store, args.uri)
    sweep = again.named(found, args.name, store)
    with again.planned(found, here=args.here) as plan:
        for line in (*listed(plan.environment), *again.reinstalling(found, plan.environment), *plan.notes):
            print(line)
        if plan.code_differs:
            print(f"code: {plan.code} is not the recorded one: {shown(plan.code_differs)}")
        print(f"reproducing {found.name}: fingerprint {found.document['fingerprint'][:12]}", flush=True)
        code, made = again.run(plan, sweep, store=store)
    if made:
        if image := again.other_image(found, made[0]):
            print(image)
        print(f"compare  sweeper diff {found.path} {made[0].path}")
    return code


def verify(args: argparse.Namespace) -> int:
    """`sweeper verify`: judge what a record claims."""
    from sweeper.lineage import verify as judge
    from sweeper.lineage.find import find
    from sweeper.trial.records import to_json

    store = Path(args.store).absolute()
    found = find(args.run, store, args.uri)
    tier = args.tier or judge.default_tier(found)
    if args.seeds is not None and tier != "statistical":
        what = f"--seeds {args.seeds}: tier {tier} runs the trial under its own seed"
        raise RequestError(Problem(what, fix="--tier statistical, or leave --seeds out", key="--seeds"))
    if args.against:
        other = find(args.against, store, args.uri)
        report = judge.against(found, other, tier)
        folder = judge.save_beside(report, found, other)
    else:
        report, folder = judge.claim(
            found,
            tier,
            store=store,
            name=args.name,
            seeds=args.seeds or judge.SEEDS,
            here=args.here,
            allow_env=args.allow_env,
            quiet=args.json,
        )
    print(to_json(report.as_dict()) if args.json else report.text())
    if folder is not None and not args.json:
        print(f"report   {folder / judge.REPORT}")
    return report.code


def diff(args: argparse.Namespace) -> int:
    """`sweeper diff`: what differs between two runs."""
    from sweeper.lineage import diff as lineage_diff
    from sweeper.lineage.find import find
    from sweeper.trial.records import to_json

    store = Path(args.store).absolute()
    found = lineage_diff.diff(find(args.run, store, args.uri), find(args.other, store, args.uri))
    print(to_json(found.as_dict()) if args.json else lineage_diff.text(found))
    return found.code


def diagnose(args: argparse.Namespace) -> int:
    """`sweeper diagnose`: what happened to a run, by what it left."""
    from sweeper.diagnose import cases, judge, render, runs
    from sweeper.trial.records import to_json

    found = [(case, judge.diagnose(case)) for case in map(cases.read, runs.find(args.run, _store(args), args.uri))]
    if args.json:
        print(to_json([render.as_dict(*each) for each in found]))
    else:
        print("\n".join(line for each in found for line in render.text(*each)))
    return 1 if any(findings for _, findings in found) else 0


def doctor(args: argparse.Namespace) -> int:
    """`sweeper doctor`: look at every node that a sweep of these overrides would use."""
    from sweeper.config.hydra_app import initialized
    from sweeper.doctor import checkup
    from sweeper.doctor.render import as_dict, table
    from sweeper.trial.records import to_json

    with initialized():
        report = checkup.run([*args.overrides], timeout_s=args.timeout)
    print(to_json(as_dict(report)) if args.json else "\n".join(table(report)))
    return report.code


def cluster(args: argparse.Namespace) -> int:
    """`sweeper cluster up|status|down`: a Ray cluster that sweeps share."""
    from sweeper.cli.cluster import act

    return act(args)


def _store(args: argparse.Namespace) -> Path:
    return Path(args.store).absolute()


def _store_there(args: argparse.Namespace) -> Path:
    """The store; refused where it was named and is not there, for nothing is in it then."""
    store = _store(args)
    if args.store != "runs" and not store.is_dir():
        raise RequestError(Problem(f"there is no folder {store}", fix="--store FOLDER", key="--store"))
    return store


def _request(overrides: list[str], as_json: bool, *, resume: bool = False, before: Sequence[str] = ()) -> int:
    from sweeper import app
    from sweeper.config.hydra_app import initialized

    with initialized():
        return app.run([*overrides, *(["output=json"] if as_json else [])], resume=resume, before=before)
