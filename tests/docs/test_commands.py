"""Every command that the README and docs/ show is real: planned here, or run by CI itself."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from sweeper import app
from sweeper.cli.main import parse
from sweeper.config.hydra_app import initialized

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "experiments").rglob("*.md"))]


def commands() -> list[tuple[str, str]]:
    """(page, command) for every line of the pages' bash blocks, continued lines joined, comments dropped."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    found.append((page.name, shlex.join(words)))
    return found


COMMANDS = commands()


def test_the_pages_show_commands() -> None:
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{p}:{line}" for p, line in COMMANDS])
def test_command(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line)
    if words[:2] == ["python", "sweep.py"]:
        overrides = [_here(w, tmp_path) for w in words[2:] if w not in ("-m", "--json")]
        monkeypatch.chdir(tmp_path)
        # `lineage.strict=true` refuses the tree of whoever works on it; tests/lineage/test_code.py shows that.
        monkeypatch.setattr("sweeper.lineage.code.refuse_dirty", lambda _: None)
        monkeypatch.setenv("PATH", _slurm(tmp_path), prepend=os.pathsep)
        with initialized():
            code = app.run([*overrides, "plan=true"] if "plan=true" not in overrides else overrides)
        said = capsys.readouterr()
        assert code == 0, said.out + said.err
        assert not list(tmp_path.glob("runs*")), "a plan leaves nothing behind"
    elif words[0] == "sweeper":
        parse(words[1:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "dvc":  # tests/pipeline/test_real.py runs these, from a fresh checkout
        ran = (ROOT / "tests/pipeline/test_real.py").read_text()
        assert ", ".join(f'"{word}"' for word in words[1:]) in ran, f"{page}: nothing runs {line!r}"
    else:
        assert words[:2] == ["mlflow", "ui"], f"{page}: nothing runs {line!r}"


def test_every_local_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def _slurm(tmp_path: Path) -> str:
    """A folder with a `sinfo` that knows what the pages plan for; the real one is asked in tests/clusters."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "sinfo").write_text("#!/bin/sh\necho 'main*|4|idle|128|gpu:h100:8|2-00:00:00'\n")
    (folder / "sinfo").chmod(0o755)
    return str(folder)


def _here(word: str, tmp_path: Path) -> str:
    """Put a generated copy where the page says that a user's data lies."""
    if "/data/gsm8k" not in word:
        return word
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    row = '{"question": "What is 1 + 1?", "answer": "It is 2.\\n#### 2"}\n'
    (folder / "train.jsonl").write_text(row * 2048)
    (folder / "test.jsonl").write_text(row * 64)
    return word.replace("/data/gsm8k", str(folder))
