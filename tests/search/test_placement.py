"""Placements: what is chosen of given measurements, when it is measured, that it is measured once. The
engine, the cluster and their runs are fakes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeCluster, FakeDisplay, FakeEngine, fake_config

from sweeper.engines.base import Progress, Shape, Workload
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


# --- measuring ---


class ProbedEngine(FakeEngine):
    """A fake whose throughput and mismatch are what the config says for its tensor parallel size; a size that is not
    named there fails."""

    validation_key, saving_key = "test_freq", "save_freq"

    def __init__(self, sizes: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.sizes = sizes
        self.ran: list[dict[str, Any]] = []

    def placements(self, config: Mapping[str, Any], shape: Shape) -> list[dict[str, Any]]:
        return [{TP: size} for size in self.sizes]

    def check(self, config: Mapping[str, Any], shape: Shape) -> list[Problem]:
        return [Problem("tp=16 is too large")] if config["rollout"]["tensor_model_parallel_size"] == 16 else []

    def workload(self, config: Mapping[str, Any], shape: Shape) -> Workload:
        return Workload(config["steps"], config["batch"], 8, 8, 1, False, 100)

    def job(self, config: Mapping[str, Any], paths: Any) -> Any:
        self.ran.append(dict(config))
        known = str(config["rollout"]["tensor_model_parallel_size"]) in config["rates"]
        return super().job({**config, "code": 0 if known else 1, "steps": config["steps"] if known else 0}, paths)

    def progress(self, line: Mapping[str, Any], config: Mapping[str, Any]) -> Progress | None:
        size = str(config["rollout"]["tensor_model_parallel_size"])
        rate, first = config["rates"][size], 1e9  # the first step must not count
        signals = {"mismatch": 0.001 * int(size)}
        return Progress(line["step"], {}, tokens_per_s=first if line["step"] == 1 else rate, signals=signals)


def config_of(**changes: Any) -> dict[str, Any]:
    return fake_config(
        **{
            "steps": 100,
            "batch": 64,
            "rates": {"1": 100.0, "2": 140.0},
            "rollout": {"tensor_model_parallel_size": 1, "length": 8, "seed": 1},
            "placement": {"probe": "auto", "steps": 2, "mismatch_above": ABOVE},
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
        {"placement": {"probe": True, "steps": 2, "mismatch_above": ABOVE}},
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
    found, _, cluster = chosen(tmp_path, plan_of(config_of()), ProbedEngine())
    assert found["0"].keys == {TP: 2}
    assert len(cluster.started) == 2


@pytest.mark.parametrize(
    ("plan", "engine"),
    [
        (plan_of(config_of()), ProbedEngine(sizes=(1,))),
        (plan_of(config_of(placement={"probe": False, "steps": 2, "mismatch_above": ABOVE})), ProbedEngine()),
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
    wanted = config_of(steps=3, placement={"probe": True, "steps": 2, "mismatch_above": ABOVE})
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
    question = placement._Question({**hanging, "steps": 0}, shape, ({TP: 2},), {})
    measured = placement.probe(question, {TP: 2}, fake, FakeCluster(4), folder)
    assert "not done after" in measured.failed
