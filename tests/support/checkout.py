"""A fresh checkout of this tree with its own Git repository, and DVC in it as a user has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Checkout:
    """A folder with what Git has of this tree, edits that are not committed included."""

    path: Path
    env: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, path: Path, home: Path) -> Checkout:
        """`home`: what DVC keeps for the user and the site goes there, and nothing of the machine's is read."""
        if not (ROOT / ".git").exists():
            pytest.skip("this tree is no Git checkout")
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, path / name)
        made = cls(path, cls.environment(home))
        made.git("init", "-q", "-b", "main")
        made.commit("as it is")
        return made

    @staticmethod
    def environment(home: Path) -> dict[str, str]:
        """That of an activated environment, with a home of its own."""
        home.mkdir(parents=True, exist_ok=True)
        author = {"NAME": "a user", "EMAIL": "user@example.com"}
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_GLOBAL_CONFIG_DIR": str(home / "global"),
            "DVC_SYSTEM_CONFIG_DIR": str(home / "system"),
            "DVC_SITE_CACHE_DIR": str(home / "site"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in author.items()},
        }

    def run(self, *command: str, code: int | None = 0, **env: str) -> str:
        """What it printed, both streams; it must end with that code (None: with any but 0)."""
        done = subprocess.run(
            command,
            cwd=self.path,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        good = done.returncode == code if code is not None else done.returncode != 0
        assert good, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}"
        return done.stdout

    def dvc(self, *words: str, code: int | None = 0, **env: str) -> str:
        return self.run("dvc", *words, code=code, **env)

    def git(self, *words: str) -> str:
        return self.run("git", *words)

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)

    def replace(self, name: str, before: str, after: str) -> None:
        text = (self.path / name).read_text()
        assert before in text, f"{name} has no {before!r}"
        (self.path / name).write_text(text.replace(before, after))
