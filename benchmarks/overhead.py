"""What a trial costs beside its training: ours against Ray Tune and Hydra's launchers, in one run, on verl's config.

Every system runs N trials that do nothing, each with a learning rate of its own on verl's composed config (some 900
values), with the defaults a user gets. The overhead of a trial is (time of N trials - time of 1 trial) / (N - 1): what
one more costs, start-up apart. Two rows are ours. *fake*: the whole request (compose, plan, ledger, records, closing
table) on a fake cluster, whose attempts end when they are first asked, so that only the orchestrator is timed.
*processes*: the same with the real local cluster, where a trivial script stands for the trainer under the real guard.

    python benchmarks/overhead.py [--trials 50] [--ours 200] [--joblib FOLDER]

hydra-joblib-launcher is not among our dependencies: `pip install --target FOLDER --no-deps hydra-joblib-launcher
joblib`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LR = "actor_rollout_ref.actor.optim.lr"

HYDRA = """
import os
import hydra

@hydra.main(version_base="1.3", config_path={conf!r}, config_name="ppo_trainer")
def main(cfg):
    with open(os.environ["DONE"], "a") as done:
        done.write(f"{{cfg.actor_rollout_ref.actor.optim.lr}}\\n")

main()
"""

TUNE = """
import os, sys
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from ray import tune

def trial(config):
    with open(os.environ["DONE"], "a") as done:
        done.write(f"{{config['actor_rollout_ref']['actor']['optim']['lr']}}\\n")
    tune.report({{"score": 1.0}})

with initialize_config_dir({conf!r}, version_base="1.3"):
    cfg = OmegaConf.to_container(compose("ppo_trainer"), resolve=True)
cfg["actor_rollout_ref"]["actor"]["optim"]["lr"] = tune.grid_search([(i + 1) * 1e-7 for i in range(int(sys.argv[1]))])
results = tune.Tuner(
    trial, param_space=cfg, run_config=tune.RunConfig(storage_path=os.getcwd(), name="peer")
).fit()
assert results.num_terminated == int(sys.argv[1]) and not results.num_errors, results
"""

TRAINER = """
import json, os, sys
with open("metrics.jsonl", "a") as out:
    for step in range(1, int(sys.argv[1]) + 1):
        out.write(json.dumps({"step": step, "data": json.loads(sys.argv[2])}) + "\\n")
with open(os.environ["DONE"], "a") as done:
    done.write("done\\n")
"""
METRICS = {"critic/rewards/mean": 0.5, "actor/entropy": 1.0, "val-core/arithmetic/acc/mean@1": 0.5}


@dataclass(frozen=True)
class System:
    """One way to run trials."""

    name: str
    command: list[str]
    """`{n}` stands for the number of trials, `{rates}` for their learning rates."""
    trials: int
    path: str = ""
    """Goes before PYTHONPATH."""

    def run(self, trials: int) -> float:
        """Seconds of the whole process with so many trials."""
        rates = ",".join(f"{(i + 1) * 1e-7:.3e}" for i in range(trials))
        with tempfile.TemporaryDirectory() as folder:
            done = Path(folder) / "done"
            env = {**os.environ, "DONE": str(done)}
            if self.path:
                env["PYTHONPATH"] = os.pathsep.join([self.path, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
            command = [part.replace("{n}", str(trials)).replace("{rates}", rates) for part in self.command]
            start = time.perf_counter()
            ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - start
            ran = len(done.read_text().splitlines()) if done.exists() else 0
        if ended.returncode or ran != trials:
            raise SystemExit(f"{self.name}: {ran} of {trials} trials\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
        return seconds


def systems(arguments: argparse.Namespace, folder: Path) -> list[System]:
    """Ours and the peers; a peer that is not installed is left out, and said to be."""
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        raise SystemExit("verl is not installed; make setup")
    conf = str(Path(spec.origin).parent / "trainer" / "config")
    hydra, tune = folder / "hydra_app.py", folder / "tune_app.py"
    hydra.write_text(HYDRA.format(conf=conf))
    tune.write_text(TUNE.format(conf=conf))
    python, n = sys.executable, arguments.trials
    sweep = [python, str(hydra), "-m", LR + "={rates}"]
    ours = [python, str(Path(__file__).resolve()), "--run"]
    found = [
        System("ours, fake cluster", [*ours, "fake", "lr={rates}", "tracking=none"], arguments.ours),
        System("ours, fake cluster, MLflow", [*ours, "fake", "lr={rates}"], arguments.ours),
        System("ours, processes", [*ours, "processes", "lr={rates}", "tracking=none"], arguments.ours),
        System("Ray Tune", [python, str(tune), "{n}"], n),
        System("Hydra, basic launcher", sweep, n),
        System("Hydra, ray launcher", [*sweep, "hydra/launcher=ray"], n),
    ]
    if arguments.joblib:
        found.append(System("Hydra, joblib launcher", [*sweep, "hydra/launcher=joblib"], n, path=arguments.joblib))
    else:
        print("Hydra's joblib launcher is left out: --joblib FOLDER says where it is")
    return found


def main() -> int:
    """Measure and print; with `--run`, be one of ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50, help="of the peers")
    parser.add_argument("--ours", type=int, default=200, help="trials of ours")
    parser.add_argument("--joblib", default="", help="folder with hydra-joblib-launcher and joblib")
    parser.add_argument("--only", default="", help="systems whose name has one of these in it: Tune,Hydra")
    parser.add_argument("--run", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        return be_ours(arguments.run[0], arguments.run[1:])
    with tempfile.TemporaryDirectory() as folder:
        measured: dict[str, tuple[float, float]] = {}
        for system in systems(arguments, Path(folder)):
            if not any(part in system.name for part in arguments.only.split(",")):
                continue
            one, many = system.run(1), system.run(system.trials)
            each = (many - one) / (system.trials - 1) * 1000
            measured[system.name] = each, one
            print(f"{system.name}: {one:.1f} s for 1, {many:.1f} s for {system.trials}: {each:.1f} ms each", flush=True)
    base = next(iter(measured.values()))[0]
    print("\n| | 1 trial | each further trial | ratio |\n|---|---|---|---|")
    for name, (each, one) in measured.items():
        print(f"| {name} | {one:.1f} s | {each:.1f} ms | {each / base:.1f} |")
    return 0


def be_ours(kind: str, overrides: list[str]) -> int:
    """The request as `sweep.py` runs it, on a cluster that starts something trivial instead of verl."""
    sys.path.insert(0, str(ROOT))
    from sweeper import app, clusters
    from sweeper.clusters.local import LocalCluster
    from sweeper.config.hydra_app import initialized
    from sweeper.engines.base import Shape

    class Processes(LocalCluster):
        """This machine, with the trivial script in the trainer's place."""

        def start(self, job: Any, folder: Path, *nodes: Any) -> Any:
            argv = (sys.executable, "-I", "-S", "-c", TRAINER, str(job.total_steps), json.dumps(METRICS))
            env = {**job.env, "DONE": os.environ["DONE"]}
            trivial = replace(job, argv=argv, env=env, python=sys.executable, ray=False, preload=(), fork_argv=())
            return super().start(trivial, folder, *nodes)

    def get(config: Any, found: Shape) -> Any:  # noqa: ARG001
        return FakeCluster(found) if kind == "fake" else Processes(found)

    clusters.get = get
    steps = ["trainer.total_training_steps=2", "trainer.test_freq=2", "trainer.save_freq=-1"]
    with initialized():
        return app.run(["cluster.device=cpu", *steps, *overrides])


class FakeAttempt:
    """A fake: its trainer has written everything and ended before it is first asked."""

    def __init__(self, job: Any, folder: Path) -> None:
        from sweeper.clusters.base import Exit
        from sweeper.clusters.gangs import write_files

        self.folder = folder
        write_files(job.files, folder)
        with (folder / job.metrics).open("a") as out:
            for step in range(1, job.total_steps + 1):
                out.write(json.dumps({"step": step, "data": METRICS}) + "\n")
        with Path(os.environ["DONE"]).open("a") as done:
            done.write("done\n")
        self.ended = Exit(0, "exit", "", time.time())

    def poll(self) -> Any:
        """It has ended."""
        return self.ended

    def waiting(self) -> str:
        """For nothing."""
        return ""

    def silent(self) -> str:
        """Nobody listens for it."""
        return ""

    def stop(self, *, dump: bool = False) -> None:
        """Nothing runs."""

    def kill(self) -> None:
        """Nothing runs."""


class FakeCluster:
    """A fake with the machine's shape and all of it always free."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape

    def free(self) -> tuple[int, ...]:
        """All of it."""
        return (self.shape.gpus_per_node,) * int(self.shape.nodes)

    def start(self, job: Any, folder: Path, _nodes: tuple[int, ...]) -> FakeAttempt:
        """An attempt that has ended."""
        return FakeAttempt(job, folder)

    def attach(self, folder: Path) -> None:
        """Nothing outlives anything here."""

    def close(self) -> None:
        """Nothing is open."""


if __name__ == "__main__":
    sys.exit(main())
