"""Runs a checked plan: folder, preparation, controller, and what is said at the end.

Guarantees: nothing of the sweep is created before its name is free or being resumed; whatever ends the sweep, the
ledger, the tracker and the terminal are closed; the closing lines name the records and the command that opens the
comparison.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper import clusters, engines, prepare, tracking
from sweeper.checkpoints.keep import Keep
from sweeper.clusters.base import Cluster
from sweeper.engines.base import Engine
from sweeper.environments.probe import Interpreter
from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.lineage.hashes import Hashes
from sweeper.lineage.record import Recorder
from sweeper.plan.arms import ArmPlan
from sweeper.plan.plan import Plan
from sweeper.report import events, table
from sweeper.report.rows import Request
from sweeper.search import placement, replay, request, samplers, schedulers
from sweeper.search.arm import ArmSearch, Candidate
from sweeper.search.base import Refuse
from sweeper.search.controller import Controller, Settings, Size, planned
from sweeper.search.outcome import Outcome
from sweeper.tracking import best
from sweeper.tracking.address import address, sqlite_file
from sweeper.tracking.base import Tracker
from sweeper.trial.identity import fingerprint, is_placement, placement_of
from sweeper.trial.index import Index
from sweeper.trial.ledger import DONE, Ledger
from sweeper.trial.records import SweepFolder, versions
from sweeper.trial.spec import Trial, key_of

TRACKER_PATIENCE_S = 60.0
"""How long the end of a sweep waits for the tracking store to take the last values; the records have them anyway."""
_TRIALS = "search.trials"


def execute(plan: Plan, *, resume: bool = False) -> int:
    """Run every trial of a plan without problems, or go on with the sweep of that name; returns the exit code."""
    # Until the controller takes the signals over: what is built or probed is ended with us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings = plan.settings
    config = _config(plan)
    engine = engines.get(config["engine"]["name"])
    store = Path(str(settings["store"])).absolute()
    _free(store, plan, resume)
    # The shape that was planned for, not what is free by now.
    cluster = clusters.get(config["cluster"], next(iter(plan.shapes.values())))
    display = events.choose(str(settings["output"]))
    recorder = _recorder(plan, engine, store, display)
    folder, ledger = _taken_up(plan, engine, store) if resume else (None, None)
    try:
        _prepare(_known(plan), display)
        folder = folder or _new_folder(store, plan)
        ledger = ledger or _ledger(folder)
        return _run(plan, engine, cluster, folder, ledger, display, recorder, resume=resume)
    except RequestError as error:  # found by the cluster when it was to start an attempt
        if folder is not None and ledger is not None and not resume:
            ledger.close()
            error.left = _cleared(folder)
        raise
    finally:
        display.close()
        cluster.close()
        if ledger is not None:
            ledger.close()


def claim(plan: Plan, *, resume: bool) -> SweepFolder:
    """The folder of the sweep, made or found, with a ledger that agrees with the plan: all that `execute` can take up.

    Raises:
        RequestError: The name is taken, somebody runs the sweep, or the plan is not the one that it was started with.
    """
    store = Path(str(plan.settings["store"])).absolute()
    _free(store, plan, resume)
    if resume:
        folder, ledger = _taken_up(plan, engines.get(_config(plan)["engine"]["name"]), store)
    else:
        folder = _new_folder(store, plan)
        ledger = _ledger(folder)
    ledger.close()
    return folder


def _taken_up(plan: Plan, engine: Engine, store: Path) -> tuple[SweepFolder, Ledger]:
    folder = SweepFolder.existing(store, str(plan.settings["name"]))
    ledger = _ledger(folder)
    try:
        _same_request(ledger, plan, engine, folder)
    except BaseException:
        ledger.close()
        raise
    return folder, ledger


def _run(
    plan: Plan,
    engine: Engine,
    cluster: Cluster,
    folder: SweepFolder,
    ledger: Ledger,
    display: events.Display,
    recorder: Recorder,
    *,
    resume: bool,
) -> int:
    index = Index(folder.path.parent, besides=folder.name)
    known = {s.trial.id: s.trial for s in plan.sized}
    if not _requests(ledger):  # new, or killed before its first event
        ledger.append("sweep_started", data=_started(plan))
    elif _extended(ledger, plan):
        _extend(ledger, plan, engine)
    display.event(
        "sweep_started",
        name=folder.name,
        folder=str(folder.path),
        trials={t.id: t.label for t in known.values()} if not plan.search.samples else {},
        planned=_planned(plan),
        mode=_mode(plan),
        overrides=list(plan.overrides),
    )
    for line in plan.untrained:
        display.event("note", message=line)
    tracker = tracking.get(plan.settings["tracking"], warn=lambda message: display.event("warning", message=message))
    tracker.sweep_started(
        folder.name,
        str(plan.settings["project"]),
        {"sweeper.folder": str(folder.path)},
        {"overrides": shlex.join(plan.overrides)},
    )
    labels = {arm.id: arm.label for arm in plan.arms}
    asked = _report(plan, labels)
    chosen = placement.choose(plan, engine, cluster, folder.path, display)
    controller = Controller(
        arms=[_arm_search(plan, number, engine, folder, asked.modes) for number in range(len(plan.arms))],
        size=_sizer(plan, known, display, chosen, engine),
        engine=engine,
        cluster=cluster,
        folder=folder,
        ledger=ledger,
        tracker=tracker,
        display=display,
        facts=lambda o: _facts(o, engine, folder, labels),
        fingerprint=lambda t: fingerprint(dict(t.config)),
        settings=_settings(plan),
        index=None if recorder.reproduces else index,  # a run that is repeated is run
        recorder=recorder,
    )
    for message in index.problems:
        display.event("warning", message=message)
    outcomes: Mapping[str, Outcome] = controller.outcomes
    state, sent = "failed", False
    try:
        if resume:
            replay.take_up(controller, ledger, folder, known)
        outcomes = controller.run()
        state = "stopped" if controller.stopped else _state(outcomes)
        if tracker.open_command() and not controller.stopped:
            try:
                best.tell(
                    outcomes.values(), asked, folder, tracker, lambda said: display.event("warning", message=said)
                )
            except KeyboardInterrupt:  # the trials are done, and stay so
                message = f"interrupted before the tracker was told of the best: sweeper resume {folder.name} tells it"
                display.event("warning", message=message)
    finally:
        with contextlib.suppress(SweeperError):  # where the records failed, that error is on its way already
            ledger.append("sweep_ended", data={"state": state})
        tracker.sweep_ended(state)
        try:
            sent = tracker.close(TRACKER_PATIENCE_S)
        except KeyboardInterrupt:  # no more waiting for the store; the records have everything
            sent = False
        for trial_id, run_id in tracker.run_ids().items():
            if trial_id in outcomes:
                outcomes[trial_id].run_id = run_id
        display.event(
            "sweep_ended",
            state=state,
            trials=table.rows(outcomes.values(), asked),
            **table.summary(outcomes.values(), asked),
        )
        index.close()
    if str(plan.settings["output"]) != "json":
        with contextlib.suppress(KeyboardInterrupt):
            _closing(outcomes, folder, tracker, state, sent, asked)
    return 0 if state == "finished" else 1


def check_lineage(plan: Plan) -> None:
    """Nothing is started or written.

    Raises:
        RequestError: `lineage.reproduces` is no record; or `lineage.strict`, and the tree differs from its commit.
    """
    display = events.choose(str(plan.settings["output"]))
    try:
        engine = engines.get(_config(plan)["engine"]["name"])
        _recorder(plan, engine, Path(str(plan.settings["store"])).absolute(), display)
    finally:
        display.close()


def _recorder(plan: Plan, engine: Engine, store: Path, display: events.Display) -> Recorder:
    """Who writes the lineage of the sweep's attempts. Refuses what must not be started, before anything is built."""
    lineage = plan.settings["lineage"]
    told = plan.settings["tracking"] or {}
    tracked = sqlite_file(address(told.get("uri"))) if told.get("name") == "mlflow" else None
    return Recorder(
        engine,
        warn=lambda message: display.event("warning", message=message),
        hashes=Hashes(say=lambda message: display.event("preparing", message=message)),
        strict=bool(lineage["strict"]),
        reproduces=Path(str(lineage["reproduces"])).expanduser() if lineage["reproduces"] else None,
        exclude=[store, *([tracked] if tracked else [])],
    )


def _ledger(folder: SweepFolder) -> Ledger:
    """The sweep's ledger; a new one where its first controller was killed before it had made it."""
    path = folder.path / "ledger.db"
    return Ledger.open(path, create=not path.exists())


def _requests(ledger: Ledger) -> list[Mapping[str, Any]]:
    """What was asked for, first to last."""
    return [e.data for e in ledger.events(kinds=("sweep_started", "sweep_extended"))]


def _config(plan: Plan) -> Mapping[str, Any]:
    """The config of some trial: for what all of them share."""
    first = plan.arms[0].example or plan.sized[0]
    return first.trial.config


def _known(plan: Plan) -> list[Trial]:
    examples = [arm.example.trial for arm in plan.arms if arm.example]
    return [*(s.trial for s in plan.sized), *examples]


def _arm_search(plan: Plan, number: int, engine: Engine, folder: SweepFolder, modes: Sequence[str]) -> ArmSearch:
    """The search of one arm. Every arm has the same seed, so that where their spaces are alike so are their points."""
    arm, search = plan.arms[number], plan.search
    config = arm.example.trial.config if arm.example else _config(plan)
    work = arm.example.work if arm.example else None
    seed = int((config.get("seed") or 0) if search.sampler_seed is None else search.sampler_seed)
    journal = folder.path / "studies" / f"{arm.id}.journal" if search.samples else None
    if journal is not None:
        journal.parent.mkdir(exist_ok=True)
    return ArmSearch(
        arm.id,
        sampler=samplers.make(
            search.sampler,
            arm.dims,
            seed=seed,
            modes=modes,
            options=search.options,
            points=arm.points,
            apart=_placement_dims(arm),
            journal=journal,
        ),
        scheduler=schedulers.make(
            {"name": search.scheduler, **search.scheduler_options},
            arm.dims,
            mode=search.mode,
            validations=engine.validates(dict(config)),
            total_steps=work.steps if work else 0,
            seed=seed,
            candidates=arm.budget,
            refuse=arm.refuse,
        ),
        refuse=_refuse(plan, arm),
        budget=arm.budget,
        objectives=search.objectives,
        name=lambda n: plan.candidate_id(number, n),
        seeds=search.seeds,
        mode=search.mode,
    )


def _refuse(plan: Plan, arm: ArmPlan) -> Refuse:
    """What cannot run. Of a grid all points were checked already; those that are planned can run."""
    if plan.search.samples or arm.planned:
        return arm.refuse
    if plan.search.sampler == "none":
        return lambda _params: ""
    able = [dict(s.trial.params) for s in plan.sized if s.trial.arm == arm.id]
    keys = {repr(sorted(p.items(), key=lambda kv: kv[0])) for p in able}
    return lambda params: "" if repr(sorted(params.items(), key=lambda kv: kv[0])) in keys else "it cannot run"


def _sizer(
    plan: Plan,
    known: Mapping[str, Trial],
    display: events.Display,
    chosen: Mapping[str, placement.Choice],
    engine: Engine,
) -> Size:
    arms = {arm.id: arm for arm in plan.arms}

    def placed(trial: Trial) -> Trial:
        return placement.applied(trial, chosen, lambda config: not engine.check(config, arms[trial.arm].shape))

    def size(candidate: Candidate, seed: int | None, trial_id: str, kind: str) -> Trial:
        found = known.get(trial_id)
        if found is not None and dict(found.params) == candidate.params:
            return placed(found)
        sized = arms[candidate.arm].sized(
            candidate.params, seed=seed, candidate=candidate.id, trial_id=trial_id, kind=kind
        )
        if sized.trial.problems:  # it could run when it was proposed: another machine, or other files
            raise RequestError(sized.trial.problems)
        _prepare([sized.trial], display)
        return placed(sized.trial)

    return size


def _settings(plan: Plan) -> Settings:
    config = _config(plan)
    sizes = {s.gang for s in plan.sized} | {arm.example.gang for arm in plan.arms if arm.example}
    return Settings(
        stop=config["stop"],
        failures=config["failures"],
        placement=config["placement"],
        mode=plan.search.mode,
        max_concurrent=plan.settings["max_concurrent"],
        final_seeds=plan.search.final_seeds,
        keep=Keep.of(config),
        known=not plan.search.samples,
        mixed=len(sizes) > 1 or any(arm.planned for arm in plan.arms),  # then it is not known
        never_reused=frozenset(
            [
                *(arm.id for arm in plan.arms if _placement_dims(arm)),
                *(arm for group in plan.alike for arm in group.values),
            ]
        ),
    )


def _placement_dims(arm: ArmPlan) -> list[str]:
    """What is searched in the arm and is placement: where and how fast, not what comes out."""
    patterns = placement_of(arm.example.trial.config) if arm.example else ()
    return [d.name for d in arm.dims if d.name == "tp" or is_placement(d.name, patterns)]


def _report(plan: Plan, labels: Mapping[str, str]) -> Request:
    searched = {name: None for arm in plan.arms for name in _placement_dims(arm)}
    device = next(iter(plan.shapes.values())).device
    return Request(_mode(plan), plan.search.objectives, labels, tuple(searched), plan.alike, device)


# --- what was asked for, then and now ---


def _started(plan: Plan) -> dict[str, Any]:
    return {
        "overrides": list(plan.overrides),
        "planned": _planned(plan),
        "mode": _mode(plan),
        **request.describe(plan),
    }


def _planned(plan: Plan) -> int:
    """Trials that the sweep will have, the final ones too."""
    finals = len(plan.search.final_seeds)
    return sum(arm.budget * len(plan.search.seeds) + finals for arm in plan.arms)


def _same_request(ledger: Ledger, plan: Plan, engine: Engine, folder: SweepFolder) -> None:
    started = _requests(ledger)
    if not started:
        return
    now = request.describe(plan)
    if "arms" in started[-1]:
        request.agree(started[-1], now, folder, free=(engine.steps_key,))
        _further(started[-1], now, plan, engine, folder)
    _more(started[-1], plan, folder)
    prints = {t: s.fingerprint for t, s in ledger.trials().items() if not s.forked}
    if _steps(started[-1], engine) == _steps(now, engine):
        for sized in plan.sized:
            before = prints.get(sized.trial.id)
            if before and before != fingerprint(dict(sized.trial.config)):
                raise RequestError(
                    Problem(
                        "the configuration has changed since this sweep was started: "
                        f"trial {sized.trial.id} ({sized.trial.label}) is not the same any more",
                        valid="the overrides, conf/ and code that it was started with",
                        fix=f"sweeper resume {folder.typed} --fork NEW-NAME",
                    )
                )


def _more(started: Mapping[str, Any], plan: Plan, folder: SweepFolder) -> None:
    """Refuse another number of candidates that brings none: what was planned stays planned."""
    before, now = started.get("planned"), _planned(plan)
    if not _changed(started, plan, _TRIALS) or before is None or now > before:
        return
    count = (before - plan.finals) // len(plan.search.seeds)
    has = (
        f"{folder.name} has {count} candidate{'s' * (count != 1)}{f' in {len(plan.arms)} arms' * (len(plan.arms) > 1)}"
    )
    whole = now == before and all(a.looked == a.size and a.budget == a.looked - a.unable for a in plan.arms)
    raise RequestError(
        Problem(
            f"{has}, and those are every point of its space that can run"
            if whole
            else f"{has} already; search.trials (--trials) is the total of an arm",
            valid="a wider space, in a sweep of its own" if whole else f"more than {count // len(plan.arms)}",
            fix=f"sweeper resume {folder.typed}"
            if whole
            else f"sweeper extend {folder.typed} --trials {2 * count // len(plan.arms)}",
            key=_TRIALS,
        )
    )


def _further(
    started: Mapping[str, Any], now: Mapping[str, Any], plan: Plan, engine: Engine, folder: SweepFolder
) -> None:
    """Refuse another number of steps that brings none: a step that was taken stays taken."""
    key, before, after = engine.steps_key, _steps(started, engine), _steps(now, engine)
    if before == after and (before is None or not _changed(started, plan, key) or _changed(started, plan, _TRIALS)):
        return
    if before is None:
        what, valid = f"{folder.name} was started without a number of steps", f"a sweep that was started with {key}=..."
        fix = f"sweeper resume {folder.typed} --fork NEW-NAME {key}={after}"
    elif after is None or after <= before:
        what = f"{folder.name} has {before} steps a trial already; {key} (--steps) is their total"
        valid, fix = f"more than {before}", f"sweeper extend {folder.typed} --steps {2 * before}"
    else:
        return
    raise RequestError(Problem(what, valid=valid, fix=fix, key=key))


def _changed(started: Mapping[str, Any], plan: Plan, key: str) -> bool:
    """Whether a key is typed otherwise than before."""
    then, now = ([o for o in lines if key_of(o) == key] for lines in (started.get("overrides") or (), plan.overrides))
    return then != now


def _steps(started: Mapping[str, Any], engine: Engine) -> Any:
    arms = started.get("arms") or [{}]
    return (arms[0].get("identity") or {}).get(engine.steps_key)


def _extended(ledger: Ledger, plan: Plan) -> bool:
    return request.asked(_requests(ledger)[-1].get("overrides") or ()) != request.asked(plan.overrides)


def _extend(ledger: Ledger, plan: Plan, engine: Engine) -> None:
    """More candidates need nothing; with more steps what is finished goes on from its last checkpoint."""
    started = _requests(ledger)
    now = request.describe(plan)
    events_: list[tuple[str, str | None, Mapping[str, Any]]] = [("sweep_extended", None, _started(plan))]
    before, after = _steps(started[-1], engine), _steps(now, engine)
    if before != after:
        arms = {arm.id: arm for arm in plan.arms}
        for trial, state in ledger.trials().items():
            made = arms[state.arm].sized(
                state.params, seed=state.seed, candidate=state.candidate, trial_id=trial, kind=state.kind
            )
            again = {**planned(made.trial, fingerprint(dict(made.trial.config))), "again": True}
            events_.append(("trial_planned", trial, again))
    ledger.append_all(events_)


def _free(store: Path, plan: Plan, resume: bool) -> None:
    """A name names one sweep, in a store that can be written; asked before anything is built or reached."""
    _writable(store)
    name = plan.settings["name"]
    if name is not None and not resume and (store / str(name)).exists():
        raise RequestError(
            Problem(
                f"a sweep named {name} is already in {store}",
                valid="a new name, or none (one is made from the date)",
                fix=f"sweeper resume {SweepFolder(store / str(name)).typed}   (go on with it), or name={name}-2",
                key="name",
            )
        )


def _writable(store: Path) -> None:
    """Refuse a store that cannot be made or written; nothing is left of trying."""
    new = [path for path in (store, *store.parents) if not path.exists()]
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writable-", dir=store):
            pass
    except OSError as error:
        raise RequestError(
            Problem(
                f"store={store} cannot be written: {error.strerror or error}",
                valid="a folder that you can write, or that can be made",
                fix="store=runs",
                key="store",
            )
        ) from error
    finally:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()


def _cleared(folder: SweepFolder) -> str:
    """Remove a sweep of which nothing was ever started; what is to be said where something was."""
    if not any(folder.path.rglob(clusters.STARTED)):
        shutil.rmtree(folder.path, ignore_errors=True)
        return ""
    return f"records  {folder.path}\ngo on    sweeper resume {folder.typed}"


def _new_folder(store: Path, plan: Plan) -> SweepFolder:
    name = plan.settings["name"]
    return SweepFolder.create(store, str(name) if name is not None else time.strftime("%Y%m%d-%H%M%S"), plan.overrides)


def _prepare(trials: Sequence[Trial], display: events.Display) -> None:
    """Build the models and data that the trials need and the cache lacks; each once."""
    asked = Interpreter.of(trials[0].config)
    builds = prepare.every(t.config for t in trials)
    prepare.check(builds)
    prepare.run(
        prepare.absent(builds),
        asked.python,
        lambda line: display.event("preparing", message=line),
        asked.env,
    )


def _facts(
    outcome: Outcome, engine: Engine, folder: SweepFolder, labels: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    trial, config = outcome.trial, outcome.trial.config
    tags = {
        "sweeper.sweep": folder.name,
        "sweeper.trial": trial.id,
        "sweeper.label": trial.label,
        "sweeper.arm": labels.get(trial.arm) or trial.label,
        "sweeper.candidate": trial.candidate,
        "sweeper.phase": trial.kind,
        "sweeper.seed": str(trial.seed if trial.seed is not None else config.get("seed")),
        "sweeper.fingerprint": outcome.fingerprint,
        "sweeper.folder": str(folder.path / "trials" / trial.id),
        "sweeper.engine": f"{config['engine']['name']} {versions(config['engine']['name'])[config['engine']['name']]}",
        "sweeper.model": str(config["model"]["name"]),
        "sweeper.environment": str(config["environment"]["name"]),
        "sweeper.cluster": str(config["cluster"]["name"]),
    }
    params = {"algorithm": config["algorithm"]["adv_estimator"], **engine.knobs(dict(config)), **trial.point.varied}
    return {**params, "config": config}, tags


def _mode(plan: Plan) -> str:
    return str((plan.settings["objective"] or {}).get("mode", "max"))


def _state(outcomes: Mapping[str, Outcome]) -> str:
    return "finished" if outcomes and all(o.state in DONE for o in outcomes.values()) else "failed"


def _closing(
    outcomes: Mapping[str, Outcome], folder: SweepFolder, tracker: Tracker, state: str, sent: bool, asked: Request
) -> None:
    table.render(outcomes.values(), sys.stdout, asked)
    print()
    for o in outcomes.values():
        if o.state == "failed" and o.root_cause:
            print(f"{o.trial.id} failed: {o.root_cause[0]}")
    if any(o.state == "failed" for o in outcomes.values()):
        print(f"why      sweeper diagnose {folder.typed}")
    print(f"records  {folder.path}")
    if tracker.open_command():
        print(f"compare  {tracker.open_command()}")
    if tracker.page():
        print(f"         {tracker.page()}")
    if not sent:
        print(f"the tracking store did not take everything; send the rest with: sweeper sync {folder.typed}")
    if state != "finished":
        print(f"go on    sweeper resume {folder.typed}")
