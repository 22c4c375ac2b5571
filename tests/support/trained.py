"""Five trainings with real verl that many tests look at: made once, by a fresh clone of this repository as it lies.

What a test does to them it does to a copy, or takes back.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
HALF = STEPS // 2
ALGORITHMS = ("grpo", "ppo", "rloo", "reinforce_plus_plus", "remax")


def overrides(algorithms: str, *more: str, steps: int = STEPS) -> list[str]:
    """What they were asked for; `kl` brings the reference model in."""
    return [
        f"algorithm={algorithms}",
        "kl=0.01",
        "data.val_max_samples=64",
        f"trainer.total_training_steps={steps}",
        f"trainer.save_freq={HALF}",
        f"trainer.test_freq={HALF}",
        "trainer.max_actor_ckpt_to_keep=null",
        "trainer.max_critic_ckpt_to_keep=null",
        *more,
    ]


@dataclass(frozen=True)
class Place:
    """A fresh clone, a folder to work in beside it, and the sweep `first` that was made there."""

    clone: Path
    folder: Path

    def run(self, *command: str, timeout: float = 1500, **environment: str) -> subprocess.CompletedProcess[str]:
        """A Python command with the clone's code, whatever is installed."""
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.clone), **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def sweeper(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`sweeper ...`, with ranks of its own."""
        ranks = str(self.folder.parent / "ranks")
        return self.run("-m", "sweeper.cli.main", *arguments, **{"SWEEPER_RUNTIME": ranks, **environment})

    def trial(self, algorithm: str) -> Path:
        """The folder of that algorithm's trial."""
        return self.folder / "runs/first/trials" / f"{ALGORITHMS.index(algorithm):03}"


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Each algorithm's run, all of them in one sweep."""
    at = tmp_path_factory.mktemp("trained")
    made = Place(at / "clone", at / "elsewhere")
    made.folder.mkdir()
    subprocess.run(["git", "clone", "-q", str(ROOT), str(made.clone)], check=True)
    differs = ["git", "-C", str(ROOT), "diff", "--binary", "HEAD"]
    changed = subprocess.run(differs, capture_output=True, check=True).stdout
    if changed:
        subprocess.run(["git", "-C", str(made.clone), "apply", "--binary"], input=changed, check=True)
    (made.clone / "untracked.txt").write_text("so that there is a patch\n")
    request = [*overrides(",".join(ALGORITHMS)), "name=first", "cluster.device=cpu", "tracking=none"]
    done = made.sweeper("run", *request)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    yield made
    shutil.rmtree(at, ignore_errors=True)
