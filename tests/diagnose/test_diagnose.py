"""What `sweeper diagnose` says of real runs that were made to fail (tests/golden/diagnose/README.md says how), of real
trainings that went wrong, and of those that went well."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sweeper import engines
from sweeper.cli.main import main
from sweeper.clusters.base import Exit
from sweeper.config import tree
from sweeper.diagnose import Case, Finding, cases, diagnose, runs
from sweeper.diagnose.causes import CAUSES
from sweeper.diagnose.signs import SIGNS
from sweeper.engines.base import Progress
from sweeper.engines.verl import base_config
from sweeper.errors import RequestError
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import SweepFolder

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/diagnose"
LOGS = ROOT / "tests/engines/verl/logs"
CURVES = ROOT / "tests/search/health_curves.csv"
METRICS = ROOT / "tests/engines/verl/runs"

REAL = {
    "gloo_timeout": ("collective-timeout", "Timed out waiting 6000ms for recv operation"),
    "gloo_peer_killed": ("worker-lost", "Connection closed by peer"),
    "port_in_use": ("port-clash", "EADDRINUSE"),
    "host_allocation": ("host-memory", "DefaultCPUAllocator: can't allocate memory"),
    "disk_full_torch": ("disk-full", "inline_container.cc"),
    "column_missing": ("data-schema", "KeyError: 'prompt'"),
    "column_filtered": ("data-schema", "KeyError: 'prompt'"),
    "nan_probabilities": ("nan", "probability tensor contains either"),
    "ray_version": ("version-mismatch", "Version mismatch: The cluster was started with:"),
    "ray_not_started": ("ray-start", "Ray did not start on 127.0.0.2"),
    "ray_timed_out": ("ray-start", "The current node timed out during startup"),
}
"""Folders of tests/golden/diagnose -> the cause that must come first, and what its evidence must hold."""

REAL_VERL = {
    "disk_full": ("disk-full", "inline_container.cc"),
    "reward_raises": ("reward-raises", "cannot parse the answer '2' against '12'"),
    "reward_raises_in_validation": ("reward-raises", "reward of a broken function"),
    "worker_killed": ("worker-lost", "ActorDiedError"),
    "weights_missing": ("data-missing", "no file named model.safetensors"),
    "unknown_key": ("refused-config", "actor_rollout_ref.actor.nope"),
    "no_micro_batch": ("refused-config", "Please set at least one of 'actor.ppo_micro_batch_size'"),
    "unknown_loss": ("bug", "Unsupported loss mode: nope"),
    "sequence_too_long": ("bug", "max_token_len must be greater than the sequence length"),
}
"""Logs of real verl runs in tests/engines/verl/logs."""


def attempt(folder: Path, log: str, code: int | None = 1, reason: str = "exit", detail: str = "") -> Case:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text(log)
    ended = {"code": code, "reason": reason, "detail": detail, "ended": 1.0}
    (folder / "exit.json").write_text(json.dumps(ended))
    return cases.read(folder)


def holds_its_evidence(found: Finding) -> bool:
    """Whether every line that is named is where it is said to be."""
    return all(
        line.text.removesuffix("...") in line.file.read_text(errors="replace").split("\n")[line.line - 1]
        for line in found.evidence
        if line.line and line.file.name == "log.txt"
    )


@pytest.mark.parametrize("name", REAL)
def test_a_real_failure_is_named_with_its_line(name: str) -> None:
    cause, text = REAL[name]
    first, *_ = diagnose(cases.read(GOLDEN / name))
    assert first.cause == cause
    assert any(text in line.text for line in first.evidence), first
    assert holds_its_evidence(first)
    assert first.change, "what to change"
    assert first.source


@pytest.mark.parametrize("name", REAL_VERL)
def test_a_real_failure_of_verl_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    cause, text = REAL_VERL[name]
    first, *others = diagnose(attempt(tmp_path / "attempt-1", (LOGS / f"{name}.txt").read_text(encoding="utf-8")))
    assert first.cause == cause
    assert any(text in line.text for line in first.evidence), first
    assert first.change
    assert not others, "one failure, one cause"


FORMS = {
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.11 GiB": "gpu-memory",
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing "
    "the engine.": "kv-cache",
    "ValueError: To serve at least one request with the models's max seq len (32768), (14.00 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (3.11 GiB).": "kv-cache",
    "ValueError: Free memory on device (10.1/79.11 GiB) on startup is less than desired GPU memory utilization": (
        "kv-cache"
    ),
    "MemoryError": "host-memory",
    "OSError: [Errno 28] No space left on device: '/runs/s/checkpoints'": "disk-full",
    "OSError: [Errno 98] Address already in use": "port-clash",
    "ModuleNotFoundError: No module named 'flash_attn'": "package-missing",
    "ImportError: tokenizers>=0.21,<0.22 is required for a normal functioning of this module, but found "
    "tokenizers==0.20.3.": "version-mismatch",
    "ImportError: /x/flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E": "version-mismatch",
    "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).": "version-mismatch",
    "RuntimeError: probability tensor contains either `inf`, `nan` or element < 0": "nan",
    "ValueError: no rule for the answer": "bug",
    "ValueError: the file nanobot_finance.parquet has OOM in its name": "bug",
    "KeyError: 'nan'": "bug",
}
"""As the libraries write them (signs.py names the files); no GPU was there to provoke the first four."""


@pytest.mark.parametrize("line", FORMS)
def test_a_form_of_message_is_known(line: str, tmp_path: Path) -> None:
    log = (
        "Traceback (most recent call last):\n"
        '  File "/venv/lib/python3.11/site-packages/verl/workers/engine_workers.py", line 700, in step\n'
        f"{line}\n"
    )
    assert [f.cause for f in diagnose(attempt(tmp_path / "a", log))] == [FORMS[line]]


OTHERS = {
    "[rank3]:[E1121 20:11:13.1 ProcessGroupNCCL.cpp:629] [Rank 3] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=8, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600010 milliseconds "
    "before timing out.": "collective-timeout",
    "(raylet) 4 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed": "host-memory",
    "slurmstepd: error: *** JOB 77 ON n1 CANCELLED AT 2026-01-01T10:00:00 DUE TO TIME LIMIT ***": "preempted",
    "RuntimeError: CUDA error: uncorrectable ECC error encountered": "gpu-fault",
}


@pytest.mark.parametrize("line", OTHERS)
def test_a_line_that_only_one_thing_writes_is_known(line: str, tmp_path: Path) -> None:
    assert diagnose(attempt(tmp_path / "a", f"step 1\n{line}\n", code=-9))[0].cause == OTHERS[line]


NCCL = """\
(WorkerDict pid=412, ip=10.0.0.8) gpu2:412:911 [0] misc/socket.cc:483 NCCL WARN socketStartConnect: Connect to \
10.0.0.7<45321> failed : Software caused connection abort
Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/verl/workers/engine_workers.py", line 700, in init_model
    torch.distributed.barrier()
torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3384, \
unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
Last error:
socketStartConnect: Connect to 10.0.0.7<45321> failed : Connection refused
"""
HUB = """\
Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/transformers/utils/hub.py", line 553, in cached_files
    raise OSError(
OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.
Check your internet connection or see how to run the library in offline mode at \
'https://huggingface.co/docs/transformers/installation#offline-mode'.
"""
WANDB = """\
Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/verl/utils/tracking.py", line 80, in __init__
    wandb.init(project=project_name, name=experiment_name)
wandb.errors.errors.AuthenticationError: API key verification failed for host https://api.wandb.ai. \
Make sure your API key is valid.
"""
KERNEL = """\
Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/verl/workers/actor/dp_actor.py", line 400, in update_policy
    loss.backward()
torch.AcceleratorError: CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
"""
PRINTED: dict[str, tuple[str, int, str, str]] = {
    "nccl cannot connect": (NCCL, 1, "network", "Connect to 10.0.0.7<45321> failed : Connection refused"),
    "killed": (
        "step 1\ncommand.sh: line 9:   412 Killed                  python3 -m verl\n",
        137,
        "worker-lost",
        "137",
    ),
    "segmentation fault": ("step 1\nSegmentation fault (core dumped)\n", -11, "crash", "Segmentation fault"),
    "segmentation fault without a word": ("step 1\n", -11, "crash", "exit code -11"),
    "segmentation fault in a shell": ("step 1\n", 139, "crash", "exit code 139"),
    "illegal memory access": (KERNEL, 1, "gpu-kernel", "illegal memory access"),
    "hub not reached": (HUB, 1, "hub-unreachable", "We couldn't connect to 'https://huggingface.co'"),
    "wandb key": (WANDB, 1, "tracker-access", "API key verification failed"),
}
"""Logs made up of what the programs print, with the exit code; no such failure was provoked."""


@pytest.mark.parametrize("name", PRINTED)
def test_what_a_program_prints_of_its_end_is_named_with_what_to_change(name: str, tmp_path: Path) -> None:
    log, code, cause, text = PRINTED[name]
    (found,) = diagnose(attempt(tmp_path / "a", log, code=code))
    assert found.cause == cause
    assert any(text in line.text for line in found.evidence), found.evidence
    assert found.change and "bash command.sh" not in found.change[0]
    assert holds_its_evidence(found)


WORDS = """\
finance/nanobot: 12 rows, nan_policy=omit, inf: information
step:3 - actor/pg_loss:nan - critic/nanmean:0.1
WARNING: OutOfMemory handler installed; NCCL timeout is 600 s; Connection closed by peer is logged at debug level
disk: No space is left on the plan for address already in use
"""


def test_words_that_only_sound_like_a_failure_are_none(tmp_path: Path) -> None:
    assert diagnose(attempt(tmp_path / "well", WORDS, code=0)) == []
    (failed,) = diagnose(attempt(tmp_path / "failed", WORDS, code=3))
    assert failed.cause == "bug", "it ended with 3 and nobody said why"


def test_what_a_run_caught_and_went_on_from_is_not_its_end(tmp_path: Path) -> None:
    log = (
        "OSError: [Errno 98] Address already in use\nanother port is taken\n"
        'Traceback (most recent call last):\n  File "/home/user/task/reward.py", line 8, in compute_score\n'
        "ValueError: no rule for the answer\n"
    )
    assert [f.cause for f in diagnose(attempt(tmp_path / "a", log))] == ["reward-raises"]


def test_a_run_that_ended_well_has_no_findings(tmp_path: Path) -> None:
    log = "".join(p.read_text(encoding="utf-8") for p in sorted(LOGS.glob("*.txt")))
    for name in ("grpo", "ppo"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(METRICS / f"{name}.jsonl", folder / "metrics.jsonl")
        assert diagnose(attempt(folder, log, code=0)) == [], "what a log holds is nothing when it ended well"


def test_a_stopped_run_has_no_findings(tmp_path: Path) -> None:
    assert diagnose(attempt(tmp_path / "a", "step 1\n", code=-15, reason="stopped")) == []


# --- training ---


def curve(name: str) -> list[Progress]:
    """The signals of a real training (tests/search/test_stops.py)."""
    with CURVES.open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["run"] == name]
    names = ("loss", "grad_norm", "entropy", "kl", "reward_spread", "saturated")
    return [
        Progress(int(r["step"]), {}, reward=float(r["reward"]), signals={k: float(r[k]) for k in names}) for r in rows
    ]


def trained(progress: list[Progress], config: Mapping[str, Any] | None = None, **more: Any) -> Case:
    none = cases.Log(Path("log.txt"), ())
    return Case(
        folder=Path("x"),
        name="s/000/1",
        engine=engines.get("verl"),
        config=config or base_config.load("dp"),
        log=none,
        ended=Exit(0, "exit"),
        status={"state": "finished"},
        total_steps=len(progress),
        progress=list(enumerate(progress, 1)),
        **more,
    )


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_real_healthy_training_has_no_findings(name: str) -> None:
    assert diagnose(trained(curve(name))) == []


@pytest.mark.parametrize("name", ["grpo lr=1e-2", "ppo lr=1e-2"])
def test_a_real_training_that_a_high_rate_destroyed_is_told_with_a_lower_rate(name: str) -> None:
    found = diagnose(trained(curve(name)))
    assert found
    assert {f.cause for f in found} <= {"kl-blow-up", "entropy-collapse", "entropy-blow-up", "no-reward-variance"} | {
        "length-saturation"
    }
    assert any(line.startswith("lr=") for f in found for line in f.change)
    assert all(e.place.startswith("metrics.jsonl:") for f in found for e in f.evidence)


WELL = {"entropy": 0.6, "kl": 0.01, "reward_spread": 1.0, "saturated": 0.1, "loss": 0.1, "grad_norm": 1.0}


@pytest.mark.parametrize(
    ("signals", "cause"),
    [
        ({"loss": float("nan")}, "nan"),
        ({"kl": 3.0}, "kl-blow-up"),
        ({"entropy": 1e-6}, "entropy-collapse"),
        ({"reward_spread": 0.0}, "no-reward-variance"),
        ({"saturated": 1.0}, "length-saturation"),
    ],
)
def test_a_training_that_went_wrong_is_told_at_its_line(signals: dict[str, float], cause: str) -> None:
    steps = [Progress(n, {}, reward=0.3, signals=WELL | (signals if n > 3 else {})) for n in range(1, 10)]
    (found,) = diagnose(trained(steps))
    assert found.cause == cause
    assert found.evidence[-1].line >= 4
    assert found.change


@pytest.mark.parametrize(
    ("signals", "cause"),
    [
        ({"rollout_s": 9.5, "response_tokens": 100.0}, "slow-rollout"),
        ({"rollout_s": 6.0, "straggler": 5.0}, "straggler"),
        ({"rollout_s": 3.0, "imbalance": 0.5}, "straggler"),
        ({"rollout_s": 6.0, "straggler": 1.4, "imbalance": 0.1, "response_tokens": 100.0}, ""),
    ],
)
def test_where_the_time_goes(signals: dict[str, float], cause: str) -> None:
    steps = [Progress(n, {}, reward=0.3, step_s=10.0, signals={**WELL, **signals}) for n in range(1, 8)]
    assert [f.cause for f in diagnose(trained(steps))] == ([cause] if cause else [])


def test_a_rollout_that_becomes_slower_is_told() -> None:
    times = [4.0] * 5 + [20.0] * 5
    steps = [
        Progress(n, {}, reward=0.3, step_s=t + 6, signals={**WELL, "rollout_s": t, "response_tokens": 100.0})
        for n, t in enumerate(times, 1)
    ]
    (found,) = diagnose(trained(steps))
    assert (found.cause, "5.0 times" in found.what) == ("slow-rollout", True)


def test_longer_responses_are_no_slower_rollout() -> None:
    steps = [
        Progress(n, {}, reward=0.3, step_s=t + 6, signals={**WELL, "rollout_s": t, "response_tokens": 25.0 * t})
        for n, t in enumerate([4.0] * 5 + [20.0] * 5, 1)
    ]
    assert diagnose(trained(steps)) == []


def test_a_stall_that_the_controller_ended_is_told_with_where_it_hung(tmp_path: Path) -> None:
    dump = (
        "sweeper: stacks of process 12 (ray::WorkerDict):\n"
        "Current thread 0x00007f (most recent call first):\n"
        '  File "/venv/lib/python3.11/site-packages/verl/workers/engine_workers.py", line 7 in update_actor\n'
    )
    folder = tmp_path / "attempt-1"
    attempt(folder, dump, code=-9, reason="stopped")
    status = {"state": "failed", "failure": "stalled", "root_cause": ["no step for 900 s; the limit is 600 s"]}
    (folder / "status.json").write_text(json.dumps(status))
    (found,) = diagnose(cases.read(folder))
    assert found.cause == "stalled"
    assert "no step for 900 s" in found.what
    assert any("engine_workers.py:7 in update_actor" in e.text for e in found.evidence)


def test_a_run_that_says_it_runs_and_does_not_move_is_stalled(tmp_path: Path) -> None:
    folder = tmp_path / "attempt-1"
    folder.mkdir()
    (folder / "log.txt").write_text("loading\n")
    (folder / "status.json").write_text(json.dumps({"state": "running", "started": "2026-01-01T00:00:00+00:00"}))
    case = cases.read(folder)
    assert case.started is not None
    assert [f.cause for f in diagnose(case, now=case.started + 10_000)] == ["stalled"]
    assert diagnose(case, now=case.started + 60) == []


@pytest.mark.parametrize("reason", ["exit", "lost"])
def test_how_an_attempt_ended_counts_more_than_what_a_controller_that_died_wrote_last(
    reason: str, tmp_path: Path
) -> None:
    folder = tmp_path / "attempt-1"
    log = 'Traceback (most recent call last):\n  File "/x/site-packages/verl/a.py", line 7, in step\n'
    attempt(folder, f"{log}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n", reason=reason)
    status = {"state": "running", "started": "2026-01-01T00:00:00+00:00"}
    (folder / "status.json").write_text(json.dumps(status))
    case = cases.read(folder)
    assert case.state == "failed"
    assert "gpu-memory" in [f.cause for f in diagnose(case)]
    assert "stalled" not in [f.cause for f in diagnose(case)]


def test_a_trial_that_ended_well_while_nobody_watched_is_finished(tmp_path: Path) -> None:
    folder = tmp_path / "attempt-1"
    attempt(folder, "done\n", code=0)
    (folder / "status.json").write_text(json.dumps({"state": "starting"}))
    assert (cases.read(folder).state, diagnose(cases.read(folder))) == ("finished", [])


# --- the parts ---


def test_line_numbers_are_of_the_file_also_where_only_its_end_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "TAIL_BYTES", 2000)
    log = "".join(f"line {n}\n" for n in range(1000)) + "OSError: [Errno 98] Address already in use\n"
    (found,) = diagnose(attempt(tmp_path / "a", log))
    assert found.evidence[0].place == "log.txt:1001"


def test_a_progress_bar_does_not_shift_the_lines_of_a_file(tmp_path: Path) -> None:
    log = "".join(f"Training Progress: {n}%\r" for n in range(100)) + "\nOSError: [Errno 98] Address already in use\n"
    (found,) = diagnose(attempt(tmp_path / "a", log))
    assert found.evidence[0].place == "log.txt:2"
    bug = 'a\rb\r\n\n\x0cTraceback (most recent call last):\n  File "/x/a.py", line 1, in f\nValueError: no rule\n'
    (found,) = diagnose(attempt(tmp_path / "b", bug))
    assert found.evidence[0].place == "log.txt:5"


def test_damaged_records_are_no_crash(tmp_path: Path) -> None:
    folder = tmp_path / "attempt-1"
    folder.mkdir()
    for name in ("exit.json", "status.json", "spec.json", "metrics.jsonl", "trainer.yaml"):
        (folder / name).write_text("{torn")
    (folder / "log.txt").write_bytes(b"\xff\xfe broken \x00\n")
    assert diagnose(cases.read(folder), now=0.0) == []


def test_every_cause_that_is_told_is_known() -> None:
    assert {s.cause for s in SIGNS} <= set(CAUSES)
    assert all(s.source for s in SIGNS)


OURS = ("lr", "kl", "tp", "max_concurrent", "keep.last", "placement.probe", "binding.group", "engine.env.NCCL_DEBUG")


@pytest.mark.parametrize("cause", CAUSES)
def test_every_override_that_is_advised_exists(cause: str) -> None:
    config = base_config.load("dp")
    for line in engines.get("verl").remedies(cause, config):
        for override in line.split():
            key = override.partition("=")[0]
            assert key in OURS or tree.get(config, key, OURS) is not OURS, override


# --- which run is meant ---


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for sweep, trial, number in (("one", "000", 1), ("one", "000", 2), ("one", "001", 1), ("two", "001", 1)):
        folder = tmp_path / "runs" / sweep / "trials" / trial / f"attempt-{number}"
        attempt(folder, "OSError: [Errno 98] Address already in use\n", code=1 if number == 2 else 0)
        (tmp_path / "runs" / sweep / "sweep.json").write_text("{}")
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("one", ["one/trials/000/attempt-2", "one/trials/001/attempt-1"]),
        ("one/000", ["one/trials/000/attempt-2"]),
        ("one/000/1", ["one/trials/000/attempt-1"]),
        ("one/000/attempt-1", ["one/trials/000/attempt-1"]),
        ("000", ["one/trials/000/attempt-2"]),
    ],
)
def test_a_name_is_found_without_a_lineage_record(name: str, meant: list[str], store: Path) -> None:
    assert [str(p.relative_to(store)) for p in runs.find(name, store)] == meant


def test_a_folder_is_found(store: Path) -> None:
    trial = store / "one/trials/000"
    assert runs.find(str(trial), store) == [trial / "attempt-2"]
    assert runs.find(str(trial / "attempt-1"), store) == [trial / "attempt-1"]
    assert len(runs.find(str(store / "one"), store)) == 2


@pytest.mark.parametrize("name", ["three", "one/007", "one/000/9", "001"])
def test_a_name_that_fits_nothing_or_too_much_says_what_there_is(name: str, store: Path) -> None:
    with pytest.raises(RequestError) as caught:
        runs.find(name, store)
    assert "one" in str(caught.value)


@pytest.fixture
def reused(store: Path) -> Path:
    """The store with a sweep `again`, for whose only trial one/001 stands, and a sweep `new` of which nothing ran."""
    for name in ("again", "new"):
        ledger = Ledger.open(SweepFolder.create(store, name, []).path / "ledger.db", create=True)
        ledger.append("trial_planned", trial="000", data={"label": "default"})
        if name == "again":
            stands = {"sweep": "one", "trial": "001", "folder": str(store / "one/trials/001/attempt-1")}
            ledger.append("trial_reused", trial="000", data=stands)
        ledger.close()
    return store


@pytest.mark.parametrize("name", ["again", "again/000"])
def test_a_trial_that_was_reused_is_the_run_that_stands_for_it(
    name: str, reused: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs.find(name, reused) == [reused / "one/trials/001/attempt-1"]
    assert main(["diagnose", name, "--store", str(reused)]) == 0
    assert "nothing found" in capsys.readouterr().out


def test_what_there_is_to_diagnose_is_not_contradicted(reused: Path) -> None:
    with pytest.raises(RequestError) as caught:
        runs.find("again/007", reused)
    assert caught.value.problems[0].valid == "again/000"
    with pytest.raises(RequestError) as caught:
        runs.find("new", reused)
    assert caught.value.problems[0].what == "no trial of new has been attempted yet"
    assert "new" not in caught.value.problems[0].valid.split(", ")


def test_commands_that_are_advised_work_where_the_sweep_is(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["diagnose", "one/000", "--store", str(store)])
    assert f"sweeper resume one --store {store}\n" in capsys.readouterr().out
    monkeypatch.chdir(store.parent)  # where `runs` is what commands look into
    main(["diagnose", "one/000"])
    assert "sweeper resume one\n" in capsys.readouterr().out


def test_the_exit_code_says_whether_something_was_found(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "one/001", "--store", str(store)]) == 0
    assert "nothing found" in capsys.readouterr().out
    assert main(["diagnose", "one", "--store", str(store)]) == 1
    said = capsys.readouterr().out
    assert "port-clash" in said and "log.txt:1: OSError: [Errno 98]" in said
    assert main(["diagnose", "none", "--store", str(store)]) == 2
    assert main(["diagnose", "one/000", "--store", str(store), "--json"]) == 1
    capsys.readouterr()
    main(["diagnose", "one/000", "--store", str(store), "--json"])
    (one,) = json.loads(capsys.readouterr().out)
    assert one["findings"][0]["cause"] == "port-clash"
    assert one["findings"][0]["evidence"][0]["line"] == 1
