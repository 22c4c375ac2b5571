"""Rebuilds a trial from its record alone and runs it again, as a new sweep of one trial linked to the first.

Guarantees: everything is found out before anything is spent: the code, the data by content, the fingerprint of what is
composed, what differs in the environment; what is not as recorded is refused by name, exit code 2, with nothing
launched, overwritten or left behind, and as an UntrueError where it shows that the record itself is not true; the run
is made by the recorded code (tree.py), never by what is installed, and never stands in for itself: a finished trial
with the same fingerprint is not reused.

The overrides of the record compose the trial; what it was searched by is left out, and where it ran otherwise than they
say (a probed placement, less memory after a failure, a fork's checkpoint to begin at) that is added.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper import package
from sweeper.checkpoints import start
from sweeper.config import tree as config_tree
from sweeper.config.dims import text_of
from sweeper.errors import Problem, RequestError
from sweeper.lineage import diff, document, environment, forks, hashes, objects, tree
from sweeper.lineage.find import RECORD, Found, load
from sweeper.trial.identity import OURS, canonical
from sweeper.trial.records import SweepFolder, plain_name
from sweeper.trial.spec import key_of

ASKED = Path(__file__).with_name("asked.py")
OF_THE_SWEEP = frozenset(
    (
        "name",
        "store",
        "output",
        "plan",
        "detach",
        "max_concurrent",
        "search",
        "scheduler",
        "placement",
        "lineage",
        "keep",
        "hydra",
    )
)
"""Keys of override lines that say how the first sweep was run, not what the trial is."""
ONE_TRIAL = (
    "search=none", "search.trials=null", "search.points=[]", "search.constraints=[]", "search.seeds=1",
    "search.final_seeds=0", "scheduler=none", "placement.probe=false", "lineage.strict=false",
)  # fmt: skip
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that can be made."""

    found: Found
    code: Path
    """The folder whose sweep.py makes it."""
    overrides: tuple[str, ...]
    lock: int
    """A descriptor that keeps that folder from being removed."""
    repointed: tuple[str, ...]
    """Config keys that name an input of the recorded content in other words; where there is one the fingerprint is
    another, for it is of the words."""
    environment: tuple[diff.Change, ...]
    """What differs from the recorded environment."""
    notes: tuple[str, ...]
    """What else is not as it was, a line each."""
    code_differs: tuple[str, ...] = ()
    """The files in which the code is another one than was recorded (`tree.Tree.differs`)."""
    uncompared: tuple[str, ...] = ()
    """The inputs that have no recorded hash to be compared with, a line each."""


@contextlib.contextmanager
def planned(found: Found, *, here: bool = False, seeds: Sequence[int] = (), strict: bool = False) -> Iterator[Plan]:
    """Everything that the run needs, at hand while the block runs.

    Args:
        here: with the code of this checkout, whatever was recorded.
        seeds: run under these instead of its own.
        strict: refuse an environment in which no run is the same to the last bit (`decisive`).

    Raises:
        UntrueError: The record is not true: of its code, its data or its config, for what there is contradicts it.
        RequestError: It cannot be reproduced; what is missing, what was recorded and the next command.
    """
    _sound(found)
    fork = forks.of(found)
    begins = forks.checkpoint(found, fork) if fork else None
    with tree.rebuilt(found, here=here) as code:
        python = str((found.document["config"].get("engine") or {}).get("python") or sys.executable)
        differs = tuple(diff.environment(found.document["environment"], _environment(found, python, code.code)))
        if strict and (grave := [c for c in differs if decisive(c.what) or (c.what == "image" and _image(found))]):
            raise RequestError([_otherwise(found, c) for c in grave])
        places = _brought(found, code)
        lines = [*_own(found.document), *ONE_TRIAL]
        lines += ["~search.space", "+search.space={}"] if _searched_by_file(found.document) else []
        # One question is enough where all is as it was.
        answer = ask(code.code, lines, build=found.document["fingerprint"])
        others = tree.check(found, code, answer["package_sha256"])
        wanted = naming(found.document, places)
        for ours in (True, False):  # ours first: the engine's own keys are bound to them
            keys = [k for k in _elsewhere(wanted, answer["config"]) if (k.partition(".")[0] in OURS) is ours]
            if keys:
                lines += [f"++{key}={text_of(wanted[key])}" for key in keys]
                answer = ask(code.code, lines, build=False)
        if placed := _placed(found.document, answer["config"]):
            lines += placed
            answer = ask(code.code, lines, build=False)
        inputs = wanted.keys() - _elsewhere(wanted, answer["config"]).keys()
        repointed = _same_identity(found, answer, inputs, others, [c.what for c in differs])
        if begins is not None:  # only now: where a run begins is part of its identity, and the record's has none
            lines = [line for line in lines if _key(line) not in start.KEYS] + start.overrides(begins)
            answer = ask(code.code, lines, build=True)
        if "inputs" not in answer and not answer["refused"]:
            answer = ask(code.code, lines, build=True)
        if answer["refused"]:
            raise RequestError([Problem(**p) for p in answer["refused"]])
        uncompared = _same_inputs(found, answer["inputs"])
        if seeds:
            lines = [line for line in lines if _key(line) != "seed"] + [f"seed={','.join(map(str, seeds))}"]
        moved = tuple(f"{path} is read from {place}" for path, place in places.items() if place != Path(path))
        begun = (f"it begins where {found.name} was forked from {fork.donor}: {begins}",) if fork else ()
        notes = (*code.notes, *uncompared, *moved, *begun)
        yield Plan(found, code.code, tuple(lines), code.lock, repointed, differs, notes, others, uncompared)


def named(found: Found, name: str | None, store: Path) -> str:
    """What the new sweep is called; asked before anything is spent.

    Raises:
        RequestError: the name is taken, or cannot be one.
    """
    if name is None:
        return _free(store, found.document)
    plain_name("--name", name)
    if (store / name).exists():
        raise RequestError(Problem(f"a sweep named {name} is already in {store}", fix=f"--name {name}-2", key="name"))
    return name


def run(plan: Plan, sweep: str, *, store: Path, quiet: bool = False) -> tuple[int, list[Found]]:
    """Run it to its end, as the sweep of that name (`named`); its exit code and the runs that came of it."""
    own = [f"name={sweep}", f"store={text_of(str(store))}", f"lineage.reproduces={text_of(str(plan.found.path))}"]
    command = [
        sys.executable,
        str(plan.code / "sweep.py"),
        *plan.overrides,
        *own,
        f"output={'plain' if quiet else 'auto'}",
    ]
    # It holds the code's lock too: were we killed, the code stays while the sweep runs.
    process = subprocess.Popen(command, env=_environ(plan.code), stdout=2 if quiet else None, pass_fds=[plan.lock])
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # the sweep got it too, and stops gently or, the second time, at once
                continue
    finally:
        signal.signal(signal.SIGTERM, before)
    folder = SweepFolder(store / sweep)
    latest = [folder.latest_attempt(trial) for trial in folder.trial_ids()]
    return code, [load(at / RECORD) for at in latest if at is not None and (at / RECORD).is_file()]


def _free(store: Path, record: Mapping[str, Any]) -> str:
    of = record["run"]
    stem = f"again-{of['sweep']}-{of['trial']}"[:180]
    number = 1
    while (store / (name := stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return name


# --- what of the record is run ---


def _own(record: Mapping[str, Any]) -> list[str]:
    """The override lines of the trial itself."""
    return [str(line) for line in record["overrides"] if _key(str(line)).partition(".")[0] not in OF_THE_SWEEP]


def _key(line: str) -> str:
    """The key or group of an override line; `hydra/launcher=ray` is `hydra`."""
    key = key_of(line)
    return "hydra" if key.startswith("hydra") else key


def _searched_by_file(record: Mapping[str, Any]) -> bool:
    """Whether an experiment's file has a space, which no line of the request can be left out for."""
    return bool((record["config"].get("search") or {}).get("space"))


def _placed(record: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Overrides for the engine's placement that the attempt had and its overrides do not give."""
    own = dict(diff.relative(record))
    lines = []
    for key, value in record["placement"].items():
        composed = config_tree.get(config, key, _ABSENT)
        if key.partition(".")[0] in OURS or "\\" in key or composed is _ABSENT or _names(value, own):
            continue
        if canonical(composed) != canonical(value):
            lines.append(f"++{key}={text_of(value)}")
    return lines


def _names(value: Any, own: Mapping[str, str]) -> bool:
    """Whether a value is a place or the name of the first run, of which the new one has its own."""
    texts = value if isinstance(value, list) else [value]
    return any(isinstance(t, str) and ("/" in t or t in own) for t in texts)


# --- what its code makes of it ---


def ask(code: Path, overrides: Sequence[str], *, build: bool | str) -> dict[str, Any]:
    """What the code in a folder makes of these overrides (asked.py).

    Raises:
        RequestError: it makes nothing of them, or cannot be asked.
    """
    ended = subprocess.run(
        [sys.executable, "-P", str(ASKED)],
        input=json.dumps({"overrides": list(overrides), "build": build}),
        capture_output=True,
        text=True,
        errors="replace",
        env=_environ(code),
        check=False,
    )
    lines = ended.stdout.strip().splitlines()
    try:
        answer: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except ValueError:
        answer = {}
    if ended.returncode or not answer:
        said = (ended.stderr.strip().splitlines() or ["no word why"])[-1]
        what = f"the recorded code cannot be asked what it would run: {said}"
        raise RequestError(document.at_fault("code", what, fix=tree.HERE))
    if answer.get("problems"):
        what = "the recorded code does not take these override lines of the record"
        first = document.at_fault("overrides", what, valid="those that it was run with", fix=document.ELSEWHERE)
        raise RequestError([first, *(Problem(**p) for p in answer["problems"])])
    if not Path(answer["package"]).is_relative_to(code):
        what = f"the code of {code} is not what would run: {answer['package']} comes before it"
        raise RequestError(document.at_fault("code", what, fix="unset PYTHONPATH"))
    return answer


def _environ(code: Path) -> dict[str, str]:
    """This environment with that code first on the path, before what is installed."""
    return {**os.environ, "PYTHONPATH": package.pythonpath(code)}


def _same_identity(
    found: Found, answer: Mapping[str, Any], inputs: Set[str], others: Sequence[str], differs: Sequence[str]
) -> tuple[str, ...]:
    """The composed trial is the recorded one, but for the paths of `inputs`, whose content is the same: the keys whose
    paths differ.

    Args:
        others: files in which the code that composed it is not the recorded one.
        differs: what else is not as recorded (`diff.environment`).

    Raises:
        UntrueError: the recorded code composes another one.
        RequestError: so does what is here, which is not what was recorded; either with the leaves that differ.
    """
    if answer["trials"] != 1:
        what = f"the overrides of {found.name} give {answer['trials']} trials"
        raise document.UntrueError(document.at_fault("overrides", what, valid="one", fix=document.ELSEWHERE))
    recorded, composed = str(found.document["fingerprint"]), str(answer["fingerprint"])
    every = [c for c in diff.leaves(found.document["identity"], answer["identity"]) if not _masked(c)]
    if composed == recorded and every:
        said = f"{found.path} contradicts itself: these leaves are not those that its fingerprint stands for"
        key = f"identity.{every[0].what}"
        raise document.UntrueError(
            document.at_fault(key, f"{said}{_changes(every)}", valid=recorded, fix=document.ELSEWHERE)
        )
    changes = [c for c in every if c.what not in inputs]
    if composed == recorded or (every and not changes):
        return tuple(c.what for c in every)
    said = f"what composes now is not {found.name}: its fingerprint is {composed[:12]}, not {recorded[:12]}"
    blamed = [tree.shown(others)] if others else [what for what in differs if _composes(what)]
    key = f"identity.{changes[0].what}" if changes else "fingerprint"
    if not blamed:
        what, valid = f"{said} (recorded -> now){_changes(changes)}", f"overrides that compose {recorded}"
        raise document.UntrueError(document.at_fault(key, what, valid=valid, fix=document.ELSEWHERE))
    raise RequestError(
        document.at_fault(
            key,
            f"{said}, by another {', '.join(blamed)} (recorded -> now){_changes(changes)}",
            valid="the code, the installed packages and the machine that it was run with",
            fix=f"sweeper diff {found.path} OTHER   (with a run of today's code, to see what else is another one)",
        )
    )


def _composes(what: str) -> bool:
    """Whether a difference of the environment can make another config of the same overrides."""
    return what.startswith("engine ") or what in ("python", "gpus", "cuda", "package hydra-core", "package omegaconf")


def _sound(found: Found) -> None:
    """What a record says twice it says alike.

    Raises:
        UntrueError: it does not: somebody has edited it.
    """
    record, problems = found.document, []
    seeds = document.seeds({**record["identity"], **record["placement"]})
    engine, run_by = str((record["config"].get("engine") or {}).get("name")), record["environment"]["engine"]["name"]
    if seeds != record["seeds"]:
        (change, *_) = diff.leaves(record["seeds"], seeds)
        problems.append((f"seeds.{change.what}", change.a, change.b, "its identity and placement"))
    if engine != run_by:
        problems.append(("environment.engine.name", run_by, engine, "its config"))
    if problems:
        raise document.UntrueError(
            [
                Problem(
                    f"{found.path} contradicts itself: {key} is {diff.short(a)}, and by {by} it is {diff.short(b)}",
                    valid=diff.short(b),
                    fix=document.ELSEWHERE,
                    key=key,
                )
                for key, a, b, by in problems
            ]
        )


def _masked(change: diff.Change) -> bool:
    """The value of a secret variable is not in the record; the fingerprint has it."""
    name = change.what.removeprefix("engine.env.")
    return name != change.what and change.a == f"<{name}>"


def _changes(changes: Sequence[diff.Change]) -> str:
    lines = [f"\n           {line}" for line in diff.listed(changes)]
    return f":{''.join(lines)}" if lines else ""


# --- the environment ---


def _environment(found: Found, python: str, root: Path) -> dict[str, Any]:
    engine = found.document["config"].get("engine") or {}
    image, recorded = engine.get("image"), str(found.document["environment"]["image"])
    made = environment.capture(python, str(engine.get("name")), root, engine.get("env"), image)
    if image and made["image"] == image:  # without a digest
        made["image"] = _pulled(found, str(image)) or (recorded if recorded.startswith(f"{image}@") else image)
    return made


def _image(found: Found) -> str:
    """The image that the trial ran in, where it ran in one."""
    return str((found.document["config"].get("engine") or {}).get("image") or "")


def _pulled(found: Found, image: str) -> str:
    """The image with the digest that it has on this machine, where this machine runs the trial; empty where that is
    not known before it runs: other hosts, or an image that is yet to be pulled."""
    cluster = found.document["config"].get("cluster") or {}
    if cluster.get("kind", "local") != "local":
        return ""
    return environment.image_here(str((cluster.get("docker") or {}).get("program") or "docker"), image)


def other_image(found: Found, again: Found) -> str:
    """In what other image than the recorded one a new run was, in words; empty where it was the same, or where the
    record has no digest to tell by."""
    was, now = (str(run.document["environment"]["image"] or "") for run in (found, again))
    if not _image(found) or "@" not in was or was == now:
        return ""
    ran = now if "@" in now else f"{now or 'none'}, of which no digest was found"
    return f"environment.image: {was} was recorded, and {again.name} ran in {ran}"


def decisive(what: str) -> bool:
    """Whether a difference of the environment (`diff.environment`) leaves no hope for the same bits: another engine,
    Python or torch. Other packages and another processor may still compute the same; they are said."""
    return what.startswith("engine ") or what in ("python", "package torch", "gpus", "cuda")


NUMERIC = (
    "flash-attn", "flashinfer-python", "megatron-core", "numpy", "ray", "sglang", "tensordict", "torch", "transformers",
    "triton", "vllm",
)  # fmt: skip
"""Packages that compute, or decide what is computed in which order: where the bits part, another one of them may be
why."""


def reinstalling(found: Found, changes: Sequence[diff.Change]) -> tuple[str, ...]:
    """The command that brings the recorded versions back, where a package that computes is another one, or the lock
    file and what is installed by it; a line each."""
    packages = [c for c in changes if c.what.startswith("package ")]
    numeric = [c for c in packages if c.what.removeprefix("package ") in NUMERIC]
    if not numeric and not (packages and any(c.what == "lock" for c in changes)):
        return ()
    wanted = [f"{c.what.removeprefix('package ')}=={c.a}" for c in numeric or packages if c.a]
    gone = [c.what.removeprefix("package ") for c in numeric if not c.a]
    lines = [f"{_pip(found)} install {' '.join(wanted)}"] if wanted else []
    lines += [f"{_pip(found)} uninstall {' '.join(gone)}"] if gone else []
    named = ", ".join(f"environment.packages.{c.what.removeprefix('package ')}" for c in numeric) or "environment.lock"
    return (f"{named}: may compute otherwise; the recorded versions come back by", *(f"  {line}" for line in lines))


def _pip(found: Found) -> str:
    python = str((found.document["config"].get("engine") or {}).get("python") or sys.executable)
    return f"{shlex.quote(python)} -m pip"


def _otherwise(found: Found, change: diff.Change) -> Problem:
    name = change.what.removeprefix("package ")
    back = f"{_pip(found)} install {name}=={change.a}   or  " if name != change.what and change.a else ""
    if change.what == "image" and change.a:
        back = f"docker pull {change.a} && docker tag {change.a} {_image(found)}   or  "
    was, now = diff.short(change.a), diff.short(change.b)
    return document.at_fault(
        f"environment.{change.what.replace('package ', 'packages.').replace(' ', '.')}",
        f"{change.what} was {was} and is {now}: two such runs are not the same bit for bit",
        valid="the recorded environment",
        fix=f"{back}--allow-env, or --tier statistical",
    )


# --- the data ---


def _brought(found: Found, code: tree.Tree) -> dict[str, Path]:
    """Where each input of the user's lies now, by its recorded path.

    Raises:
        UntrueError: what lies where one was is another one, and there is no other place to look for it.
        RequestError: one of them is nowhere to be had with the recorded content.
    """
    places: dict[str, Path] = {}
    problems: list[Problem] = []
    untrue = False
    for given in found.document["inputs"]:
        path = str(given["path"])
        if given["built"] or not given["sha256"] or not path.startswith("/") or path in places:
            continue
        place, tried = _place(found, given, code)
        if place is None:
            problems.append(_altered(given, tried))
            untrue = untrue or (given["dvc"] is None and Path(path).exists())
        else:
            places[path] = place
    if problems:
        raise (document.UntrueError if untrue else RequestError)(problems)
    return places


def _place(found: Found, given: Mapping[str, Any], code: tree.Tree) -> tuple[Path | None, str]:
    """Where the recorded content is: where it was, in the recorded code, in DVC's cache or remote. Else what is."""
    path = Path(given["path"])
    digest = content(path)
    if digest == given["sha256"]:
        return path, ""
    root = Path(found.document["code"]["root"])
    inside = path.relative_to(root) if path.is_relative_to(root) else None
    if inside is not None and content(code.code / inside) == given["sha256"]:
        return code.code / inside, ""
    tried = f"{path} has sha256 {digest}" if digest else f"{path} is not there"
    if given["dvc"] is None:
        return None, tried
    target = code.code / inside if inside is not None else code.data / str(given["sha256"])[:16] / path.name
    why = _from_dvc(given, root, str(found.document["code"]["commit"] or ""), target, (code.code,))
    if content(target) == given["sha256"]:
        return target, ""
    return None, f"{tried}; {why}"


def content(path: Path) -> str | None:
    """The sha256 of a file or the digest of a folder, read anew; None where there is nothing."""
    if path.is_dir():
        return hashes.Hashes().tree(path, fresh=True).digest
    return hashes.sha256(path) if path.is_file() else None


def _from_dvc(given: Mapping[str, Any], root: Path, commit: str, target: Path, others: Sequence[Path] = ()) -> str:
    """Put what DVC has of an input at the target, by its hash; why it could not be.

    Args:
        root, commit: the recorded code.
        others: folders whose DVC is asked too, where the one that had it is gone.
    """
    md5, kept, path = str(given["dvc"]["md5"]), Path(given["dvc"]["path"]), Path(given["path"])
    own = _repository(kept) or root
    repositories = [r for r in dict.fromkeys((own, root, *others)) if (r / ".dvc").is_dir()]
    if not repositories:
        return f"the repository whose DVC has it, {own}, is not there"
    tracked = kept.with_suffix("") if kept.suffix == ".dvc" else None
    why = objects.bring(md5, path, tracked, repositories, target, files=int(given["files"]))
    if not why:
        return "DVC has another one"
    said = _named_in_dvc(own, path, commit if own == root else "", target) if own in repositories else ""
    return f"DVC could not get it: {why}{f'; by its path: {said}' if said else ''}"


def _named_in_dvc(repository: Path, path: Path, commit: str, target: Path) -> str:
    """Put what DVC has under a path there: the remotes of imports and versioned buckets know no hashes. Why not."""
    inside = path.relative_to(repository) if path.is_relative_to(repository) else path
    rev = ["--rev", commit] if commit else []
    ended = subprocess.run(
        [sys.executable, "-m", "dvc", "get", "--force", str(repository), str(inside), "-o", str(target), *rev],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("ERROR")), lines[0] if lines else "no word why")
    return said.removeprefix("ERROR: ") if ended.returncode else "another one"


def _altered(given: Mapping[str, Any], tried: str) -> Problem:
    pull = f"{_pull(given)}   or " if given["dvc"] else ""
    return document.at_fault(
        f"inputs.{given['role']}",
        f"the {given['role']} input {given['path']} is not what was recorded: {tried}",
        valid=f"sha256 {given['sha256']}, {given['bytes']} bytes",
        fix=f"{pull}put the recorded file back at {given['path']}",
    )


def _repository(kept: Path) -> Path | None:
    """The DVC repository that a file lies in."""
    return next((p for p in kept.parents if (p / ".dvc").is_dir()), None)


def _pull(given: Mapping[str, Any]) -> str:
    """The command that brings an input from DVC's remote; DVC takes paths as of its repository only."""
    kept = Path(given["dvc"]["path"])
    repository = _repository(kept)
    if repository is None:
        return f"dvc pull {shlex.quote(str(kept))}"
    return f"dvc --cd {shlex.quote(str(repository))} pull {shlex.quote(str(kept.relative_to(repository)))}"


def naming(record: Mapping[str, Any], places: Mapping[str, Path]) -> dict[str, Any]:
    """The config keys that name inputs of the user's, with the places where these lie now."""
    found = ((key, _replaced(value, places)) for key, value in config_tree.values(record["config"]))
    return {key: value for key, value in found if value is not None}


def _elsewhere(wanted: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Those of them that a config has otherwise. A relative path means the same only from the same folder."""
    return {k: v for k, v in wanted.items() if _absolute(config_tree.get(config, k, _ABSENT)) != v}


def _replaced(value: Any, places: Mapping[str, Path]) -> Any:
    """The value with the inputs' present places; None where it names none of them."""
    if isinstance(value, list):
        items = [_replaced(v, places) for v in value]
        return [i if i is not None else v for i, v in zip(items, value, strict=True)] if any(items) else None
    if not isinstance(value, str):
        return None
    file, colon, function = value.partition(":")  # a reward is FILE:FUNCTION
    for path, place in places.items():
        if file and (file == path or (not file.startswith("/") and path.endswith("/" + file.removeprefix("./")))):
            return f"{place}{colon}{function}"
    return None


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(v) for v in value]
    if not isinstance(value, str):
        return value
    file, colon, function = value.partition(":")
    return f"{Path(file).absolute()}{colon}{function}"


def _same_inputs(found: Found, now: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What the run would be given has the recorded content; those that have no recorded hash, a line each.

    Raises:
        UntrueError: one of them is there and has another content.
        RequestError: one of them is not there.
    """
    problems, uncompared = [], []
    untrue = False
    recorded = diff.by_role(found.document["inputs"])
    present = diff.by_role(now)
    for role, given in recorded.items():
        other = present.get(role)
        if given["sha256"] is None:
            uncompared += _without_hash(role, given, other)
            continue
        if other is not None and other["sha256"] == given["sha256"]:
            continue
        untrue = untrue or (other is not None and other["sha256"] is not None)
        if given["built"]:
            where = f"{other['path']} has sha256 {other['sha256']}" if other else "it is not there"
            folder = Path(other["path"]) if other else None
            folder = folder.parent if folder is not None and folder.is_file() else folder
            what = f"the {role} input that is built here is not what was recorded: {where}"
            fix = f"rm -r {folder}   (it is built again; if it differs then too, so do the packages that build it)"
            valid = f"sha256 {given['sha256']}"
            problems.append(document.at_fault(f"inputs.{role}", what, valid=valid, fix=fix if folder else ""))
        else:
            said = f"{other['path']} has sha256 {other['sha256']}" if other else "nothing takes its place"
            problems.append(_altered(given, said))
    if problems:
        raise (document.UntrueError if untrue else RequestError)(problems)
    return tuple(uncompared)


def _without_hash(role: str, given: Mapping[str, Any], other: Mapping[str, Any] | None) -> list[str]:
    """Why an input that was recorded without a hash is not compared, in a line; none where there is nothing to compare:
    the hub's commit is the same, or what only sounds like a file (role `file`) is none today either."""
    if given["revision"] and other is not None and other["revision"] == given["revision"]:
        return []
    path = str(given["path"])
    if diff.absent(given) and not os.path.lexists(path):
        return []
    why = "in an object store" if "://" in path else "not there, or not to be read"
    return [f"inputs.{role}: {path} was recorded without a hash ({why}) and is not compared"]
