"""The code of a run: a patch that gives the tree back, and nothing in it that should not be."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sweeper import app
from sweeper.config.hydra_app import initialized
from sweeper.errors import RequestError
from sweeper.lineage import code

BINARY = bytes(range(256)) * 20


def git(folder: Path, *args: str, given: bytes = b"") -> str:
    own = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "init.defaultBranch=main", "-c", "commit.gpgSign=false"]
    done = subprocess.run(["git", *own, *args], cwd=folder, input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "-q")
    files = {
        "train.py": b"print(1)\n", "gone.py": b"x\n", "moved.py": b"some lines\n" * 20, "run.sh": b"#!/bin/sh\n",
        "weights.bin": BINARY, "crlf.txt": b"a\r\nb\r\n", "no newline": b"end", "sub/ü.py": b"u\n",
        ".gitignore": b"*.log\n",
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with the bits that git keeps."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] == ".git" or name.endswith(".log") or (path.is_dir() and not path.is_symlink()):
            continue
        data = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        found[name] = (path.lstat().st_mode & 0o170111, data)
    return found


def applied(repo: Path, found: code.Code, tmp_path: Path) -> Path:
    """A clean tree of the commit with the patch."""
    tree = tmp_path / "worktree"
    git(repo, "worktree", "add", "-q", "--detach", str(tree), str(found.commit))
    git(tree, "apply", "--index", "--binary", "-", given=found.patch)
    return tree


def dirty(repo: Path) -> None:
    """Every way to differ."""
    (repo / "train.py").write_text("print(2)\n")
    (repo / "gone.py").unlink()
    (repo / "moved.py").rename(repo / "sub" / "elsewhere.py")
    (repo / "run.sh").chmod(0o755)
    (repo / "weights.bin").write_bytes(BINARY[::-1])
    (repo / "crlf.txt").write_bytes(b"a\r\nc\r\n")
    (repo / "no newline").write_bytes(b"end.")
    (repo / "new.py").write_text("new\n")
    (repo / "deep" / "er").mkdir(parents=True)
    (repo / "deep" / "er" / "new.bin").write_bytes(BINARY + b"\0")
    (repo / "empty").write_bytes(b"")
    (repo / "a b\tü.py").write_text("odd name\n")
    (repo / "link").symlink_to("train.py")
    (repo / "tool").write_text("#!/bin/sh\n")
    (repo / "tool").chmod(0o755)
    (repo / "noise.log").write_text("ignored\n")
    (repo / "staged.py").write_text("staged\n")
    git(repo, "add", "staged.py")
    (repo / "staged.py").write_text("staged and changed again\n")
    (repo / "half.py").write_text("staged, then deleted\n")
    git(repo, "add", "half.py")
    (repo / "half.py").unlink()


def test_the_patch_gives_the_tree_as_it_was(repo: Path, tmp_path: Path) -> None:
    dirty(repo)
    found = code.capture(repo)
    assert found.dirty
    assert found.left_out == ()
    assert found.commit == git(repo, "rev-parse", "HEAD")
    tree = applied(repo, found, tmp_path)
    assert content(tree) == content(repo)
    assert "M train.py" in found.changed
    assert "D gone.py" in found.changed
    assert "? new.py" in found.changed


def test_nothing_of_the_users_repository_is_touched(repo: Path) -> None:
    dirty(repo)
    before = {p: p.read_bytes() for p in sorted((repo / ".git").rglob("*")) if p.is_file()}
    code.capture(repo)
    assert {p: p.read_bytes() for p in sorted((repo / ".git").rglob("*")) if p.is_file()} == before


def test_the_users_settings_of_diff_do_not_change_the_patch(repo: Path, tmp_path: Path) -> None:
    dirty(repo)
    plain = code.capture(repo).patch
    for key, value in {
        "diff.noprefix": "true", "diff.mnemonicPrefix": "true", "color.ui": "always", "diff.renames": "copies",
        "diff.external": "false", "core.quotePath": "false", "diff.context": "0", "diff.algorithm": "patience",
    }.items():  # fmt: skip
        git(repo, "config", key, value)
    found = code.capture(repo)
    assert content(applied(repo, found, tmp_path)) == content(repo)
    assert len(found.patch) > len(plain) / 2


@pytest.mark.parametrize("way", ["a subfolder", "a hook's variables", "a detached head"])
def test_from_wherever_it_is_asked(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    dirty(repo)
    asked = repo
    if way == "a subfolder":
        asked = repo / "sub"
    elif way == "a detached head":
        git(repo, "checkout", "-q", "--detach")
    else:
        monkeypatch.setenv("GIT_DIR", str(tmp_path / "other"))
        monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other-index"))
    found = code.capture(asked)
    assert found.root == repo
    assert found.branch == (None if way == "a detached head" else "main")
    monkeypatch.undo()
    assert content(applied(repo, found, tmp_path)) == content(repo)


def test_a_clean_tree_has_no_patch(repo: Path) -> None:
    (repo / "noise.log").write_text("ignored\n")
    found = code.capture(repo)
    assert (found.dirty, found.patch, found.changed) == (False, b"", ())
    assert found.record()["patch"] is None
    code.refuse_dirty(found)


def test_strict_refuses_what_the_commit_alone_does_not_give(repo: Path) -> None:
    (repo / "train.py").write_text("print(2)\n")
    (repo / "new.py").write_text("new\n")
    with pytest.raises(RequestError) as raised:
        code.refuse_dirty(code.capture(repo))
    text = str(raised.value)
    assert raised.value.exit_code == 2
    assert "M train.py" in text
    assert "? new.py" in text
    assert "git commit" in text
    assert "lineage.strict=false" in text


def test_without_a_repository_or_git_or_a_commit(tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    found = code.capture(plain)
    assert (found.commit, found.dirty, found.record()["patch"]) == (None, True, None)
    assert "not a git repository" in found.problem
    with pytest.raises(RequestError, match="has no commit"):
        code.refuse_dirty(found)
    git(plain, "init", "-q")
    (plain / "a.py").write_text("a\n")
    found = code.capture(plain)
    assert found.commit is None
    assert found.branch == "main"
    assert found.changed == ("? a.py",)
    assert b"a.py" in found.patch
    monkeypatch.setenv("PATH", str(tmp_path))
    found = code.capture(repo)
    assert "git cannot be run" in found.problem
    assert found.commit is None


def test_what_this_project_and_python_write_is_no_code(repo: Path) -> None:
    for name in (
        "runs/s/sweep.json", "runs/s/ledger.db", "runs/index.db", "runs/s/trials/000/attempt-1/spec.json",
        "other/t/sweep.json", "other/t/ledger.db", "other/index.db", "other/index.db-wal",
        "mlflow.db", "mlflow.db-wal", "mlruns/1/x", "mlartifacts/x", "sub/__pycache__/a.pyc", "tracked.db",
        "env/pyvenv.cfg", "env/lib/python3/site-packages/a.py",
    ):  # fmt: skip
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text("x")
    found = code.capture(repo, exclude=[repo / "runs", repo / "tracked.db"])
    assert not found.dirty, found.changed


@pytest.mark.parametrize("tracked", [True, False])
def test_what_dvc_notes_of_its_stages_is_no_change_of_the_code(repo: Path, tmp_path: Path, tracked: bool) -> None:
    """Inside `dvc repro` it is always another one, and `lineage.strict=true` must be possible there."""
    (repo / "sub" / "dvc.lock").write_text("stages: {}\n")
    (repo / "dvc.lock").write_text("stages: {}\n")
    if tracked:
        git(repo, "add", "-A")
        git(repo, "commit", "-q", "-m", "made")
        for name in ("dvc.lock", "sub/dvc.lock"):
            (repo / name).write_text("stages: {made: {cmd: x}}\n")
    found = code.capture(repo)
    assert (found.dirty, found.patch, found.changed) == (False, b"", ())
    code.refuse_dirty(found)
    (repo / "train.py").write_text("print(2)\n")
    (repo / "not-dvc.lock").write_text("")
    found = code.capture(repo)
    assert found.changed == ("? not-dvc.lock", "M train.py") and b"stages" not in found.patch
    assert (applied(repo, found, tmp_path) / "train.py").read_text() == "print(2)\n"


def test_large_files_are_named_and_not_swallowed(repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(code, "LARGEST", 1000)
    monkeypatch.setattr(code, "MOST", 2500)
    for name, size in {"huge": 1001, "a": 900, "b": 901, "c": 800, "d": 1}.items():
        (repo / name).write_bytes(b"x" * size)
    found = code.capture(repo)
    assert [(f.path, f.bytes, f.why) for f in found.left_out] == [("b", 901, "size"), ("huge", 1001, "size")]
    assert found.dirty
    assert set(content(applied(repo, found, tmp_path))) == set(content(repo)) - {"b", "huge"}
    with pytest.raises(RequestError, match="huge"):
        code.refuse_dirty(found)


def test_a_repository_inside_is_named(repo: Path) -> None:
    (repo / "inner").mkdir()
    git(repo / "inner", "init", "-q")
    (repo / "inner" / "a.py").write_text("a\n")
    found = code.capture(repo)
    assert [(f.path, f.why) for f in found.left_out] == [("inner/", "repository")]
    assert found.dirty


def test_a_submodule_with_changes_of_its_own_is_named(repo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    (other / "a.py").write_text("a\n")
    git(other, "add", "-A")
    git(other, "commit", "-q", "-m", "x")
    git(repo, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(other), "sub module")
    git(repo, "commit", "-q", "-m", "a submodule")
    assert not code.capture(repo).dirty
    (repo / "sub module" / "a.py").write_text("b\n")
    found = code.capture(repo)
    assert [(f.path, f.why) for f in found.left_out] == [("sub module", "repository")]
    assert found.dirty


def test_no_secret_is_in_the_patch(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hunter2-correct-horse"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    (repo / "kept.py").write_text(f"line\nkey = '{secret}'\n")
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "a secret slipped in")
    (repo / "kept.py").write_text("line\nkey = None\n")  # the line that goes has it
    (repo / ".env").write_text("A=1\n")
    (repo / ".env.example").write_text("A=\n")
    (repo / "server.pem").write_text("-----\n")
    (repo / "deep").mkdir()
    (repo / "deep" / "id_rsa").write_text("-----\n")
    (repo / "notes.py").write_text(f"# {secret}\n")
    (repo / "notes.bin").write_bytes(b"\0\1" + secret.encode() + b"\0")
    (repo / "tokenizer.json").write_text("{}")
    (repo / "train.py").write_text("print(2)\n")
    found = code.capture(repo)
    left = {f.path for f in found.left_out if f.why == "secret"}
    assert left == {".env", "server.pem", "deep/id_rsa", "notes.py", "notes.bin", "kept.py"}
    assert secret.encode() not in found.patch
    assert found.changed == ("? .env.example", "? tokenizer.json", "M train.py")
    tree = applied(repo, found, tmp_path)
    assert (tree / "train.py").read_text() == "print(2)\n"


def test_a_tracked_link_that_was_a_file(repo: Path, tmp_path: Path) -> None:
    (repo / "train.py").unlink()
    (repo / "train.py").symlink_to("run.sh")
    shutil.rmtree(repo / "sub")
    (repo / "sub").write_text("a file where a folder was\n")
    assert content(applied(repo, code.capture(repo), tmp_path)) == content(repo)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://ann:tok@en@host/a/b.git", "https://host/a/b.git"),
        ("https://ghp_abc@github.com/a/b", "https://github.com/a/b"),
        ("https://github.com/a/b.git?token=x#y", "https://github.com/a/b.git"),
        ("git@github.com:a/b.git", "git@github.com:a/b.git"),
        ("ssh://git@host:22/a/b", "ssh://git@host:22/a/b"),
        ("ssh://git:pw@host/a/b", "ssh://host/a/b"),
        ("/srv/git/a?b.git", "/srv/git/a?b.git"),
        ("file:///srv/git/a", "file:///srv/git/a"),
    ],
)
def test_an_address_is_recorded_without_credentials(repo: Path, address: str, shown: str) -> None:
    git(repo, "remote", "add", "other", "https://elsewhere/x")
    git(repo, "remote", "add", "origin", address)
    assert code.capture(repo).remote == shown


def test_a_flipped_byte_of_the_code_changes_the_record(repo: Path) -> None:
    (repo / "train.py").write_text("print(2)\n")
    one = code.capture(repo).record()
    assert code.capture(repo).record() == one, "the same tree, the same record"
    (repo / "train.py").write_text("print(3)\n")
    assert code.capture(repo).record() != one


def test_a_plan_refuses_what_the_start_would(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(code, "home", lambda: repo)
    request = ["cluster.device=cpu", "lineage.strict=true", "plan=true"]
    with initialized():
        assert app.run(request) == 0
        assert "without plan=true this runs" in capsys.readouterr().out
        (repo / "train.py").write_text("print(2)\n")
        assert app.run(request) == 2
        said = capsys.readouterr()
        assert "train.py" in said.err and "git commit" in said.err
        assert "1 trial" in said.out and "this runs" not in said.out
        assert app.run(["cluster.device=cpu", "lineage.reproduces=nowhere/lineage.json", "plan=true"]) == 2
    assert "nowhere/lineage.json" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs*"))
