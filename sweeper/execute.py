"""Runs a checked plan: folder, preparation, controller, and what is said at the end.

Guarantees: nothing of the sweep is created before its name is free or being resumed; whatever ends the sweep, the
ledger, the tracker and the terminal are closed; the closing lines name the records and the command that opens the
comparison.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper import clusters, engines, prepare, tracking
from sweeper.errors import Problem, RequestError
from sweeper.plan.plan import Plan
from sweeper.report import events, table
from sweeper.search.controller import Controller, Outcome
from sweeper.tracking.base import Tracker
from sweeper.trial.identity import fingerprint
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import SweepFolder, versions
from sweeper.trial.spec import Trial

TRACKER_PATIENCE_S = 60.0
"""How long the end of a sweep waits for the tracking store to take the last values; the records have them anyway."""


def execute(plan: Plan, *, resume: bool = False) -> int:
    """Run every trial of a plan without problems; returns the exit code."""
    trials = plan.trials
    config = trials[0].config
    engine = engines.get(config["engine"]["name"])
    cluster = clusters.get(next(iter(plan.shapes.values())))  # what was planned for, not what is free by now
    store = Path(str(plan.settings["store"])).absolute()
    display = events.choose(str(plan.settings["output"]))
    _free(store, plan, resume)
    _prepare(trials, display)
    folder = _folder(store, plan, resume)
    ledger = Ledger.open(folder.path / "ledger.db", create=not resume)
    try:
        prints = {t.id: fingerprint(dict(t.config)) for t in trials}
        if resume:
            _same_plan(ledger, trials, prints)
        else:
            request = {"overrides": list(plan.overrides), "trials": len(trials), "mode": _mode(plan)}
            planned = [
                (
                    "trial_planned",
                    t.id,
                    {"label": t.label, "varied": dict(t.point.varied), "fingerprint": prints[t.id]},
                )
                for t in trials
            ]
            ledger.append_all([("sweep_started", None, request), *planned])
        display.event(
            "sweep_started",
            name=folder.name,
            folder=str(folder.path),
            trials={t.id: t.label for t in trials},
            overrides=list(plan.overrides),
        )
        tracker = tracking.get(
            plan.settings["tracking"], warn=lambda message: display.event("warning", message=message)
        )
        tracker.sweep_started(
            folder.name,
            str(plan.settings["project"]),
            {"sweeper.folder": str(folder.path)},
            {"overrides": shlex.join(plan.overrides)},
        )
        controller = Controller(
            trials=trials,
            gangs={s.trial.id: s.gang for s in plan.sized if s.gang},
            engine=engine,
            cluster=cluster,
            folder=folder,
            ledger=ledger,
            tracker=tracker,
            display=display,
            facts=lambda t: _facts(t, prints[t.id], folder),
            max_concurrent=plan.settings["max_concurrent"],
            mode=_mode(plan),
        )
        outcomes: Mapping[str, Outcome] = controller.outcomes
        state = "failed"
        try:
            outcomes = controller.run()
            state = "stopped" if controller.stopped else _state(outcomes)
        finally:
            ledger.append("sweep_ended", data={"state": state})
            tracker.sweep_ended(state)
            try:
                sent = tracker.close(TRACKER_PATIENCE_S)
            except KeyboardInterrupt:  # no more waiting for the store; the records have everything
                sent = False
            for trial_id, run_id in tracker.run_ids().items():
                outcomes[trial_id].run_id = run_id
            display.event("sweep_ended", state=state, trials=table.rows(outcomes.values(), _mode(plan)))
        if str(plan.settings["output"]) != "json":
            _closing(outcomes, folder, tracker, state, sent, _mode(plan))
        return 0 if state == "finished" else 1
    finally:
        display.close()
        ledger.close()


def _store_flag(folder: SweepFolder) -> str:
    store = folder.path.parent
    return "" if store == Path("runs").absolute() else f" --store {shlex.quote(str(store))}"


def _free(store: Path, plan: Plan, resume: bool) -> None:
    """A name names one sweep; asked before anything is built."""
    name = plan.settings["name"]
    if name is not None and not resume and (store / str(name)).exists():
        raise RequestError(
            Problem(
                f"a sweep named {name} is already in {store}",
                valid="a new name, or none (one is made from the date)",
                fix=f"sweeper resume {name}   (go on with it), or name={name}-2",
                key="name",
            )
        )


def _folder(store: Path, plan: Plan, resume: bool) -> SweepFolder:
    name = plan.settings["name"]
    if resume:
        return SweepFolder.existing(store, str(name))
    return SweepFolder.create(store, str(name) if name is not None else time.strftime("%Y%m%d-%H%M%S"), plan.overrides)


def _same_plan(ledger: Ledger, trials: Sequence[Trial], prints: Mapping[str, str]) -> None:
    """A resumed sweep must be the one that was started: same trials, same identity."""
    before = {t: s.fingerprint for t, s in ledger.trials().items()}
    changed = [t for t in trials if before.get(t.id) != prints[t.id]]
    if changed or len(before) != len(trials):
        raise RequestError(
            Problem(
                "the configuration has changed since this sweep was started: "
                + (
                    f"trial {changed[0].id} ({changed[0].label}) is not the same any more"
                    if changed
                    else f"{len(before)} trials then, {len(trials)} now"
                ),
                valid="the conf/ and code that it was started with",
                fix="start a new sweep with what you have now, or undo the change",
            )
        )


def _prepare(trials: Sequence[Trial], display: events.Display) -> None:
    """Build the models and data that the trials need and the cache lacks; each once."""
    of_engine = trials[0].config["engine"]
    prepare.run(
        prepare.missing(t.config for t in trials),
        str(of_engine["python"] or sys.executable),
        lambda line: display.event("preparing", message=line),
        of_engine["env"],
    )


def _facts(trial: Trial, identity: str, folder: SweepFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    config = trial.config
    tags = {
        "sweeper.sweep": folder.name,
        "sweeper.trial": trial.id,
        "sweeper.label": trial.label,
        "sweeper.arm": " ".join(f"{k}={v}" for k, v in trial.point.varied.items() if k != "seed") or trial.label,
        "sweeper.fingerprint": identity,
        "sweeper.folder": str(folder.path / "trials" / trial.id),
        "sweeper.engine": f"{config['engine']['name']} {versions(config['engine']['name'])[config['engine']['name']]}",
        "sweeper.model": str(config["model"]["name"]),
        "sweeper.environment": str(config["environment"]["name"]),
        "sweeper.cluster": str(config["cluster"]["name"]),
    }
    return {"algorithm": config["algorithm"]["adv_estimator"], **trial.point.varied, "config": config}, tags


def _mode(plan: Plan) -> str:
    return str((plan.settings["objective"] or {}).get("mode", "max"))


def _state(outcomes: Mapping[str, Outcome]) -> str:
    return "finished" if all(o.state == "finished" for o in outcomes.values()) else "failed"


def _closing(
    outcomes: Mapping[str, Outcome], folder: SweepFolder, tracker: Tracker, state: str, sent: bool, mode: str
) -> None:
    table.render(outcomes.values(), sys.stdout, mode)
    print()
    for o in outcomes.values():
        if o.state == "failed" and o.root_cause:
            print(f"{o.trial.id} failed: {o.root_cause[0]}")
    print(f"records  {folder.path}")
    if tracker.open_command():
        print(f"compare  {tracker.open_command()}")
    if not sent:
        print(
            f"the tracking store did not take everything; send the rest with: "
            f"sweeper sync {folder.name}{_store_flag(folder)}"
        )
    if state != "finished":
        print(f"go on    sweeper resume {folder.name}{_store_flag(folder)}")
