"""`python sweep.py -m model=qwen7b cluster=two_nodes_8gpu tp=4` is what two documents start by hand: RAGEN on two nodes
of dstack (seed 000) and a launch script for a head and a worker (seed 001). Each of their settings has a row here: what
it is called today and what it is set to, or why there is nothing to set. docs/migrate.md says the same to people.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sweeper.clusters import shape
from sweeper.clusters.dstack import task
from sweeper.config import tree
from sweeper.config.compose import compose_points
from sweeper.config.hydra_app import initialized
from sweeper.config.space import read
from sweeper.engines.base import Gang, Job
from sweeper.engines.verl.engine import VerlEngine
from sweeper.errors import RequestError

SEEDS = Path(__file__).resolve().parents[3] / "shared" / "seeds"
LINE = ["model=qwen7b", "cluster=two_nodes_8gpu", "tp=4"]
MODEL = "Qwen/Qwen2.5-7B-Instruct"


@dataclass(frozen=True, slots=True)
class Now:
    """What became of a setting."""

    key: str
    """Today's key."""
    value: Any
    typed: tuple[str, ...] = ()
    """What is typed beside the line, where the line alone means the same by another value, and why."""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Gone:
    """A setting that there is nothing to set for."""

    why: str


ROLLOUT, ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
TRAINING: dict[str, Now | Gone] = {
    "system.CUDA_VISIBLE_DEVICES": Gone("a gang has all GPUs of its nodes; each rank sees its own"),
    "model_path": Now("actor_rollout_ref.model.path", MODEL),
    "trainer.experiment_name": Gone("the sweep's and the trial's name, so that no two runs have the same"),
    "trainer.n_gpus_per_node": Now("trainer.n_gpus_per_node", 8),
    "trainer.nnodes": Now("trainer.nnodes", 2),
    "micro_batch_size_per_gpu": Now(
        f"{ACTOR}.ppo_micro_batch_size_per_gpu",
        2,
        (
            f"{ACTOR}.use_dynamic_bsz=false",
            f"{ACTOR}.ppo_micro_batch_size_per_gpu=2",
            f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=2",
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=2",
        ),
        "the model sets micro-batches by tokens: the same gradient, summed over other portions of the batch",
    ),
    "trainer.default_local_dir": Gone(
        "the trial's folder in the store, which all nodes share: store=/checkpoints/runs"
    ),
    "trainer.save_freq": Now("trainer.save_freq", 50),
    f"{ROLLOUT}.tp_size_check": Gone("vLLM and the plan check the tensor parallel size"),
    f"{ROLLOUT}.tensor_model_parallel_size": Now(f"{ROLLOUT}.tensor_model_parallel_size", 4),
}
"""Seed 000's overrides of the trainer."""
LAUNCHING: dict[str, Now | Gone] = {
    "RAY_HEAD_IP": Gone("an attempt's nodes find each other, in any order"),
    "RAY_HEAD_PORT": Gone(
        "an attempt's Ray has ports of its own; 10001 is Ray Client's default, and 6379 is the cluster's"
    ),
    "2 nodes": Now("trainer.nnodes", 2),
    "8 H100 GPUs": Now("trainer.n_gpus_per_node", 8),
    "GRPO": Now("algorithm.adv_estimator", "grpo"),
}
"""Seed 001's settings: variables of its script, and what its text says of the machines."""
ROWS = {**TRAINING, **LAUNCHING}


def bound(*typed: str) -> dict[str, Any]:
    with initialized():
        (item,) = compose_points(read([*LINE, *typed]).arms)
    where = shape(item.config["cluster"])
    assert VerlEngine().bind(item.config, item.explicit, where) == []
    assert VerlEngine().check(item.config, where) == []
    return dict(item.config)


def test_the_line_sets_what_the_seeds_set() -> None:
    config = bound()
    for seed, now in ROWS.items():
        if isinstance(now, Now) and not now.typed:
            assert tree.get(config, now.key) == now.value, seed


def test_what_the_line_sets_by_another_value_can_be_typed_and_says_why() -> None:
    typed = [row for row in ROWS.values() if isinstance(row, Now) and row.typed]
    config = bound(*(word for row in typed for word in row.typed))
    for row in typed:
        assert tree.get(config, row.key) == row.value
        assert row.why


@pytest.mark.parametrize(
    "old", ["system.CUDA_VISIBLE_DEVICES", "model_path", "micro_batch_size_per_gpu", f"{ROLLOUT}.tp_size_check"]
)
def test_a_key_of_the_seed_that_is_gone_is_refused_with_what_became_of_it(old: str) -> None:
    with pytest.raises(RequestError) as error:
        bound(f"{old}=1")
    (problem,) = error.value.problems
    now = ROWS[old]
    assert old in problem.what
    assert (now.key if isinstance(now, Now) else "") in str(error.value)


def test_seed_000_has_no_setting_without_a_row() -> None:
    text = seed("000")
    command = text[text.index("python train.py") :].split("```")[0]
    assert set(re.findall(r"^\s+([A-Za-z_][\w.]*)=", command, re.MULTILINE)) == set(TRAINING)


def test_seed_001_has_no_setting_without_a_row() -> None:
    text = seed("001")
    assert set(re.findall(r"export (\w+)=", text)) <= set(LAUNCHING)
    assert all(words in text for words in ("2 nodes", "8 H100 GPUs", "GRPO"))


def test_on_dstack_the_task_asks_for_the_nodes_of_the_seeds_task() -> None:
    words = ["model=qwen7b", "cluster=dstack", "tp=4", "cluster.dstack.volumes=[/checkpoints:/checkpoints]"]
    with initialized():
        (item,) = compose_points(read(words).arms)
    gang = Gang(nodes=2, gpus_per_node=8)
    inherit = tuple(item.config["engine"]["inherit"])
    job = Job((), {}, inherit, {}, gang, "python3", "metrics.jsonl", 1, image="whatcanyousee/verl:some")
    made = task.task(job, item.config["cluster"], name="a", command=[], listen=[], variables=inherit)
    assert made["nodes"] == 2
    assert made["image"] == "whatcanyousee/verl:some"
    assert made["resources"] == {"shm_size": "128GB", "gpu": "H100:80GB:8"}
    assert made["volumes"] == ["/checkpoints:/checkpoints"]
    assert "WANDB_API_KEY" in made["env"]
    assert "ports" not in made  # the dashboard is not opened


def seed(number: str) -> str:
    found = sorted(SEEDS.glob(f"{number}_*.txt"))
    if not found:
        pytest.skip("the document is not here")
    return found[0].read_text()
