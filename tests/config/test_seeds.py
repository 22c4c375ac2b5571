"""`python sweep.py -m model=qwen7b cluster=two_nodes_8gpu tp=4` is what two documents start by hand: RAGEN on two nodes
of dstack (seed 000) and a launch script for a head and a worker (seed 001). Each of their settings has a row here: what
it is called today and what it is set to, or why there is nothing to set. docs/migrate.md says the same to people, and
shows for each of the five documents a command; what those set is compared here with what the documents set.
"""

from __future__ import annotations

import re
import shlex
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
from sweeper.engines.base import Gang, Job, Shape
from sweeper.engines.verl.engine import VerlEngine
from sweeper.errors import RequestError

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ROOT.parent / "shared" / "seeds"
PAGE = ROOT / "docs" / "migrate.md"
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


# --- the page's commands ---

TURNS = f"{ROLLOUT}.multi_turn"
SOKOBAN = {"min_w": 6, "max_w": 6, "min_h": 6, "max_h": 6, "min_boxes": 1, "max_boxes": 1}
SHOWN: dict[str, dict[str, Any]] = {
    "000": {
        "cluster.kind": "dstack",
        "cluster.dstack.gpu": "H100:80GB:8",
        "cluster.dstack.resources.shm_size": "128GB",
        **{now.key: now.value for now in TRAINING.values() if isinstance(now, Now) and not now.typed},
        "algorithm.adv_estimator": "gae",
        "algorithm.use_kl_in_reward": False,
        f"{ACTOR}.use_kl_loss": False,
        "data.train_batch_size": 8,
        f"{ROLLOUT}.n": 16,
        f"{ACTOR}.ppo_mini_batch_size": 2,  # 32 attempts, as RAGEN counts them
        "trainer.total_training_steps": 200,
        "environment.parameters": SOKOBAN,
    },
    "001": {
        "cluster.kind": "ssh",
        **{now.key: now.value for now in LAUNCHING.values() if isinstance(now, Now)},
    },
    "002": {
        "cluster.kind": "ssh",
        "cluster.docker.gpus": "all",
        "cluster.docker.network": "host",
        "cluster.docker.mounts": ["/storage"],
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": 4,
        f"{ROLLOUT}.nnodes": 1,
        f"{ROLLOUT}.n_gpus_per_node": 4,
        f"{ROLLOUT}.tensor_model_parallel_size": 1,
        "trainer.v1.trainer_mode": "separate_async",
        "data.train_batch_size": 512,
        f"{ROLLOUT}.n": 16,
        f"{ACTOR}.ppo_mini_batch_size": 128,
        "data.max_prompt_length": 1024,
        "data.max_response_length": 27648,
        f"{ACTOR}.ppo_max_token_len_per_gpu": 30720,
        f"{ACTOR}.optim.lr": 2e-5,
        f"{ACTOR}.use_kl_loss": False,
        "algorithm.use_kl_in_reward": False,
        "critic.enable": False,
        "algorithm.rollout_correction.bypass_mode": False,
        "trainer.total_epochs": 5,
        "trainer.total_training_steps": None,
    },
    "003": {
        "actor_rollout_ref.model.path": "Qwen/Qwen2.5-0.5B-Instruct",
        "actor_rollout_ref.model.enable_gradient_checkpointing": True,
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": 1,
        f"{ROLLOUT}.tensor_model_parallel_size": 1,
        "data.train_batch_size": 128,
        f"{ACTOR}.ppo_mini_batch_size": 64,
        "data.max_prompt_length": 400,
        "data.max_response_length": 5 * 100,
        "trainer.logger": ["console", "file", "wandb"],  # the file is what the sweep reads
        "environment.parameters": {**SOKOBAN, "max_depth": 30},
        "environment.train_rows": 10000,
        "environment.val_rows": 10,
        "algorithm.adv_estimator": "gae",
        f"{ACTOR}.optim.lr": 1e-6,
        "critic.optim.lr": 1e-5,
        "algorithm.use_kl_in_reward": True,
        "algorithm.kl_ctrl.kl_coef": 0.001,
    },
    "004": {
        "cluster.kind": "slurm",
        "cluster.slurm.time": "24:00:00",
        "trainer.nnodes": 2,
        "trainer.n_gpus_per_node": 8,
        "actor_rollout_ref.model.path": MODEL,
        "algorithm.adv_estimator": "grpo",
        "data.train_batch_size": 2 * 8 * 8,
        f"{ACTOR}.ppo_mini_batch_size": 2 * 8 * 8,
        f"{ROLLOUT}.n": 16,
        f"{ROLLOUT}.tensor_model_parallel_size": 2,
        "data.max_response_length": 512,
        f"{ACTOR}.optim.lr": 5e-7,
        f"{ACTOR}.use_kl_loss": True,
        f"{ACTOR}.kl_loss_coef": 0.001,
        f"{ACTOR}.kl_loss_type": "mse",
        f"{ACTOR}.entropy_coeff": 0.001,
        f"{TURNS}.enable": True,
        f"{TURNS}.max_assistant_turns": 8,
        "trainer.total_training_steps": 1000,
        "trainer.save_freq": 50,
        "trainer.test_freq": 10,
        "trainer.val_before_train": False,
        "trainer.critic_warmup": 0,
        "trainer.logger": ["console", "file", "wandb"],  # the file is what the sweep reads
    },
}
"""Seed -> what its command on the page sets, as the seed does, or as the page says of what it runs."""


def shown(number: str) -> list[list[str]]:
    """The overrides of each command that the page has for that seed."""
    (section,) = [part for part in PAGE.read_text().split("\n## ") if f"(seed {number})" in part.partition("\n")[0]]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return [shlex.split(line)[2:] for line in lines if line.startswith("python sweep.py ")]


@pytest.mark.parametrize("number", SHOWN)
def test_the_pages_command_for_a_seed_sets_what_the_seed_sets(number: str) -> None:
    """That it plans as it stands is tests/docs/test_commands.py."""
    commands = shown(number)
    assert len(commands) == 1
    words = [word for word in commands[0] if word not in ("-m", "plan=true")]
    with initialized():
        (item,) = compose_points(read(words).arms)
    group = item.config["cluster"]
    nodes = group["nodes"] or len(group["ssh"]["hosts"])
    # Slurm would be asked; what it would say of its nodes is what the command says.
    where = Shape(group["name"], group["device"], nodes, group["gpus_per_node"], group["gpu"], group["gpu_memory_gib"])
    assert VerlEngine().bind(item.config, item.explicit, where) == []
    assert VerlEngine().check(item.config, where) == []
    assert {key: tree.get(item.config, key) for key in SHOWN[number]} == SHOWN[number]


def test_the_page_has_a_command_for_every_seed_and_says_what_differs() -> None:
    sections = PAGE.read_text().split("\n## ")[1:]
    seeds = [found[1] for part in sections if (found := re.search(r"\(seed (\d+)\)", part.partition("\n")[0]))]
    assert seeds == list(SHOWN)
    for part in sections:
        if "(seed" in part.partition("\n")[0]:
            assert all(f"**{word}.**" in part for word in ("Before", "After", "What differs")), part.partition("\n")[0]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("000", ["model_path=Qwen/Qwen2.5-7B-Instruct", "tensor_model_parallel_size=4", "save_freq=50", "nodes: 2"]),
        ("002", ["--shm-size 700g", "-v /storage:/storage", "async-ppo-1.7b-gpu8"]),
        ("003", ["TRAIN_BATCH_SIZE=128", "PPO_BATCH_SIZE=64", "MAX_START_LENGTH=400", "MAX_RESPONSE_LENGTH=100",
                 "MAX_TURNS=5", "N_GPUS=1", "DIM_X=6", "NUM_BOXES=1", "SEARCH_DEPTH=30", "--train_size 10000"]),
        ("004", ["--nodes=2", "--time=24:00:00", "BATCH_SIZE_PER_GPU=8", "agent.num_chains=16", "LR=5e-7",
                 "KL_COEF=0.001", "kl_loss_type=mse", "total_training_steps=1000", "agent.max_steps=8",
                 "tensor_model_parallel_size=2", "response_length=512"]),
    ],
)  # fmt: skip
def test_what_is_compared_is_what_the_document_says(number: str, words: list[str]) -> None:
    text = seed(number)
    assert not [word for word in words if word not in text]


def seed(number: str) -> str:
    found = sorted(SEEDS.glob(f"{number}_*.txt"))
    if not found:
        pytest.skip("the document is not here")
    return found[0].read_text()
