"""A sweep of a thousand mixed gangs on 64 nodes x 8 GPUs, in simulated time: makespan over its lower bound.

    python benchmarks/cluster_sim.py [--trials 1000] [--nodes 64] [--ranks 8] [--deaths 0] [--seeds 3]

The controller, its admission, policy, records and ledger are the real ones; the cluster is a fake of
tests/support/simulation.py, which asserts that no rank is held twice and that every gang starts whole. A trial takes
between six minutes and an hour. `--deaths` nodes die at random times, for up to an hour; their trials start anew.

The lower bound is the larger of work / GPUs and the longest trial; no schedule reaches it when gangs of 16 nodes stand
in the queue. What the controller itself costs is in the last column: seconds of real time for the whole sweep.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))


def main() -> None:
    """Simulate and print a line a seed."""
    from simulation import simulate

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("trials", 1000), ("nodes", 64), ("ranks", 8), ("deaths", 0), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    print("seed  trials  lost  makespan_h  bound_h  ratio  used  real_s")
    for seed in range(1, asked.seeds + 1):
        chance = random.Random(seed)
        ends = 3600.0 * asked.trials / asked.nodes
        deaths = [(chance.uniform(0, ends), chance.randrange(asked.nodes), 3600.0) for _ in range(asked.deaths)]
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            found = simulate(
                Path(folder), trials=asked.trials, nodes=asked.nodes, ranks=asked.ranks, seed=seed, deaths=deaths
            )
            real = time.monotonic() - began
        assert set(found.states.values()) == {"finished"}, found.states
        used = found.cluster.used_s / (found.makespan_s * asked.nodes * asked.ranks)
        print(
            f"{seed:4}  {len(found.states):6}  {found.cluster.losses:4}  {found.makespan_s / 3600:10.2f}  "
            f"{found.bound_s / 3600:7.2f}  {found.makespan_s / found.bound_s:5.3f}  {used:4.0%}  {real:6.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
