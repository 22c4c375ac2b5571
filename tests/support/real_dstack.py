"""A real dstack: an environment of its own with dstack and its server, made once, and a server in it on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import yaml

from sweeper import cache

PINS = Path(__file__).resolve().parents[1] / "clusters" / "dstack-requirements.txt"
TOKEN = "token-of-a-test"
START_S = 600
"""A server that starts takes 15 s on an idle machine."""


@lru_cache
def python() -> Path:
    """The interpreter of that environment, $SWEEPER_TEST_DSTACK if it is set; made on the first call.

    Skips the test where dstack cannot be installed.
    """
    if given := os.environ.get("SWEEPER_TEST_DSTACK"):
        return Path(given)
    digest = hashlib.sha256(PINS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    made = cache.root().parent / "sweeper-tests" / f"dstack-{digest}"
    with cache.building(made.with_suffix(".made")) as aside:
        if aside is not None:
            command = [sys.executable, "-m", "venv", "--clear", str(made)]
            subprocess.run(command, check=True, capture_output=True)
            pip = [str(made / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            done = subprocess.run([*pip, "--no-deps", "-r", str(PINS)], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"dstack cannot be installed here: {done.stderr[-300:]}")
    return made / "bin" / "python"


PARSE = """
import json, sys, yaml
from dstack._internal.core.errors import ConfigurationError
from dstack._internal.core.models.configurations import parse_apply_configuration
said = []
for text in json.load(sys.stdin):
    try:
        made = parse_apply_configuration(yaml.safe_load(text))
        said.append({"type": type(made).__name__, "made": json.loads(made.model_dump_json())})
    except ConfigurationError as error:
        said.append({"error": str(error)})
json.dump(said, sys.stdout)
"""


def parsed(*texts: str) -> list[dict[str, object]]:
    """What dstack's own parser makes of those files, in order: {"type", "made"} or {"error"}."""
    done = subprocess.run(
        [str(python()), "-c", PARSE], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs."""

    url: str
    home: Path
    """Holds the .dstack/config.yml that names it."""


@contextmanager
def server(home: Path) -> Iterator[Running]:
    """A server of the project `main`, without backends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    env = {
        **os.environ,
        "HOME": str(home),
        "DSTACK_SERVER_DIR": str(home / "server"),
        "DSTACK_SERVER_ADMIN_TOKEN": TOKEN,
        "DO_NOT_TRACK": "1",
    }
    command = [str(python().parent / "dstack"), "server", "--host", "127.0.0.1", "--port", str(port), "-y"]
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + START_S
        while not _answers(url):
            assert process.poll() is None, (home / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        folder = home / ".dstack"
        folder.mkdir(exist_ok=True)
        known = {"name": "main", "url": url, "token": TOKEN, "default": True}
        (folder / "config.yml").write_text(yaml.safe_dump({"projects": [known]}))
        yield Running(url, home)
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthcheck", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
