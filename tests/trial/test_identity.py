"""The fingerprint: equal however it was written, changed by every identity leaf and by no placement leaf."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sweeper.engines.verl.placement import PLACEMENT
from sweeper.trial.identity import OURS, canonical, fingerprint, is_placement

numbers = st.integers() | st.floats(allow_nan=False)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
configs = st.dictionaries(st.text(min_size=1, max_size=6), values, max_size=6)


def rewritten(value: Any) -> Any:
    """The same config as another writer would have it: keys turned round, tuples, whole floats for integers."""
    if isinstance(value, Mapping):
        return {k: rewritten(v) for k, v in reversed(list(value.items()))}
    if isinstance(value, list):
        return tuple(rewritten(v) for v in value)
    if type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is float and value.is_integer():
        return int(value)
    return value


@given(configs)
def test_the_way_of_writing_does_not_matter(config: dict[str, Any]) -> None:
    assert fingerprint(rewritten(config), ()) == fingerprint(config, ())
    assert canonical(rewritten(config)) == canonical(config)


CONFUSABLE = [0, -0.0, False, "0", None, "", "null", [], {}, [0], ["0"], [False], [[]], [{}], 1, True, 1.0, "1", "1.0"]
CONFUSABLE += [
    float("inf"),
    "inf",
    [{"float": "inf"}],
    {"a": 0},
    {"a.b": 0},
    {"a": {"b": 0}},
    {"a\\.b": 0},
    [{"a": {"b": 0}}],
]


@given(st.sampled_from(CONFUSABLE), st.sampled_from(CONFUSABLE))
def test_what_differs_differs(one: Any, other: Any) -> None:
    same = fingerprint({"x": {"k": one}}, ()) == fingerprint({"x": {"k": other}}, ())
    assert same == (_plain({"k": one}) == _plain({"k": other}))


def _plain(value: Any) -> Any:
    """Equality where True is not 1 and an empty mapping below a key is nothing."""
    if isinstance(value, Mapping):
        kept = {k: _plain(v) for k, v in value.items()}
        return {k: v for k, v in kept.items() if v != {}}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return ("bool", value) if isinstance(value, bool) else value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"lr": 1e-6}, {"lr": 0.000001}),
        ({"n": 1}, {"n": 1.0}),
        ({"n": 0}, {"n": -0.0}),
        ({"b": [0.9, 0.999]}, {"b": (0.9, 0.999)}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}),
        ({"a": 1, "kwargs": {}}, {"a": 1}),
        (
            {"model": {"path": "/home/a/.cache/sweeper/model-0123456789abcdef"}},
            {"model": {"path": "/scratch/b/model-0123456789abcdef"}},
        ),
        (
            {"f": ["/c/data-arith-0123456789abcdef/train.parquet"]},
            {"f": ["/d/e/data-arith-0123456789abcdef/train.parquet"]},
        ),
        ({"p": "/a/lib/python3.11/site-packages/verl/x.py"}, {"p": "/b/lib/python3.12/site-packages/verl/x.py"}),
    ],
)
def test_the_same_written_differently(one: dict[str, Any], other: dict[str, Any]) -> None:
    # below a key that is not one of ours: `model` is
    assert fingerprint({"x": one}, ()) == fingerprint({"x": other}, ())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"n": 1}, {"n": True}),
        ({"n": 1}, {"n": "1"}),
        ({"lr": 1e-6}, {"lr": "1e-6"}),
        ({"n": None}, {}),
        ({"n": None}, {"n": "null"}),
        ({"a": {"b": 1}}, {"a.b": 1}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({"a": []}, {}),
        ({"a": float("inf")}, {"a": float("-inf")}),
        ({"a": float("inf")}, {"a": "inf"}),
        ({"a": [{"float": "inf"}]}, {"a": [float("inf")]}),
        ({"a": [{}]}, {"a": []}),
        ({"p": "/data/a/train.parquet"}, {"p": "/data/b/train.parquet"}),
        ({"p": "/c/data-0123456789abcdef/train"}, {"p": "/c/data-0123456789abcdef/test"}),
        ({"lr": 1e-6}, {"lr": 1.0000000000000002e-6}),
    ],
)
def test_not_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert fingerprint({"x": one}, ()) != fingerprint({"x": other}, ())


class _Odd(float):
    pass


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, Path("/x"), b"x", object(), 1j, _Odd(1.5)])
def test_what_cannot_be_compared_is_refused_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match=r"actor\.optim\.lr"):
        fingerprint({"actor": {"optim": {"lr": value}}}, ())
    with pytest.raises(TypeError, match=r"actor\.betas\[1\]"):
        fingerprint({"actor": {"betas": [0.9, value]}}, ())


def test_a_key_that_is_no_string_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="actor has the key 1"):
        fingerprint({"actor": {1: 2}}, ())


def test_numpy_numbers_are_refused_and_not_guessed() -> None:
    np = pytest.importorskip("numpy")
    with pytest.raises(TypeError, match="lr is a float64"):
        fingerprint({"lr_": {"lr": np.float64(1e-6)}}, ())


# --- verl's real config ---


@cache
def verl_config(flavour: str = "") -> dict[str, Any]:
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        pytest.skip("verl is not installed")
    path = Path(spec.origin).parent / "trainer" / "config" / f"_generated_ppo_{flavour}trainer.yaml"
    config = OmegaConf.load(path)
    OmegaConf.update(config, "actor_rollout_ref.rollout.name", "vllm")
    OmegaConf.update(config, "reward.reward_model.rollout.name", "vllm")
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(k): v for k, v in found.items()}


def leaves(value: Mapping[str, Any], at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [
        leaf
        for key, inner in value.items()
        for leaf in (leaves(inner, (*at, key)) if isinstance(inner, Mapping) and inner else [(*at, key)])
    ]


def changed(config: dict[str, Any], leaf: tuple[str, ...]) -> dict[str, Any]:
    """The config with another value at one leaf; what is not on the way to it is shared."""
    first, *below = leaf
    return {**config, first: changed(config[first], tuple(below)) if below else "something else"}


@pytest.mark.parametrize("flavour", ["", "megatron_", "veomni_", "torchtitan_"])
def test_over_every_leaf_of_verls_config(flavour: str) -> None:
    """Every identity leaf changes the fingerprint, each to another one; no placement leaf changes it."""
    config = verl_config(flavour)
    before = fingerprint(config, PLACEMENT)
    seen = {before}
    identity = placement = 0
    for leaf in leaves(config):
        after = fingerprint(changed(config, leaf), PLACEMENT)
        if is_placement(".".join(leaf), PLACEMENT):
            placement += 1
            assert after == before, leaf
        else:
            identity += 1
            assert after not in seen, leaf
            seen.add(after)
    assert identity > 300
    assert placement > 300


IDENTITY = [
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.actor.kl_loss_coef",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_epochs",
    "actor_rollout_ref.actor.clip_ratio_high",
    "actor_rollout_ref.actor.loss_agg_mode",
    "actor_rollout_ref.actor.policy_loss.loss_mode",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.temperature",
    "actor_rollout_ref.rollout.dtype",
    "actor_rollout_ref.rollout.seed",
    "actor_rollout_ref.rollout.response_length",
    "actor_rollout_ref.actor.fsdp_config.model_dtype",
    "actor_rollout_ref.model.lora_rank",
    "algorithm.adv_estimator",
    "algorithm.kl_ctrl.kl_coef",
    "algorithm.use_kl_in_reward",
    "algorithm.gamma",
    "critic.optim.lr",
    "critic.ppo_mini_batch_size",
    "data.train_files",
    "data.val_files",
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.seed",
    "data.shuffle",
    "trainer.total_training_steps",
    "trainer.total_epochs",
    "trainer.balance_batch",
    "trainer.resume_from_path",
    "trainer.use_v1",
    "trainer.v1.trainer_mode",
    "reward.custom_reward_function.path",
]
PLACED = [
    "actor_rollout_ref.rollout.tensor_model_parallel_size",
    "actor_rollout_ref.rollout.data_parallel_size",
    "actor_rollout_ref.rollout.pipeline_model_parallel_size",
    "actor_rollout_ref.rollout.gpu_memory_utilization",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    "actor_rollout_ref.actor.use_dynamic_bsz",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu",
    "actor_rollout_ref.actor.fsdp_config.param_offload",
    "actor_rollout_ref.actor.fsdp_config.optimizer_offload",
    "actor_rollout_ref.ref.fsdp_config.param_offload",
    "critic.ppo_micro_batch_size_per_gpu",
    "critic.forward_micro_batch_size",
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
    "trainer.default_local_dir",
    "trainer.logger",
    "trainer.project_name",
    "trainer.experiment_name",
    "trainer.save_freq",
    "trainer.max_actor_ckpt_to_keep",
    "trainer.resume_mode",
    "global_profiler.tool",
    "ray_kwargs.ray_init.num_cpus",
    "reward.num_workers",
    "actor_rollout_ref.rollout.agent.num_workers",
    "actor_rollout_ref.rollout.prometheus.port",
    "transfer_queue.metrics.port",
    "actor_rollout_ref.model.enable_gradient_checkpointing",
]


def test_the_lists_agree_with_what_people_expect() -> None:
    """Named one by one: a pattern that grew too wide or too narrow shows here."""
    found = {".".join(leaf) for leaf in leaves(verl_config())}
    assert not set(IDENTITY) - found, "not verl's keys any more"
    assert not set(PLACED) - found, "not verl's keys any more"
    assert [k for k in IDENTITY if is_placement(k, PLACEMENT)] == []
    assert [k for k in PLACED if not is_placement(k, PLACEMENT)] == []


def test_every_pattern_names_something_of_verls() -> None:
    found = {".".join(leaf) for f in ("", "megatron_", "veomni_", "torchtitan_") for leaf in leaves(verl_config(f))}
    idle = [p for p in PLACEMENT if not any(is_placement(k, (p,)) for k in found)]
    # grad_offload: megatron's key in verl before 0.9, still typed in scripts
    assert idle == ["**.grad_offload"]


def test_our_own_keys() -> None:
    base = {**verl_config(), "seed": 1, "lr": None, "engine": {"name": "verl", "env": {}, "python": None}}
    before = fingerprint(base)
    assert fingerprint({**base, "lr": 1e-6, "tp": 2, "name": "x", "store": "y", "model": {"name": "tiny"}}) == before
    assert fingerprint({**base, "engine": {**base["engine"], "python": "/usr/bin/python3"}}) == before
    assert fingerprint({**base, "engine": {**base["engine"], "env": {"OMP_NUM_THREADS": "1"}}}) != before
    assert fingerprint({**base, "seed": 2}) != before
    assert fingerprint({**base, "environment": {"name": "arithmetic", "max": 19}}) != before
    assert fingerprint({**base, "trainer": {**base["trainer"], "nnodes": 2}}) == before, "the engine's own patterns"
    assert set(OURS) >= {"name", "seed", "engine", "max_concurrent"}


def test_the_fingerprint_of_a_config_stays() -> None:
    """Recorded fingerprints must be found again by later releases: changing the rules breaks every resume."""
    config = {"seed": 1, "engine": {"name": "none"}, "a": {"lr": 1e-6, "n": 8.0, "on": True, "s": "x", "l": [1, None]}}
    assert fingerprint(config) == FROZEN


FROZEN = "a369213e4c61654a6cbf19f8f8d0b9caf5c8bfe95d96f20526532281e22f49f7"


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["a", "b", "cc", "d_e"]), min_size=1, max_size=5))
def test_patterns(parts: list[str]) -> None:
    key = ".".join(parts)
    assert is_placement(key, ("**",))
    assert is_placement(key, (key,))
    assert is_placement(key, (f"**.{parts[-1]}",))
    assert is_placement(f"{key}.below", (key,))
    assert is_placement(key, (".".join("*" for _ in parts),))
    assert not is_placement(f"{key}x", (key,))
    assert not is_placement(f"x{key}", (f"**.{key}",))
    assert not is_placement(key, ())
