"""What an interpreter has installed: `python probe.py ENGINE` prints JSON; also called in our own process.

Guarantees: nothing that is installed is imported, so it takes milliseconds; only the standard library, Python 3.9 on,
and nothing of this project, for it runs in the engine's interpreter, which need not have it.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_NAMED = re.compile(r"(?P<name>.+?)-(?P<version>[^-]+)(?:-py\d[.\d]*)?\.(?:dist|egg)-info")
_CUDA = re.compile(r"^cuda\b[^=]*= *['\"]([^'\"]+)['\"]", re.MULTILINE)


def probe(engine: str) -> dict[str, Any]:
    """`python`, `platform`, `packages` (name -> version), `commit` of the engine, `cuda` that torch was built for."""
    packages: dict[str, str] = {}
    where: dict[str, Path] = {}
    # Importing setuptools puts the packages that it carries along on the path: nobody installed them.
    for entry in (e for e in sys.path if Path(e).name != "_vendor"):
        for path in _metadata(Path(entry or ".")):
            name, version = _named(path)
            if name and name not in packages:  # the first on the path is the one that is imported
                packages[name], where[name] = version, path
    torch = next((p for e in sys.path if (p := Path(e or ".") / "torch" / "version.py").is_file()), None)
    cuda = _CUDA.search(_text(torch)) if torch else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(sorted(packages.items())),
        "commit": _commit(where.get(_normal(engine))),
        "cuda": cuda[1] if cuda else None,
    }


def _metadata(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.name.endswith((".dist-info", ".egg-info")))
    except OSError:
        return []


def _named(path: Path) -> tuple[str, str]:
    """Name and version of a distribution, by its folder's name; where that lacks the version, by what is in it."""
    if found := _NAMED.fullmatch(path.name):
        return _normal(found["name"]), found["version"]
    text = _text(path / "PKG-INFO")
    fields = dict(line.partition(": ")[::2] for line in text.partition("\n\n")[0].splitlines())
    return _normal(fields.get("Name", "")), fields.get("Version", "")


def _normal(name: str) -> str:
    """As PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _commit(path: Path | None) -> str | None:
    """The commit that a distribution was installed from (PEP 610), or that of the checkout which it is."""
    try:
        told = json.loads(_text(path / "direct_url.json")) if path else {}
    except ValueError:
        return None
    if commit := (told.get("vcs_info") or {}).get("commit_id"):
        return str(commit)
    url = str(told.get("url", ""))
    if not url.startswith("file://") or not (told.get("dir_info") or {}).get("editable"):
        return None
    try:
        done = subprocess.run(
            ["git", "-C", url[len("file://") :], "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.path.pop(0)  # this file's own folder
    print(json.dumps(probe(sys.argv[1])))
