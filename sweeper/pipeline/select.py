"""Stage `select`: the best trial's checkpoint, into DVC's hands.

Guarantees: the best is the one that the sweep's own table calls so (sweeper/report/standings.py), of its seeds the one
with the best score; its checkpoint is read and compared with what was written before it is taken; what is handed on
holds the checkpoint with its manifest, and the trial's records, from which it can be reproduced (sweep.hand_on). The
sweep keeps the original: it is pinned.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeper import engines
from sweeper.checkpoints import manifest, pins
from sweeper.errors import Problem, RequestError
from sweeper.lineage import document
from sweeper.pipeline import compose, places, sweep
from sweeper.report.standings import standings
from sweeper.search.stats import order
from sweeper.trial.records import SweepFolder, read_json

ABOUT, CHECKPOINT = "best.json", "checkpoint"


def run() -> int:
    """Choose, check, pin and hand on; returns the exit code.

    Raises:
        SweeperError: No trial finished, or the checkpoint is not on this machine.
    """
    about, rows = sweep.load(places.SWEEP)
    row, score = best(about, rows)
    store, wanted = places.store(), places.read(compose.SWEEP)
    place = store / row["place"]
    checkpoints = place / "checkpoints"
    if not checkpoints.is_dir():
        raise RequestError(
            Problem(
                f"the checkpoints of {row['place']} are not on this machine: the sweep ran on another one",
                valid=f"{places.BEST} as dvc.lock names it, from a remote; or the sweep run again here",
                fix="dvc pull, or dvc repro --force sweep",
            )
        )
    engine = engines.get(next(iter(wanted["engine"])))
    sound = engine.sound(checkpoints)
    for line in sound.said:
        print(line)
    saved = sound.saved
    if saved is None:
        raise RequestError(
            Problem(
                f"{checkpoints} has no whole checkpoint",
                valid=f"a sweep that saves: {engine.saving_key} of 1 or more",
                fix=f"-S sweep.{engine.saving_key}=1",
                key=engine.saving_key,
            )
        )
    pins.pin(checkpoints, saved.step, "dvc", f"the best of {about['name']}, in {places.BEST}")
    known = manifest.read(checkpoints, saved.step) or manifest.write(checkpoints, saved.step, trial=row["id"])
    with places.replaced(places.BEST) as folder:
        shutil.copytree(saved.path, folder / CHECKPOINT / saved.path.name, copy_function=places.link)
        if known is not None:
            kept = manifest.path_of(folder / CHECKPOINT, saved.step)
            kept.parent.mkdir()
            shutil.copyfile(manifest.path_of(checkpoints, saved.step), kept)
        sweep.hand_on(SweepFolder(place.parents[1]), place.name, SweepFolder(folder).trial(place.name))
        attempt = place / row["attempt"]
        places.write(
            folder / ABOUT,
            {
                "sweep": about["name"],
                "from": row["place"],
                "attempt": row["attempt"],
                "label": row["label"],
                "fingerprint": row["fingerprint"],
                "overrides": row["overrides"],
                "seed": row["seed"],
                "gang": read_json(attempt / "spec.json")["gang"],
                "step": saved.step,
                "checkpoint": saved.path.name,
                "digest": known.digest if known else None,
                "bytes": known.bytes if known else None,
                "score": score,
            },
        )
    _curves(row)
    print(f"best: {row['place']} ({row['label']}), step {saved.step}, score {score:.4f}")
    return 0


def record(best: Mapping[str, Any]) -> Path:
    """The best's lineage record as it was handed on; an older sweep has none."""
    return SweepFolder(places.BEST).trial(Path(best["from"]).name) / str(best["attempt"]) / document.NAME


def best(about: Mapping[str, Any], rows: list[dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """The best trial and its score.

    Raises:
        RequestError: None finished with a score.
    """
    mode = about["mode"]
    found = standings(sweep.outcomes(rows), sweep.asked_for(about)).best
    if found is None:
        raise RequestError(
            Problem(
                f"no trial of {about['name']} finished with a score, so there is no best one",
                fix=f"sweeper status {about['name']}",
            )
        )
    scored = [(t.trial.id, s) for t in found.trials if (s := t.curve.final_score) is not None]
    trial, score = min(scored, key=lambda item: (*order(item[1], mode), item[0]))
    return next(row for row in rows if row["id"] == trial), score


def _curves(row: Mapping[str, Any]) -> None:
    """Of the best trial alone: `dvc plots diff` draws a line for each experiment."""
    with places.replaced(places.PLOTS) as folder:
        for name in ("score", "reward"):
            with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                out = csv.writer(file, lineterminator="\n")
                out.writerow(("step", name))
                out.writerows(sorted((int(step), value) for step, value in row[f"{name}s"].items()))
