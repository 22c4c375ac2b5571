"""The controller is killed at random instants, again and again: nothing is lost, nothing is done twice.

The controller, ledger, samplers and processes are real; the trainer is a script (tests/support/drive.py)."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from sweeper.trial.ledger import Event, Ledger

DRIVE = Path(__file__).resolve().parents[1] / "support" / "drive.py"
COUNT = 10
RAN = ("running", "interrupted")  # the latter: nobody holds the ledger any more


def drive(store: Path, name: str, sampler: str, concurrency: int, scheduler: str) -> subprocess.Popen[bytes]:
    arguments = [str(store), name, sampler, str(COUNT), str(concurrency), scheduler]
    return subprocess.Popen([sys.executable, str(DRIVE), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(store: Path, name: str, sampler: str, concurrency: int, scheduler: str) -> None:
    process = drive(store, name, sampler, concurrency, scheduler)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error.decode()


def killed(
    store: Path,
    name: str,
    sampler: str,
    concurrency: int,
    scheduler: str,
    rng: random.Random,
    kills: int,
    *,
    all_of_it: bool = False,
) -> Counter[str]:
    """Kill the controller so many times, or until it has ended by itself. `all_of_it`: with the guards and trainers, as
    when a machine loses its power.

    Counted: `kills`, those that found the sweep `begun`, and those that found an attempt `running`.
    """
    found: Counter[str] = Counter()
    for _ in range(kills):
        process = drive(store, name, sampler, concurrency, scheduler)
        try:
            # Importing takes most of a second; instants are spread over all of a run, from before its first write.
            process.communicate(timeout=rng.uniform(0.3, 2.2))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            for pid in of_attempts(store) if all_of_it else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate()
        else:
            assert process.returncode == 0
            return found
        states = Ledger.read(store / name / "ledger.db") if (store / name / "ledger.db").exists() else {}
        found += Counter({"kills": 1, "begun": bool(states), "running": any(s.state in RAN for s in states.values())})
    return found


def of_attempts(store: Path) -> list[int]:
    """The processes with a folder of the store on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{store}/".encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


def events(store: Path, name: str) -> list[Event]:
    return Ledger.history(store / name / "ledger.db")


def proposed(store: Path, name: str) -> list[tuple[str, object]]:
    return [(str(e.trial), e.data["params"]) for e in events(store, name) if e.kind == "trial_planned"]


def check(store: Path, name: str, done: set[str], *, repeats: bool = False) -> None:
    """`repeats`: a trainer may have died between a step and its checkpoint."""
    states = Ledger.read(store / name / "ledger.db")
    assert len(states) == COUNT, "planned = there"
    assert {s.state for s in states.values()} <= done, "none lost"
    for trial, state in states.items():
        ends = [e for e in events(store, name) if e.trial == trial and e.data.get("state") in done]
        assert len(ends) == 1, f"{trial} was done {len(ends)} times"
        steps = [int(s) for s in (store / name / "trials" / trial / "steps.txt").read_text().split()]
        if state.state == "finished" and not state.forked:  # a fork goes on from where its donor was
            assert set(steps) == set(range(1, 7)), "no step is missing"
            assert state.last_step == 6
        assert repeats or steps.count(1) == 1, (
            "a trial never starts from the beginning again once its first step was made"
        )
    # No process of an attempt is left, and every attempt's end is on record.
    for attempt in (store / name / "trials").glob("*/attempt-*"):
        assert (attempt / "exit.json").exists() or not (attempt / "attempt.json").exists(), attempt


def test_a_sweep_killed_at_25_random_instants_ends_as_planned_with_the_samplers_own_sequence(tmp_path: Path) -> None:
    finish(tmp_path, "whole", "tpe", 1, "none")
    rng = random.Random(20261121)
    kills: Counter[str] = Counter()
    round_ = 0
    while kills["begun"] < 25 or kills["running"] < 10:  # not those alone that come before anything was written
        name = f"killed-{round_}"
        kills += killed(tmp_path, name, "tpe", 1, "none", rng, 8)
        finish(tmp_path, name, "tpe", 1, "none")
        check(tmp_path, name, {"finished"})
        assert proposed(tmp_path, name) == proposed(tmp_path, "whole"), (
            "the sampler's sequence is the uninterrupted one"
        )
        round_ += 1
        assert round_ < 25, f"the controller ends before it can be killed, or is killed before it begins: {kills}"


def test_a_power_cut_costs_no_trial(tmp_path: Path) -> None:
    rng = random.Random("power")
    kills: Counter[str] = Counter()
    for round_ in range(25):
        name = f"cut-{round_}"
        kills += killed(tmp_path, name, "random", 2, "none", rng, 6, all_of_it=True)
        finish(tmp_path, name, "random", 2, "none")
        check(tmp_path, name, {"finished"}, repeats=True)
        if kills["running"] >= 5:
            return
    raise AssertionError(f"no attempt was hit: {kills}")


@pytest.mark.parametrize("scheduler", ["asha", "median", "hyperband", "pbt", "pb2"])
def test_a_killed_sweep_with_a_scheduler_and_two_at_a_time_ends_as_planned(tmp_path: Path, scheduler: str) -> None:
    rng = random.Random(scheduler)
    killed(tmp_path, "k", "random", 2, scheduler, rng, 6)
    finish(tmp_path, "k", "random", 2, scheduler)
    finish(tmp_path, "whole", "random", 2, scheduler)
    check(tmp_path, "k", {"finished", "pruned"})
    assert proposed(tmp_path, "k") == proposed(tmp_path, "whole")


@pytest.mark.long
def test_200_kills(tmp_path: Path) -> None:
    rng = random.Random(200)
    kills: Counter[str] = Counter()
    round_ = 0
    while kills["begun"] < 200:
        sampler, scheduler = rng.choice(["random", "tpe", "qmc"]), rng.choice(["none", "asha", "hyperband"])
        name = f"k{round_}"
        kills += killed(tmp_path, name, sampler, 2, scheduler, rng, 8)
        finish(tmp_path, name, sampler, 2, scheduler)
        check(tmp_path, name, {"finished", "pruned"})
        if sampler != "tpe":  # what it proposes depends on which result comes first, and two run at a time
            whole = f"whole-{sampler}-{scheduler}"
            if not (tmp_path / whole).exists():
                finish(tmp_path, whole, sampler, 2, scheduler)
            assert proposed(tmp_path, name) == proposed(tmp_path, whole)
        round_ += 1


def test_two_controllers_on_one_sweep_the_second_is_refused_with_the_firsts_host_and_pid(tmp_path: Path) -> None:
    first = drive(tmp_path, "one", "random", 1, "none")
    try:
        while not (tmp_path / "one" / "ledger.db").exists() or not proposed(tmp_path, "one"):
            time.sleep(0.05)
        second = drive(tmp_path, "one", "random", 1, "none")
        _, error = second.communicate(timeout=60)
        assert second.returncode == 2
        assert f"process {first.pid} on {socket.gethostname()}" in error.decode()
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=60)
