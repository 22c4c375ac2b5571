"""The rates after a load: the config's, and not a bit changed where they are the checkpoint's. With real optimizers."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from sweeper.engines.verl import job, resume

torch = pytest.importorskip("torch")


def made(lr: float, *, warmup: int = 0, weight_decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.999)) -> Any:
    """An optimizer and a schedule as verl makes them (a cosine with a warm-up)."""
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight], lr=lr, weight_decay=weight_decay, betas=betas)

    def factor(step: int) -> float:
        return step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * step / 20))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train(optimizer: Any, schedule: Any, steps: int) -> None:
    for step in range(steps):
        (weight,) = optimizer.param_groups[0]["params"]
        weight.grad = torch.full_like(weight, 0.1 * (step + 1))
        optimizer.step()
        schedule.step()


class FakeManager:
    """verl's FSDPCheckpointManager as far as it matters here: it loads what another one saved."""

    def __init__(self, optimizer: Any, lr_scheduler: Any) -> None:
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler

    def load_checkpoint(self, saved: Any, hdfs_path: str | None = None, del_local_after_load: bool = False) -> None:
        if saved is None:
            return
        states = copy.deepcopy([part.state_dict() for part in saved])
        self.optimizer.load_state_dict(states[0])
        self.lr_scheduler.load_state_dict(states[1])


@pytest.fixture
def manager() -> Any:
    module = types.SimpleNamespace(FSDPCheckpointManager=type("Manager", (FakeManager,), {}))
    resume.patch(module)
    return module.FSDPCheckpointManager


def state(optimizer: Any, schedule: Any) -> str:
    return repr((optimizer.state_dict(), {k: v for k, v in schedule.state_dict().items() if k != "lr_lambdas"}))


@pytest.mark.parametrize("warmup", [0, 5])
def test_unchanged_rates_are_not_touched(manager: Any, warmup: int, capsys: pytest.CaptureFixture[str]) -> None:
    saved = made(3e-4, warmup=warmup)
    train(*saved, 3)
    resumed = made(3e-4, warmup=warmup)
    manager(*resumed).load_checkpoint(saved)
    assert state(*resumed) == state(*saved)
    train(*resumed, 3)
    train(*saved, 3)
    assert [g["lr"] for g in resumed[0].param_groups] == [g["lr"] for g in saved[0].param_groups]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("warmup", [0, 5])
def test_another_rate_goes_on_where_its_own_schedule_would_be(
    manager: Any, warmup: int, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, always = made(3e-4, warmup=warmup), made(3e-3, warmup=warmup)
    train(*saved, 3)
    train(*always, 3)
    forked = made(3e-3, warmup=warmup)
    manager(*forked).load_checkpoint(saved)
    for _ in range(3):
        assert forked[0].param_groups[0]["lr"] == always[0].param_groups[0]["lr"]
        assert forked[1].get_last_lr() == always[1].get_last_lr()
        train(*forked, 1)
        train(*always, 1)
    assert forked[0].state_dict()["state"][0]["step"] == 6, "the moments and their count are the checkpoint's"
    assert "sweeper: resumed with another learning rate" in capsys.readouterr().out
    again = made(3e-3, warmup=warmup)
    train(*again, 0)
    manager(*again).load_checkpoint(forked)
    assert state(*again) == state(*forked), "and the next resume has nothing to change"


def test_the_optimizers_other_values_are_the_configs(manager: Any) -> None:
    saved = made(3e-4)
    train(*saved, 2)
    forked = made(3e-4, weight_decay=0.1, betas=(0.8, 0.99))
    manager(*forked).load_checkpoint(saved)
    assert forked[0].param_groups[0]["weight_decay"] == 0.1
    assert forked[0].param_groups[0]["betas"] == (0.8, 0.99)
    assert forked[0].param_groups[0]["lr"] == saved[0].param_groups[0]["lr"]


def test_a_rate_held_in_a_tensor_is_filled(manager: Any) -> None:
    saved, forked = made(3e-4), made(3e-3)
    train(*saved, 1)
    held = torch.tensor(1.0)
    asked = resume.asked(*forked)
    forked[0].param_groups[0]["lr"] = held
    resume.apply(*forked, *asked)
    assert held.item() == pytest.approx(3e-3)
    assert forked[0].param_groups[0]["lr"] is held


def test_no_checkpoint_no_optimizer_no_schedule(manager: Any) -> None:
    fresh = made(3e-4)
    before = state(*fresh)
    manager(*fresh).load_checkpoint(None)
    assert state(*fresh) == before
    assert resume.apply(None, None, *resume.asked(None, None)) == []


def test_verls_module_is_patched_when_it_is_imported_and_not_before(tmp_path: Path) -> None:
    package = tmp_path / "verl" / "utils" / "checkpoint"
    package.mkdir(parents=True)
    for folder in (tmp_path / "verl", tmp_path / "verl" / "utils", package):
        (folder / "__init__.py").write_text("")
    (package / "fsdp_checkpoint_manager.py").write_text(
        "class FSDPCheckpointManager:\n"
        "    optimizer = lr_scheduler = None\n"
        "    def load_checkpoint(self, path):\n        print('loaded', path)\n"
    )
    (tmp_path / "sweeper_resume.py").write_text(job.plugins()[job.RESUME])
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import sweeper_resume\n"
        "assert not [m for m in sys.modules if m.startswith(('verl', 'torch'))]\n"
        "from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager as M\n"
        "assert M.load_checkpoint.__wrapped__\n"
        "M().load_checkpoint('here')\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("loaded here\n", "")


def test_verls_manager_has_what_is_patched() -> None:
    """The real source: another release may have moved it."""
    import ast

    from sweeper.engines.verl.base_config import config_dir

    source = config_dir().parents[1] / "utils/checkpoint/fsdp_checkpoint_manager.py"
    tree = ast.parse(source.read_text())
    (manager,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "FSDPCheckpointManager"]
    (load,) = [n for n in manager.body if isinstance(n, ast.FunctionDef) and n.name == "load_checkpoint"]
    used = {n.attr for n in ast.walk(load) if isinstance(n, ast.Attribute)}
    assert {"optimizer", "lr_scheduler", "load_state_dict"} <= used
