"""Real verl on the CPU: every algorithm trains, a seed is a run, a resumed run is the uninterrupted one."""

import math
import sys
from pathlib import Path

import pytest

from sweeper.environments import arithmetic
from sweeper.models import tiny

sys.path.insert(0, str(Path(__file__).parent))
import launch

pytestmark = pytest.mark.real

RESPONSES = 128  # prompts x n, in a step of any algorithm
STEPS = 4  # of GRPO and PPO, which save at half of them; the others train that half
ALGORITHMS = {
    "grpo": {"algorithm.adv_estimator": "grpo", "actor_rollout_ref.rollout.n": 4},
    "ppo": {
        "algorithm.adv_estimator": "gae",
        "algorithm.use_kl_in_reward": True,  # brings the reference model in
        "algorithm.kl_ctrl.kl_coef": 0.01,
    },
    "rloo": {"algorithm.adv_estimator": "rloo", "actor_rollout_ref.rollout.n": 4},
    "reinforce_plus_plus": {"algorithm.adv_estimator": "reinforce_plus_plus"},
    "remax": {"algorithm.adv_estimator": "remax", "trainer.use_v1": False},
}


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    """The folders of the model and of the data; a warm-up short enough for a test."""
    root = tmp_path_factory.mktemp("built")
    model, data = tiny.spec(warm_up={"steps": 150}), arithmetic.spec({})
    return tiny.build(tiny.path(root, model), model), arithmetic.build(arithmetic.path(root, data), data)


def overrides(task, algorithm, ranks=1, **more):
    model, data = task
    chosen = ALGORITHMS[algorithm]
    prompts = RESPONSES // chosen.get("actor_rollout_ref.rollout.n", 1)
    micro = RESPONSES // 2 // ranks
    return {
        "data.train_files": str(data / arithmetic.TRAIN),
        "data.val_files": str(data / arithmetic.VAL),
        "data.train_batch_size": prompts,
        "data.max_prompt_length": 48,
        "data.max_response_length": 4,
        "data.val_max_samples": 64,
        "data.seed": 1,
        "data.validation_shuffle": False,
        "reward.custom_reward_function.path": str(data / arithmetic.REWARD),
        "actor_rollout_ref.model.path": str(model),
        "actor_rollout_ref.actor.optim.lr": 2e-4,
        "actor_rollout_ref.actor.ppo_mini_batch_size": prompts // 2,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": micro,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": micro,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": micro,
        "actor_rollout_ref.rollout.val_kwargs.do_sample": True,
        "actor_rollout_ref.rollout.val_kwargs.temperature": 1.0,
        "critic.model.path": str(model),
        "critic.optim.lr": 1e-3,
        "critic.ppo_mini_batch_size": prompts // 2,
        "critic.ppo_micro_batch_size_per_gpu": micro,
        "trainer.total_training_steps": STEPS if algorithm in ("grpo", "ppo") else STEPS // 2,
        "trainer.total_epochs": 100,
        "trainer.save_freq": STEPS // 2,
        "trainer.test_freq": STEPS // 2,
        "trainer.nnodes": 1,
        "trainer.project_name": "tests",
        "trainer.experiment_name": algorithm,
        **chosen,
        **more,
    }


@pytest.fixture(scope="session")
def trained(task, tmp_path_factory):
    """Each algorithm's run, made once: (folder, run)."""
    made = {}

    def get(algorithm):
        if algorithm not in made:
            folder = tmp_path_factory.mktemp(algorithm)
            made[algorithm] = folder, launch.run(folder / "first", overrides(task, algorithm))
        return made[algorithm]

    return get


def by_step(run):
    return {line["line"]: line for line in run.comparable()}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_trains(trained, task, algorithm):
    import torch
    from safetensors.torch import load_file

    folder, run = trained(algorithm)
    assert run.code == 0, run.log[-4000:]
    steps = [line for line in run.lines if "actor/pg_loss" in line["data"]]
    assert len(steps) == (STEPS if algorithm in ("grpo", "ppo") else STEPS // 2)
    for line in steps:
        assert all(math.isfinite(v) for v in line["data"].values() if isinstance(v, float))
        assert line["data"]["actor/grad_norm"] > 0
        if "training/rollout_probs_diff_max" in line["data"]:  # the rollout's probabilities are the trainer's
            assert line["data"]["training/rollout_probs_diff_max"] < 1e-5
    scores = [v for line in run.lines for k, v in line["data"].items() if k.startswith("val-core/")]
    assert len(scores) >= 2
    assert all(0 <= score <= 1 for score in scores)
    saved = folder / f"checkpoints/global_step_{STEPS // 2}/actor/model_world_size_1_rank_0.pt"
    after = torch.load(saved, weights_only=False)
    before = load_file(task[0] / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(getattr(after[name], "_local_tensor", after[name]), before[name])


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_same_seed_is_the_same_run_and_another_is_not(trained, task, algorithm, tmp_path):
    _, first = trained(algorithm)
    again = launch.run(
        tmp_path / "again",
        overrides(task, algorithm, **{"trainer.total_training_steps": STEPS // 2, "trainer.save_freq": -1}),
    )
    assert again.code == 0, again.log[-4000:]
    expected = by_step(first)
    for step, line in by_step(again).items():
        assert line == expected[step]
    assert len(by_step(again)) >= STEPS // 2


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_resumed_run_is_the_uninterrupted_one(trained, task, algorithm):
    folder, first = trained(algorithm)
    half = STEPS // 2
    resumed = launch.run(
        folder / "resumed",
        overrides(
            task,
            algorithm,
            **{
                "trainer.resume_mode": "resume_path",
                "trainer.resume_from_path": str(folder / f"checkpoints/global_step_{half}"),
                "trainer.val_before_train": False,
            },
        ),
    )
    assert resumed.code == 0, resumed.log[-4000:]
    expected, got = by_step(first), by_step(resumed)
    assert sorted(got) == list(range(half + 1, STEPS + 1))
    for step, line in got.items():
        assert line == expected[step]


def test_two_ranks_train_as_one_does(trained, task, tmp_path):
    _, one = trained("grpo")
    two = launch.run(
        tmp_path / "two",
        overrides(task, "grpo", ranks=2, **{"trainer.total_training_steps": STEPS // 2}),
        ranks=2,
    )
    assert two.code == 0, two.log[-4000:]
    # Sums over ranks round differently, and a rank's responses are the same ones.
    for key in ("critic/score/mean", "actor/entropy", "actor/grad_norm"):
        assert two.series(key)[0] == pytest.approx(one.series(key)[0], rel=1e-3)


def test_a_rollout_that_cannot_be_is_refused_by_name(task, tmp_path):
    run = launch.run(
        tmp_path / "tp",
        overrides(task, "grpo", ranks=2, **{"actor_rollout_ref.rollout.tensor_model_parallel_size": 2}),
        ranks=2,
    )
    assert run.code != 0
    assert "actor_rollout_ref.rollout.tensor_model_parallel_size=2" in run.log
