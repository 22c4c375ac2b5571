"""Where and how fast a trial runs, chosen by short runs once and kept (search/guard.py watches what it does to the
numbers).

Guarantees: a placement never enters a fingerprint and never changes what a trial is; nothing that the user typed or
searches is touched; a probe that fails counts as a placement that cannot be had, with its reason, and never ends the
sweep; there are at most `placement.runs` of them; each measurement is kept as soon as it is made, in the sweep for its
resume and at the end in the cache under all the facts that it depends on, and is not made again while those are the
same.

The knobs are turned one after the other, each from the best placement so far: no product of them is run, and what one
does at another setting of a later one is not looked for. `search` decides, by measurements and nothing else, so that
the same ones lead to the same placement; `choose` finds out what is to be measured and measures it.
docs/placement.md explains it to users.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeper import cache
from sweeper.clusters.base import Attempt, Cluster
from sweeper.config import tree
from sweeper.engines.base import AttemptPaths, Config, Engine, Gang, Knob, Progress, Shape
from sweeper.plan.arms import ArmPlan
from sweeper.plan.plan import Plan
from sweeper.report.events import Display
from sweeper.search.guard import placed
from sweeper.trial.identity import canonical, is_placement, placement_of
from sweeper.trial.records import versions, write_text
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
_VERSION = 2  # of what is measured and how: raise it when old measurements mean something else
_UNRELATED = re.compile(r"seed|_name$|(^|\.)(optim|profiler|checkpoint)\.|clip|coef|loss")
"""Leaves beside the knobs that say what is computed or written, not how much or how fast."""
_LONGEST = 120
"""Of a folder's name: file systems allow 255 bytes."""


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


def search(
    knobs: Sequence[str],
    settings: Callable[[str, Mapping[str, Any]], tuple[Sequence[Mapping[str, Any]], bool]],
    measure: Callable[[Mapping[str, Any]], Measured | None],
    mismatch_above: float | None,
) -> Choice | None:
    """The fastest placement found that runs and does not change the numbers, knob by knob.

    Args:
        knobs: what can be turned, in order.
        settings: a knob and the placement so far -> its settings, the first the one that it has, and whether they are
            ordered (engines.base.Knob).
        measure: None where no more is to be run; then it is decided by what was measured until then.
        mismatch_above: the largest mismatch that is accepted; None: no limit.

    None where nothing was measured.
    """
    measured: list[Measured] = []
    best: Measured | None = None
    for knob in knobs:
        (own, *others), ordered = settings(knob, best.keys if best else {})
        if not others:
            continue
        if best is None:
            best = measure(own)
            if best is None:
                return None
            measured.append(best)
        start, more = best, True
        for together in [[keys] for keys in others] if ordered else [others]:
            tried = []
            for keys in together:
                one = measure({**start.keys, **keys})
                if one is None:
                    more = False
                    break
                tried.append(one)
            measured += tried
            before, best = best, _better(best, tried, measured[0], mismatch_above)
            if not more or best is before:
                break
        # Where nothing runs, or nothing keeps the numbers, the other knobs ask for more of the same.
        if not more or best.tokens_per_s is None or not _sound(best, measured[0], mismatch_above):
            break
    return _chosen(best, measured, mismatch_above) if best else None


def decide(measured: Sequence[Measured], mismatch_above: float | None) -> Choice:
    """The fastest of the settings of one knob that runs and does not change the numbers.

    Args:
        measured: at least one, the default first.
        mismatch_above: the largest mismatch that is accepted; None: no limit.

    The default stays where no other is `FASTER`. Of two that are equally fast the earlier one is taken. Where every
    placement failed the default is taken with a warning; where each one that runs has too large a mismatch, the one
    with the smallest.
    """
    return _chosen(_better(measured[0], measured[1:], measured[0], mismatch_above), measured, mismatch_above)


def _better(now: Measured, others: Sequence[Measured], default: Measured, above: float | None) -> Measured:
    """Which of them it is to be; `default` is what mismatches are held against."""
    running = [m for m in (now, *others) if m.tokens_per_s is not None]
    sound = [m for m in running if _sound(m, default, above)]
    if not sound:
        return min(running, key=lambda m: _number(m.mismatch), default=now)
    best = max(sound, key=_rate)
    return now if now in sound and _rate(best) < FASTER * _rate(now) else best


def _chosen(best: Measured, measured: Sequence[Measured], above: float | None) -> Choice:
    default = measured[0]
    if best.tokens_per_s is None:
        why = f"{placed(default.keys)}: no placement could be probed ({default.failed})"
        return Choice(default.keys, why, tuple(measured), warning=why)
    if not _sound(best, default, above):
        limit = "" if above is None else f" above {above:g}"
        why = f"{placed(best.keys)}: every placement's mismatch is too large{limit}; least is {best.mismatch:.2g}"
        return Choice(best.keys, why, tuple(measured), warning=why)
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


def applied(trial: Trial, chosen: Mapping[str, Choice], able: Callable[[Config], bool] = lambda _config: True) -> Trial:
    """The trial with its arm's placement in the config, which is copied; the trial itself where there is none.

    Nor where it could not run so by `able`: what it searches may leave it other batches than the placement was made
    for.
    """
    choice = chosen.get(trial.arm)
    if choice is None or all(tree.get(trial.config, key) == value for key, value in choice.keys.items()):
        return trial
    config = _with(dict(trial.config), choice.keys)
    return dataclasses.replace(trial, config=config) if able(config) else trial


def _with(config: Config, keys: Mapping[str, Any]) -> Config:
    changed: Config = tree.copy(config)
    for key, value in keys.items():
        tree.put(changed, key, value)
    return changed


# --- when to look, and where ---


@dataclass(frozen=True, slots=True)
class _Question:
    """One set of facts that placements are measured for, and the arms that share it."""

    config: Config
    shape: Shape
    knobs: tuple[str, ...]
    """Those that have a choice."""
    typed: frozenset[str]
    runs: int
    """The most placements that a search looks at: fewer where there are not so many."""
    spec: Mapping[str, Any]

    def settings(self, engine: Engine, knob: str, keys: Mapping[str, Any]) -> tuple[Sequence[Mapping[str, Any]], bool]:
        """Of a knob, with a placement so far."""
        for found in engine.placements(_with(self.config, keys), self.shape, self.typed):
            if found.name == knob:
                return found.settings, found.ordered
        return [{}], False


def choose(plan: Plan, engine: Engine, cluster: Cluster, folder: Path, display: Display) -> dict[str, Choice]:
    """The placement of each arm that has a choice; arms that are not in the answer stay as composed.

    Args:
        folder: the sweep's; probes run below `placement/` of it.

    Measures where `placement.probe` says so, one placement at a time; what was measured before is used again.
    """
    found: dict[str, Choice] = {}
    for number, (at, asked) in enumerate(_questions(plan, engine).items()):
        probes = _Probes(asked, at, engine, cluster, folder / "placement" / str(number), display)
        choice = probes.answer()
        if choice is None:
            continue
        display.event("warning" if choice.warning else "note", message=f"placement {choice.why}")
        found.update(dict.fromkeys(asked.arms, choice))
    return found


@dataclass(frozen=True, slots=True)
class Probing:
    """What a new sweep would measure for some of its arms before the first trial."""

    arms: tuple[str, ...]
    """Their ids."""
    knobs: tuple[str, ...]
    runs: int
    """At most: a knob that brings nothing is not turned further."""
    steps: int
    """Of each run, with the first, which is not counted."""
    gpu_hours: float | None
    """Of all those runs, an estimate as that of a trial; None where there is none."""


def expected(plan: Plan, engine: Engine) -> list[Probing]:
    """The probes that `choose` would make; nothing is run."""
    found = []
    for at, asked in _questions(plan, engine).items():
        kept, _ = _kept(asked.question, at)
        runs = _missing(asked.question, kept, _affordable(asked), engine)
        if runs:
            hours = asked.gpu_hours_per_step
            each = _steps(asked.question)
            total = None if hours is None else hours * each * runs
            found.append(Probing(tuple(asked.arms), asked.question.knobs, runs, each, total))
    return found


def _missing(question: _Question, kept: Mapping[str, Measured], most: int, engine: Engine) -> int:
    """How many runs at most a search would ask for that are not kept."""
    asked: set[str] = set()
    missing = False

    def measure(keys: Mapping[str, Any]) -> Measured | None:
        nonlocal missing
        if len(asked | {_text(keys)}) > question.runs:
            return None
        asked.add(_text(keys))
        found = kept.get(_text(keys))
        missing = missing or found is None
        return found

    above = question.config["placement"].get("mismatch_above")
    search(question.knobs, lambda knob, keys: question.settings(engine, knob, keys), measure, above)
    return min(most, question.runs - len(asked & kept.keys())) if missing else 0


@dataclass(slots=True)
class _Asked:
    """A question, and who has it."""

    question: _Question
    gpu_hours_per_step: float | None
    """Of the first of those arms."""
    arms: list[str] = dataclasses.field(default_factory=list)
    steps: int = 0
    """Of all trials of those arms."""


def _questions(plan: Plan, engine: Engine) -> dict[Path, _Asked]:
    """What is to be chosen for the arms of a plan, by where its measurements are kept."""
    found: dict[Path, _Asked] = {}
    for arm in plan.arms:
        if arm.example is None or arm.example.trial.problems:
            continue
        question = _question(arm, dict(arm.example.trial.config), engine)
        if question is None:
            continue
        work, cost = arm.example.work, arm.example.cost
        hours = cost.gpu_hours / work.steps if work and work.steps and cost and cost.gpu_hours is not None else None
        asked = found.setdefault(cache.folder(cache.root(), "placement", question.spec), _Asked(question, hours))
        asked.arms.append(arm.id)
        asked.steps += arm.budget * len(plan.search.seeds) * (work.steps if work else 0)
    return found


def _steps(question: _Question) -> int:
    return int(question.config["placement"]["steps"]) + 1


def _affordable(asked: _Asked) -> int:
    """How many probes the sweep is long enough for, or is told to make."""
    question = asked.question
    told = question.config["placement"]["probe"] is True
    worth = question.runs if told else asked.steps // (WORTH * _steps(question))
    return min(worth, question.runs) if worth > 1 else 0  # one alone says nothing


def _kept(question: _Question, at: Path) -> tuple[dict[str, Measured], str]:
    """What need not be measured again, and when it was."""
    return _read(at) if question.config["placement"]["probe"] is not True else ({}, "")


def _question(arm: ArmPlan, config: Config, engine: Engine) -> _Question | None:
    """None where there is nothing to choose."""
    settings, shape = config["placement"], arm.shape
    if settings["probe"] is False:
        return None
    # What the user set, or searches, is not ours to choose. An experiment's file says it too; it is looked at only
    # where there is a choice at all, for there may be thousands of arms.
    lines = (text.partition("=")[0].lstrip("+~") for text in arm.point.overrides)
    typed = frozenset([*lines, *(part for dim in arm.dims for part in (dim.name, dim.key))])
    found = _choices(engine, config, shape, typed)
    if found and arm.example and arm.maker:
        explicit = arm.maker.compose(arm.example.trial.params, None).explicit
        typed |= {key.lstrip("+~") for key in explicit}
        found = _choices(engine, config, shape, typed)
    if not found:
        return None
    keys = {key for knob in found for setting in knob.settings for key in setting}
    patterns = placement_of(config)
    if wrong := [key for key in keys if patterns and not is_placement(key, patterns)]:
        raise AssertionError(f"{engine.name} offers {wrong} as placement, which would change the trials' identity")
    most = 1 + sum(len(knob.settings) - 1 for knob in found)
    runs = min(int(settings["runs"]), most)
    facts = spec(config, shape, engine, {knob.name: knob.settings for knob in found})
    return _Question(config, shape, tuple(knob.name for knob in found), typed, runs, facts)


def _choices(engine: Engine, config: Config, shape: Shape, typed: frozenset[str]) -> list[Knob]:
    return [knob for knob in engine.placements(config, shape, typed) if len(knob.settings) > 1]


def spec(
    config: Config, shape: Shape, engine: Engine, knobs: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """All that a measurement depends on, as plain JSON: the model, the cluster's shape, the engine and the versions of
    what it is made of, how much a step computes, the knobs with their settings, and whatever else is in the parts of
    the config that any knob of the engine is in, whether it can be turned here or was typed (lengths, batching,
    memory, parallelism, dtypes). Learning rates, coefficients, seeds, names and the number of steps are not in it."""
    work = asdict(engine.workload(config, shape))
    for unrelated in ("steps", "memory_gib"):
        work.pop(unrelated)
    free = {key for settings in knobs.values() for setting in settings for key in setting}
    roots = {key.partition(".")[0] for knob in engine.placements(config, shape) for key in knob.settings[0]}
    beside = {
        f"{root}.{key}": value
        for root in sorted(roots | {key.partition(".")[0] for key in free})
        for key, value in tree.values(dict(config.get(root) or {}))
        if f"{root}.{key}" not in free and not _UNRELATED.search(key)
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
        "knobs": {name: [dict(setting) for setting in settings] for name, settings in knobs.items()},
        "steps": int(config["placement"]["steps"]),
    }


class _Probes:
    """The measurements for one question: those that are kept, and those that are made now."""

    def __init__(
        self, asked: _Asked, at: Path, engine: Engine, cluster: Cluster, folder: Path, display: Display
    ) -> None:
        """`at`: where they are kept; `folder`: of this sweep's probes."""
        question = self._question = asked.question
        self._at, self._folder = at, folder
        self._engine, self._cluster, self._display = engine, cluster, display
        self._steps, self._above = _steps(question), question.config["placement"].get("mismatch_above")
        self._kept, self._date = _kept(question, at)
        self._worth = _affordable(asked)
        self._asked: set[str] = set()
        self._said = False
        self._made: dict[str, Measured] = {}
        """By this sweep, now or before a resume."""

    def answer(self) -> Choice | None:
        """None where nothing is known and the sweep is too short to find out."""
        q = self._question
        choice = search(q.knobs, lambda knob, keys: q.settings(self._engine, knob, keys), self._measure, self._above)
        if self._made and any(m.tokens_per_s is not None for m in self._made.values()):
            _write(self._at, q, [*({**self._kept, **self._made}).values()])
        if choice is None or self._made:
            return choice
        return dataclasses.replace(choice, why=f"{choice.why}; probed {self._date}")

    def _measure(self, keys: Mapping[str, Any]) -> Measured | None:
        text = _text(keys)
        if len(self._asked | {text}) > self._question.runs:
            return None
        self._asked.add(text)
        if text in self._kept:
            return self._kept[text]
        here = self._folder / _folder_name(keys)
        found = _of_this_sweep(here, self._question, keys)
        if found is None:
            if len(self._made) >= self._worth:
                return None
            if not self._said:
                self._said = True
                knobs = ", ".join(self._question.knobs)
                said = f"probing placements ({knobs}): at most {self._worth} runs of {self._steps} steps"
                self._display.event("preparing", message=said)
            found = probe(self._question, keys, self._engine, self._cluster, here)
            _keep(here, self._question, found)
            self._display.event("note", message=_line(found))
        self._made[text] = found
        return found


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
    made = _with(config, candidate)
    steps = int(config["placement"]["steps"]) + 1
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


def _text(keys: Mapping[str, Any]) -> str:
    return json.dumps(dict(keys), sort_keys=True)


def _folder_name(keys: Mapping[str, Any]) -> str:
    """A placement as a folder's name; long ones are cut and told apart by a hash."""
    name = placed(keys).replace(" ", ",")
    if len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{hashlib.sha256(_text(keys).encode()).hexdigest()[:8]}"


def _of_this_sweep(here: Path, question: _Question, keys: Mapping[str, Any]) -> Measured | None:
    """What an earlier controller of this sweep measured."""
    try:
        kept = json.loads((here / _FILE).read_text(encoding="utf-8"))
        measured = Measured(**kept["measured"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = kept.get("facts") == json.loads(json.dumps(question.spec)) and _text(measured.keys) == _text(keys)
    return measured if same else None


def _keep(here: Path, question: _Question, measured: Measured) -> None:
    here.mkdir(parents=True, exist_ok=True)  # a placement that was refused was not started
    kept = {"measured": asdict(measured), "facts": question.spec}
    write_text(here / _FILE, json.dumps(kept, indent=2) + "\n")


def _read(at: Path) -> tuple[dict[str, Measured], str]:
    """What was measured, and when; nothing where nothing is known or it cannot be read."""
    try:
        kept = json.loads((at / _FILE).read_text(encoding="utf-8"))
        return {_text(one["keys"]): Measured(**one) for one in kept["measured"]}, str(kept["date"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, ""


def _write(at: Path, question: _Question, measured: Sequence[Measured]) -> None:
    kept = {
        "measured": [asdict(m) for m in measured],
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "host": platform.node(),
        "facts": question.spec,
    }
    shutil.rmtree(at, ignore_errors=True)  # there is more now, or it was unreadable
    with cache.building(at) as aside:
        if aside is not None:
            (aside / _FILE).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
