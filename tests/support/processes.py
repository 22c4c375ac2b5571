"""What a test asks about processes that it did not start itself; and the commands of this checkout as processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]


def sweeper(folder: Path, *arguments: str, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    """`sweeper ...`, typed in that folder."""
    return subprocess.run(
        [sys.executable, "-m", "sweeper.cli.main", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def left_over(folder: Path) -> list[str]:
    """Processes that work in the folder or carry its name, after a moment for the kernel."""
    found: list[str] = []
    for _ in range(20):
        found = []
        for process in psutil.process_iter():
            try:
                where = [process.cwd(), *process.cmdline(), *process.environ().values()]
            except psutil.Error:
                continue
            if process.pid != os.getpid() and any(str(folder) in w for w in where):
                found.append(f"{process.pid} {process.name()}")
        if not found:
            break
        time.sleep(0.5)
    return found


def wait_for(path: Path, text: str, process: subprocess.Popen[Any], timeout: float = 240) -> None:
    deadline = time.monotonic() + timeout
    while text not in (path.read_text() if path.exists() else ""):
        assert process.poll() is None, path.read_text()
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.2)
