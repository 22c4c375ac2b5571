"""The training systems that a trial can be a run of, by name.

Guarantees: asking for one imports its description only, never the system itself.
"""

from __future__ import annotations

import difflib
import importlib
from functools import lru_cache

from sweeper.engines.base import Engine
from sweeper.errors import Problem, RequestError

_ENGINES = {"verl": ("sweeper.engines.verl.engine", "VerlEngine")}


@lru_cache
def get(name: str) -> Engine:
    """The engine of that name.

    Raises:
        RequestError: There is none.
    """
    if name not in _ENGINES:
        near = difflib.get_close_matches(str(name), _ENGINES, n=1)
        raise RequestError(
            Problem(
                f"there is no engine {name}",
                valid=", ".join(_ENGINES),
                fix=f"engine={near[0]}" if near else "",
                key="engine.name",
            )
        )
    module, attribute = _ENGINES[name]
    engine: Engine = getattr(importlib.import_module(module), attribute)()
    return engine
