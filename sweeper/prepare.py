"""Makes what trials need before they start, once: `python -m sweeper.prepare '<builds as JSON>'`.

Runs in the engine's interpreter, which has torch and the data packages. Guarantees: what exists is left alone; a folder
appears whole or not at all; running twice at once is safe; SIGTERM and Ctrl-C leave nothing half-made behind. Every
line on stdout is a JSON object with `event`: `building`, `progress`, `built`, `exists`, or `error`, which is the last,
with a `message` of one line and exit code 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import TextIOBase
from pathlib import Path
from typing import Any, NoReturn

from sweeper import cache, environments, models, package
from sweeper.errors import Problem, RequestError, SweeperError

GRACE_S = 5.0
"""Seconds that the builder has to remove what is half-made, when it is stopped."""


@dataclass(frozen=True, slots=True)
class Build:
    """One folder to make."""

    what: str
    """`model` or `environment`."""
    kind: str
    """Which one: `tiny`, `gsm8k`."""
    spec: dict[str, Any]
    """All that the content depends on."""
    path: str
    """The folder, absolute."""


def missing(configs: Iterable[Mapping[str, Any]], cache_root: Path | None = None) -> list[Build]:
    """What has to be made before these configs can run, each once; empty when all is there.

    Only for configs without problems. A model path or training file that the user typed takes the place of ours, which
    is then not made.
    """
    return absent(every(configs, cache_root))


def every(configs: Iterable[Mapping[str, Any]], cache_root: Path | None = None) -> list[Build]:
    """What these configs take from the cache, each once, made or not."""
    return [*{b.path: b for config in configs for b in needed(config, cache_root)}.values()]


def absent(builds: Iterable[Build]) -> list[Build]:
    """Those that are not made yet."""
    return [b for b in builds if not Path(b.path).is_dir()]


def needed(config: Mapping[str, Any], cache_root: Path | None = None) -> list[Build]:
    """What this config takes from the cache, made or not."""
    builds = []
    spec, folder = models.build_spec(config), models.build_folder(config, cache_root)
    if spec and folder and config["actor_rollout_ref"]["model"].get("path") in (None, str(folder)):
        builds.append(Build("model", config["model"]["build"], spec, str(folder)))
    environment = config["environment"]
    if environments.is_built(environment) and _uses_ours(config, cache_root):
        own = environments.folder_of(environment, cache_root)
        builds.append(Build("environment", environment["kind"], environments.spec_of(environment), str(own)))
    return builds


def check(builds: Iterable[Build], *, contents: bool = True) -> None:
    """What is built already is as it was built: it is data and models that no trial may take otherwise.

    Args:
        contents: compare them too, each read once a content (sweeper/lineage/hashes.py); else only what is missing.

    Raises:
        RequestError: The files that are missing or have another content.
        SweeperError: One cannot be read.
    """
    from sweeper.lineage.hashes import Hashes

    problems, hashes = [], Hashes()
    for build in builds:
        folder = Path(build.path)
        if not folder.is_dir():
            continue
        for rel, size, sha in cache.built(folder) or ():
            path = folder / rel
            if not path.is_file():
                wrong = "is missing"
            elif contents and (now := path.stat().st_size) != size:
                wrong = f"has {now} bytes, {size} were built"
            elif contents and (other := hashes.file(path)) != sha:
                wrong = f"has other content than was built (sha256 {other[:12]}, was {sha[:12]})"
            else:
                continue
            fix = f"rm -r {shlex.quote(str(folder))}   (it is built again)"
            problems.append(
                Problem(f"{path} {wrong}", valid=f"the {build.what} as it was built", fix=fix, key=build.what)
            )
    if problems:
        raise RequestError(problems)


def _uses_ours(config: Mapping[str, Any], cache_root: Path | None) -> bool:
    given = config["data"].get("train_files")
    first = given[0] if isinstance(given, list) and given else given
    return not first or Path(str(first)).parent == environments.folder_of(config["environment"], cache_root)


def command(builds: Iterable[Build], python: str) -> list[str]:
    """The command that makes them. The interpreter must find this package: see `environment`."""
    return [python, "-m", "sweeper.prepare", json.dumps([asdict(b) for b in builds])]


def environment(engine_env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of that command: this one, the engine's own variables, and this package on the path."""
    env = {**os.environ, **(engine_env or {})}
    return {**env, "PYTHONPATH": package.pythonpath(package.ROOT, env)}


def run(
    builds: Sequence[Build],
    python: str,
    say: Callable[[str], None],
    engine_env: Mapping[str, str] | None = None,
) -> None:
    """Make them in the engine's interpreter; `say` is given a line of progress now and then.

    Raises:
        SweeperError: One could not be made; nothing half-made is left in its place.
    """
    if not builds:
        return
    try:
        child = subprocess.Popen(
            command(builds, python),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment(engine_env),
        )
    except OSError as error:
        raise RequestError(
            Problem(
                f"engine.python={python} cannot be started: {error.strerror}",
                valid="the interpreter of an environment with the engine's packages, or null: this one",
                fix="engine.python=/path/to/venv/bin/python",
                key="engine.python",
            )
        ) from error
    failure, other = "", []
    try:
        noise = _drain(child)
        for line in child.stdout or ():
            event = _event(line)
            if event.get("event") == "error":
                failure = str(event["message"])
            elif text := event.get("text"):
                say(str(text))
            elif not event:
                other.append(line.strip())
        code = child.wait()
    except BaseException:
        _end(child)
        raise
    if code:
        last = [line for line in [*other, *noise()] if line]
        raise SweeperError(failure or f"preparing failed with code {code}: {last[-1] if last else 'no word why'}")


def _end(child: subprocess.Popen[str]) -> None:
    """Ask it to end, so that it removes what is half-made; kill it only when it does not."""
    try:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
    finally:  # a second Ctrl-C does not wait
        child.kill()
        child.wait()


def _drain(child: subprocess.Popen[str]) -> Callable[[], list[str]]:
    """Reads stderr aside, so that a chatty library cannot block the child."""
    import threading

    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(s.strip() for s in child.stderr or ()), daemon=True)
    reader.start()

    def end() -> list[str]:
        reader.join(5)
        return lines

    return end


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


class _Progress(TextIOBase):
    """Turns what a build prints into events, line by line."""

    def __init__(self, emit: Callable[..., None]) -> None:
        self._emit, self._rest = emit, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._emit("progress", text=line.strip())
        return len(text)


def main(argv: Sequence[str]) -> int:
    """Make each build of the JSON list in `argv[0]`; returns the exit code."""
    out = sys.stdout

    def emit(event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}), file=out, flush=True)

    try:
        builds = [Build(**b) for b in json.loads(argv[0])]
    except (IndexError, ValueError, TypeError) as error:
        emit("error", message=f"sweeper.prepare needs a JSON list of builds: {error}")
        return 2
    for build in builds:
        name = f"{build.what} {build.kind}"
        if Path(build.path).is_dir():
            emit("exists", path=build.path)
            continue
        emit("building", text=f"{name}: building once", path=build.path)
        started = time.monotonic()
        try:
            with contextlib.redirect_stdout(_Progress(emit)):
                _make(build)
        except SweeperError as error:
            emit("error", message=f"{name}: {error}", path=build.path)
            return 1
        except Exception as error:
            traceback.print_exc()
            said = (str(error).splitlines() or [""])[0]
            emit("error", message=f"{name} could not be built in {build.path}: {type(error).__name__}: {said}")
            return 1
        seconds = round(time.monotonic() - started, 1)
        emit("built", text=f"{name}: built in {seconds} s", path=build.path, seconds=seconds)
    return 0


def _make(build: Build) -> None:
    if build.what == "environment":
        environments.build(build.kind, Path(build.path), build.spec)
    elif build.what == "model" and build.kind == "tiny":
        from sweeper.models import tiny

        tiny.build(Path(build.path), build.spec)
    else:
        raise SweeperError("there is no recipe for it")


def _end_whole(number: int, _: object) -> NoReturn:
    """Leave by an exception, so that what is half-made is removed; a second signal does not interrupt that."""
    for each in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches both processes, and the other one sends SIGTERM too
        signal.signal(each, lambda *_: None)  # not SIG_IGN: Python complains of one that is on its way already
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _end_whole)
    signal.signal(signal.SIGTERM, _end_whole)
    sys.exit(main(sys.argv[1:]))
