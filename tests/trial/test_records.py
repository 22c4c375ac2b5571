"""Records are whole or absent, hold no secret, and are read while they grow."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest

from sweeper.engines.base import Gang, Job
from sweeper.errors import RequestError, SweeperError
from sweeper.trial import records
from sweeper.trial.records import AttemptFolder, SweepFolder, Tail, mask, to_json, write_json, write_text
from sweeper.trial.spec import Point, Trial


def job(**changes: object) -> Job:
    fields: dict[str, object] = {
        "argv": ("python", "-m", "trainer"),
        "env": {"A": "1"},
        "inherit": ("HF_TOKEN",),
        "files": {"trainer.yaml": "a: 1\n"},
        "gang": Gang(1, 2),
        "python": "/usr/bin/python3",
        "metrics": "metrics.jsonl",
        "total_steps": 30,
    }
    return Job(**{**fields, **changes})  # type: ignore[arg-type]


def trial(**config: object) -> Trial:
    whole = {"seed": 1, "engine": {"name": "verl", "env": {}}, "actor": {"lr": 1e-6}, **config}
    return Trial("007", Point(("lr=1e-6",), {"lr": 1e-6}), whole)


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    return SweepFolder.create(tmp_path / "runs", "s1", ["algorithm=grpo,ppo", "trainer.logger=[console]"])


# --- writing ---


def test_a_full_disk_is_named_and_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    write_json(path, {"state": "running"})

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(SweeperError) as raised:
        write_json(path, {"state": "finished"})
    assert "disk is full" in str(raised.value)
    assert str(path) in str(raised.value)
    assert "MiB free" in str(raised.value)
    assert json.loads(path.read_text()) == {"state": "running"}
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"], "a temp file was left"


def test_the_disk_is_really_full() -> None:
    """/dev/full takes no byte: the real error of the kernel, not one that we made up."""
    with pytest.raises(OSError, match="No space") as raised, Path("/dev/full").open("w") as out:
        out.write("x")
        out.flush()
    assert "disk is full: /x/y" in str(records.cannot_write(Path("/x/y"), raised.value))


def test_an_unwritable_place_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SweeperError, match="could not be written: Not a directory"):
        write_text(tmp_path / "file" / "x.json", "{}")
    with pytest.raises(SweeperError, match="could not be written"):
        SweepFolder.create(tmp_path / "file", "s", [])


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """The inode changes with each write: a reader has the old or the new, whole."""
    path = tmp_path / "f.json"
    write_json(path, list(range(1000)))
    with path.open() as old:
        write_json(path, [])
        assert len(json.load(old)) == 1000
    assert json.loads(path.read_text()) == []


def test_numbers_that_json_has_not() -> None:
    text = to_json({"a": [float("nan"), float("inf")], "b": -math.inf, "c": 1.5})
    back = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert back == {"a": ["NaN", "Infinity"], "b": "-Infinity", "c": 1.5}
    assert math.isnan(float(back["a"][0]))
    assert float(back["b"]) == -math.inf


# --- secrets ---


def test_values_of_secret_variables_are_masked(tmp_path: Path) -> None:
    environ = {
        "WANDB_API_KEY": "0123456789abcdef",
        "my_password": "hunter2hunter2",
        "TOKENIZERS_PARALLELISM": "false",
        "SSH_KEY_FILE": str(tmp_path),
        "HOME": "/home/somebody",
    }
    text = f"0123456789abcdef hunter2hunter2 false {tmp_path} /home/somebody"
    assert mask(text, environ) == f"<WANDB_API_KEY> <my_password> false {tmp_path} /home/somebody"


def test_no_record_holds_a_secret(sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reallysecret")
    folder = sweep.new_attempt("007")
    typed = trial(engine={"name": "verl", "env": {"WANDB_API_KEY": "typed-in-the-config"}}, note="hf_reallysecret")
    folder.write_spec(typed, job(env={"WANDB_API_KEY": "typed-in-the-config"}), {"t": "hf_reallysecret"})
    folder.write_status("failed", root_cause=("401 for hf_reallysecret",))
    for path in sweep.path.rglob("*"):
        if path.is_file():
            assert "hf_reallysecret" not in path.read_text(), path
            assert "typed-in-the-config" not in path.read_text(), path
    assert "<HF_TOKEN>" in (folder.path / "status.json").read_text()


# --- folders ---


def test_a_sweep_remembers_its_request(sweep: SweepFolder, tmp_path: Path) -> None:
    again = SweepFolder.existing(tmp_path / "runs", "s1")
    assert again.overrides() == ["algorithm=grpo,ppo", "trainer.logger=[console]"]
    assert again.path == sweep.path


def test_two_sweeps_of_one_second_get_two_folders(tmp_path: Path) -> None:
    names = [SweepFolder.create(tmp_path, "20260101-000000", []).name for _ in range(3)]
    assert names == ["20260101-000000", "20260101-000000-2", "20260101-000000-3"]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "x" * 300])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="cannot name a folder"):
        SweepFolder.create(tmp_path / "runs", name, [])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}', '{"overrides": "lr=1"}', None])
def test_a_sweep_whose_file_is_damaged_says_what_to_do(sweep: SweepFolder, text: str | None) -> None:
    file = sweep.path / "sweep.json"
    (sweep.path / "ledger.db").write_bytes(b"a fake")
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(RequestError, match=r"restore it from a backup") as raised:
        SweepFolder.existing(sweep.path.parent, sweep.name).overrides()
    assert str(file) in str(raised.value)


def test_an_unknown_sweep_names_those_that_are_there(sweep: SweepFolder, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no sweep named s2") as raised:
        SweepFolder.existing(tmp_path / "runs", "s2")
    assert "s1" in str(raised.value)


def test_attempts_are_numbered_and_never_reused(sweep: SweepFolder) -> None:
    assert sweep.latest_attempt("007") is None
    folders = [sweep.new_attempt("007") for _ in range(11)]
    assert [f.number for f in folders] == list(range(1, 12))
    assert folders[0].previous is None
    assert folders[10].previous == "attempt-10", "numbers, not letters, are ordered"
    assert sweep.latest_attempt("007") == folders[10].path
    assert sweep.trial_ids() == ["007"]
    assert sweep.checkpoints("007").parent == folders[0].path.parent


def test_spec_says_what_the_attempt_is(sweep: SweepFolder) -> None:
    sweep.new_attempt("007")
    folder = sweep.new_attempt("007")
    folder.write_spec(trial(), job(), {"sweeper.fingerprint": "f" * 64})
    spec = records.read_json(folder.path / "spec.json")
    assert spec["sweep"] == "s1"
    assert (spec["trial"], spec["attempt"], spec["previous"]) == ("007", 2, "attempt-1")
    assert spec["varied"] == {"lr": 1e-6}
    assert spec["fingerprint"] == "f" * 64
    assert spec["gang"]["gpus_per_node"] == 2
    assert spec["config"] == {"seed": 1, "engine": {"name": "verl", "env": {}}}
    assert spec["versions"]["sweeper"]
    other = sweep.new_attempt("007")
    other.write_spec(trial(actor={"lr": 2e-6}), job(), {})
    changed = records.read_json(other.path / "spec.json")["engine_config_sha256"]
    assert changed != spec["engine_config_sha256"]


def test_status_tells_running_from_ended(sweep: SweepFolder) -> None:
    folder = sweep.new_attempt("007")
    folder.write_status("starting")
    first = records.read_json(folder.path / "status.json")
    assert "ended" not in first
    folder.write_status("failed", exit_code=1, reason="exit", root_cause=("ValueError: x",))
    last = records.read_json(folder.path / "status.json")
    assert last["state"] == "failed"
    assert last["root_cause"] == ["ValueError: x"]
    assert last["started"] == first["started"] <= last["ended"]


def test_a_damaged_record_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(SweeperError, match="could not be read"):
        records.read_json(tmp_path / "sweep.json")


def test_an_attempt_folder_is_made_where_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "trials").write_text("in the way")
    with pytest.raises(SweeperError, match="could not be written"):
        SweepFolder(tmp_path).new_attempt("000")
    assert AttemptFolder(tmp_path, 1, "s", None).previous is None


# --- tailing ---


def test_tail_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    tail = Tail(path)
    assert tail.read() == [], "it need not exist yet"
    text = '{"step": 1}\n{"step": 2, "name": "größer"}\n'.encode()
    seen = []
    for i in range(len(text)):  # byte by byte, also inside a character
        with path.open("ab") as out:
            out.write(text[i : i + 1])
        seen += tail.read()
    assert seen == [{"step": 1}, {"step": 2, "name": "größer"}]
    assert tail.skipped == 0


def test_tail_passes_over_garbage_and_reads_nan(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"a": NaN, "b": -Infinity}\nnot json\n[1]\n\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"step": 3}\n')
    tail = Tail(path)
    first, last = tail.read()
    assert math.isnan(first["a"])
    assert first["b"] == -math.inf
    assert last == {"step": 3}
    assert tail.skipped == 4
    assert tail.read() == []


def test_tail_starts_over_when_the_file_shrank_or_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    tail = Tail(path)
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert len(tail.read()) == 2
    path.write_text('{"step": 7}\n')
    assert tail.read() == [{"step": 7}]
    write_text(path, '{"step": 8}\n{"step": 9}\n{"step": 10}\n')  # another inode, and longer
    assert [line["step"] for line in tail.read()] == [8, 9, 10]


def test_a_command_that_is_shown_says_where_the_sweep_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert SweepFolder(tmp_path / "runs/s").typed == "s"
    assert SweepFolder(tmp_path / "my runs/s").typed == f"s --store '{tmp_path}/my runs'"
    with pytest.raises(RequestError, match=rf"sweeper status --store {tmp_path}/other"):
        (tmp_path / "other/t").mkdir(parents=True)
        (tmp_path / "other/t/sweep.json").write_text("{}")
        SweepFolder.existing(tmp_path / "other", "s")
