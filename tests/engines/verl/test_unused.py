"""Keys that cannot matter in a config, with the reason; and those that can, which are never named."""

from __future__ import annotations

import pytest

from sweeper.config import hydra_app
from sweeper.config.compose import compose_points
from sweeper.config.space import read
from sweeper.engines.base import Shape
from sweeper.engines.verl.engine import VerlEngine

CPU = Shape(name="local", device="cpu", nodes=1, gpus_per_node=4)
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


def why(key: str, *overrides: str) -> str:
    with hydra_app.initialized():
        (composed,) = compose_points(read(list(overrides)).arms)
    VerlEngine().bind(composed.config, composed.explicit, CPU)
    return VerlEngine().idle(composed.config, key)


@pytest.mark.parametrize(
    ("key", "overrides", "reason"),
    [
        ("critic.optim.lr", ["algorithm=grpo"], "there is no critic"),
        ("+critic.optim.lr", ["algorithm=grpo"], "there is no critic"),
        ("trainer.critic_warmup", ["algorithm=rloo"], "there is no critic"),
        ("algorithm.kl_ctrl.kl_coef", ["algorithm=grpo"], "use_kl_in_reward is false"),
        ("algorithm.kl_ctrl.horizon", ["algorithm=ppo", "kl=0.01"], "is fixed, not adaptive"),
        (f"{ACTOR}.kl_loss_coef", ["algorithm=ppo", "kl=0.01"], "use_kl_loss is false"),
        (f"{ACTOR}.kl_loss_type", ["algorithm=grpo", "kl=0"], "use_kl_loss is false"),
        ("algorithm.lam", ["algorithm=grpo"], "has no lambda"),
        ("algorithm.gamma", ["algorithm=grpo"], "does not discount"),
        ("algorithm.norm_adv_by_std_in_grpo", ["algorithm=rloo"], "does not read it"),
        ("algorithm.filter_groups.metric", ["algorithm=grpo"], "enable is false"),
        (f"{ACTOR}.ppo_max_token_len_per_gpu", [f"{ACTOR}.use_dynamic_bsz=false"], "counted in responses"),
        ("actor_rollout_ref.ref.fsdp_config.param_offload", ["algorithm=grpo", "kl=0"], "no reference model"),
        (f"{ROLLOUT}.val_kwargs.top_p", ["trainer.test_freq=-1", "trainer.val_before_train=false"], "no validation"),
        ("distillation.distillation_loss.loss_mode", [], "distillation.enabled is false"),
    ],
)
def test_idle(key: str, overrides: list[str], reason: str) -> None:
    assert reason in why(key, *overrides)


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        ("lr", ["algorithm=grpo"]),
        ("kl", ["algorithm=grpo", "kl=0"]),
        ("tp", []),
        ("critic.optim.lr", ["algorithm=ppo"]),
        ("critic.enable", ["algorithm=grpo"]),
        ("algorithm.kl_ctrl.kl_coef", ["algorithm=ppo", "kl=0.01"]),
        (f"{ACTOR}.kl_loss_coef", ["algorithm=grpo", "kl=0.01"]),
        ("algorithm.lam", ["algorithm=ppo"]),
        ("algorithm.gamma", ["algorithm=reinforce_plus_plus"]),
        ("algorithm.norm_adv_by_std_in_grpo", ["algorithm=dapo"]),
        (f"{ACTOR}.optim.lr", ["algorithm=grpo"]),
        (f"{ROLLOUT}.n", ["algorithm=ppo"]),
        (f"{ROLLOUT}.temperature", []),
        ("critical.thing", ["algorithm=grpo"]),
    ],
)
def test_not_idle(key: str, overrides: list[str]) -> None:
    assert why(key, *overrides) == ""
