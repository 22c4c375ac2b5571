"""How quick a large sweep is taken up again and listed, beside Optuna's own loading of the same trials.

Two sweeps of 10,000 trials, of which 9,900 have finished: one by a sampler, one a grid. The records of the first are
made by the real controller with a fake engine on a fake cluster (64 at a time), and taken up by the real controller;
those of the second, of verl's own config, are written as a controller writes them, and taken up by the command that a
user types, `sweeper resume`, up to where it would start the first trial (it is ended there).

    python benchmarks/resume.py [--trials 10000]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
READY = """
import sys, time
from sweeper.search import controller
def run(self):
    print(f"{len(self.waiting)} of {len(self.outcomes)} left, {time.process_time():.2f} s computing", flush=True)
    import os; os._exit(0)
controller.Controller.run = run
from sweeper.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""The command line, up to where its controller would start trials."""


def controller(store: Path, count: int) -> Any:
    """The sweep's controller, new or taken up again."""
    from fakes import FakeCluster, FakeDisplay, FakeEngine, fake_config

    from sweeper.search import controller as module
    from sweeper.search import replay, samplers
    from sweeper.search.arm import ArmSearch, Candidate
    from sweeper.search.base import Dim
    from sweeper.search.controller import Controller, Settings
    from sweeper.search.schedulers import make
    from sweeper.tracking.base import NoTracker
    from sweeper.trial.index import Index
    from sweeper.trial.ledger import Ledger
    from sweeper.trial.records import SweepFolder
    from sweeper.trial.spec import Point, Trial

    module.POLL_S = 0.0
    existing = (store / "s").exists()
    folder = SweepFolder.existing(store, "s") if existing else SweepFolder.create(store, "s", [])
    ledger = Ledger.open(folder.path / "ledger.db", create=not existing)
    (folder.path / "studies").mkdir(exist_ok=True)
    dims = [Dim("lr", low=1e-6, high=1e-2, log=True), Dim("kl", values=(0, 1e-3, 1e-2))]

    def size(candidate: Candidate, seed: int | None, trial_id: str, kind: str) -> Trial:
        config = fake_config(**candidate.params)
        return Trial(trial_id, Point((), candidate.params), config, (), "0", candidate.id, seed, candidate.params, kind)

    arm = ArmSearch(
        "0",
        sampler=samplers.make("random", dims, seed=1, journal=folder.path / "studies" / "0.journal"),
        scheduler=make({"name": "none"}, dims, mode="max", validations=[4], total_steps=4, seed=1),
        refuse=lambda _params: "",
        budget=count,
        objectives=("score",),
        name=lambda n: f"{n:05d}",
        seeds=(None,),
        mode="max",
    )
    made = Controller(
        arms=[arm],
        size=size,
        engine=FakeEngine(),
        cluster=FakeCluster(64),
        folder=folder,
        ledger=ledger,
        tracker=NoTracker(),
        display=FakeDisplay(),
        facts=lambda o: (dict(o.trial.params), {}),
        fingerprint=lambda t: json.dumps(dict(t.params), sort_keys=True),
        settings=Settings(stop={"patience": 5}, failures={"same": 3}, known=False),
        index=Index(store, besides="s"),
    )
    if existing:
        replay.take_up(made, ledger, folder)
    return made


def timed(what: str, work: Callable[[], Any]) -> float:
    """Do it, print how long it took and how much of that this process computed; the latter in seconds."""
    start, computed = time.perf_counter(), time.process_time()
    work()
    took, computed = time.perf_counter() - start, time.process_time() - computed
    print(f"{what:58} {took:8.2f} s, {computed:.2f} s computing", flush=True)
    return computed


def grid(store: Path, count: int) -> None:
    """The records of a grid of verl's config of which all but a hundredth have finished."""
    from sweeper import execute
    from sweeper.config.hydra_app import initialized
    from sweeper.plan.plan import make
    from sweeper.search.controller import planned
    from sweeper.trial.identity import fingerprint
    from sweeper.trial.ledger import Ledger
    from sweeper.trial.records import SweepFolder

    side = round(count**0.5)
    lr = f"lr=choice({','.join(f'{(i + 1) * 1e-7:.3e}' for i in range(count // side))})"
    kl = f"kl=choice({','.join(f'{i * 1e-4:.4g}' for i in range(side))})"
    typed = ["cluster.device=cpu", "tracking=none", "search=grid", lr, kl]
    ended = {"state": "finished", "reason": "exit", "exit_code": 0, "elapsed_s": 1.0, "gpu_hours": 0.1, "step": 30}
    events: list[tuple[str, str | None, dict[str, Any]]] = []
    with initialized():
        plan = make(typed)
        events.append(("sweep_started", None, execute._started(plan)))
        for number, trial in enumerate(plan.trials):
            data = {**planned(trial, fingerprint(dict(trial.config))), "number": number, "refused": []}
            events.append(("trial_planned", trial.id, data))
            if number < count * 99 // 100:
                events.append(("attempt_ended", trial.id, {**ended, "final_score": 0.5, "best_score": 0.5}))
    folder = SweepFolder.create(store, "grid", typed)
    with contextlib.closing(Ledger.open(folder.path / "ledger.db", create=True)) as ledger:
        ledger.append_all(events)


def command(what: str, *words: str) -> None:
    """Run the real command in a process of its own, its start-up included, and print how long it took."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", READY, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    took = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{words} failed:\n{done.stdout}\n{done.stderr}")
    print(f"{what:58} {took:8.2f} s; {done.stdout.strip().splitlines()[-1][:80]}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    count = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as temp:
        store = Path(temp)
        first = controller(store, count * 99 // 100)
        timed(f"{count * 99 // 100} trials run (fake, 64 at a time)", first.run)
        first._ledger.close()

        resumed: list[Any] = []
        ours = timed(f"resume: ready to go on with {count}", lambda: resumed.append(controller(store, count)))
        assert sum(o.done for o in resumed[0].outcomes.values()) == count * 99 // 100
        resumed[0]._ledger.close()
        grid(store, count)
        command(f"`sweeper resume` of a grid of {count}", "resume", "grid", "--store", str(store))
        command("`sweeper status` of it", "status", "grid", "--store", str(store))

        from sweeper.cli.main import main as cli

        sys.stdout.flush()
        timed("status: all sweeps", lambda: cli(["status", "--store", str(store)]))
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            status = timed("status of the sweep", lambda: cli(["status", "s", "--store", str(store)]))
        print(f"status of the sweep: {len(shown.getvalue().splitlines())} lines, {status:.2f} s computing")

        import optuna
        from optuna.storages.journal import JournalFileBackend

        journal = str(store / "s" / "studies" / "0.journal")
        storage = optuna.storages.JournalStorage
        peer = timed(
            "Optuna alone: load the study of the same trials",
            lambda: optuna.load_study(study_name=None, storage=storage(JournalFileBackend(journal))).trials,
        )
        print(f"ours / Optuna's own loading: {ours / peer:.2f}")


if __name__ == "__main__":
    main()
