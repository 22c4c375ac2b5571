"""A finished sweep written by hand, for tests of the pipeline's later stages. A fake: nothing was trained."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from records_fake import fake_document, fake_metrics

from sweeper.trial.ledger import Ledger

SCORE = "val-core/x/acc/mean@1"


def fake_checkpoint(folder: Path, step: int) -> Path:
    """Files that look whole to a reader of verl's checkpoints."""
    at = folder / f"global_step_{step}"
    (at / "actor").mkdir(parents=True)
    for name in ("data.pt", "actor/model_world_size_1_rank_0.pt"):
        with zipfile.ZipFile(at / name, "w") as archive:
            archive.writestr("weights", f"{folder} {step} {name}")
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    return at


def fake_sweep(
    store: Path, name: str, scores: Mapping[str, Sequence[float]], *, seeds: Sequence[int | None] = (None,)
) -> None:
    """A sweep of one arm; `scores`: label of a candidate (`lr=0.1`) -> last score under each seed; NaN: it failed."""
    folder = store / name
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"overrides": []}))
    ledger = Ledger.open(folder / "ledger.db", create=True)
    search = {"objectives": ["score"], "seeds": list(seeds), "final_seeds": []}
    arms = [{"id": "0", "label": "algorithm=grpo"}]
    overrides = ["algorithm=grpo", f"name={name}", "store=/somewhere"]
    ledger.append("sweep_started", data={"overrides": overrides, "mode": "max", "arms": arms, "search": search})
    for number, (label, each) in enumerate(scores.items()):
        key, _, value = label.partition("=")
        for seed, score in zip(seeds, each, strict=True):
            trial = f"{number:03d}" + (f"-s{seed}" if seed is not None else "")
            attempt = folder / "trials" / trial / "attempt-1"
            attempt.mkdir(parents=True)
            failed = score != score
            varied = {key: float(value), **({"seed": seed} if seed is not None else {})}
            planned = {"label": label, "varied": varied, "fingerprint": f"{number:064d}", "candidate": f"{number:03d}"}
            ledger.append("trial_planned", trial=trial, data={**planned, "params": {key: float(value)}, "seed": seed})
            ledger.append("attempt_started", trial=trial, attempt=1, data={"folder": str(attempt)})
            ended = {"state": "failed" if failed else "finished", "step": 4, "final_score": None if failed else score}
            ledger.append("attempt_ended", trial=trial, attempt=1, data=ended)
            lines = {0: {SCORE: 0.1}, 2: {"critic/score/mean": 0.2}}
            if not failed:
                lines[4] = {SCORE: score, "critic/score/mean": 0.3}
            (attempt / "metrics.jsonl").write_text(fake_metrics(lines))
            config = {"engine": {"name": "verl"}, "objective": {"metric": "auto"}}
            typed = [*overrides[:1], label, *([f"seed={seed}"] if seed is not None else [])]
            spec = {"config": config, "metrics": "metrics.jsonl", "varied": varied, "overrides": typed, "gang": {}}
            (attempt / "spec.json").write_text(json.dumps(spec))
            (attempt / "lineage.json").write_text(json.dumps(fake_document(attempt)))
            fake_checkpoint(attempt.parent / "checkpoints", 2)
            fake_checkpoint(attempt.parent / "checkpoints", 4)
    ledger.close()
