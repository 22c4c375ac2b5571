"""The code of a record as a folder of its own: its commit checked out, its patch applied.

Guarantees: the repositories of the user are only read (the folder is a repository of its own that borrows their
objects, so that no worktree is registered anywhere and nothing is left to prune in them); it is removed whatever
happens, and what a killed process left is removed by the next one. A commit that is gone, a patch that is missing,
altered or does not apply, and no git are RequestErrors. Whether it is the code that ran is known once it is asked for
the hash of its own sources (`check`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeper import cache
from sweeper.errors import Problem, RequestError
from sweeper.lineage import hashes
from sweeper.lineage.document import PATCH
from sweeper.lineage.find import Found

OURS = Path(__file__).resolve().parents[2]
"""The checkout that this very code is from."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Where the code of a run lies."""

    code: Path
    """The root: it holds sweep.py, sweeper/ and conf/."""
    data: Path
    """An empty folder beside it, for inputs that are fetched."""
    lock: int
    """A descriptor that keeps it from being removed; for a child that may outlive us."""
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def rebuilt(found: Found, *, here: bool = False) -> Iterator[Tree]:
    """The recorded code, for as long as the block runs; `here`: this checkout as it lies, whatever was recorded.

    Raises:
        RequestError: It cannot be had, or what is had is not what was recorded.
    """
    code = found.document["code"]
    with _folder() as (at, lock):
        (at / "data").mkdir()
        if here:
            yield Tree(OURS, at / "data", lock)
            return
        if not code["commit"] and not code["patch"]:
            what = f"{found.name} was run from a folder without git, so that its code is not to be had"
            raise RequestError(Problem(what, fix="--here   (with the code of this checkout)", key="code.commit"))
        if shutil.which("git") is None:
            what = "git is not installed, and the recorded code is taken from a git repository"
            raise RequestError(Problem(what, fix="install git, or --here", key="code.commit"))
        repository = _repository(found, str(code["commit"])) if code["commit"] else None
        _check_out(repository, code["commit"], code["remote"], at / "code")
        notes = _patched(found, at / "code")
        yield Tree(_root(found, at / "code"), at / "data", lock, notes)


def check(found: Found, code: Tree, package_sha256: str | None) -> tuple[str, ...]:
    """Whether that code is the recorded one, by the hash of its own sources; what is to be said where it is taken all
    the same.

    Raises:
        RequestError: It is not.
    """
    recorded = found.document["code"]
    if package_sha256 == recorded["package_sha256"]:
        return ()
    if code.code == OURS:
        return (f"the code of {OURS} is not the recorded one",)
    raise RequestError(
        Problem(
            f"the recorded commit with its patch is not the code that {found.name} ran: sweeper/ has another hash "
            f"({str(package_sha256)[:12]})",
            valid=f"package_sha256 {recorded['package_sha256'][:12]}{_left_out(recorded)}",
            fix="--here   (with the code of this checkout)",
            key="code.package_sha256",
        )
    )


def _root(found: Found, at: Path) -> Path:
    """The folder with sweep.py: the repository's own, or one in it."""
    for pattern in ("sweep.py", "*/sweep.py", "*/*/sweep.py"):
        for path in sorted(at.glob(pattern)):
            if (path.parent / "sweeper" / "__init__.py").is_file():
                return path.parent
    what = f"the recorded commit of {found.name} has no sweep.py with sweeper/ beside it"
    raise RequestError(Problem(what, fix="--here   (with the code of this checkout)", key="code.commit"))


@contextlib.contextmanager
def _folder() -> Iterator[tuple[Path, int]]:
    """A new folder in the cache, locked while it is in use; those that nobody holds any more are removed."""
    root = cache.root() / "reproduce"
    root.mkdir(parents=True, exist_ok=True)
    root = root.resolve()  # Python names modules by their real paths, and those are what a config may hold
    for lock in root.glob("*.lock"):
        _prune(lock)
    at = Path(tempfile.mkdtemp(prefix="run-", dir=root))
    taken, lock = at.with_suffix(".taken"), at.with_suffix(".lock")
    descriptor = os.open(taken, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken.rename(lock)  # it is held before anybody looks for it
        yield at, descriptor
    finally:
        shutil.rmtree(at, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _prune(lock: Path) -> None:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return  # in use
    else:
        shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
        lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _repository(found: Found, commit: str) -> Path:
    """A repository on this machine that has the commit: where it was run, this checkout, the current folder."""
    code = found.document["code"]
    places = list(dict.fromkeys([Path(code["root"]), OURS, Path.cwd()]))
    known = [p for p in places if p.is_dir() and git(p, "rev-parse", "--git-dir").returncode == 0]
    for place in known:
        if git(place, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0:
            return place
    at = known[0] if known else OURS
    remotes = git(at, "remote").stdout.split()
    where = code["remote"] or ("origin" if "origin" in remotes else remotes[0] if remotes else "URL-OF-A-CLONE")
    raise RequestError(
        Problem(
            f"the commit {commit} that {found.name} was run from is not in {', '.join(map(str, known)) or 'any place'}",
            valid=f"a clone that has it (it was on {code['branch'] or 'no branch'})",
            fix=f"git -C {at} fetch {where} {commit}",
            key="code.commit",
        )
    )


def _check_out(repository: Path | None, commit: str | None, remote: str | None, at: Path) -> None:
    """A repository of its own in an empty folder, with the objects of the user's, at that commit."""
    at.mkdir()
    _done(git(at, "init", "-q"), "git init", at)
    if remote:
        git(at, "remote", "add", "origin", remote)
    if repository is None or commit is None:
        return
    said = git(repository, "rev-parse", "--path-format=absolute", "--git-path", "objects")
    (at / ".git" / "objects" / "info" / "alternates").write_text(said.stdout.strip() + "\n")
    _done(git(at, "checkout", "-q", "--detach", commit), f"git checkout {commit}", repository)


def _patched(found: Found, at: Path) -> tuple[str, ...]:
    """Apply the record's patch; what it is known to lack, in words."""
    code = found.document["code"]
    left_out = [str(f["path"]) for f in code["left_out"]]
    notes = (f"not in the patch: {', '.join(left_out[:6])}{' ...' * (len(left_out) > 6)}",) if left_out else ()
    patch = code["patch"]
    if not patch:
        return notes
    file = found.path.parent / PATCH
    if not file.is_file():
        what = f"{found.name} was run from changed code, and its patch is not at {file}"
        raise RequestError(Problem(what, valid=f"a file with sha256 {patch['sha256']}", key="code.patch"))
    if (digest := hashes.sha256(file)) != patch["sha256"]:
        what = f"{file} is not the patch that was recorded: its sha256 is {digest}"
        raise RequestError(Problem(what, valid=str(patch["sha256"]), key="code.patch"))
    applied = git(at, "apply", "--binary", "--whitespace=nowarn", str(file))
    if applied.returncode:
        first = (applied.stderr.strip().splitlines() or ["no word why"])[0]
        what = f"{file} does not apply to the commit {str(code['commit'])[:12]}: {first}"
        raise RequestError(
            Problem(what, fix=f"git apply --check {file}   (in a clean checkout of the commit)", key="code.patch")
        )
    return notes


def _left_out(code: Mapping[str, object]) -> str:
    names = [str(f["path"]) for f in code["left_out"]]  # type: ignore[attr-defined]  # a list, by the schema
    return f"; not in the patch: {', '.join(names[:6])}" if names else ""


def git(at: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """git in that folder, whatever repository the user's shell points it at; never asks for a password."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    command: Sequence[str] = ["git", "-C", str(at), *arguments]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env={**env, "GIT_TERMINAL_PROMPT": "0"},
        check=False,
    )


def _done(ended: subprocess.CompletedProcess[str], what: str, at: Path) -> None:
    if ended.returncode:
        why = (ended.stderr.strip().splitlines() or ["no word why"])[-1]
        raise RequestError(Problem(f"{what} failed in {at}: {why}", key="code.commit"))
