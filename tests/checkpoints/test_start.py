"""A checkpoint that a trial is told to start from: whose it is, whether it is as it was written, and that it stays."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from checkpoints_fake import save, steps
from fakes import fake_trial
from records_fake import fake_run

from sweeper import engines
from sweeper.checkpoints import manifest, pins, start
from sweeper.checkpoints.keep import Keep
from sweeper.checkpoints.retention import Retention
from sweeper.engines.base import Progress
from sweeper.errors import SweeperError
from sweeper.lineage.hashes import Hashes
from sweeper.search.outcome import Outcome
from sweeper.trial.ledger import Event
from sweeper.trial.records import SweepFolder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The checkpoint of step 4 of the second attempt of first/000, which has one of step 2 of its first."""
    for attempt in (1, 2):
        fake_run(tmp_path / "runs", "first/000", attempt=attempt)
    folder = tmp_path / "runs/first/trials/000/checkpoints"
    for step, attempt in ((2, 1), (4, 2)):
        save(folder, step)
        manifest.write(folder, step, trial="000", attempt=attempt)
    return folder / "global_step_4"


def test_a_config_names_one_only_where_the_trainer_looks_at_it() -> None:
    trainer = {"resume_mode": "resume_path", "resume_from_path": "/a/global_step_4"}
    assert start.named({"trainer": trainer}) == Path("/a/global_step_4")
    assert start.named({"trainer": {**trainer, "resume_mode": "auto"}}) is None
    assert start.named({"trainer": {**trainer, "resume_from_path": None}}) is None
    assert start.named({"x": 1}) is None


def test_it_is_of_the_attempt_that_wrote_it(run: Path) -> None:
    found = start.origin(run)
    attempt = run.parents[1] / "attempt-2"
    assert found == start.Origin("first", "000", 2, 4, found.digest, attempt / "lineage.json")
    known = manifest.read(run.parent, 4)
    assert known is not None and found.digest == known.digest
    assert start.origin(run.with_name("global_step_2")).attempt == 1
    manifest.path_of(run.parent, 2).unlink()
    unknown = start.origin(run.with_name("global_step_2"))
    assert (unknown.attempt, unknown.digest) == (2, None), "without a manifest its trial's latest"


def test_one_that_was_handed_on_has_its_records_beside_it(run: Path, tmp_path: Path) -> None:
    best = tmp_path / "best"
    (best / "checkpoint").mkdir(parents=True)
    for attempt in ("attempt-1", "attempt-2"):
        shutil.copytree(run.parents[1] / attempt, best / "trials/000" / attempt)
    run.rename(best / "checkpoint/global_step_4")
    found = start.origin(best / "checkpoint/global_step_4")
    assert found == start.Origin("first", "000", 2, 4, None, best / "trials/000/attempt-2/lineage.json")


def test_of_one_from_nowhere_its_folder_is_known(tmp_path: Path) -> None:
    found = start.origin(tmp_path / "global_step_7")
    assert found == start.Origin(str(tmp_path), "global_step_7", None, 7, None, None)


@pytest.mark.parametrize("damage", ["a flipped byte", "cut off", "gone", "the manifest"])
def test_what_is_not_as_it_was_written_is_named(run: Path, tmp_path: Path, damage: str) -> None:
    hashes = Hashes(tmp_path / "hashes.db")
    assert start.wrong(run, hashes) == []
    file = run / "actor/model_world_size_1_rank_0.pt"
    content = file.read_bytes()
    if damage == "a flipped byte":
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        os.utime(file)
    elif damage == "cut off":
        file.write_bytes(content[:-1])
    elif damage == "gone":
        file.unlink()
    else:
        path = manifest.path_of(run.parent, 4)
        path.write_text(path.read_text().replace('"bytes": ', '"bytes": 1'))
        path.write_text(path.read_text().replace(str(len(content)), str(len(content) + 1)))
    said = {
        "a flipped byte": "actor/model_world_size_1_rank_0.pt has other content than was written",
        "cut off": f"has {len(content) - 1} bytes, {len(content)} were written",
        "gone": "actor/model_world_size_1_rank_0.pt is missing",
        "the manifest": "global_step_4.json is damaged",
    }[damage]
    (line,) = start.wrong(run, hashes)
    assert said in line


def test_without_a_manifest_nothing_is_known(tmp_path: Path) -> None:
    assert start.wrong(tmp_path / "global_step_4") == start.wrong(tmp_path / "weights") == []


def test_a_plan_of_many_trials_reads_it_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes, read = Hashes(tmp_path / "hashes.db"), []
    monkeypatch.setattr(hashes, "files", lambda paths: read.append(paths) or [s for _, _, s in known.files])
    known = manifest.read(run.parent, 4)
    assert known is not None
    for _ in range(100):
        assert start.wrong(run, hashes) == []
    assert len(read) == 1


def test_it_is_pinned_once_a_sweep_and_step(run: Path, tmp_path: Path) -> None:
    for store in ("runs", "other"):  # two sweeps of one name
        for _ in range(3):
            start.hold(run, tmp_path / store / "second")
    start.hold(run.with_name("global_step_2"), tmp_path / "runs/second")
    held = pins.pinned(run.parent)
    assert sorted((p.step, p.by) for p in held) == [(2, "sweep second"), (4, "sweep second"), (4, "sweep second")]
    assert {p.why for p in held if p.step == 2} == {f"trials of {tmp_path}/runs/second start from it"}
    (tmp_path / "global_step_9").mkdir()
    start.hold(tmp_path / "global_step_9", tmp_path / "runs/second")
    assert not (tmp_path / "pins").exists(), "what is in no sweep nobody frees"


def test_a_pin_that_comes_while_the_other_sweep_runs_is_seen(tmp_path: Path) -> None:
    """Its controller remembers what trials that are done have left."""
    folder = SweepFolder.create(tmp_path / "runs", "first", [])
    outcomes = {}
    for number, score in ((0, 0.1), (1, 0.9)):
        outcome = Outcome(fake_trial(number), state="finished", attempts=1)
        outcome.curve.add(Progress(1, {}, score=score))
        outcomes[outcome.trial.id] = outcome
        save(folder.checkpoints(outcome.trial.id), 4)
    retention = Retention(Keep(top_k=2), engines.get("verl"), folder, lambda _: [], warn=print)
    retention.ended(outcomes, "000")
    retention._keep = Keep(top_k=1)
    start.hold(folder.checkpoints("000") / "global_step_4", tmp_path / "runs/second")
    retention.ended(outcomes, "001")
    assert steps(folder.checkpoints("000")) == [4]
    (pin,) = pins.pinned(folder.checkpoints("000"))
    pins.unpin(folder.checkpoints("000"), pin.name)
    retention.ended(outcomes, "001")
    assert steps(folder.checkpoints("000")) == []


def test_while_a_sweep_runs_what_somebody_registers_stays_and_a_registry_that_is_away_frees_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry is a fake; tests/tracking/test_lineage.py asks a real one."""
    folder = SweepFolder.create(tmp_path / "runs", "s", [])
    outcome = Outcome(fake_trial(0), state="finished", attempts=1)
    checkpoints = folder.checkpoints("000")
    for step in (2, 4, 6):
        save(checkpoints, step)
    said: list[str] = []
    asked: list[Path] = []

    def away(sweep: Path) -> dict[Path, str]:
        asked.append(sweep)
        raise SweeperError("MLflow does not answer\n  try:   again")

    monkeypatch.setattr("sweeper.tracking.registry.held", away)
    retention = Retention(Keep(last=1), engines.get("verl"), folder, lambda _: [], warn=said.append)
    for _ in range(2):
        retention.ended({"000": outcome}, "000")
    assert steps(checkpoints) == [2, 4, 6]
    assert said == [f"checkpoints are not freed: MLflow does not answer; sweeper gc {folder.typed} shows them"]
    assert asked == [folder.path], "a server that hangs does not hold up every trial's end"

    monkeypatch.setattr("sweeper.checkpoints.retention.AGAIN_S", 0.0)
    again = Retention(Keep(last=1), engines.get("verl"), folder, lambda _: [], warn=said.append)
    again.ended({"000": outcome}, "000")
    held = {(checkpoints / "global_step_2").resolve(): "version 1 of mine (figure-3)"}
    monkeypatch.setattr("sweeper.tracking.registry.held", lambda _sweep: held)
    again.ended({"000": outcome}, "000")
    assert steps(checkpoints) == [2, 6], "once it answers"


def test_while_a_sweep_runs_what_stays_keeps_its_ancestors(tmp_path: Path) -> None:
    folder = SweepFolder.create(tmp_path / "runs", "pbt", [])
    outcomes = {}
    for number in (0, 1):
        outcome = Outcome(fake_trial(number), state="finished", attempts=1)
        outcomes[outcome.trial.id] = outcome
        for step in (2, 4, 6):
            save(folder.checkpoints(outcome.trial.id), step)
    forked = Event(1, 0.0, "trial_forked", "001", None, {"donor": "000", "step": 2, "params": {}})
    events = {0: [forked]}
    retention = Retention(Keep(last=1), engines.get("verl"), folder, lambda seq: events.pop(seq, []), warn=print)
    for trial in ("000", "001"):
        retention.ended(outcomes, trial)
    assert steps(folder.checkpoints("000")) == [2, 6]
    assert steps(folder.checkpoints("001")) == [6]


def test_a_pin_says_who_in_its_file(run: Path, tmp_path: Path) -> None:
    start.hold(run, tmp_path / "runs/second")
    (path,) = (run.parent / "pins").glob("start-*-4.json")
    assert json.loads(path.read_text())["by"] == "sweep second"
