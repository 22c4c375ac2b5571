"""`sweeper gc`: shows what can go and why the rest stays, frees it when told to, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from checkpoints_fake import save, steps

from sweeper.checkpoints import gc, origin, pins, start
from sweeper.checkpoints.keep import Keep
from sweeper.cli.main import main
from sweeper.errors import RequestError, SweeperError
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import SweepFolder, write_json


class Sweep:
    """A sweep's records as its controller leaves them."""

    def __init__(self, store: Path, name: str = "s", keep: Mapping[str, Any] | None = None) -> None:
        self.folder = SweepFolder.create(store, name, [])
        self.ledger = Ledger.open(self.folder.path / "ledger.db", create=True)
        self.ledger.append("sweep_started", data={"mode": "max"})
        self._keep = {"last": 2, "top_k": None, "gb": None} | dict(keep or {})

    def trial(self, name: str, state: str, *steps: int, score: float | None = None, arm: str = "0") -> Path:
        """With its checkpoints' folder."""
        self.ledger.append("trial_planned", trial=name, data={"arm": arm, "candidate": name})
        attempt = self.folder.trial(name) / "attempt-1"
        at = self.folder.checkpoints(name)
        at.mkdir(parents=True)
        attempt.mkdir()
        write_json(attempt / "spec.json", {"config": {"engine": {"name": "verl"}, "keep": self._keep}})
        self.ledger.append("attempt_started", trial=name, attempt=1, data={"folder": str(attempt)})
        if state != "running":
            self.ledger.append("attempt_ended", trial=name, attempt=1, data={"state": state, "final_score": score})
        for step in steps:
            save(at, step)
        return at

    def close(self) -> Sweep:
        self.ledger.close()
        return self


def everything(store: Path) -> dict[str, tuple[int, bytes]]:
    """All but the ledger, whose database makes files of its own for who reads it."""
    return {
        str(p.relative_to(store)): (p.lstat().st_mtime_ns, p.read_bytes()) if p.is_file() else (0, b"")
        for p in sorted(store.rglob("*"))
        if not p.name.startswith("ledger.db")
    }


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_a_dry_run_shows_and_changes_nothing(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep(store)
    at = sweep.trial("000", "finished", 2, 4, 6, score=0.5)
    (at / "adopted").mkdir()  # an adoption that was cut off is not this command's to finish
    (at / "aside-1").mkdir()
    sweep.close()
    before = everything(store)
    assert main(["gc", "--store", str(store)]) == 0
    said = capsys.readouterr().out
    assert everything(store) == before
    assert "s/000  step 2" in said
    assert "older than the newest 2" in said
    assert "the best of its arm" in said
    assert "nothing was: add --yes" in said


def test_with_yes_it_frees_what_it_showed(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep(store)
    at = sweep.trial("000", "finished", 2, 4, 6, score=0.5)
    sweep.close()
    shown = gc.survey(store)
    assert main(["gc", "s", "--yes", "--store", str(store)]) == 0
    assert "GB freed" in capsys.readouterr().out
    assert steps(at) == [4, 6]
    assert sorted(p.name for p in (at / "manifests").iterdir()) == ["global_step_4.json", "global_step_6.json"]
    assert shown.bytes > 14_000
    assert gc.survey(store).free == []


def test_what_another_sweeps_trials_start_from_stays(store: Path) -> None:
    sweep = Sweep(store)
    at = sweep.trial("000", "finished", 2, 4, 6, score=0.5)
    sweep.close()
    start.hold(at / "global_step_2", store / "second")
    found = gc.survey(store)
    assert found.free == []
    assert [(i.step, i.why) for i in found.protected if i.step == 2] == [
        (2, f"pinned by sweep second (trials of {store}/second start from it)")
    ]


def test_what_the_best_was_forked_from_stays(store: Path) -> None:
    """Also where the donor has set it aside, since it was forked itself."""
    sweep = Sweep(store)
    donor = sweep.trial("000", "finished", 2, 4, 6, score=0.1)
    sweep.trial("001", "finished", 4, 6, score=0.9)
    other = sweep.trial("002", "finished", 6, score=0.2)
    save(other / "aside-1", 4)
    for child, donor_id, step in (("001", "000", 2), ("001", "002", 4)):
        sweep.ledger.append("trial_forked", trial=child, data={"donor": donor_id, "step": step, "params": {}})
    sweep.close()
    found = gc.survey(store, "s", Keep(last=1), free=True)
    assert steps(donor) == [2, 6] and (other / "aside-1").exists()
    assert {i.why for i in found.protected if (i.trial, i.step) == ("000", 2)} == {
        "001, which stays, was forked from it"
    }
    gc.survey(store, "s", Keep(gb=0), free=True)
    assert steps(donor) == [2] and (other / "aside-1").exists(), "as long as the best is there"


def test_what_somebody_has_registered_stays_and_a_registry_that_is_away_frees_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry is a fake; tests/tracking/test_lineage.py asks a real one."""
    sweep = Sweep(store)
    at = sweep.trial("000", "finished", 2, 4, 6, 8, score=0.5)
    sweep.close()
    held = {(at / "global_step_2").resolve(): "version 1 of mine (figure-3)"}
    monkeypatch.setattr("sweeper.tracking.registry.held", lambda _folder: held)
    found = gc.survey(store, "s", free=True)
    assert steps(at) == [2, 6, 8]
    assert [i.why for i in found.protected if i.step == 2] == ["pinned by mlflow (version 1 of mine (figure-3))"]

    def away(_folder: Path) -> dict[Path, str]:
        raise SweeperError("MLflow does not answer")

    monkeypatch.setattr("sweeper.tracking.registry.held", away)
    found = gc.survey(store, "s", Keep(last=1), free=True)
    assert steps(at) == [2, 6, 8] and "s is left alone: MLflow does not answer" in found.notes


def test_what_a_trial_was_forked_from_counts_and_goes_with_its_last_checkpoint(store: Path) -> None:
    sweep = Sweep(store)
    sweep.trial("000", "finished", 4, score=0.9)
    mine = sweep.trial("001", "finished", 4, score=0.1)
    save(mine / origin.FOLDER, 2)
    sweep.close()
    kept = gc.survey(store, "s", Keep(last=1), free=True)
    assert kept.free == [] and (mine / origin.FOLDER).is_dir(), "as long as the trial has a checkpoint"
    found = gc.survey(store, "s", Keep(top_k=1))
    assert {(i.trial, i.path.name) for i in found.free} == {("001", "global_step_4"), ("001", origin.FOLDER)}
    assert (
        found.bytes
        == sum(p.stat().st_size for p in mine.rglob("*.pt"))
        + (mine / origin.FOLDER / "manifests/global_step_2.json").stat().st_size
    )
    gc.survey(store, "s", Keep(top_k=1), free=True)
    assert steps(mine) == [] and not (mine / origin.FOLDER).exists()


def test_for_machines(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep(store)
    sweep.trial("000", "finished", 2, 4, 6, score=0.5)
    sweep.close()
    assert main(["gc", "--json", "--store", str(store)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(i["sweep"], i["trial"], i["step"]) for i in said["free"]] == [("s", "000", 2)]
    assert said["freed"] is None
    assert {i["step"] for i in said["protected"]} == {6}


def test_what_is_needed_stays_whatever_is_asked_for(store: Path) -> None:
    sweep = Sweep(store)
    folders = {
        state: sweep.trial(f"00{n}", state, 2, 4, score=0.1 * n)
        for n, state in enumerate(["finished", "pruned", "paused", "stopped", "running", "failed"])
    }
    best = sweep.trial("009", "finished", 2, 4, score=0.99)
    pinned = sweep.trial("010", "finished", 2, 4, score=0.0)
    pins.pin(pinned, 2, "mlflow", "registered as policy 3")
    donor = sweep.trial("011", "finished", 2, 4, score=0.0)
    sweep.ledger.append("trial_forked", trial="002", data={"donor": "011", "step": 2, "params": {}})
    sweep.close()
    found = gc.survey(store, "s", Keep(last=1, top_k=1, gb=0), free=True)
    left = {state: steps(at) for state, at in folders.items()}
    assert left == {"finished": [], "pruned": [], "paused": [2, 4], "stopped": [4], "running": [2, 4], "failed": [4]}
    assert (steps(best), steps(pinned), steps(donor)) == ([4], [2], [2])
    said = {(i.trial, i.step): i.why for i in found.protected}
    assert "registered as policy 3" in said["010", 2]
    assert "forked" in said["011", 2]
    assert said["004", 4].startswith("its trial")
    assert any("must stay" in note for note in found.notes)


def test_a_pin_of_a_users_holds_a_checkpoint_until_it_is_taken_away(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep(store)
    at = sweep.trial("000", "finished", 2, 4, 6, score=0.5)
    sweep.close()
    where = ["--store", str(store)]
    assert main(["pin", "s/000", "2", "--why", "figure 3", *where]) == 0
    assert main(["gc", "--yes", *where]) == 0
    assert steps(at) == [2, 4, 6]
    assert main(["unpin", "s/000", *where]) == 0
    assert "me-2  step 2  me  figure 3" in capsys.readouterr().out
    assert main(["unpin", "s/000", "me-3", *where]) == 2
    assert "valid: me-2" in capsys.readouterr().err
    assert main(["unpin", "s/000", "me-2", *where]) == 0
    assert main(["gc", "--yes", *where]) == 0
    assert steps(at) == [4, 6]
    for wrong in ("s/009", "t/000"):
        assert main(["pin", wrong, "2", *where]) == 2
    assert main(["pin", "s/000", "2", *where]) == 2, "there is no such checkpoint any more"


def test_under_a_living_controller_only_what_is_done_is_touched(store: Path) -> None:
    sweep = Sweep(store)
    done, stopped = sweep.trial("000", "finished", 2, 4, 6, score=0.5), sweep.trial("001", "failed", 2, 4, 6)
    (stopped / "aside-1").mkdir()
    found = gc.survey(store, "s", free=True)  # the ledger is still open: its controller lives
    assert (steps(done), steps(stopped)) == ([4, 6], [2, 4, 6])
    assert (stopped / "aside-1").exists()
    assert any("s runs" in note for note in found.notes)
    sweep.close()
    gc.survey(store, "s", free=True)
    assert steps(stopped) == [4, 6]


def test_what_was_left_over_goes(store: Path) -> None:
    import shutil

    sweep = Sweep(store)
    at = sweep.trial("000", "finished", 2, 4, score=0.5)
    shutil.rmtree(at / "global_step_2" / "actor")
    running = sweep.trial("001", "running", 2)
    for folder in (at, running):
        for name in ("aside-1", "adopting", "corrupt-global_step_9", ".gone-global_step_8"):
            (folder / name).mkdir()
            (folder / name / "file").write_text("x" * 1000)
    (at / "manifests" / ".global_step_4.json.123.tmp").write_text("half")
    (store / ".new.99999999.new").mkdir()
    (store / f".mine.{os.getpid()}.new").mkdir()
    sweep.close()
    found = gc.survey(store, free=True)
    assert [p.name for p in sorted(at.iterdir())] == ["global_step_4", "manifests"]
    assert len(list(running.iterdir())) == 6, "a trial that may run is left as it is"
    assert not (store / ".new.99999999.new").exists()
    assert (store / f".mine.{os.getpid()}.new").exists(), "somebody makes it right now"
    assert (found.freed or 0) > 4000


def test_links_out_of_the_store_are_not_followed(store: Path, tmp_path: Path) -> None:
    sweep = Sweep(store)
    at = sweep.trial("000", "finished", 2, 4, 6, score=0.5)
    elsewhere = tmp_path / "big disk"
    at.rename(elsewhere)
    at.symlink_to(elsewhere)
    inside = sweep.trial("001", "finished", 8, 9, score=0.4)
    (inside / "global_step_1").symlink_to(elsewhere / "global_step_2")
    (inside / "aside-1").symlink_to(elsewhere)
    sweep.close()
    found = gc.survey(store, "s", Keep(last=1, top_k=1), free=True)
    assert steps(elsewhere) == [2, 4, 6]
    assert (inside / "aside-1").is_symlink()
    assert any("leads out of the store" in note for note in found.notes)


def test_hard_links_count_once_and_free_nothing_while_another_has_the_file(store: Path) -> None:
    sweep = Sweep(store)
    donor, own = sweep.trial("000", "finished", 2, score=0.1), sweep.trial("001", "finished", score=0.9)
    (own / "global_step_2" / "actor").mkdir(parents=True)
    for rel in ("data.pt", "actor/model_world_size_1_rank_0.pt"):
        os.link(donor / "global_step_2" / rel, own / "global_step_2" / rel)
    sweep.close()
    found = gc.survey(store, "s", Keep(top_k=1))
    assert [(i.trial, i.step) for i in found.free] == [("000", 2)]
    assert found.free[0].bytes > 14_000
    assert found.bytes == 0


def test_what_cannot_be_deleted_is_said_and_the_rest_goes(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(store)
    one, other = sweep.trial("000", "finished", 2, 4, 6), sweep.trial("001", "finished", 2, 4, 6)
    sweep.close()
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.is_relative_to(one):
            raise PermissionError(13, "Permission denied", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    found = gc.survey(store, free=True)
    assert (steps(one), steps(other)) == ([2, 4, 6], [4, 6])
    assert any("global_step_2 cannot be deleted: Permission denied" in note for note in found.notes)
    assert (found.freed or 0) * 2 == found.bytes


def test_a_kill_while_it_deletes_leaves_no_half_checkpoint(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(store)
    at = sweep.trial("000", "finished", 2, 4, 6)
    sweep.close()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", killed)
        with contextlib.suppress(KeyboardInterrupt):
            gc.survey(store, free=True)
    assert steps(at) == [4, 6]
    gc.survey(store, free=True)
    assert [p.name for p in sorted(at.iterdir())] == ["global_step_4", "global_step_6", "manifests"]


def test_a_sweep_that_is_not_there(store: Path) -> None:
    store.mkdir()
    assert main(["gc", "nothing", "--store", str(store)]) == 2
    assert main(["gc", "--store", str(store / "mistyped")]) == 2
    with pytest.raises(RequestError, match="at least 1"):
        Sweep(store).close()
        gc.survey(store, asked=Keep(last=0))


def test_a_damaged_ledger_is_named_and_its_sweep_left_alone(store: Path) -> None:
    broken, good = Sweep(store, "broken"), Sweep(store, "good")
    at, other = broken.trial("000", "finished", 2, 4, 6), good.trial("000", "finished", 2, 4, 6)
    broken.close()
    good.close()
    for path in broken.folder.path.glob("ledger.db*"):
        path.write_bytes(b"no database" * 100)
    found = gc.survey(store, free=True)
    assert (steps(at), steps(other)) == ([2, 4, 6], [4, 6])
    assert any(note.startswith("broken is left alone") for note in found.notes)


def test_a_sweep_of_an_older_release_keeps_everything_unless_asked(store: Path) -> None:
    sweep = Sweep(store)
    at = sweep.trial("000", "finished", 2, 4, 6, score=0.5)
    write_json(sweep.folder.trial("000") / "attempt-1" / "spec.json", {"config": {"engine": {"name": "verl"}}})
    sweep.close()
    assert gc.survey(store).free == []
    gc.survey(store, asked=Keep(last=1), free=True)
    assert steps(at) == [6]
