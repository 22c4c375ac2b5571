"""What the best of a sweep is evaluated by: data and seeds that nothing was chosen by.

Guarantees: a seed that the sweep has used and the data that its scores are from are refused by name, before the sweep
is run (stage `sweep`) as well as when the checkpoint is evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper import environments
from sweeper.errors import Problem, RequestError
from sweeper.pipeline import places


def used(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> set[int]:
    """Every seed that the sweep trained or chose by."""
    typed = [o.partition("=")[2] for row in rows for o in row["overrides"] if o.startswith("seed=")]
    found = {*about["seeds"], *(row["seed"] for row in rows), *(int(t) for t in typed if t.isdigit())}
    return {int(seed) for seed in found if seed is not None}


def seeds(asked: Mapping[str, Any], taken: set[int]) -> list[int]:
    """The seeds of the evaluation.

    Raises:
        RequestError: They are no numbers, or the sweep has used one of them.
    """
    first, count = asked["seed"], asked["seeds"]
    for key, value in (("seed", first), ("seeds", count)):
        if type(value) is not int or value < 1:
            raise RequestError(
                Problem(f"evaluate.{key}={value}", valid="a whole number, 1 or more", key=f"evaluate.{key}")
            )
    found = list(range(first, first + count))
    if both := sorted(taken & set(found)):
        raise RequestError(
            Problem(
                f"the sweep was run under seed {both[0]}, which the best trial may have been chosen by",
                valid="seeds that the sweep has not used",
                fix=f"-S evaluate.seed={max(taken) + 1000}",
                key="evaluate.seed",
            )
        )
    return found


def data(asked: str, config: Mapping[str, Any]) -> Path:
    """The file that the best checkpoint of a sweep is evaluated on, absolute.

    Args:
        asked: `evaluate.data`.
        config: of one of the sweep's trials.

    Raises:
        RequestError: There is none, or it is what the sweep was validated on.
    """
    if asked == "test":
        path = environments.resolve(config).test
    else:
        path = Path(asked)
        if not path.is_relative_to(places.OWN):
            raise RequestError(
                Problem(
                    f"evaluate.data={asked} is outside {places.OWN}/, where a change of it would go unnoticed",
                    valid=f"test, or a file below {places.OWN}/",
                    key="evaluate.data",
                )
            )
        path = path.absolute()
    seen = config["data"]["val_files"]
    if path is None or str(path) in (seen if isinstance(seen, list) else [seen]):
        raise RequestError(
            Problem(
                f"the environment {config['environment']['name']} has no test set beside the set that the sweep's "
                "scores are from"
                if path is None
                else f"evaluate.data={asked} is the set that the sweep's scores are from",
                valid=f"a file below {places.OWN}/ that nothing was chosen by",
                fix=f"-S evaluate.data={places.OWN}/test.parquet",
                key="evaluate.data",
            )
        )
    if not path.is_file():
        raise places.missing(path)
    return path
