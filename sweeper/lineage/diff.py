"""What differs between two runs: config, code, data, environment, seeds, parents, curves.

Guarantees: only records and git repositories are read, nothing is run or changed; what differs between any two runs
(names, folders, times, hosts, what came of it) is no difference, and neither is a path that says the same relative to
its own run; equal values written differently are equal (sweeper/trial/identity.py); the files in which code differs are
named where both commits are on this machine. What could not be compared is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeper import engines
from sweeper.errors import RequestError
from sweeper.lineage import curves
from sweeper.lineage.find import Found
from sweeper.trial.identity import canonical

SHOWN = 12
"""Differences of one section that are printed before the rest is counted; JSON has all."""
WIDEST = 60
"""Characters of a value that are printed."""
PARTS = ("config", "placement", "code", "data", "environment", "seeds", "parents", "curves")
_OF_THE_SWEEP = frozenset(
    (
        "name",
        "project",
        "store",
        "plan",
        "detach",
        "output",
        "tracking",
        "max_concurrent",
        "search",
        "scheduler",
        "lineage",
        "keep",
    )
)
"""Keys of ours that say how a sweep is run and shown, not what one of its trials is."""
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs."""

    what: str
    a: Any
    """None: the first run has no such thing."""
    b: Any

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"what": self.what, "a": self.a, "b": self.b}


@dataclass(frozen=True, slots=True)
class Diff:
    """Two runs side by side."""

    a: Found
    b: Found
    parts: Mapping[str, tuple[Change, ...]]
    """Part (`PARTS`) -> what differs in it."""
    curves: curves.Compared | None
    """None: one of them has no metrics."""
    notes: tuple[str, ...] = field(default=())

    @property
    def equal(self) -> bool:
        """Whether nothing of what was compared differs."""
        return not any(self.parts.values())

    @property
    def code(self) -> int:
        """The command's exit code: 0 equal, 1 different, 2 nothing differs, but there were no curves to compare."""
        return 1 if not self.equal else 2 if self.curves is None else 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "equal": self.equal,
            "curves_compared": self.curves is not None,
            "a": {"run": self.a.name, "lineage": str(self.a.path)},
            "b": {"run": self.b.name, "lineage": str(self.b.path)},
            "differs": [part for part in PARTS if self.parts[part]],
            **{part: [c.as_dict() for c in self.parts[part]] for part in PARTS},
            "notes": list(self.notes),
        }


def diff(a: Found, b: Found) -> Diff:
    """Everything in which two runs differ.

    Raises:
        RecordsError: the metrics of one of them cannot be read.
    """
    one, other = a.document, b.document
    compared, notes = _curves(a, b)
    # Of the metrics what is the same in two runs of a deterministic config is compared.
    parted = [Change(f"step {p.step} {p.metric}", p.a, p.b) for p in (compared.partings if compared else ())]
    if compared and (compared.only_a or compared.only_b):
        ends = (curves.span(compared.only_a), curves.span(compared.only_b))
        parted.append(Change("steps that the other has not", *ends))
    code, unknown = code_changes(a, b)
    notes += [*unknown, *unhashed(one["inputs"], other["inputs"])]
    parts = {
        "config": tuple(leaves(one["identity"], other["identity"], relative(one), relative(other))),
        "placement": tuple(leaves(_placement(one), _placement(other), relative(one), relative(other))),
        "code": tuple(code),
        "data": tuple(changed_inputs(one["inputs"], other["inputs"])),
        "environment": tuple(environment(one["environment"], other["environment"])),
        "seeds": tuple(leaves(one["seeds"], other["seeds"])),
        "parents": tuple(_parents(one["parents"], other["parents"])),
        "curves": tuple(parted),
    }
    return Diff(a, b, parts, compared, tuple(notes))


def _curves(a: Found, b: Found) -> tuple[curves.Compared | None, list[str]]:
    engine = engines.get(str(a.document["environment"]["engine"]["name"]))
    found = [curves.of(run, engine) for run in (a, b)]
    missing = [run.name for run, curve in zip((a, b), found, strict=True) if not curve]
    if missing:
        return None, [f"{name} has no metrics, so the curves were not compared" for name in missing]
    unsigned = {*a.earlier, *b.earlier}
    return curves.compare(found[0], found[1], engine.of_machine, unsigned), []


def leaves(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    in_a: Sequence[tuple[str, str]] = (),
    in_b: Sequence[tuple[str, str]] = (),
) -> Iterator[Change]:
    """Dotted keys whose values differ, sorted; `in_a` and `in_b`: what to read a run's own names and folders as."""
    for key in sorted(a.keys() | b.keys()):
        x, y = a.get(key, _ABSENT), b.get(key, _ABSENT)
        if x is _ABSENT or y is _ABSENT:
            yield Change(key, _known(x), _known(y))
        elif canonical(x) != canonical(y) and _said(x, in_a) != _said(y, in_b):
            yield Change(key, x, y)


def _known(value: Any) -> Any:
    return None if value is _ABSENT else value


def _said(value: Any, names: Sequence[tuple[str, str]]) -> str:
    text = canonical(value)
    for name, stands_for in names:
        text = text.replace(json.dumps(name)[1:-1], stands_for)
    return text


def relative(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The names and folders of this run alone, the longest first."""
    run, code = document["run"], document["code"]
    folder, root = str(run["folder"]), str(code["root"])
    trial = folder.rpartition("/")[0]
    return [(folder, "{attempt}"), (trial, "{trial}"), (root, "{code}"), (f"{run['sweep']}-{run['trial']}", "{run}")]


def _placement(document: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in document["placement"].items() if k.partition(".")[0] not in _OF_THE_SWEEP}


def code_changes(a: Found, b: Found) -> tuple[list[Change], list[str]]:
    """What differs between the code of two runs, the files last; and why these cannot be told, in a line."""
    changes, notes = list(_code(a.document["code"], b.document["code"])), []
    if not changes:
        return [], []
    from sweeper.lineage import tree  # here: most runs that are compared have the same code

    try:
        files = tree.changed(a, b)
    except RequestError as error:
        notes.append(f"which files of the code differ cannot be told: {error.problems[0].what}")
    else:
        changes += [Change(path, x and f"blob {x[:12]}", y and f"blob {y[:12]}") for path, x, y in files]
    return changes, notes


def code_files(changes: Sequence[Change]) -> list[str]:
    """The files among what `code_changes` found, as `M path`, `A path`, `D path`; else the fields that differ."""
    fields = ("commit", "package_sha256", "patch")
    files = [f"{'A' if c.a is None else 'D' if c.b is None else 'M'} {c.what}" for c in changes if c.what not in fields]
    return files or [f"code.{c.what}" for c in changes]


def unhashed(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> list[str]:
    """The inputs of two runs that were not compared, since neither record has a hash of them; a line each."""
    one, other = by_role(a), by_role(b)
    both = [(key, one[key], other[key]) for key in sorted(one.keys() & other.keys())]
    return [
        f"inputs.{key}: {x['path']} was recorded without a hash, and is not compared"
        for key, x, y in both
        if not (told(x) or told(y) or (absent(x) and absent(y)))
    ]


def told(row: Mapping[str, Any]) -> bool:
    """Whether a record says what an input's content was."""
    return bool(row["sha256"] or row["revision"])


def absent(row: Mapping[str, Any]) -> bool:
    """Whether an input was none: what only sounds like a file (role `file`) and had nothing there."""
    return row["role"] == "file" and not told(row) and "://" not in str(row["path"])


def _code(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    for key in ("commit", "package_sha256"):
        if a[key] != b[key]:
            yield Change(key, a[key], b[key])
    one, other = a["patch"] or {}, b["patch"] or {}
    if one.get("sha256") != other.get("sha256"):
        yield Change("patch", _patch(one), _patch(other))


def _patch(patch: Mapping[str, Any]) -> str | None:
    return f"{patch['bytes']} bytes, {str(patch['sha256'])[:12]}" if patch else None


def changed_inputs(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Iterator[Change]:
    """By role and place: a run may have several training files."""
    one, other = by_role(a), by_role(b)
    for key in sorted(one.keys() | other.keys()):
        x, y = one.get(key), other.get(key)
        if x is None or y is None or (x["sha256"], x["revision"]) != (y["sha256"], y["revision"]):
            yield Change(key, _input(x), _input(y))


def by_role(inputs: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for each in inputs:
        role = str(each["role"])
        number = sum(1 for name in found if name.partition(" ")[0] == role)
        found[role if not number else f"{role} {number + 1}"] = each
    return found


def _input(one: Mapping[str, Any] | None) -> str | None:
    if one is None:
        return None
    rows = f", {one['rows']} rows" if one["rows"] is not None else ""
    digest = str(one["sha256"] or one["revision"] or "not hashed")[:12]
    return f"{one['path']}{rows}, {digest}"


def environment(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    """What differs between two environments: Python, engine, machine, packages.

    A run on a gang was computed by the gang's nodes and not by the machine that it was started from.
    """
    for key in ("name", "version", "commit"):
        if a["engine"][key] != b["engine"][key]:
            yield Change(f"engine {key}", a["engine"][key], b["engine"][key])
    here = () if a.get("nodes") else ("cpu", "gpus", "driver")
    for key in ("python", "platform", *here, "cuda", "image"):
        if a[key] != b[key]:
            yield Change(key, a[key], b[key])
    yield from nodes(a, b)
    yield from (Change(f"package {c.what}", c.a, c.b) for c in leaves(a["packages"], b["packages"]))
    one, other = a["lock"] or {}, b["lock"] or {}
    if one.get("sha256") != other.get("sha256"):
        yield Change("lock", _lock(one), _lock(other))


def nodes(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    """Where two gangs, both of which are known, consist of other machines."""
    one, other = (
        [", ".join(filter(None, [n["cpu"], *n["gpus"], n["driver"] and f"driver {n['driver']}"])) for n in e["nodes"]]
        if e.get("nodes")
        else []
        for e in (a, b)
    )
    if one and other and one != other:
        yield Change("nodes", "; ".join(one), "; ".join(other))


def _lock(lock: Mapping[str, Any]) -> str | None:
    return f"{lock['file']}, {str(lock['sha256'])[:12]}" if lock else None


def _parents(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Iterator[Change]:
    """What a run was made of. The attempt that it went on from and the run that it repeats change nothing."""
    one, other = (sorted(_parent(p) for p in ps if p["relation"] in ("forked-from", "extends")) for ps in (a, b))
    if one != other:
        yield Change("made of", ", ".join(one) or None, ", ".join(other) or None)


def _parent(parent: Mapping[str, Any]) -> str:
    at = f" at step {parent['step']}" if parent["step"] is not None else ""
    return f"{parent['relation']} {parent['trial']}{at} ({str(parent['checkpoint'] or 'no digest')[:12]})"


# --- for people ---


def text(found: Diff) -> str:
    """The short answer first, then each part that differs."""
    differing = [part for part in PARTS if found.parts[part]]
    said = f"they differ in {', '.join(differing)}" if differing else "they are equal"
    if not differing and found.curves is None:
        said += " in all but their curves"
    lines = [f"a  {_about(found.a)}", f"b  {_about(found.b)}", said, *found.notes]
    for part in differing:
        changes = found.parts[part]
        lines += ["", f"{part} ({len(changes)})"]
        width = min(max(len(c.what) for c in changes[:SHOWN]), WIDEST)
        lines += [f"  {c.what:{width}}  {short(c.a)} -> {short(c.b)}" for c in changes[:SHOWN]]
        if len(changes) > SHOWN:
            lines.append(f"  and {len(changes) - SHOWN} more (all with --json)")
    if found.curves is not None and found.curves.steps:
        first = found.curves.first
        parted = f"they part at {first}" if first else f"all {found.curves.values} values are the same to the last bit"
        lines += ["", f"{found.curves.steps} steps of both were compared: {parted}"]
    return "\n".join(lines)


def listed(changes: Sequence[Change]) -> list[str]:
    """The first of them, a line each, and how many more there are."""
    lines = [f"{c.what}: {short(c.a)} -> {short(c.b)}" for c in changes[:SHOWN]]
    return [*lines, f"and {len(changes) - SHOWN} more"] if len(changes) > SHOWN else lines


def _about(run: Found) -> str:
    of, result = run.document["run"], run.document["result"] or {}
    score = result.get("score")
    ended = f"{result.get('state', 'not ended')}" + ("" if score is None else f", score {score:.6g}")
    return f"{run.name}  {of['label']}  {ended}"


def short(value: Any) -> str:
    """A value in few characters; nothing as `(not there)`."""
    if value is None:
        return "(not there)"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."
