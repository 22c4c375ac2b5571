"""What a sweep was asked for, as its ledger keeps it, and whether a request to go on with it is the same.

Guarantees: a sweep goes on only with the arms, the space and the identity that it was started with; what differs is
said key by key; settings that only say how long or how many (budgets, thresholds, concurrency) are free to change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.plan.plan import Plan
from sweeper.trial.identity import canonical
from sweeper.trial.ledger import Ledger
from sweeper.trial.records import SweepFolder
from sweeper.trial.spec import key_of

SHOWN = 12
"""Differences that are printed before the rest is counted."""
MOST_ARMS = 200
"""Arms whose identity is kept. Of more arms (a cross product typed by hand) the trials' fingerprints tell."""
_NONE = "(not there)"


def describe(plan: Plan) -> dict[str, Any]:
    """The request, for the ledger's first event."""
    first: Mapping[str, Any] = plan.arms[0].identity() if plan.arms else {}
    arms = []
    for arm in plan.arms[:MOST_ARMS]:
        identity = first if arm is plan.arms[0] else arm.identity()
        arms.append(
            {
                "id": arm.id,
                "label": arm.label,
                "dims": {dim.name: _dim(dim) for dim in arm.dims},
                # Of the second arm on only what differs: an arm has hundreds of leaves.
                "identity": {k: v for k, v in identity.items() if arm is plan.arms[0] or first.get(k, _NONE) != v},
                "absent": sorted(k for k in first if k not in identity),
            }
        )
    settings = plan.search
    return {
        "arms": arms,
        "count": len(plan.arms),
        "search": {
            "sampler": settings.sampler,
            "options": dict(settings.options),
            "scheduler": settings.scheduler,
            "scheduler_options": dict(settings.scheduler_options),
            "sampler_seed": settings.sampler_seed,
            "seeds": list(settings.seeds),
            "final_seeds": list(settings.final_seeds),
            "objectives": list(settings.objectives),
            "metric": settings.metric,
            "mode": settings.mode,
            "constraints": list(settings.constraints),
        },
    }


def _dim(dim: Any) -> str:
    if dim.values is not None:
        return f"choice({', '.join(str(v) for v in dim.values)})"
    kind = "int " if dim.integer else ""
    return f"{kind}interval({dim.low}, {dim.high}){', log' if dim.log else ''}"


def asked(overrides: Sequence[str]) -> list[str]:
    """What of a request says what the sweep is, and not where it is or how it is shown."""
    return sorted(line for line in overrides if key_of(line) not in ("name", "store", "output", "detach"))


def grid(overrides: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The points of each arm of a grid that is gone on with, in order, where its ledger has all of them: they were
    checked when it was started, and a plan need not compose them again. Empty: there is no such ledger, the request is
    another one, or the first controller died before it had recorded them.
    """
    typed = {key_of(line): line.partition("=")[2] for line in overrides}
    path = Path(typed.get("store", "runs")).absolute() / typed.get("name", "") / "ledger.db"
    try:
        events = Ledger.history(path) if path.is_file() else []
    except SweeperError:
        return {}  # said when it is opened
    requests = [e.data for e in events if e.kind in ("sweep_started", "sweep_extended")]
    if not requests or requests[-1].get("search", {}).get("sampler") != "grid":
        return {}
    last = requests[-1]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for event in events:
        data = event.data
        if event.kind == "trial_planned" and data.get("kind") == "search":
            found.setdefault(str(data["arm"]), {}).setdefault(str(data["candidate"]), dict(data["params"]))
    search = last["search"]
    finals = last["count"] * len(search["final_seeds"])
    if sum(map(len, found.values())) * len(search["seeds"]) + finals != last.get("planned"):
        return {}
    same = asked(last.get("overrides") or ()) == asked(overrides)
    return {arm: list(points.values()) for arm, points in found.items()} if same else {}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two requests, a line each: `arm 1 (algorithm=ppo): critic.optim.lr: 0.001 -> 0.01`."""
    found = []
    then, here = dict(before.get("search") or {}), dict(now.get("search") or {})
    found += [
        f"search.{k}: {then.get(k)} -> {here.get(k)}" for k in sorted({*then, *here}) if then.get(k) != here.get(k)
    ]
    old, new = list(before.get("arms") or ()), list(now.get("arms") or ())
    if before.get("count", len(old)) != now.get("count", len(new)):
        found.append(f"arms: {before.get('count', len(old))} -> {now.get('count', len(new))}")
        return found
    if len(old) != len(new):
        found.append(f"arms: {_labels(old)} -> {_labels(new)}")
        return found
    shared = {}
    for a, b in zip(old, new, strict=True):
        of = f"arm {b['id']} ({b['label']}): "
        if a["label"] != b["label"]:
            found.append(f"arm {b['id']}: {a['label']} -> {b['label']}")
        for key in sorted({*a["dims"], *b["dims"]}):
            if a["dims"].get(key) != b["dims"].get(key):
                found.append(f"{of}{key}: {a['dims'].get(key, 'not searched')} -> {b['dims'].get(key, 'not searched')}")
        left, right = {**old[0]["identity"], **a["identity"]}, {**new[0]["identity"], **b["identity"]}
        for absent, leaves in ((a["absent"], left), (b["absent"], right)):
            for key in absent:
                leaves.pop(key, None)
        for key in sorted({*left, *right}):
            one, other = left.get(key, _NONE), right.get(key, _NONE)
            if canonical(one) != canonical(other):
                line = f"{key}: {one} -> {other}"
                if line not in shared:  # said once, with the first arm that has it
                    shared[line] = of
    found += [f"{of if len(new) > 1 else ''}{line}" for line, of in shared.items()]
    return found


def _labels(arms: list[Any]) -> str:
    return ", ".join(str(a["label"]) for a in arms[:6]) + (f" and {len(arms) - 6} more" if len(arms) > 6 else "")


def agree(
    before: Mapping[str, Any], now: Mapping[str, Any], folder: SweepFolder, *, free: tuple[str, ...] = ()
) -> None:
    """Refuse to go on with another request than the one that was started.

    `free`: keys that may differ (`trainer.total_training_steps`, where a sweep is extended).

    Raises:
        RequestError: it differs; with the differences, old value -> new value.
    """
    found = [d for d in differences(before, now) if not any(f"{key}: " in d for key in free)]
    if not found:
        return
    more = f"\n           and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    lines = "\n           ".join(found[:SHOWN])
    raise RequestError(
        Problem(
            f"this is not the request that {folder.name} was started with (then -> now):\n           {lines}{more}",
            valid="the overrides, conf/ and code that it was started with",
            fix=f"sweeper resume {folder.typed} --fork NEW-NAME"
            "   (a new sweep, which reuses what is finished and the same)",
        )
    )
