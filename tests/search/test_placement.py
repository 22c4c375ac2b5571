"""Placements: what is chosen of given measurements, when it is measured, that it is measured once. The
engine, the cluster and their runs are fakes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeCluster, FakeDisplay, FakeEngine, fake_config

from sweeper import app
from sweeper.config import tree
from sweeper.config.hydra_app import initialized
from sweeper.engines.base import Knob, Progress, Shape, Workload
from sweeper.errors import Problem
from sweeper.plan.arms import ArmPlan, Sized
from sweeper.plan.plan import Plan
from sweeper.search import placement
from sweeper.search.placement import Choice, Measured, decide
from sweeper.search.settings import SearchSettings
from sweeper.trial.identity import fingerprint
from sweeper.trial.spec import Point, Trial

TP = "rollout.tensor_model_parallel_size"
ABOVE = 0.05
SETTINGS = {"probe": "auto", "steps": 2, "runs": 8, "mismatch_above": ABOVE}


def one(tp: int, rate: float | None, mismatch: float | None = 0.001, failed: str = "") -> Measured:
    return Measured({TP: tp}, rate, mismatch, 3, failed)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(placement, "POLL_S", 0.0)


# --- the decision ---


def test_the_fastest_is_taken_and_said_why() -> None:
    choice = decide([one(1, 100.0), one(2, 140.0), one(4, 120.0)], ABOVE)
    assert choice.keys == {TP: 2}
    assert choice.why == "tp=2: 1.4 x the throughput of tp=1, mismatch 0.001"
    assert not choice.warning


@pytest.mark.parametrize("faster", [100.0, 104.0])
def test_within_what_two_measurements_differ_by_the_default_stays(faster: float) -> None:
    assert decide([one(2, 100.0), one(1, faster)], ABOVE).keys == {TP: 2}


def test_of_two_equally_fast_the_earlier_one_is_taken() -> None:
    assert decide([one(1, 50.0), one(2, 100.0), one(4, 100.0)], ABOVE).keys == {TP: 2}


@pytest.mark.parametrize("mismatch", [0.06, 0.02, math.nan], ids=["above the limit", "20 x the default's", "nan"])
def test_a_placement_that_changes_the_numbers_is_not_taken_however_fast(mismatch: float) -> None:
    choice = decide([one(1, 100.0), one(2, 900.0, mismatch)], ABOVE)
    assert choice.keys == {TP: 1}
    assert "tp=2" in choice.why


def test_rounding_is_no_mismatch() -> None:
    assert decide([one(1, 100.0, 1e-8), one(2, 200.0, 1e-4)], ABOVE).keys == {TP: 2}


def test_a_default_that_changes_the_numbers_is_left_for_one_that_does_not() -> None:
    choice = decide([one(2, 200.0, 0.3), one(1, 100.0, 0.001)], ABOVE)
    assert choice.keys == {TP: 1}
    assert choice.why == "tp=1: tp=2 has a mismatch of 0.3, mismatch 0.001"


@pytest.mark.parametrize("above", [ABOVE, None])
def test_where_all_change_the_numbers_the_least_is_taken_with_a_warning(above: float | None) -> None:
    choice = decide([one(1, 100.0, math.nan), one(2, 50.0, math.nan if above is None else 0.2)], above)
    assert choice.warning
    assert choice.keys == ({TP: 1} if above is None else {TP: 2})


def test_without_a_limit_only_the_default_is_the_measure() -> None:
    assert decide([one(1, 100.0, 0.4), one(2, 200.0, 0.5)], None).keys == {TP: 2}


def test_an_engine_that_writes_no_mismatch_is_judged_by_throughput() -> None:
    assert decide([one(1, 100.0, None), one(2, 200.0, None)], ABOVE).keys == {TP: 2}


def test_a_failed_default_gives_way_and_a_failed_other_does_not_matter() -> None:
    failed = one(4, None, None, "out-of-memory")
    assert decide([failed, one(2, 10.0)], ABOVE).why == "tp=2: tp=4 does not run (out-of-memory), mismatch 0.001"
    assert decide([one(2, 10.0), failed], ABOVE).why == "tp=2: the only one that runs, mismatch 0.001"


def test_where_all_fail_the_default_is_taken_with_a_warning() -> None:
    choice = decide([one(1, None, None, "bug: planted"), one(2, None, None, "x")], ABOVE)
    assert choice.keys == {TP: 1}
    assert "bug: planted" in choice.warning


# --- what it does to a trial ---


def test_a_placement_is_put_into_the_trial_and_does_not_change_what_it_is() -> None:
    key = "actor_rollout_ref.rollout.tensor_model_parallel_size"
    config = {
        "engine": {"name": "verl"},
        "actor_rollout_ref": {"rollout": {"name": "vllm", "tensor_model_parallel_size": 1}},
    }
    trial = Trial("000", Point((), {}), config, arm="0")
    other = placement.applied(trial, {"0": Choice({key: 2}, "")})
    assert other.config["actor_rollout_ref"]["rollout"] == {"name": "vllm", "tensor_model_parallel_size": 2}
    assert config["actor_rollout_ref"]["rollout"]["tensor_model_parallel_size"] == 1, "the plan's own is unchanged"
    assert fingerprint(dict(other.config)) == fingerprint(config)
    assert placement.applied(trial, {"1": Choice({key: 2}, "")}) is trial, "another arm's"
    refused = placement.applied(trial, {"0": Choice({key: 2}, "")}, lambda config: config is trial.config)
    assert refused is trial, "one that this trial cannot run with"


# --- measuring ---


MICRO, CACHE = "trainer.micro", "rollout.cache"


class ProbedEngine(FakeEngine):
    """A fake whose throughput and mismatch are what the config says for its tensor parallel size; a size that is not
    named there fails. `trainer.micro` and `rollout.cache` are knobs too where `turns` has factors for their settings
    (times its own throughput; 0: out of memory); what fits depends on the other knobs as `room` says."""

    validation_key, saving_key = "test_freq", "save_freq"

    def __init__(self, sizes: tuple[int, ...] = (1, 2), **turns: dict[int, float]) -> None:
        super().__init__()
        self.sizes, self.turns = sizes, turns
        self.ran: list[dict[str, Any]] = []

    def placements(self, config: Mapping[str, Any], shape: Shape, typed: Any = ()) -> list[Knob]:
        own = config["rollout"]["tensor_model_parallel_size"]
        sizes = [own] if {"tp", TP} & set(typed) else [own, *(size for size in self.sizes if size != own)]
        knobs = [Knob("tp", tuple({TP: size} for size in sizes))]
        for name, key in (("micro", MICRO), ("cache", CACHE)):
            if name in self.turns and key not in typed:
                now = tree.get(config, key, 1)
                more = [value for value in self.turns[name] if value > now and value * own <= config.get("room", 99)]
                knobs.append(Knob(name, tuple({key: value} for value in (now, *more)), ordered=True))
        return knobs

    def check(self, config: Mapping[str, Any], shape: Shape) -> list[Problem]:
        return [Problem("tp=16 is too large")] if config["rollout"]["tensor_model_parallel_size"] == 16 else []

    def workload(self, config: Mapping[str, Any], shape: Shape) -> Workload:
        return Workload(config["steps"], config["batch"], 8, 8, 1, False, 100)

    def rate(self, config: Mapping[str, Any]) -> float:
        rate = float(config["rates"].get(str(config["rollout"]["tensor_model_parallel_size"]), 0))
        for name, key in (("micro", MICRO), ("cache", CACHE)):
            rate *= self.turns.get(name, {}).get(tree.get(config, key, 1), 1.0)
        return rate

    def job(self, config: Mapping[str, Any], paths: Any) -> Any:
        self.ran.append(dict(config))
        able = self.rate(config) > 0
        return super().job({**config, "code": 0 if able else 1, "steps": config["steps"] if able else 0}, paths)

    def progress(self, line: Mapping[str, Any], config: Mapping[str, Any]) -> Progress | None:
        size = config["rollout"]["tensor_model_parallel_size"]
        rate = 1e9 if line["step"] == 1 else self.rate(config)  # the first step must not count
        signals = {"mismatch": config.get("mismatch", 0.001) * size}
        return Progress(line["step"], {}, tokens_per_s=rate, signals=signals)


def config_of(**changes: Any) -> dict[str, Any]:
    return fake_config(
        **{
            "steps": 100,
            "batch": 64,
            "rates": {"1": 100.0, "2": 140.0},
            "rollout": {"tensor_model_parallel_size": 1, "length": 8, "seed": 1},
            "placement": SETTINGS,
            "failures": {"first_step_s": 60},
            "test_freq": 1,
            "save_freq": 1,
            **changes,
        }
    )


def plan_of(
    *configs: dict[str, Any], overrides: tuple[str, ...] = (), budget: int = 4, cluster: FakeCluster | None = None
) -> Plan:
    shape = (cluster or FakeCluster(4)).shape
    arms = []
    for number, config in enumerate(configs):
        point = Point(overrides, {})
        work = Workload(config["steps"], config["batch"], 8, 8, 1, False, 100)
        example = Sized(Trial("example", point, config, arm=str(number)), None, work, None)
        maker: Any = None
        arms.append(ArmPlan(str(number), point, "", (), shape, budget, None, 0, (), (), example, maker))
    return Plan(overrides, tuple(arms), SearchSettings(), (), {a.id: shape for a in arms}, {})


def chosen(
    tmp_path: Path, plan: Plan, engine: ProbedEngine, display: FakeDisplay | None = None
) -> tuple[dict[str, Choice], FakeDisplay, FakeCluster]:
    display, cluster = display or FakeDisplay(), FakeCluster(4)
    fake: Any = engine
    return placement.choose(plan, fake, cluster, tmp_path / "sweep", display), display, cluster


def announced(plan: Plan, engine: ProbedEngine) -> list[tuple[int, int]]:
    fake: Any = engine
    return [(each.runs, each.steps) for each in placement.expected(plan, fake)]


def test_what_a_plan_announces_is_what_is_probed_and_nothing_once_it_is_known(tmp_path: Path) -> None:
    plan = plan_of(config_of(), config_of(lr=1e-3))
    assert announced(plan, ProbedEngine()) == [(2, 3)]
    chosen(tmp_path, plan, ProbedEngine())
    assert announced(plan, ProbedEngine()) == []
    again = plan_of(config_of(placement={**SETTINGS, "probe": True}))
    assert announced(again, ProbedEngine()) == [(2, 3)], "asked to"


@pytest.mark.parametrize("budget", [1, 3, 4])
def test_no_more_probes_are_announced_than_the_sweep_is_worth(tmp_path: Path, budget: int) -> None:
    plan, engine = plan_of(config_of(steps=30), budget=budget), ProbedEngine(sizes=(1, 2, 4, 8))
    worth = announced(plan, engine)
    assert worth == ([] if budget == 1 else [(budget, 3)])
    _, _, cluster = chosen(tmp_path, plan, engine)
    assert len(cluster.started) == sum(runs for runs, _ in worth)


def test_the_plan_shows_probes_with_their_cost(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["model=qwen7b", "cluster=node_8gpu", "environment=gsm8k", "placement.probe=true", "plan=true"]
    with initialized():
        assert app.run(line) == 0
        text = capsys.readouterr().out
        assert app.run([*line, "output=json"]) == 0
        (probes,) = json.loads(capsys.readouterr().out)["probes"]
        assert app.run([*line[:3], "placement.probe=false", "plan=true"]) == 0
    assert "probe" not in capsys.readouterr().out.replace("placement.probe", "")
    said = f"at most {probes['runs']} probes of 4 steps for its placement, about {probes['gpu_hours']:.1f} GPU-hours"
    assert said in text and ", ".join(probes["knobs"]) in text and "placement.probe=false runs none" in text


def test_each_placement_runs_a_few_steps_and_the_faster_one_is_kept(tmp_path: Path) -> None:
    engine = ProbedEngine()
    found, display, cluster = chosen(tmp_path, plan_of(config_of()), engine)
    assert found["0"].keys == {TP: 2}
    assert cluster.started == ["tp=1", "tp=2"]
    assert cluster.peak == 1, "one at a time: they would slow each other down"
    assert [c["steps"] for c in engine.ran] == [3, 3]
    assert [m.tokens_per_s for m in found["0"].measured] == [100.0, 140.0], "the first step is not counted"
    assert not list((tmp_path / "sweep").rglob("checkpoints/*")), "nothing of a probe is worth keeping"
    assert "tp=2: 1.4 x the throughput of tp=1" in display.of("note")[-1]["message"]


def test_arms_that_differ_in_what_does_not_matter_share_a_probe(tmp_path: Path) -> None:
    other = config_of(lr=1e-3, rollout={"tensor_model_parallel_size": 1, "length": 8, "seed": 7})
    found, _, cluster = chosen(tmp_path, plan_of(config_of(), other), ProbedEngine())
    assert found["0"] == found["1"]
    assert len(cluster.started) == 2


def test_a_later_sweep_does_not_probe_again_however_short_it_is(tmp_path: Path) -> None:
    chosen(tmp_path, plan_of(config_of()), ProbedEngine())
    found, display, cluster = chosen(tmp_path / "later", plan_of(config_of(steps=5), budget=1), ProbedEngine())
    assert found["0"].keys == {TP: 2}
    assert not cluster.started
    assert "probed 2" in display.of("note")[-1]["message"], "and says when"


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": 128},
        {"rollout": {"tensor_model_parallel_size": 1, "length": 16, "seed": 1}},
        {"model": {"arch": {"layers": 4}}},
        {"ranks": 2},
        {"placement": {**SETTINGS, "probe": True}},
    ],
    ids=["batch", "lengths", "model", "gang", "asked to"],
)
def test_it_probes_again_where_a_fact_is_another(tmp_path: Path, changes: dict[str, Any]) -> None:
    chosen(tmp_path, plan_of(config_of()), ProbedEngine())
    _, _, cluster = chosen(tmp_path / "later", plan_of(config_of(**changes)), ProbedEngine())
    assert cluster.started == ["tp=1", "tp=2"]


def test_a_cluster_of_another_shape_is_another_fact(tmp_path: Path) -> None:
    chosen(tmp_path, plan_of(config_of()), ProbedEngine())
    _, _, cluster = chosen(tmp_path, plan_of(config_of(), cluster=FakeCluster(8)), ProbedEngine())
    assert cluster.started


def test_what_is_kept_says_what_it_depends_on(tmp_path: Path) -> None:
    chosen(tmp_path, plan_of(config_of()), ProbedEngine())
    (kept,) = Path(os.environ["SWEEPER_CACHE"]).glob("placement-*/measured.json")
    said = json.loads(kept.read_text())
    assert {"date", "host", "facts", "measured"} <= said.keys()
    assert said["facts"]["work"]["responses_per_step"] == 64
    assert "versions" in said["facts"]


def test_torn_measurements_are_made_again(tmp_path: Path) -> None:
    chosen(tmp_path, plan_of(config_of()), ProbedEngine())
    (kept,) = Path(os.environ["SWEEPER_CACHE"]).glob("placement-*/measured.json")
    kept.write_text('{"measured": [')
    found, _, cluster = chosen(tmp_path / "later", plan_of(config_of()), ProbedEngine())
    assert found["0"].keys == {TP: 2}
    assert len(cluster.started) == 2


@pytest.mark.parametrize(
    ("plan", "engine"),
    [
        (plan_of(config_of()), ProbedEngine(sizes=(1,))),
        (
            plan_of(config_of(placement={**SETTINGS, "probe": False})),
            ProbedEngine(),
        ),
        (plan_of(config_of(), overrides=(f"{TP}=1",)), ProbedEngine()),
        (plan_of(config_of(), overrides=("tp=1",)), ProbedEngine()),
        (plan_of(config_of(steps=10), budget=5), ProbedEngine()),
    ],
    ids=["no choice", "switched off", "typed", "typed by its short name", "too short a sweep"],
)
def test_nothing_is_probed_where_it_is_not_wanted(tmp_path: Path, plan: Plan, engine: ProbedEngine) -> None:
    found, display, cluster = chosen(tmp_path, plan, engine)
    assert not found
    assert not cluster.started
    assert not display.events


def test_a_short_sweep_probes_when_it_is_told_to(tmp_path: Path) -> None:
    wanted = config_of(steps=3, placement={**SETTINGS, "probe": True})
    found, _, cluster = chosen(tmp_path, plan_of(wanted, budget=1), ProbedEngine())
    assert len(cluster.started) == 2
    assert found["0"].keys == {TP: 2}


def test_a_probe_that_fails_or_cannot_run_never_breaks_the_sweep(tmp_path: Path) -> None:
    found, _, cluster = chosen(tmp_path, plan_of(config_of(rates={"2": 5.0})), ProbedEngine(sizes=(1, 2, 16)))
    assert found["0"].keys == {TP: 2}
    assert cluster.started == ["tp=1", "tp=2"], "16 was refused before it was started"
    assert [m.failed for m in found["0"].measured] == ["bug: ValueError: planted", "", "tp=16 is too large"]


def test_where_every_probe_fails_the_default_runs_with_a_warning_and_nothing_is_kept(tmp_path: Path) -> None:
    found, display, _ = chosen(tmp_path, plan_of(config_of(rates={})), ProbedEngine())
    assert found["0"].keys == {TP: 1}
    assert display.of("warning")
    assert not list(Path(os.environ["SWEEPER_CACHE"]).glob("placement-*"))


def test_a_probe_that_hangs_is_ended(tmp_path: Path) -> None:
    hanging = config_of(hold=True, rates={"1": 1.0}, failures={"first_step_s": 0.01})
    fake: Any = ProbedEngine()
    shape, folder = FakeCluster(4).shape, tmp_path / "probe"
    question = placement._Question({**hanging, "steps": 0}, shape, ("tp",), frozenset(), 2, {})
    measured = placement.probe(question, {TP: 2}, fake, FakeCluster(4), folder)
    assert "not done after" in measured.failed


# --- one knob after the other ---


def test_knobs_are_turned_one_after_the_other_each_from_the_best_so_far(tmp_path: Path) -> None:
    engine = ProbedEngine(micro={2: 1.5, 4: 2.0}, cache={2: 1.2})
    found, display, cluster = chosen(tmp_path, plan_of(config_of()), engine)
    at = "tp=2,micro=4"
    assert cluster.started == ["tp=1", "tp=2", "tp=2,micro=2", at, f"{at},cache=2"], "no product of them"
    assert found["0"].keys == {TP: 2, MICRO: 4, CACHE: 2}
    assert found["0"].why.startswith("tp=2 micro=4 cache=2: 3.4 x the throughput of tp=1")
    assert "tp, micro, cache" in display.of("preparing")[0]["message"]


def test_a_knob_that_goes_one_way_is_left_at_the_first_setting_that_is_no_faster(tmp_path: Path) -> None:
    engine = ProbedEngine(sizes=(1,), micro={2: 1.5, 4: 1.5, 8: 9.0}, cache={2: 1.01, 4: 9.0})
    found, _, cluster = chosen(tmp_path, plan_of(config_of()), engine)
    assert found["0"].keys == {MICRO: 2}
    assert cluster.started == ["micro=1", "micro=2", "micro=4", "micro=2,cache=2"]


def test_a_setting_that_runs_out_of_memory_is_left_and_the_next_knob_is_turned(tmp_path: Path) -> None:
    engine = ProbedEngine(micro={2: 0.0, 4: 9.0}, cache={2: 1.3})
    found, _, cluster = chosen(tmp_path, plan_of(config_of()), engine)
    assert found["0"].keys == {TP: 2, CACHE: 2}
    assert cluster.started == ["tp=1", "tp=2", "tp=2,micro=2", "tp=2,cache=2"]
    assert next(m.failed for m in found["0"].measured if m.keys == {TP: 2, MICRO: 2})


def test_what_does_not_fit_with_what_was_chosen_before_is_never_probed(tmp_path: Path) -> None:
    engine = ProbedEngine(micro={2: 1.5, 4: 2.0})
    found, _, cluster = chosen(tmp_path, plan_of(config_of(room=4)), engine)
    assert found["0"].keys == {TP: 2, MICRO: 2}, "4 fits with tp=1 only"
    assert cluster.started == ["tp=1", "tp=2", "tp=2,micro=2"]


@pytest.mark.parametrize("runs", [2, 3, 4])
def test_there_are_never_more_runs_than_asked_for(tmp_path: Path, runs: int) -> None:
    settings = {**SETTINGS, "runs": runs}
    engine = ProbedEngine(micro={2: 1.5, 4: 2.0}, cache={2: 1.2})
    found, _, cluster = chosen(tmp_path, plan_of(config_of(placement=settings)), engine)
    assert len(cluster.started) == runs
    assert found["0"].keys == {2: {TP: 2}, 3: {TP: 2, MICRO: 2}, 4: {TP: 2, MICRO: 4}}[runs], "the best of those"


def test_a_sweep_probes_as_much_as_it_is_worth_and_a_longer_one_only_what_is_left(tmp_path: Path) -> None:
    turns = {"micro": {2: 1.5}, "cache": {2: 1.2}}
    # 3 steps a probe, ten times as many of the sweep: 90 steps pay for 3.
    found, _, cluster = chosen(tmp_path, plan_of(config_of(steps=30), budget=3), ProbedEngine(**turns))
    assert (len(cluster.started), found["0"].keys) == (3, {TP: 2, MICRO: 2})
    later, display, cluster = chosen(tmp_path / "short", plan_of(config_of(steps=5), budget=1), ProbedEngine(**turns))
    assert (later["0"].keys, cluster.started) == ({TP: 2, MICRO: 2}, [])
    assert "probed 2" in display.of("note")[-1]["message"]
    longer, _, cluster = chosen(tmp_path / "long", plan_of(config_of()), ProbedEngine(**turns))
    assert (longer["0"].keys, cluster.started) == ({TP: 2, MICRO: 2, CACHE: 2}, ["tp=2,micro=2,cache=2"])


class Killed(FakeCluster):
    """The controller dies when it is about to start its n-th probe."""

    def __init__(self, ranks: int, before: int) -> None:
        super().__init__(ranks)
        self.before = before

    def start(self, *args: Any) -> Any:
        if len(self.started) + 1 == self.before:
            raise KeyboardInterrupt
        return super().start(*args)


@pytest.mark.parametrize("probe", ["auto", True])
@pytest.mark.parametrize("before", [1, 2, 3, 5])
def test_killed_among_its_probes_a_sweep_makes_each_once_and_chooses_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probe: Any, before: int
) -> None:
    settings = {**SETTINGS, "probe": probe}
    plan, turns = plan_of(config_of(placement=settings)), {"micro": {2: 1.5, 4: 2.0}, "cache": {2: 1.2}}
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "another"))
    whole, _, never_killed = chosen(tmp_path / "whole", plan, ProbedEngine(**turns))
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    killed, fake = Killed(4, before), ProbedEngine(**turns)
    with pytest.raises(KeyboardInterrupt):
        placement.choose(plan, fake, killed, tmp_path / "sweep", FakeDisplay())  # type: ignore[arg-type]
    found, _, cluster = chosen(tmp_path, plan, ProbedEngine(**turns))
    assert killed.started + cluster.started == never_killed.started, "each once"
    assert found["0"].keys == whole["0"].keys
    again, _, cluster = chosen(tmp_path, plan, ProbedEngine(**turns))
    assert (again["0"].keys, cluster.started) == (whole["0"].keys, []), "nor are they made again by a later resume"


def test_what_a_sweep_measured_under_other_facts_is_not_taken_for_these(tmp_path: Path) -> None:
    chosen(tmp_path, plan_of(config_of()), ProbedEngine())
    _, _, cluster = chosen(tmp_path, plan_of(config_of(batch=128)), ProbedEngine())
    assert cluster.started == ["tp=1", "tp=2"]


def test_more_knobs_are_other_facts_and_so_are_other_settings(tmp_path: Path) -> None:
    chosen(tmp_path, plan_of(config_of()), ProbedEngine())
    for number, turns in enumerate(({"micro": {2: 1.5}}, {"micro": {2: 1.5, 4: 1.6}}, {"cache": {2: 1.5}})):
        _, _, cluster = chosen(tmp_path / str(number), plan_of(config_of()), ProbedEngine(**turns))
        assert cluster.started[:2] == ["tp=1", "tp=2"], "measured with one knob says nothing of a placement with two"


def test_what_an_earlier_version_kept_is_not_misread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_VERSION", placement._VERSION - 1)
    chosen(tmp_path, plan_of(config_of()), ProbedEngine())
    monkeypatch.undo()
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(placement, "POLL_S", 0.0)
    _, _, cluster = chosen(tmp_path / "later", plan_of(config_of()), ProbedEngine())
    assert cluster.started == ["tp=1", "tp=2"]


@pytest.mark.parametrize("line", [f"{MICRO}=1", f"+{MICRO}=1"])
def test_a_knob_that_was_typed_is_not_turned_and_the_others_are(tmp_path: Path, line: str) -> None:
    engine = ProbedEngine(micro={2: 1.5}, cache={2: 1.2})
    found, _, cluster = chosen(tmp_path, plan_of(config_of(), overrides=(line,)), engine)
    assert found["0"].keys == {TP: 2, CACHE: 2}
    assert not any("micro" in name for name in cluster.started)


def test_a_typed_size_leaves_the_other_knobs(tmp_path: Path) -> None:
    engine = ProbedEngine(micro={2: 1.5})
    found, _, cluster = chosen(tmp_path, plan_of(config_of(), overrides=("tp=1",)), engine)
    assert (found["0"].keys, cluster.started) == ({MICRO: 2}, ["micro=1", "micro=2"])


def test_what_the_file_of_an_experiment_sets_is_the_users(tmp_path: Path) -> None:
    class Maker:
        def compose(self, params: Any, seed: Any) -> Any:
            return SimpleNamespace(explicit={MICRO: 1})

    plan = plan_of(config_of(), overrides=("experiment=mine",))
    plan = dataclasses.replace(plan, arms=tuple(dataclasses.replace(a, maker=Maker()) for a in plan.arms))  # type: ignore[arg-type]
    found, _, _ = chosen(tmp_path, plan, ProbedEngine(micro={2: 1.5}))
    assert found["0"].keys == {TP: 2}


def test_where_every_size_changes_the_numbers_no_other_knob_is_turned(tmp_path: Path) -> None:
    engine = ProbedEngine(micro={2: 1.5})
    found, _, cluster = chosen(tmp_path, plan_of(config_of(mismatch=0.1)), engine)
    assert found["0"].warning
    assert cluster.started == ["tp=1", "tp=2"]


def test_another_limit_leads_another_way_through_what_is_kept(tmp_path: Path) -> None:
    turns = {"micro": {2: 1.5}}
    chosen(tmp_path, plan_of(config_of(mismatch=0.01)), ProbedEngine(**turns))
    strict = config_of(mismatch=0.01, placement={**SETTINGS, "mismatch_above": 0.015})
    found, _, cluster = chosen(tmp_path / "later", plan_of(strict), ProbedEngine(**turns))
    assert found["0"].keys == {TP: 1, MICRO: 2}, "tp=2 has 0.02"
    assert cluster.started == ["tp=1,micro=2"], "what was not on the way before"


def test_a_long_name_of_a_placement_is_still_a_folder() -> None:
    keys = {f"a.{'x' * 50}{n}": n for n in range(9)}
    names = {placement._folder_name({**keys, "b": n}) for n in range(3)}
    assert len(names) == 3 and all(len(name) < 200 for name in names)
