"""The code of a record as a folder of its own: its commit checked out, its patch applied.

Guarantees: the repositories of the user are only read (the folder is a repository of its own that borrows their
objects, so that no worktree is registered anywhere and nothing is left to prune in them); it is removed whatever
happens, and what a killed process left is removed by the next one. A commit that is gone, a patch that is missing and
no git are RequestErrors; a patch that was altered or does not apply is an UntrueError. Whether it is the code that ran
is known once it is asked for the hash of its own sources (`check`); where other code is taken or compared, the files
that differ are named.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeper import cache
from sweeper.checkpoints import manifest
from sweeper.errors import RequestError
from sweeper.lineage import hashes
from sweeper.lineage.code import sources
from sweeper.lineage.document import PATCH, UntrueError, at_fault
from sweeper.lineage.find import Found

OURS = Path(__file__).resolve().parents[2]
"""The checkout that this very code is from."""
HERE = "--here   (with the code of this checkout)"
PARTS = ("conf", "hydra_plugins", "sweeper")
"""Folders of a checkout that say what is run, beside sweep.py."""
SHOWN = 6


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
    differs: tuple[str, ...] = ()
    """The files in which it is another one than was recorded, as `M path`, `A path`, `D path`."""


@contextlib.contextmanager
def rebuilt(found: Found, *, here: bool = False) -> Iterator[Tree]:
    """The recorded code, for as long as the block runs; `here`: this checkout as it lies, whatever was recorded.

    Raises:
        RequestError: It cannot be had, or what is had is not what was recorded.
    """
    with _folder() as (at, lock):
        (at / "data").mkdir()
        if not here:
            root, notes = _recorded(found, at / "code")
            yield Tree(root, at / "data", lock, notes)
            return
        try:
            root, _ = _recorded(found, at / "code")
        except RequestError as error:
            why = f"which files of {OURS} are not as recorded cannot be told: {error.problems[0].what}"
            yield Tree(OURS, at / "data", lock, (why,))
        else:
            yield Tree(OURS, at / "data", lock, differs=_differing(root, OURS, PARTS))


def check(found: Found, code: Tree, package_sha256: str | None) -> tuple[str, ...]:
    """Whether that code is the recorded one, by the hash of its own sources; where another is taken all the same, the
    files in which it is.

    Raises:
        RequestError: It is not. An UntrueError, where the record has all of its sources.
    """
    recorded = found.document["code"]
    same = package_sha256 == recorded["package_sha256"]
    if code.code == OURS:
        return code.differs or (() if same else ("sweeper/",))
    if same:
        return ()
    lacks = any(f["path"] == "." or "sweeper/" in str(f["path"]) for f in recorded["left_out"])
    files = () if lacks else _others(found, code.code)
    untold = "which files cannot be told, for what ran lies nowhere here"
    named = f"other files: {shown(files)}" if files else untold
    raise (RequestError if lacks else UntrueError)(
        at_fault(
            "code.package_sha256",
            f"the recorded commit with its patch is not the code that {found.name} ran: sweeper/ has another hash "
            f"({str(package_sha256)[:12]}); {named}",
            valid=f"package_sha256 {recorded['package_sha256'][:12]}{_left_out(recorded)}",
            fix=HERE,
        )
    )


def shown(files: Sequence[str]) -> str:
    """The first of them in one line."""
    return ", ".join(files[:SHOWN]) + (f" and {len(files) - SHOWN} more" if len(files) > SHOWN else "")


def changed(a: Found, b: Found) -> list[tuple[str, str | None, str | None]]:
    """The files in which the recorded codes of two runs differ: path, and git's hash of either content; None where that
    code has no such file.

    Raises:
        RequestError: one of the two cannot be had.
    """
    with _folder() as (folder, _):
        at = folder / "code"
        at.mkdir()
        _done(git(at, "init", "-q"), "git init", at)
        _borrow(at, [_repository(run) for run in (a, b) if run.document["code"]["commit"]])
        trees = [_written(run, at) for run in (a, b)]
        said = git(at, "diff-tree", "-r", "-z", "--no-renames", *trees)
        _done(said, "git diff-tree", at)
    facts = said.stdout.split("\0")
    found = []
    for about, path in zip(facts[::2], facts[1::2], strict=False):  # `:MODE MODE HASH HASH STATUS`, then the path
        one, other = (None if set(name) == {"0"} else name for name in about.split(" ")[2:4])
        found.append((path, one, other))
    return found


def _recorded(found: Found, at: Path) -> tuple[Path, tuple[str, ...]]:
    """The recorded code in a new folder: where sweep.py is, and what is known to be missing."""
    code = found.document["code"]
    if not code["commit"] and not code["patch"]:
        what = f"{found.name} was run from a folder without git, so that its code is not to be had"
        raise RequestError(at_fault("code.commit", what, fix=HERE))
    if shutil.which("git") is None:
        what = "git is not installed, and the recorded code is taken from a git repository"
        raise RequestError(at_fault("code.commit", what, fix="install git, or --here"))
    repository = _repository(found) if code["commit"] else None
    _check_out(repository, code["commit"], code["remote"], at)
    notes = _patched(found, at)
    return _root(found, at), notes


def _differing(recorded: Path, other: Path, parts: Sequence[str]) -> tuple[str, ...]:
    """The sources in which another checkout differs from the recorded one: `M path`, `A path`, `D path`."""
    one, two = _contents(recorded, parts), _contents(other, parts)
    status = {path: "A" if path not in one else "D" if path not in two else "M" for path in one.keys() | two.keys()}
    return tuple(f"{status[path]} {path}" for path in sorted(status) if one.get(path) != two.get(path))


def _contents(root: Path, parts: Sequence[str]) -> dict[str, str]:
    """Path -> SHA-256 of the sources in those folders of a checkout, and of its sweep.py."""
    there = [(part, root / part) for part in parts if (root / part).is_dir()]
    found = {f"{part}/{name}": digest for part, at in there for name, _, digest in sources(at)}
    own = root / "sweep.py"
    return {**found, **({"sweep.py": hashes.sha256(own)} if own.is_file() else {})}


def _others(found: Found, code: Path) -> tuple[str, ...]:
    """The files of the package in which a checkout is not what ran, where what ran still lies here. A record has no
    hash of single files."""
    for place in dict.fromkeys((Path(found.document["code"]["root"]), OURS)):
        package = place / "sweeper"
        with contextlib.suppress(hashes.HashError):
            if package.is_dir() and manifest.digest(sources(package)) == found.document["code"]["package_sha256"]:
                return tuple(line for line in _differing(place, code, ("sweeper",)) if not line.endswith(" sweep.py"))
    return ()


def _root(found: Found, at: Path) -> Path:
    """The folder with sweep.py: the repository's own, or one in it."""
    for pattern in ("sweep.py", "*/sweep.py", "*/*/sweep.py"):
        for path in sorted(at.glob(pattern)):
            if (path.parent / "sweeper" / "__init__.py").is_file():
                return path.parent
    what = f"the recorded commit of {found.name} has no sweep.py with sweeper/ beside it"
    raise RequestError(at_fault("code.commit", what, fix=HERE))


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


def _repository(found: Found) -> Path:
    """A repository on this machine that has the commit: where it was run, this checkout, the current folder."""
    code = found.document["code"]
    commit = str(code["commit"])
    places = list(dict.fromkeys([Path(code["root"]), OURS, Path.cwd()]))
    known = [p for p in places if p.is_dir() and git(p, "rev-parse", "--git-dir").returncode == 0]
    for place in known:
        if git(place, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0:
            return place
    at = known[0] if known else OURS
    remotes = git(at, "remote").stdout.split()
    where = code["remote"] or ("origin" if "origin" in remotes else remotes[0] if remotes else "URL-OF-A-CLONE")
    raise RequestError(
        at_fault(
            "code.commit",
            f"the commit {commit} that {found.name} was run from is not in {', '.join(map(str, known)) or 'any place'}",
            valid=f"a clone that has it (it was on {code['branch'] or 'no branch'})",
            fix=f"git -C {at} fetch {where} {commit}",
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
    _borrow(at, [repository])
    _done(git(at, "checkout", "-q", "--detach", commit), f"git checkout {commit}", repository)


def _borrow(at: Path, repositories: Sequence[Path]) -> None:
    """Let a new repository have the objects of those."""
    said = [git(r, "rev-parse", "--path-format=absolute", "--git-path", "objects").stdout for r in repositories]
    lines = "".join(f"{line.strip()}\n" for line in dict.fromkeys(said))
    (at / ".git" / "objects" / "info" / "alternates").write_text(lines)


def _written(found: Found, at: Path) -> str:
    """git's name for the whole tree of a recorded code, in a repository that has its commit."""
    code = found.document["code"]
    if not code["commit"] and not code["patch"]:
        raise RequestError(at_fault("code.commit", f"{found.name} was run from a folder without git"))
    _done(git(at, "read-tree", code["commit"] or "--empty"), "git read-tree", at)
    if patch := _patch(found):
        _apply(found, at, patch, "--cached")
    said = git(at, "write-tree")
    _done(said, "git write-tree", at)
    return said.stdout.strip()


def _patched(found: Found, at: Path) -> tuple[str, ...]:
    """Apply the record's patch; what it is known to lack, in words."""
    code = found.document["code"]
    left_out = [str(f["path"]) for f in code["left_out"]]
    if patch := _patch(found):
        _apply(found, at, patch)
    return (f"not in the patch: {', '.join(left_out[:6])}{' ...' * (len(left_out) > 6)}",) if left_out else ()


def _patch(found: Found) -> Path | None:
    """The patch as it was recorded; None where there is none."""
    patch = found.document["code"]["patch"]
    if not patch:
        return None
    file = found.path.parent / PATCH
    if not file.is_file():
        what = f"{found.name} was run from changed code, and its patch is not at {file}"
        valid = f"a file with sha256 {patch['sha256']}"
        raise RequestError(at_fault("code.patch", what, valid=valid, fix=_another_copy(found, file)))
    if (digest := hashes.sha256(file)) != patch["sha256"]:
        what = f"{file} is not the patch that was recorded: its sha256 is {digest}"
        raise UntrueError(
            at_fault("code.patch", what, valid=f"sha256 {patch['sha256']}", fix=_another_copy(found, file))
        )
    return file


def _another_copy(found: Found, file: Path) -> str:
    """The command that brings the recorded patch back: its sweep has it once more."""
    from sweeper.lineage.record import PATCHES

    digest, made = str(found.document["code"]["patch"]["sha256"]), Path(found.document["run"]["folder"])
    sweeps = [*file.parents[3:4], *made.parents[2:3]]
    for copy in (*(sweep / PATCHES / f"{digest[:16]}.patch" for sweep in sweeps), made / PATCH):
        if copy != file and copy.is_file() and hashes.sha256(copy) == digest:
            return f"cp {shlex.quote(str(copy))} {shlex.quote(str(file))}"
    sync = f"sweeper sync {found.document['run']['sweep']}"
    return f"name the run by its MLflow run id   (MLflow has a copy, or `{sync}` sends one), or --here"


def _apply(found: Found, at: Path, patch: Path, *options: str) -> None:
    applied = git(at, "apply", "--binary", "--whitespace=nowarn", *options, str(patch))
    if applied.returncode:
        first = (applied.stderr.strip().splitlines() or ["no word why"])[0]
        commit = str(found.document["code"]["commit"])[:12]
        what = f"{patch} does not apply to the commit {commit}: {first}"
        fix = f"git apply --check {shlex.quote(str(patch))}   (in a clean checkout of the commit)"
        raise UntrueError(at_fault("code.patch", what, fix=fix))


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
        raise RequestError(at_fault("code.commit", f"{what} failed in {at}: {why}"))
