"""Preparing: what is missing is made once, by the engine's interpreter, and a failure is one clear line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sweeper import environments, models, prepare
from sweeper.errors import RequestError, SweeperError
from sweeper.prepare import Build


def config(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "model": {"name": "tiny", "build": "tiny", "path": None, "arch": {"layers": 2, "hidden": 64}},
        "environment": {"name": "arithmetic", "kind": "arithmetic", "largest": 9, "held_out": 0.25, "seed": 0},
        "data": {"train_files": None, "train_batch_size": 8},
        "actor_rollout_ref": {"model": {"path": None}},
        "engine": {"python": None, "env": {}},
    }
    return {**made, **changes}


def kinds(*configs: dict[str, Any], cache: Path) -> list[str]:
    return [b.kind for b in prepare.missing(configs, cache)]


def test_the_default_needs_a_model_and_data(tmp_path: Path) -> None:
    assert kinds(config(), cache=tmp_path) == ["tiny", "arithmetic"]


def test_equal_needs_are_made_once(tmp_path: Path) -> None:
    harder = config(environment={**config()["environment"], "largest": 20})
    builds = prepare.missing([config(), config(), harder], tmp_path)
    assert sorted(b.kind for b in builds) == ["arithmetic", "arithmetic", "tiny", "tiny"]
    assert len({b.path for b in builds}) == 4


def test_the_warm_up_draws_from_the_trials_own_split(tmp_path: Path) -> None:
    [model, data] = prepare.missing([config()], tmp_path)
    assert model.spec["task"] == data.spec


def test_what_was_typed_takes_the_place_of_ours(tmp_path: Path) -> None:
    assert kinds(config(actor_rollout_ref={"model": {"path": "/my/model"}}), cache=tmp_path) == ["arithmetic"]
    assert kinds(config(model={**config()["model"], "path": "/my/model"}), cache=tmp_path) == ["arithmetic"]
    typed = {"train_files": ["/my/train.parquet"], "train_batch_size": 8}
    assert kinds(config(data=typed), cache=tmp_path) == ["tiny"]


def test_a_bound_config_still_needs_what_it_was_bound_to(tmp_path: Path) -> None:
    folder = models.build_folder(config(), tmp_path)
    files = environments.resolve(config(), tmp_path)
    bound = config(
        actor_rollout_ref={"model": {"path": str(folder)}},
        data={"train_files": str(files.train), "train_batch_size": 8},
    )
    assert kinds(bound, cache=tmp_path) == ["tiny", "arithmetic"]


def test_the_users_own_files_are_never_made(tmp_path: Path) -> None:
    own = {"kind": "custom", "train": None, "val": None, "reward": None}
    assert kinds(config(environment=own), cache=tmp_path) == ["tiny"]


def test_environments_are_made_by_another_process_with_progress(tmp_path: Path) -> None:
    builds = [b for b in prepare.missing([config()], tmp_path) if b.what == "environment"]
    said: list[str] = []
    prepare.run(builds, sys.executable, said.append)
    files = environments.resolve(config(), tmp_path)
    assert not files.needs_build and pq.read_table(files.train).num_rows == files.rows
    assert files.test is not None and files.test.is_file() and files.reward is not None and files.reward.is_file()
    assert said[0].startswith("environment arithmetic: building") and "built in" in said[-1]
    said.clear()
    prepare.run(builds, sys.executable, said.append)
    assert said == [], "what exists is left alone, without a word"
    assert prepare.missing([config(model={})], tmp_path) == []


def test_two_at_once_both_end_well(tmp_path: Path) -> None:
    builds = [b for b in prepare.missing([config()], tmp_path) if b.what == "environment"]
    command = prepare.command(builds, sys.executable)
    both = [subprocess.Popen(command, env=prepare.environment(), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate()[0].splitlines()[-1] for p in both] and [p.returncode for p in both] == [0, 0]
    assert sorted(p.name for p in Path(builds[0].path).iterdir()) == [
        "reward.py",
        "test.parquet",
        "train.parquet",
        "val.parquet",
    ]
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == [Path(builds[0].path)]


def long_build(tmp_path: Path) -> Build:
    """One that goes on for many seconds."""
    [build] = [
        b
        for b in prepare.missing([config(environment={**config()["environment"], "largest": 999})], tmp_path)
        if b.what == "environment"
    ]
    return build


def wait_until_it_builds(cache: Path) -> None:
    deadline = time.monotonic() + 30
    while not [p for p in cache.iterdir() if p.is_dir()]:
        assert time.monotonic() < deadline, "the build did not begin"
        time.sleep(0.02)


def test_ctrl_c_while_building_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_: str) -> None:
        wait_until_it_builds(tmp_path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.run([long_build(tmp_path)], sys.executable, interrupt)
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []


def test_a_terminal_sends_ctrl_c_to_both_and_nothing_is_left(tmp_path: Path) -> None:
    command = prepare.command([long_build(tmp_path)], sys.executable)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=prepare.environment(), stdout=pipe, stderr=pipe, text=True) as child:
        wait_until_it_builds(tmp_path)
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)  # from the parent, right after, in the middle of the clean-up
        _, complaints = child.communicate(timeout=30)
    assert child.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM) and complaints == ""
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []


def test_a_builder_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = tmp_path / "python"
    deaf.write_text("#!/bin/sh\ntrap '' TERM\necho '{\"text\": \"'$$'\"}'\nexec sleep 60\n")
    deaf.chmod(0o755)
    monkeypatch.setattr(prepare, "GRACE_S", 0.2)
    said: list[str] = []

    def interrupt(line: str) -> None:
        said.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.run([long_build(tmp_path)], str(deaf), interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(said[0]), 0)


def raw_gsm8k(tmp_path: Path, answer: str) -> Build:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"question": "a", "answer": answer}) + "\n")
    from sweeper.environments import gsm8k

    spec = gsm8k.spec({"path": str(tmp_path)})
    return Build("environment", "gsm8k", spec, str(tmp_path / "cache" / "gsm8k-x"))


def test_a_failure_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    build = raw_gsm8k(tmp_path, "no number")
    with pytest.raises(SweeperError) as caught:
        prepare.run([build], sys.executable, lambda _: None)
    assert str(caught.value) == "environment gsm8k: gsm8k: the answer of row 1 of train has no number after '#### '"
    assert not Path(build.path).exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    build = raw_gsm8k(tmp_path, "#### 1")
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(SweeperError, match=r"could not be built in .*gsm8k-x: .*Error") as caught:
        prepare.run([build], sys.executable, lambda _: None)
    assert "\n" not in str(caught.value)


def test_an_unexpected_end_says_the_last_word(tmp_path: Path) -> None:
    build = raw_gsm8k(tmp_path, "#### 1")
    dies = tmp_path / "python"
    dies.write_text("#!/bin/sh\necho 'out of memory' >&2\nexit 9\n")
    dies.chmod(0o755)
    with pytest.raises(SweeperError, match="code 9: out of memory"):
        prepare.run([build], str(dies), lambda _: None)
    with pytest.raises(RequestError, match=r"engine\.python=/nowhere/python cannot be started.*\n.*null: this one"):
        prepare.run([build], "/nowhere/python", lambda _: None)


@pytest.mark.parametrize("argument", [[], ["{"], ['[{"kind": "x"}]']])
def test_a_malformed_request_is_refused(argument: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(argument) == 2
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "error"


def test_an_unknown_recipe_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    build = {"what": "model", "kind": "huge", "spec": {}, "path": str(tmp_path / "x")}
    assert prepare.main([json.dumps([build])]) == 1
    assert "no recipe" in json.loads(capsys.readouterr().out.splitlines()[-1])["message"]


def test_the_tiny_model_is_made_and_its_folder_speaks_for_itself(tmp_path: Path) -> None:
    from sweeper.models import facts

    short = config(model={**config()["model"], "warm_up": {"steps": 5}})
    [model] = [b for b in prepare.missing([short], tmp_path) if b.what == "model"]
    said: list[str] = []
    prepare.run([model], sys.executable, said.append)
    arch, problems = facts.at(model.path)
    assert problems == [] and arch is not None
    assert arch.params == arch.count() and arch.vocab == 100 and any("warm-up 5/5" in line for line in said)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.unlink(), "val.parquet is missing"),
        (lambda path: path.write_bytes(b""), "val.parquet has 0 bytes"),
        (lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]), "has other content"),
    ],
)
def test_what_was_built_and_altered_since_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], Any], said: str
) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path))
    own = config(actor_rollout_ref={"model": {"path": "/a/model"}})
    (build,) = prepare.needed(own)
    prepare.check(prepare.every([own]))
    environments.build(build.kind, Path(build.path), build.spec)
    prepare.check(prepare.every([own]))
    file = Path(build.path) / "val.parquet"
    harm(file)
    with pytest.raises(RequestError, match=said) as caught:
        prepare.check(prepare.every([own, own]))
    assert f"rm -r {build.path}" in str(caught.value) and str(caught.value).count("valid:") == 1
    (tmp_path / f".{Path(build.path).name}.files").unlink()
    prepare.check(prepare.every([own]))  # of before there was such a file: nobody knows
