"""A thousand trials on 64 nodes of 8 fake GPUs, in simulated time, by the real controller."""

from __future__ import annotations

import random
from pathlib import Path

from simulation import simulate


def test_trials_are_packed_and_nothing_is_left(tmp_path: Path) -> None:
    result = simulate(tmp_path, trials=200, nodes=16)
    assert set(result.states.values()) == {"finished"}
    assert result.cluster.starts == 200
    assert result.cluster.running == []
    assert result.cluster.free() == (8,) * 16
    assert result.makespan_s < 1.15 * result.bound_s


def test_a_thousand_trials_while_nodes_die_cost_gangs_and_no_trial(tmp_path: Path) -> None:
    """A hundred deaths, of every node one or two. Against the bound count what the lost attempts and nodes took."""
    chance = random.Random(2)
    deaths = [(chance.uniform(100, 15_000), chance.randrange(64), chance.uniform(300, 3000)) for _ in range(100)]
    result = simulate(tmp_path, trials=1000, deaths=deaths)  # a deadlock would raise
    assert set(result.states.values()) == {"finished"}
    assert result.cluster.losses > 50
    assert result.cluster.starts == 1000 + result.cluster.losses
    assert result.cluster.running == []
    assert result.cluster.free() == (8,) * 64
    taken = result.cluster.used_s + 8 * sum(for_s for _, _, for_s in deaths)
    assert result.makespan_s < 1.15 * taken / (64 * 8)
