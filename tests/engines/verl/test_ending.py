"""A checkpoint before the time is over. The trainers are fakes; the rule that ours is compared with is verl's."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest

from sweeper.engines.verl import ending


class FakeTrainer:
    """verl's V1 trainer as far as it matters here."""

    def __init__(self, **trainer: Any) -> None:
        class Said(dict[str, Any]):
            __getattr__ = dict.__getitem__

        actor = {"checkpoint": {"async_save": trainer.pop("async_save", False)}}
        self.config = types.SimpleNamespace(
            trainer=Said({"save_freq": 100, "esi_redundant_time": 0, **trainer}),
            actor_rollout_ref=types.SimpleNamespace(actor=actor),
        )
        self.global_steps, self.total_training_steps = 0, 1000
        self.saved: list[int] = []
        self.stopped = 0

    def _start_profiling(self, *_: Any) -> None:
        self.global_steps += 1

    def _stop_profiling(self) -> None:
        self.stopped += 1

    def _save_checkpoint(self) -> None:
        self.saved.append(self.global_steps)


def run(ends_at: float, at: list[float], monkeypatch: pytest.MonkeyPatch, **trainer: Any) -> FakeTrainer:
    """Steps that end at those times."""
    kind = type("PPOTrainer", (FakeTrainer,), {})
    ending.patch(types.SimpleNamespace(PPOTrainer=kind), ending.Clock(ends_at))
    made = kind(**trainer)
    for now in at:
        monkeypatch.setattr("time.time", lambda now=now: now)
        made._start_profiling()
        made._stop_profiling()
    assert made.stopped == len(at)
    return made


def test_the_last_steps_before_the_end_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(1000, [800, 830, 860, 890, 920, 950, 999, 1001], monkeypatch).saved == [5, 6, 7]


def test_more_time_to_save_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(1000, [800, 830, 860], monkeypatch, esi_redundant_time=60).saved == [3]


def test_what_verl_saves_anyway_is_not_saved_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(1000, [930, 940, 950, 960], monkeypatch, save_freq=2).saved == [3]


def test_who_wants_no_checkpoints_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(1000, [930, 940, 950], monkeypatch, save_freq=-1).saved == []


def test_a_save_that_fails_does_not_end_the_training(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def full(_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(FakeTrainer, "_save_checkpoint", full)
    run(1000, [930, 940, 950], monkeypatch)
    assert "No space left on device" in capsys.readouterr().out


def until_it_is_taken_back(after: int, notice: Path, steps: int = 6, **trainer: Any) -> FakeTrainer:
    """A V1 training of so many steps, which is told in the middle of the step after `after`."""
    kind = type("PPOTrainer", (FakeTrainer,), {})
    ending.patch(types.SimpleNamespace(PPOTrainer=kind), ending.Clock(time.time() + 9999, str(notice)))
    made = kind(**trainer)
    with contextlib.suppress(ending.TakenBack):
        for step in range(steps):
            made._start_profiling()
            if step == after:
                notice.touch()
            made._stop_profiling()
    return made


@pytest.mark.parametrize(
    ("trainer", "saved", "last"),
    [
        ({}, [3], 3),
        ({"save_freq": 3}, [], 3),  # verl saves it itself
        ({"save_freq": -1}, [], 3),  # there is nothing to wait for
        ({"async_save": True}, [3], 6),  # it is ended once its time is over
    ],
)
def test_what_is_taken_back_saves_the_step_it_is_in_and_ends(
    tmp_path: Path, trainer: dict[str, Any], saved: list[int], last: int
) -> None:
    made = until_it_is_taken_back(2, tmp_path / "taken-back", **trainer)
    assert (made.saved, made.global_steps) == (saved, last)


def test_a_manifest_that_is_being_made_is_waited_for(tmp_path: Path) -> None:
    reading = threading.Thread(target=time.sleep, args=(0.2,), name="sweeper-manifest")
    reading.start()
    until_it_is_taken_back(0, tmp_path / "taken-back")
    assert not reading.is_alive()


def test_v0_saves_the_step_it_is_in_and_ends(tmp_path: Path) -> None:
    notice, kind = tmp_path / "taken-back", type("RayPPOTrainer", (FakeTrainer,), {})
    module = types.SimpleNamespace(RayPPOTrainer=kind, should_save_ckpt_esi=lambda **_: False)
    ending.patch_v0(module, ending.Clock(time.time() + 9999, str(notice)))
    made = kind()
    made._start_profiling(False)
    assert not module.should_save_ckpt_esi(max_steps_duration=0, redundant_time=0)
    made._start_profiling(False)
    notice.touch()
    assert module.should_save_ckpt_esi(max_steps_duration=0, redundant_time=0)
    with pytest.raises(ending.TakenBack):
        made._start_profiling(False)


@pytest.mark.parametrize("left", [-5, 1, 59, 95, 101, 500])
def test_the_rule_is_verls(monkeypatch: pytest.MonkeyPatch, left: float) -> None:
    theirs = pytest.importorskip("verl.utils.checkpoint.checkpoint_manager").should_save_ckpt_esi
    monkeypatch.setattr("time.time", lambda: 5000.0)
    monkeypatch.setenv(ending.THEIRS, str(5000.0 + left))
    for longest in (0.0, 40.0):
        assert ending.due(5000.0 + left, 5000.0, longest) == theirs(max_steps_duration=longest)


def test_it_is_verls_trainer_that_is_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrapped is there, and called between a step and its save."""
    source = pytest.importorskip("verl").__path__[0] + "/trainer/ppo/v1/trainer_base.py"
    text = open(source).read()  # noqa: PTH123, SIM115
    body = text[text.index("self._start_profiling()") :]
    calls = ["self.step(", "self._stop_profiling()", "self._save_checkpoint()", "self.logger.log(data=metrics"]
    assert sorted(calls, key=body.index) == calls
    text = open(source.replace("v1/trainer_base", "ray_trainer")).read()  # noqa: PTH123, SIM115
    body = text[text.index("self._start_profiling(") :]
    calls = ["= should_save_ckpt_esi(", "self._save_checkpoint()", "logger.log(data=metrics"]
    assert sorted(calls, key=body.index) == calls


def test_without_an_end_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ending.ENDS_AT, ending.THEIRS):
        monkeypatch.setenv(name, "")  # put back as it was, whoever sets it
        monkeypatch.delenv(name)
    finders = list(sys.meta_path)
    ending.install()
    assert sys.meta_path == finders
    monkeypatch.setenv(ending.ENDS_AT, "12")
    monkeypatch.setitem(sys.modules, ending.V1, types.SimpleNamespace(PPOTrainer=type("T", (FakeTrainer,), {})))
    ending.install()
    assert os.environ[ending.THEIRS] == "12"
