"""The user's own task: rows in the trainer's columns, used where they lie, and a reward function in a file.

Guarantees: nothing is copied or converted; the reward is imported by the engine's own interpreter, in a process of its
own, so it may import anything, print, hang or exit without harm here; every problem is found before anything starts.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sweeper.environments import rows
from sweeper.environments.probe import Interpreter, ProbeError, ask
from sweeper.errors import Problem

SIGNATURE = "function(data_source, solution_str, ground_truth, extra_info)"
"""How verl calls a reward, by keyword (verl/experimental/reward_loop/reward_manager/naive.py:66)."""
DEFAULT_FUNCTION = "compute_score"


def files(environment: Mapping[str, Any]) -> tuple[Path, Path]:
    """The training and validation file, absolute. Only after `check` found nothing."""
    return _path(environment["train"] or ""), _path(environment["val"] or "")


def reward(environment: Mapping[str, Any]) -> tuple[Path, str] | None:
    """The reward's file, absolute, and the function's name; None where verl's own rule for `data_source` is meant."""
    given = environment.get("reward")
    if not given:
        return None
    file, _, name = str(given).partition(":")
    return _path(file), name or DEFAULT_FUNCTION


def count(environment: Mapping[str, Any]) -> int | None:
    """Training rows; None while there is no such file."""
    file = _path(environment["train"] or "")
    return rows.report(file).rows if file.is_file() else None


def check(environment: Mapping[str, Any], interpreter: Interpreter) -> list[Problem]:
    """What is wrong with the files and the reward; cached by their content."""
    problems: list[Problem] = []
    sources: set[str] = set()
    for name in ("train", "val"):
        given = environment.get(name)
        key = f"environment.{name}"
        if not given or not isinstance(given, str):
            problems.append(
                Problem(f"{key} must name a file", valid=", ".join(rows.SUFFIXES), fix=f"{key}=<file>", key=key)
            )
            continue
        found = rows.check(_path(given), key)
        problems += found
        if not found:
            sources |= rows.report(_path(given)).sources
    own = reward(environment)
    return problems + (check_reward(*own, interpreter) if own else _check_sources(sources))


def check_reward(file: Path, name: str, interpreter: Interpreter, key: str = "environment.reward") -> list[Problem]:
    """What is wrong with a reward function: the file, its import, the name or the parameters."""
    if not file.is_file():
        near = rows.missing(file, key)
        fix = f"{near.fix}:{name}" if near.fix else ""
        return [Problem(near.what, valid="file.py:function", fix=fix, key=key)]
    try:
        answer = ask(interpreter, _IMPORT, {"file": str(file), "name": name}, stamp=file.read_bytes().hex())
    except ProbeError as error:
        return [Problem(f"{file} could not be imported: {error}", key=key)]
    if "error" in answer:
        wrong = Problem(f"{file}{answer['where']} does not import: {answer['error']}", fix=_hint(answer, file), key=key)
        may_have = interpreter.stands_in and answer.get("module") and not wrong.fix  # the image, that package
        return [] if may_have else [wrong]
    if "functions" in answer:
        return [
            Problem(
                f"{file} has no function {name}",
                valid=", ".join(answer["functions"]) or "none is defined there",
                fix=f"{key}={file}:{answer['near']}" if answer["near"] else "",
                key=key,
            )
        ]
    if "signature" in answer:
        return [
            Problem(
                f"{name}{answer['signature']} in {file} cannot be called as a reward: {answer['why']}",
                valid=SIGNATURE + "; add **kwargs for what later releases pass",
                key=key,
                source="verl/experimental/reward_loop/reward_manager/naive.py",
            )
        ]
    return []


def _hint(answer: Mapping[str, Any], file: Path) -> str:
    """A module beside the file is found by a script run there, and not by the trainer's workers."""
    module = str(answer.get("module") or "").split(".")[0]
    beside = module and ((file.parent / f"{module}.py").exists() or (file.parent / module).is_dir())
    return f"+engine.env.PYTHONPATH={file.parent}" if beside else ""


# Loads the file exactly as verl does (verl/utils/import_utils.py `load_module`): not in sys.modules, its folder not on
# sys.path, so that what fails there fails here.
_IMPORT = """
import difflib, importlib.util, inspect, traceback
file, name = question["file"], question["name"]
spec = importlib.util.spec_from_file_location("custom_module_reward", file)
module = importlib.util.module_from_spec(spec)
answer = {}
try:
    spec.loader.exec_module(module)
except SyntaxError as error:
    answer = {"where": f":{error.lineno}", "error": f"{type(error).__name__}: {error.msg}"}
except BaseException as error:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    said = (str(error).splitlines() or [""])[0]
    answer = {"where": f":{lines[-1]}" if lines else "", "error": f"{type(error).__name__}: {said}",
              "module": getattr(error, "name", None) if isinstance(error, ImportError) else None}
else:
    function = getattr(module, name, None)
    if not callable(function):
        defined = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        answer = {"functions": defined, "near": (difflib.get_close_matches(name, defined, 1, 0.4) or [""])[0]}
    else:
        try:
            signature = inspect.signature(function)
            signature.bind(data_source="", solution_str="", ground_truth="", extra_info={})
        except ValueError:
            pass  # a builtin does not say
        except TypeError as error:
            answer = {"signature": str(signature), "why": str(error)}
"""


def _check_sources(sources: set[str]) -> list[Problem]:
    """Without a reward of their own the rows need a `data_source` that verl has a rule for."""
    rules = _sources_with_rule()
    if rules is None:
        return []
    exact, prefixes = rules
    unknown = sorted(s for s in sources if s not in exact and not s.startswith(prefixes))
    if not unknown:
        return []
    return [
        Problem(
            f"there is no reward: verl has no rule for data_source {', '.join(unknown[:3])}",
            valid=", ".join(sorted(exact)),
            fix="environment.reward=<file.py>:<function>",
            key="environment.reward",
            source="verl/utils/reward_score/__init__.py default_compute_score",
        )
    ]


@lru_cache(maxsize=1)
def _sources_with_rule() -> tuple[frozenset[str], tuple[str, ...]] | None:
    """The values and prefixes of `data_source` that verl's default reward compares with; None without verl here.

    Read from its source without importing it.
    """
    found = importlib.util.find_spec("verl")
    file = Path(found.origin).parent / "utils/reward_score/__init__.py" if found and found.origin else None
    if file is None or not file.exists():
        return None
    exact: set[str] = set()
    prefixes: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == "data_source":
            exact |= {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "startswith"
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "data_source"
        ):
            prefixes |= {c.value for c in node.args if isinstance(c, ast.Constant) and isinstance(c.value, str)}
    return frozenset(exact), tuple(sorted(prefixes))


def _path(given: str) -> Path:
    return Path(given).expanduser().absolute()
