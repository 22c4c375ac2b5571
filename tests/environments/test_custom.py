"""The user's own task: every way in which files and reward functions are wrong, and the way in which they are right."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sweeper import environments
from sweeper.environments import custom, probe
from sweeper.environments.probe import Interpreter
from sweeper.errors import Problem

HERE = Interpreter()


def rows(file: Path, count: int = 4, source: str = "mine") -> Path:
    lines = [
        json.dumps(
            {
                "data_source": source,
                "prompt": [{"role": "user", "content": str(i)}],
                "reward_model": {"ground_truth": str(i)},
            }
        )
        for i in range(count)
    ]
    file.write_text("\n".join(lines))
    return file


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    reward = tmp_path / "reward.py"
    reward.write_text("def score(data_source, solution_str, ground_truth, extra_info=None):\n    return 1.0\n")
    return {
        "name": "custom",
        "kind": "custom",
        "train": str(rows(tmp_path / "train.jsonl")),
        "val": str(rows(tmp_path / "val.jsonl")),
        "reward": f"{reward}:score",
    }


def config(environment: dict[str, Any], batch: int = 2) -> dict[str, Any]:
    return {"environment": environment, "data": {"train_batch_size": batch}, "engine": {"python": None, "env": {}}}


def reward_problem(tmp_path: Path, text: str, name: str = "score", interpreter: Interpreter = HERE) -> Problem:
    file = tmp_path / "r.py"
    file.write_text(text)
    [problem] = custom.check_reward(file, name, interpreter)
    return problem


def test_a_good_task_is_used_where_it_lies(task: dict[str, Any], tmp_path: Path) -> None:
    assert environments.check(config(task)) == []
    files = environments.resolve(config(task))
    assert (files.train, files.val) == (tmp_path / "train.jsonl", tmp_path / "val.jsonl")
    assert (files.reward, files.reward_name) == (tmp_path / "reward.py", "score")
    assert files.rows == 4 and not files.needs_build


def test_resolving_an_unfinished_task_raises_nothing(task: dict[str, Any]) -> None:
    """A plan that is wrong already is still sized."""
    for train in (None, "/nowhere/train.jsonl"):
        assert environments.resolve(config({**task, "train": train})).rows is None


def test_relative_paths_are_made_absolute(
    task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = environments.resolve(config({**task, "train": "train.jsonl", "reward": "reward.py:score"}))
    assert files.train == tmp_path / "train.jsonl" and files.reward == tmp_path / "reward.py"


def test_fewer_rows_than_a_batch_give_no_step(task: dict[str, Any]) -> None:
    assert environments.check(config(task, batch=4)) == []
    [problem] = environments.check(config(task, batch=5))
    assert "4 rows" in problem.what and "data.train_batch_size=5" in problem.what


def test_all_problems_are_told_at_once(task: dict[str, Any], tmp_path: Path) -> None:
    wrong = {**task, "train": None, "val": str(tmp_path / "vla.jsonl"), "reward": f"{tmp_path}/rewards.py:score"}
    train, val, reward = environments.check(config(wrong))
    assert train.fix == "environment.train=<file>"
    assert val.fix == f"environment.val={tmp_path / 'val.jsonl'}"
    assert reward.fix == f"environment.reward={tmp_path / 'reward.py'}:score"


def test_a_reward_with_a_syntax_error_names_the_line(tmp_path: Path) -> None:
    problem = reward_problem(tmp_path, "x = 1\ndef score(:\n")
    assert f"{tmp_path / 'r.py'}:2 does not import: SyntaxError" in problem.what


def test_a_reward_that_raises_on_import_names_line_and_error(tmp_path: Path) -> None:
    problem = reward_problem(tmp_path, "import math\n\nfoo = 1 / 0\n")
    assert "r.py:3 does not import: ZeroDivisionError: division by zero" in problem.what


def test_a_module_beside_the_reward_is_not_found_and_the_message_says_how(tmp_path: Path) -> None:
    (tmp_path / "helper.py").touch()
    text = "import helper\ndef score(data_source, solution_str, ground_truth, extra_info): return 0\n"
    problem = reward_problem(tmp_path, text)
    assert "No module named 'helper'" in problem.what
    assert problem.fix == f"+engine.env.PYTHONPATH={tmp_path}"
    told = Interpreter(env={"PYTHONPATH": str(tmp_path)})
    assert custom.check_reward(tmp_path / "r.py", "score", told) == []


def test_a_package_that_is_not_here_may_be_in_the_engines_image(tmp_path: Path) -> None:
    text = "import no_such_package\ndef score(data_source, solution_str, ground_truth, extra_info): return 0\n"
    assert "No module named" in reward_problem(tmp_path, text).what
    ours = Interpreter.of({"engine": {"image": "verl:1", "python": "python3"}})
    assert ours.python == sys.executable, "the image's is not here"
    assert custom.check_reward(tmp_path / "r.py", "score", ours) == []
    (tmp_path / "no_such_package.py").touch()
    beside = (tmp_path / "r.py").read_text() + "# beside it, which the image's interpreter does not look for either\n"
    assert "PYTHONPATH" in reward_problem(tmp_path, beside, interpreter=ours).fix


@pytest.mark.parametrize("leave", ["import sys; sys.exit(3)", "raise KeyboardInterrupt"])
def test_a_reward_that_leaves_on_import_does_not_take_us_with_it(tmp_path: Path, leave: str) -> None:
    assert "does not import" in reward_problem(tmp_path, leave).what


def test_a_reward_that_kills_its_process_is_told_apart(tmp_path: Path) -> None:
    problem = reward_problem(tmp_path, "import os\nprint('bye', flush=True)\nos._exit(7)")
    assert "could not be imported" in problem.what and "code 7: bye" in problem.what


def test_a_reward_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "TIMEOUT_S", 1.0)
    # The child of the child must not keep us waiting either.
    text = "import subprocess, time\nsubprocess.Popen(['sleep', '3600'])\ntime.sleep(3600)\n"
    assert "no answer within 1 s" in reward_problem(tmp_path, text).what


def test_what_a_reward_prints_is_not_taken_for_the_answer(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("print('{\"error\": 1}')\ndef score(**kwargs): return 0\n")
    assert custom.check_reward(tmp_path / "r.py", "score", HERE) == []


def test_a_function_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    text = "from os.path import join\ndef scores(**kw): pass\ndef other(**kw): pass\n"
    problem = reward_problem(tmp_path, text)
    assert problem.valid == "scores, other" and problem.fix.endswith("r.py:scores")


@pytest.mark.parametrize(
    "parameters, why",
    [
        ("solution_str, ground_truth", "data_source"),
        ("data_source, solution, ground_truth, extra_info", "solution"),
        ("data_source, solution_str, ground_truth", "extra_info"),
        ("data_source, solution_str, ground_truth, extra_info, strict", "strict"),
    ],
)
def test_a_function_that_cannot_be_called_as_verl_calls_it(tmp_path: Path, parameters: str, why: str) -> None:
    problem = reward_problem(tmp_path, f"def score({parameters}): return 0\n")
    assert f"score({parameters})" in problem.what and f"'{why}'" in problem.what
    assert "data_source, solution_str, ground_truth, extra_info" in problem.valid


@pytest.mark.parametrize(
    "text",
    [
        "def score(data_source, solution_str, ground_truth, extra_info, *, bonus=0): return 0",
        "async def score(data_source, solution_str, ground_truth, extra_info=None, **kw): return 0",
        "class R:\n    def __call__(self, **kw): return 0\nscore = R()",
    ],
)
def test_every_callable_that_verl_can_call_is_fine(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.py").write_text(text)
    assert custom.check_reward(tmp_path / "r.py", "score", HERE) == []


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "r.py").touch()
    [problem] = custom.check_reward(tmp_path / "r.py", "score", Interpreter("/nowhere/python"))
    assert "/nowhere/python cannot be started" in problem.what


def test_without_a_reward_the_rows_need_a_source_that_verl_knows(task: dict[str, Any], tmp_path: Path) -> None:
    [problem] = environments.check(config({**task, "reward": None}))
    assert "no rule for data_source mine" in problem.what and "openai/gsm8k" in problem.valid
    rows(tmp_path / "train.jsonl", source="openai/gsm8k")
    rows(tmp_path / "val.jsonl", source="aime2024")
    assert environments.check(config({**task, "reward": None})) == []


def test_a_thousand_trials_ask_once(task: dict[str, Any], tmp_path: Path) -> None:
    count = tmp_path / "count"
    (tmp_path / "reward.py").write_text(f"open({str(count)!r}, 'a').write('x')\ndef score(**kwargs): return 0\n")
    for _ in range(1000):
        assert environments.check(config(task)) == []
    assert count.read_text() == "x"
    (tmp_path / "reward.py").write_text("def score(data_source): return 0\n")
    assert environments.check(config(task))  # changed content is looked at again


def test_an_unknown_kind_names_the_nearest() -> None:
    [problem] = environments.check(config({"kind": "gsm8"}))
    assert problem.fix == "environment.kind=gsm8k"


def test_checking_imports_nothing_heavy(task: dict[str, Any]) -> None:
    """In a fresh interpreter: checking jsonl rows and a reward needs no data package at all."""
    import subprocess

    code = (
        "import sys, json\nfrom sweeper import environments, prepare\n"
        f"assert environments.check(json.loads({json.dumps(config(task))!r})) == []\n"
        "print([m for m in ('torch', 'ray', 'verl', 'mlflow', 'pandas', 'pyarrow', 'datasets', 'reasoning_gym')"
        " if m in sys.modules])"
    )
    root = str(Path(environments.__file__).parents[2])
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert out.stdout.strip() == "[]"
