"""Where and how fast a trial runs, chosen by short runs once and kept (search/guard.py watches what it does to the
numbers).

Guarantees: a placement never enters a fingerprint and never changes what a trial is; nothing that the user typed or
searches is touched; a probe that fails counts as a placement that cannot be had, with its reason, and never ends the
sweep; measurements are kept in the cache under all the facts that they depend on and are not made again while those
are the same.

The decision (`decide`) is a pure function of measurements; `choose` finds out what is to be measured and measures it.
docs/placement.md explains it to users.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeper import cache
from sweeper.clusters.base import Attempt, Cluster
from sweeper.config import tree
from sweeper.engines.base import AttemptPaths, Config, Engine, Gang, Progress, Shape
from sweeper.plan.plan import Plan
from sweeper.report.events import Display
from sweeper.search.guard import placed
from sweeper.trial.identity import canonical, is_placement, placement_of
from sweeper.trial.records import versions
from sweeper.trial.spec import Trial

WORTH = 10
"""A sweep that is this many times as long as its probes is worth them (`placement.probe=auto`)."""
FASTER = 1.05
"""Another placement than the default must be so much faster: two measurements of the same differ by a few percent."""
DRIFT = 2.0
"""A placement's mismatch may be this many times the default's, or a tenth of the limit more, whichever is larger:
below that it is rounding, since a sum over ranks is made in another order."""
POLL_S = 0.2

_FILE = "measured.json"
_VERSION = 1  # of what is measured and how: raise it when old measurements mean something else


@dataclass(frozen=True, slots=True)
class Measured:
    """What the probe of one placement showed."""

    keys: Mapping[str, Any]
    """Engine key -> value."""
    tokens_per_s: float | None = None
    """Median over the steps after the first; None: it could not be measured, and `failed` says why."""
    mismatch: float | None = None
    """Largest mean difference of rollout's and trainer's probabilities of any step; None: the engine wrote none."""
    steps: int = 0
    """Steps that were measured."""
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The placement of an arm's trials."""

    keys: Mapping[str, Any]
    """Engine key -> value; empty: as it was composed."""
    why: str
    """One line for people."""
    measured: tuple[Measured, ...] = ()
    """In the order of the candidates, the default first; empty where nothing was known."""
    warning: str = ""


def decide(measured: Sequence[Measured], mismatch_above: float | None) -> Choice:
    """The fastest placement that runs and does not change the numbers.

    Args:
        measured: at least one, the default first.
        mismatch_above: the largest mismatch that is accepted; None: no limit.

    The default stays where no other is `FASTER`. Of two that are equally fast the earlier one is taken. Where every
    placement failed the default is taken with a warning; where each one that runs has too large a mismatch, the one
    with the smallest.
    """
    default = measured[0]
    running = [m for m in measured if m.tokens_per_s is not None]
    if not running:
        why = f"{placed(default.keys)}: no placement could be probed ({default.failed})"
        return Choice(default.keys, why, tuple(measured), warning=why)
    sound = [m for m in running if _sound(m, default, mismatch_above)]
    if not sound:
        best = min(running, key=lambda m: _number(m.mismatch))
        limit = "" if mismatch_above is None else f" above {mismatch_above:g}"
        why = f"{placed(best.keys)}: every placement's mismatch is too large{limit}; least is {best.mismatch:.2g}"
        return Choice(best.keys, why, tuple(measured), warning=why)
    best = max(sound, key=_rate)
    if default in sound and _rate(best) < FASTER * _rate(default):
        best = default
    return Choice(best.keys, _why(best, default, measured), tuple(measured))


def _sound(one: Measured, default: Measured, above: float | None) -> bool:
    if one.mismatch is None:
        return True
    if math.isnan(one.mismatch) or (above is not None and one.mismatch > above):
        return False
    if default.mismatch is None or math.isnan(default.mismatch):
        return True
    return one.mismatch <= max(DRIFT * default.mismatch, default.mismatch + (above or 0.0) / 10)


def _number(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value


def _rate(one: Measured) -> float:
    return one.tokens_per_s or 0.0


def _why(best: Measured, default: Measured, measured: Sequence[Measured]) -> str:
    if best is default:
        others = [m for m in measured[1:] if m.tokens_per_s is not None]
        fastest = max(others, key=_rate, default=None)
        if fastest is None:
            compared = "the only one that runs"
        else:
            compared = f"{_rate(best) / _rate(fastest):.2g} x the throughput of {placed(fastest.keys)}"
            if _rate(fastest) >= FASTER * _rate(best):
                compared += f", whose mismatch is {fastest.mismatch:.2g}"
    elif default.tokens_per_s is None:
        compared = f"{placed(default.keys)} does not run ({default.failed})"
    elif _rate(best) < _rate(default):
        compared = f"{placed(default.keys)} has a mismatch of {default.mismatch:.2g}"
    else:
        compared = f"{_rate(best) / _rate(default):.2g} x the throughput of {placed(default.keys)}"
    exact = "" if best.mismatch is None else f", mismatch {best.mismatch:.2g}"
    return f"{placed(best.keys)}: {compared}{exact}"


# --- what a choice does to a trial ---


def applied(trial: Trial, chosen: Mapping[str, Choice]) -> Trial:
    """The trial with its arm's placement in the config, which is copied; the trial itself where there is none."""
    choice = chosen.get(trial.arm)
    if choice is None or all(tree.get(trial.config, key) == value for key, value in choice.keys.items()):
        return trial
    config: Config = tree.copy(dict(trial.config))
    for key, value in choice.keys.items():
        tree.put(config, key, value)
    return dataclasses.replace(trial, config=config)


# --- when to look, and where ---


@dataclass(frozen=True, slots=True)
class _Question:
    """One set of facts that placements are measured for, and the arms that share it."""

    config: Config
    shape: Shape
    candidates: tuple[Mapping[str, Any], ...]
    spec: Mapping[str, Any]


def choose(plan: Plan, engine: Engine, cluster: Cluster, folder: Path, display: Display) -> dict[str, Choice]:
    """The placement of each arm that has a choice; arms that are not in the answer stay as composed.

    Args:
        folder: the sweep's; probes run below `placement/` of it.

    Measures where `placement.probe` says so, one placement at a time; what was measured before is used again.
    """
    found: dict[str, Choice] = {}
    questions: dict[Path, tuple[_Question, list[str], int]] = {}
    for arm in plan.arms:
        if arm.example is None or arm.example.trial.problems:
            continue
        config = dict(arm.example.trial.config)
        question = _question(config, arm.shape, engine, _typed(arm.point.overrides, [d.name for d in arm.dims]))
        if question is None:
            continue
        at = cache.folder(cache.root(), "placement", question.spec)
        steps = arm.budget * len(plan.search.seeds) * (arm.example.work.steps if arm.example.work else 0)
        _, arms, before = questions.get(at, (question, [], 0))
        questions[at] = (question, [*arms, arm.id], before + steps)
    for number, (at, (question, arms, steps)) in enumerate(questions.items()):
        choice = _answer(question, at, steps, engine, cluster, folder / "placement" / str(number), display)
        if choice is None:
            continue
        display.event("warning" if choice.warning else "note", message=f"placement {choice.why}")
        found.update(dict.fromkeys(arms, choice))
    return found


def _typed(overrides: Sequence[str], dims: Sequence[str]) -> frozenset[str]:
    """Keys that the user set or searches, and so are not ours to choose."""
    return frozenset([*(text.partition("=")[0].lstrip("+~") for text in overrides), *dims])


def _question(config: Config, shape: Shape, engine: Engine, typed: frozenset[str]) -> _Question | None:
    """None where there is nothing to choose."""
    if config["placement"]["probe"] is False:
        return None
    candidates = tuple(engine.placements(config, shape))
    keys = {key for candidate in candidates for key in candidate}
    if len(candidates) < 2 or typed & keys or ("tp" in typed and any(k.endswith("parallel_size") for k in keys)):
        return None
    patterns = placement_of(config)
    if wrong := [key for key in keys if patterns and not is_placement(key, patterns)]:
        raise AssertionError(f"{engine.name} offers {wrong} as placement, which would change the trials' identity")
    return _Question(config, shape, candidates, spec(config, shape, engine, candidates))


def spec(config: Config, shape: Shape, engine: Engine, candidates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All that a measurement depends on, as plain JSON: the model, the cluster's shape, the engine and the versions of
    what it is made of, how much a step computes, and the other values of the config sections that hold the candidates'
    keys (the rollout's lengths, batching and memory). Learning rates, seeds, names
    and the number of steps are not in it."""
    work = asdict(engine.workload(config, shape))
    for unrelated in ("steps", "memory_gib"):
        work.pop(unrelated)
    keys = {key for candidate in candidates for key in candidate}
    sections = {key.rpartition(".")[0] for key in keys}
    beside = {
        f"{section}.{key}": value
        for section in sorted(sections)
        for key, value in tree.values(dict(tree.get(config, section, None) or {}))
        if f"{section}.{key}" not in keys and "seed" not in key and not key.endswith("_name")
    }
    model = {k: v for k, v in (config.get("model") or {}).items() if k != "warm_up"}
    return {
        "version": _VERSION,
        "engine": engine.name,
        "python": str((config.get("engine") or {}).get("python") or ""),
        "versions": versions(engine.name, "torch"),
        "model": json.loads(canonical(model)),
        "cluster": {k: v for k, v in asdict(shape).items() if k not in ("name", "launchable", "notes")},
        "gang": asdict(engine.gang(config)),
        "work": work,
        "beside": json.loads(canonical(beside)),
        "candidates": [dict(c) for c in candidates],
        "steps": int(config["placement"]["steps"]),
    }


def _answer(
    question: _Question, at: Path, steps: int, engine: Engine, cluster: Cluster, folder: Path, display: Display
) -> Choice | None:
    settings = question.config["placement"]
    above = settings.get("mismatch_above")
    known = _read(at)
    if known is not None and settings["probe"] is not True:
        choice = decide(known[0], above)
        return dataclasses.replace(choice, why=f"{choice.why}; probed {known[1]}")
    needed = len(question.candidates) * (int(settings["steps"]) + 1)
    if settings["probe"] is not True and steps < WORTH * needed:
        return None
    names = ", ".join(placed(c) for c in question.candidates)
    display.event("preparing", message=f"probing placements: {names}, {int(settings['steps']) + 1} steps each")
    measured = []
    for candidate in question.candidates:
        measured.append(probe(question, candidate, engine, cluster, folder / placed(candidate).replace(" ", ",")))
        display.event("note", message=_line(measured[-1]))
    if any(m.tokens_per_s is not None for m in measured):
        _write(at, question, measured)
    return decide(measured, above)


def _line(one: Measured) -> str:
    if one.tokens_per_s is None:
        return f"probed {placed(one.keys)}: {one.failed}"
    exact = "" if one.mismatch is None else f", mismatch {one.mismatch:.2g}"
    return f"probed {placed(one.keys)}: {one.tokens_per_s:.4g} tokens/s{exact}"


# --- one probe ---


def probe(
    question: _Question, candidate: Mapping[str, Any], engine: Engine, cluster: Cluster, folder: Path
) -> Measured:
    """Run a placement for a few steps, the first not counted. Never raises for what goes wrong in the run."""
    config = short(question.config, candidate, engine)
    if problems := engine.check(config, question.shape):
        return Measured(candidate, failed=problems[0].what)
    number = 1 + len(list(folder.glob("attempt-*")))
    here, checkpoints = folder / f"attempt-{number}", folder / "checkpoints"
    here.mkdir(parents=True)
    checkpoints.mkdir(exist_ok=True)
    try:
        job = engine.job(config, AttemptPaths(here, checkpoints))
        attempt = _start(cluster, job, here)
        code, reason, detail = _wait(attempt, _patience_s(config))
    except OSError as error:
        return Measured(candidate, failed=f"it could not be started: {error}")
    seen = list(_progress(here / job.metrics, engine, config))
    shutil.rmtree(checkpoints, ignore_errors=True)
    return _measured(candidate, seen, lambda: _failure(engine, here, reason, code, detail))


def short(config: Config, candidate: Mapping[str, Any], engine: Engine) -> Config:
    """The config of a probe: that placement, the steps of a probe and the one before them, no checkpoint, no score."""
    made: Config = tree.copy(config)
    steps = int(config["placement"]["steps"]) + 1
    for key, value in candidate.items():
        tree.put(made, key, value)
    tree.put(made, engine.steps_key, steps)
    # Beyond the end and not -1: engines validate and save at the last step anyway, and a trial without a score is
    # refused by their checks.
    tree.put(made, engine.validation_key, steps)
    tree.put(made, engine.saving_key, -1)
    return made


def _start(cluster: Cluster, job: Any, folder: Path) -> Attempt:
    """The gang, as soon as it is free: other sweeps may hold ranks of this cluster."""
    while True:
        nodes = _room(cluster.free(), job.gang)
        attempt = cluster.start(job, folder, nodes) if nodes is not None else None
        if attempt is not None:
            return attempt
        time.sleep(POLL_S)


def _room(free: Sequence[int], gang: Gang) -> tuple[int, ...] | None:
    fitting = [node for node, ranks in enumerate(free) if ranks >= gang.gpus_per_node]
    return tuple(fitting[: gang.nodes]) if len(fitting) >= gang.nodes else None


def _patience_s(config: Config) -> float:
    """A probe may take as long as a trial may until its first step: it has hardly more."""
    limit = (config.get("failures") or {}).get("first_step_s")
    return float(limit) if limit else 3600.0


def _wait(attempt: Attempt, patience_s: float) -> tuple[int | None, str, str]:
    until, late = time.monotonic() + patience_s, False
    try:
        while (ended := attempt.poll()) is None:
            if not late and time.monotonic() > until:
                late = True
                attempt.stop()
            time.sleep(POLL_S)
    except BaseException:  # Ctrl-C: nothing of a probe is worth resuming, and it must not outlive us
        attempt.kill()
        raise
    if late:
        return ended.code, ended.reason, f"it was not done after {patience_s:.0f} s"
    return ended.code, ended.reason, ended.detail


def _progress(metrics: Path, engine: Engine, config: Config) -> Iterator[Progress]:
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            found = engine.progress(json.loads(line), config)
        except ValueError:  # torn by the end of the process
            continue
        if found is not None:
            yield found


def _measured(keys: Mapping[str, Any], seen: Sequence[Progress], failure: Any) -> Measured:
    """The first step is not counted: it compiles, allocates and loads."""
    steps = [p for p in seen if p.step >= 1]
    counted = [p for p in steps if p.step > min(s.step for s in steps)]
    rates = [p.tokens_per_s for p in counted if p.tokens_per_s]
    if not rates:
        return Measured(keys, failed=failure())
    mismatches = [p.signals["mismatch"] for p in steps if "mismatch" in p.signals]
    worst = None if not mismatches else max(mismatches, key=lambda m: math.inf if math.isnan(m) else m)
    return Measured(keys, statistics.median(rates), worst, len(rates))


def _failure(engine: Engine, folder: Path, reason: str, code: int | None, detail: str) -> str:
    try:
        log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        log = ""
    if code == 0 and reason == "exit":
        return "it wrote no throughput of a second step"
    if detail and reason == "stopped":
        return detail
    found = engine.failure(log, reason, code, detail)
    return f"{found.kind}: {found.lines[0]}" if found.lines else found.kind


# --- what is kept ---


def _read(at: Path) -> tuple[list[Measured], str] | None:
    """What was measured, and when; None where nothing is known or it cannot be read."""
    try:
        kept = json.loads((at / _FILE).read_text(encoding="utf-8"))
        return [Measured(**one) for one in kept["measured"]], str(kept["date"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(at: Path, question: _Question, measured: Sequence[Measured]) -> None:
    kept = {
        "measured": [asdict(m) for m in measured],
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "host": platform.node(),
        "facts": question.spec,
    }
    shutil.rmtree(at, ignore_errors=True)  # probed again, or unreadable
    with cache.building(at) as aside:
        if aside is not None:
            (aside / _FILE).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
