"""What each algorithm changes in verl's defaults, as readable files. SWEEPER_UPDATE_GOLDEN=1 writes them anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeper.config import tree
from sweeper.config.compose import compose_points
from sweeper.config.hydra_app import initialized
from sweeper.config.space import read
from sweeper.engines.base import Shape
from sweeper.engines.verl import base_config
from sweeper.engines.verl.engine import VerlEngine
from sweeper.trial.identity import OURS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CASES = {
    "tiny_cpu": ([], Shape("local", "cpu", nodes=1, gpus_per_node=2, gpu_memory_gib=8)),
    "qwen7b_two_nodes": (
        ["model=qwen7b", "cluster=two_nodes_8gpu", "environment=gsm8k", "data.train_files=train.parquet"],
        Shape("two_nodes_8gpu", "cuda", nodes=2, gpus_per_node=8, gpu="H100", gpu_memory_gib=79.6),
    ),
}
ALGORITHMS = sorted(p.stem for p in (ROOT / "conf" / "algorithm").glob("*.yaml"))


def difference(case: str, algorithm: str) -> dict[str, Any]:
    """The engine's keys whose values are not verl's defaults, by dotted key."""
    lines, shape = CASES[case]
    with initialized():
        (item,) = compose_points(read([f"algorithm={algorithm}", *lines]).arms)
    assert VerlEngine().bind(item.config, item.explicit, shape) == []
    defaults = dict(tree.leaves(base_config.load("dp")))
    config = {k: v for k, v in item.config.items() if k not in OURS}
    return {
        k: v for k, v in tree.leaves(config) if not derived(k, defaults) and (k not in defaults or defaults[k] != v)
    }


def derived(key: str, defaults: dict[str, Any]) -> bool:
    """Whether verl computes the key, or what it lies in, from one that is listed itself."""
    parts = key.split(".")
    above = (defaults.get(".".join(parts[:count])) for count in range(1, len(parts) + 1))
    return any(isinstance(default, str) and "${" in default for default in above)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, algorithm: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path))
    text = yaml.safe_dump(difference(case, algorithm), sort_keys=True, width=110)
    text = text.replace(str(tmp_path), "<cache>").replace(str(ROOT), "<repo>")
    path = HERE / case / f"{algorithm}.yaml"
    if os.environ.get("SWEEPER_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"if this is meant: SWEEPER_UPDATE_GOLDEN=1 pytest {HERE.relative_to(ROOT)}"


def test_there_is_no_golden_file_without_its_algorithm() -> None:
    assert {p.stem for case in CASES for p in (HERE / case).glob("*.yaml")} == set(ALGORITHMS)
