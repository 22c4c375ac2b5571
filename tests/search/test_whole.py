"""What a sweep proposes, reuses and reports, from the words of a request to its last line. The trainer is a fake
(tests/support/scripted.py); plan, ledger, samplers, cluster and processes are real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import scripted as scripted_module
from scripted import REQUEST, events, run, scripted

from sweeper.cli.main import main
from sweeper.config.compose import Composer

__all__ = ["scripted"]

pytestmark = pytest.mark.usefixtures("scripted")
TOKENS = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
SPACE = ("lr=tag(log,interval(1e-6,1e-2))", "kl=choice(0,1e-3,1e-2)", "max_concurrent=1")


def proposed(store: Path, name: str) -> list[tuple[str | None, Any]]:
    return [(e.trial, e.data["params"]) for e in events(store, name, "trial_planned")]


@pytest.mark.parametrize("search", [("search=random",), ("search=tpe", "search.startup=3")])
def test_a_finished_sweep_is_extended_by_the_proposals_of_one_that_never_ended(
    search: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "whole", "s", *search, *SPACE, "search.trials=9")
    run(tmp_path / "parts", "s", *search, *SPACE, "search.trials=6")
    first = proposed(tmp_path / "parts", "s")
    assert len(first) == 6 and len(events(tmp_path / "parts", "s", "sweep_ended")) == 1
    capsys.readouterr()
    assert main(["extend", "s", "--trials", "9", "--store", str(tmp_path / "parts")]) == 0
    assert proposed(tmp_path / "parts", "s") == proposed(tmp_path / "whole", "s")
    assert proposed(tmp_path / "parts", "s")[:6] == first
    started = [e.trial for e in events(tmp_path / "parts", "s", "attempt_started")]
    assert started == [f"{n:03d}" for n in range(9)], "what was finished is not run again"
    (extended,) = events(tmp_path / "parts", "s", "sweep_extended")
    assert extended.data["planned"] == 9
    assert main(["status", "s", "--store", str(tmp_path / "parts")]) == 0
    assert "s: 9 finished" in capsys.readouterr().out
    assert main(["extend", "s", "--trials", "9", "--store", str(tmp_path / "parts")]) == 2, "it has 9 already"


def test_arms_that_differ_in_placement_only_are_all_run_where_their_trial_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "before", f"{TOKENS}=4096")
    run(tmp_path, "arms", f"{TOKENS}=4096,8192", "lr=1e-4,1e-5")
    assert f"placement {TOKENS}=8192 in lr=1e-05: 8,192 tokens/s over 1 candidate" in capsys.readouterr().out
    run(tmp_path, "both", f"{TOKENS}=4096,8192")
    assert not events(tmp_path, "both", "trial_reused")
    assert [e.trial for e in events(tmp_path, "both", "attempt_started")] == ["000", "001"]
    said = capsys.readouterr().out
    assert f"placement {TOKENS}=4096: 4,096 tokens/s over 1 candidate; score " in said
    assert f"placement {TOKENS}=8192: 8,192 tokens/s over 1 candidate, 2.00 x that of {TOKENS}=4096; score " in said
    run(tmp_path, "again", f"{TOKENS}=8192")
    assert [e.data["sweep"] for e in events(tmp_path, "again", "trial_reused")] == ["before"], "nothing is compared"


def test_a_grid_is_gone_on_with_from_its_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = scripted_module.TRAINER + "    raise SystemExit(lr == 1e-4)\n"
    request = ["search=grid", "lr=choice(1e-5,1e-4,1e-3)", "kl=choice(0,1e-3)", "failures.retries=0"]
    with monkeypatch.context() as while_broken:
        while_broken.setattr(scripted_module, "TRAINER", broken)
        assert main(["run", *REQUEST, *request, f"store={tmp_path}", "name=s"]) == 1
    composed: list[Any] = []
    compose = Composer.compose
    monkeypatch.setattr(Composer, "compose", lambda self, point: composed.append(point) or compose(self, point))
    capsys.readouterr()
    assert main(["resume", "s", "--store", str(tmp_path)]) == 0
    again = [e.trial for e in events(tmp_path, "s", "attempt_started")][6:]
    assert again == ["002", "003"], "those that had failed, and no other"
    values = {(point.varied.get("lr"), point.varied.get("kl")) for point in composed}
    assert (1e-4, 1e-3) in values
    assert (1e-3, 1e-3) not in values, "what has finished is not planned again"
    assert main(["status", "s", "--store", str(tmp_path)]) == 0
    assert "s: 6 finished" in capsys.readouterr().out
