"""Keys that launch scripts still carry and verl 0.9.1 has no more, or never reads, with what to type instead.

Guarantees: every target that is named exists in verl 0.9.1's config, or is marked to be added with `+`
(tests/engines/verl/test_names.py checks it); only the standard library is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

_OLD = "verl/trainer/config/ppo_trainer.yaml of verl 0.2 to 0.6"
_MIGRATE = "verl/experimental/reward_loop/reward_loop.py migrate_legacy_reward_impl: called by fully_async_main only"
_RAGEN = "a key of RAGEN, which runs its own verl"
_AREAL = "a key of AReaL"
_AGENTFLY = "a key of AgentFly, which runs its own verl"


@dataclass(frozen=True, slots=True)
class New:
    """What became of a key."""

    key: str
    """What to type instead; empty: nothing, leave it out."""
    why: str
    add: bool = False
    """Whether verl reads it although its config does not list it, so that it must be added with `+`."""
    source: str = _OLD


def _moved(key: str, *, add: bool = False, source: str = _OLD) -> New:
    return New(key, f"it is called {key} now", add, source)


def _gone(why: str, source: str = _OLD) -> New:
    return New("", why, source=source)


A, R, C = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "critic"

RENAMED: Mapping[str, New] = {
    # verl's own history
    f"{R}.tp_size_check": _gone(
        "vLLM checks the tensor parallel size itself, and so does the plan", "facts of the seed 000"
    ),
    f"{A}.checkpoint.contents": _moved(f"{A}.checkpoint.save_contents"),
    f"{C}.checkpoint.contents": _moved(f"{C}.checkpoint.save_contents"),
    f"{A}.fsdp_config.grad_offload": _gone("gradients are offloaded with the parameters"),
    f"{C}.model.fsdp_config": _moved(f"{C}.fsdp"),
    f"{A}.tis_imp_ratio_cap": _moved("algorithm.rollout_correction.rollout_is_threshold"),
    f"{R}.micro_batch_size": _moved(f"{R}.log_prob_micro_batch_size_per_gpu"),
    f"{R}.max_tokens": _moved(f"{R}.response_length"),
    f"{R}.chat_scheduler": _gone("agent loops took its place: actor_rollout_ref.rollout.agent"),
    f"{R}.use_fire_sampling": _gone("it was taken out"),
    f"{R}.engine_kwargs.swap_space": _moved(f"{R}.engine_kwargs.vllm.swap_space", add=True),
    f"{R}.multi_turn.max_turns": _moved(f"{R}.multi_turn.max_assistant_turns"),
    "actor_rollout_ref.model.use_fused_loss": _moved("actor_rollout_ref.model.use_fused_kernels"),
    "ray_init": _moved("ray_kwargs.ray_init"),
    "trainer.val_generations_to_log_to_wandb": _moved("trainer.log_val_generations"),
    "trainer.remove_previous_ckpt_in_save": _gone("trainer.max_actor_ckpt_to_keep=1 does what it did"),
    "trainer.hybrid_engine": _moved("actor_rollout_ref.hybrid_engine"),
    "reward_model.overlong_buffer": _moved("reward.reward_kwargs.overlong_buffer_cfg", add=True),
    "reward_model.launch_reward_fn_async": _gone("rewards are always computed beside the rollout"),
    "reward_model.strategy": _gone("reward models are served by a rollout engine: reward.reward_model.rollout"),
    "reward_model.micro_batch_size": _gone("reward models are served by a rollout engine: reward.reward_model.rollout"),
    "reward_model.micro_batch_size_per_gpu": _gone(
        "reward models are served by a rollout engine: reward.reward_model.rollout"
    ),
    "reward_model.use_dynamic_bsz": _gone("reward models are served by a rollout engine: reward.reward_model.rollout"),
    "reward_model.forward_max_token_len_per_gpu": _gone("reward models are served by a rollout engine"),
    "reward_model.max_length": _moved("reward.reward_model.rollout.prompt_length"),
    "reward_model.model.input_tokenizer": _gone("the reward model's own tokenizer is used"),
    # RAGEN (facts: 2026-04)
    "actor_rollout_ref.rollout_filter_strategy": _gone(f"{_RAGEN}; there it is under {R} now", "RAGEN"),
    "actor_rollout_ref.rollout_filter_ratio": _gone(f"{_RAGEN}; there it is under {R} now", "RAGEN"),
    f"{R}.rollout_filter_strategy": _gone(_RAGEN, "RAGEN"),
    f"{R}.rollout_filter_ratio": _gone(_RAGEN, "RAGEN"),
    "model_path": New("actor_rollout_ref.model.path", _RAGEN, source="RAGEN"),
    "micro_batch_size_per_gpu": New(f"{A}.ppo_micro_batch_size_per_gpu", _RAGEN, source="RAGEN"),
    "log_prob_micro_batch_size_per_gpu": New(f"{R}.log_prob_micro_batch_size_per_gpu", _RAGEN, source="RAGEN"),
    "ppo_mini_batch_size": New(f"{A}.ppo_mini_batch_size", _RAGEN, source="RAGEN"),
    "system.CUDA_VISIBLE_DEVICES": _gone(f"{_RAGEN}; set the environment variable, or cluster.max_ranks", "RAGEN"),
    "es_manager": _gone(f"{_RAGEN}: its environments", "RAGEN"),
    "agent_proxy": _gone(f"{_RAGEN}: its turns", "RAGEN"),
    # AReaL 0.3 and 1.0
    "allocation_mode": New("tp", f"{_AREAL}; here the rollout's tensor parallel size is tp", source="AReaL"),
    "group_size": New(f"{R}.n", _AREAL, source="AReaL"),
    "n_nodes": New("trainer.nnodes", _AREAL, source="AReaL"),
    "n_gpus_per_node": New("trainer.n_gpus_per_node", _AREAL, source="AReaL"),
    "dataset.path": New("data.train_files", _AREAL, source="AReaL"),
    "dataset.train_bs_n_seqs": New("data.train_batch_size", _AREAL, source="AReaL"),
    "train_dataset.path": New("data.train_files", _AREAL, source="AReaL"),
    "train_dataset.batch_size": New("data.train_batch_size", _AREAL, source="AReaL"),
    "gconfig.n_samples": New(f"{R}.n", _AREAL, source="AReaL"),
    "gconfig.max_new_tokens": New("data.max_response_length", _AREAL, source="AReaL"),
    "ppo.gen.max_new_tokens": New("data.max_response_length", _AREAL, source="AReaL"),
    "exp_ctrl.total_train_epochs": New("trainer.total_epochs", _AREAL, source="AReaL"),
    "total_train_epochs": New("trainer.total_epochs", _AREAL, source="AReaL"),
    "total_train_steps": New("trainer.total_training_steps", _AREAL, source="AReaL"),
    "exp_ctrl.save_freq_steps": New("trainer.save_freq", _AREAL, source="AReaL"),
    "saver.freq_steps": New("trainer.save_freq", _AREAL, source="AReaL"),
    "actor.optimizer.lr": New("lr", _AREAL, source="AReaL"),
    "actor.kl_ctl": New("kl", _AREAL, source="AReaL"),
    "experiment_name": New("project", _AREAL, source="AReaL"),
    "trial_name": New("name", _AREAL, source="AReaL"),
    # AgentFly
    "agent.num_chains": New(f"{R}.n", _AGENTFLY, source="AgentFly"),
    "agent.run_config.num_chains": New(f"{R}.n", _AGENTFLY, source="AgentFly"),
    "agent.max_steps": New(f"{R}.multi_turn.max_assistant_turns", _AGENTFLY, source="AgentFly"),
    "agent.model_name_or_path": New("actor_rollout_ref.model.path", _AGENTFLY, source="AgentFly"),
    "agent": _gone(_AGENTFLY, "AgentFly"),
}
"""Old key (or the parent of old keys) -> what became of it."""

IGNORED_UNDER: Mapping[str, New] = {
    "custom_reward_function": _moved("reward.custom_reward_function", source=_MIGRATE),
    "sandbox_fusion": _moved("reward.sandbox_fusion", source=_MIGRATE),
    "reward_model.num_workers": _moved("reward.num_workers", source=_MIGRATE),
    "reward_model.reward_manager": _moved("reward.reward_manager.name", source=_MIGRATE),
    "reward_model.reward_loop_source": _moved("reward.reward_manager.source", source=_MIGRATE),
    "reward_model.reward_loop_module_path": _moved("reward.reward_manager.module.path", source=_MIGRATE),
    "reward_model.reward_loop_class_name": _moved("reward.reward_manager.module.name", source=_MIGRATE),
    "reward_model.model.path": _moved("reward.reward_model.model_path", source=_MIGRATE),
    "reward_model.reward_kwargs": _moved("reward.reward_kwargs", add=True, source=_MIGRATE),
    "reward_model.enable": _moved("reward.reward_model.enable", source=_MIGRATE),
    "reward_model.enable_resource_pool": _moved("reward.reward_model.enable_resource_pool", source=_MIGRATE),
    "reward_model.n_gpus_per_node": _moved("reward.reward_model.n_gpus_per_node", source=_MIGRATE),
    "reward_model.nnodes": _moved("reward.reward_model.nnodes", source=_MIGRATE),
    "reward_model.rollout": _moved("reward.reward_model.rollout", source=_MIGRATE),
}
"""Keys (or parents) that verl 0.9.1 lists for its older launch scripts, and whose values its main_ppo drops unseen."""


def find(key: str) -> New | None:
    """What became of a key that verl's config does not have; None where nothing is known of it."""
    return _longest(key, RENAMED) or _longest(key, IGNORED_UNDER)


def ignored(key: str) -> New | None:
    """Where a key moved that is accepted and never read; None for a key that is read."""
    return _longest(key, IGNORED_UNDER)


def _longest(key: str, table: Mapping[str, New]) -> New | None:
    """The entry for the key or its nearest parent; a key below a parent that moved keeps its own end."""
    parts = key.split(".")
    for count in range(len(parts), 0, -1):
        new = table.get(".".join(parts[:count]))
        if new is not None:
            rest = parts[count:]
            if not rest or not new.key:
                return new
            target = ".".join([new.key, *rest])
            return replace(new, key=target, why=f"it is called {target} now")
    return None
