"""Checkpoints as MLflow's logged models, and the best of a sweep in its model registry.

Guarantees: every call may be repeated: a model is found again by its run, step and digest, a version by its run, step
and digest too; a model is READY when all of it is there; it is linked to the run's training data, and to its validation
data where its step was validated. The checkpoint itself stays where it is: it has gigabytes. The
model holds `checkpoint.json`, which says where it is and what its content must be.

Two traps of MLflow 3.17: `log_outputs` and `log_model_params` add a second row when they are repeated (store/tracking/
sqlalchemy_store.py), and a version whose source is `models:/m-...` is looked up in the default store and not in the one
that is open (store/model_registry/sqlalchemy_store.py `create_model_version`): so the source is the model's own folder.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeper.tracking import lineage, names

KIND = "checkpoint"
"""MLflow's `model_type` of ours."""
REFERENCE = "checkpoint.json"
SCORE = "score"
"""The metric that a checkpoint has from the validation of its step."""
REWARD = "reward"
"""The metric that it has from the training data: of its step, or the latest before it."""
TRAINED = "trained_steps"
"""What it has where no reward was measured by then: MLflow links a model and a dataset by a metric alone."""
BEST = "best"


class Models:
    """The models of one experiment."""

    def __init__(self, client: Any, experiment: str) -> None:
        """`client` is an MlflowClient."""
        self._client, self._experiment = client, experiment

    def log(self, run: str, record: lineage.Record) -> None:
        """Every checkpoint of a record: a model of the run, made once, with its score and reward on the run's data."""
        if not record["checkpoints"]:
            return
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        known = self.of(run)
        scores, rewards = self._history(run, SCORE), self._history(run, REWARD)
        for checkpoint in record["checkpoints"]:
            step, digest = int(checkpoint["step"]), str(checkpoint["digest"])
            model = known.get((step, digest)) or self._make(run, record, checkpoint)
            known[step, digest] = model
            if model.status == LoggedModelStatus.READY:
                continue
            with tempfile.TemporaryDirectory() as folder:
                reference = Path(folder) / REFERENCE
                reference.write_text(json.dumps(_reference(record, checkpoint), indent=2) + "\n")
                self._client.log_model_artifact(model.model_id, str(reference))
            self._measured(run, model, self._training(step, rewards, model), record, "train")
            if step in scores:
                self._measured(run, model, scores[step], record, "val")
            self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        linked = {o.model_id for o in self._client.get_run(run).outputs.model_outputs}
        new = [LoggedModelOutput(m.model_id, step) for (step, _), m in known.items() if m.model_id not in linked]
        if new:
            self._client.log_outputs(run, new)

    def of(self, run: str) -> dict[tuple[int, str], Any]:
        """(step, digest) -> model, of those that the run has, oldest first."""
        found: list[Any] = []
        token = None
        while token != "":
            page = self._client.search_logged_models(
                [self._experiment],
                f"source_run_id = '{run}'",
                order_by=[{"field_name": "creation_time", "ascending": True}],
                page_token=token,
            )
            found += page
            token = page.token or ""
        return {(int(m.tags["sweeper.step"]), m.tags["sweeper.digest"]): m for m in found if "sweeper.digest" in m.tags}

    def register(self, project: str, sweep: str, run: str, best: Mapping[str, Any], record: lineage.Record) -> None:
        """Make a checkpoint of the run the best of its sweep, and of its project where that may be said.

        Args:
            project: the experiment's name; the registered model is called so.
            sweep: the sweep's name and, in `best["id"]`, what tells it from another of that name.
            run: the trial's.
            best: the call: `id`, `trial`, `step`, `score`, `mode`.
            record: the trial's, with the checkpoint in it.

        Raises:
            LookupError: the run has no such checkpoint.
        """
        model = next((m for (step, _), m in reversed(self.of(run).items()) if step == int(best["step"])), None)
        if model is None:
            raise LookupError(f"trial {best['trial']} has no checkpoint of step {best['step']} in its record")
        name = re.sub("[/:]", "-", project)
        aliases = self._registered(name)
        digest = model.tags["sweeper.digest"]
        tags = {
            "sweeper.id": best["id"],
            "sweeper.sweep": sweep,
            "sweeper.trial": best["trial"],
            "sweeper.step": best["step"],
            "sweeper.score": repr(float(best["score"])),
            "sweeper.mode": best["mode"],
            "sweeper.comparable": lineage.comparable(record),
            "sweeper.digest": digest,
            "sweeper.path": model.tags["sweeper.path"],
            "sweeper.fingerprint": record["fingerprint"],
            "sweeper.commit": record["code"]["commit"] or "",
            "sweeper.data": lineage.digest(record),
        }
        version = next(
            (
                v
                for v in self._client.search_model_versions(f"run_id = '{run}'")
                if v.name == name
                and (v.tags.get("sweeper.step"), v.tags.get("sweeper.digest")) == (str(best["step"]), digest)
            ),
            None,
        ) or self._client.create_model_version(
            name,
            model.artifact_location,
            run,
            tags={k: str(v) for k, v in tags.items() if str(v)},
            description=f"Trial {best['trial']} of the sweep {sweep} at step {best['step']}: score {best['score']:.6g}",
            await_creation_for=0,
            model_id=model.model_id,
        )
        self._point(name, alias_of(sweep), version, aliases)
        if self._takes_over(name, version, aliases.get(BEST)):
            self._point(name, BEST, version, aliases)

    def _make(self, run: str, record: lineage.Record, checkpoint: Mapping[str, Any]) -> Any:
        who = record["run"]
        tags = {
            "sweeper.sweep": who["sweep"],
            "sweeper.trial": who["trial"],
            "sweeper.attempt": who["attempt"],
            "sweeper.arm": who["arm"],
            "sweeper.step": checkpoint["step"],
            "sweeper.digest": checkpoint["digest"],
            "sweeper.path": checkpoint["path"],
            "sweeper.fingerprint": record["fingerprint"],
        }
        said = {
            "step": checkpoint["step"],
            "label": who["label"],
            "digest": checkpoint["digest"],
            "bytes": checkpoint["bytes"],
            "files": checkpoint["files"],
        }
        return self._client.create_logged_model(
            self._experiment,
            name=re.sub(r"[^\w-]", "-", f"{who['sweep']}-{who['trial']}-step-{checkpoint['step']}"),
            source_run_id=run,
            tags={k: str(v)[: names.MAX_TAG] for k, v in tags.items()},
            params={k: names.value(v) for k, v in said.items()},
            model_type=KIND,
        )

    def _history(self, run: str, name: str) -> dict[int, Any]:
        """A metric of the run by step; without NaN, which MLflow would call 0 when it is said of a model."""
        return {m.step: m for m in self._client.get_metric_history(run, name) if not math.isnan(m.value)}

    def _training(self, step: int, rewards: Mapping[int, Any], model: Any) -> Any:
        """What a checkpoint says of the training data."""
        from mlflow.entities import Metric

        known = [at for at in rewards if at <= step]
        # The time of the model's making, so that it is the same when it is said again.
        return rewards[max(known)] if known else Metric(TRAINED, step, model.creation_timestamp, step)

    def _measured(self, run: str, model: Any, measured: Any, record: lineage.Record, role: str) -> None:
        """The run's own value, said of the model and the data: the same time, so that the run has it once. Of several
        files of one role it is the first: MLflow takes one dataset a metric."""
        from mlflow.entities import Metric

        data = next((d for d in lineage.datasets(record) if d.role == role), None)
        metric = Metric(
            measured.key,
            measured.value,
            measured.timestamp,
            measured.step,
            model_id=model.model_id,
            dataset_name=data.name if data else None,
            dataset_digest=data.digest if data else None,
            run_id=run,
        )
        self._client.log_batch(run, metrics=[metric])

    def _registered(self, name: str) -> dict[str, str]:
        """The aliases of the registered model of that name, which is made where there is none."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return {alias: str(v) for alias, v in self._client.get_registered_model(name).aliases.items()}

    def _point(self, name: str, alias: str, version: Any, aliases: Mapping[str, str]) -> None:
        if aliases.get(alias) != str(version.version):
            self._client.set_registered_model_alias(name, alias, str(version.version))

    def _takes_over(self, name: str, version: Any, before: str | None) -> bool:
        """Whether a version is the project's best from now on: it is better, or the latest that cannot be compared."""
        if before is None or before == str(version.version):
            return True
        now, then = version.tags, self._client.get_model_version(name, before).tags
        if now["sweeper.id"] == then.get("sweeper.id"):
            return True
        if any(now[k] != then.get(k) for k in ("sweeper.comparable", "sweeper.mode")):
            return True
        sign = 1 if now["sweeper.mode"] == "max" else -1
        return sign * float(now["sweeper.score"]) > sign * float(then["sweeper.score"])


def alias_of(sweep: str) -> str:
    """The alias of a sweep's best. The prefix keeps off what MLflow reserves (`latest`, `v1`)."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", f"sweep-{sweep}")


def _reference(record: lineage.Record, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    who = record["run"]
    return {
        "checkpoint": dict(checkpoint),
        "run": {k: who[k] for k in ("sweep", "trial", "attempt", "folder")},
        "fingerprint": record["fingerprint"],
        "note": "the checkpoint is at `path`; its digest is the SHA-256 of its files' names, sizes and SHA-256",
    }
