"""User constraints: read, never run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.errors import Problem
from sweeper.search.constraints import Constraint, parse

CONFIG = {"lr": 1e-4, "kl": 0, "tp": None, "updates_per_step": 4, "trainer": {"n_gpus_per_node": 8}, "name": "x"}
CHOICES = {"algorithm": "ppo"}


def one(text: str) -> Constraint:
    problems: list[Problem] = []
    (found,) = parse([text], problems)
    assert not problems
    return found


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("lr * updates_per_step < 1e-3", True),
        ("lr > 1", False),
        ("algorithm == 'ppo' and trainer.n_gpus_per_node >= 8", True),
        ("algorithm in ['grpo', 'rloo']", False),
        ("algorithm != 'ppo' or kl == 0", True),
        ("1 < updates_per_step < 4", False),
        ("tp is null or tp <= 4", True),
        ("log10(lr) <= -4 if kl == 0 else false", True),
        ("max(lr, 2) ** 2 == 4 and not (kl > 0)", True),
        ("-lr < 0 and updates_per_step % 2 == 0 and updates_per_step // 3 == 1", True),
    ],
)
def test_what_holds(text: str, holds: bool) -> None:
    constraint = one(text)
    assert constraint.problem(CONFIG, CHOICES) is None
    assert constraint.broken(CONFIG, CHOICES) == ("" if holds else f"constraint: not {text}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr *", "invalid syntax"),
        ("", "no text"),
        ("__import__('os').remove('x')", "no part of an expression"),
        ("open('x') == 1", "there is no open()"),
        ("(lambda: 1)() == 1", "no part of an expression"),
        ("[x for x in kl] == []", "no part of an expression"),
        ("lr[0] == 1", "no part of an expression"),
        ("max(lr, key=abs) > 1", "no part of an expression"),
        ("f'{lr}' == 'x'", "no part of an expression"),
        ("(" * 500 + "lr" + ")" * 500, "parentheses"),
    ],
)
def test_what_cannot_be_read(text: str, said: str) -> None:
    problems: list[Problem] = []
    assert parse([text], problems) == ()
    assert said in problems[0].what and problems[0].valid


@pytest.mark.parametrize(
    ("text", "said", "fix"),
    [
        ("lrr < 1", "there is no lrr", "lr < 1"),
        ("trainer.n_gpu_per_node < 1", "there is no trainer.n_gpu_per_node", "trainer.n_gpus_per_node < 1"),
        ("lr.__class__ == 1", "there is no lr.__class__", ""),
        ("lr * 2", "not true or false", ""),
        ("lr < 1 and kl", "not true or false", ""),
        ("tp < 2", "tp=None", ""),
        ("lr / kl > 1", "division by zero", ""),
        ("name * 9 == 'x'", "not both numbers", ""),
        ("9 ** 9 ** 9 ** 9 > lr", "cannot be computed", ""),
    ],
)
def test_what_says_nothing_of_a_config(text: str, said: str, fix: str) -> None:
    problem = one(text).problem(CONFIG, CHOICES)
    assert problem is not None and said in problem.what and fix in problem.fix
    assert one(text).broken(CONFIG, CHOICES)


@given(st.text(max_size=30), st.dictionaries(st.sampled_from(["a", "b"]), st.integers() | st.text(max_size=3)))
def test_no_text_raises(text: str, config: dict[str, Any]) -> None:
    problems: list[Problem] = []
    for constraint in parse([text], problems):
        constraint.problem(config, {})
        constraint.broken(config, {})
