"""A grid that is gone on with: what its ledger has planned is not planned again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sweeper import app, engines, execute
from sweeper.config.compose import Composer
from sweeper.config.hydra_app import initialized
from sweeper.plan.plan import Plan, make
from sweeper.search.controller import planned
from sweeper.search.request import grid
from sweeper.trial.identity import fingerprint
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import SweepFolder

TYPED = ["algorithm=grpo,ppo", "search=grid", "search.seeds=2", "lr=choice(1e-5,1e-4,1e-3)", "kl=choice(0,1e-3)"]


@pytest.fixture(autouse=True, scope="module")
def _hydra() -> Iterator[None]:
    with initialized():
        yield


@pytest.fixture
def plan() -> Plan:
    return make(TYPED)


def line(store: Path, *typed: str) -> list[str]:
    return [*(typed or TYPED), f"store={store}", "name=s"]


def written(store: Path, plan: Plan, trials: int | None = None) -> SweepFolder:
    """A sweep whose controller died after it had planned so many trials."""
    folder = SweepFolder.create(store, "s", TYPED)
    events: list[tuple[str, str | None, dict[str, Any]]] = [("sweep_started", None, execute._started(plan))]
    events += [("trial_planned", t.id, planned(t, fingerprint(dict(t.config)))) for t in plan.trials[:trials]]
    with contextlib.closing(Ledger.open(folder.path / "ledger.db", create=True)) as ledger:
        ledger.append_all(events)
    return folder


def test_only_what_is_run_again_is_composed(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path, plan)
    composed: list[object] = []
    compose = Composer.compose
    monkeypatch.setattr(Composer, "compose", lambda self, point: composed.append(point) or compose(self, point))
    again = make(line(tmp_path), grid(line(tmp_path)))
    assert len(composed) < len(plan.trials)
    assert again.sized == ()
    assert [arm.budget for arm in again.arms] == [arm.budget for arm in plan.arms] == [6, 6]
    assert again.total == plan.total == 24
    ids = [[p.candidate_id(arm, n) for arm in (0, 1) for n in range(6)] for p in (again, plan)]
    assert ids[0] == ids[1]
    # It is the same request, and a trial that is run again is the very one that was planned.
    with contextlib.closing(Ledger.open(folder.path / "ledger.db", create=False)) as ledger:
        execute._same_request(ledger, again, engines.get("verl"), folder)
    last = plan.trials[-1]
    made = again.arms[1].sized(last.params, seed=last.seed, candidate=last.candidate, trial_id=last.id)
    assert fingerprint(dict(made.trial.config)) == fingerprint(dict(last.config))
    assert made.trial.point.varied == last.point.varied


def test_a_grid_whose_arms_were_trained_once_is_the_same_request(tmp_path: Path) -> None:
    typed = ["algorithm=grpo,ppo", "critic.optim.lr=1e-4,1e-3", "search=grid", "lr=choice(1e-5,1e-4)"]
    first = make(typed)
    folder = SweepFolder.create(tmp_path, "s", typed)
    events: list[tuple[str, str | None, dict[str, Any]]] = [("sweep_started", None, execute._started(first))]
    events += [("trial_planned", t.id, planned(t, fingerprint(dict(t.config)))) for t in first.trials]
    with contextlib.closing(Ledger.open(folder.path / "ledger.db", create=True)) as ledger:
        ledger.append_all(events)
        again = make(line(tmp_path, *typed), grid(line(tmp_path, *typed)))
        execute._same_request(ledger, again, engines.get("verl"), folder)
    assert again.sized == () and again.total == first.total == 6
    assert [(arm.id, arm.label) for arm in again.arms] == [(arm.id, arm.label) for arm in first.arms]


@pytest.mark.parametrize(
    "typed",
    [
        [*TYPED[:-1], "kl=choice(0,1e-2)"],
        [*TYPED, "search.trials=3"],
        [*TYPED, "trainer.total_training_steps=40"],
        TYPED[:3] + TYPED[4:],
    ],
)
def test_another_request_is_planned_anew(tmp_path: Path, plan: Plan, typed: Sequence[str]) -> None:
    written(tmp_path, plan)
    assert grid(line(tmp_path))
    assert grid(line(tmp_path, *typed)) == {}


def test_what_the_first_controller_did_not_get_to_record_is_planned_anew(tmp_path: Path, plan: Plan) -> None:
    written(tmp_path, plan, trials=len(plan.trials) - 2)
    assert grid(line(tmp_path)) == {}
    assert grid(line(tmp_path / "nowhere")) == {}


def test_a_grid_whose_points_cannot_run_any_more_is_planned_anew(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, plan)
    known = grid(line(tmp_path))
    broken = [*TYPED, "search.constraints=['lr > 1']"]
    with pytest.raises(Exception, match="can run"):
        make(broken, known)


@pytest.mark.parametrize(
    ("changed", "said"),
    [("lr=choice(1e-5,1e-4)", "lr: choice(1e-05, 0.0001, 0.001) -> choice(1e-05, 0.0001)"), ("nope=1", "unknown key")],
    ids=["another request", "no request"],
)
def test_a_resume_that_is_refused_says_once_what_was_asked_for_before(
    tmp_path: Path, plan: Plan, capsys: pytest.CaptureFixture[str], changed: str, said: str
) -> None:
    written(tmp_path, plan)
    typed = line(tmp_path)
    assert app.run([*(t for t in typed if not t.startswith("lr=")), changed], resume=True, before=typed) == 2
    shown = capsys.readouterr().err
    assert shown.count("this is not the request that s was started with") == 1
    assert said in shown
