"""Stage `evaluate`: the best checkpoint on held-out data, under seeds that nothing was chosen by.

Guarantees: nothing is trained: each trial starts from the checkpoint, validates once and ends; the data is the
environment's test set, or a file that the user names, and never the set that the sweep's scores are from; the seeds are
none of the sweep's; the figures come with their interval. The trials are ordinary ones, with records like any other,
and go on where they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.checkpoints import manifest, start
from sweeper.config.hydra_app import initialized
from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.lineage import hashes
from sweeper.pipeline import compose, held_out, params, places, prepare, select, sweep
from sweeper.search.stats import expected
from sweeper.trial.ledger import Ledger

DROPPED = (
    "seed", "name", "project", "store", "output", "plan", "detach", "search", "scheduler", "tracking", "stop",
    "lineage", "data.val_files", "trainer.val_only", "trainer.val_before_train", "trainer.resume_mode",
    "trainer.resume_from_path",
)  # fmt: skip
"""Keys of the trial's request that an evaluation has its own of, with all that is below them. Of `lineage`: it repeats
no run, and by now the tree has the plots of `select`, which belong into Git."""


def run() -> int:
    """Evaluate and write metrics.json; returns the exit code.

    Raises:
        SweeperError: The checkpoint is not here or was altered, there is no held-out data, a trial failed.
    """
    asked = params.read()
    best = places.read(places.BEST / select.ABOUT)
    about, rows = sweep.load(places.SWEEP)
    checkpoint = (places.BEST / select.CHECKPOINT / best["checkpoint"]).absolute()
    whole(checkpoint)
    prepare.restore()
    seeds = held_out.seeds(asked["evaluate"], held_out.used(rows, about))
    with initialized():
        lines = [line for line in best["overrides"] if line.partition("=")[0] != "name"]
        config = compose.checked(lines).trials[0].config
    test = held_out.data(asked["evaluate"]["data"], config)
    recorded = [line for line in params.overrides(asked) if line.partition("=")[0] in ("tracking", "project")]
    lines = [*request(best["overrides"], checkpoint, test, seeds), *recorded]
    taken = [best["digest"], best["overrides"], seeds, hashes.sha256(test), str(checkpoint)]
    name = f"evaluate-{places.digest(taken)[: sweep.DIGITS]}"
    if code := sweep.execute(lines, name):
        return code
    scores = {s.seed: s.final_score for s in Ledger.read(places.store() / name / "ledger.db").values()}
    places.write(places.METRICS, metrics(best, rows, [s for s in scores.values() if s is not None]))
    return 0


def request(overrides: Sequence[str], checkpoint: Path, test: Path, seeds: Sequence[int]) -> list[str]:
    """The request of an evaluation: the trial's own, from its checkpoint, validated once and not trained."""
    return [
        *(line for line in overrides if not _dropped(line)),
        "search=none",
        f"seed={','.join(map(str, seeds))}",
        f"data.val_files={sweep.quoted(test)}",
        "trainer.val_only=true",
        "trainer.val_before_train=true",
        *start.overrides(checkpoint),
    ]


def metrics(best: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> dict[str, Any]:
    """metrics.json: `test`, the honest figure; `validation`, which the best was chosen by; `sweep`, what it took.

    Raises:
        SweeperError: There is no score.
    """
    mean = expected(scores)
    if mean is None:
        raise SweeperError("the evaluation has no score\n  try:   sweeper status")
    test = {"score": mean.mean, "low": mean.low, "high": mean.high, "seeds": mean.n}
    return {
        "test": {key: value for key, value in test.items() if value is not None},
        "validation": {"score": best["score"], "step": best["step"]},
        "sweep": {
            "trials": len(rows),
            "finished": sum(row["state"] == "finished" for row in rows),
            "steps": sum(row["step"] or 0 for row in rows),
        },
    }


def whole(checkpoint: Path) -> None:
    """Compare the checkpoint with its manifest, where the trainer has written one.

    Raises:
        RequestError: It is not here, or not what was written.
    """
    if not checkpoint.is_dir():
        raise places.missing(checkpoint)
    try:
        wrong = manifest.verify(checkpoint.parent, int(checkpoint.name.rpartition("_")[2]))
    except (manifest.DamagedError, OSError) as error:
        wrong = [str(error)]
    if wrong:
        fix = f"rm -r {places.BEST} && dvc checkout {places.BEST}   (or dvc pull)"
        raise RequestError(Problem(f"{checkpoint} is not what was written: {wrong[0]}", fix=fix))


def _dropped(line: str) -> bool:
    key = line.lstrip("+~").partition("=")[0]
    return any(key == drop or key.startswith(f"{drop}.") for drop in DROPPED)
