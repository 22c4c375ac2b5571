"""The files that a trial reads: rows, reward, model, tools; each with the hash of its content and where it is from.

Guarantees: every file that the config names for training, validation, held-out evaluation, reward and weights is
listed, once a role, and so is any other file or folder that an identity leaf names, whichever key that is; what a trial
writes is not, and neither is code that the record's `code` and `environment` hold; hashes are taken once for a content
(sweeper/lineage/hashes.py), so that a trial costs a few stats; rows are counted from a parquet file's footer without
reading its data or importing pyarrow; what DVC tracks has its hash there too; what the model hub gave has its commit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sweeper import environments, prepare
from sweeper.errors import Problem, RequestError
from sweeper.lineage.hashes import HashError, Hashes, Tree
from sweeper.trial.identity import is_identity, placement_of

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_REVISION = re.compile(r"/snapshots/([0-9a-f]{40})(?:/|$)")


def of(
    config: Mapping[str, Any],
    hashes: Hashes | None = None,
    *,
    fresh: bool = False,
    problems: list[str] | None = None,
) -> list[dict[str, Any]]:
    """The section `inputs` of the lineage record.

    Args:
        config: of a trial, bound.
        hashes: with its memory; by default that of the cache.
        fresh: hash every content anew.
        problems: where what cannot be read is said, in a line each; the hash of such an input is null.

    Raises:
        RequestError: a file is missing or cannot be read, and `problems` is not given; names every one of them.
    """
    hashes = hashes or Hashes()
    builds = _builds(config)
    env = {**os.environ, **{str(k): str(v) for k, v in ((config.get("engine") or {}).get("env") or {}).items()}}
    found, wrong = [], []
    for role, key, named in listed(config):
        place, revision = _place(named, key, env)
        row = _row(role, named if place is None else str(place if revision is None else named))
        row["revision"] = revision or _revision(named)
        if place is not None:
            try:
                tree = hashes.tree(place, fresh)
            except HashError as error:
                problem = Problem(f"{key}: the {_SAID[role]} {error}", key=key, fix=f"{key}=<path>")
                # What only sounds like a path may be none: that ends no reproduction of a run which did without.
                if problems is not None or key in _NEEDED or os.path.lexists(place):
                    wrong.append(problem)
            else:
                row |= _content(place, tree)
            row["built"] = next((b for path, b in builds.items() if place == path or path in place.parents), None)
            row["dvc"] = _dvc(place)
        found.append(row)
    if wrong and problems is None:
        raise RequestError(wrong)
    if problems is not None:
        problems += [p.what for p in wrong]
    return found


_SAID = {
    "train": "training file",
    "val": "validation file",
    "test": "held-out file",
    "reward": "reward",
    "model": "model",
    "file": "file",
}
_ROLES: tuple[tuple[str, str], ...] = (
    ("train", "data.train_files"),
    ("val", "data.val_files"),
    ("reward", "reward.custom_reward_function.path"),
    ("model", "actor_rollout_ref.model.path"),
    ("model", "actor_rollout_ref.model.tokenizer_path"),
    ("model", "actor_rollout_ref.model.lora_adapter_path"),
    ("model", "trainer.resume_from_path"),
    ("model", "critic.model.path"),
    ("reward", "reward.reward_model.model_path"),
)
"""Those that most trials have, in the order of the record; what else a config names follows."""
_NEEDED = frozenset(key for _, key in _ROLES)
_PATH = re.compile(r"(?:^|_)(?:path|file)s?$")
"""How verl calls its keys of paths (trainer/config/_generated_ppo_*trainer.yaml, workers/config/)."""
_WRITTEN = re.compile(r"(?:^|_)(?:cache|dump|logs?|outputs?|record|save|store|te?mp)(?:_|$)")
"""What a trial writes, or keeps for itself: `router_replay.record_file` is identity and no input."""
_FILE = "file://"
"""How verl lets a module's path begin (utils/import_utils.py)."""
_CODE = re.compile(rf"^{re.escape(str(Path(__file__).resolve().parents[1]))}/|/(?:site|dist)-packages/")
"""This package, which the record has a hash of, and installed ones, which it has the versions of."""


def listed(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Role, config key and path (or hub id) of every input, each once."""
    found: dict[tuple[str, str], str] = {}
    for role, key, value in _named(config):
        for path in value if isinstance(value, list | tuple) else [value]:
            if isinstance(path, str) and path:
                found.setdefault((role, path), key)
    seen = {_absolute(path) for _, path in found}
    for key, path in _others(config):
        if (place := _absolute(path)) not in seen:
            seen.add(place)
            found[_role(key), path] = key
    return [(role, key, path) for (role, path), key in found.items()]


def _named(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    def at(key: str) -> Any:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    off = _switched_off(config)
    yield from ((role, key, at(key)) for role, key in _ROLES if not key.startswith(off))
    train = at("data.train_files")
    environment = at("environment")
    if isinstance(train, str) and isinstance(environment, Mapping) and environments.is_built(environment):
        files = environments.resolve(config)
        if files.train == Path(train) and files.test is not None and files.test.exists():
            yield "test", "environment", str(files.test)


def _switched_off(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Sections whose values nothing reads in this config."""

    def on(*keys: str) -> bool:
        value: Any = config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return bool(value)

    switches = {
        "critic.": on("binding", "critic") or on("critic", "enable"),
        "reward.reward_model.": on("reward", "reward_model", "enable"),
        "distillation.": on("distillation", "enabled"),
    }
    return tuple(section for section, is_on in switches.items() if not is_on)


def _others(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and value of the other identity leaves that name a file: every one whose key says so, and every one whose
    value is the path of something that is there."""
    # A variable may name a search path, a cache or a secret: it is recorded as it was typed.
    off = (*_switched_off(config), "engine.env.")
    placement = placement_of(config)
    for key, text in _texts(config, ""):
        name = key.rpartition(".")[2]
        if _WRITTEN.search(name) or _CODE.search(text) or text.startswith("pkg://") or text == "/":
            continue
        said = _PATH.search(name) is not None
        if not key.startswith(off) and is_identity(key, placement) and (said or _is_there(_absolute(text))):
            yield key, text


def _texts(value: Mapping[str, Any], at: str) -> Iterator[tuple[str, str]]:
    """Every text in a config that may be a path, with its dotted key. Of 900 leaves it takes a look at 100."""
    for key, inner in value.items():
        if type(inner) is dict:
            if inner:
                yield from _texts(inner, f"{at}{key}.")
        elif type(inner) is str:
            if "/" in inner or (inner and _PATH.search(key)):
                yield f"{at}{key}", inner
        elif type(inner) is list:
            for item in inner:
                if isinstance(item, str | Mapping):
                    yield from _texts({key: item}, at)


def _role(key: str) -> str:
    if key.startswith(("reward.", "reward_model.", "custom_reward_function.")):
        return "reward"
    weights = ".model." in f".{key}" or key.endswith(("model_path", "checkpoint_path", "checkpointing_path"))
    return "model" if weights else "file"


def _absolute(named: str) -> str:
    named = named.removeprefix(_FILE)
    try:
        return named if "://" in named else str(Path(named).expanduser().absolute())
    except RuntimeError:  # ~nobody
        return named


def _is_there(path: str) -> bool:
    try:
        Path(path).stat()
    except (OSError, ValueError):  # a text that is no path: too long, a zero byte
        return False
    return True


def _row(role: str, path: str) -> dict[str, Any]:
    empty = {"sha256": None, "bytes": 0, "files": 0, "rows": None, "built": None, "dvc": None, "revision": None}
    return {"role": role, "path": path, **empty}


def _content(place: Path, tree: Tree) -> dict[str, Any]:
    one = not place.is_dir()
    sha256 = tree.files[0][2] if one else tree.digest
    return {
        "sha256": sha256,
        "bytes": tree.bytes,
        "files": len(tree.files),
        "rows": _rows(str(place), sha256) if one else None,
    }


def _builds(config: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """What this project makes for the config: folder -> what, kind and spec."""
    try:
        needed = prepare.needed(config)
    except (KeyError, TypeError):  # another engine's config, which names its data in another way
        return {}
    return {Path(b.path): {"what": b.what, "kind": b.kind, "spec": b.spec} for b in needed}


# --- where it is ---


def _place(named: str, key: str, env: Mapping[str, str]) -> tuple[Path | None, str | None]:
    """The path of an input, and the hub's commit where it is the copy of a hub's model. No path: it is not here."""
    if "://" in named.removeprefix(_FILE):
        return None, None
    path = Path(named.removeprefix(_FILE)).expanduser()
    hub = ".model." in f".{key}" or key.endswith("model_path")
    if not hub or path.exists() or path.is_absolute() or not _HUB_ID.fullmatch(named):
        return path.absolute(), None
    folder = _hub(env) / f"models--{named.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None, None
    snapshot = folder / "snapshots" / revision
    return (snapshot, revision) if snapshot.is_dir() else (None, revision)


def _hub(env: Mapping[str, str]) -> Path:
    """Where the client of the model hub keeps what it fetched (huggingface_hub/constants.py)."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if env.get(name):
            return Path(env[name]).expanduser()
    base = env.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(env.get("HF_HOME") or f"{base}/huggingface").expanduser() / "hub"


def _revision(named: str) -> str | None:
    found = _REVISION.search(named)
    return found[1] if found else None


# --- rows ---


@lru_cache(maxsize=256)
def _rows(path: str, _sha256: str) -> int | None:
    """Rows of a parquet or JSON lines file of that content; None for any other, or where it cannot be read so."""
    try:
        if path.endswith(".parquet"):
            return _parquet_rows(Path(path))
        if path.endswith(".jsonl"):
            with Path(path).open("rb") as file:
                return sum(1 for line in file if line.strip())
    except (OSError, ValueError, IndexError):
        return None
    return None


def _parquet_rows(path: Path) -> int:
    """`num_rows` of the footer: the third field of a struct in Thrift's compact protocol, at the file's end (Apache
    Parquet, parquet.thrift, FileMetaData)."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or not 0 < length <= size - 12:
            raise ValueError(f"{path} is no parquet file")
        file.seek(size - 8 - length)
        footer = _Thrift(file.read(length))
    number = 0
    while True:
        kind, number = footer.field(number)
        if kind == 0:
            raise ValueError(f"{path} has no count of rows")
        if number == 3:
            return footer.zigzag()
        footer.skip(kind)


class _Thrift:
    """Just enough of Thrift's compact protocol to pass over what is not wanted."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def field(self, before: int) -> tuple[int, int]:
        """Type and number of the next field; type 0: the struct ends."""
        head = self._byte()
        kind, step = head & 15, head >> 4
        return kind, (before + step if step or kind == 0 else self.zigzag())

    def zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def skip(self, kind: int) -> None:
        if kind == 3:  # a byte; booleans (1, 2) are in the field's head
            self._at += 1
        elif kind in (4, 5, 6):
            self._varint()
        elif kind == 7:
            self._at += 8
        elif kind == 8:
            length = self._varint()  # which moves on itself
            self._at += length
        elif kind in (9, 10):
            head = self._byte()
            for _ in range(self._varint() if head >> 4 == 15 else head >> 4):
                self._element(head & 15)
        elif kind == 11 and (count := self._varint()):
            kinds = self._byte()
            for _ in range(count):
                self._element(kinds >> 4)
                self._element(kinds & 15)
        elif kind == 12:
            number = 0
            while True:
                inner, number = self.field(number)
                if inner == 0:
                    break
                self.skip(inner)

    def _element(self, kind: int) -> None:
        self.skip(3 if kind in (1, 2) else kind)

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7


# --- DVC ---


def _dvc(place: Path) -> dict[str, str] | None:
    """The .dvc file or dvc.lock that tracks a path or a folder that it lies in, and the hash there."""
    root = next((p for p in place.parents if (p / ".dvc").is_dir()), None)
    for at in (place, *place.parents) if root else ():
        if at == root:
            return None
        beside = at.with_name(f"{at.name}.dvc")
        for out in (_yaml(beside) or {}).get("outs") or ():
            if out.get("path") == at.name and out.get("md5"):
                return {"path": str(beside), "md5": str(out["md5"])}
        for folder in at.parents:
            lock = folder / "dvc.lock"
            if md5 := _locked(lock, at.relative_to(folder).as_posix()):
                return {"path": str(lock), "md5": md5}
            if folder == root:
                break
    return None


def _locked(lock: Path, relative: str) -> str:
    """An output's hash in a dvc.lock, or else a dependency's."""
    stages = ((_yaml(lock) or {}).get("stages") or {}).values()
    for section in ("outs", "deps"):
        for stage in stages:
            for item in stage.get(section) or ():
                if item.get("path") == relative and item.get("md5"):
                    return str(item["md5"])
    return ""


def _yaml(path: Path) -> dict[str, Any] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return _parsed(str(path), facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=64)
def _parsed(path: str, _mtime_ns: int, _size: int) -> dict[str, Any] | None:
    import yaml

    try:
        value = yaml.load(Path(path).read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError):
        return None
    return value if isinstance(value, dict) else None
