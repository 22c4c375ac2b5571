"""How quick planning is, beside Hydra alone, in one run.

Prints, as medians: `python sweep.py --help` and a plan of 2 trials against a process that imports Hydra and composes
verl's own config once; and the seconds to plan 1,000 trials, and 10,000 points of a grid, against Hydra's compose time
for as many.

    python benchmarks/plan_speed.py [--repeats 5] [--trials 1000] [--points 10000]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = """
import time; start = time.perf_counter()
from hydra import compose, initialize_config_dir
with initialize_config_dir({conf!r}, version_base="1.3"):
    compose("ppo_trainer", overrides=["actor_rollout_ref.actor.optim.lr=1e-5"])
    again = time.perf_counter()
    compose("ppo_trainer", overrides=["actor_rollout_ref.actor.optim.lr=1e-6"])
    print(time.perf_counter() - again)
"""


def seconds(command: list[str], repeats: int) -> tuple[float, str]:
    """Median wall time of a command, and what it printed last."""
    times, out = [], ""
    for _ in range(repeats):
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - start)
        if done.returncode:
            raise SystemExit(f"{command} failed:\n{done.stdout}\n{done.stderr}")
        out = done.stdout
    return statistics.median(times), out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--points", type=int, default=10_000)
    args = parser.parse_args()
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        raise SystemExit("verl is not installed; make setup")
    conf = str(Path(spec.origin).parent / "trainer" / "config")
    python, sweep = sys.executable, [sys.executable, "sweep.py"]

    twice, _ = seconds([python, "-c", COMPOSE.format(conf=conf)], args.repeats)
    _, out = seconds([python, "-c", COMPOSE.format(conf=conf)], 1)
    one = float(out.strip().splitlines()[-1])
    base = twice - one
    show, _ = seconds([*sweep, "--help"], args.repeats)
    two, _ = seconds([*sweep, "-m", "algorithm=grpo,ppo", "plan=true"], args.repeats)
    rates = ",".join(f"{(i + 1) * 1e-7:.3e}" for i in range(args.trials // 2))
    many, out = seconds([*sweep, "-m", "algorithm=grpo,ppo", f"lr={rates}", "plan=true", "--json"], 1)
    planned = len(json.loads(out.strip().splitlines()[-1])["trials"])
    side = round(args.points**0.5)
    lr = f"lr=choice({','.join(f'{(i + 1) * 1e-7:.3e}' for i in range(args.points // side))})"
    kl = f"kl=choice({','.join(f'{i * 1e-5:.3e}' for i in range(side))})"
    grid, out = seconds([*sweep, "-m", "search=grid", lr, kl, "plan=true", "--json"], 1)
    points = len(json.loads(out.strip().splitlines()[-1])["trials"])
    print(f"import hydra + one compose of verl's config: {base:.2f} s")
    print(f"sweep.py --help:     {show:.2f} s  = {show / base:.2f} x  (target 1.5)")
    print(f"plan of 2 trials:    {two:.2f} s  = {two / base:.2f} x  (target 1.5)")
    print(
        f"plan of {planned} trials: {many:.1f} s (target 20 s for 1,000); "
        f"Hydra's composes alone: {one * planned:.0f} s = {one * planned / many:.0f} x"
    )
    print(
        f"plan of a grid of {points} points: {grid:.1f} s (target 30 s for 10,000); "
        f"Hydra's composes alone: {one * points:.0f} s = {one * points / grid:.0f} x"
    )


if __name__ == "__main__":
    main()
