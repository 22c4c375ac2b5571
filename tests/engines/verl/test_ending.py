"""A checkpoint before the time is over. The trainers are fakes; the rule that ours is compared with is verl's."""

from __future__ import annotations

import os
import sys
import types
from typing import Any

import pytest

from sweeper.engines.verl import ending


class FakeTrainer:
    """verl's V1 trainer as far as it matters here."""

    def __init__(self, **trainer: Any) -> None:
        class Said(dict[str, Any]):
            __getattr__ = dict.__getitem__

        self.config = types.SimpleNamespace(trainer=Said({"save_freq": 100, "esi_redundant_time": 0, **trainer}))
        self.global_steps, self.total_training_steps = 0, 1000
        self.saved: list[int] = []
        self.stopped = 0

    def _stop_profiling(self) -> None:
        self.stopped += 1

    def _save_checkpoint(self) -> None:
        self.saved.append(self.global_steps)


def run(ends_at: float, at: list[float], monkeypatch: pytest.MonkeyPatch, **trainer: Any) -> FakeTrainer:
    """Steps that end at those times."""
    kind = type("PPOTrainer", (FakeTrainer,), {})
    ending.patch(types.SimpleNamespace(PPOTrainer=kind), ends_at)
    made = kind(**trainer)
    for now in at:
        monkeypatch.setattr("time.time", lambda now=now: now)
        made.global_steps += 1
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
    body = text[text.index("batch = self.step(metrics, self.timing_raw)") :]
    assert body.index("self._stop_profiling()") < body.index("self._save_checkpoint()")


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
