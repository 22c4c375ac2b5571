"""reasoning-gym: real tasks built and scored by their own scorer, and what is said of tasks that cannot be."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sweeper import environments, prepare
from sweeper.environments import reasoning_gym as ours
from sweeper.environments.probe import Interpreter
from sweeper.errors import Problem, SweeperError

HERE = Interpreter()
INSTRUCTION = "Put the answer between <answer> and </answer>."


def environment(task: str = "chain_sum", **changes: Any) -> dict[str, Any]:
    made = {
        "name": "reasoning_gym",
        "kind": "reasoning_gym",
        "task": task,
        "parameters": {},
        "train_rows": 8,
        "val_rows": 4,
        "seed": 0,
        "answer": "tags",
        "instruction": INSTRUCTION,
    }
    return {**made, **changes}


def build(tmp_path: Path, env: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Any]:
    """The training rows, the validation rows and the reward function, as a trainer would load them."""
    folder = ours.build(tmp_path / "built", ours.spec(env))
    spec = importlib.util.spec_from_file_location("built_reward", folder / "reward.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    train, val = (pq.read_table(folder / f"{s}.parquet").to_pylist() for s in ("train", "val"))
    return train, val, module.compute_score


def score(reward: Any, row: dict[str, Any], response: str) -> dict[str, float]:
    scored: dict[str, float] = reward(
        data_source=row["data_source"],
        solution_str=response,
        ground_truth=row["reward_model"]["ground_truth"],
        extra_info=row["extra_info"],
    )
    return scored


# Plain text, tuples in the entry (arc_agi scores a list as wrong), many right answers, another scorer, a parameter.
@pytest.mark.parametrize(
    "task, parameters",
    [
        ("chain_sum", {"max_terms": 3}),
        ("spell_backward", {}),
        ("arc_agi", {}),
        ("countdown", {}),
        ("simple_equations", {}),
        ("mini_sudoku", {}),
    ],
)
def test_the_right_answer_gets_all_and_another_not(tmp_path: Path, task: str, parameters: dict[str, Any]) -> None:
    env = environment(task, parameters=parameters)
    assert ours.check(env, HERE) == []
    train, val, reward = build(tmp_path, env)
    assert (len(train), len(val)) == (8, 4)
    for row in train + val:
        truth = row["reward_model"]["ground_truth"]
        assert score(reward, row, f"so <answer> {truth} </answer>") == {"score": 1.0, "acc": 1.0}
        assert score(reward, row, truth)["acc"] == 0.0, "an answer outside the tags"
        assert score(reward, row, "<answer>no idea</answer>")["score"] < 1.0


def test_the_rows_are_in_the_trainers_columns(tmp_path: Path) -> None:
    from sweeper.environments import rows

    train, _, _ = build(tmp_path, environment())
    assert rows.check(tmp_path / "built" / "train.parquet", "k") == []
    assert train[0]["data_source"] == "reasoning_gym/chain_sum"
    assert train[0]["prompt"][0]["content"].endswith("\n\n" + INSTRUCTION)
    assert [r["extra_info"]["index"] for r in train] == list(range(8))


def test_the_whole_response_is_the_answer_when_asked(tmp_path: Path) -> None:
    env = environment(answer="whole", instruction=None)
    assert ours.check(env, HERE) == []
    train, _, reward = build(tmp_path, env)
    assert score(reward, train[0], f" {train[0]['reward_model']['ground_truth']}\n")["score"] == 1.0
    assert INSTRUCTION not in train[0]["prompt"][0]["content"]


def test_a_response_on_which_a_scorer_chokes_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import reasoning_gym

    train, _, reward = build(tmp_path, environment())

    class Choking:
        def score_answer(self, **_: object) -> float:
            raise ValueError("what is this?")

    monkeypatch.setattr(reasoning_gym, "create_dataset", lambda *a, **k: Choking())
    assert score(reward, train[0], "<answer>1</answer>") == {"score": 0.0, "acc": 0.0}


def test_no_validation_item_is_a_training_item_even_where_there_are_few(tmp_path: Path) -> None:
    # One-digit sums of two terms: about 200 questions.
    small = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    train, val, _ = build(tmp_path, environment(parameters=small, train_rows=300, val_rows=60))
    asked = [r["prompt"][0]["content"] for r in val]
    assert len(set(asked)) == 60
    assert not set(asked) & {r["prompt"][0]["content"] for r in train}


def test_too_few_different_items_are_told(tmp_path: Path) -> None:
    small = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(SweeperError, match=r"chain_sum has too few different items.*of 500.*environment.val_rows="):
        build(tmp_path, environment(parameters=small, val_rows=500))
    assert not (tmp_path / "built").exists()


def test_the_same_spec_gives_the_same_rows_and_another_seed_others(tmp_path: Path) -> None:
    first, _, _ = build(tmp_path / "a", environment())
    again, _, _ = build(tmp_path / "b", environment())
    other, _, _ = build(tmp_path / "c", environment(seed=1000))
    assert first == again != other


def only(problems: list[Problem]) -> Problem:
    [problem] = problems
    return problem


def test_an_unknown_task_names_the_nearest() -> None:
    problem = only(ours.check(environment("spel_backward"), HERE))
    assert problem.fix == "environment.task=spell_backward" and "spell_backward" in problem.valid


def test_an_unknown_parameter_names_the_nearest_and_all() -> None:
    problem = only(ours.check(environment(parameters={"max_term": 3}), HERE))
    assert problem.fix == "+environment.parameters.max_terms=3" and "min_digits" in problem.valid


def test_a_parameter_that_the_task_refuses_is_told_in_its_own_words() -> None:
    problem = only(ours.check(environment(parameters={"min_terms": 9}), HERE))
    assert "max_terms must be >= min_terms" in problem.what
    problem = only(ours.check(environment("composite"), HERE))
    assert "Must specify at least one dataset" in problem.what


@pytest.mark.parametrize(
    "change, key",
    [
        ({"train_rows": 0}, "environment.train_rows"),
        ({"val_rows": "many"}, "environment.val_rows"),
        ({"seed": -1}, "environment.seed"),
        ({"answer": "xml"}, "environment.answer"),
        ({"instruction": "Answer."}, "environment.instruction"),
        ({"parameters": {"seed": 3}}, "environment.parameters.seed"),
    ],
)
def test_a_bad_setting_is_named(change: dict[str, Any], key: str) -> None:
    assert only(ours.check(environment(**change), HERE)).key == key


def test_an_interpreter_without_the_package_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "reasoning_gym.py").write_text("raise ImportError('no module named reasoning_gym')")
    problem = only(ours.check(environment(), Interpreter(env={"PYTHONPATH": str(tmp_path)})))
    assert "pip install reasoning-gym" in problem.fix


def test_a_batch_larger_than_the_training_set(tmp_path: Path) -> None:
    config = {
        "environment": environment(),
        "data": {"train_batch_size": 9, "train_files": None},
        "engine": {},
        "model": {},
        "actor_rollout_ref": {"model": {"path": "x"}},
    }
    assert "8 rows" in only(environments.check(config)).what
    [made] = prepare.missing([config], tmp_path)
    assert made.kind == "reasoning_gym" and json.dumps(made.spec)


def test_every_task_of_the_package_is_stored_and_scored_as_it_was_made() -> None:
    """The score of the stored entry is the score of the entry, for whatever is answered."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    namespace: dict[str, Any] = {}
    exec(ours._reward(ours.spec(environment())), namespace)  # its reader of marked tuples
    assert len(DATASETS) > 100
    for task in sorted(set(DATASETS) - {"composite"}):
        data = reasoning_gym.create_dataset(task, seed=1, size=2)
        for entry in (data[0], data[1]):
            stored = namespace["_unmark"](json.loads(json.dumps(ours.mark_tuples(entry))))
            assert stored == entry, task
            answer = str(entry["answer"] or "")
            assert data.score_answer(answer, stored) == data.score_answer(answer, entry), task
