"""Nothing that depends on a key is missed when the key changes."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sweeper.config import resolvers, tree
from sweeper.config.interpolation import Graph

TEXTS = [
    *("${a.x}", "${.x}", "${..b.y}", "${oc.select:a.y,3}", "${oc.select:.x,null}", "${oc.select:nowhere,${b.x}}"),
    *("${a}", "${floordiv:${a.x},${b.x}}", "s/${a.x}/${b.y}", "${oc.select:${s},1}", "${${s}}", "${b.${t}}"),
]
LEAVES = ["c.p", "c.q", "c.r", "d", "b.z"]


@settings(max_examples=150)
@given(
    st.dictionaries(st.sampled_from(LEAVES), st.sampled_from(TEXTS)),
    st.sampled_from(["a.x", "b.x", "b.y", "s", "t"]),
)
def test_every_leaf_that_changes_is_named(interpolations: dict[str, str], changed: str) -> None:
    resolvers.register()
    config: dict[str, Any] = {"a": {"x": 6, "y": 2}, "b": {"x": 3, "y": 4}, "s": "a.x", "t": "x"}
    for key, text in interpolations.items():
        tree.put(config, key, text)
    new = tree.copy(config)
    tree.put(new, changed, {"s": "b.x", "t": "y"}.get(changed, 12))

    def value(of: dict[str, Any], key: str) -> str:
        try:
            node = OmegaConf.select(OmegaConf.create(of), key)
            return repr(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)
        except Exception as error:
            return type(error).__name__  # a cycle, or a relative key that leads nowhere: no value to compare

    named = Graph(config).affected(changed)
    missed = [key for key in interpolations if value(config, key) != value(new, key) and key not in named]
    assert not missed


def test_what_does_not_read_a_key_is_left_alone() -> None:
    graph = Graph({"a": 1, "b": 2, "c": "${a}", "d": "${c}", "e": "${b}", "f": [1, "${a}"]})
    assert graph.affected("a") == {"c", "d", "f.1"}
    assert graph.affected("b") == {"e"}
