"""Any task of the package reasoning-gym, scored by the task's own scorer.

Guarantees: no validation item is a training item; the reward scores exactly the entry that was asked about, with the
task's own parameters; the package is imported by the engine's interpreter only. What a task cannot do is said before
anything starts.

All 106 tasks of reasoning-gym 0.1.25 but `composite` (whose parts cannot be written as plain values) are built and
scored; a test goes through them. Their entries hold tuples, which JSON would turn into lists (`arc_agi` and `rearc`
then score a right answer as wrong), so entries are stored with tuples marked.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeper import cache
from sweeper.environments.probe import Interpreter, ProbeError, ask
from sweeper.errors import Problem, SweeperError

ANSWERS = ("tags", "whole")
"""Where the answer is looked for: between <answer> tags, or the whole response."""
VALIDATION_SEED = 1_000_000
"""Items are drawn from seed, seed + 1, ... (the package seeds each item by its index): training items below this
distance, validation items from it on, so no item is drawn twice."""
_VERSION = 1  # of the files' format


def spec(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What the built folder depends on."""
    return {
        "kind": "reasoning_gym",
        "version": _VERSION,
        "task": environment["task"],
        "parameters": dict(environment.get("parameters") or {}),
        "train_rows": environment["train_rows"],
        "val_rows": environment["val_rows"],
        "seed": environment["seed"],
        "answer": environment["answer"],
        "instruction": environment.get("instruction") or "",
    }


def path(cache_root: Path, built: Mapping[str, Any]) -> Path:
    """Where the folder of this spec lives, built or not."""
    return cache.folder(cache_root, "reasoning_gym", built)


def check(environment: Mapping[str, Any], interpreter: Interpreter) -> list[Problem]:
    """What is wrong with the task, its parameters or the sizes."""
    problems = [
        Problem(f"environment.{name}={environment.get(name)!r}", valid=valid, key=f"environment.{name}")
        for name, valid, lowest in (
            ("train_rows", f"1 to {VALIDATION_SEED // 10}", 1),
            ("val_rows", f"1 to {VALIDATION_SEED // 10}", 1),
            ("seed", "a whole number from 0", 0),
        )
        if not _is_whole(environment.get(name), lowest, VALIDATION_SEED // 10 if lowest else 2**31)
    ]
    answer = environment.get("answer")
    if answer not in ANSWERS:
        problems.append(Problem(f"environment.answer={answer!r}", valid=", ".join(ANSWERS), key="environment.answer"))
    elif answer == "tags" and "<answer>" not in str(environment.get("instruction")):
        problems.append(
            Problem(
                "environment.answer=tags needs an instruction that tells the model to use <answer> tags; "
                "without it no response would ever be right",
                fix="environment.answer=whole, or name <answer> in environment.instruction",
                key="environment.instruction",
            )
        )
    return problems + _check_task(environment, interpreter)


def _is_whole(value: Any, lowest: int, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _check_task(environment: Mapping[str, Any], interpreter: Interpreter) -> list[Problem]:
    task, parameters = str(environment.get("task")), environment.get("parameters") or {}
    own = sorted(set(parameters) & {"seed", "size"})
    if own:
        return [
            Problem(
                f"environment.parameters.{own[0]} is set by the environment itself",
                fix="environment.seed=... environment.train_rows=... environment.val_rows=...",
                key=f"environment.parameters.{own[0]}",
            )
        ]
    try:
        answer = ask(interpreter, _ASK, {"task": task, "parameters": dict(parameters)})
    except ProbeError as error:
        return [Problem(f"environment.task={task} could not be tried: {error}", key="environment.task")]
    if "fields" in answer:
        return _parameter_problems(task, parameters, answer)
    if "missing" in answer:
        return [
            Problem(
                f"the package reasoning-gym cannot be imported by {interpreter.python}: {answer['missing']}",
                fix=f"{interpreter.python} -m pip install reasoning-gym",
                key="environment",
            )
        ]
    near = difflib.get_close_matches(task, answer["tasks"], n=5, cutoff=0.4)
    return [
        Problem(
            f"reasoning-gym has no task {task}",
            valid=f"{', '.join(near)}, ..." if near else ", ".join(answer["tasks"]),
            fix=f"environment.task={near[0]}" if near else "",
            key="environment.task",
        )
    ]


def _parameter_problems(task: str, parameters: Mapping[str, Any], answer: Mapping[str, Any]) -> list[Problem]:
    unknown = sorted(set(parameters) - set(answer["fields"]))
    if unknown:
        near = difflib.get_close_matches(unknown[0], answer["fields"], n=1, cutoff=0.4)
        return [
            Problem(
                f"the task {task} has no parameter {unknown[0]}",
                valid=", ".join(answer["fields"]),
                fix=f"+environment.parameters.{near[0]}={parameters[unknown[0]]}" if near else "",
                key=f"environment.parameters.{unknown[0]}",
            )
        ]
    if "error" in answer:
        return [
            Problem(
                f"reasoning-gym refuses the parameters of {task}: {answer['error']}",
                valid=", ".join(answer["fields"]),
                key="environment.parameters",
            )
        ]
    return []


_ASK = """
try:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS
except ImportError as error:
    answer = {"missing": str(error)}
else:
    import dataclasses
    task, parameters = question["task"], question["parameters"]
    if task not in DATASETS:
        answer = {"tasks": sorted(DATASETS)}
    else:
        fields = [f.name for f in dataclasses.fields(DATASETS[task][1])]
        answer = {"fields": [f for f in fields if f not in ("seed", "size")]}
        try:
            reasoning_gym.create_dataset(task, seed=0, size=1, **parameters)[0]
        except Exception as error:
            answer["error"] = str(error) or type(error).__name__
"""


def build(folder: Path, built: Mapping[str, Any]) -> Path:
    """Write the folder unless it is there; returns it. Says now and then how far it is.

    Raises:
        SweeperError: The task has too few different items, or an entry that cannot be stored.
    """
    with cache.building(folder) as aside:
        if aside:
            import pyarrow as pa
            import pyarrow.parquet as pq

            val = _draw(built, VALIDATION_SEED, built["val_rows"], set(), distinct=True)
            train = _draw(built, 0, built["train_rows"], {entry["question"] for entry in val}, distinct=False)
            for split, entries in (("train", train), ("val", val)):
                table = [_row(built, entry, split, i) for i, entry in enumerate(entries)]
                pq.write_table(pa.Table.from_pylist(table), aside / f"{split}.parquet")
            (aside / "reward.py").write_text(_reward(built), encoding="utf-8")
    return folder


def _draw(
    built: Mapping[str, Any], start: int, wanted: int, taken: set[str], *, distinct: bool
) -> list[dict[str, Any]]:
    """Entries whose question is not in `taken`; where `distinct`, none twice either."""
    import reasoning_gym

    tries = min(20 * wanted, VALIDATION_SEED)
    data = reasoning_gym.create_dataset(
        built["task"], **{**built["parameters"], "seed": built["seed"] + start, "size": tries}
    )
    refused, entries = set(taken), []
    for index in range(tries):
        entry = data[index]
        if entry["question"] in refused:
            continue
        if distinct:
            refused.add(entry["question"])
        entries.append(entry)
        if len(entries) % 500 == 0:
            print(f"reasoning_gym {built['task']}: {len(entries)} of {wanted} items", flush=True)
        if len(entries) == wanted:
            return entries
    name = "val_rows" if distinct else "train_rows"
    raise SweeperError(
        f"reasoning-gym's {built['task']} has too few different items for these parameters: {len(entries)} of "
        f"{wanted} after {tries} draws; try environment.{name}={max(1, len(entries) // 2)} or harder parameters"
    )


def _row(built: Mapping[str, Any], entry: Mapping[str, Any], split: str, index: int) -> dict[str, Any]:
    stored = mark_tuples(entry)
    try:
        text = json.dumps(stored)
    except TypeError as error:
        raise SweeperError(f"an entry of reasoning-gym's {built['task']} cannot be stored: {error}") from error
    question = entry["question"]
    content = f"{question}\n\n{built['instruction']}" if built["instruction"] else question
    return {
        "data_source": f"reasoning_gym/{built['task']}",
        "prompt": [{"role": "user", "content": content}],
        "ability": "reasoning",
        # Some tasks accept many answers and name none.
        "reward_model": {"style": "rule", "ground_truth": str(entry["answer"] or "")},
        "extra_info": {"split": split, "index": index, "entry": text},
    }


def mark_tuples(value: Any) -> Any:
    """The value with what JSON cannot tell apart marked: tuples, and mappings with keys that are no text.

    Raises:
        SweeperError: A mapping has the mark's own key.
    """
    if isinstance(value, tuple):
        return {"__tuple__": [mark_tuples(v) for v in value]}
    if isinstance(value, list):
        return [mark_tuples(v) for v in value]
    if isinstance(value, dict):
        if any(not isinstance(k, str) or k.startswith("__") for k in value):
            return {"__pairs__": [[mark_tuples(k), mark_tuples(v)] for k, v in value.items()]}
        return {k: mark_tuples(v) for k, v in value.items()}
    return value


def _reward(built: Mapping[str, Any]) -> str:
    return _REWARD.format(
        task=json.dumps(built["task"]),
        parameters=json.dumps(json.dumps(built["parameters"])),
        tags=built["answer"] == "tags",
    )


_REWARD = '''"""Scores a response with the scorer of the reasoning-gym task that asked the question."""

import json
from functools import lru_cache

TASK = {task}
PARAMETERS = json.loads({parameters})
TAGS = {tags}


@lru_cache(maxsize=1)
def _task():
    import reasoning_gym

    return reasoning_gym.create_dataset(TASK, **{{**PARAMETERS, "seed": 0, "size": 1}})


def _unmark(value):
    if isinstance(value, list):
        return [_unmark(v) for v in value]
    if isinstance(value, dict):
        if "__tuple__" in value:
            return tuple(_unmark(v) for v in value["__tuple__"])
        if "__pairs__" in value:
            return {{_unmark(k): _unmark(v) for k, v in value["__pairs__"]}}
        return {{k: _unmark(v) for k, v in value.items()}}
    return value


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    from reasoning_gym.utils import extract_answer

    answer = extract_answer(solution_str) if TAGS else solution_str.strip()
    entry = _unmark(json.loads(extra_info["entry"]))
    try:
        score = float(_task().score_answer(answer=answer, entry=entry))
    except Exception:  # a scorer may choke on what a model writes: that is a wrong answer, not the end of the run
        score = 0.0
    return {{"score": score, "acc": float(score >= 1.0)}}
'''
