"""What the index of a store finds, and that nothing that happens to its file costs more than time."""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
from pathlib import Path

import pytest

from sweeper.trial import index as module
from sweeper.trial.index import Found, Index
from sweeper.trial.ledger import Event, Ledger
from sweeper.trial.records import SweepFolder


def sweep(store: Path, name: str, trials: dict[str, tuple[str, str]], *, forked: tuple[str, ...] = ()) -> SweepFolder:
    """A sweep with a real ledger; `trials`: id -> fingerprint and the state that its attempt ends in."""
    folder = SweepFolder.create(store, name, [])
    ledger = Ledger.open(folder.path / "ledger.db", create=True)
    add(folder, ledger, trials, forked)
    ledger.close()
    return folder


def add(folder: SweepFolder, ledger: Ledger, trials: dict[str, tuple[str, str]], forked: tuple[str, ...] = ()) -> None:
    for trial, (fingerprint, state) in trials.items():
        ledger.append("trial_planned", trial=trial, data={"fingerprint": fingerprint})
        attempt = folder.new_attempt(trial)
        ledger.append("attempt_started", trial=trial, attempt=attempt.number, data={"folder": str(attempt.path)})
        if trial in forked:
            ledger.append("trial_forked", trial=trial, data={"donor": "x"})
        if state:
            ledger.append("attempt_ended", trial=trial, attempt=attempt.number, data={"state": state})


def found(store: Path, *fingerprints: str) -> dict[str, str]:
    index = Index(store)
    try:
        assert index.problems == []
        return {k: str(v) for k, v in index.lookup_all(fingerprints).items()}
    finally:
        index.close()


def test_a_finished_trial_of_any_sweep_is_found_with_its_folder(tmp_path: Path) -> None:
    sweep(tmp_path, "a", {"000": ("f0", "finished"), "001": ("f1", "finished")})
    folder = sweep(tmp_path, "b", {"000": ("f2", "finished")})
    index = Index(tmp_path)
    assert index.lookup("f2") == Found("b", "000", folder.trial("000") / "attempt-1")
    assert found(tmp_path, "f0", "f1", "f2", "f3") == {"f0": "a/000", "f1": "a/001", "f2": "b/000"}
    assert index.lookup("f3") is None


@pytest.mark.parametrize("state", ["failed", "stopped", "pruned", ""])
def test_what_did_not_finish_is_not(tmp_path: Path, state: str) -> None:
    sweep(tmp_path, "a", {"000": ("f0", state)})
    assert found(tmp_path, "f0") == {}


def test_a_trial_that_went_on_from_anothers_checkpoint_is_not(tmp_path: Path) -> None:
    sweep(tmp_path, "a", {"000": ("f0", "finished"), "001": ("f1", "finished")}, forked=("000",))
    assert found(tmp_path, "f0", "f1") == {"f1": "a/001"}


def test_the_attempt_that_finished_is_meant_and_its_folder_has_to_be_there(tmp_path: Path) -> None:
    folder = sweep(tmp_path, "a", {"000": ("f0", "failed")})
    ledger = Ledger.open(folder.path / "ledger.db", create=False)
    add(folder, ledger, {"000": ("f0", "finished")})
    ledger.close()
    index = Index(tmp_path)
    hit = index.lookup("f0")
    assert hit is not None and hit.folder.name == "attempt-2"
    shutil.rmtree(hit.folder)
    assert index.lookup("f0") is None


def test_of_two_the_first_that_is_still_there_counts(tmp_path: Path) -> None:
    first = sweep(tmp_path, "z", {"000": ("f0", "finished")})
    sweep(tmp_path, "a", {"007": ("f0", "finished")})
    assert found(tmp_path, "f0") == {"f0": "z/000"}
    shutil.rmtree(first.trial("000"))
    assert found(tmp_path, "f0") == {"f0": "a/007"}


def test_a_trial_that_is_extended_is_found_under_what_it_was_when_it_finished(tmp_path: Path) -> None:
    folder = sweep(tmp_path, "a", {"000": ("short", "finished")})
    ledger = Ledger.open(folder.path / "ledger.db", create=False)
    ledger.append("trial_planned", trial="000", data={"fingerprint": "long"})
    ledger.close()
    assert found(tmp_path, "short", "long") == {"short": "a/000"}


def test_it_takes_in_what_ledgers_gain_also_while_they_are_written(tmp_path: Path) -> None:
    folder = sweep(tmp_path, "a", {"000": ("f0", "finished")})
    index = Index(tmp_path)
    ledger = Ledger.open(folder.path / "ledger.db", create=False)
    add(folder, ledger, {"001": ("f1", "finished")})
    assert index.lookup("f1") is None
    index.refresh()
    assert index.lookup("f1") is not None
    assert found(tmp_path, "f0", "f1") == {"f0": "a/000", "f1": "a/001"}
    ledger.close()


def test_ledgers_that_have_not_changed_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(tmp_path, "a", {"000": ("f0", "finished")})
    found(tmp_path, "f0")
    monkeypatch.setattr(module.Ledger, "history", lambda *_: pytest.fail("read again"))
    assert found(tmp_path, "f0") == {"f0": "a/000"}


def test_a_sweep_that_is_removed_is_forgotten_and_a_store_may_be_moved(tmp_path: Path) -> None:
    sweep(tmp_path / "old", "a", {"000": ("f0", "finished")})
    sweep(tmp_path / "old", "b", {"000": ("f1", "finished")})
    found(tmp_path / "old", "f0")
    (tmp_path / "old").rename(tmp_path / "new")
    shutil.rmtree(tmp_path / "new" / "a")
    index = Index(tmp_path / "new")
    hit = index.lookup("f1")
    assert hit is not None and hit.folder.is_relative_to(tmp_path / "new")
    assert index.lookup("f0") is None


def _damage_text(path: Path) -> None:
    path.write_text("this is no database, it is a line of text that somebody wrote\n" * 100)


def _damage_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)


def _damage_other(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE things (x)")
    db.close()


@pytest.mark.parametrize(
    "damage", [Path.unlink, _damage_text, _damage_middle, _damage_other, lambda p: p.write_bytes(b"")]
)
def test_a_missing_or_damaged_index_is_made_anew_from_the_ledgers(tmp_path: Path, damage: object) -> None:
    sweep(tmp_path, "a", {f"{i:03d}": (f"f{i}", "finished") for i in range(50)})
    assert len(found(tmp_path, *(f"f{i}" for i in range(50)))) == 50
    damage(tmp_path / "index.db")  # type: ignore[operator]
    assert len(found(tmp_path, *(f"f{i}" for i in range(50)))) == 50


def test_the_sweep_that_asks_finds_what_others_finished_and_not_its_own(tmp_path: Path) -> None:
    sweep(tmp_path, "a", {"000": ("f0", "finished"), "001": ("f1", "finished")})
    sweep(tmp_path, "b", {"000": ("f0", "finished")})
    assert found(tmp_path, "f0", "f1") == {"f0": "a/000", "f1": "a/001"}
    index = Index(tmp_path, besides="a")
    assert {k: str(v) for k, v in index.lookup_all(["f0", "f1"]).items()} == {"f0": "b/000"}


def test_a_damaged_ledger_costs_its_own_trials_and_is_said(tmp_path: Path) -> None:
    sweep(tmp_path, "a", {"000": ("f0", "finished")})
    bad = sweep(tmp_path, "b", {"000": ("f1", "finished")})
    (bad.path / "ledger.db").write_text("no ledger\n" * 500)
    index = Index(tmp_path)
    assert index.lookup("f0") is not None and index.lookup("f1") is None
    assert len(index.problems) == 1 and "the sweep b are not reused" in index.problems[0]


def test_an_index_that_cannot_be_used_finds_nothing_and_says_so(tmp_path: Path) -> None:
    sweep(tmp_path, "a", {"000": ("f0", "finished")})
    (tmp_path / "index.db").mkdir()
    index = Index(tmp_path)
    assert index.lookup("f0") is None
    assert len(index.problems) == 1 and "nothing is reused" in index.problems[0]


def test_thousands_are_looked_up_in_a_few_queries(tmp_path: Path) -> None:
    sweep(tmp_path, "a", {"000": ("f0", "finished")})
    assert found(tmp_path, *(f"f{i}" for i in range(5000))) == {"f0": "a/000"}


def _use(store: str, name: str, ready: multiprocessing.synchronize.Barrier) -> None:
    folder = SweepFolder.create(Path(store), name, [])
    ledger = Ledger.open(folder.path / "ledger.db", create=True)
    ready.wait()
    for i in range(10):
        add(folder, ledger, {f"{i:03d}": (f"{name}-{i}", "finished")})
        index = Index(Path(store))
        problems, hit = index.problems, index.lookup(f"{name}-{i}")
        assert not problems, problems
        assert hit is not None
        index.close()
    ledger.close()


def test_many_sweeps_use_it_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(3)
    users = [context.Process(target=_use, args=(str(tmp_path), f"s{i}", ready)) for i in range(3)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert [user.exitcode for user in users] == [0, 0, 0]
    assert len(found(tmp_path, *(f"s{s}-{i}" for s in range(3) for i in range(10)))) == 30


def test_what_was_read_before_another_one_wrote_takes_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sweep(tmp_path, "a", {"000": ("f0", "finished")})
    read = Ledger.history

    def slow(path: Path) -> list[Event]:
        events = list(read(path))
        monkeypatch.undo()
        ledger = Ledger.open(path, create=False)
        add(folder, ledger, {"001": ("f1", "finished")})
        ledger.close()
        assert found(tmp_path, "f1") == {"f1": "a/001"}
        return events

    monkeypatch.setattr(Ledger, "history", slow)
    index = Index(tmp_path)
    assert str(index.lookup("f1")) == "a/001"
    index.close()
