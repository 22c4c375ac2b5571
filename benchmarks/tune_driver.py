"""What Ray Tune's own driver costs and survives: why a controller of ours drives and Tune's schedulers only decide.

Trivial trials (one report each), in one run, each way in a process of its own with a Ray of its own:

    tune      tune.Tuner as it is: a function, loggers and syncing on
    tuned     a class with reuse_actors, no loggers, few snapshots of the experiment, no trial folders written often
    restore   Tuner.restore of an experiment whose trials are all finished: seconds until `fit` is over
    killed    SIGKILL of the driver while trainables run: how many of them are alive some seconds later
    ours      our controller with its ledger and records, over the tests' fake engine and fake cluster (no processes)

Prints start-up seconds (until the first trial has reported), milliseconds a trial after that, and the memory (resident,
all processes of that Ray) at its end.

    python benchmarks/tune_driver.py [--trials 60] [--finished 1000]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    "TUNE_DISABLE_DATED_SUBDIR": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
}
ALWAYS = {"RAY_AIR_NEW_OUTPUT": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
CPUS = 2
LIMIT_S = 200.0


def memory() -> float:
    """Resident MB of this process and all below it; shared pages count once a process."""
    total = 0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total / 2**20


def start_ray(folder: Path) -> None:
    """A Ray for this process alone."""
    import ray

    ray.init(num_cpus=CPUS, include_dashboard=False, _temp_dir=str(folder), log_to_driver=False, logging_level="ERROR")


def trainable(way: str, folder: Path) -> Any:
    """A trial that reports once: a function, or a class for actors that are used again."""
    from ray import tune

    first = folder / "first"

    def function(config: dict[str, Any]) -> None:
        if config["i"] == 0:
            first.write_text(str(time.time()))
        tune.report({"score": config["i"]})

    class Thin(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self.config = config

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.config = new_config
            return True

        def step(self) -> dict[str, Any]:
            if self.config["i"] == 0:
                first.write_text(str(time.time()))
            return {"score": self.config["i"], "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...

        def load_checkpoint(self, checkpoint: Any) -> None: ...

    return function if way == "tune" else Thin


def tuner(way: str, folder: Path, trials: int) -> Any:
    """Tune over `trials` trivial trials, as it is or with everything off that costs."""
    from ray import tune

    thin = way != "tune"
    return tune.Tuner(
        trainable(way, folder),
        param_space={"i": tune.grid_search(list(range(trials)))},
        tune_config=tune.TuneConfig(metric="score", mode="max", reuse_actors=thin),
        run_config=tune.RunConfig(
            name="bench",
            storage_path=str(folder / "results"),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False) if thin else None,
        ),
    )


def drive(way: str, folder: Path, trials: int) -> dict[str, float]:
    """One way, from nothing to the last trial."""
    begun = time.time()
    start_ray(folder / "ray")
    results = tuner(way, folder, trials).fit()
    over = time.time()
    first = float((folder / "first").read_text())
    done = sum(1 for result in results if result.metrics and "score" in result.metrics)
    return {
        "start_s": first - begun,
        "ms_a_trial": 1000 * (over - first) / max(1, trials - 1),
        "memory_mb": memory(),
        "trials": done,
    }


def restore(folder: Path, trials: int) -> dict[str, float]:
    """Restore an experiment in which nothing is left to do."""
    from ray import tune

    start_ray(folder / "ray")
    tuner("tuned", folder, trials).fit()
    begun = time.time()
    tune.Tuner.restore(str(folder / "results" / "bench"), trainable("tuned", folder)).fit()
    return {"restore_s": time.time() - begun, "trials": trials, "memory_mb": memory()}


def hold(folder: Path) -> None:
    """A driver whose trials run until somebody ends them; each writes its pid."""
    from ray import tune

    start_ray(folder / "ray")

    def forever(config: dict[str, Any]) -> None:
        (folder / f"pid-{config['i']}").write_text(str(os.getpid()))
        time.sleep(600)

    run_config = tune.RunConfig(name="hold", storage_path=str(folder / "results"), verbose=0)
    tune.Tuner(forever, param_space={"i": tune.grid_search(list(range(CPUS)))}, run_config=run_config).fit()


def killed(folder: Path, env: dict[str, str]) -> dict[str, float]:
    """SIGKILL that driver; look what is left of its trials."""
    command = [sys.executable, __file__, "--way", "hold", "--folder", str(folder)]
    driver = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while len(list(folder.glob("pid-*"))) < CPUS and time.time() < deadline:
        time.sleep(0.2)
    time.sleep(0.5)
    trials = [psutil.Process(int(p.read_text())) for p in folder.glob("pid-*")]
    ray = psutil.Process(driver.pid).children(recursive=True)
    began = len(trials)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    died = time.time()
    gone, alive = psutil.wait_procs(trials, timeout=15)
    took = time.time() - died
    for process in ray:  # ours: children of the driver that we started
        with contextlib.suppress(psutil.Error):
            process.kill()
    return {"trials": began, "gone": len(gone), "alive": len(alive), "after_s": took}


def ours(folder: Path, trials: int) -> dict[str, float]:
    """Our controller over fakes whose trials end when they are first asked: what driving costs us."""
    from benchmarks.resume import controller

    begun = time.perf_counter()
    one = controller(folder / "one", 1)
    one.run()
    started = time.perf_counter()
    many = controller(folder / "many", trials)
    many.run()
    over = time.perf_counter()
    done = sum(outcome.done for outcome in many.outcomes.values())
    return {
        "start_s": started - begun,
        "ms_a_trial": 1000 * (over - started) / trials,
        "memory_mb": memory(),
        "trials": done,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--finished", type=int, default=1000)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way == "hold":
        hold(args.folder)
        return
    if args.way:
        measured = (
            restore(args.folder, args.trials) if args.way == "restore" else drive(args.way, args.folder, args.trials)
        )
        (args.folder / "measured.json").write_text(json.dumps(measured))
        import ray

        ray.shutdown()
        return
    for way, trials in (("tune", args.trials), ("tuned", args.trials), ("restore", args.finished), ("killed", CPUS)):
        folder = Path(tempfile.mkdtemp(prefix="tune-", dir="/tmp"))  # short: Ray's sockets are below
        env = {**os.environ, **ALWAYS, **(QUIET if way != "tune" else {})}
        if way == "killed":
            report(way, killed(folder, env))
            continue
        command = [sys.executable, __file__, "--way", way, "--folder", str(folder), "--trials", str(trials)]
        with (folder / "log.txt").open("wb") as log:
            code = watched(command, env, log)
        if code or not (folder / "measured.json").exists():
            print(f"{way:8} failed with code {code}, see {folder}/log.txt", flush=True)
            continue
        report(way, json.loads((folder / "measured.json").read_text()))
    report("ours", ours(Path(tempfile.mkdtemp(prefix="ours-", dir="/tmp")), args.finished))


def watched(command: list[str], env: dict[str, str], log: IO[bytes]) -> int:
    """Run it; past the limit it is ended with all processes that it started."""
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        return process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        for each in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
            with contextlib.suppress(psutil.Error):
                each.kill()
        return process.wait()


def report(way: str, measured: dict[str, float]) -> None:
    """One line."""
    print(
        f"{way:8} " + "   ".join(f"{name} {value:.3f}".rstrip("0").rstrip(".") for name, value in measured.items()),
        flush=True,
    )


if __name__ == "__main__":
    main()
