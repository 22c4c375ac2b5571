"""Whether a run is what its record claims: judged at a declared tier, with a report that names what differs first.

Guarantees: nothing is called a pass that was not compared: what cannot be judged says so, with exit code 2. Judging is
a pure function of two runs (`judge_exact`, `judge_statistical`), whoever made them.

Tiers:
    config       what the record composes to has its fingerprint and its inputs have their hashes; nothing is run
    exact        run again; every metric of every step that does not measure the machine is the same to the last bit
    statistical  run again under other seeds; the recorded final score is one that such a run has

The statistical tier asks whether one more run would score so: the recorded score x passes where it lies in the
prediction interval of the n new scores, mean ± t(n-1, 0.975) s sqrt(1 + 1/n) (Hahn and Meeker 1991, Statistical
Intervals, chapter 4: one future observation of a normal population). The confidence interval of the mean
(sweeper/search/stats.py) is reported beside it; it narrows with n, and a sound single run falls out of it more often
than not, so it cannot be what one run is judged by. A score that was chosen as the best of a search is a lucky one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweeper import engines
from sweeper.checkpoints import manifest
from sweeper.engines.base import Engine
from sweeper.errors import Problem, RequestError
from sweeper.lineage import curves, diff
from sweeper.lineage.find import Found
from sweeper.search import stats
from sweeper.search.history import Curve
from sweeper.trial.records import number, write_json

TIERS = ("config", "exact", "statistical")
SEEDS = 5
"""New runs of the statistical tier, unless something else is asked for."""
APART = 5000
"""The new seeds begin so far from the recorded one: beyond those that a search chooses and evaluates by."""
REPORT = "verify.json"
SHOWN = 8


@dataclass(frozen=True, slots=True)
class Report:
    """A verdict and what it rests on."""

    tier: str
    run: str
    """`SWEEP/TRIAL/ATTEMPT` that was judged."""
    verdict: str
    """`pass`, `fail` or `unjudged`."""
    why: str
    """One line."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What was compared; for JSON."""
    lines: tuple[str, ...] = ()
    """More for people."""

    @property
    def code(self) -> int:
        """The command's exit code."""
        return {"pass": 0, "fail": 1}.get(self.verdict, 2)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"verdict": self.verdict, "tier": self.tier, "run": self.run, "why": self.why, **self.facts}

    def text(self) -> str:
        """For people."""
        return "\n".join([f"{self.verdict.upper()}  {self.run} at tier {self.tier}: {self.why}", *self.lines])

    def save(self, folder: Path) -> Path:
        """Write `verify.json` into a folder.

        Raises:
            RecordsError: it cannot be written.
        """
        path = folder / REPORT
        write_json(path, self.as_dict())
        return path


def default_tier(found: Found) -> str:
    """`exact` where the record says that the run was deterministic, else `statistical`."""
    return "exact" if _engine(found).exact(found.document["config"]) else "statistical"


def _engine(found: Found) -> Engine:
    return engines.get(str(found.document["environment"]["engine"]["name"]))


def judge_config(found: Found, repointed: Sequence[str] = ()) -> Report:
    """After the record was composed, its inputs found and all of it compared (reproduce.planned): it is the same.

    `repointed`: keys that name inputs of the same content by other paths.
    """
    inputs = [i for i in found.document["inputs"] if i["sha256"]]
    config = f"the same fingerprint {found.document['fingerprint'][:12]}"
    if repointed:
        config = f"the same config but for the paths in {', '.join(repointed)}"
    facts = {"fingerprint": found.document["fingerprint"], "inputs": len(inputs), "repointed": list(repointed)}
    return Report("config", found.name, "pass", f"{config}, and {len(inputs)} inputs of the same content", facts)


def altered_checkpoints(found: Found) -> list[str]:
    """What of the recorded checkpoints is not as it was recorded, a line each; those that are gone are none of them."""
    wrong: list[str] = []
    for saved in found.document["checkpoints"]:
        at, step = Path(saved["path"]), int(saved["step"])
        try:
            written = manifest.read(at.parent, step)
            if not _there(at, written):
                continue
            if written is None:
                files = manifest.content(at.parent, step) or ()
                if manifest.digest(files) != saved["digest"]:
                    wrong.append(f"{at}: its content is not the recorded one, and its manifest is gone")
                continue
            if written.digest != saved["digest"]:
                wrong.append(f"{at}: its manifest has digest {written.digest}, the record {saved['digest']}")
            wrong += [f"{at}/{line}" for line in manifest.verify(at.parent, step)]
        except (manifest.DamagedError, OSError) as error:
            wrong.append(f"{at}: {error}")
    return wrong


def _there(checkpoint: Path, written: manifest.Manifest | None) -> bool:
    """Whether it is still there. Of one that verl deleted some folders are gone, and where its manifest is forgotten
    too, nothing but single files is left."""
    if written is not None:
        return not manifest.retired(checkpoint.parent, written)
    return checkpoint.is_dir() and any(path.is_dir() for path in checkpoint.iterdir())


def _gone(found: Found) -> list[str]:
    """What could not be looked at, a line each; after `altered_checkpoints` had nothing to say."""
    lines = []
    for saved in found.document["checkpoints"]:
        at, step = Path(saved["path"]), int(saved["step"])
        if not _there(at, manifest.read(at.parent, step)):
            lines.append(f"the checkpoint of step {step} is gone, and was not looked at")
    return lines


def judge_exact(found: Found, again: Found) -> Report:
    """Every metric of every recorded step, but for those that measure the machine, bit for bit.

    Steps that the new run has beyond the recorded ones are not judged: a run that was ended early is reproduced whole.
    A recorded step that the new run has not is a difference. Without the metrics of a step before the last recorded one
    nothing passes.
    """
    engine = _engine(found)
    recorded, new = curves.of(found, engine), curves.of(again, engine)
    of = {"against": again.name, "lineage": str(again.path)}
    compared = curves.compare(recorded, new, engine.of_machine, {*found.earlier, *again.earlier})
    for run, curve in ((found, recorded), (again, new)):
        if not curve:
            why = f"{run.name} has no metrics: {run.metrics[-1]} is missing or empty"
            return Report("exact", found.name, "unjudged", why, of)
    if not compared.values:
        why = f"{again.name} has none of its steps, or only what measures the machine: nothing was compared"
        return Report("exact", found.name, "unjudged", why, of)
    lost = _lost(found, recorded, compared.only_b)
    if not lost and (why := _unlike_its_curve(found, recorded, engine)):
        return Report("exact", found.name, "fail", why, of)
    facts = {
        **of,
        "steps": compared.steps,
        "values": compared.values,
        "first": compared.first.as_dict() if compared.first else None,
        "differences": [p.as_dict() for p in compared.partings[:1000]],
        "missing_steps": list(compared.only_a),
        "further_steps": list(compared.only_b),
        "lost_steps": lost,
        "from_mlflow": sorted(recorded.keys() & found.earlier.keys()),
    }
    verdict, why, lines = _verdict(found, again, compared, lost)
    return Report("exact", found.name, verdict, why, facts, lines)


def _verdict(
    found: Found, again: Found, compared: curves.Compared, lost: Sequence[int]
) -> tuple[str, str, tuple[str, ...]]:
    """What two curves say: verdict, why, and more for people."""
    missing = compared.only_a
    if compared.first is not None and not (missing and missing[0] < compared.first.step):
        more = len(compared.partings) - 1
        why = f"they part at {compared.first} (recorded and again); {more} more values differ"
        return "fail", why, tuple(f"  {p}" for p in compared.partings[1:SHOWN])
    if missing:
        return "fail", f"{again.name} has no step {curves.span(missing)} that was recorded", ()
    same = f"all {compared.values} values of {compared.steps} steps are the same to the last bit"
    if not lost:
        beyond = f"; it goes on to step {compared.only_b[-1]}, which is not judged" if compared.only_b else ""
        return "pass", same + beyond, ()
    said = f"step{'s' * (len(lost) > 1)} {curves.span(lost)}"
    gone = ", ".join(str(path) for path in found.metrics if not path.exists())
    why = f"the metrics of {said} are not there to be compared{gone and f': there is no {gone}'}; else {same}"
    sync = f"sweeper sync {found.document['run']['sweep']}"
    return (
        "unjudged",
        why,
        (f"  try:   name the run by its MLflow run id   (it has all steps; `{sync}` sends the rest)",),
    )


def _lost(found: Found, recorded: curves.Curves, only_new: Sequence[int]) -> list[int]:
    """Steps that the run has done and that no metrics are left of: those that a run of the same config has before its
    last one, and the end that its record tells of where its own file is gone."""
    last = max(recorded)
    done = (found.document["result"] or {}).get("step")
    tail = range(last + 1, done + 1) if done is not None and not found.metrics[-1].exists() else ()
    return [*(step for step in only_new if step < last), *tail]


def _unlike_its_curve(found: Found, recorded: curves.Curves, engine: Engine) -> str:
    """What the record claims and its own metrics do not say; empty where they agree.

    The result is the claim that people read, so it is held against the curve that it was taken from.
    """
    result = found.document["result"] or {}
    step = result.get("step")
    if step is not None and max(recorded) < step:
        return f"result.step: {step} is recorded, and the metrics end at step {max(recorded)}"
    measured = curves.scores(found.metrics, engine, found.document["config"], found.earlier_scores)
    last = measured[max(measured)] if measured else None
    if not curves.same(number(result.get("score")), last):
        return f"result.score: {result.get('score')} is recorded, and the last in the metrics is {curves.shown(last)}"
    mode = str((found.document["config"].get("objective") or {}).get("mode", "max"))
    best = Curve(measured).best(mode)
    if not curves.same(number(result.get("best_score")), best[1] if best else None):
        most = curves.shown(best[1] if best else None)
        return f"result.best_score: {result.get('best_score')} is recorded, and the best in the metrics is {most}"
    return ""


def judge_statistical(found: Found, again: Sequence[Found]) -> Report:
    """The recorded final score in the prediction interval of the new ones."""
    recorded = number((found.document["result"] or {}).get("score"))
    scores = {run.name: number((run.document["result"] or {}).get("score")) for run in again}
    values = [s for s in scores.values() if s is not None and math.isfinite(s)]
    facts: dict[str, Any] = {"score": recorded, "scores": scores}
    if recorded is None:
        return Report("statistical", found.name, "unjudged", "the record has no final score", facts)
    if len(values) < 2:
        why = f"{len(values)} of {len(scores)} new runs have a score, and an interval needs two"
        return Report("statistical", found.name, "unjudged", why, facts)
    low, high = prediction(values)
    mean = stats.summarise(values)
    facts |= {
        "interval": [low, high],
        "mean": mean.mean if mean else None,
        "mean_interval": [mean.low, mean.high] if mean else None,
        "confidence": stats.CONFIDENCE,
    }
    inside = low <= recorded <= high
    why = (
        f"the recorded score {recorded:.6g} is {'inside' if inside else 'outside'} {low:.6g} to {high:.6g}, where one "
        f"more run is expected after {len(values)} with other seeds"
    )
    lines = [f"  {name}: {'-' if score is None else f'{score:.6g}'}" for name, score in scores.items()]
    return Report("statistical", found.name, "pass" if inside else "fail", why, facts, tuple(lines))


def prediction(scores: Sequence[float]) -> tuple[float, float]:
    """The ends of the interval that holds one more score of the same population with `stats.CONFIDENCE`; two scores or
    more. The formula and its source are in the module's docstring."""
    mean = math.fsum(scores) / len(scores)
    variance = math.fsum((s - mean) ** 2 for s in scores) / (len(scores) - 1)
    if min(scores) == max(scores):
        return scores[0], scores[0]
    from scipy.stats import t

    half = float(t.ppf((1 + stats.CONFIDENCE) / 2, len(scores) - 1)) * math.sqrt(variance * (1 + 1 / len(scores)))
    return mean - half, mean + half


def other_seeds(found: Found, count: int) -> list[int]:
    """Seeds that neither the run nor a search around it used."""
    own = found.document["run"]["seed"]
    first = int(own if own is not None else found.document["config"].get("seed") or 0) + APART
    return list(range(first, first + count))


def claim(
    found: Found,
    tier: str,
    *,
    store: Path,
    name: str | None = None,
    seeds: int = SEEDS,
    here: bool = False,
    allow_env: bool = False,
    quiet: bool = False,
) -> tuple[Report, Path | None]:
    """Judge a run at that tier, running what it takes; the verdict and the folder of what was run.

    A recorded checkpoint whose content is another one now fails every tier, before anything is run.

    Raises:
        RequestError: it cannot be reproduced (reproduce.planned).
    """
    from sweeper.lineage import reproduce

    if wrong := altered_checkpoints(found):
        return _altered(found, tier, wrong), None
    gone = _gone(found)
    others = other_seeds(found, seeds) if tier == "statistical" else ()
    strict = tier == "exact" and not allow_env
    sweep = "" if tier == "config" else reproduce.named(found, name, store)
    with reproduce.planned(found, here=here, seeds=others, strict=strict) as plan:
        notes = [*plan.notes, *diff.listed(plan.environment)]
        code, again = reproduce.run(plan, sweep, store=store, quiet=quiet) if sweep else (0, [])
    if tier == "config":
        report = judge_config(found, plan.repointed)
    elif not again:
        report = Report(tier, found.name, "unjudged", f"the new run ended with code {code} and left no record")
    elif tier == "statistical":
        report = judge_statistical(found, again)
    else:
        report = judge_exact(found, again[0])
        if code and report.verdict == "fail" and not report.facts.get("first"):
            why = f"the new run did not end well (code {code}); {report.why}"
            report = replace(report, verdict="unjudged", why=why)
    notes += gone
    report = replace(report, facts={**report.facts, "notes": notes}, lines=(*report.lines, *notes))
    folder = again[0].path.parents[3] if again else None
    if folder is not None:
        report.save(folder)
    return report, folder


def _altered(found: Found, tier: str, wrong: Sequence[str]) -> Report:
    why = f"a checkpoint is not what was recorded: {wrong[0]}"
    lines = tuple(f"  {line}" for line in wrong[1:SHOWN])
    return Report(tier, found.name, "fail", why, {"checkpoints": list(wrong)}, lines)


def against(a: Found, b: Found, tier: str) -> Report:
    """Judge one run by another that is there already.

    Raises:
        RequestError: the tier needs more runs than one.
    """
    if tier == "statistical":
        what = "--against gives one run, and tier statistical judges by several"
        raise RequestError(Problem(what, valid="config, exact", fix="--tier exact", key="--tier"))
    if a.path.resolve() == b.path.resolve():
        what = f"{a.name} cannot be judged by itself"
        raise RequestError(
            Problem(what, valid="another run of the same trial", fix="leave --against out", key="--against")
        )
    if wrong := altered_checkpoints(a):
        return _altered(a, tier, wrong)
    report = same_config(a, b) if tier == "config" else judge_exact(a, b)
    gone = _gone(a)
    return replace(report, facts={**report.facts, "notes": gone}, lines=(*report.lines, *gone))


def same_config(a: Found, b: Found) -> Report:
    """The config tier of two runs that are there: their fingerprints and seeds, and their inputs by content."""
    changes = [*diff.leaves(a.document["identity"], b.document["identity"])]
    seeds = diff.leaves(a.document["seeds"], b.document["seeds"])
    changes += [c for c in seeds if c.what not in {other.what for other in changes}]
    data = [*diff.changed_inputs(a.document["inputs"], b.document["inputs"])]
    facts = {
        "against": b.name,
        "fingerprints": [a.document["fingerprint"], b.document["fingerprint"]],
        "differences": [c.as_dict() for c in (*changes, *data)],
    }
    if a.document["fingerprint"] == b.document["fingerprint"] and not (changes or data):
        return Report("config", a.name, "pass", f"the same fingerprint and inputs as {b.name}", facts)
    first = [*changes, *data]
    lines = tuple(f"  {line}" for line in diff.listed(first))
    return Report("config", a.name, "fail", f"{first[0].what if first else 'the fingerprint'} differs", facts, lines)
