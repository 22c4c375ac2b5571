"""What may be freed of a sweep: never what is needed, whatever is asked for and whatever happened in the sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.checkpoints.keep import GB, Checkpoint, Decision, Forked, Keep, Standing, decide


def held(trial: str, *steps: int, gb: float = 1.0, pins: tuple[str, ...] = ()) -> list[Checkpoint]:
    """One file each, shared with nobody."""
    return [Checkpoint(trial, s, Path(trial, str(s)), ((1, hash((trial, s)), int(gb * GB)),), pins) for s in steps]


def freed(decision: Decision) -> list[tuple[str, int]]:
    return [checkpoint.key for checkpoint, _ in decision.free]


def done(*scores: float | None, state: str = "finished") -> list[Standing]:
    return [Standing(f"{i:03d}", state, candidate=f"{i:03d}", score=score) for i, score in enumerate(scores)]


def test_nothing_is_asked_nothing_goes() -> None:
    assert decide(held("000", 1, 2, 3), done(0.5), [], Keep()).free == []


def test_the_newest_of_each_trial() -> None:
    found = decide([*held("000", 1, 2, 10), *held("001", 4)], done(0.5, 0.6), [], Keep(last=2))
    assert freed(found) == [("000", 1)]
    assert found.bytes == GB


def test_only_the_best_candidates_keep_any() -> None:
    checkpoints = [c for i in range(4) for c in held(f"{i:03d}", 1, 2)]
    standings = [*done(0.1, 0.9, 0.5), Standing("003", "pruned", candidate="003", score=0.99)]
    assert set(freed(decide(checkpoints, standings, [], Keep(top_k=1)))) == {
        (t, s) for t in ("000", "002", "003") for s in (1, 2)
    }
    best = decide(checkpoints, standings, [], Keep(top_k=1), mode="min")
    assert ("000", 2) not in freed(best)
    assert ("001", 2) in freed(best)


def test_a_candidate_is_all_its_seeds_and_arms_are_apart() -> None:
    standings = [
        Standing(f"{c}-s{s}", "finished", arm, c, score=score)
        for arm, c, score in (("0", "000", 0.9), ("0", "001", 0.2), ("1", "002", 0.1))
        for s in (1, 2)
    ]
    standings.append(Standing("000-final-s9", "finished", "0", "000", "final", 0.0))
    checkpoints = [c for s in standings for c in held(s.trial, 5)]
    found = decide(checkpoints, standings, [], Keep(top_k=1))
    assert {t for t, _ in freed(found)} == {"001-s1", "001-s2"}
    assert {c.trial: why for c, why in found.protected}["000-final-s9"] == "the best of its arm"


def test_one_that_is_not_a_number_is_the_worst() -> None:
    found = decide([c for i in range(3) for c in held(f"{i:03d}", 1)], done(float("nan"), 0.1, None), [], Keep(top_k=1))
    assert {t for t, _ in freed(found)} == {"000", "002"}


def test_over_the_budget_what_matters_least_goes_first() -> None:
    checkpoints = [*held("000", 1, 2), *held("001", 1, 2), *held("002", 2)]
    standings = [*done(0.9, 0.1), Standing("002", "pruned", candidate="002", score=0.5)]
    order = [("001", 1), ("000", 1), ("002", 2), ("001", 2)]
    for gb in range(6):
        found = decide(checkpoints, standings, [], Keep(gb=gb))
        assert freed(found) == order[: max(0, 5 - gb)]
        assert found.over == (GB if gb == 0 else 0), "the best stays"


def test_what_is_shared_counts_once_and_frees_nothing_while_another_has_it() -> None:
    shared = (1, 77, GB)
    pair = [Checkpoint(t, 4, Path(t), (shared,)) for t in ("000", "001")]
    assert decide(pair, done(0.1, 0.9), [], Keep(gb=1)).free == []
    found = decide(pair, done(0.1, 0.9), [], Keep(top_k=1))
    assert freed(found) == [("000", 4)]
    assert found.bytes == 0


@pytest.mark.parametrize("state", ["running", "starting", "interrupted", "paused"])
def test_all_of_a_trial_that_runs_or_is_paused_stays(state: str) -> None:
    found = decide(held("000", 1, 2, 3), done(0.1, state=state), [], Keep(last=1, top_k=1, gb=0))
    assert found.free == []
    assert len(found.protected) == 3


@pytest.mark.parametrize("state", ["waiting", "stopped", "failed"])
def test_a_trial_that_may_go_on_keeps_its_newest(state: str) -> None:
    found = decide(held("000", 1, 2, 3), done(0.1, state=state), [], Keep(last=1, gb=0))
    assert sorted(freed(found)) == [("000", 1), ("000", 2)]


def test_an_ancestor_of_what_is_not_done_stays_over_any_number_of_forks() -> None:
    checkpoints = [*held("000", 2, 4), *held("001", 4, 6), *held("002", 8), *held("003", 9)]
    forks = [Forked("000", 2, "001"), Forked("001", 4, "002")]
    going = [*done(0.1, 0.2), Standing("002", "running", candidate="002"), Standing("003", "finished", score=0.9)]
    found = decide(checkpoints, going, forks, Keep(last=1, top_k=1, gb=0))
    assert {("000", 2), ("001", 4), ("002", 8)} <= {c.key for c, _ in found.protected}
    assert set(freed(found)) == {("000", 4), ("001", 6)}


@pytest.mark.parametrize("keep", [Keep(last=1), Keep(top_k=1), Keep(gb=0), Keep(last=1, top_k=1, gb=0)])
def test_an_ancestor_of_what_stays_stays(keep: Keep) -> None:
    """The best was forked from a trial that was not, which was forked itself, when all of them are done."""
    checkpoints = [*held("000", 2, 4), *held("001", 4, 6), *held("002", 8, 9), *held("003", 3, 9)]
    forks = [Forked("000", 2, "001"), Forked("001", 4, "002")]
    found = decide(checkpoints, done(0.1, 0.2, 0.9, 0.5), forks, keep)
    assert not {("000", 2), ("001", 4), ("002", 9)} & set(freed(found))
    assert ("003", 3) in freed(found)
    why = {c.key: why for c, why in found.protected}
    assert why["000", 2] == why["001", 4] == "002, which stays, was forked from it"


def test_an_ancestor_may_go_after_the_last_that_came_from_it() -> None:
    checkpoints = [*held("000", 2), *held("001", 2, 6), *held("002", 9)]
    standings = done(0.2, 0.1, 0.9)
    forks = [Forked("000", 2, "001")]
    order = [("001", 2), ("001", 6), ("000", 2)]
    for gb in range(4):
        assert freed(decide(checkpoints, standings, forks, Keep(gb=gb + 1))) == order[: max(0, 3 - gb)]
    assert set(freed(decide(checkpoints, standings, forks, Keep(top_k=1)))) == set(order)


def test_a_checkpoint_from_before_a_fork_does_not_come_from_it() -> None:
    """Two that were forked from each other, one after the other, do not hold each other for ever."""
    checkpoints = [*held("000", 2, 6), *held("001", 4, 8), *held("002", 9)]
    forks = [Forked("001", 4, "000"), Forked("000", 2, "001")]
    found = decide(checkpoints, done(0.1, 0.2, 0.9), forks, Keep(top_k=1))
    assert set(freed(found)) == {("000", 2), ("000", 6), ("001", 4), ("001", 8)}
    last = decide(checkpoints, done(0.1, 0.2, 0.9), forks, Keep(last=1))
    assert freed(last) == [], "step 8 comes from step 2, and step 6 from step 4"


def test_a_checkpoint_of_an_unknown_trial_stays() -> None:
    assert decide(held("999", 1, 2), done(0.5), [], Keep(last=1, gb=0)).free == []


STATES = ["waiting", "running", "interrupted", "paused", "finished", "pruned", "failed", "stopped"]


@st.composite
def sweeps(draw: st.DrawFn) -> tuple[list[Checkpoint], list[Standing], list[Forked], Keep, str]:
    names = [f"{i:03d}" for i in range(draw(st.integers(1, 8)))]
    score = st.one_of(st.none(), st.floats(0, 1), st.just(float("nan")))
    standings = [
        Standing(
            name,
            draw(st.sampled_from(STATES)),
            draw(st.sampled_from("01")),
            name if draw(st.booleans()) else f"c{draw(st.integers(0, 2))}",
            draw(st.sampled_from(["search", "search", "final"])),
            draw(score),
        )
        for name in names
    ]
    checkpoints = [
        Checkpoint(
            name,
            step,
            Path(name, str(step)),
            tuple((1, inode, (inode + 1) * GB // 4) for inode in draw(st.sets(st.integers(0, 12), max_size=3))),
            ("by somebody",) if draw(st.integers(0, 6)) == 0 else (),
        )
        for name in names
        for step in draw(st.sets(st.integers(1, 9), max_size=4))
    ]
    steps = st.one_of(st.none(), st.integers(1, 9))
    pairs = draw(st.lists(st.tuples(st.sampled_from(names), steps, st.sampled_from(names)), max_size=6))
    count = st.one_of(st.none(), st.integers(1, 3))
    keep = Keep(draw(count), draw(count), draw(st.one_of(st.none(), st.floats(0, 6))))
    return checkpoints, standings, [Forked(*pair) for pair in pairs], keep, draw(st.sampled_from(["max", "min"]))


@given(sweeps())
def test_in_any_sweep_what_is_needed_stays(
    sweep: tuple[list[Checkpoint], list[Standing], list[Forked], Keep, str],
) -> None:
    checkpoints, standings, forks, keep, mode = sweep
    found = decide(checkpoints, standings, forks, keep, mode=mode)
    gone, stays = set(freed(found)), {c.key for c, _ in found.protected}
    assert not gone & stays
    assert len(gone) == len(found.free), "each once"
    state = {s.trial: s.state for s in standings}
    newest = {t: max(c.step for c in checkpoints if c.trial == t) for t in {c.trial for c in checkpoints}}
    needed: set[tuple[str, int]] = set()
    for c in checkpoints:
        if c.pins or state[c.trial] in ("running", "interrupted", "paused"):
            needed.add(c.key)
        if state[c.trial] in ("waiting", "stopped", "failed") and c.step == newest[c.trial]:
            needed.add(c.key)
    for child in (
        t for t, s in state.items() if s not in ("finished", "pruned")
    ):  # written another way than in keep.py
        donors, before = {(f.donor, f.step) for f in forks if f.child == child}, set[tuple[str, int | None]]()
        while donors != before:
            before = set(donors)
            donors |= {(f.donor, f.step) for f in forks if f.child in {d for d, _ in before}}
        needed |= {c.key for c in checkpoints if donors & {(c.trial, c.step), (c.trial, None)}}
    for c in (c for c in checkpoints if c.key not in gone):
        come: set[tuple[str, int | None]] = {c.key}
        while (
            more := {(f.donor, f.step) for f in forks for t, s in come if f.child == t and (f.step or 0) <= (s or 99)}
            - come
        ):
            come |= more
        needed |= {other.key for other in checkpoints if (come - {c.key}) & {other.key, (other.trial, None)}}
    for arm in {s.arm for s in standings}:
        mine = [s for s in standings if s.arm == arm]
        # Where each candidate is one trial of the search, its best is plain to see.
        if all(s.kind == "search" for s in mine) and len({s.candidate for s in mine}) == len(mine):
            finished = [s for s in mine if s.state == "finished" and s.score is not None and s.score == s.score]
            if finished:
                top = (max if mode == "max" else min)(s.score for s in finished if s.score is not None)
                ties = [s.trial for s in finished if s.score == top]
                assert any((t, newest.get(t, 0)) not in gone for t in ties), "the best of an arm stays"
    assert not gone & needed
    left = {i for c in checkpoints if c.key not in gone for i in c.files}
    assert found.bytes == sum(i[2] for i in {i for c in checkpoints for i in c.files} - left)
    if keep.gb is not None and sum(i[2] for i in left) > keep.gb * GB:
        assert {c.key for c in checkpoints} - gone <= stays, "over the budget only what must stay is left"
        assert found.over > 0 or keep.gb * GB > sum(i[2] for i in left) - 1
    assert decide([c for c in checkpoints if c.key not in gone], standings, forks, keep, mode=mode).free == []
