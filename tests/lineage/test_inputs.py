"""What a trial reads: every file with the hash of its content, its rows and where it is from."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from sweeper.errors import RequestError
from sweeper.lineage import inputs
from sweeper.lineage.hashes import Hashes


def parquet(path: Path, rows: int, **columns: Any) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"prompt": [[{"role": "user", "content": str(i)}] for i in range(rows)], **columns})
    pq.write_table(table, path, row_group_size=7)
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """The config of a trial on files of its own."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"\0" * 100)
    (tmp_path / "reward.py").write_text("def compute_score(**_): return 1.0\n")
    return {
        "environment": {"kind": "custom"},
        "data": {
            "train_files": [str(parquet(tmp_path / "a.parquet", 20)), str(parquet(tmp_path / "b.parquet", 3))],
            "val_files": str(parquet(tmp_path / "val.parquet", 5)),
        },
        "reward": {"custom_reward_function": {"path": str(tmp_path / "reward.py")}},
        "actor_rollout_ref": {"model": {"path": str(model)}},
        "critic": {"model": {"path": str(model)}},
        "binding": {"critic": True},
    }


@pytest.fixture
def hashes(tmp_path: Path) -> Hashes:
    return Hashes(tmp_path / "hashes.db")


def test_every_file_is_listed_once_a_role(files: dict[str, Any], hashes: Hashes) -> None:
    found = inputs.of(files, hashes)
    said = [(r["role"], Path(r["path"]).name, r["rows"], r["files"]) for r in found]
    assert said == [
        ("train", "a.parquet", 20, 1),
        ("train", "b.parquet", 3, 1),
        ("val", "val.parquet", 5, 1),
        ("reward", "reward.py", None, 1),
        ("model", "model", None, 2),
    ]
    assert all(len(r["sha256"]) == 64 and r["bytes"] > 0 for r in found)


@pytest.mark.parametrize("role", ["train", "val", "reward", "model"])
def test_a_flipped_byte_changes_the_record(files: dict[str, Any], hashes: Hashes, role: str) -> None:
    before = inputs.of(files, hashes)
    row = next(r for r in before if r["role"] == role)
    path = Path(row["path"])
    path = path / "model.safetensors" if path.is_dir() else path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    after = inputs.of(files, hashes, fresh=True)
    changed = [b["path"] for b, a in zip(before, after, strict=True) if b["sha256"] != a["sha256"]]
    assert changed == [row["path"]]


def test_every_missing_file_is_named_with_its_key(files: dict[str, Any], hashes: Hashes, tmp_path: Path) -> None:
    (tmp_path / "b.parquet").unlink()
    files["actor_rollout_ref"]["model"]["path"] = str(tmp_path / "gone")
    with pytest.raises(RequestError) as raised:
        inputs.of(files, hashes)
    text = str(raised.value)
    assert f"data.train_files: the training file {tmp_path / 'b.parquet'} is not there" in text
    assert f"actor_rollout_ref.model.path: the model {tmp_path / 'gone'} is not there" in text
    said: list[str] = []
    found = inputs.of(files, hashes, problems=said)
    assert len(said) == 2
    assert [r["sha256"] is None for r in found] == [False, True, False, False, True, False]


@pytest.mark.parametrize("rows", [0, 1, 16, 1000])
def test_rows_are_those_that_pyarrow_counts(tmp_path: Path, rows: int) -> None:
    """The footer is read by our own few lines: they must pass over whatever stands before the count."""
    rng = random.Random(rows)
    columns = {f"c{i}": [rng.choice([None, "x" * i, "é"]) for _ in range(rows)] for i in range(rng.randrange(1, 40))}
    columns |= {"flag": [True] * rows, "f": [0.5] * rows, "deep": [{"a": [{"b": 1}]}] * rows}
    path = parquet(tmp_path / "x.parquet", rows, **columns)
    assert inputs._parquet_rows(path) == rows


def test_a_file_that_is_no_parquet_has_no_rows(files: dict[str, Any], hashes: Hashes, tmp_path: Path) -> None:
    (tmp_path / "val.parquet").write_bytes(b"PAR1 cut off")
    lines = tmp_path / "t.jsonl"
    lines.write_text('{"a": 1}\n\n{"a": 2}')
    files["data"]["train_files"] = str(lines)
    found = {r["role"]: r["rows"] for r in inputs.of(files, hashes)}
    assert (found["val"], found["train"]) == (None, 2)


def test_what_we_build_says_from_what(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hashes: Hashes) -> None:
    from sweeper import environments

    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    environment = {"kind": "arithmetic", "largest": 9, "held_out": 0.25, "seed": 3}
    folder = environments.folder_of(environment)
    for name in ("train", "val", "test"):
        parquet(folder / f"{name}.parquet", 4)
    (folder / "reward.py").write_text("x")
    config = {
        "environment": environment,
        "data": {"train_files": str(folder / "train.parquet"), "val_files": str(folder / "val.parquet")},
        "reward": {"custom_reward_function": {"path": str(folder / "reward.py")}},
        "actor_rollout_ref": {"model": {"path": "org/not-here"}},
        "model": {"path": "org/not-here"},
    }
    found = inputs.of(config, hashes)
    assert [r["role"] for r in found] == ["train", "val", "reward", "model", "test"], "what is held out is listed too"
    built = {r["role"]: r["built"] for r in found}
    assert built["train"] == built["test"] == {
        "what": "environment",
        "kind": "arithmetic",
        "spec": environments.spec_of(environment),
    }  # fmt: skip
    assert built["model"] is None


def hub(tmp_path: Path, revision: str) -> Path:
    """The cache of the model hub's client, with one model."""
    blobs = tmp_path / "hub" / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "aa").write_bytes(b"weights")
    snapshot = blobs.parent / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/aa")
    (blobs.parent / "refs").mkdir()
    (blobs.parent / "refs" / "main").write_text(revision)
    return snapshot


def test_a_hub_models_revision_and_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashes: Hashes) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    revision = "a" * 40
    config: dict[str, Any] = {"actor_rollout_ref": {"model": {"path": "org/name"}}}
    away = inputs.of({**config, "engine": {"env": {"HF_HOME": str(tmp_path)}}}, hashes)[0]
    assert (away["path"], away["sha256"], away["revision"]) == ("org/name", None, None)
    snapshot = hub(tmp_path, revision)
    here = inputs.of({**config, "engine": {"env": {"HF_HOME": str(tmp_path)}}}, hashes)[0]
    assert (here["path"], here["revision"], here["files"], here["bytes"]) == ("org/name", revision, 1, 7)
    typed = inputs.of({"actor_rollout_ref": {"model": {"path": str(snapshot)}}}, hashes)[0]
    assert (typed["sha256"], typed["revision"]) == (here["sha256"], revision)


@pytest.mark.parametrize("way", ["a file of its own", "the folder's", "dvc.lock", "another file's", "no repository"])
def test_what_dvc_tracks_has_its_hash_too(tmp_path: Path, files: dict[str, Any], hashes: Hashes, way: str) -> None:
    data = tmp_path / "project" / "data"
    path = parquet(data / "train.parquet", 2)
    if way != "no repository":
        (tmp_path / "project" / ".dvc").mkdir()
    written = {
        "a file of its own": (data / "train.parquet.dvc", "outs:\n- md5: abc\n  size: 1\n  path: train.parquet\n"),
        "the folder's": (data.with_name("data.dvc"), "outs:\n- md5: abc.dir\n  path: data\n"),
        "dvc.lock": (
            tmp_path / "project" / "dvc.lock",
            "stages:\n  x:\n    deps: [{path: data/train.parquet, md5: abc}]\n    outs: [{path: b, md5: c}]\n",
        ),
        "another file's": (data / "train.parquet.dvc", "outs:\n- md5: abc\n  path: other.parquet\n"),
        "no repository": (data / "train.parquet.dvc", "outs:\n- md5: abc\n  path: train.parquet\n"),
    }[way]
    written[0].write_text(written[1])
    files["data"]["train_files"] = str(path)
    found = inputs.of(files, hashes)[0]["dvc"]
    if way in ("another file's", "no repository"):
        assert found is None
    else:
        assert found == {"path": str(written[0]), "md5": "abc.dir" if way == "the folder's" else "abc"}


def test_a_config_of_an_engine_that_names_none_has_none(hashes: Hashes) -> None:
    assert inputs.of({"x": 1, "engine": {"name": "fake"}}, hashes) == []


def test_what_lies_elsewhere_has_no_hash(files: dict[str, Any], hashes: Hashes) -> None:
    files["data"]["train_files"] = "s3://bucket/train.parquet"
    found = inputs.of(files, hashes)[0]
    assert (found["path"], found["sha256"]) == ("s3://bucket/train.parquet", None)
