"""Runs a sweep: proposes trials, starts each when its whole gang is free, follows it, judges it, records it.

Guarantees: the controller is the only writer of the ledger and of the tracker; what it knows is in the ledger before it
acts on it, so that a SIGKILL at any instant loses no finished trial and repeats none (search/replay.py takes up from
there); nothing waits for a batch; an attempt's end is recorded only when no process of it remains; a first SIGINT or
SIGTERM stops gently (attempts end, everything stays resumable), a second ends now; a trial that fails never stops
another, except where so many fail in the same way that the rest would too; an error of the records stops the sweep, a
tracker's never does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from sweeper.checkpoints.keep import Keep
from sweeper.checkpoints.retention import Retention
from sweeper.clusters.base import Attempt, Cluster, Exit
from sweeper.engines.base import AttemptPaths, Config, Engine, Failure, Gang, Job, Progress
from sweeper.errors import SweeperError
from sweeper.lineage import document
from sweeper.lineage.record import Donor, Recorder
from sweeper.report.events import Display
from sweeper.search.admission import Admission, Held, Waiting
from sweeper.search.arm import ArmSearch, Candidate, final_id
from sweeper.search.base import Fork, Stop, Verdict
from sweeper.search.guard import Flag, Guard
from sweeper.search.outcome import SPEEDS, Outcome
from sweeper.search.running import Running, explain, scores, there
from sweeper.search.signals import Signals
from sweeper.search.stops import Health
from sweeper.search.takeover import sound, take_over
from sweeper.tracking.base import Tracker, measured
from sweeper.trial.failures import Policy, Stalls
from sweeper.trial.index import Found, Index
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import AttemptFolder, SweepFolder, Tail, attempt_number, read_json
from sweeper.trial.spec import Trial

POLL_S = 0.1
"""Between two looks at the running attempts. Metrics arrive at most every few hundred milliseconds."""
MILESTONE = 10
"""Steps between two entries of the ledger beside the validated ones: enough for a status, few enough for a ledger."""
AHEAD = 3
"""Trials that may wait before a sampler is asked for one more, where gangs differ in size and a smaller one may fit."""
LOOKED_AT = 1000
"""Waiting trials that are considered at once; those behind come as these start."""

Size = Callable[[Candidate, int | None, str, str], Trial]
"""The trial of a candidate under a seed: candidate, seed, id, kind -> composed, bound and checked."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the sweep was asked for beside its arms."""

    stop: Mapping[str, Any]
    failures: Mapping[str, Any]
    placement: Mapping[str, Any] = field(default_factory=dict)
    mode: str = "max"
    max_concurrent: int | None = None
    final_seeds: tuple[int, ...] = ()
    keep: Keep = field(default_factory=Keep)
    known: bool = True
    """Whether all candidates are known from the start (a grid, or no search), so that none depends on a result."""
    never_reused: frozenset[str] = frozenset()
    """Arms whose trials differ in placement on purpose: a fingerprint does not tell those apart."""
    mixed: bool = False
    """Whether gangs differ in size."""


class Controller:
    """One sweep, from its first attempt to its last."""

    def __init__(
        self,
        *,
        arms: Sequence[ArmSearch],
        size: Size,
        engine: Engine,
        cluster: Cluster,
        folder: SweepFolder,
        ledger: Ledger,
        tracker: Tracker,
        display: Display,
        facts: Callable[[Outcome], tuple[dict[str, Any], dict[str, Any]]],
        fingerprint: Callable[[Trial], str],
        settings: Settings,
        index: Index | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """`facts` gives the parameters and tags of a trial for the tracker; `index` knows what was run before;
        `recorder` writes the lineage of attempts."""
        self.arms = {arm.arm: arm for arm in arms}
        self._size, self._fingerprint, self._facts = size, fingerprint, facts
        self._engine, self._cluster, self._folder = engine, cluster, folder
        self._ledger, self._tracker, self._display = ledger, tracker, display
        self._settings, self._index, self._recorder = settings, index, recorder
        shape = cluster.shape
        self._capacity = (shape.gpus_per_node,) * shape.nodes
        self._admission = Admission(self._capacity)
        self.policy, self._stalls = Policy(settings.failures), Stalls(settings.failures)
        self.outcomes: dict[str, Outcome] = {}
        self.waiting: list[str] = []
        """Trials to start, the one whose turn it is first."""
        self.running: list[Running] = []
        self.verdicts: dict[str, Verdict] = {}
        """By candidate: decided before a death of the controller and not carried out by all its trials yet."""
        self.carried: dict[str, set[str]] = {}
        """By candidate: the trials that have carried it out."""
        self._paused_trials: set[str] = set()
        self._arm_of: dict[str, str] = {}
        self.guard = Guard(settings.placement)
        self._retention = Retention(
            settings.keep,
            engine,
            folder,
            lambda after: ledger.events(after, kinds=("trial_forked",)),
            self._warn,
            settings.mode,
        )
        self._said_waiting = False
        self._signals = 0
        self.given_up = ""
        """Why no more trials are started; empty while they are."""

    def run(self) -> dict[str, Outcome]:
        """Run to the end, or until stopped; returns the outcome of every trial by id.

        Raises:
            SweeperError: The records cannot be written.
        """
        with Signals(self._on_signal):
            try:
                for candidate, verdict in list(self.verdicts.items()):
                    self._apply(candidate, verdict, besides=self.carried.get(candidate, set()))
                self.verdicts.clear()
                while self._settings.known and not self._quiet and self._propose():
                    pass  # all that is known is in the ledger from the start
                while self._going():
                    self._start()
                    self._follow()
                    time.sleep(POLL_S)
            except BaseException:
                self._end_all()
                raise
        return self.outcomes

    @property
    def stopped(self) -> bool:
        """Whether a signal ended the sweep before its last trial."""
        return bool(self._signals)

    @property
    def _quiet(self) -> bool:
        """Whether nothing more is started."""
        return bool(self._signals or self.given_up)

    def _going(self) -> bool:
        if self.running:
            return True
        if self._quiet:
            return False
        self._add_finals()
        if self.waiting or any(arm.more for arm in self.arms.values()) or self._resume_paused():
            return True
        self._retire_paused()
        self._add_finals()
        return bool(self.waiting)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        for r in self.running:
            if self._signals == 1:
                r.attempt.stop()
            else:
                r.attempt.kill()

    # --- what to run ---

    def _start(self) -> None:
        """Start what fits; propose where there is room for more."""
        while not self._quiet:
            room = (self._settings.max_concurrent or len(self.outcomes) + 1_000_000) - len(self.running)
            free = self._cluster.free() if room > 0 and self._may_start() else ()
            # A sampler is asked as late as can be: each result makes the next proposal better.
            if not any(free) and not self._settings.mixed:
                self._say_waiting(free)
                return
            # What is new comes before what is paused: a rung is judged when it is full.
            if room <= 0 or not (self.waiting or self._propose() or self._resume_paused()):
                return
            if not self.waiting:
                continue  # what was proposed had been run before
            queue = [Waiting(t, self._gang(self.outcomes[t])) for t in self.waiting[:LOOKED_AT]]
            held = [Held(r.nodes, r.job.gang.gpus_per_node, self._left_s(r)) for r in self.running]
            chosen = self._admission.choose(queue, free, held, most=room)
            started = [self._launch(self.outcomes[start.key], start.nodes) for start in chosen]
            if any(started):
                continue
            self._say_waiting(free)
            more = self._settings.mixed and any(free) and len(self.waiting) <= AHEAD
            if not (more and self._propose()):
                return

    def _may_start(self) -> bool:
        return bool(self.waiting) or any(a.more for a in self.arms.values()) or bool(self._resumable())

    def _say_waiting(self, free: Sequence[int]) -> None:
        """Once: nothing of ours runs and nothing fits, so somebody else has the ranks."""
        if free and not self.running and not self._said_waiting:
            self._said_waiting = True
            message = f"{sum(free)} of {sum(self._capacity)} ranks are free: another sweep has the others"
            self._display.event("sweep_waiting", message=message)

    def _gang(self, outcome: Outcome) -> Gang:
        if outcome.gang is None:
            outcome.gang = self._engine.gang(dict(outcome.trial.config))
        return outcome.gang

    def _left_s(self, r: Running) -> float | None:
        if not r.steps_s or r.outcome.curve.step is None:
            return None
        return (r.job.total_steps - r.outcome.curve.step) * statistics.median(r.steps_s)

    def _propose(self) -> bool:
        """Ask the arm that has been asked least for its next candidate; whether there was one."""
        while open_arms := [arm for arm in self.arms.values() if arm.more]:
            arm = min(open_arms, key=lambda a: len(a.candidates))
            candidate = arm.propose()
            if candidate is not None:
                self._plan(arm, candidate)
                return True
            if arm.budget is not None:
                why = f"; the last one that was refused: {arm.last_refusal}" if arm.last_refusal else ""
                proposed = f"{len(arm.candidates)} of {arm.budget} were proposed"
                self._warn(f"arm {arm.arm}: no point is left that can run: {proposed}{why}")
            self._judge(arm.closed())
        return False

    def know(self, arm: ArmSearch, candidate: Candidate) -> None:
        """Of which arm a candidate is."""
        self._arm_of[candidate.id] = arm.arm

    def _plan(self, arm: ArmSearch, candidate: Candidate) -> None:
        self.know(arm, candidate)
        if candidate.ask.refused:
            points = len(candidate.ask.refused)
            self._display.event("points_refused", arm=arm.arm, points=points, why=arm.refuse(candidate.ask.refused[-1]))
        pairs = zip(candidate.trials, arm.seeds, strict=True)
        trials = [self._size(candidate, seed, trial, "search") for trial, seed in pairs]
        self._planned(trials, number=candidate.ask.number, refused=[dict(r) for r in candidate.ask.refused])

    def _planned(self, trials: Sequence[Trial], **data: Any) -> None:
        """Record trials, all or none; then have them run, unless the same was run before."""
        prints = [self._fingerprint(trial) for trial in trials]
        self._ledger.append_all(
            [("trial_planned", t.id, {**planned(t, fp), **data}) for t, fp in zip(trials, prints, strict=True)]
        )
        found = (
            self._index.lookup_all(prints) if self._index and trials[0].arm not in self._settings.never_reused else {}
        )
        for trial, fingerprint in zip(trials, prints, strict=True):
            outcome = self.outcomes[trial.id] = Outcome(trial, fingerprint)
            self._display.event(
                "trial_planned",
                trial=trial.id,
                label=trial.label,
                arm=trial.arm,
                candidate=trial.candidate,
                seed=trial.seed,
                params=dict(trial.params),
                kind=trial.kind,
            )
            before = found.get(fingerprint)
            if before is not None and before.sweep != self._folder.name and self._stands_for(trial, before):
                self._reuse(outcome, before)
            else:
                self.waiting.append(trial.id)

    def _stands_for(self, trial: Trial, before: Found) -> bool:
        """Whether what the finished trial was computed from is what this one would be; says why where it is not."""
        why = self._recorder.unlike(trial, before.folder) if self._recorder else ""
        if why:
            self._warn(f"{trial.id} is run and not taken from {before}: {why}")
        return not why

    def _reuse(self, outcome: Outcome, before: Found) -> None:
        """A finished trial of this store stands for one that would compute the same."""
        folder = before.folder
        for attempt in SweepFolder(folder.parents[2]).attempts(before.trial):
            if attempt_number(attempt) <= attempt_number(folder):  # it may have been extended since
                self._read_curve(outcome, attempt)
                outcome.gpu_hours += _hours(attempt)
        if outcome.curve.step is None:  # its records are gone or not readable as this engine's
            self.waiting.append(outcome.trial.id)
            return
        outcome.reused, outcome.folder, outcome.flagged = str(before), folder, _flag(folder)
        summary = outcome.curve.summary(self._settings.mode)
        self._ledger.append(
            "trial_reused",
            trial=outcome.trial.id,
            data={
                "sweep": before.sweep,
                "trial": before.trial,
                "folder": str(folder),
                "scores": {str(k): v for k, v in outcome.curve.scores.items()},
                "gpu_hours": outcome.gpu_hours,
                **_flagged(outcome),
                **summary,
            },
        )
        self._display.event(
            "trial_reused", trial=outcome.trial.id, score=outcome.curve.final_score, source=outcome.reused
        )
        outcome.state = "finished"
        if outcome.trial.kind == "search":
            arm = self.arms[outcome.trial.arm]
            for step, score in sorted(outcome.curve.scores.items()):
                self._judge(arm.scored(outcome.trial.candidate, outcome.trial.id, step, score))
        self._settle(outcome)

    def sized(self, outcome: Outcome) -> Trial:
        """A trial of the ledger, composed anew with the values that it has now."""
        trial = outcome.trial
        return self._size(self.arms[trial.arm].candidates[trial.candidate], trial.seed, trial.id, trial.kind)

    def _read_curve(self, outcome: Outcome, attempt: Path) -> None:
        """Add an earlier attempt's metrics to a trial's curve."""
        for line in Tail(attempt / "metrics.jsonl").read():
            if progress := self._engine.progress(line, dict(outcome.trial.config)):
                outcome.curve.add(progress)

    def _add_finals(self) -> None:
        """Run the best candidate of each arm that is done again, under seeds that nothing was chosen by."""
        for arm in self.arms.values():
            if not self._settings.final_seeds or arm.more:
                continue
            if any(c.state is None for c in arm.candidates.values()):
                continue
            best = arm.best()
            if best is not None and final_id(best.id, self._settings.final_seeds[0]) not in self.outcomes:
                seeds = self._settings.final_seeds
                self._planned([self._size(best, seed, final_id(best.id, seed), "final") for seed in seeds])

    # --- attempts ---

    def _launch(self, outcome: Outcome, nodes: tuple[int, ...]) -> bool:
        """Start the trial's next attempt on those nodes; False where another sweep was quicker."""
        trial = outcome.trial
        config, changed = self._relieved(outcome)
        sound(self._engine, self._folder.checkpoints(trial.id), warn=self._warn)  # the job goes on from what is left
        folder = self._folder.new_attempt(trial.id)
        job = self._engine.job(config, AttemptPaths(folder.path, self._folder.checkpoints(trial.id)))
        params, tags = self._facts(outcome)
        folder.write_spec(trial, job, tags)
        if self._recorder:
            self._recorder.started(trial, config, folder, self._folder.checkpoints(trial.id), outcome.donor)
        # Before the start: an attempt that the ledger does not know would be nobody's if we died in between.
        data = {"folder": str(folder.path), "nodes": list(nodes), **({"changed": changed} if changed else {})}
        self._ledger.append("attempt_started", trial=trial.id, attempt=folder.number, data=data)
        attempt = self._cluster.start(job, folder.path, nodes)
        if attempt is None:
            ended = {"state": "waiting", "reason": "not-started"}
            self._ledger.append("attempt_ended", trial=trial.id, attempt=folder.number, data=ended)
            folder.write_status("stopped", reason="not-started", detail="another sweep took the ranks first")
            self.record_end(outcome, folder, state="stopped", reason="not-started")
            return False
        self.waiting.remove(trial.id)
        outcome.donor = None  # its next attempt goes on from its own checkpoint
        self.follow(outcome, job, attempt, folder, nodes, time.time())
        if self._signals:
            attempt.stop()  # the signal came while it was started
        folder.write_status("starting")
        self._tell_started(outcome, job, folder, params, tags)
        self._display.event(
            "trial_started",
            trial=trial.id,
            label=trial.label,
            attempt=folder.number,
            total=job.total_steps,
            folder=str(folder.path),
            **({"changed": changed} if changed else {}),
        )
        return True

    def _relieved(self, outcome: Outcome) -> tuple[Config, str]:
        """The config of its attempts by now, and what was changed of the trial's own for want of memory."""
        config = dict(outcome.trial.config)
        return (self._engine.relieve(config, outcome.reliefs) if outcome.reliefs else None) or (config, "")

    def follow(
        self, outcome: Outcome, job: Job, attempt: Attempt, folder: AttemptFolder, nodes: tuple[int, ...], since: float
    ) -> Running:
        """Take an attempt into what is followed, stopped and recorded from here on, whatever happens."""
        health = Health(self._settings.stop)
        outcome.attempts = max(outcome.attempts, folder.number)
        outcome.state, outcome.folder = "starting", folder.path
        r = Running(outcome, job, attempt, folder, Tail(folder.path / job.metrics), folder.number, since, nodes, health)
        self.running.append(r)
        for earlier in self._folder.attempts(outcome.trial.id):
            if attempt_number(earlier) < folder.number:
                for line in Tail(earlier / job.metrics).read():
                    if p := self._engine.progress(line, dict(outcome.trial.config)):
                        outcome.curve.add(p)
                        health.see(p)
        return r

    def reattach(
        self, outcome: Outcome, folder: AttemptFolder, since: float, recorded: int, nodes: tuple[int, ...]
    ) -> bool:
        """Follow an attempt that a controller started which is gone, on those nodes; False if it was never started."""
        attempt = self._cluster.attach(folder.path)
        if attempt is None:
            return False
        config = dict(outcome.trial.config)
        job = self._engine.job(config, AttemptPaths(folder.path, self._folder.checkpoints(outcome.trial.id)))
        r = self.follow(outcome, job, attempt, folder, nodes, since)
        r.recorded = recorded
        planned_steps = read_json(folder.path / "spec.json").get("total_steps")
        r.until = int(planned_steps) if planned_steps is not None else None
        params, tags = self._facts(outcome)
        self._tell_started(outcome, job, folder, params, tags)
        self._display.event(
            "attempt_reattached",
            trial=outcome.trial.id,
            label=outcome.trial.label,
            attempt=folder.number,
            total=job.total_steps,
            folder=str(folder.path),
        )
        return True

    def _tell_started(
        self, outcome: Outcome, job: Job, folder: AttemptFolder, params: Mapping[str, Any], tags: Mapping[str, Any]
    ) -> None:
        self._tracker.trial_started(
            outcome.trial.id,
            outcome.trial.label,
            params,
            {**tags, "attempt": str(folder.number)},
            there(folder, "spec.json", document.NAME, document.PATCH, *job.files),
        )

    def record_end(
        self,
        outcome: Outcome,
        folder: AttemptFolder,
        *,
        started: float | None = None,
        ended: float | None = None,
        **result: Any,
    ) -> None:
        """Complete the lineage record of an attempt."""
        if self._recorder:
            checkpoints = self._folder.checkpoints(outcome.trial.id)
            self._recorder.ended(folder, checkpoints, result, started=started, ended=ended)

    def _follow(self) -> None:
        for r in list(self.running):
            ended = r.attempt.poll()  # before the last read, so that no line is missed
            for line in r.tail.read():
                if progress := self._engine.progress(line, dict(r.outcome.trial.config)):
                    self._progress(r, progress)
            if ended:
                self.running.remove(r)
                self._end(r, ended)
            elif not r.intent and not self._signals:
                self._look_for_silence(r)
                self._look_for_stall(r)

    def _look_for_silence(self, r: Running) -> None:
        silent = r.attempt.silent()
        if silent and not r.silent:
            self._display.event("node_silent", trial=r.outcome.trial.id, message=silent)
        r.silent = silent

    def _look_for_stall(self, r: Running) -> None:
        if waits := r.attempt.waiting():  # in a queue: it holds nothing yet, and has not begun to be slow
            r.since, r.started = time.monotonic(), time.time()
            if waits != r.waits:
                r.waits = waits
                self._display.event("sweep_waiting", message=f"{r.outcome.trial.label}: {waits}")
            return
        why = self._stalls.stalled(started=r.since, progressed=r.progressed, steps_s=r.steps_s, now=time.monotonic())
        if why:
            r.intent, r.stalled = "stalled", why
            r.attempt.stop(dump=True)

    def _progress(self, r: Running, p: Progress) -> None:
        outcome = r.outcome
        if outcome.state != "running":
            outcome.state = "running"
            r.folder.write_status("running", **_flagged(outcome))
        outcome.curve.add(p)
        r.progressed = time.monotonic()
        if p.step_s:
            r.steps_s = [*r.steps_s[-19:], p.step_s]
        if p.tokens_per_s is not None:
            outcome.speeds = [*outcome.speeds[1 - SPEEDS :], p.tokens_per_s]
        self._tracker.metrics(outcome.trial.id, p.step, measured(p), time.time())
        if (p.score is not None or p.step % MILESTONE == 0) and p.step > r.recorded:
            r.recorded = p.step
            self._ledger.append(
                "progress",
                trial=outcome.trial.id,
                attempt=r.number,
                data={"step": p.step, "score": p.score, "reward": p.reward},
            )
            if p.score is not None and outcome.trial.kind == "search":
                arm = self.arms[outcome.trial.arm]
                self._judge(arm.scored(outcome.trial.candidate, outcome.trial.id, p.step, p.score))
        if flag := self.guard.see(outcome.trial.id, p):
            self._flag(r, flag)
        stop = r.health.see(p)
        if stop is not None and not r.intent and not self._signals:
            self._end_early(r, stop)
        left = r.job.total_steps - p.step
        self._display.event(
            "progress",
            trial=outcome.trial.id,
            step=p.step,
            total=r.job.total_steps,
            reward=p.reward,
            score=p.score,
            tokens_per_s=p.tokens_per_s,
            elapsed_s=time.time() - r.started,
            eta_s=left * statistics.median(r.steps_s) if r.steps_s else None,
        )

    def _flag(self, r: Running, flag: Flag) -> None:
        """Keep it, then say it: a resume knows it by the ledger and does not say it again."""
        outcome, trial = r.outcome, r.outcome.trial.id
        knobs = self._engine.placements(self._relieved(outcome)[0], self._cluster.shape)
        placement = {key: value for knob in knobs for key, value in knob.settings[0].items()}
        outcome.flagged = flag = replace(flag, attempt=r.number, placement=placement)
        self._ledger.append("placement_flagged", trial=trial, attempt=r.number, data=flag.as_dict())
        r.folder.write_status("running", **_flagged(outcome))
        self._tracker.tagged(trial, {"sweeper.flagged": flag.text})
        self._warn(f"trial {trial}, {flag.text}")

    # --- verdicts ---

    def _judge(self, verdicts: Mapping[str, Verdict]) -> None:
        for candidate, verdict in verdicts.items():
            self._apply(candidate, verdict)

    def _apply(self, candidate_id: str, verdict: Verdict, besides: Collection[str] = ()) -> None:
        """Carry out what a scheduler decided about a candidate: the same for all its trials (`besides` some)."""
        if verdict.action == "go":
            return
        for outcome in self._of(candidate_id):
            r = next((r for r in self.running if r.outcome is outcome), None)
            if outcome.done or outcome.trial.id in besides:
                continue
            if r is None:
                self._apply_idle(outcome, verdict)
            # A rung may be decided while those that pause for it are still ending.
            elif not r.intent or (r.intent == "paused" and verdict.action == "stop"):
                self._apply_running(r, verdict)

    def _apply_idle(self, outcome: Outcome, verdict: Verdict) -> None:
        if verdict.action == "stop":
            self._retire(outcome, Stop("worse", verdict.why, verdict.evidence, outcome.curve.step))
        elif verdict.action == "pause":
            if outcome.trial.id in self.waiting:
                self.waiting.remove(outcome.trial.id)
                self.pause(outcome)
        elif verdict.fork is not None:
            self._fork(outcome, verdict.fork)

    def _apply_running(self, r: Running, verdict: Verdict) -> None:
        worse = Stop("worse", verdict.why, verdict.evidence, r.outcome.curve.step)
        if verdict.action == "stop":
            self._end_early(r, worse)
            return
        r.intent = "paused" if verdict.action == "pause" else "fork"
        r.reason, r.fork = (worse, None) if verdict.action == "pause" else (None, verdict.fork)
        r.attempt.stop()

    def _end_early(self, r: Running, stop: Stop) -> None:
        r.intent, r.reason = "pruned", stop
        r.attempt.stop()

    def pause(self, outcome: Outcome) -> None:
        """It waits until its scheduler lets it go on."""
        outcome.state = "paused"
        self._paused_trials.add(outcome.trial.id)

    def _of(self, candidate_id: str) -> list[Outcome]:
        arm = self.arms[self._arm_of[candidate_id]]
        return [self.outcomes[t] for t in arm.candidates[candidate_id].trials if t in self.outcomes]

    def _retire(self, outcome: Outcome, stop: Stop) -> None:
        """End a trial that does not run."""
        if outcome.trial.id in self.waiting:
            self.waiting.remove(outcome.trial.id)
        outcome.state, outcome.stop = "pruned", stop
        self._paused_trials.discard(outcome.trial.id)
        data = {"state": "pruned", "reason": stop.reason, "stop": asdict(stop)}
        self._ledger.append("trial_retired", trial=outcome.trial.id, data=data)
        if outcome.folder is not None and outcome.attempts:
            summary = outcome.curve.summary(self._settings.mode)
            folder = AttemptFolder(outcome.folder, outcome.attempts, self._folder.name, None)
            folder.write_status("pruned", reason=stop.reason, stop=asdict(stop), **_flagged(outcome), **summary)
            self.record_end(outcome, folder, state="pruned", reason=stop.reason, stop=asdict(stop), **scores(summary))
            numbers = {k: v for k, v in summary.items() if v is not None}
            files = there(folder, "status.json", document.NAME, document.PATCH)
            self._tracker.trial_ended(outcome.trial.id, "pruned", numbers, files)
        self._say_ended(outcome, None, 0)
        self._settle(outcome)

    def _paused(self, arm: ArmSearch) -> list[str]:
        """Candidates of which nothing runs or waits to run, in the order they were proposed."""
        if not self._paused_trials:
            return []
        names = {self.outcomes[t].trial.candidate for t in self._paused_trials}
        paused = [c for c in sorted(names) if self._arm_of[c] == arm.arm]
        busy = {r.outcome.trial.candidate for r in self.running} | {
            self.outcomes[t].trial.candidate for t in self.waiting
        }
        return [c for c in paused if c not in busy]

    def _resumable(self) -> list[tuple[ArmSearch, str]]:
        return [(arm, c) for arm in self.arms.values() for c in arm.resumable(self._paused(arm))]

    def _resume_paused(self) -> bool:
        """Queue the paused candidates that a scheduler lets go on; whether there were any."""
        for arm, candidate in self._resumable():
            arm.goes_on(candidate)
            again = [o for o in self._of(candidate) if o.state == "paused"]
            for outcome in again:
                outcome.state = "waiting"
                self._paused_trials.discard(outcome.trial.id)
            self.waiting += [o.trial.id for o in again]
        return bool(self.waiting)

    def _retire_paused(self) -> None:
        """Nothing runs and nothing is to come: what is still paused would wait for ever."""
        for trial in sorted(self._paused_trials):
            outcome = self.outcomes[trial]
            why = "nothing else was left to run and the scheduler did not let it go on"
            self._retire(outcome, Stop("worse", why, {}, outcome.curve.step))

    def _fork(self, outcome: Outcome, fork: Fork) -> None:
        """Go on from the donor's checkpoint with other values."""
        donor = next((o for o in self._of(fork.donor) if o.trial.seed == outcome.trial.seed and o is not outcome), None)
        saved = None
        if donor:
            mine, theirs = (self._folder.checkpoints(o.trial.id) for o in (outcome, donor))
            names = (outcome.trial.id, fork.donor)
            saved = take_over(self._engine, mine, theirs, fork.step, names=names, warn=self._warn)
        arm = self.arms[outcome.trial.arm]
        candidate = arm.candidates[outcome.trial.candidate]
        before = dict(candidate.params)
        arm.forked(candidate.id, fork.params)
        step = saved.step if saved else outcome.curve.step
        data = {
            "donor": donor.trial.id if donor else None,
            "adopted": saved is not None,
            "step": step,
            "params": dict(fork.params),
        }
        self._ledger.append("trial_forked", trial=outcome.trial.id, data=data)
        outcome.trial = self._size(candidate, outcome.trial.seed, outcome.trial.id, "search")
        outcome.forked, outcome.gang = True, None
        outcome.donor = Donor(donor.trial.id, saved.step) if donor and saved else None
        changed = {k: v for k, v in fork.params.items() if before.get(k) != v}
        self._display.event(
            "trial_forked", trial=outcome.trial.id, donor=donor.trial.id if donor else None, step=step, changed=changed
        )
        outcome.state = "waiting"
        if outcome.trial.id not in self.waiting:
            self.waiting.insert(0, outcome.trial.id)

    # --- ends ---

    def _end(self, r: Running, ended: Exit) -> None:
        outcome = r.outcome
        seconds = max(0.0, (ended.ended or time.time()) - r.started)
        hours = seconds * r.job.gang.gpus / 3600
        outcome.elapsed_s += seconds
        outcome.gpu_hours += hours
        failure = self._conclude(r, ended)
        summary = outcome.curve.summary(self._settings.mode)
        said = "stopped" if outcome.state in ("waiting", "paused") else outcome.state
        stop = outcome.stop or (r.reason if outcome.state == "paused" else None)
        r.folder.write_status(
            said,
            exit_code=ended.code,
            reason=ended.reason,
            detail=ended.detail,
            root_cause=outcome.root_cause,
            **({"failure": failure.kind} if failure else {}),
            **({"stop": asdict(stop)} if stop else {}),
            **_flagged(outcome),
            elapsed_s=round(seconds, 3),
            total_steps=r.job.total_steps,
            **summary,
        )
        self._ledger.append(
            "attempt_ended",
            trial=outcome.trial.id,
            attempt=r.number,
            data={
                "state": outcome.state,
                "exit_code": ended.code,
                "reason": ended.reason,
                **({"failure": {"kind": failure.kind, "signature": failure.signature}} if failure else {}),
                **({"stop": asdict(stop)} if stop else {}),
                "elapsed_s": seconds,
                "gpu_hours": hours,
                "tokens_per_s": outcome.tokens_per_s,
                **summary,
            },
        )
        self.record_end(
            outcome,
            r.folder,
            started=r.started,
            ended=ended.ended or None,
            state=said,
            reason=ended.reason,
            exit_code=ended.code,
            elapsed_s=round(seconds, 3),
            gpu_hours=hours,
            stop=asdict(stop) if stop else None,
            root_cause=list(outcome.root_cause),
            **scores(summary),
        )
        self._tracker.trial_ended(
            outcome.trial.id,
            said,
            {k: v for k, v in summary.items() if v is not None},
            there(r.folder, "status.json", document.NAME, document.PATCH, r.job.metrics, "log.txt"),
        )
        self._say_ended(outcome, ended, r.job.total_steps)
        if outcome.state == "waiting":
            if r.intent == "fork" and r.fork is not None:
                self._fork(outcome, r.fork)
            else:
                self.waiting.insert(0, outcome.trial.id)
        elif outcome.done:
            self._settle(outcome)

    def _conclude(self, r: Running, ended: Exit) -> Failure | None:
        """Say what an attempt's end means for its trial; the failure, where it is one."""
        outcome, step = r.outcome, r.outcome.curve.step
        # A trainer that ends well before its last step has not done what was asked.
        until = r.job.total_steps if r.until is None else r.until
        complete = ended.reason == "exit" and ended.code == 0 and step is not None and step >= until
        outcome.root_cause, outcome.failure = (), ""
        if complete:
            # Extended while it ran: it goes on from where it was to end.
            outcome.state = "finished" if until >= r.job.total_steps else "waiting"
        elif r.intent == "pruned":
            outcome.state, outcome.stop = "pruned", r.reason
        elif r.intent in ("paused", "fork"):
            outcome.state = "waiting"
            if r.intent == "paused":
                self.pause(outcome)
        elif ended.reason == "stopped" and r.intent != "stalled" and self._quiet:
            outcome.state = "stopped"
        else:
            return self._failed(r, ended)
        return None

    def _failed(self, r: Running, ended: Exit) -> Failure:
        outcome = r.outcome
        failure = explain(r, ended, self._engine)
        outcome.root_cause, outcome.failure = failure.lines, failure.kind
        if failure.kind == "nan":  # a result like others: the worst
            outcome.state = "pruned"
            outcome.stop = Stop("nan", failure.lines[0] if failure.lines else "", {}, outcome.curve.step)
            return failure
        config = dict(outcome.trial.config)
        decision = self.policy.failed(
            outcome.trial.id,
            failure,
            step=outcome.curve.step,
            relieve=lambda times: self._engine.relieve(config, times),
        )
        outcome.state = "failed" if not decision.retry else "stopped" if self._quiet else "waiting"
        if decision.retry:
            outcome.reliefs += int(decision.config is not None)
            self._display.event(
                "trial_retried",
                trial=outcome.trial.id,
                failure=failure.kind,
                why=decision.why,
                change=decision.change,
                root_cause=list(failure.lines[:1]),
            )
        if decision.end_sweep and not self.given_up:
            self.given_up = decision.end_sweep
            self._warn(f"nothing more is started: {decision.end_sweep}")
            for other in self.running:
                other.attempt.stop()
        return failure

    def _settle(self, outcome: Outcome) -> None:
        """A trial will not run any more: its arm hears of it."""
        trial = outcome.trial
        if trial.kind == "search":
            arm = self.arms[trial.arm]
            arm.candidates[trial.candidate].hours += outcome.gpu_hours
            verdicts = arm.trial_ended(trial.candidate, trial.id, outcome.state)
            outcome.slim()
            self._judge(verdicts)
        else:
            outcome.slim()
        self._retention.ended(self.outcomes, trial.id)

    def _say_ended(self, outcome: Outcome, ended: Exit | None, total: int) -> None:
        kind = {"paused": "trial_paused", "waiting": ""}.get(outcome.state, "trial_ended")
        if kind:
            self._display.event(
                kind,
                trial=outcome.trial.id,
                state=outcome.state,
                step=outcome.curve.step or 0,
                total=total,
                score=outcome.curve.final_score,
                elapsed_s=outcome.elapsed_s,
                exit_code=ended.code if ended else None,
                reason=outcome.stop.reason if outcome.stop else ended.reason if ended else "",
                detail=outcome.stop.detail if outcome.stop else "",
                root_cause=list(outcome.root_cause),
                folder=str(outcome.folder) if outcome.folder else None,
            )

    def _warn(self, message: str) -> None:
        self._display.event("warning", message=message)

    def _end_all(self) -> None:
        """After an error of ours: leave nothing running, keep what can be kept."""
        self._signals += 1
        for r in self.running:
            r.attempt.kill()
        for r in list(self.running):
            while (ended := r.attempt.poll()) is None:
                time.sleep(POLL_S)
            try:
                self._end(r, ended)
            except (SweeperError, OSError):
                continue  # the records may be what failed; the first error is the one that is shown
        self.running.clear()


def _hours(attempt: Path) -> float:
    """GPU-hours of an attempt of another sweep, by its records."""
    try:
        seconds = float(read_json(attempt / "status.json").get("elapsed_s") or 0.0)
        gang = read_json(attempt / "spec.json")["gang"]
        return seconds * int(gang["nodes"]) * int(gang["gpus_per_node"]) / 3600
    except (SweeperError, KeyError, TypeError, ValueError):
        return 0.0


def _flag(attempt: Path) -> Flag | None:
    """What the guard found of an attempt of another sweep, by its records."""
    try:
        return Flag.of(read_json(attempt / "status.json").get("flagged"))
    except SweeperError:
        return None


def _flagged(outcome: Outcome) -> dict[str, Any]:
    """What records say of a flagged trial."""
    return {"flagged": outcome.flagged.as_dict()} if outcome.flagged else {}


def planned(trial: Trial, fingerprint: str) -> dict[str, Any]:
    """What the ledger says of a planned trial."""
    return {
        "label": trial.label,
        "varied": dict(trial.point.varied),
        "fingerprint": fingerprint,
        "arm": trial.arm,
        "candidate": trial.candidate,
        "seed": trial.seed,
        "params": dict(trial.params),
        "kind": trial.kind,
    }
