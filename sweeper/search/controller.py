"""Runs the trials of a plan: starts each when its gang fits, follows it, records it, ends with nothing left running.

Guarantees: the controller is the only writer of the ledger and of the tracker; an attempt's end is recorded only when
no process of it remains; a first SIGINT or SIGTERM stops gently (attempts end, everything stays resumable), a second
ends now; a trial that fails never stops another; an error of the records stops the sweep, a tracker's never does.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from sweeper.clusters.base import Attempt, Cluster, Exit
from sweeper.engines.base import AttemptPaths, Engine, Gang, Job, Progress
from sweeper.errors import SweeperError
from sweeper.report.events import Display
from sweeper.search.history import Curve
from sweeper.tracking.base import Tracker
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import AttemptFolder, SweepFolder, Tail
from sweeper.trial.spec import Trial

POLL_S = 0.1
"""Between two looks at the running attempts. Metrics arrive at most every few hundred milliseconds."""


MILESTONE = 10
"""Steps between two entries of the ledger beside the validated ones: enough for a status, few enough for a ledger."""


@dataclass(slots=True)
class Outcome:
    """How one trial ended."""

    trial: Trial
    state: str = "waiting"
    """`finished`, `failed`, `stopped`, or `waiting` when it never started."""
    curve: Curve = field(default_factory=Curve)
    elapsed_s: float = 0.0
    root_cause: tuple[str, ...] = ()
    folder: Path | None = None
    run_id: str | None = None
    reused: bool = False


@dataclass(slots=True)
class _Running:
    outcome: Outcome
    job: Job
    attempt: Attempt
    folder: AttemptFolder
    tail: Tail
    number: int
    started: float
    steps_s: list[float] = field(default_factory=list)


class Controller:
    """One sweep, from its first attempt to its last."""

    def __init__(
        self,
        *,
        trials: Sequence[Trial],
        gangs: Mapping[str, Gang],
        engine: Engine,
        cluster: Cluster,
        folder: SweepFolder,
        ledger: Ledger,
        tracker: Tracker,
        display: Display,
        facts: Callable[[Trial], tuple[dict[str, Any], dict[str, Any]]],
        max_concurrent: int | None = None,
        mode: str = "max",
    ) -> None:
        """`gangs` by trial id; `facts` gives the parameters and tags of a trial for the tracker; `mode` says whether
        the best score is the max or the min."""
        self._engine, self._cluster, self._folder = engine, cluster, folder
        self._ledger, self._tracker, self._display, self._facts = ledger, tracker, display, facts
        self._limit, self._mode = max_concurrent or len(trials), mode
        self._waiting, self._gangs = list(trials), gangs
        self._running: list[_Running] = []
        self.outcomes = {t.id: Outcome(t) for t in trials}
        self._signals = 0

    def run(self) -> dict[str, Outcome]:
        """Run to the end, or until stopped; returns the outcome of every trial by id.

        Raises:
            SweeperError: The records cannot be written, or a trial needs more than the whole cluster has.
        """
        with _Signals(self._on_signal):
            try:
                self._settle()
                self._reuse()
                while self._running or (self._waiting and not self._signals):
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

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        for r in self._running:
            if self._signals == 1:
                r.attempt.stop()
            else:
                r.attempt.kill()

    def _settle(self) -> None:
        """Attempts whose controller died have ended with it; their records say so from now on."""
        for trial, state in self._ledger.trials().items():
            if state.state != "running":
                continue
            if path := self._folder.latest_attempt(trial):
                number = int(path.name.rpartition("-")[2])
                AttemptFolder(path, number, self._folder.name, None).write_status("stopped", reason="controller-gone")
            ended = {"state": "stopped", "reason": "controller-gone"}
            self._ledger.append("attempt_ended", trial=trial, attempt=state.attempts, data=ended)

    def _reuse(self) -> None:
        """Trials that the ledger says are finished are not run again."""
        done = {t: s for t, s in self._ledger.trials().items() if s.state == "finished"}
        for trial in [t for t in self._waiting if t.id in done]:
            self._waiting.remove(trial)
            outcome, state = self.outcomes[trial.id], done[trial.id]
            outcome.state, outcome.reused = "finished", True
            outcome.folder = self._folder.latest_attempt(trial.id)
            for attempt in self._folder.attempts(trial.id):
                self._read_curve(outcome, attempt)
            self._display.event("trial_reused", trial=trial.id, score=state.final_score)

    def _read_curve(self, outcome: Outcome, folder: Path) -> None:
        for line in Tail(folder / "metrics.jsonl").read():
            progress = self._engine.progress(line, dict(outcome.trial.config))
            if progress:
                outcome.curve.add(progress)

    def _start(self) -> None:
        """Start what fits, in order; a small trial may pass a large one that does not fit yet."""
        refused: set[Gang] = set()  # thousands may wait, of a few sizes
        for trial in list(self._waiting):
            if self._signals or len(self._running) >= self._limit:
                return
            gang = self._gangs[trial.id]
            if gang in refused:
                continue
            if self._cluster.fits(gang, [r.job.gang for r in self._running]):
                self._waiting.remove(trial)
                self._launch(trial)
            elif not self._running:
                have = f"{self._cluster.shape.name} has {self._cluster.shape.gpus}"
                raise SweeperError(f"trial {trial.id} needs {gang.gpus} ranks at once, and all of {have}")
            else:
                refused.add(gang)

    def _launch(self, trial: Trial) -> None:
        folder = self._folder.new_attempt(trial.id)
        paths = AttemptPaths(folder=folder.path, checkpoints=self._folder.checkpoints(trial.id))
        job = self._engine.job(dict(trial.config), paths)
        outcome = self.outcomes[trial.id]
        outcome.state, outcome.folder = "starting", folder.path
        for earlier in self._folder.attempts(trial.id)[:-1]:
            self._read_curve(outcome, earlier)
        params, tags = self._facts(trial)
        folder.write_spec(trial, job, tags)
        self._ledger.append("attempt_started", trial=trial.id, attempt=folder.number, data={"folder": str(folder.path)})
        attempt = self._cluster.start(job, folder.path)
        # From here on it must be stopped and recorded, whatever happens to what follows.
        self._running.append(
            _Running(outcome, job, attempt, folder, Tail(folder.path / job.metrics), folder.number, time.time())
        )
        if self._signals:
            attempt.stop()  # the signal came while it was started
        folder.write_status("starting")
        self._tracker.trial_started(
            trial.id,
            trial.label,
            params,
            {**tags, "attempt": str(folder.number)},
            [folder.path / name for name in ("spec.json", *job.files) if (folder.path / name).exists()],
        )
        self._display.event(
            "trial_started",
            trial=trial.id,
            label=trial.label,
            attempt=folder.number,
            total=job.total_steps,
            folder=str(folder.path),
        )

    def _follow(self) -> None:
        for r in list(self._running):
            ended = r.attempt.poll()  # before the last read, so that no line is missed
            for line in r.tail.read():
                progress = self._engine.progress(line, dict(r.outcome.trial.config))
                if progress:
                    self._progress(r, progress)
            if ended:
                self._running.remove(r)
                self._end(r, ended)

    def _progress(self, r: _Running, p: Progress) -> None:
        outcome = r.outcome
        if outcome.state != "running":
            outcome.state = "running"
            r.folder.write_status("running")
        outcome.curve.add(p)
        if p.step_s:
            r.steps_s = [*r.steps_s[-19:], p.step_s]
        self._tracker.metrics(outcome.trial.id, p.step, p.metrics, time.time())
        if p.score is not None or p.step % MILESTONE == 0:
            self._ledger.append(
                "progress",
                trial=outcome.trial.id,
                attempt=r.number,
                data={"step": p.step, "score": p.score, "reward": p.reward},
            )
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

    def _end(self, r: _Running, ended: Exit) -> None:
        outcome, curve = r.outcome, r.outcome.curve
        outcome.elapsed_s = time.time() - r.started
        # A trainer that ends well before its last step has not done what was asked.
        complete = (
            ended.reason == "exit" and ended.code == 0 and curve.step is not None and curve.step >= r.job.total_steps
        )
        outcome.state = (
            "finished"
            if complete
            else "stopped"
            if self._signals or ended.reason in ("stopped", "controller-gone")
            else "failed"
        )
        if outcome.state == "failed":
            outcome.root_cause = tuple(self._explain(r, ended))
        summary = curve.summary(self._mode)
        r.folder.write_status(
            outcome.state,
            exit_code=ended.code,
            reason=ended.reason,
            detail=ended.detail,
            root_cause=outcome.root_cause,
            elapsed_s=round(outcome.elapsed_s, 3),
            total_steps=r.job.total_steps,
            **summary,
        )
        self._ledger.append(
            "attempt_ended",
            trial=outcome.trial.id,
            attempt=r.number,
            data={"state": outcome.state, "exit_code": ended.code, "reason": ended.reason, **summary},
        )
        self._tracker.trial_ended(
            outcome.trial.id,
            outcome.state,
            {k: v for k, v in summary.items() if v is not None},
            [p for n in ("status.json", r.job.metrics, "log.txt") if (p := r.folder.path / n).exists()],
        )
        self._display.event(
            "trial_ended",
            trial=outcome.trial.id,
            state=outcome.state,
            step=curve.step or 0,
            total=r.job.total_steps,
            score=curve.final_score,
            elapsed_s=outcome.elapsed_s,
            exit_code=ended.code,
            reason=ended.reason,
            root_cause=list(outcome.root_cause),
            folder=str(r.folder.path),
        )

    def _explain(self, r: _Running, ended: Exit) -> list[str]:
        lines = [ended.detail] if ended.detail else []
        log = r.folder.path / "log.txt"
        if log.exists():
            lines += self._engine.root_cause(log.read_text(errors="replace")[-2_000_000:])
        if ended.code == 0:
            step = r.outcome.curve.step
            at = "without a single step" if step is None else f"at step {step} of {r.job.total_steps}"
            return [f"the trainer ended {at} (its log: {log})", *lines]
        return lines or [f"the trainer ended with code {ended.code} and said nothing (its log: {log})"]

    def _end_all(self) -> None:
        """After an error of ours: leave nothing running, keep what can be kept."""
        for r in self._running:
            r.attempt.kill()
        for r in self._running:
            while (ended := r.attempt.poll()) is None:
                time.sleep(POLL_S)
            try:
                self._end(r, ended)
            except (SweeperError, OSError):
                continue  # the records may be what failed; the first error is the one that is shown
        self._running.clear()


class _Signals(AbstractContextManager[None]):
    """SIGINT and SIGTERM call the handler; the handlers before it come back at the end."""

    def __init__(self, handler: Callable[[int, FrameType | None], None]) -> None:
        self._handler = handler
        self._old: Mapping[int, Any] = {}

    def __enter__(self) -> None:
        self._old = {n: signal.signal(n, self._handler) for n in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_exc: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
