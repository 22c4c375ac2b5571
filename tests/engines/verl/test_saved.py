"""What verl calls after it has saved: manifests, the user's own callback, and a training that nothing of it ends."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeper.checkpoints import manifest
from sweeper.engines.verl import job, saved

CALLED: list[Any] = []


class Theirs:
    """A user's callback (a fake)."""

    def __init__(self, config: Any = None) -> None:
        self.config = config

    def on_save(self, **said: Any) -> None:
        CALLED.append((self.config, said))
        if self.config == "raise":
            raise RuntimeError("the upload failed")


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    trial = tmp_path / "sweep" / "trials" / "007"
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(trial / "attempt-3" / "metrics.jsonl"))
    CALLED.clear()
    return make(trial / "checkpoints", 4)


def make(folder: Path, step: int) -> Path:
    at = folder / f"global_step_{step}"
    (at / "actor").mkdir(parents=True)
    (at / "actor" / "model.pt").write_bytes(b"weights")
    (at / "data.pt").write_bytes(b"loader")
    return at


def on_save(callback: saved.Callback, at: Path, step: int = 4, *, total: int = 10, **more: Any) -> None:
    trainer = SimpleNamespace(total_training_steps=total)
    callback.on_save(trainer=trainer, global_step=step, checkpoint_dir=str(at), **more)


def test_a_manifest_is_there_when_the_step_goes_on(checkpoint: Path) -> None:
    on_save(saved.Callback("config"), checkpoint)
    made = manifest.read(checkpoint.parent, 4)
    assert made is not None
    assert (made.trial, made.attempt) == ("007", 3)
    assert manifest.verify(checkpoint.parent, 4) == []


def test_a_large_one_is_read_beside_the_training_and_the_last_before_it_ends(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setattr(saved, "AT_ONCE", 0)
    go, real = threading.Event(), manifest.write

    def slow(*args: Any, **kwargs: Any) -> Any:
        assert go.wait(30)
        return real(*args, **kwargs)

    monkeypatch.setattr(manifest, "write", slow)
    on_save(saved.Callback(), checkpoint)
    assert manifest.read(checkpoint.parent, 4) is None, "it did not wait"
    go.set()
    on_save(saved.Callback(), make(checkpoint.parent, 10), 10)
    assert [m.step for m in manifest.listed(checkpoint.parent)] == [4, 10]


def test_manifests_of_what_verl_deleted_go(checkpoint: Path) -> None:
    callback = saved.Callback()
    on_save(callback, checkpoint)
    shutil.rmtree(checkpoint / "actor")
    on_save(callback, make(checkpoint.parent, 6), 6)
    assert [p.name for p in (checkpoint.parent / "manifests").iterdir()] == ["global_step_6.json"]


def test_while_verl_still_writes_there_is_none(checkpoint: Path) -> None:
    on_save(saved.Callback(), checkpoint, async_save=True)
    assert manifest.read(checkpoint.parent, 4) is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("anything"), ValueError()])
@pytest.mark.parametrize("where", ["write", "size_of", "forget_retired"])
def test_no_error_of_ours_ends_a_training(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception, where: str
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(manifest, where, failing)
    on_save(saved.Callback(), checkpoint)
    assert "sweeper: no manifest of" in capfd.readouterr().out


def test_the_users_own_callback_is_called_as_verl_would(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(saved.THEIRS, f"{__name__}.Theirs")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    on_save(saved.Callback("config"), checkpoint, new="of a later release")
    ((config, said),) = CALLED
    assert config == "config"
    assert said["global_step"] == 4
    assert said["checkpoint_dir"] == str(checkpoint)
    assert said["async_save"] is False
    assert said["new"] == "of a later release"
    assert manifest.read(checkpoint.parent, 4) is not None


def test_what_the_users_callback_raises_ends_the_training_as_in_verl(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(saved.THEIRS, f"{__name__}.Theirs")
    with pytest.raises(RuntimeError, match="upload failed"):
        on_save(saved.Callback("raise"), checkpoint)
    assert manifest.read(checkpoint.parent, 4) is not None, "the checkpoint is whole all the same"


def test_the_copies_work_without_this_project_and_wrap_the_v0_trainer(tmp_path: Path) -> None:
    package = tmp_path / "verl" / "trainer" / "ppo"
    package.mkdir(parents=True)
    for folder in (tmp_path / "verl", tmp_path / "verl" / "trainer", package):
        (folder / "__init__.py").write_text("")
    (package / "ray_trainer.py").write_text(
        "import pathlib, types\n"
        "class RayPPOTrainer:\n"
        "    global_steps, total_training_steps = 4, 4\n"
        "    def __init__(self, folder):\n"
        "        actor = types.SimpleNamespace(get=lambda *a: {})\n"
        "        self.config = types.SimpleNamespace(\n"
        "            trainer=types.SimpleNamespace(default_local_dir=folder),\n"
        "            actor_rollout_ref=types.SimpleNamespace(actor=actor))\n"
        "    def _save_checkpoint(self):\n"
        "        at = pathlib.Path(self.config.trainer.default_local_dir, 'global_step_4', 'actor')\n"
        "        at.mkdir(parents=True)\n"
        "        (at / 'model.pt').write_text('weights')\n"
    )
    for name, text in job.plugins().items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "main.py").write_text(
        "import sys, sweeper_saved\n"
        "assert 'verl' not in sys.modules\n"
        "from verl.trainer.ppo.ray_trainer import RayPPOTrainer\n"
        "RayPPOTrainer('checkpoints')._save_checkpoint()\n"
        "assert 'sweeper' not in sys.modules, 'the project is not needed'\n"
    )
    command = [sys.executable, "-S", "main.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert manifest.verify(tmp_path / "checkpoints", 4) == []
    assert manifest.read(tmp_path / "checkpoints", 4) is not None


def test_verl_takes_the_callback_as_its_own(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callbacks = pytest.importorskip("verl.trainer.ppo.checkpoint_callback")
    for name, text in job.plugins().items():
        (checkpoint.parent / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(checkpoint.parent))
    trainer = SimpleNamespace(get=lambda key, default=None: f"{job.SAVED}.Callback")
    made = callbacks.build_checkpoint_callback(SimpleNamespace(trainer=trainer))
    on_save(made, checkpoint)
    assert manifest.read(checkpoint.parent, 4) is not None
    for name in job.plugins():
        sys.modules.pop(name, None)


@pytest.mark.real
def test_the_real_v0_trainer_saves_with_a_manifest(tmp_path: Path) -> None:
    """Its own method, on a trainer whose workers are fakes."""
    pytest.importorskip("verl")
    script = """
import sys, types, pathlib
import sweeper_saved
from omegaconf import OmegaConf
from verl.trainer.ppo.ray_trainer import RayPPOTrainer

class Workers:
    def save_checkpoint(self, path, *args, **kwargs):
        pathlib.Path(path).mkdir(parents=True)
        pathlib.Path(path, "model_world_size_1_rank_0.pt").write_text("weights")

trainer = object.__new__(RayPPOTrainer)
trainer.config = OmegaConf.create({
    "trainer": {"default_local_dir": "checkpoints", "default_hdfs_dir": None},
    "actor_rollout_ref": {"actor": {"checkpoint": {"async_save": False}}},
})
trainer.global_steps, trainer.total_training_steps = 2, 4
trainer.actor_rollout_wg = trainer.critic_wg = Workers()
trainer.use_critic = True
trainer.train_dataloader = types.SimpleNamespace(state_dict=lambda: {"step": 2})
trainer._save_checkpoint()
"""
    for name, text in job.plugins().items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "main.py").write_text(script)
    ran = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    made = manifest.read(tmp_path / "checkpoints", 2)
    assert made is not None, ran.stdout[-2000:]
    assert {rel.split("/")[0] for rel, _, _ in made.files} == {"actor", "critic", "data.pt"}
