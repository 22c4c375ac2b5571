"""The record of every attempt: whole before it starts, completed at its end, and never the reason why a sweep ends.

Engine, cluster and tracker are fakes; recorder, records, ledger and git are real."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeArm, FakeCluster, FakeDisplay, FakeEngine, FakeTracker, fake_size, fake_trial
from records_fake import fake_input

from sweeper.checkpoints import manifest, pins
from sweeper.clusters.base import Exit
from sweeper.engines.base import Job
from sweeper.errors import RequestError
from sweeper.lineage import code, document, environment, inputs, record
from sweeper.lineage.hashes import Hashes
from sweeper.lineage.record import Donor, Recorder
from sweeper.search import controller as module
from sweeper.search import replay
from sweeper.search.base import Fork, Verdict
from sweeper.search.controller import Controller, Settings
from sweeper.tracking.lineage import tags
from sweeper.trial.identity import fingerprint, fingerprint_of
from sweeper.trial.index import Index
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import RecordsError, SweepFolder
from sweeper.trial.spec import Trial

STOP = {"nan": True, "patience": 2}
FAILURES = {"retries": 1, "same": 3, "stalled": 20, "stalled_min_s": 600, "first_step_s": 3600}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.001)
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """The user's code, with one commit and one change that is not in it."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "train.py").write_text("print(1)\n")
    for line in ("init -q", "add -A", "-c user.name=n -c user.email=e commit -q -m x"):
        subprocess.run(["git", "-C", str(folder), *line.split()], check=True)
    (folder / "train.py").write_text("print(2)\n")
    return folder


class LookingCluster(FakeCluster):
    """Remembers the record that each attempt had when it was started."""

    def __init__(self, ranks: int) -> None:
        super().__init__(ranks)
        self.found: dict[str, dict[str, Any]] = {}

    def start(self, job: Job, folder: Path, nodes: tuple[int, ...]) -> Any:
        self.found[f"{folder.parent.name}/{folder.name}"] = document.read(folder)
        return super().start(job, folder, nodes)


class Bench:
    """A sweep of fake trials with a recorder; a second one of the same name goes on with it."""

    def __init__(
        self,
        store: Path,
        trials: list[Trial],
        repo: Path,
        *,
        name: str = "s",
        arm: FakeArm | None = None,
        cluster: FakeCluster | None = None,
        **options: Any,
    ) -> None:
        existing = (store / name).exists()
        self.folder = SweepFolder.existing(store, name) if existing else SweepFolder.create(store, name, [])
        self.ledger = Ledger.open(self.folder.path / "ledger.db", create=not existing)
        self.cluster = cluster or LookingCluster(2)
        self.tracker, self.display, self.engine = FakeTracker(), FakeDisplay(), FakeEngine()
        self.recorder = Recorder(
            self.engine,  # type: ignore[arg-type]
            warn=lambda text: self.display.event("warning", message=text),
            root=repo,
            **options,
        )
        arm = arm or FakeArm(trials)
        self.controller = Controller(
            arms=[arm.search()],
            size=fake_size(arm.trials),
            engine=self.engine,  # type: ignore[arg-type]
            cluster=self.cluster,
            folder=self.folder,
            ledger=self.ledger,
            tracker=self.tracker,  # type: ignore[arg-type]
            display=self.display,
            facts=lambda o: ({}, {}),
            fingerprint=lambda t: fingerprint({k: v for k, v in t.config.items() if k not in ("hold", "steps")}),
            settings=Settings(stop=STOP, failures=FAILURES),
            index=None if self.recorder.reproduces else Index(store, besides=name),
            recorder=self.recorder,
        )
        if existing:
            replay.take_up(self.controller, self.ledger, self.folder)

    def run(self) -> dict[str, Any]:
        try:
            return {t: o.state for t, o in self.controller.run().items()}
        finally:
            self.ledger.close()

    def record(self, trial: str = "000", attempt: int = 1) -> dict[str, Any]:
        return document.read(self.folder.trial(trial) / f"attempt-{attempt}")

    @property
    def warnings(self) -> list[str]:
        return [str(e["message"]) for e in self.display.of("warning")]


# --- before and after ---


def test_the_record_is_whole_before_the_start_and_completed_at_the_end(tmp_path: Path, repo: Path) -> None:
    bench = Bench(tmp_path / "runs", [fake_trial(0), fake_trial(1, code=1, steps=3)], repo)
    assert bench.run() == {"000": "finished", "001": "failed"}
    start = bench.cluster.found["000/attempt-1"]  # type: ignore[attr-defined]
    assert start["result"] is None
    assert start["times"]["started"] is None
    end = bench.record()
    assert {k: v for k, v in end.items() if k not in ("result", "times")} == {
        k: v for k, v in start.items() if k not in ("result", "times")
    }
    assert end["times"]["created"] == start["times"]["created"]
    assert end["times"]["started"] <= end["times"]["ended"]
    result = end["result"]
    assert (result["state"], result["exit_code"], result["score"], result["step"]) == ("finished", 0, 0.4, 4)
    assert result["elapsed_s"] >= 0
    assert (end["run"]["trial"], end["run"]["attempt"], end["run"]["sweep"]) == ("000", 1, "s")
    assert Path(end["run"]["folder"]) == bench.folder.trial("000") / "attempt-1"
    failed = bench.record("001", 1)["result"]
    assert failed["exit_code"] == 1
    assert failed["root_cause"] == ["ValueError: planted"]
    assert failed["state"] in ("failed", "stopped")
    assert bench.warnings == []


def test_record_and_patch_are_the_trackers_at_the_start_and_at_the_end(tmp_path: Path, repo: Path) -> None:
    bench = Bench(tmp_path / "runs", [fake_trial(0)], repo)
    bench.run()
    for call in (bench.tracker.of("trial_started")[0][-1], bench.tracker.of("trial_ended")[0][-1]):
        assert {"lineage.json", "code.patch"} <= {p.name for p in call}
    end = bench.record()
    patch = bench.folder.trial("000") / "attempt-1" / "code.patch"
    assert hashlib.sha256(patch.read_bytes()).hexdigest() == end["code"]["patch"]["sha256"]
    assert patch.stat().st_size == end["code"]["patch"]["bytes"]
    assert end["code"]["dirty"]


def test_a_patch_is_kept_once_a_sweep(tmp_path: Path, repo: Path) -> None:
    bench = Bench(tmp_path / "runs", [fake_trial(i) for i in range(3)], repo)
    bench.run()
    files = [bench.folder.trial(f"00{i}") / "attempt-1" / "code.patch" for i in range(3)]
    assert len({f.stat().st_ino for f in files}) == 1
    assert len(list((bench.folder.path / "patches").iterdir())) == 1


def test_a_clean_tree_leaves_no_patch(tmp_path: Path, repo: Path) -> None:
    (repo / "train.py").write_text("print(1)\n")
    bench = Bench(repo / "runs", [fake_trial(0)], repo, exclude=[repo / "runs"])
    bench.run()
    assert bench.record()["code"]["patch"] is None
    assert not bench.record()["code"]["dirty"], "the sweep's own files are no code"
    assert not (bench.folder.trial("000") / "attempt-1" / "code.patch").exists()


# --- parents ---


def with_manifest(engine: FakeEngine) -> None:
    """Each saved step of the fake gets a folder and a manifest as a real one's has, when it is looked at."""
    plain = engine.checkpoint

    def checkpoint(folder: Path, step: int | None = None) -> Any:
        saved = plain(folder, step)
        if saved is not None and manifest.read(folder, saved.step) is None:
            at = folder / manifest.name_of(saved.step)
            at.mkdir()
            (at / "weights").write_text(folder.parent.name)
            manifest.write(folder, saved.step, trial=folder.parent.name, attempt=1)
        return saved

    engine.checkpoint = checkpoint  # type: ignore[method-assign]


def test_a_later_attempt_names_the_one_before_and_the_checkpoint_that_it_goes_on_from(
    tmp_path: Path, repo: Path
) -> None:
    bench = Bench(tmp_path / "runs", [fake_trial(0, code=["lost", 0], steps=5)], repo)
    with_manifest(bench.engine)
    bench.cluster.start = _failing_early(bench.cluster)  # type: ignore[method-assign]
    assert bench.run() == {"000": "finished"}
    (parent,) = bench.record("000", 2)["parents"]
    saved = manifest.read(bench.folder.checkpoints("000"), 4)
    assert saved is not None
    assert parent == {
        "relation": "previous-attempt",
        "sweep": "s",
        "trial": "000",
        "attempt": 1,
        "step": 4,
        "checkpoint": saved.digest,
        "lineage": str(bench.folder.trial("000") / "attempt-1" / "lineage.json"),
    }
    assert bench.record("000", 1)["parents"] == []


def test_an_attempt_that_goes_on_with_other_data_says_so(
    tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path / "runs", [fake_trial(0, code=["lost", 0], steps=5)], repo)
    with_manifest(bench.engine)
    bench.cluster.start = _failing_early(bench.cluster)  # type: ignore[method-assign]
    given = iter("ab")
    monkeypatch.setattr(record.inputs, "of", lambda *_, **__: [fake_input("train", "/data/x", sha256=next(given) * 64)])
    assert bench.run() == {"000": "finished"}
    (said,) = [w for w in bench.warnings if "trained on" in w]
    assert "000 goes on from what attempt-1 was trained on, but the content of its train input has changed" in said
    assert "a" * 12 in said and "b" * 12 in said


def _failing_early(cluster: FakeCluster) -> Any:
    """The first attempt ends a step before its last."""
    plain = cluster.start

    def start(job: Job, folder: Path, nodes: tuple[int, ...]) -> Any:
        attempt = plain(job, folder, nodes)
        if folder.name == "attempt-1" and attempt is not None:
            attempt._does["short"] = True
        return attempt

    return start


def test_a_fork_names_its_donor_and_the_checkpoint(tmp_path: Path, repo: Path) -> None:
    fork = Verdict("fork", "worst quarter", fork=Fork("000", {"bonus": 9.0}))
    trials = [fake_trial(0, params={"bonus": 1.0}), fake_trial(1, params={"bonus": 0.0}, hold=True)]
    bench = Bench(tmp_path / "runs", [], repo, arm=FakeArm(trials, scheduler=Forks(fork)), cluster=LookingCluster(1))
    with_manifest(bench.engine)
    original = bench.engine.job
    bench.engine.job = lambda c, p: original({**c, "hold": c["hold"] and p.folder.name == "attempt-1"}, p)  # type: ignore[method-assign]
    assert bench.run() == {"000": "finished", "001": "finished"}
    parents = {p["relation"]: p for p in bench.record("001", 2)["parents"]}
    donor = manifest.read(bench.folder.checkpoints("000"), 4)
    assert donor is not None
    assert parents["forked-from"]["trial"] == "000"
    assert (parents["forked-from"]["step"], parents["forked-from"]["checkpoint"]) == (4, donor.digest)
    assert parents["forked-from"]["lineage"].endswith("trials/000/attempt-1/lineage.json")
    assert (parents["previous-attempt"]["trial"], parents["previous-attempt"]["step"]) == ("001", None)
    assert bench.record("001", 2)["identity"]["bonus"] == 9, "the values that it goes on with"


class Forks:
    """A fake scheduler that forks 001 once."""

    def __init__(self, fork: Verdict) -> None:
        self._fork: Verdict | None = fork

    def added(self, candidate: str, params: Any) -> None: ...

    def result(self, candidate: str, step: int, score: float) -> dict[str, Verdict]:
        if (candidate, step) == ("001", 2) and self._fork:
            fork, self._fork = self._fork, None
            return {"001": fork}
        return {}

    def ended(self, candidate: str) -> dict[str, Verdict]:
        return {}

    def closed(self) -> dict[str, Verdict]:
        return {}

    def resumable(self, paused: Any) -> list[str]:
        return []


def test_a_fork_is_known_after_the_controllers_death(tmp_path: Path, repo: Path) -> None:
    trials = [fake_trial(0, params={"bonus": 1.0}), fake_trial(1, params={"bonus": 0.0})]
    first = Bench(tmp_path / "runs", trials, repo)
    while first.controller._propose():
        pass
    forked = {"donor": "000", "adopted": True, "step": 4, "params": {"bonus": 1.5}}
    first.ledger.append("trial_forked", trial="001", data=forked)
    first.ledger.close()  # killed here
    again = Bench(tmp_path / "runs", trials, repo)
    assert again.controller.outcomes["001"].donor == Donor("000", 4)
    folder = again.folder.new_attempt("001").path
    again.ledger.append("attempt_started", trial="001", attempt=1, data={"folder": str(folder)})
    again.ledger.close()
    third = Bench(tmp_path / "runs", trials, repo)
    assert third.controller.outcomes["001"].donor == Donor("000", 4), "killed before that attempt was started"
    third.ledger.append("attempt_started", trial="001", attempt=2, data={"folder": str(folder)})
    third.ledger.append("attempt_ended", trial="001", attempt=2, data={"state": "waiting", "reason": "lost"})
    third.ledger.close()
    assert Bench(tmp_path / "runs", trials, repo).controller.outcomes["001"].donor is None, "it has begun with it"


def test_a_checkpoint_that_a_trial_is_told_to_start_from_is_its_parent(tmp_path: Path, repo: Path) -> None:
    first = Bench(tmp_path / "runs", [fake_trial(0)], repo, name="first")
    first.run()
    folder = first.folder.checkpoints("000")
    (folder / "global_step_4").mkdir(parents=True)
    (folder / "global_step_4/weights").write_text("4")
    written = manifest.write(folder, 4, trial="000", attempt=1)
    assert written is not None
    trainer = {"resume_mode": "resume_path", "resume_from_path": str(folder / "global_step_4")}
    second = Bench(tmp_path / "runs", [fake_trial(0, trainer=trainer), fake_trial(1, trainer=trainer)], repo)
    second.run()
    parent = {
        "relation": "started-from",
        "sweep": "first",
        "trial": "000",
        "attempt": 1,
        "step": 4,
        "checkpoint": written.digest,
        "lineage": str(first.folder.trial("000") / "attempt-1/lineage.json"),
    }
    assert second.record("000")["parents"] == second.record("001")["parents"] == [parent]
    assert [(p.step, p.by) for p in pins.pinned(folder)] == [(4, "sweep s")], "and gc knows"
    assert second.warnings == []
    said = tags(second.record())["sweeper.parent"]
    assert said == "started-from first/000/1@4"


def test_a_start_that_cannot_be_pinned_is_said_once(
    tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins, "write_json", no_space)
    first = Bench(tmp_path / "runs", [fake_trial(0)], repo, name="first")
    first.run()
    checkpoint = first.folder.checkpoints("000") / "global_step_4"
    checkpoint.mkdir(parents=True)
    trainer = {"resume_mode": "resume_path", "resume_from_path": str(checkpoint)}
    second = Bench(tmp_path / "runs", [fake_trial(0, trainer=trainer), fake_trial(1, trainer=trainer)], repo)
    assert second.run() == {"000": "finished", "001": "finished"}
    (said,) = second.warnings
    assert f"{checkpoint} may be freed while s starts from it" in said


def no_space(*_: Any) -> None:
    raise RecordsError("the disk is full")


def test_what_is_extended_says_so(tmp_path: Path, repo: Path) -> None:
    first = Bench(tmp_path / "runs", [fake_trial(0, steps=2)], repo)
    first.run()
    second = Bench(tmp_path / "runs", [fake_trial(0, steps=4)], repo)
    second.ledger.append("trial_planned", trial="000", data={"fingerprint": "x", "candidate": "000", "again": True})
    second.ledger.close()
    third = Bench(tmp_path / "runs", [fake_trial(0, steps=4)], repo)
    assert third.run() == {"000": "finished"}
    assert [(p["relation"], p["step"]) for p in third.record("000", 2)["parents"]] == [("extends", 2)]


def test_what_reproduces_a_run_is_linked_to_it_and_never_reused(tmp_path: Path, repo: Path) -> None:
    first = Bench(tmp_path / "runs", [fake_trial(0)], repo)
    first.run()
    path = first.folder.trial("000") / "attempt-1" / "lineage.json"
    again = Bench(tmp_path / "runs", [fake_trial(0)], repo, name="again", reproduces=path)
    again.run()
    assert again.cluster.started == ["000"]
    assert again.record()["parents"] == [
        {
            "relation": "reproduces",
            "sweep": "s",
            "trial": "000",
            "attempt": 1,
            "step": None,
            "checkpoint": None,
            "lineage": str(path),
        }
    ]
    with pytest.raises(RequestError, match="no lineage record"):
        Bench(tmp_path / "runs", [], repo, name="other", reproduces=tmp_path / "gone.json")


def test_the_checkpoints_of_an_attempt_are_its_own(tmp_path: Path, repo: Path) -> None:
    bench = Bench(tmp_path / "runs", [fake_trial(0)], repo)
    bench.run()
    checkpoints = bench.folder.checkpoints("000")
    for step, attempt in ((2, 1), (4, 1), (6, 2)):
        (checkpoints / manifest.name_of(step)).mkdir()
        (checkpoints / manifest.name_of(step) / "weights").write_text(str(step))
        manifest.write(checkpoints, step, trial="000", attempt=attempt)
    folder = bench.folder.attempts("000")[0]
    bench.recorder.ended(module.AttemptFolder(folder, 1, "s", None), checkpoints, {"state": "finished"})
    listed = bench.record()["checkpoints"]
    assert [(c["step"], c["files"], c["bytes"]) for c in listed] == [(2, 1, 1), (4, 1, 1)]
    assert listed[0]["path"] == str(checkpoints / "global_step_2")


def fake_gang(attempt: Path, names: list[str], told: dict[int, dict[str, Any]]) -> None:
    """What a gang's launcher and nodes leave in an attempt's folder (clusters/gangs.py, clusters/gang/node.py)."""
    (attempt / "gang").mkdir(parents=True, exist_ok=True)
    nodes = [{"name": name, "address": "10.0.0.1"} for name in names]
    (attempt / "gang/gang.json").write_text(json.dumps({"version": 1, "nodes": nodes}))
    for rank, about in told.items():
        (attempt / f"gang/{rank}.json").write_text(json.dumps(about))
        (attempt / f"gang/{rank}.exit.json").write_text(json.dumps({"code": 0, "reason": "exit"}))
    (attempt / "gang/link.json").write_text(json.dumps({"host": "10.0.0.1", "port": 1}))


@pytest.mark.parametrize(
    ("names", "told", "hosts"),
    [
        (["", "", ""], {0: {"host": "node07"}, 1: {"host": "node03"}, 2: {"host": "node07"}}, ["node07", "node03"]),
        (["a", "b"], {1: {"host": "b.example.org"}}, ["a", "b.example.org"]),
        (["a", "b"], {}, ["a", "b"]),
        (["", ""], {0: {"boot": "x"}}, None),
        ([f"n{i}" for i in range(11)], {10: {"host": "last"}}, [*(f"n{i}" for i in range(10)), "last"]),
    ],
)
def test_the_hosts_are_those_of_the_gang(
    tmp_path: Path, repo: Path, names: list[str], told: dict[int, dict[str, Any]], hosts: list[str] | None
) -> None:
    """Not that of the controller, which may be a login node."""

    class Gangs(LookingCluster):
        def start(self, job: Job, folder: Path, nodes: tuple[int, ...]) -> Any:
            fake_gang(folder, names, told)
            return super().start(job, folder, nodes)

    bench = Bench(tmp_path / "runs", [fake_trial(0)], repo, cluster=Gangs(2))
    bench.run()
    assert bench.record()["hosts"] == (hosts or [socket.gethostname()])


def test_the_machines_of_a_gang_are_in_the_environment(tmp_path: Path, repo: Path) -> None:
    machines = [{"cpu": f"cpu {rank}", "gpus": ["NVIDIA H100"], "driver": "570"} for rank in range(2)]

    class Gangs(LookingCluster):
        def start(self, job: Job, folder: Path, nodes: tuple[int, ...]) -> Any:
            fake_gang(folder, ["n0", "n1"], {r: {"host": f"h{r}", "machine": m} for r, m in enumerate(machines)})
            return super().start(job, folder, nodes)

    bench = Bench(tmp_path / "runs", [fake_trial(0)], repo, cluster=Gangs(2))
    bench.run()
    assert bench.record()["environment"]["nodes"] == [{"host": f"h{r}", **m} for r, m in enumerate(machines)]


# --- ends that are none ---


def test_a_trial_that_is_retired_after_its_attempt_says_so_in_its_record(tmp_path: Path, repo: Path) -> None:
    class Pauses(Forks):
        def result(self, candidate: str, step: int, score: float) -> dict[str, Verdict]:
            return {"000": Verdict("pause", "rung 2")} if step == 2 else {}

    arm = FakeArm([fake_trial(0, hold=True)], scheduler=Pauses(Verdict("go")))
    bench = Bench(tmp_path / "runs", [], repo, arm=arm)
    assert bench.run() == {"000": "pruned"}
    result = bench.record()["result"]
    assert (result["state"], result["stop"]["reason"]) == ("pruned", "worse")


def test_an_attempt_that_found_no_ranks_says_so(tmp_path: Path, repo: Path) -> None:
    bench = Bench(tmp_path / "runs", [fake_trial(0)], repo)
    plain, refused = bench.cluster.start, [True]

    def start(job: Job, folder: Path, nodes: tuple[int, ...]) -> Any:
        return None if refused and refused.pop() else plain(job, folder, nodes)

    bench.cluster.start = start  # type: ignore[method-assign]
    assert bench.run() == {"000": "finished"}
    assert bench.record("000", 1)["result"]["reason"] == "not-started"
    assert bench.record("000", 2)["result"]["state"] == "finished"


def test_an_attempt_that_outlived_its_controller_has_its_record_completed_by_the_next(
    tmp_path: Path, repo: Path
) -> None:
    first = Bench(tmp_path / "runs", [fake_trial(0, hold=True)], repo)
    first.controller._start()
    (attempt,) = first.cluster.running
    attempt.poll(), attempt.poll()
    first.ledger.close()  # killed here
    before = first.record()
    (repo / "train.py").write_text("print(3)\n")  # what is edited meanwhile is not what it runs
    cluster = FakeCluster(1)
    cluster.left = {str(attempt.folder): attempt}
    attempt._exit = Exit(0, "exit", "", 0.0)
    again = Bench(tmp_path / "runs", [fake_trial(0, hold=True)], repo, cluster=cluster)
    assert again.run() == {"000": "finished"}
    after = again.record()
    assert after["code"] == before["code"]
    assert (before["result"], after["result"]["state"]) == (None, "finished")
    assert {"lineage.json", "code.patch"} <= {p.name for p in again.tracker.of("trial_started")[0][-1]}


# --- what may fail and what may not ---


@pytest.mark.parametrize("broken", ["inputs", "code", "environment", "the disk"])
def test_what_cannot_be_recorded_is_a_warning_and_no_end(
    tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def no(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    where = {"inputs": (inputs, "of"), "code": (code, "capture"), "environment": (environment, "capture")}
    monkeypatch.setattr(*where.get(broken, (document, "write")), no)
    bench = Bench(tmp_path / "runs", [fake_trial(0), fake_trial(1)], repo, cluster=FakeCluster(2))
    assert bench.run() == {"000": "finished", "001": "finished"}
    assert len(bench.warnings) == 2, "once a trial"
    assert "000 has no lineage record" in bench.warnings[0]
    assert "No space left" in bench.warnings[0]


def test_a_missing_input_is_said_once_and_recorded_as_unknown(tmp_path: Path, repo: Path) -> None:
    lacking = {"train_files": str(tmp_path / "gone.parquet"), "val_files": None}
    bench = Bench(tmp_path / "runs", [fake_trial(i, data=lacking) for i in range(2)], repo)
    bench.run()
    assert bench.record()["inputs"][0]["sha256"] is None
    assert bench.warnings == [f"data.train_files: the training file {tmp_path / 'gone.parquet'} is not there"]


def test_code_without_a_commit_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    bench = Bench(tmp_path / "runs", [fake_trial(0), fake_trial(1)], tmp_path / "plain")
    bench.run()
    assert [w for w in bench.warnings if "cannot be traced to a commit" in w] == bench.warnings
    assert len(bench.warnings) == 1
    assert bench.record()["code"]["commit"] is None


def test_strict_refuses_a_dirty_tree_and_takes_a_clean_one(tmp_path: Path, repo: Path) -> None:
    with pytest.raises(RequestError, match=r"M train\.py"):
        Bench(tmp_path / "runs", [fake_trial(0)], repo, strict=True)
    (repo / "train.py").write_text("print(1)\n")
    bench = Bench(tmp_path / "other", [fake_trial(0)], repo, strict=True)
    assert bench.run() == {"000": "finished"}


def test_strict_ends_a_request_before_anything_is_made(
    tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeper import execute

    monkeypatch.setattr(code, "home", lambda: repo)
    with pytest.raises(RequestError, match=r"lineage\.strict=true"):
        execute.execute(planned(f"store={tmp_path / 'runs'}", "lineage.strict=true", "tracking=none"))
    assert not (tmp_path / "runs").exists()
    assert not list((tmp_path / "cache").glob("*-*")), "nothing was built either"


def test_no_secret_is_in_a_record(tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_correct_horse")
    env = {"WANDB_API_KEY": "battery-staple", "OMP_NUM_THREADS": "1"}
    trial = fake_trial(0, engine={"name": "fake", "env": env}, note="x hf_correct_horse")
    (repo / "notes.txt").write_text("hf_correct_horse")
    bench = Bench(tmp_path / "runs", [trial], repo)
    bench.run()
    for path in (bench.folder.trial("000") / "attempt-1").iterdir():
        text = path.read_text()
        if path.name in ("lineage.json", "code.patch"):
            assert "hf_correct_horse" not in text, path
            assert "battery-staple" not in text, path
    found = bench.record()
    assert found["config"]["engine"]["env"] == {"WANDB_API_KEY": "<WANDB_API_KEY>", "OMP_NUM_THREADS": "1"}
    assert found["identity"]["engine.env.WANDB_API_KEY"] == "<WANDB_API_KEY>"
    assert [f["why"] for f in found["code"]["left_out"]] == ["secret"]
    assert any("notes.txt (secret)" in w for w in bench.warnings)


# --- reuse ---


def data_trial(folder: Path, number: int = 0) -> Trial:
    data = {"train_files": str(folder / "train.jsonl"), "val_files": str(folder / "val.jsonl")}
    return fake_trial(number, data=data)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "val"):
        (folder / f"{name}.jsonl").write_text('{"a": 1}\n')
    return folder


def test_the_same_data_and_engine_are_reused(tmp_path: Path, repo: Path, data: Path) -> None:
    Bench(tmp_path / "runs", [data_trial(data)], repo, name="first").run()
    second = Bench(tmp_path / "runs", [data_trial(data)], repo, name="second")
    assert second.run() == {"000": "finished"}
    assert second.controller.outcomes["000"].reused == "first/000"
    assert second.cluster.started == []
    assert second.warnings == []


def test_other_content_under_the_same_name_is_not_reused(tmp_path: Path, repo: Path, data: Path) -> None:
    Bench(tmp_path / "runs", [data_trial(data), data_trial(data, 1)], repo, name="first").run()
    (data / "train.jsonl").write_text('{"a": 2}\n')
    second = Bench(tmp_path / "runs", [data_trial(data), data_trial(data, 1)], repo, name="second")
    second.run()
    assert second.cluster.started == ["000", "001"]
    assert len(second.warnings) == 2
    assert second.warnings[0].startswith("000 is run and not taken from first/000: the content of its train input")
    third = Bench(tmp_path / "runs", [data_trial(data)], repo, name="third")
    third.run()
    assert third.cluster.started == ["000"], "the first that finished is asked, not every one"


def test_another_tool_config_is_not_reused(tmp_path: Path, repo: Path, data: Path) -> None:
    """What decides a result beside rows, reward and weights is looked at too."""
    trial = data_trial(data)
    trial.config["data"]["tool_config_path"] = str(data / "tools.yaml")
    (data / "tools.yaml").write_text("tools: []\n")
    Bench(tmp_path / "runs", [trial], repo, name="first").run()
    (data / "tools.yaml").write_text("tools: [x]\n")
    second = Bench(tmp_path / "runs", [trial], repo, name="second")
    second.run()
    assert second.cluster.started == ["000"]
    assert "the content of its file input has changed" in second.warnings[0]


def test_another_version_of_the_engine_is_not_reused(
    tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Bench(tmp_path / "runs", [fake_trial(0)], repo, name="first").run()
    plain = environment.capture

    def newer(*args: Any) -> dict[str, Any]:
        return {**plain(*args), "engine": {"name": "fake", "version": "2.0", "commit": "c" * 40}}

    monkeypatch.setattr(environment, "capture", newer)
    second = Bench(tmp_path / "runs", [fake_trial(0)], repo, name="second")
    second.run()
    assert second.cluster.started == ["000"]
    assert "it was computed by fake None, and fake 2.0 (cccccccccccc) is installed" in second.warnings[0]


def test_what_was_run_before_there_were_records_is_reused_as_it_was(tmp_path: Path, repo: Path, data: Path) -> None:
    first = Bench(tmp_path / "runs", [data_trial(data)], repo, name="first")
    first.run()
    (first.folder.trial("000") / "attempt-1" / "lineage.json").unlink()
    (data / "train.jsonl").write_text('{"a": 2}\n')
    second = Bench(tmp_path / "runs", [data_trial(data)], repo, name="second")
    second.run()
    assert second.cluster.started == []


def test_a_record_that_cannot_be_read_stands_for_nothing(tmp_path: Path, repo: Path) -> None:
    first = Bench(tmp_path / "runs", [fake_trial(0)], repo, name="first")
    first.run()
    path = first.folder.trial("000") / "attempt-1" / "lineage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    second = Bench(tmp_path / "runs", [fake_trial(0)], repo, name="second")
    second.run()
    assert second.cluster.started == ["000"]
    assert "written by a newer sweeper" in second.warnings[0]


# --- real configs ---


def planned(*overrides: str) -> Any:
    from sweeper.config.hydra_app import initialized
    from sweeper.plan import plan

    with initialized():
        return plan.make(list(overrides))


@cache
def real() -> dict[str, Any]:
    return dict(planned("algorithm=ppo", "tracking=none").trials[0].config)


def paths(value: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [
        leaf
        for key, inner in value.items()
        for leaf in (paths(inner, (*at, key)) if isinstance(inner, dict) else [(*at, key)])
    ]


def test_every_leaf_is_identity_or_placement_and_only_one_of_them() -> None:
    identity, placement = record.leaves(real())
    assert not identity.keys() & placement.keys()
    assert identity.keys() | placement.keys() == {".".join(p) for p in paths(real())}
    assert len(identity) > 300
    assert len(placement) > 100
    assert fingerprint_of(identity) == fingerprint(real()), "the record proves its own fingerprint"


def test_every_identity_leaf_changes_the_fingerprint_and_no_placement_leaf_does() -> None:
    """Of the whole config as a trial has it, our own keys included."""
    identity, placement = record.leaves(real())
    before = fingerprint(real())
    seen = {before}
    for path in paths(real()):
        key = ".".join(path)
        after = fingerprint(changed(real(), path))
        if key in identity:
            assert after not in seen, key
            seen.add(after)
        else:
            assert key in placement
            assert after == before, key


def changed(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    first, *below = path
    return {**config, first: changed(config[first], tuple(below)) if below else "something else"}


def test_the_overrides_of_a_record_make_the_very_same_trial(tmp_path: Path, repo: Path) -> None:
    made = planned(
        "algorithm=grpo,rloo", "search=grid", "lr=choice(1e-4,3e-4)", "seed=1,2", "trainer.total_training_steps=3"
    )
    assert len(made.trials) == 8
    for trial in made.trials[::3]:
        folder = SweepFolder.create(tmp_path / "runs", "s", []).new_attempt(trial.id)
        recorder = Recorder(FakeEngine(), warn=print, root=repo)  # type: ignore[arg-type]
        recorder.started(trial, dict(trial.config), folder, tmp_path / "none")
        written = document.read(folder.path)
        (again,) = planned(*written["overrides"]).trials
        assert fingerprint(dict(again.config)) == written["fingerprint"] == fingerprint(dict(trial.config))
        assert written["run"]["seed"] == trial.seed
        assert written["seeds"]["seed"] == trial.seed == written["seeds"]["data.seed"]


def test_a_real_record_is_valid_and_has_what_a_reader_looks_for(tmp_path: Path, repo: Path) -> None:
    trial = planned("algorithm=ppo", "tracking=none").trials[0]
    folder = SweepFolder.create(tmp_path / "runs", "s", []).new_attempt(trial.id)
    recorder = Recorder(FakeEngine(), warn=print, root=repo, hashes=Hashes(tmp_path / "h.db"))  # type: ignore[arg-type]
    recorder.started(trial, dict(trial.config), folder, tmp_path / "none")
    found = document.read(folder.path)
    assert found["environment"]["engine"]["name"] == "verl"
    assert found["environment"]["packages"]["hydra-core"]
    assert {r["role"] for r in found["inputs"]} >= {"train", "val", "reward", "model"}
    assert found["config"]["trainer"]["total_training_steps"] == trial.config["trainer"]["total_training_steps"]
    assert found["hosts"]
