"""Our own keys are checked like the engine's."""

from __future__ import annotations

import pytest

from sweeper import app
from sweeper.config.hydra_app import initialized


@pytest.mark.parametrize(
    ("override", "valid"),
    [
        ("max_concurrent=many", "a whole number from 1, or null"),
        ("max_concurrent=0", "a whole number from 1, or null"),
        ("output=loud", "auto, rich, plain, json"),
        ("objective.mode=best", "max, min"),
        ("cluster.gpus_per_node=x", "a whole number from 1, or null"),
        ("cluster.device=tpu", "auto, cpu, cuda"),
        ("updates_per_step=0", "a whole number from 1"),
        ("engine.fork_server=perhaps", "true, false"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named_with_what_can(
    override: str, valid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with initialized():
        assert app.run([override, "plan=true"]) == 2
    said = capsys.readouterr()
    assert override in said.out + said.err
    assert valid in said.out + said.err


def test_all_wrong_keys_come_in_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    with initialized():
        assert app.run(["output=plain", "objective.mode=best", "cluster.nodes=0", "max_concurrent=-1"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("objective.mode=best", "cluster.nodes=0", "max_concurrent=-1"))
