"""The files, the command and the environment of an attempt."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from sweeper.config import hydra_app
from sweeper.config.compose import compose_points
from sweeper.config.space import read
from sweeper.engines.base import AttemptPaths, Config, Gang, Job, Shape
from sweeper.engines.verl import job
from sweeper.engines.verl.engine import VerlEngine

CPU = Shape(name="local", device="cpu", nodes=1, gpus_per_node=4)
NODE = Shape(name="node_8gpu", device="cuda", nodes=1, gpus_per_node=8, gpu="H100", gpu_memory_gib=79.6)
SEVEN = ["model=qwen7b", "environment=gsm8k", "cluster=node_8gpu"]


def config_of(*overrides: str) -> Config:
    with hydra_app.initialized():
        (composed,) = compose_points(read(list(overrides)).arms)
    shape = NODE if "cluster=node_8gpu" in overrides else CPU
    assert VerlEngine().bind(composed.config, composed.explicit, shape) == []
    return composed.config


def paths_in(folder: Path) -> AttemptPaths:
    attempt = folder / "sw" / "trials" / "003" / "attempt-1"
    attempt.mkdir(parents=True, exist_ok=True)
    return AttemptPaths(folder=attempt, checkpoints=folder / "sw" / "trials" / "003" / "checkpoints")


def job_of(folder: Path, *overrides: str) -> Job:
    return VerlEngine().job(config_of(*overrides), paths_in(folder))


def trainer(made: Job) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(made.files["trainer.yaml"])
    return loaded


def test_the_file_holds_verls_keys_resolved_and_nothing_of_ours(tmp_path: Path) -> None:
    made = trainer(job_of(tmp_path))
    ours = set(job.OURS) & set(made)
    assert ours == set()
    assert {"actor_rollout_ref", "critic", "data", "algorithm", "trainer", "reward", "transfer_queue"} <= set(made)
    assert "${" not in yaml.safe_dump(made)
    assert made["trainer"]["total_training_steps"] > 0
    assert made["actor_rollout_ref"]["actor"]["ppo_micro_batch_size"] is None, "a null is kept"


def test_the_records_are_ours(tmp_path: Path) -> None:
    made = job_of(tmp_path, "trainer.default_local_dir=/elsewhere", "trainer.logger=[console,mlflow,wandb]")
    keys = trainer(made)["trainer"]
    assert keys["default_local_dir"] == str(paths_in(tmp_path).checkpoints)
    assert keys["experiment_name"] == "sw-003"
    assert keys["resume_mode"] == "auto"
    assert keys["logger"] == ["console", "file", "wandb"]
    assert made.env["VERL_FILE_LOGGER_PATH"] == str(paths_in(tmp_path).folder / made.metrics)


def checkpoint(folder: Path, step: int, *, whole: bool = True) -> Path:
    """One as verl writes it; the note of the last step names it, whole or not."""
    path = folder / f"global_step_{step}"
    (path / "actor").mkdir(parents=True)
    for name in ("data.pt", "actor/model_world_size_1_rank_0.pt"):
        with zipfile.ZipFile(path / name, "w") as made:
            made.writestr("archive/data.pkl", "x")
    if not whole:
        (path / "actor/model_world_size_1_rank_0.pt").write_bytes(b"PK")
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    return path


def test_an_attempt_goes_on_from_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    checkpoints = paths_in(tmp_path).checkpoints
    checkpoint(checkpoints, 5)
    checkpoint(checkpoints, 10)
    checkpoint(checkpoints, 15, whole=False)
    found = trainer(job_of(tmp_path))["trainer"]
    assert found["resume_mode"] == "resume_path"
    assert found["resume_from_path"] == str(checkpoints / "global_step_10")


def test_where_nothing_is_whole_it_starts_over_and_does_not_stumble(tmp_path: Path) -> None:
    checkpoint(paths_in(tmp_path).checkpoints, 5, whole=False)
    assert trainer(job_of(tmp_path))["trainer"]["resume_mode"] == "disable"


def test_a_start_from_another_checkpoint_is_kept_until_there_is_an_own_one(tmp_path: Path) -> None:
    typed = ["trainer.resume_mode=resume_path", "trainer.resume_from_path=/old/global_step_5"]
    assert trainer(job_of(tmp_path, *typed))["trainer"]["resume_from_path"] == "/old/global_step_5"
    own = checkpoint(paths_in(tmp_path).checkpoints, 10)
    assert trainer(job_of(tmp_path, *typed))["trainer"]["resume_from_path"] == str(own)


@pytest.mark.parametrize("on", [[], SEVEN], ids=["cpu", "cuda"])
def test_verl_loads_what_makes_a_resume_train_at_the_configs_rates(tmp_path: Path, on: list[str]) -> None:
    typed = ["+engine.env.PYTHONPATH=/mine", "+engine.env.VERL_USE_EXTERNAL_MODULES=my_plugin"]
    made = job_of(tmp_path, *on, *typed)
    modules = made.env["VERL_USE_EXTERNAL_MODULES"].split(",")
    assert "sweeper_resume" in modules
    assert modules[-1] == "my_plugin", "what the user loads is loaded too"
    places = made.env["PYTHONPATH"].split(":")
    assert places[0] == str(paths_in(tmp_path).folder / "plugins")
    assert places[-1] == "/mine"
    assert made.files["plugins/sweeper_resume.py"].endswith("install()\n")
    assert 'export PYTHONPATH="$here"/plugins' in made.files["command.sh"], "also after the folder was moved"


def test_what_ray_refuses_from_a_guest_becomes_the_size_of_the_attempts_own_cluster(tmp_path: Path) -> None:
    made = job_of(tmp_path, "ray_kwargs.ray_init.num_cpus=40", "+ray_kwargs.ray_init.object_store_memory=300000000")
    assert made.ray_cpus_per_node == 40
    assert made.object_store_bytes == 300_000_000
    init = trainer(made)["ray_kwargs"]["ray_init"]
    assert init["num_cpus"] is None
    assert "object_store_memory" not in init


def test_gangs(tmp_path: Path) -> None:
    assert job.gang(config_of()) == Gang(1, 1, 1)
    assert job.gang(config_of(*SEVEN)).gpus == 8
    apart = [
        *SEVEN, "trainer.v1.trainer_mode=separate_async", "trainer.n_gpus_per_node=4",
        "actor_rollout_ref.rollout.nnodes=1", "actor_rollout_ref.rollout.n_gpus_per_node=4",
    ]  # fmt: skip
    assert job.gang(config_of(*apart)) == Gang(1, 8, 8), "two pools of four share the node"


def test_ray_offers_what_verls_bundles_ask_for(tmp_path: Path) -> None:
    assert job_of(tmp_path, *SEVEN).ray_cpus_per_node >= 8 * 3 + 8 + 8


def test_cpu_variables_only_on_a_cpu(tmp_path: Path) -> None:
    assert job_of(tmp_path).env["VERL_PLATFORM"] == "cpu"
    made = job_of(tmp_path, *SEVEN)
    assert "VERL_PLATFORM" not in made.env
    assert "HF_HUB_OFFLINE" not in made.env, "its model comes from the hub"
    assert job_of(tmp_path).env["HF_HUB_OFFLINE"] == "1"


def test_the_users_variables_win(tmp_path: Path) -> None:
    made = job_of(tmp_path, "+engine.env.OMP_NUM_THREADS=4")
    assert made.env["OMP_NUM_THREADS"] == "4"


def test_no_secret_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-value")
    made = job_of(tmp_path)
    assert "WANDB_API_KEY" in made.inherit
    written = "\n".join([*made.files.values(), *made.env.values(), *made.argv])
    assert "s3cret-value" not in written


def test_without_a_fork_server_nothing_is_preloaded(tmp_path: Path) -> None:
    assert job_of(tmp_path).fork_argv
    off = job_of(tmp_path, "engine.fork_server=false")
    assert (off.preload, off.fork_argv) == ((), ())


def test_verls_hydra_reads_the_file_back_unchanged(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    made = job_of(tmp_path)
    (tmp_path / "trainer.yaml").write_text(made.files["trainer.yaml"])
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(tmp_path), version_base=None):
        read = OmegaConf.to_container(compose("trainer", overrides=["trainer.total_epochs=7"]))
    expected = {k: v for k, v in trainer(made).items() if k not in ("defaults", "hydra")}
    expected["trainer"]["total_epochs"] = 7
    assert read == expected


def test_the_script_lists_what_differs_from_verl(tmp_path: Path) -> None:
    text = job_of(tmp_path, "actor_rollout_ref.actor.clip_ratio=0.11").files["command.sh"]
    assert "#   actor_rollout_ref.actor.clip_ratio=0.11\n" in text
    assert "#   algorithm.adv_estimator=grpo\n" in text
    assert "rollout.prompt_length" not in text, "it follows data.max_prompt_length, which is listed"
    assert "mtp" not in text


def test_the_script_is_sound_shell(tmp_path: Path) -> None:
    script = tmp_path / "command.sh"
    script.write_text(job_of(tmp_path, "+engine.env.WITH_QUOTES='a b'").files["command.sh"])
    subprocess.run(["bash", "-n", str(script)], check=True)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, str(script)], check=True)


def test_the_script_writes_to_a_folder_of_its_own(tmp_path: Path) -> None:
    """The trainer is replaced by a program that shows what it was given."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\npwd\necho "$VERL_FILE_LOGGER_PATH"\nfor a in "$@"; do echo "$a"; done\n')
    fake.chmod(0o755)
    paths = paths_in(tmp_path)
    made = job_of(tmp_path, f"engine.python={fake}", "engine.fork_server=false")
    script = paths.folder / "command.sh"
    script.write_text(made.files["command.sh"])
    (paths.folder / "metrics.jsonl").write_text("kept")
    out = tmp_path / "my folder"
    ran = subprocess.run(
        ["bash", str(script), "trainer.total_training_steps=2"],
        env={"PATH": "/usr/bin:/bin", "OUT": str(out)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = ran.stdout.splitlines()
    assert lines[1:3] == [str(out), f"{out}/metrics.jsonl"]
    assert f"--config-path={paths.folder}" in lines
    assert f"trainer.default_local_dir='{out}/checkpoints'" in lines
    assert lines[-1] == "trainer.total_training_steps=2"
    assert (paths.folder / "metrics.jsonl").read_text() == "kept"


@pytest.mark.parametrize("v1", [True, False])
def test_each_checkpoint_gets_a_manifest_and_the_users_callback_is_called_too(tmp_path: Path, v1: bool) -> None:
    typed = "trainer.checkpoint_callback_class=mine.Upload"
    made = job_of(tmp_path, f"trainer.use_v1={str(v1).lower()}", typed)
    assert trainer(made)["trainer"]["checkpoint_callback_class"] == "sweeper_saved.Callback"
    assert made.env["SWEEPER_CHECKPOINT_CALLBACK"] == "mine.Upload"
    assert "SWEEPER_CHECKPOINT_CALLBACK" not in job_of(tmp_path).env
    wrapped = "sweeper_saved" in made.env["VERL_USE_EXTERNAL_MODULES"].split(",")
    assert wrapped is not v1, "the V0 trainer has no hook for it"
    assert {"plugins/sweeper_saved.py", "plugins/sweeper_manifest.py"} <= set(made.files)
