"""Content by its MD5, from the caches and remotes of a DVC repository, whatever is tracked or committed there today.

Guarantees: what is put at the target has the MD5 that was asked for, a folder's listing and each of its files too, so
that a damaged copy in a cache gives way to the next place; the caches (DVC's 3.x layout and the one before) come first,
then the remotes, the default one before the others; the target is there whole or not at all; repository, cache and
remotes are only read. DVC is imported by a process of its own (this file, run as a script), and only where the
repository's default cache does not have it all; the script needs nothing of this project.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

THREADS = 8
"""Files that are fetched at once."""
CACHE = Path(".dvc/cache")
_DIR = ".dir"


def bring(
    md5: str, path: Path, tracked: Path | None, repositories: Sequence[Path], target: Path, *, files: int = 1
) -> str:
    """Put the content that `path` had at the target; why it could not be, empty where it is there.

    Args:
        md5: of the tracked file, or with `.dir` of a tracked folder's listing.
        path: may be in that folder.
        tracked: the path that DVC tracks; None: some parent of `path`, or itself.
        repositories: whose DVC may have it, the likeliest first.
        files: how many `path` had, which tells two folders of a listing apart.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetched-", dir=target.parent) as scratch:
        got = Path(scratch) / "object"
        if why := _objects({got: md5}, repositories).get(got, ""):
            return why
        if md5.endswith(_DIR):
            try:
                listing = {str(e["relpath"]): str(e["md5"]) for e in json.loads(got.read_bytes())}
            except (ValueError, KeyError, TypeError) as error:
                return f"DVC's listing {md5} cannot be read: {error}"
            members = _members(listing, path, tracked, files)
            if not members:
                return f"DVC's listing {md5} has no {path.name}"
            got = Path(scratch) / "members"
            missing = _objects({got / name if name else got: oid for name, oid in members.items()}, repositories)
            for place, why in missing.items():
                return f"{place.relative_to(got)}: {why}" if place != got else why
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        got.replace(target)
    return ""


def _members(listing: Mapping[str, str], path: Path, tracked: Path | None, files: int) -> dict[str, str]:
    """What of a folder's listing is below a path: relative path -> MD5; the one name of a file itself is empty."""
    if tracked is not None and path.is_relative_to(tracked):
        ends = [path.relative_to(tracked).as_posix()]
    else:  # a dvc.lock says which folder it is, its record does not: the longest end of the path that the listing has
        ends = ["/".join(path.parts[at:]) or "." for at in range(1, len(path.parts) + 1)]
    found: list[dict[str, str]] = []
    for end in ends:
        below = {name.removeprefix(f"{end}/"): name for name in listing if end == "." or name.startswith(f"{end}/")}
        if end in listing:
            found.append({"": listing[end]})
        elif below:
            found.append({name: listing[whole] for name, whole in below.items()})
    return next((each for each in found if len(each) == files), found[0] if found else {})


def _objects(wanted: Mapping[Path, str], repositories: Sequence[Path]) -> dict[Path, str]:
    """Put each object at its place; why not, of those that could not be."""
    left = {place: md5 for place, md5 in wanted.items() if not _cached(place, md5, repositories)}
    whys: dict[Path, str] = {}
    for repository in repositories if left else ():
        told = _asked(repository, left)
        for place in list(left):
            why = told.get(str(place), "DVC said nothing of it")
            if why:
                whys.setdefault(place, why)
            else:
                del left[place]
        if not left:
            break
    return {place: whys.get(place, "there is no repository of DVC") for place in left}


def _cached(place: Path, md5: str, repositories: Sequence[Path]) -> bool:
    """Whether it was in the default cache of one of them, sound; no DVC is needed for that."""
    for repository in repositories:
        cache = repository / CACHE
        for at, legacy in ((cache / "files" / "md5", False), (cache, True)):
            source = at / md5[:2] / md5[2:]
            if source.is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, place)
                if _is(place, md5, legacy=legacy):
                    return True
                place.unlink()
    return False


def _asked(repository: Path, wanted: Mapping[Path, str]) -> dict[str, str]:
    """What the script says of each place: empty, or why not."""
    ended = subprocess.run(
        [sys.executable, "-P", __file__],
        input=json.dumps({"repository": str(repository), "wanted": {str(p): md5 for p, md5 in wanted.items()}}),
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "DVC_NO_ANALYTICS": "1"},
        check=False,
    )
    lines = ended.stdout.strip().splitlines()
    try:
        told: dict[str, str] = json.loads(lines[-1])
    except (ValueError, IndexError):
        said = (ended.stderr.strip().splitlines() or ["no word why"])[-1]
        told = {str(place): f"DVC could not be asked in {repository}: {said}" for place in wanted}
    return told


def _is(place: Path, md5: str, *, legacy: bool) -> bool:
    """Whether a file is the object of that name. Before 3.0 DVC hashed text with its line ends made Unix's."""
    oid = md5.removesuffix(_DIR)
    with place.open("rb") as file:
        if hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == oid:
            return True
    unix = place.read_bytes().replace(b"\r\n", b"\n") if legacy else b""
    return legacy and hashlib.md5(unix, usedforsecurity=False).hexdigest() == oid


# --- in a process of its own ---


def main() -> int:
    """Answer the question on stdin: {"repository", "wanted": {place: md5}} -> {place: why not}."""
    asked = json.load(sys.stdin)
    from dvc.repo import Repo

    repo: Any = Repo(asked["repository"], config={"core": {"no_scm": True}})  # its Git, if any, has no say
    stores = list(_stores(repo))
    places = [each for each in stores if not isinstance(each[0], Exception)]
    away = [f"{name}: {_line(store)}" for store, name, _ in stores if isinstance(store, Exception)]
    with ThreadPoolExecutor(THREADS) as pool:
        whys = pool.map(lambda item: _fetched(Path(item[0]), item[1], places, away), asked["wanted"].items())
        answer = dict(zip(asked["wanted"], whys, strict=True))
    print("\n" + json.dumps(answer), flush=True)
    return 0


def _stores(repo: Any) -> Iterator[tuple[Any, str, bool]]:
    """Every store of objects, or why it cannot be opened; its name; whether it has the layout from before 3.0."""
    yield repo.cache.local, "the cache", False
    yield repo.cache.legacy, "the cache", True
    default = repo.config["core"].get("remote")
    for name in sorted(repo.config["remote"], key=lambda name: (name != default, name)):
        try:
            remote = repo.cloud.get_remote(name)
            yield remote.odb, f"the remote {name}", False
            yield remote.legacy_odb, f"the remote {name}", True
        except Exception as error:  # of any cloud's client
            yield error, f"the remote {name}", False


def _fetched(place: Path, md5: str, stores: Sequence[tuple[Any, str, bool]], away: Sequence[str]) -> str:
    """Put the object at its place; why not."""
    looked, whys = [], list(away)
    place.parent.mkdir(parents=True, exist_ok=True)
    for store, name, legacy in stores:
        looked.append(name)
        try:
            store.fs.get_file(store.oid_to_path(md5), str(place))
            if _is(place, md5, legacy=legacy):
                return ""
            whys.append(f"what {name} has is not sound")
        except FileNotFoundError:
            pass
        except Exception as error:  # as above: the next place may have it
            whys.append(f"{name}: {_line(error)}")
        place.unlink(missing_ok=True)
    said = f"the object {md5} is not in {', '.join(dict.fromkeys(looked))}"
    return "; ".join([said, *dict.fromkeys(whys)])


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    sys.exit(main())
