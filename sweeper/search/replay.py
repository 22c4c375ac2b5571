"""Gives a controller its memory back from the ledger, and takes up again what still runs.

Guarantees: a trial that is done is not run again; one that runs is followed again, not started twice; one whose attempt
died is waiting, for its last checkpoint; samplers, schedulers and the counts of failures are in the state that the
recorded events lead to; metrics of trials that are done are not read again, so that thousands take seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.engines.base import Failure, Progress
from sweeper.lineage.record import Donor
from sweeper.search.base import Ask, Stop, Verdict
from sweeper.search.controller import Controller
from sweeper.search.guard import Flag
from sweeper.search.outcome import Outcome
from sweeper.trial.ledger import DONE, Event, Ledger, TrialState, fold
from sweeper.trial.records import AttemptFolder, SweepFolder, attempt_number
from sweeper.trial.spec import Point, Trial


def take_up(
    controller: Controller, ledger: Ledger, folder: SweepFolder, sized: Mapping[str, Trial] | None = None
) -> None:
    """Bring the controller to where the ledger's events end. Before its `run`.

    `sized`: trials that are composed already, by id.

    Raises:
        SweeperError: The records cannot be read or written.
    """
    events = list(ledger.events())
    states = fold(events)
    replay = _Replay(controller, states)
    replay.feed(events)
    replay.resume(ledger, folder, sized or {})
    for arm in controller.arms.values():
        arm.recall()


_GO = Verdict("go")


class _Replay:
    def __init__(self, controller: Controller, states: Mapping[str, TrialState]) -> None:
        self._c, self._states = controller, states
        self._since: dict[str, float] = {}
        """When the latest attempt of a trial was started; Unix time."""
        self._nodes: dict[str, tuple[int, ...]] = {}
        """Where it runs."""
        self._again: dict[str, int] = {}
        """Event by which a trial was last given more steps: what ended before has not ended. Not of those that were
        pruned: more steps do not bring them back."""

    def feed(self, events: Sequence[Event]) -> None:
        """What the arms, the outcomes and the counts learn from the events."""
        self._reopened(events)
        for event in events:
            if event.trial is None:
                continue
            if event.kind == "trial_planned":
                self._planned(event.trial, event.data)
                continue
            outcome = self._c.outcomes.get(event.trial)
            if outcome is None:
                continue
            match event.kind:
                case "trial_reused":
                    outcome.reused = f"{event.data.get('sweep')}/{event.data.get('trial')}"
                    outcome.gpu_hours += float(event.data.get("gpu_hours") or 0.0)
                    outcome.flagged = Flag.of(event.data.get("flagged"))
                    for step, score in (event.data.get("scores") or {}).items():
                        self._score(outcome, int(step), float(score))
                    self._ended(outcome, event)
                case "progress":
                    self._progress(outcome, event.data)
                case "placement_flagged":
                    outcome.flagged = Flag.of(event.data)
                    self._c.guard.told(event.trial)
                case "trial_forked":
                    self._forked(outcome, event.data)
                case "attempt_started":
                    outcome.attempts = event.attempt or 0
                    self._since[event.trial] = event.time
                    self._nodes[event.trial] = tuple(event.data.get("nodes") or (0,))
                    self._afresh(outcome)
                case "attempt_ended" | "trial_retired":
                    self._attempt_ended(outcome, event)

    def _reopened(self, events: Sequence[Event]) -> None:
        pruned: set[str] = set()
        for event in events:
            if event.trial is None:
                continue
            if event.kind == "trial_planned" and event.data.get("again") and event.trial not in pruned:
                self._again[event.trial] = event.seq
            elif event.kind == "trial_retired" or event.data.get("state") == "pruned":
                pruned.add(event.trial)

    def _forked(self, outcome: Outcome, data: Mapping[str, Any]) -> None:
        outcome.forked = True
        if data.get("adopted"):
            outcome.donor = Donor(str(data["donor"]), int(data["step"]))
        self._c.arms[outcome.trial.arm].forked(outcome.trial.candidate, data.get("params") or {})
        self._carried(outcome, "fork")

    def _afresh(self, outcome: Outcome) -> None:
        """A trial that was paused goes on, or one that had failed is tried again."""
        if outcome.trial.kind != "search":
            return
        arm = self._c.arms[outcome.trial.arm]
        candidate = arm.candidates[outcome.trial.candidate]
        if candidate.ended.get(outcome.trial.id) == "failed":
            arm.revive(candidate.id, outcome.trial.id)
        elif self._c.verdicts.get(candidate.id, _GO).action != "stop":
            arm.goes_on(candidate.id)

    def _planned(self, trial: str, data: Mapping[str, Any]) -> None:
        candidate = str(data.get("candidate") or trial)
        arm_id, kind = str(data.get("arm", "0")), str(data.get("kind", "search"))
        made = Trial(
            trial,
            Point((), dict(data.get("varied") or {})),
            {},
            arm=arm_id,
            candidate=candidate,
            seed=data.get("seed"),
            params=dict(data.get("params") or {}),
            kind=kind,
        )
        if trial in self._c.outcomes:  # planned again with more steps
            outcome = self._c.outcomes[trial]
            outcome.fingerprint, outcome.reused = str(data.get("fingerprint", "")), ""
            return
        self._c.outcomes[trial] = Outcome(made, str(data.get("fingerprint", "")))
        arm = self._c.arms[arm_id]
        if kind == "search" and candidate not in arm.candidates:
            refused = tuple(dict(r) for r in data.get("refused") or ())
            self._c.know(arm, arm.remember(Ask(int(data.get("number") or 0), made.params, refused), candidate))

    def _score(self, outcome: Outcome, step: int, score: float) -> None:
        outcome.curve.add(Progress(step, {}, score=score))
        if outcome.trial.kind == "search":
            arm = self._c.arms[outcome.trial.arm]
            self._decided(arm.scored(outcome.trial.candidate, outcome.trial.id, step, score))

    def _progress(self, outcome: Outcome, data: Mapping[str, Any]) -> None:
        step, score, reward = int(data["step"]), data.get("score"), data.get("reward")
        outcome.curve.add(Progress(step, {}, reward=None if reward is None else float(reward)))
        if score is not None:
            self._score(outcome, step, float(score))

    def _decided(self, verdicts: Mapping[str, Verdict]) -> None:
        """What was decided is carried out later, unless the events that follow say that it was."""
        self._c.verdicts.update(verdicts)
        for candidate in verdicts:
            self._c.carried.pop(candidate, None)

    def _carried(self, outcome: Outcome, *actions: str) -> None:
        """The trial has carried out what was decided; when all of its candidate's have, it is done."""
        name = outcome.trial.candidate
        verdict = self._c.verdicts.get(name)
        if verdict is None or verdict.action not in actions:
            return
        candidate = self._c.arms[outcome.trial.arm].candidates[name]
        carried = self._c.carried.setdefault(name, set())
        carried.add(outcome.trial.id)
        if carried >= set(candidate.trials) - set(candidate.ended):
            del self._c.verdicts[name]

    def _attempt_ended(self, outcome: Outcome, event: Event) -> None:
        data = event.data
        outcome.gpu_hours += float(data.get("gpu_hours") or 0.0)
        if data.get("reason") != "not-started":
            outcome.donor = None  # from here on it goes on from its own
        if speed := data.get("tokens_per_s"):
            outcome.speeds = [float(speed)]
        failure = data.get("failure")
        if data.get("state") == "failed":  # it is tried afresh
            self._c.policy.forget(outcome.trial.id)
            outcome.reliefs = 0
        elif failure:
            outcome.failure = str(failure.get("kind", ""))
            told = Failure(outcome.failure, str(failure.get("signature", "")), ())
            decision = self._c.policy.failed(
                outcome.trial.id, told, step=outcome.curve.step, relieve=lambda _times: ({}, "")
            )
            outcome.reliefs += int(decision.config is not None)
        self._ended(outcome, event)

    def _ended(self, outcome: Outcome, event: Event) -> None:
        data, state = event.data, str(event.data.get("state", "finished"))
        if state == "paused":
            self._carried(outcome, "pause")
        elif state in DONE:
            self._carried(outcome, "stop", "pause", "fork")
        if stop := data.get("stop"):
            outcome.stop = Stop(stop["reason"], stop["detail"], stop.get("evidence") or {}, stop.get("step"))
        if outcome.trial.kind != "search" or event.seq < self._again.get(outcome.trial.id, 0):
            return
        arm = self._c.arms[outcome.trial.arm]
        if state in DONE:
            arm.candidates[outcome.trial.candidate].hours += outcome.gpu_hours
        if state in DONE or state == "failed":
            self._decided(arm.trial_ended(outcome.trial.candidate, outcome.trial.id, state, tell=False))

    def resume(self, ledger: Ledger, folder: SweepFolder, sized: Mapping[str, Trial]) -> None:
        """Settle what is done, follow what runs, and queue the rest."""
        for trial_id, outcome in self._c.outcomes.items():
            state = self._states[trial_id]
            outcome.elapsed_s = state.elapsed_s
            outcome.folder = Path(state.folder) if state.folder else None
            if state.state in DONE:
                outcome.state = state.state
                continue
            if state.state == "failed":
                self._afresh(outcome)
            composed = None if outcome.forked else sized.get(trial_id)
            outcome.trial = composed or self._c.sized(outcome)
            if state.state == "running" and self._follow(ledger, folder, outcome, state):
                continue
            if state.state == "paused":
                self._c.pause(outcome)
                continue
            outcome.state, outcome.stop = "waiting", None
            self._c.waiting.append(trial_id)

    def _follow(self, ledger: Ledger, folder: SweepFolder, outcome: Outcome, state: TrialState) -> bool:
        path = Path(state.folder)
        number = attempt_number(path)
        attempt = AttemptFolder(path, number, folder.name, None)
        recorded = -1 if state.last_step is None else state.last_step
        if self._c.reattach(outcome, attempt, self._since[state.id], recorded, self._nodes[state.id]):
            outcome.donor = None
            return True
        attempt.write_status("stopped", reason="not-started")
        self._c.record_end(outcome, attempt, state="stopped", reason="not-started")
        ended = {"state": "waiting", "reason": "not-started"}
        ledger.append("attempt_ended", trial=state.id, attempt=number, data=ended)
        return False
