"""lr, kl, tp and seed in verl's config; and the keys that verl once had."""

from __future__ import annotations

from typing import Any

import pytest

from sweeper.config import tree
from sweeper.engines.verl import base_config, names, renamed
from sweeper.trial.identity import OURS

LOSS, LOSS_COEF = names.GATES["loss"]
REWARD, REWARD_COEF = names.GATES["reward"]


def config(gate: str = "loss", **ours: Any) -> dict[str, Any]:
    made: dict[str, Any] = tree.copy(base_config.load("dp"))
    return {**made, "lr": None, "kl": None, "tp": None, "seed": 1, "binding": {"kl_gate": gate}, **ours}


def bound(made: dict[str, Any], explicit: dict[str, Any] | None = None) -> dict[str, Any]:
    for key, value in (explicit or {}).items():
        tree.put(made, key, value)
    assert names.bind(made, explicit or {}) == []
    return made


def refused(made: dict[str, Any], explicit: dict[str, Any]) -> str:
    for key, value in explicit.items():
        tree.put(made, key, value)
    (problem,) = names.bind(made, explicit)
    return "\n".join(problem.lines())


@pytest.mark.parametrize(("name", "key"), [("lr", names.LR), ("tp", names.TP)])
class TestOneKey:
    def test_it_is_written(self, name: str, key: str) -> None:
        assert tree.get(bound(config(**{name: 4}), {name: 4}), key) == 4

    def test_null_leaves_the_key(self, name: str, key: str) -> None:
        assert tree.get(bound(config()), key) == tree.get(base_config.load("dp"), key)

    def test_a_typed_key_wins_over_a_default_of_ours(self, name: str, key: str) -> None:
        assert tree.get(bound(config(**{name: 4}), {key: 2}), key) == 2

    def test_both_typed_alike_is_fine(self, name: str, key: str) -> None:
        assert tree.get(bound(config(), {name: 2, key: 2}), key) == 2

    def test_both_typed_differently_is_refused(self, name: str, key: str) -> None:
        message = refused(config(), {name: 4, key: 2})
        assert f"{name}=4 and {key}=2" in message and f"leave {key} out" in message


@pytest.mark.parametrize("gate", names.GATES)
class TestKl:
    def test_it_opens_one_gate(self, gate: str) -> None:
        other = {"loss": "reward", "reward": "loss"}[gate]
        made = config(gate)
        tree.put(made, names.GATES[other][0], True)  # as an algorithm's file might have left it
        bound(made, {"kl": 0.02})
        assert tree.get(made, names.GATES[gate][0]) is True and tree.get(made, names.GATES[gate][1]) == 0.02
        assert tree.get(made, names.GATES[other][0]) is False

    def test_zero_closes_both(self, gate: str) -> None:
        made = config(gate)
        for switch, _ in names.GATES.values():
            tree.put(made, switch, True)
        bound(made, {"kl": 0})
        assert not any(tree.get(made, switch) for switch, _ in names.GATES.values())

    def test_the_other_gate_typed_on_is_refused(self, gate: str) -> None:
        other = {"loss": "reward", "reward": "loss"}[gate]
        message = refused(config(gate), {"kl": 0.01, names.GATES[other][0]: True})
        assert f"second KL term in the {other}" in message and f"binding.kl_gate={other}" in message

    def test_its_own_gate_typed_off_is_refused(self, gate: str) -> None:
        assert "switches it off" in refused(config(gate), {"kl": 0.01, names.GATES[gate][0]: False})

    def test_zero_with_a_gate_typed_on_is_refused(self, gate: str) -> None:
        assert "switches it on" in refused(config(gate), {"kl": 0, names.GATES[gate][0]: True})

    def test_another_coefficient_typed_is_refused(self, gate: str) -> None:
        coefficient = names.GATES[gate][1]
        assert coefficient in refused(config(gate), {"kl": 0.01, coefficient: 0.5})
        assert coefficient in refused(config(gate, kl=0), {"kl": 0, coefficient: 0.5}), "0 is a value like others"

    def test_null_leaves_verls_keys(self, gate: str) -> None:
        made = config(gate)
        tree.put(made, LOSS, True)
        assert bound(made)["actor_rollout_ref"]["actor"]["use_kl_loss"] is True

    def test_verls_own_words_win_over_a_default_of_ours(self, gate: str) -> None:
        made = bound(config(gate, kl=0), {LOSS: True, LOSS_COEF: 0.3})
        assert tree.get(made, LOSS) is True and tree.get(made, LOSS_COEF) == 0.3


@pytest.mark.parametrize("kl", [-1, "much", True])
def test_kl_is_a_weight(kl: object) -> None:
    assert "kl=0.001" in refused(config(), {"kl": kl})


def test_the_seed_reaches_every_seed_of_verl() -> None:
    made = bound(config(seed=7), {"seed": 7})
    seeds = {k: v for k, v in tree.leaves(made) if k.endswith("seed") and k != "seed"}
    # A reward model's rollout has a seed as well, which is no part of the policy's training.
    assert {k for k, v in seeds.items() if v != 7} == {"reward.reward_model.rollout.seed"}


def test_a_seed_that_was_typed_stays_and_contradicts_a_typed_name() -> None:
    assert bound(config(seed=1), {"data.seed": 42})["data"]["seed"] == 42
    assert "seed=7 and data.seed=42" in refused(config(), {"seed": 7, "data.seed": 42})


def test_everything_that_is_named_as_the_new_key_is_there() -> None:
    verl = base_config.load("dp")
    absent = object()
    for table in (renamed.RENAMED, renamed.IGNORED_UNDER):
        for old, new in table.items():
            if new.key and not new.add:
                there = new.key in OURS or tree.get(verl, new.key, absent) is not absent
                assert there, f"{old} -> {new.key}"


def test_what_is_called_renamed_is_gone_and_what_is_called_ignored_is_still_listed() -> None:
    verl = base_config.load("dp")
    absent = object()
    assert not [old for old in renamed.RENAMED if tree.get(verl, old, absent) is not absent]
    listed = [old for old, new in renamed.IGNORED_UNDER.items() if not new.add]
    assert not [old for old in listed if tree.get(verl, old, absent) is absent]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("critic.model.fsdp_config.optimizer_offload", "critic.fsdp.optimizer_offload"),
        ("reward_model.overlong_buffer.len", "reward.reward_kwargs.overlong_buffer_cfg.len"),
        ("agent.tools", ""),
        ("agent.num_chains", "actor_rollout_ref.rollout.n"),
    ],
)
def test_a_key_below_one_that_moved_keeps_its_end(old: str, new: str) -> None:
    found = renamed.find(old)
    assert found is not None and found.key == new


def test_a_key_that_nothing_is_known_of() -> None:
    assert renamed.find("trainer.no_such_thing") is None
    assert renamed.ignored("trainer.nnodes") is None


def test_fsdp_defaults_give_way_to_another_training_engine_and_keep_their_offloads() -> None:
    made: dict[str, Any] = {
        **tree.copy(base_config.load("megatron")),
        **dict.fromkeys(("lr", "kl", "tp")),
        "seed": 3,
    }
    made["binding"] = {"kl_gate": "loss"}
    tree.put(
        made, f"{names.ACTOR}.fsdp_config", {"param_offload": True, "optimizer_offload": True, "model_dtype": "fp32"}
    )
    bound(made, {f"{names.ACTOR}.megatron.optimizer_offload": False})
    assert "fsdp_config" not in made["actor_rollout_ref"]["actor"] and "fsdp" not in made["critic"]
    assert made["actor_rollout_ref"]["actor"]["megatron"]["param_offload"] is True
    assert made["actor_rollout_ref"]["actor"]["megatron"]["optimizer_offload"] is False  # typed
