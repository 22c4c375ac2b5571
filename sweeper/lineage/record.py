"""Makes the lineage record of every attempt of a sweep: before it starts, and again when it has ended.

Guarantees: what all attempts share (code, environment) is found out once a controller, beside what else a start has to
do; an attempt costs a few milliseconds beside hashes that were never taken; the record is written before the attempt
starts, so that one which dies with its controller has it; what cannot be found out is a warning and a null, and never
ends a sweep; with `lineage.strict` a tree that differs from its commit ends it before anything is spent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper import cache
from sweeper.checkpoints import manifest, start
from sweeper.engines.base import Config, Engine
from sweeper.errors import RequestError, SweeperError
from sweeper.lineage import code, document, environment, inputs
from sweeper.lineage.code import Code
from sweeper.lineage.hashes import Hashes
from sweeper.trial.identity import both_leaves, fingerprint_of, placement_of
from sweeper.trial.records import AttemptFolder, SweepFolder, attempt_number, now, secret_name, without_secrets
from sweeper.trial.spec import Trial

PATCHES = "patches"
"""Folder of a sweep: each patch once, by its hash; the attempts have links to it."""
GANG = "gang"
"""Folder of an attempt: what its nodes have written."""
_NOT_TRAINED_ON = ("test",)
"""Roles that a trial's result does not depend on."""


@dataclass(frozen=True, slots=True)
class Donor:
    """Whose checkpoint a trial was given."""

    trial: str
    step: int


def leaves(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Identity (canonical values) and placement (values as they are) of a config: each of its leaves is in one of them.

    Raises:
        TypeError: a leaf cannot be made canonical; the message names its key.
    """
    identity, placement = both_leaves(config, placement_of(config))
    return dict(sorted(identity.items())), dict(sorted(placement.items()))


class Recorder:
    """The records of one sweep's attempts, as long as its controller lives."""

    def __init__(
        self,
        engine: Engine,
        *,
        warn: Callable[[str], None],
        strict: bool = False,
        reproduces: Path | None = None,
        exclude: Iterable[Path] = (),
        root: Path | None = None,
        hashes: Hashes | None = None,
    ) -> None:
        """Begins to look at the code.

        Args:
            engine: of all trials.
            warn: is told what could not be recorded, in a line each, once.
            strict: whether the code must be that of a commit.
            reproduces: the record of the run that this sweep repeats.
            exclude: paths of which nothing belongs to the code: the store, the tracking store.
            root: the code's folder; by default `code.home()`.

        Raises:
            RequestError: `reproduces` is no record; or `strict`, and the tree differs from its commit.
        """
        self._engine, self._warn_once, self._hashes = engine, warn, hashes or Hashes()
        self._warned: set[str] = set()
        self._held: set[Path] = set()
        self.reproduces = reproduces.absolute() if reproduces else None
        self._reproduced = document.read(self.reproduces)["run"] if self.reproduces else None
        pool = ThreadPoolExecutor(1, thread_name_prefix="lineage")
        self._capturing: Future[Code] = pool.submit(code.capture, root, [*exclude, cache.root()])
        pool.shutdown(wait=False)
        self._seen: Code | None = None
        if strict:
            code.refuse_dirty(self._capturing.result())

    # --- what is recorded ---

    def started(
        self, trial: Trial, config: Config, folder: AttemptFolder, checkpoints: Path, donor: Donor | None = None
    ) -> None:
        """Write the record of an attempt that is about to start, and link the patch beside it.

        Args:
            config: as the attempt gets it: the trial's, perhaps with less memory needed.
            checkpoints: of the trial.
            donor: whose checkpoint it goes on from, where that is not its own.
        """
        self._hold(config, folder)
        try:
            made = self._made(trial, config, folder, checkpoints, donor)
            document.write(folder.path, made)
            self._link_patch(folder)
            if folder.previous:
                self._compare(trial, folder.path.with_name(folder.previous), made)
        except Exception as error:  # lineage must not cost a run
            self._warn(f"{trial.id} has no lineage record: {_line(error)}")

    def ended(
        self,
        folder: AttemptFolder,
        checkpoints: Path,
        result: Mapping[str, Any],
        *,
        started: float | None = None,
        ended: float | None = None,
    ) -> None:
        """Complete the record of an attempt; nothing where it has none.

        Args:
            result: the schema's `result`; what is not given is null.
            started, ended: Unix times.
        """
        if not (folder.path / document.NAME).exists():
            return
        try:
            found = document.load(folder.path)
            found["result"] = {**_NO_RESULT, **result}
            asked = (found["config"].get("engine") or {}).get("image")
            if asked and (image := environment.image_of(folder.path, str(asked))):
                found["environment"]["image"] = image
            found["times"] |= {"started": now(started) if started else found["times"]["started"], "ended": now(ended)}
            found["checkpoints"] = _checkpoints(checkpoints, folder.number)
            found["hosts"] = _hosts(folder.path) or found["hosts"]
            if nodes := _nodes(folder.path):
                found["environment"]["nodes"] = nodes
            document.write(folder.path, found)
        except Exception as error:  # as above
            self._warn(f"the lineage record of {folder.path} was not completed: {_line(error)}")

    def unlike(self, trial: Trial, finished: Path) -> str:
        """Why a finished attempt with the same fingerprint does not stand for a trial of today; empty where it does.

        One from before there were lineage records does.
        """
        if not (finished / document.NAME).exists():
            return ""
        try:
            before = document.load(finished)
            today = inputs.of(trial.config, self._hashes, problems=[])
            if said := _data_differs(before["inputs"], today):
                return said
            was, is_now = before["environment"]["engine"], self._environment(trial.config)["engine"]
            images = [str((c.get("engine") or {}).get("image") or "") for c in (before["config"], trial.config)]
        except (SweeperError, KeyError, TypeError) as error:
            return f"its lineage record cannot be compared: {_line(error)}"
        if images[0] != images[1]:
            in_image = [f"in the image {image}" if image else "in no image" for image in images]
            return f"it was computed {in_image[0]}, and today's would be {in_image[1]}"
        if (was["version"], was["commit"]) != (is_now["version"], is_now["commit"]):
            return f"it was computed by {_engine_text(was)}, and {_engine_text(is_now)} is installed"
        return ""

    # --- how ---

    def _made(
        self, trial: Trial, config: Config, folder: AttemptFolder, checkpoints: Path, donor: Donor | None
    ) -> dict[str, Any]:
        identity, placement = leaves(config)
        missed: list[str] = []
        listed = inputs.of(config, self._hashes, problems=missed)
        for text in missed:
            self._warn(text)
        return {
            "kind": document.KIND,
            "schema": document.SCHEMA,
            "run": {
                "sweep": folder.sweep,
                "trial": trial.id,
                "attempt": folder.number,
                "label": trial.label,
                "arm": trial.arm,
                "candidate": trial.candidate or trial.id,
                "seed": trial.seed,
                "kind": trial.kind,
                "folder": str(folder.path),
            },
            "fingerprint": fingerprint_of(identity),
            "overrides": list(trial.point.overrides),
            "identity": _masked(identity),
            "placement": placement,
            "config": _without_secrets(config),
            "inputs": listed,
            "code": self._code().record(),
            "environment": self._environment(config),
            "seeds": document.seeds({**identity, **placement}),
            "parents": self._parents(config, folder, checkpoints, donor),
            "checkpoints": [],
            "result": None,
            "times": {"created": now(), "started": None, "ended": None},
            "hosts": [socket.gethostname()],
        }

    def _compare(self, trial: Trial, before: Path, made: Mapping[str, Any]) -> None:
        """Say where an attempt goes on with other data than the one before it was trained on."""
        if not (before / document.NAME).exists():
            return
        if said := _data_differs(document.load(before)["inputs"], made["inputs"]):
            self._warn(f"{trial.id} goes on from what {before.name} was trained on, but {said}")

    def _code(self) -> Code:
        if self._seen is None:
            self._seen = self._capturing.result()
            if self._seen.problem:
                self._warn(f"the code cannot be traced to a commit: {self._seen.problem} ({self._seen.root})")
            elif self._seen.left_out:
                listed = [f"{f.path} ({f.why})" for f in self._seen.left_out]
                more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
                self._warn(f"not in the recorded difference of the code: {', '.join(listed[:5])}{more}")
        return self._seen

    def _environment(self, config: Mapping[str, Any]) -> dict[str, Any]:
        engine = config.get("engine") or {}
        name = str(engine.get("name", ""))
        return environment.capture(
            engine.get("python"), name, self._code().root, engine.get("env"), engine.get("image")
        )

    def _link_patch(self, folder: AttemptFolder) -> None:
        patch = self._code().patch
        if not patch:
            return
        one = folder.path.parents[2] / PATCHES / f"{hashlib.sha256(patch).hexdigest()[:16]}.patch"
        if not one.exists():
            one.parent.mkdir(exist_ok=True)
            partial = one.with_name(f".{one.name}.{os.getpid()}.tmp")
            partial.write_bytes(patch)
            partial.replace(one)
        target = folder.path / document.PATCH
        target.unlink(missing_ok=True)
        try:
            os.link(one, target)
        except OSError:  # a file system without links
            shutil.copyfile(one, target)

    def _hold(self, config: Config, folder: AttemptFolder) -> None:
        """Keep what the trial starts from where it is, for whoever starts it again."""
        checkpoint = start.named(config)
        if checkpoint is None or checkpoint in self._held:
            return
        self._held.add(checkpoint)
        try:
            start.hold(checkpoint, folder.path.parents[2])
        except SweeperError as error:
            self._warn(f"{checkpoint} may be freed while {folder.sweep} starts from it: {_line(error)}")

    def _parents(
        self, config: Config, folder: AttemptFolder, checkpoints: Path, donor: Donor | None
    ) -> list[dict[str, Any]]:
        sweep = SweepFolder(folder.path.parents[2])
        found: list[dict[str, Any]] = []
        if folder.previous:
            before = folder.path.with_name(folder.previous)
            saved = None if donor else self._engine.checkpoint(checkpoints)
            found.append(
                _parent(
                    "extends" if _state(before) == "finished" else "previous-attempt",
                    before,
                    step=saved.step if saved else None,
                    checkpoint=_digest(checkpoints, saved.step) if saved else None,
                )
            )
        if donor is not None:
            theirs = sweep.checkpoints(donor.trial)
            written = _manifest(theirs, donor.step)
            latest = sweep.latest_attempt(donor.trial)
            wrote = sweep.trial(donor.trial) / f"attempt-{written.attempt}" if written and written.attempt else latest
            if wrote is not None:
                digest = written.digest if written else _digest(checkpoints, donor.step)
                found.append(_parent("forked-from", wrote, step=donor.step, checkpoint=digest))
        if checkpoint := start.named(config):
            found.append(_started_from(start.origin(checkpoint)))
        if self._reproduced is not None:
            own = {k: self._reproduced[k] for k in ("sweep", "trial", "attempt")}
            found.append(
                {"relation": "reproduces", **own, "step": None, "checkpoint": None, "lineage": str(self.reproduces)}
            )
        return found

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            self._warn_once(message)


_NO_RESULT: dict[str, Any] = {
    "state": "",
    "reason": "",
    "exit_code": None,
    "score": None,
    "best_score": None,
    "step": None,
    "elapsed_s": None,
    "gpu_hours": None,
    "stop": None,
    "root_cause": [],
}


def _parent(relation: str, attempt: Path, *, step: int | None, checkpoint: str | None) -> dict[str, Any]:
    record = attempt / document.NAME
    return {
        "relation": relation,
        "sweep": attempt.parents[2].name,
        "trial": attempt.parent.name,
        "attempt": attempt_number(attempt) or None,
        "step": step,
        "checkpoint": checkpoint,
        "lineage": str(record) if record.exists() else None,
    }


def _started_from(origin: start.Origin) -> dict[str, Any]:
    return {
        "relation": "started-from",
        "sweep": origin.sweep,
        "trial": origin.trial,
        "attempt": origin.attempt,
        "step": origin.step,
        "checkpoint": origin.digest,
        "lineage": str(origin.lineage) if origin.lineage else None,
    }


def _state(attempt: Path) -> str:
    """How an attempt ended, by its record; empty where that does not say."""
    try:
        return str((document.load(attempt)["result"] or {}).get("state", ""))
    except (RequestError, KeyError, AttributeError):
        return ""


def _manifest(checkpoints: Path, step: int) -> manifest.Manifest | None:
    try:
        return manifest.read(checkpoints, step)
    except (OSError, ValueError):  # damaged: found and said where it is used
        return None


def _digest(checkpoints: Path, step: int) -> str | None:
    found = _manifest(checkpoints, step)
    return found.digest if found else None


def _checkpoints(checkpoints: Path, attempt: int) -> list[dict[str, Any]]:
    """What this attempt has saved and is there."""
    return [
        {
            "step": m.step,
            "path": str(checkpoints / manifest.name_of(m.step)),
            "digest": m.digest,
            "bytes": m.bytes,
            "files": len(m.files),
        }
        for m in manifest.listed(checkpoints)
        if m.attempt == attempt
    ]


def _hosts(attempt: Path) -> list[str]:
    """The machines that an attempt's nodes ran on, by rank, each once: what a node wrote of itself (gang/node.py of the
    clusters), else what its launcher called it. Empty where nothing says: it ran where its controller did.
    """
    try:
        nodes = json.loads((attempt / GANG / "gang.json").read_text(encoding="utf-8"))["nodes"]
        called = {rank: str(node["name"]) for rank, node in enumerate(nodes)}
    except (OSError, ValueError, LookupError, TypeError):
        called = {}
    called |= {rank: str(told["host"]) for rank, told in _told(attempt)}
    return list(dict.fromkeys(name for _, name in sorted(called.items()) if name))


def _nodes(attempt: Path) -> list[dict[str, Any]]:
    """The schema's `environment.nodes`: what each node of a gang wrote of itself, by rank."""
    return [{"host": str(told["host"]), **told["machine"]} for _, told in sorted(_told(attempt)) if "machine" in told]


def _told(attempt: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rank and what its node wrote (gang/node.py of the clusters)."""
    for path in (attempt / GANG).glob("[0-9]*.json"):
        if path.stem.isdigit():
            try:
                told = json.loads(path.read_text(encoding="utf-8"))
                yield int(path.stem), {**told, "host": str(told["host"])}
            except (OSError, ValueError, LookupError, TypeError):
                continue


def _masked(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: f"<{name}>" if key.startswith("engine.env.") and secret_name(name := key[11:]) else value
        for key, value in identity.items()
    }


def _without_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    engine = config.get("engine")
    if not isinstance(engine, Mapping) or not engine.get("env"):
        return dict(config)
    return {**config, "engine": {**engine, "env": without_secrets(engine["env"])}}


def _data_differs(before: Iterable[Mapping[str, Any]], today: Iterable[Mapping[str, Any]]) -> str:
    """Which role's content is another one, in words."""
    then, here = _by_role(before), _by_role(today)
    for role in sorted(then.keys() | here.keys()):
        if then.get(role) != here.get(role):
            was, is_now = (", ".join(str(s)[:12] for s in side.get(role, [])) or "nothing" for side in (then, here))
            return f"the content of its {role} input has changed (sha256 {was}, now {is_now})"
    return ""


def _by_role(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in rows:
        if row["role"] not in _NOT_TRAINED_ON:
            found.setdefault(row["role"], []).append(row["sha256"] or row["revision"])
    return found


def _engine_text(engine: Mapping[str, Any]) -> str:
    return f"{engine['name']} {engine['version']}" + (f" ({engine['commit'][:12]})" if engine["commit"] else "")


def _line(error: BaseException) -> str:
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0]}" if text and not isinstance(error, SweeperError) else "; ".join(text)
