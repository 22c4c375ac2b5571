"""A resumed run trains at the rates that its config names. Loaded by verl in each of its processes.

verl restores the optimizer and the learning rate's schedule from the checkpoint (utils/checkpoint/
fsdp_checkpoint_manager.py load_checkpoint), and with them the learning rate of the run that saved it: a config with
another one, as PBT makes it, would change nothing. Here, after each load of a model (policy and critic alike):

- each parameter group's rate is the config's base rate times the config's schedule at the step of the checkpoint, and
  the schedule goes on from that base;
- `weight_decay`, `betas` and `eps` of the optimizer are the config's;
- moments, the count of steps and the random state are the checkpoint's.

Guarantees: a run that is resumed with the values it was saved with is not changed in a single bit; importing this
module imports only the standard library (an attempt's folder holds a copy of this file, for interpreters without this
project); verl's module is patched when verl imports it, in the processes that do.

FSDP and VeOmni only. Megatron takes its rates from the config by itself (megatron_checkpoint_manager.py:172,
`use_checkpoint_opt_param_scheduler` is off); torchtitan and automodel keep the checkpoint's.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

TARGET = "verl.utils.checkpoint.fsdp_checkpoint_manager"
GROUP_KEYS = ("weight_decay", "betas", "eps")


def asked(optimizer: Any, scheduler: Any) -> tuple[list[dict[str, Any]], list[float]]:
    """What the config made, before a load: values of each parameter group, base rates of the schedule."""
    groups = getattr(optimizer, "param_groups", None) or []
    made = [{key: group[key] for key in GROUP_KEYS if key in group} for group in groups]
    return made, [float(rate) for rate in getattr(scheduler, "base_lrs", ())]


def apply(optimizer: Any, scheduler: Any, made: list[dict[str, Any]], base_rates: list[float]) -> list[str]:
    """After a load: the config's values again. Returns what was changed, a line each; untouched where nothing differs.

    A schedule that is not a `LambdaLR` (verl's FSDP schedules are, utils/torch_functional.py:725) keeps the
    checkpoint's rates.
    """
    changed: list[str] = []
    groups = getattr(optimizer, "param_groups", None) or []
    for group, values in zip(groups, made, strict=False):
        for key, value in values.items():
            if group[key] != value:
                changed.append(f"{key} {group[key]} -> {value}")
                group[key] = value
    factors = getattr(scheduler, "lr_lambdas", None)
    if factors is None or not len(groups) == len(factors) == len(base_rates):
        return list(dict.fromkeys(changed))
    for place, (group, factor, base) in enumerate(zip(groups, factors, base_rates, strict=True)):
        rate = base * factor(scheduler.last_epoch)
        if float(scheduler.base_lrs[place]) != base or float(group["lr"]) != rate:
            changed.append(f"learning rate {float(group['lr']):g} -> {rate:g}")
            scheduler.base_lrs[place] = group["initial_lr"] = base
            scheduler._last_lr[place] = rate
            if hasattr(group["lr"], "fill_"):  # a tensor, for a captured graph or a compiled step
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
    return list(dict.fromkeys(changed))


def patch(module: Any) -> None:
    """Make the checkpoint manager of that module apply the config's values after each load."""
    manager = module.FSDPCheckpointManager
    original = manager.load_checkpoint

    @functools.wraps(original)
    def load_checkpoint(self: Any, *args: Any, **kwargs: Any) -> None:
        made, base_rates = asked(self.optimizer, self.lr_scheduler)
        original(self, *args, **kwargs)
        for line in apply(self.optimizer, self.lr_scheduler, made, base_rates):
            print(f"sweeper: resumed with another {line}", flush=True)

    manager.load_checkpoint = load_checkpoint


class _WhenImported(MetaPathFinder):
    """Patches a module when verl imports it: doing so now would cost seconds in processes that never need it."""

    def __init__(self, target: str, patch: Callable[[Any], None]) -> None:
        self._target, self._patch = target, patch

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # noqa: ARG002
        if fullname != self._target:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            self._patch(module)

        loader.exec_module = exec_module
        return spec


def when_imported(target: str, patch: Callable[[Any], None]) -> None:
    """Patch that module now, or when it is imported."""
    if target in sys.modules:
        patch(sys.modules[target])
    else:
        sys.meta_path.insert(0, _WhenImported(target, patch))


def install() -> None:
    """Patch verl's module; once."""
    when_imported(TARGET, patch)
