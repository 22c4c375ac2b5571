# ruff: noqa: E501  (a table: one case a line)
"""Every rule of verl: a config that keeps it, a config that breaks it, and what the user is told to type."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeper import prepare
from sweeper.checkpoints import manifest
from sweeper.config import hydra_app
from sweeper.config.compose import Composer
from sweeper.config.space import read
from sweeper.engines.base import Config, Shape
from sweeper.engines.verl import rules
from sweeper.engines.verl.base_config import config_dir
from sweeper.engines.verl.engine import VerlEngine

CPU = Shape(name="local", device="cpu", nodes=1, gpus_per_node=4)
NODE = Shape("node_8gpu", "cuda", 1, 8, gpu="H100", gpu_memory_gib=79.6, launchable=False)
TWO = Shape("two_nodes_8gpu", "cuda", 2, 8, gpu="H100", gpu_memory_gib=79.6, launchable=False)
SEVEN = ["model=qwen7b", "environment=gsm8k", "cluster=node_8gpu"]
OF_THIS_MACHINE = ["model=qwen7b", "environment=gsm8k"]
PAIR = ["model=qwen7b", "environment=gsm8k", "cluster=two_nodes_8gpu"]
FIXED = [
    "actor_rollout_ref.actor.use_dynamic_bsz=false",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4",
    "critic.ppo_micro_batch_size_per_gpu=4",
]
"""Micro-batches by count."""
ACTOR, ROLLOUT, REF = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.ref"
ASYNC = [
    "trainer.v1.trainer_mode=separate_async",
    "trainer.n_gpus_per_node=4",
    f"{ROLLOUT}.nnodes=1",
    f"{ROLLOUT}.n_gpus_per_node=4",
    f"{ROLLOUT}.checkpoint_engine.backend=nccl",
    "tp=1",
]


COMPOSER = Composer()


def bound(overrides: list[str], shape: Shape | None = None) -> tuple[Config, Shape]:
    with hydra_app.initialized():
        (point,) = read(overrides).arms
        # Composed as points of one sweep would be: those with the same groups share what Hydra does.
        swept = replace(point, varied={line.partition("=")[0].lstrip("+~"): None for line in point.overrides})
        composed = COMPOSER.compose(swept)
    here = shape or (
        NODE if "cluster=node_8gpu" in overrides else TWO if "cluster=two_nodes_8gpu" in overrides else CPU
    )
    assert VerlEngine().bind(composed.config, composed.explicit, here) == []
    return composed.config, here


def broken(rule: str, overrides: list[str], shape: Shape | None = None) -> list[rules.Problem]:
    return list(getattr(rules, rule)(rules.Context(*bound(overrides, shape))))


# rule, a config that keeps it, one that breaks it, the key at fault, words that must be in what the user is told
CASES: list[tuple[str, list[str], list[str], str, str]] = [
    ("numbers", [], [f"{ROLLOUT}.n=0"], f"{ROLLOUT}.n", "whole number"),
    ("numbers", [], ["responses_per_step=1"], "data.train_batch_size", "responses_per_step"),
    ("shape_asked", SEVEN, [*SEVEN, "trainer.n_gpus_per_node=16"], "trainer.n_gpus_per_node", "has 8 GPUs"),
    ("shape_asked", PAIR, [*PAIR, "trainer.nnodes=3"], "trainer.nnodes", "has 2 nodes"),
    ("all_pools", [*SEVEN, *ASYNC], [*SEVEN, *ASYNC, "trainer.n_gpus_per_node=8"], "trainer.n_gpus_per_node", "12 GPUs"),
    ("choices", [], [f"{ACTOR}.loss_agg_mode=token_mean"], f"{ACTOR}.loss_agg_mode", "token-mean"),
    ("choices", [], [f"{ACTOR}.policy_loss.loss_mode=gpso"], f"{ACTOR}.policy_loss.loss_mode", "gspo"),
    ("choices", [], [f"{ACTOR}.use_kl_loss=true", f"{ACTOR}.kl_loss_type=k9"], f"{ACTOR}.kl_loss_type", "low_var_kl"),
    ("choices", [f"{ACTOR}.kl_loss_type=low_var_kl+"], ["trainer.v1.trainer_mode=fast"], "trainer.v1.trainer_mode", "sync"),
    ("estimator", [], ["algorithm.adv_estimator=gropo"], "algorithm.adv_estimator", "grpo"),
    ("estimator_version", ["algorithm=remax"], ["algorithm=remax", "trainer.use_v1=true"], "trainer.use_v1", "V1"),
    (
        "estimator_version",
        ["trainer.use_v1=false", "+algorithm.gdpo_reward_keys=[a]", "algorithm.adv_estimator=gdpo"],
        ["trainer.use_v1=false", "algorithm.adv_estimator=gdpo"],
        "algorithm.gdpo_reward_keys",
        "names of the single rewards",
    ),
    (
        "estimator_version",
        ["trainer.use_v1=false", "algorithm.adv_estimator=optimal_token_baseline", f"{ACTOR}.calculate_sum_pi_squared=true"],
        ["trainer.use_v1=false", "algorithm.adv_estimator=optimal_token_baseline"],
        f"{ACTOR}.calculate_sum_pi_squared",
        "sum of squared",
    ),
    ("group_size", ["algorithm=ppo"], [f"{ROLLOUT}.n=1"], f"{ROLLOUT}.n", "only one"),
    ("critic_presence", ["algorithm=ppo"], ["algorithm=ppo", "critic.enable=false"], "critic.enable", "needs a critic"),
    ("kl_gates", [], ["algorithm.use_kl_in_reward=true"], "kl", "count twice"),
    ("strategies", ["model_engine=megatron", *SEVEN], [*SEVEN, f"{ACTOR}.strategy=megatron"], f"{ACTOR}.strategy", "fsdp"),
    ("batch_over_ranks", [*SEVEN, *FIXED], [*SEVEN, *FIXED, "data.train_batch_size=125", f"{ROLLOUT}.n=5"],
     "data.train_batch_size", "multiples of 8"),
    ("mini_batch", [], [f"{ACTOR}.ppo_mini_batch_size=99999"], f"{ACTOR}.ppo_mini_batch_size", "more than"),
    ("mini_batch", ["algorithm=ppo"], ["algorithm=ppo", "critic.ppo_mini_batch_size=99999"], "critic.ppo_mini_batch_size", "more"),
    ("mini_batch_over_ranks", SEVEN, [*SEVEN, f"{ACTOR}.ppo_mini_batch_size=3", f"{ROLLOUT}.n=5"],
     f"{ACTOR}.ppo_mini_batch_size", "multiples of 8"),
    ("mini_batches_in_batch", ["algorithm=remax", f"{ACTOR}.ppo_mini_batch_size=8", "data.train_batch_size=16"],
     ["algorithm=remax", f"{ACTOR}.ppo_mini_batch_size=6", "data.train_batch_size=16"], f"{ACTOR}.ppo_mini_batch_size", "1, 2, 4, 8"),
    ("micro_batch_given", FIXED, FIXED[:1], f"{ACTOR}.ppo_micro_batch_size_per_gpu", "not set"),
    ("micro_batch_given", FIXED, [*FIXED, f"{ACTOR}.ppo_micro_batch_size=4"], f"{ACTOR}.ppo_micro_batch_size", "both set"),
    ("micro_batch_given", FIXED, [*FIXED, f"{ROLLOUT}.log_prob_micro_batch_size=4"],
     f"{ROLLOUT}.log_prob_micro_batch_size", "both set"),
    ("micro_batch_given", FIXED, [*FIXED, "kl=0.01", f"{REF}.log_prob_micro_batch_size_per_gpu=null"],
     f"{REF}.log_prob_micro_batch_size_per_gpu", "not set"),
    ("micro_batch_legacy", FIXED, [*FIXED, f"{ACTOR}.ppo_micro_batch_size=7"], f"{ACTOR}.ppo_micro_batch_size", "divide"),
    ("micro_batch_divides", FIXED, [*FIXED, f"{ACTOR}.ppo_micro_batch_size_per_gpu=7"],
     f"{ACTOR}.ppo_micro_batch_size_per_gpu", "does not divide"),
    ("dynamic_batches_agree", [], [f"{ROLLOUT}.log_prob_use_dynamic_bsz=false"], f"{ROLLOUT}.log_prob_use_dynamic_bsz", "differ"),
    ("token_budget", [], [f"{ACTOR}.ppo_max_token_len_per_gpu=20"], f"{ACTOR}.ppo_max_token_len_per_gpu", "or more"),
    ("rollout_name", SEVEN, [*SEVEN, f"{ROLLOUT}.name=vlm"], f"{ROLLOUT}.name", "vllm"),
    ("rollout_name", SEVEN, [*SEVEN, f"{ROLLOUT}.mode=sync"], f"{ROLLOUT}.mode", "async"),
    ("rollout_on_cpu", [], [f"{ROLLOUT}.name=vllm"], f"{ROLLOUT}.name", "needs a GPU"),
    ("rollout_on_cpu", ["tp=1"], ["tp=2", "trainer.n_gpus_per_node=2"], "tp", "whole copy"),
    ("rollout_parallel", SEVEN, [*SEVEN, f"{ROLLOUT}.expert_parallel_size=4"], f"{ROLLOUT}.expert_parallel_size", "tp x dp"),
    ("rollout_parallel", SEVEN, [*SEVEN, f"{ROLLOUT}.pipeline_model_parallel_size=2"],
     f"{ROLLOUT}.pipeline_model_parallel_size", "no pipeline"),
    ("rollout_world", SEVEN, [*SEVEN, "tp=3"], "tp", "tp: 1, 2, 4"),
    ("rollout_nodes", PAIR, [*PAIR, "trainer.n_gpus_per_node=6", "tp=4"], "tp", "tp: 1, 2"),
    ("heads", [*SEVEN, "tp=4"], [*SEVEN, "tp=8"], "tp", "tp: 1, 2, 4"),
    ("training_world", ["model_engine=megatron", *SEVEN],
     ["model_engine=megatron", *SEVEN, f"{ACTOR}.megatron.tensor_model_parallel_size=3"], f"{ACTOR}.megatron", "does not divide"),
    ("sequence_parallel", [*SEVEN, f"{ACTOR}.ulysses_sequence_parallel_size=4"],
     [*SEVEN, f"{ACTOR}.ulysses_sequence_parallel_size=2", "actor_rollout_ref.model.use_remove_padding=false"],
     "actor_rollout_ref.model.use_remove_padding", "packed"),
    ("sequence_parallel", [*SEVEN, f"{ACTOR}.ulysses_sequence_parallel_size=4"],
     [*SEVEN, f"{ACTOR}.ulysses_sequence_parallel_size=8"], f"{ACTOR}.ulysses_sequence_parallel_size", "28 attention heads"),
    ("lora", [*SEVEN, "actor_rollout_ref.model.lora_rank=64"], [*SEVEN, "actor_rollout_ref.model.lora_rank=1024"],
     "actor_rollout_ref.model.lora_rank", "512"),
    ("lengths", [f"{ROLLOUT}.max_model_len=128"], [f"{ROLLOUT}.max_model_len=20"], "data.max_response_length", "more than the 20"),
    ("temperature", [], [f"{ROLLOUT}.temperature=0"], f"{ROLLOUT}.temperature", "above 0"),
    ("temperature", [], [f"{ROLLOUT}.val_kwargs.n=4", f"{ROLLOUT}.val_kwargs.do_sample=false"], f"{ROLLOUT}.val_kwargs.n", "all the same"),
    ("validation", ["trainer.test_freq=-1", "objective.metric=critic/score/mean"], ["trainer.test_freq=-1"], "trainer.test_freq", "score"),
    ("validation", [], ["trainer.val_only=true"], "trainer.val_only", "without training"),
    ("steps", [], ["trainer.total_epochs=1", "trainer.total_training_steps=5000"], "trainer.total_epochs", "or more"),
    ("rows_for_a_batch", [], ["data.train_max_samples=3"], "data.train_batch_size", "3 rows"),
    ("data_files", [], ["data.train_files=/nowhere/train.parquet"], "data.train_files", "does not exist"),
    ("environment", [], ["environment.largest=1"], "environment.largest", "from 4"),
    ("reward_file", [], ["reward.custom_reward_function.path=/nowhere/r.py"], "reward.custom_reward_function.path", "not exist"),
    ("separate_async", [*SEVEN, *ASYNC], [*SEVEN, *ASYNC, "updates_per_step=2"], "data.train_batch_size", "parameter_sync_step"),
    ("separate_async", [*SEVEN, *ASYNC], [*SEVEN, *ASYNC, f"{ROLLOUT}.nnodes=0"], f"{ROLLOUT}.nnodes", "GPUs of its own"),
    ("separate_async", [*SEVEN, *ASYNC], [*SEVEN, *ASYNC, f"{ROLLOUT}.checkpoint_engine.backend=naive"],
     f"{ROLLOUT}.checkpoint_engine.backend", "nccl"),
    ("separate_pools", [], ["reward.reward_model.enable_resource_pool=true"], "reward.reward_model.nnodes", "needs GPUs"),
    ("filter_groups", ["algorithm=dapo"], ["algorithm=dapo", "algorithm.filter_groups.metric=null"],
     "algorithm.filter_groups.metric", "needs a metric"),
    ("resume_path", [], ["trainer.resume_mode=resume_path", "trainer.resume_from_path=/nowhere"], "trainer.resume_from_path", "global_step_"),
    ("resume_path", [], ["trainer.resume_from_path=/nowhere/global_step_2"], "trainer.resume_from_path", "resume_path only"),
    ("lora", [], ["actor_rollout_ref.model.lora_rank=8"], "actor_rollout_ref.model.lora_rank", "takes whole weights"),
    ("size", SEVEN, [*SEVEN, f"{ROLLOUT}.gpu_memory_utilization=0.01"], f"{ROLLOUT}.gpu_memory_utilization", "share of a GPU"),
    ("own_ray", [], ["+ray_kwargs.ray_init.address=auto"], "ray_kwargs.ray_init.address", "of its own"),
    ("size", [], ["model=qwen7b"], "model", "model=tiny"),
    ("size", SEVEN, [*SEVEN, "trainer.n_gpus_per_node=1", "tp=1"], "cluster", "GiB a rank"),
    ("model", [], ["actor_rollout_ref.model.path=/nowhere/model"], "model.path", "does not exist"),
    ("model", ["algorithm=ppo"], ["algorithm=ppo", "critic.model.path=/nowhere/model"], "critic.model.path", "does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "keeps", "breaks", "key", "says"), CASES, ids=[f"{c[0]}-{c[3]}" for c in CASES])
def test_rule(rule: str, keeps: list[str], breaks: list[str], key: str, says: str) -> None:
    assert broken(rule, keeps) == []
    found = [p for p in broken(rule, breaks) if p.key == key]
    assert found, f"{rule} does not see {breaks}"
    text = "\n".join(found[0].lines())
    assert says in text
    assert found[0] in rules.check(*bound(breaks)), "check() does not ask this rule"


def test_every_rule_has_a_case() -> None:
    assert {r.__name__ for r in rules.RULES} | {"numbers", "shape_asked", "strategies"} == {
        case[0] for case in CASES
    } | {"rollout_installed"}


@pytest.mark.parametrize(
    "algorithm",
    [
        "grpo",
        "ppo",
        "rloo",
        "remax",
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
        "dapo",
        "gspo",
        "dr_grpo",
        "opo",
    ],
)
@pytest.mark.parametrize(
    "where", [[], SEVEN, PAIR, [*PAIR, "model=qwen3b"], [*SEVEN, "model=r1_distill_1.5b"]], ids=str
)
def test_what_the_groups_compose_to_has_no_problem(algorithm: str, where: list[str]) -> None:
    assert rules.check(*bound([*where, f"algorithm={algorithm}"])) == []


def test_what_is_to_be_typed_instead_works() -> None:
    for rule, _, breaks, key, _ in CASES:
        if rule in (
            "rollout_world",
            "rollout_nodes",
            "heads",
            "token_budget",
            "micro_batch_divides",
            "group_size",
            "steps",
        ):
            problem = next(p for p in broken(rule, breaks) if p.key == key)
            kept = [o for o in breaks if o.split("=")[0] != problem.fix.split("=")[0]]
            assert broken(rule, [*kept, problem.fix]) == [], problem


def test_a_saved_world_size_must_match(tmp_path: Path) -> None:
    actor = tmp_path / "global_step_3" / "actor"
    actor.mkdir(parents=True)
    (actor / "model_world_size_2_rank_0.pt").touch()
    typed = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/global_step_3"]
    (problem,) = broken("resume_path", typed)
    assert "saved by 2 ranks, this trial has 1" in problem.what
    assert broken("resume_path", [*typed, "trainer.n_gpus_per_node=2"]) == []


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_checkpoint_that_is_not_as_it_was_written_is_no_start(tmp_path: Path, damage: str) -> None:
    for step in (2, 4):
        actor = tmp_path / f"global_step_{step}" / "actor"
        actor.mkdir(parents=True)
        for file in (actor / "model_world_size_1_rank_0.pt", actor.parent / "data.pt"):
            with zipfile.ZipFile(file, "w") as made:
                made.writestr("archive/data", b"weights")
        manifest.write(tmp_path, step)
    typed = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/global_step_4"]
    assert broken("resume_path", typed) == []
    if damage == "flipped":
        content = bytearray((tmp_path / "global_step_4/data.pt").read_bytes())
        content[40] ^= 1
        (tmp_path / "global_step_4/data.pt").write_bytes(content)
    else:
        (tmp_path / "global_step_4/data.pt").unlink()
    (problem,) = broken("resume_path", typed)
    said = "data.pt has other content than was written" if damage == "flipped" else "data.pt is missing"
    assert said in problem.what and str(tmp_path / "manifests") in problem.valid
    assert problem.fix == f"trainer.resume_from_path={tmp_path}/global_step_2"


def test_positions_of_a_local_model_are_read(tmp_path: Path) -> None:
    config = {"max_position_embeddings": 50, "model_type": "qwen2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (problem,) = broken("lengths", [f"actor_rollout_ref.model.path={tmp_path}"])
    assert "more than the 50 positions" in problem.what


_ASK_VERL = """
import json, sys
from omegaconf import OmegaConf
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
answers = []
for config in json.load(open(sys.argv[1])):
    config = OmegaConf.create(config)
    try:
        validate_config(config, need_reference_policy(config), need_critic(config))
        omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
        answers.append("")
    except Exception as error:
        answers.append(f"{type(error).__name__}: {error}")
json.dump(answers, open(sys.argv[2], "w"))
"""


def test_what_verl_refuses_is_refused(tmp_path: Path) -> None:
    more: list[list[str]] = [
        [*SEVEN, *FIXED, "critic.ppo_micro_batch_size=3", "algorithm=ppo"],
        [*SEVEN, *FIXED, f"{ACTOR}.ppo_micro_batch_size_per_gpu=null", f"{ACTOR}.ppo_micro_batch_size=2"],
        [*SEVEN, *FIXED, "critic.ppo_micro_batch_size_per_gpu=null", "algorithm=ppo"],
        [*SEVEN, f"{ROLLOUT}.val_kwargs.do_sample=true", f"{ROLLOUT}.temperature=0"],
        ["model_engine=megatron", *SEVEN, *FIXED, f"{ACTOR}.megatron.pipeline_model_parallel_size=3"],
        ["model_engine=megatron", *SEVEN, *FIXED, f"{ACTOR}.ppo_micro_batch_size_per_gpu=3"],
        [*PAIR, *FIXED, "responses_per_step=1000"],
        [*PAIR, *FIXED, "data.train_batch_size=10", f"{ROLLOUT}.n=3"],
        [*SEVEN, f"{ROLLOUT}.expert_parallel_size=8"],
    ]
    told = [side for case in CASES for side in (case[1], case[2])] + more
    requests = list(map(list, dict.fromkeys(map(tuple, told))))
    asked: list[tuple[list[str], Config, Shape]] = []
    for request in requests:
        config, shape = bound(request)
        asked.append((request, config, shape))
    (tmp_path / "in.json").write_text(json.dumps([c for _, c, _ in asked]))
    # verl reads a critic's model: it has to be there, whatever ran before.
    prepare.run(prepare.missing([bound(["algorithm=ppo"])[0]]), sys.executable, print)
    script = [sys.executable, "-c", _ASK_VERL, str(tmp_path / "in.json"), str(tmp_path / "out.json")]
    subprocess.run(script, check=True, cwd=tmp_path, capture_output=True, timeout=300)
    answers: list[str] = json.loads((tmp_path / "out.json").read_text())
    refused: list[tuple[Any, str]] = [
        (request, answer)
        for (request, config, shape), answer in zip(asked, answers, strict=True)
        if answer
        and "vllm version None" not in answer
        and not rules.check(config, shape)  # no vLLM in a CPU environment
    ]
    assert refused == []
    assert sum(bool(a) for a in answers) >= 15, "the sample no longer holds what verl refuses"


HERE = Shape("local", "cuda", 1, 8, gpu="H100", gpu_memory_gib=79.6)
"""GPUs that a trial would really be started on."""


def interpreter(folder: Path, *packages: str) -> str:
    """A Python that has those packages, as far as anybody can tell without importing them."""
    for name in packages:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").write_text("raise RuntimeError('nobody imports it')")
        (folder / f"{name}-1.0.dist-info").mkdir()
        (folder / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
    made = folder / "python"
    made.write_text(f'#!/bin/sh\nexec env PYTHONPATH={folder} {sys.executable} "$@"\n')
    made.chmod(0o755)
    return f"engine.python={made}"


def test_an_inference_server_that_is_not_installed_is_named_before_anything_starts(tmp_path: Path) -> None:
    (problem,) = broken("rollout_installed", [*OF_THIS_MACHINE, interpreter(tmp_path)], HERE)
    assert "no package vllm" in problem.what
    assert problem.key == "engine.python"


def test_one_that_is_installed_or_cannot_be_started_from_here_is_no_problem(tmp_path: Path) -> None:
    there = interpreter(tmp_path, "vllm")
    assert broken("rollout_installed", [*OF_THIS_MACHINE, there], HERE) == []
    assert broken("rollout_installed", SEVEN, NODE) == []
    assert broken("rollout_installed", [], CPU) == []
    assert broken("rollout_installed", [*OF_THIS_MACHINE, "engine.python=/nowhere/python"], HERE) == []
    assert broken("rollout_installed", [*OF_THIS_MACHINE, interpreter(tmp_path), "engine.image=verl"], HERE) == []
    assert broken("rollout_installed", ["model=qwen7b", "cluster=dstack", interpreter(tmp_path)], HERE) == []


CITED = {
    "trainer/ppo/core_algos.py:88": "AdvantageEstimator",
    "single_controller/ray/base.py:226": "_check_resource_available",
    "trainer/ppo/core_algos.py:315": "len(id2score[idx]) == 1",
    "trainer/ppo/core_algos.py:414": "gdpo_reward_keys",
    "trainer/ppo/ray_trainer.py:222": "values",
    "trainer/ppo/ray_trainer.py:267": "sum_pi_squared",
    "trainer/ppo/v1/replay_buffer.py:197": "max_inflight_gen_batches",
    "trainer/ppo/v1/trainer_base.py:196": "filter_groups.metric",
    "trainer/ppo/v1/trainer_base.py:200": "streaming_reward_path",
    "trainer/ppo/v1/trainer_base.py:446": "val_only",
    "trainer/ppo/v1/trainer_base.py:467": "total_epochs",
    "trainer/ppo/v1/trainer_base.py:491": "test_freq",
    "trainer/ppo/v1/trainer_base.py:818": "resource_pool_spec",
    "trainer/ppo/v1/trainer_base.py:824": "n_gpus_per_node",
    "trainer/ppo/v1/trainer_base.py:867": "global_step_",
    "trainer/ppo/v1/trainer_base.py:1743": "_compute_advantage",
    "trainer/ppo/v1/trainer_separate_async.py:56": "train_batch_size",
    "utils/config.py:110": "model_parallel_size",
    "utils/config.py:124": "real_train_batch_size",
    "utils/config.py:155": "at least one",
    "utils/config.py:158": "raise",
    "utils/config.py:185": "in-reward kl",
    "utils/config.py:201": "temperature",
    "utils/seqlen_balancing.py:384": "max_token_len",
    "utils/tensordict_utils.py:588": "mini_batch_size",
    "workers/config/actor.py:225": "ppo_mini_batch_size",
    "workers/config/actor.py:233": "ppo_micro_batch_size",
    "workers/config/actor.py:340": "use_remove_padding",
    "workers/config/critic.py:108": "_check_mutually_exclusive",
    "workers/config/engine.py:306": "strategy",
    "workers/config/rollout.py:283": "sync",
    "workers/config/rollout.py:295": "expert_parallel_size",
    "workers/config/rollout.py:322": "pipeline",
    "workers/engine/utils.py:125": "micro_batch_size_per_gpu",
    "workers/engine_workers.py:267": "mini_batch_size",
    "workers/engine_workers.py:616": "use_dynamic_bsz",
    "workers/engine_workers.py:659": "infer_world_size",
    "workers/rollout/replica.py:114": "gpus_per_replica_node",
    "workers/rollout/vllm_rollout/utils.py:98": "lora_rank",
    "workers/rollout/vllm_rollout/vllm_async_server.py:385": "gpus_per_node",
    "workers/rollout/vllm_rollout/vllm_async_server.py:593": "max_model_len",
    "workers/rollout/vllm_rollout/vllm_async_server.py:1107": "max_position_embeddings",
}
"""Line of the installed verl that a problem names as its source -> what must stand there."""


def test_the_lines_that_problems_cite_say_so() -> None:
    text = Path(rules.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'"verl/([\w/]+\.py:\d+)', text)) == set(CITED)
    verl = config_dir().parents[1]
    for cited, says in CITED.items():
        file, line = cited.split(":")
        assert says in (verl / file).read_text(encoding="utf-8").splitlines()[int(line) - 1], cited
