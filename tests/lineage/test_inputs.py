"""What a trial reads: every file with the hash of its content, its rows and where it is from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeper.engines.verl.placement import PLACEMENT
from sweeper.errors import RequestError
from sweeper.lineage import inputs
from sweeper.lineage.hashes import Hashes
from sweeper.trial.identity import is_identity


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


OTHERS = (
    ("file", "data.custom_cls.path", "dataset.py"),
    ("file", "data.tool_config_path", "tools.yaml"),
    ("file", "data.function_tool_path", "functions.py"),
    ("file", "actor_rollout_ref.rollout.multi_turn.tool_config_path", "turns.yaml"),
    ("file", "actor_rollout_ref.rollout.multi_turn.function_tool_path", "turns.py"),
    ("file", "actor_rollout_ref.rollout.agent.agent_loop_config_path", "agent.yaml"),
    ("file", "actor_rollout_ref.rollout.agent.custom_async_server.path", "server.py"),
    ("file", "actor_rollout_ref.rollout.quantization_config_file", "quantized.json"),
    ("file", "actor_rollout_ref.actor.qat.quantization_config_path", "qat.json"),
    ("file", "actor_rollout_ref.actor.megatron.router_replay.replay_file", "replay.pt"),
    ("file", "trainer.v1.sampler.custom_sampler.path", "sampler.py"),
    ("file", "environment.rules", "rules.txt"),  # a key that says nothing, with a value that is a file
    ("reward", "reward.reward_manager.module.path", "manager.py"),
    ("model", "actor_rollout_ref.model.hf_config_path", "config.json"),
    ("model", "actor_rollout_ref.model.lora.adapter_path", "adapter"),
    ("model", "actor_rollout_ref.actor.megatron.dist_checkpointing_path", "shards"),
    ("model", "distillation.teacher_models.teacher_model.model_path", "teacher"),
)
"""What else decides a result: role, key, name of the file."""


def put(config: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        config = config.setdefault(section, {})
    config[name] = value


@pytest.mark.parametrize(("role", "key", "name"), OTHERS)
def test_a_flipped_byte_of_any_other_file_changes_the_record(
    files: dict[str, Any], hashes: Hashes, tmp_path: Path, role: str, key: str, name: str
) -> None:
    path = tmp_path / name
    content = path if path.suffix else path / "weights"
    content.parent.mkdir(exist_ok=True)
    content.write_text("a")
    put(files, key, str(path))
    files.setdefault("distillation", {})["enabled"] = True
    files["engine"] = {"name": "verl"}
    before = inputs.of(files, hashes)
    assert [(r["role"], r["path"]) for r in before[5:]] == [(role, str(path))]
    content.write_text("b")
    after = inputs.of(files, hashes, fresh=True)
    assert [b["path"] for b, a in zip(before, after, strict=True) if b["sha256"] != a["sha256"]] == [str(path)]


def test_what_a_trial_writes_and_what_the_code_has_is_no_input(
    files: dict[str, Any], hashes: Hashes, tmp_path: Path
) -> None:
    before = inputs.of(files, hashes)
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("x")
    for key in (
        "trainer.default_local_dir", "trainer.rollout_data_dir", "trainer.validation_data_dir", "skip.rollout.dump_dir",
        "global_profiler.save_path", "ray_kwargs.timeline_json_file", "actor_rollout_ref.rollout.prometheus.file",
        "actor_rollout_ref.actor.megatron.router_replay.record_file", "tracking.uri", "store", "environment.cache_dir",
    ):  # fmt: skip
        put(files, key, str(out / "file") if key.endswith("file") else str(out))
    put(files, "actor_rollout_ref.rollout.agent.agent_loop_config_path", inputs.__file__)
    put(files, "data.custom_cls.path", pytest.__file__)
    put(files, "trainer.v1.sampler.custom_sampler.path", "pkg://a.b")
    put(files, "critic.model.lora_adapter_path", str(out))
    put(files, "distillation.teacher_models.teacher_model.model_path", str(out))  # which is not enabled
    put(files, "engine", {"name": "verl", "env": {"PYTHONPATH": str(out)}})
    files["binding"] = {"critic": False}
    assert inputs.of(files, hashes) == before


def test_a_file_is_listed_once_however_it_is_named(
    files: dict[str, Any], hashes: Hashes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(files, "environment.val", "./val.parquet")
    put(files, "data.tool_config_path", f"file://{tmp_path}/val.parquet")
    assert len(inputs.of(files, hashes)) == 5


def test_any_text_may_stand_in_a_config(files: dict[str, Any], hashes: Hashes) -> None:
    before = inputs.of(files, hashes)
    for key, text in (
        ("template", "{% if a/b %}" * 1000),
        ("zero", "a/\0"),
        ("user", "~nobody-here/x"),
        ("url", "a://b/c"),
    ):
        put(files, f"environment.{key}", text)
    put(files, "environment.list", [["a/b"], {"c": "d/e"}, None, 1.5, "/"])
    assert inputs.of(files, hashes) == before


def test_a_path_that_is_not_there_is_said_and_ends_no_reproduction(files: dict[str, Any], hashes: Hashes) -> None:
    put(files, "data.tool_config_path", "/nowhere/tools.yaml")
    said: list[str] = []
    found = inputs.of(files, hashes, problems=said)
    assert (found[-1]["path"], found[-1]["sha256"]) == ("/nowhere/tools.yaml", None)
    assert said == ["data.tool_config_path: the file /nowhere/tools.yaml is not there"]
    assert inputs.of(files, hashes) == found


def test_every_path_of_verls_own_config_would_be_seen(tmp_path: Path) -> None:
    """Of its schema, every identity leaf that is called a path or a file; a new one of a later verl too."""
    config_folder = Path(str(metadata.distribution("verl").locate_file("verl/trainer/config")))
    seen = set()
    for file in config_folder.glob("_generated_ppo_*trainer.yaml"):
        for key, value in leaves(yaml.load(file.read_text(), Lenient)):
            name, text = key.rpartition(".")[2], str(value)
            if ("path" in name or "file" in name or "/" in text) and is_identity(key, PLACEMENT):
                config: dict[str, Any] = {"engine": {"name": "verl"}, "distillation": {"enabled": True}}
                config |= {"critic": {"enable": True}, "reward": {"reward_model": {"enable": True}}}
                put(config, key, "/some/where")
                assert [k for _, k, _ in inputs.listed(config)] == [key] or "record" in key, key
                seen.add(key)
    assert seen >= {key for _, key, _ in OTHERS if key != "environment.rules"} | inputs._NEEDED


class Lenient(yaml.SafeLoader):
    """Reads what verl writes for other programs."""


Lenient.add_multi_constructor("", lambda loader, suffix, node: None)


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield at, value
        return
    for key, inner in value.items():
        yield from leaves(inner, f"{at}.{key}" if at else str(key))


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
