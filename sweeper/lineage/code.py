"""The code that computes a trial: its commit, and the whole difference of the working tree to it as one patch.

Guarantees: the patch applied to a clean tree of the commit gives the tree as it was, with untracked, binary, deleted,
renamed and mode-changed files (`git apply --index`); what is not in it is named in `left_out` and the tree counts as
dirty; the user's index, objects and refs are not touched, no hook or filter of the diff runs; no file whose name says
secret, and none that holds the value of a secret variable, is in the patch; neither ignored files nor what this project
writes (sweeps, the tracking store) nor interpreters' own files are, nor is `dvc.lock`, tracked or not. Without git, or
outside a repository, that is what is recorded. Only the standard library is imported.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from sweeper import package
from sweeper.checkpoints import manifest
from sweeper.errors import Problem, RequestError
from sweeper.lineage import document, hashes
from sweeper.trial.records import mask

LARGEST = 20 * 2**20
"""Bytes of an untracked file that is still taken into the patch."""
MOST = 200 * 2**20
"""Bytes of all untracked files together; beyond it the largest are left out."""
SECRETS = (
    ".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "*.jks", "id_rsa*", "id_dsa*", "id_ecdsa*",
    "id_ed25519*", ".netrc", "_netrc", ".pypirc", ".npmrc", ".htpasswd", ".git-credentials", ".pgpass", "credentials",
    "credentials.*", "secret.*", "secrets.*", "kubeconfig", "config.local", "service-account*.json",
)  # fmt: skip
"""Names of files that hold secrets; what is committed already is left out too where it was changed."""
NO_SECRETS = ("*.py", "*.example", "*.sample", "*.template", "*.dist", "*.pub")
_NOISE = re.compile(
    r"(?:^|/)(?:mlruns|mlartifacts|__pycache__|\.ipynb_checkpoints)/|(?:^|/)(?:mlflow\.db(?:-\w+)?|dvc\.lock)$"
)
_OF_DVC = "dvc.lock"
"""DVC's note of what its stages were given and made. It writes it before the stage that sweeps, so that in `dvc repro`
no tree would ever be that of its commit; what a trial reads of all that is in the record's inputs, by content."""
_PACKAGE = Path(__file__).resolve().parents[1]
_DIFF = (
    "diff-index", "--cached", "--patch", "--binary", "--full-index",
    "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What differs from the commit and is not in the patch."""

    path: str
    """Relative to the root."""
    bytes: int
    why: str
    """`size`, `secret`, `repository` (one inside this one) or `unreadable`."""


@dataclass(frozen=True, slots=True)
class Code:
    """A working tree at one moment."""

    root: Path
    package_sha256: str
    """Of this package's own sources."""
    commit: str | None = None
    branch: str | None = None
    remote: str | None = None
    patch: bytes = b""
    """Empty: there is no difference, or no repository."""
    changed: tuple[str, ...] = ()
    """What differs, as `M path`, `A path`, `D path`, `T path`."""
    left_out: tuple[LeftOut, ...] = field(default=())
    problem: str = ""
    """Why there is no more to say: no git, no repository."""

    @property
    def dirty(self) -> bool:
        """Whether the commit alone does not give this tree; so where there is none."""
        return bool(self.commit is None or self.patch or self.left_out)

    def record(self) -> dict[str, Any]:
        """The section `code` of the lineage record."""
        patch = {
            "file": document.PATCH,
            "sha256": hashlib.sha256(self.patch).hexdigest(),
            "bytes": len(self.patch),
        }
        return {
            "root": str(self.root),
            "commit": self.commit,
            "branch": self.branch,
            "remote": self.remote,
            "dirty": self.dirty,
            "patch": patch if self.patch else None,
            "left_out": [{"path": f.path, "bytes": f.bytes, "why": f.why} for f in self.left_out],
            "package_sha256": self.package_sha256,
        }


def home() -> Path:
    """The folder whose repository is the code: this package's checkout; the current folder where it is installed."""
    return Path.cwd() if package.installed() else package.ROOT


def capture(root: Path | None = None, exclude: Iterable[Path] = ()) -> Code:
    """The repository around a folder, by default around `home()`. Takes some ten milliseconds where little differs.

    Args:
        root: a folder.
        exclude: files and folders of which nothing untracked is taken: where the sweeps and the tracking store are.
    """
    folder = (root or home()).resolve()
    package = package_sha256()
    try:
        git = _Git(folder)
    except _GitError as error:
        return Code(folder, package, problem=str(error))
    try:
        with tempfile.TemporaryDirectory(prefix="sweeper-code-") as scratch:
            patch, changed, left_out = _difference(git.aside(Path(scratch)), [p.resolve() for p in exclude])
    except (_GitError, OSError) as error:
        return Code(
            git.top,
            package,
            git.commit,
            git.branch(),
            git.remote(),
            left_out=(LeftOut(".", 0, "unreadable"),),
            problem=f"the difference to the commit could not be taken: {error}",
        )
    return Code(git.top, package, git.commit, git.branch(), git.remote(), patch, changed, left_out)


def refuse_dirty(code: Code) -> None:
    """What `lineage.strict=true` asks for.

    Raises:
        RequestError: the commit alone does not give the tree; names the files.
    """
    if not code.dirty:
        return
    names = [*code.changed, *(f"? {f.path}" for f in code.left_out)]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    if code.commit is None:
        what = f"lineage.strict=true, and the code in {code.root} has no commit: {code.problem or 'none was made yet'}"
    else:
        what = f"lineage.strict=true, and the code differs from its commit {code.commit[:12]}: "
        what += f"{', '.join(names[:5])}{more} (in {code.root})"
    raise RequestError(
        Problem(
            what,
            valid="a tree without changes and untracked files",
            fix="git add -A && git commit   (or lineage.strict=false: the difference is recorded as a patch)",
            key="lineage.strict",
        )
    )


@cache
def package_sha256() -> str:
    """The digest of this package's sources, as of a folder."""
    return manifest.digest(sources(_PACKAGE))


def sources(folder: Path) -> list[hashes.File]:
    """The sources in a folder: relative path, bytes, SHA-256; what Python or an editor left is not among them."""
    names = [n for n in hashes.walk(folder) if n.endswith((".py", ".yaml", ".json", ".sh", "py.typed"))]
    paths = [folder / n for n in names]
    return [(n, p.stat().st_size, hashes.sha256(p)) for n, p in zip(names, paths, strict=True)]


def without_credentials(address: str) -> str:
    """A repository's address without password, token and query; an SSH user's name (`git@`) stays."""
    scheme, found, rest = address.partition("://")
    if not found:
        return address.partition("?")[0] if ":" in address else address
    user, at, place = rest.rpartition("@")
    keep = at and scheme.endswith("ssh") and ":" not in user
    return f"{scheme}://{f'{user}@' if keep else ''}{place.partition('?')[0].partition('#')[0]}"


# --- git ---------------------------------------------------------------------------------------------------------


class _GitError(Exception):
    """git said no, in one line."""


class _Git:
    """The repository around a folder; reads it only."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        # What a hook or a caller set points at a repository of its own.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k.startswith("GIT_CONFIG")}
        self._env = {**inherited, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", **(env or {})}
        self.top = folder
        told = self.run(
            "rev-parse", "--path-format=absolute", "--show-toplevel", "--git-path", "index", "--git-path", "objects"
        )
        top, index, objects = os.fsdecode(told).splitlines()
        self.top, self.index, self.objects = Path(top), Path(index), Path(objects)
        try:
            self.commit: str | None = self.text("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        except _GitError:
            self.commit = None

    def run(self, *args: str, given: bytes = b"") -> bytes:
        """Its output; _GitError where it fails."""
        command = ["git", "-C", str(self.top), "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *args]
        try:
            done = subprocess.run(command, input=given, capture_output=True, env=self._env, check=False)
        except OSError as error:
            raise _GitError(f"git cannot be run: {error.strerror}") from error
        if done.returncode:
            lines = os.fsdecode(done.stderr).strip().splitlines()
            raise _GitError(
                lines[0].removeprefix("fatal: ") if lines else f"git {args[0]} ended with {done.returncode}"
            )
        return done.stdout

    def text(self, *args: str) -> str:
        return os.fsdecode(self.run(*args)).strip()

    def branch(self) -> str | None:
        """None on a detached head."""
        try:
            return self.text("symbolic-ref", "--quiet", "--short", "HEAD")
        except _GitError:
            return None

    def remote(self) -> str | None:
        """The address of `origin`, or of the first there is."""
        try:
            lines = self.text("config", "--get-regexp", r"^remote\..*\.url$").splitlines()
        except _GitError:
            return None
        found = dict(line.partition(" ")[::2] for line in lines)
        address = found.get("remote.origin.url") or next(iter(found.values()), "")
        return without_credentials(address) if address else None

    def aside(self, scratch: Path) -> _Git:
        """The same repository with an index and new objects of its own, which go with `scratch`."""
        if self.index.exists():
            shutil.copy2(self.index, scratch / "index")  # with what it knows of each file: no file is read twice
        (scratch / "objects").mkdir()
        others = os.environ.get("GIT_ALTERNATE_OBJECT_DIRECTORIES")
        return _Git(
            self.top,
            {
                "GIT_INDEX_FILE": str(scratch / "index"),
                "GIT_OBJECT_DIRECTORY": str(scratch / "objects"),
                "GIT_ALTERNATE_OBJECT_DIRECTORIES": os.pathsep.join([str(self.objects), *([others] if others else [])]),
            },
        )


def _difference(git: _Git, exclude: Sequence[Path]) -> tuple[bytes, tuple[str, ...], tuple[LeftOut, ...]]:
    """Patch, what changed, what is left out. `git` is aside."""
    untracked = [p for p in _names(git.run("ls-files", "--others", "--exclude-standard", "-z")) if p]
    taken, left_out = _sorted_out(git.top, _ours_removed(git.top, untracked, exclude))
    git.run("add", "--update", "--ignore-errors", ".")
    git.run("update-index", "--add", "--remove", "-z", "--stdin", given=b"".join(os.fsencode(p) + b"\0" for p in taken))
    left_out += [LeftOut(path, 0, "repository") for path in _edited_submodules(git)]
    base = git.commit or git.text("hash-object", "-t", "tree", "/dev/null")
    listed = _names(git.run("diff-index", "--cached", "--name-status", "--no-renames", "-z", base))
    changed = {p: s for s, p in zip(listed[::2], listed[1::2], strict=False) if PurePosixPath(p).name != _OF_DVC}
    new = set(taken)
    for path in changed:
        if _is_secret(path) or _holds_secret(git.top / path):
            left_out.append(LeftOut(path, _size(git.top / path), "secret"))
    patch = _patch(git, base, changed, left_out)
    text = os.fsdecode(patch)
    if mask(text) != text:  # a line that was taken away, or stands beside a change
        for path in changed:
            own = os.fsdecode(git.run(*_DIFF, base, "--", f":(top,literal){path}"))
            if mask(own) != own and not any(f.path == path for f in left_out):
                left_out.append(LeftOut(path, _size(git.top / path), "secret"))
        patch = _patch(git, base, changed, left_out)
    without = {f.path for f in left_out}
    said = tuple(f"{'?' if p in new else status} {p}" for p, status in sorted(changed.items()) if p not in without)
    return patch, said, tuple(sorted(left_out, key=lambda f: f.path))


def _edited_submodules(git: _Git) -> list[str]:
    """Submodules with changes or files of their own that are in no commit; a patch has but their commit's number."""
    if not (git.top / ".gitmodules").exists():
        return []
    told = _names(git.run("status", "--porcelain=v2", "-z", "--untracked-files=no", "--ignore-submodules=none"))
    entries = [line.split(" ", 8) for line in told if line.startswith("1 ")]  # git-status(1): 1 XY sub ... path
    return [e[8] for e in entries if e[2][0] == "S" and e[2][2:] != ".."]


def _patch(git: _Git, base: str, changed: Mapping[str, str], left_out: Iterable[LeftOut]) -> bytes:
    without = [f":(top,exclude,literal){f.path}" for f in left_out if f.path in changed]
    return git.run(*_DIFF, base, "--", ":(top)", f":(top,exclude,glob)**/{_OF_DVC}", *without)


def _names(listed: bytes) -> list[str]:
    return [os.fsdecode(name) for name in listed.split(b"\0")[:-1]]


def _ours_removed(top: Path, paths: Sequence[str], exclude: Sequence[Path]) -> list[str]:
    """Without sweeps, tracking stores, interpreters' environments and caches: they are no code."""
    roots = [os.path.relpath(p, top) for p in exclude if p.is_relative_to(top) and p != top]
    for path in paths:
        name, parent = PurePosixPath(path).name, str(PurePosixPath(path).parent)
        if name in ("sweep.json", "pyvenv.cfg") and parent != ".":
            roots.append(parent)
            if name == "sweep.json":  # the index of the store that it lies in
                roots += [f"{PurePosixPath(parent).parent}/index.db{end}" for end in ("", "-wal", "-shm", ".lock")]
    ours = set(map(os.path.normpath, roots))

    def is_ours(path: str) -> bool:
        at = path.rstrip("/")
        return bool(_NOISE.search(path)) or at in ours or any(str(p) in ours for p in PurePosixPath(at).parents)

    return [p for p in paths if not is_ours(p)]


def _sorted_out(top: Path, untracked: Iterable[str]) -> tuple[list[str], list[LeftOut]]:
    """Untracked files: those that go into the patch, and those that do not."""
    sizes: dict[str, int] = {}
    left_out: list[LeftOut] = []
    for path in untracked:
        at = top / path
        try:
            facts = at.lstat()
        except OSError:
            continue  # gone since it was listed
        if path.endswith("/"):
            left_out.append(LeftOut(path, 0, "repository"))
        elif not stat.S_ISLNK(facts.st_mode) and not os.access(at, os.R_OK):
            left_out.append(LeftOut(path, facts.st_size, "unreadable"))
        elif _is_secret(path):
            left_out.append(LeftOut(path, facts.st_size, "secret"))
        else:
            sizes[path] = facts.st_size
    total = sum(sizes.values())
    for path in sorted(sizes, key=lambda p: -sizes[p]):
        if sizes[path] <= LARGEST and total <= MOST:
            break
        total -= sizes[path]
        left_out.append(LeftOut(path, sizes.pop(path), "size"))
    return sorted(sizes), left_out


def _is_secret(path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in NO_SECRETS):
        return False
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in SECRETS)


def _holds_secret(path: Path) -> bool:
    """Whether the value of a secret variable is in a file."""
    try:
        text = str(path.readlink()) if path.is_symlink() else os.fsdecode(path.read_bytes())
    except OSError:
        return False
    return mask(text) != text


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
