"""Keys that MLflow takes, and that read back."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sweeper.tracking.names import MAX_KEY, decode, encode, params, value


@example("_u0/")  # looks like an escape and is no normal path
@example("_at_/../x")
@given(st.text(max_size=40) | st.text(alphabet="_at@u5f/. :", max_size=12))
def test_every_key_is_taken_and_reads_back(key: str) -> None:
    from mlflow.utils.validation import path_not_unique, validate_param_and_metric_name

    name = encode(key)
    assert validate_param_and_metric_name(name)
    assert not path_not_unique(name)
    assert len(name) <= MAX_KEY
    if len(name) < MAX_KEY:
        assert decode(name) == key


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("actor/pg_loss", "actor/pg_loss"),
        ("val-core/arithmetic/acc/mean@4", "val-core/arithmetic/acc/mean_at_4"),
        ("trainer.total_training_steps", "trainer.total_training_steps"),
        ("a b+c", "a b_u2b_c"),
        ("", "_u_"),
    ],
)
def test_names_people_see(key: str, name: str) -> None:
    assert encode(key) == name
    assert posixpath.normpath(name) == name


def test_long_keys_stay_apart() -> None:
    one, other = encode("x" * 300 + "1"), encode("x" * 300 + "2")
    assert len(one) == len(other) == MAX_KEY
    assert one != other


def test_parameters_what_varies_first() -> None:
    config = {"lr": 1e-6, "kl": None, "seed": 3, "model": {"name": "tiny"}, "actor": {"optim": {"lr": 1e-6, "b": [1]}}}
    found = params({"+actor.optim.lr": 2e-6, "algorithm": "grpo", "config": config})
    assert list(found)[:2] == ["actor.optim.lr", "algorithm"]
    assert found["actor.optim.lr"] == "2e-06", "what was typed wins over the same key of the config"
    assert (found["lr"], found["seed"], found["model"], found["actor.optim.b"]) == ("1e-06", "3", "tiny", "[1]")
    assert found["kl"] == "null"


def test_long_values_are_cut_and_say_so() -> None:
    assert len(value("x" * 10_000)) == 6000
    assert value("x" * 10_000).endswith("(10000 characters)")
    assert value(True) == "true"
