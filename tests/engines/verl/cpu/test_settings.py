"""What the orchestrator reads of the CPU engine: cheap, and true to verl's config."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import yaml

from sweeper.engines.verl.cpu import ROLLOUT, environment, overlay


def test_it_imports_nothing_heavy():
    code = (
        "import sys; from sweeper.engines.verl.cpu import overlay, environment; overlay(); environment(); "
        "assert not {'torch', 'ray', 'verl', 'transformers', 'tensordict'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_key_is_verls_or_goes_where_verl_takes_any():
    verl = Path(importlib.util.find_spec("verl").origin).parent
    known = yaml.load((verl / "trainer/config/_generated_ppo_trainer.yaml").read_text(), Loader=yaml.CSafeLoader)
    known = set(leaves(known))
    free = (
        "model.override_config.",
        "fsdp_config.mixed_precision.",
        "fsdp.mixed_precision.",
        "sampler_kwargs.",
        "agent_loop_manager_class",
    )
    strangers = [k for k in leaves(overlay()) if k not in known and not any(part in k for part in free)]
    assert strangers == []


def test_the_files_and_names_it_points_to_exist():
    values = overlay()
    agent = values["actor_rollout_ref"]["rollout"]["agent"]
    loops = yaml.safe_load(Path(agent["agent_loop_config_path"]).read_text())
    assert agent["default_agent_loop"] in [loop["name"] for loop in loops]
    assert values["actor_rollout_ref"]["rollout"]["name"] == ROLLOUT
    sampler = values["trainer"]["v1"]["sampler"]["custom_sampler"]
    modules = [
        environment()["VERL_USE_EXTERNAL_MODULES"],
        sampler["path"].removeprefix("pkg://"),
        *(loop["_target_"].rpartition(".")[0] for loop in loops),
        agent["agent_loop_manager_class"].rpartition(".")[0],
    ]
    assert all(importlib.util.find_spec(module) for module in modules)


def test_a_change_of_one_value_changes_no_other():
    values = overlay()
    values["actor_rollout_ref"]["actor"]["fsdp_config"]["mixed_precision"]["param_dtype"] = "bf16"
    assert values["critic"]["fsdp"]["mixed_precision"]["param_dtype"] == "fp32"
    assert overlay()["actor_rollout_ref"]["actor"]["fsdp_config"]["mixed_precision"]["param_dtype"] == "fp32"


def test_what_verl_derives_from_a_cpu_value_is_set_too() -> None:
    """The overlay is laid on a config that is resolved already, so a derived key would keep its GPU value."""
    from sweeper.config.interpolation import Graph
    from sweeper.engines.verl import base_config
    from sweeper.engines.verl.engine import _cpu_values

    graph = Graph(base_config.load("dp"))
    laid = {".".join(path) for path, _ in _cpu_values(None)}
    derived = {key for of in laid for key in graph.affected(of)}
    assert "actor_rollout_ref.actor.use_remove_padding" in derived, "the test looks at something"
    assert {key for key in derived - laid if not key.startswith("distillation.")} == set()
