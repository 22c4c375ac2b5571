"""Whether a run is what its record claims: judged at a declared tier, with a report that names what differs first.

Guarantees: nothing is called a pass that was not compared: what cannot be judged says so, with exit code 2; what shows
that a record is untrue is a fail, whether or not anything was run; code, data and an image that are not the recorded
ones are named. Judging is a pure function of two runs (`judge_exact`, `judge_statistical`), whoever made them.

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
from typing import TYPE_CHECKING, Any

from sweeper import engines
from sweeper.checkpoints import manifest
from sweeper.engines.base import Engine
from sweeper.errors import Problem, RequestError, SweeperError
from sweeper.lineage import curves, diff, document, forks, tree
from sweeper.lineage.find import Found
from sweeper.search import stats
from sweeper.search.history import Curve
from sweeper.trial.records import RecordsError, number, read_json, write_json

if TYPE_CHECKING:
    from sweeper.lineage import reproduce

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


def judge_config(found: Found, plan: reproduce.Plan) -> Report:
    """After the record was composed, its inputs found and all of it compared (reproduce.planned): it is the same, but
    for what has no hash to be compared by."""
    inputs = found.document["inputs"]
    config = f"the same fingerprint {found.document['fingerprint'][:12]}"
    if plan.repointed:
        config = f"the same config but for the paths in {', '.join(plan.repointed)}"
    facts = {
        "fingerprint": found.document["fingerprint"],
        "inputs": len(inputs) - len(plan.uncompared),
        "repointed": list(plan.repointed),
        "uncompared": list(plan.uncompared),
    }
    if plan.uncompared:
        why = f"{len(plan.uncompared)} of {len(inputs)} inputs cannot be compared: {plan.uncompared[0]}"
        return Report("config", found.name, "unjudged", f"{config}, but {why}", facts)
    return Report("config", found.name, "pass", f"{config}, and {len(inputs)} inputs of the same content", facts)


def _by_other_code(report: Report, files: Sequence[str]) -> Report:
    """A verdict says first by which code it came about, where that is not the recorded one."""
    if not files:
        return report
    why = f"by other code than was recorded ({tree.shown(files)}): {report.why}"
    return replace(report, why=why, facts={**report.facts, "code": list(files)})


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
    nothing passes. Of a fork (forks.py) the steps since then are judged, which are those that its config trained.
    """
    engine = _engine(found)
    own, its = forks.since(found), forks.since(again)
    recorded, new = curves.of(own, engine), curves.of(its, engine)
    of = {"against": again.name, "lineage": str(again.path)}
    compared = curves.compare(recorded, new, engine.of_machine, {*own.earlier, *its.earlier})
    for run, curve in ((own, recorded), (its, new)):
        if not curve:
            why = _without_metrics(run)
            return Report("exact", found.name, "unjudged", why, of)
    if not compared.values:
        why = f"{again.name} has none of its steps, or only what measures the machine: nothing was compared"
        return Report("exact", found.name, "unjudged", why, of)
    lost = _lost(own, recorded, compared.only_b)
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
        "from_mlflow": sorted(recorded.keys() & own.earlier.keys()),
    }
    verdict, why, lines = _verdict(own, again, compared, lost)
    return Report("exact", found.name, verdict, why, facts, lines)


def _verdict(
    found: Found, again: Found, compared: curves.Compared, lost: Sequence[int]
) -> tuple[str, str, tuple[str, ...]]:
    """What two curves say: verdict, why, and more for people."""
    missing = compared.only_a
    if compared.first is not None and not (missing and missing[0] < compared.first.step):
        more = len(compared.partings) - 1
        others = f"; {more} more values differ" if more else ""
        why = f"they part at {compared.first} (recorded and again){others}"
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


def _own_contradiction(found: Found, recorded: curves.Curves) -> str:
    """What the record claims and all of its own metrics do not say, before anything is run."""
    whole = found.metrics[-1].exists() and not found.earlier
    return _unlike_its_curve(found, recorded, _engine(found)) if whole else ""


def _without_metrics(run: Found) -> str:
    return f"{run.name} has no metrics: {run.metrics[-1]} is missing or empty"


def _never_trained(found: Found) -> Report:
    """Of an attempt that has nothing to compare: a run would tell no more."""
    why = _without_metrics(found)
    trial = found.name.rpartition("/")[0]
    lines = (f"  try:   sweeper verify {trial}   (its latest attempt)", "         --tier config   (needs none)")
    return Report("exact", found.name, "unjudged", why, {}, lines)


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

    A recorded checkpoint whose content is another one now fails every tier, before anything is run; so does a record
    that what is here contradicts. What cannot be reproduced (reproduce.planned) is unjudged.

    Raises:
        RequestError: the new sweep cannot have that name.
    """
    from sweeper.lineage import reproduce

    if wrong := altered_checkpoints(found):
        return _altered(found, tier, wrong), None
    recorded = curves.of(forks.since(found), _engine(found)) if tier == "exact" else {}
    if recorded and (why := _own_contradiction(found, recorded)):
        return Report(tier, found.name, "fail", why, {}), None
    gone = _gone(found)
    others = other_seeds(found, seeds) if tier == "statistical" else ()
    strict = tier == "exact" and not allow_env
    sweep = "" if tier == "config" else reproduce.named(found, name, store)
    try:
        with reproduce.planned(found, here=here, seeds=others, strict=strict) as plan:
            if tier == "exact" and not recorded:
                return _never_trained(found), None
            code, again = reproduce.run(plan, sweep, store=store, quiet=quiet) if sweep else (0, [])
    except SweeperError as error:
        return _not_reproduced(found, tier, error), None
    if tier == "config":
        report = judge_config(found, plan)
    elif not again:
        report = Report(tier, found.name, "unjudged", f"the new run ended with code {code} and left no record")
    elif tier == "statistical":
        report = judge_statistical(found, again)
    else:
        report = judge_exact(found, again[0])
        if code and report.verdict == "fail" and not report.facts.get("first"):
            why = f"the new run did not end well (code {code}); {report.why}"
            report = replace(report, verdict="unjudged", why=why)
    report = _by_other_code(report, plan.code_differs)
    if again and (image := reproduce.other_image(found, again[0])):
        report = _in_other_image(report, image, judged=not strict)
    apart = diff.nodes(found.document["environment"], again[0].document["environment"]) if again else ()
    notes = [*plan.notes, *diff.listed([*plan.environment, *apart]), *gone]
    notes += reproduce.reinstalling(found, plan.environment) if tier == "exact" else ()
    report = replace(report, facts={**report.facts, "notes": notes}, lines=(*report.lines, *notes))
    folder = again[0].path.parents[3] if again else None
    if folder is not None:
        report.save(folder)
    return report, folder


def _not_reproduced(found: Found, tier: str, error: SweeperError) -> Report:
    """A fail where what is here shows that the record is untrue, else no verdict; with every problem's next command."""
    first, *more = error.problems if isinstance(error, RequestError) else [Problem(str(error))]
    lines = [line for problem in more for line in problem.lines()]
    problems = [{k: v for k in ("what", "valid", "fix", "key") if (v := getattr(p, k))} for p in (first, *more)]
    verdict = "fail" if isinstance(error, document.UntrueError) else "unjudged"
    return Report(tier, found.name, verdict, first.what, {"problems": problems}, (*first.lines()[1:], *lines))


def _in_other_image(report: Report, image: str, *, judged: bool) -> Report:
    """Bits of another image prove nothing of the recorded one; `judged`: by what came out all the same."""
    if judged:
        return replace(report, lines=(*report.lines, image), facts={**report.facts, "image": image})
    verdict = "unjudged" if report.verdict == "pass" else report.verdict
    fix = "  try:   --allow-env   (judges by what comes out of this image)"
    return replace(
        report,
        verdict=verdict,
        why=f"{image}; {report.why}",
        facts={**report.facts, "image": image},
        lines=(*report.lines, fix),
    )


def _altered(found: Found, tier: str, wrong: Sequence[str]) -> Report:
    why = f"checkpoints: one is not what was recorded: {wrong[0]}"
    fix = f"sweeper reproduce {found.path}   (makes it again)"
    lines = (*(f"  {line}" for line in wrong[1:SHOWN]), f"  try:   {fix}, or put the recorded file back")
    return Report(tier, found.name, "fail", why, {"checkpoints": list(wrong), "fix": fix}, lines)


def against(a: Found, b: Found, tier: str) -> Report:
    """Judge one run by another that is there already: of another config or other data, it fails at every tier.

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
    report = same_config(a, b)
    notes = [*report.facts["uncompared"]]
    if tier == "exact":
        report = replace(report, tier=tier) if report.verdict == "fail" else judge_exact(a, b)
    changes, untold = diff.code_changes(a, b)
    if report.verdict == "fail":
        notes += [f"code: {name}" for name in diff.code_files(changes)[:SHOWN]]
    else:
        report = _by_other_code(report, diff.code_files(changes))
    notes += untold
    if tier == "exact":
        from sweeper.lineage import reproduce

        differs = list(diff.environment(a.document["environment"], b.document["environment"]))
        notes += [*diff.listed(differs), *reproduce.reinstalling(a, differs)]
        if image := reproduce.other_image(a, b):
            report = _in_other_image(report, image, judged=False)
    notes += _gone(a)
    return replace(report, facts={**report.facts, "notes": notes}, lines=(*report.lines, *notes))


def save_beside(report: Report, a: Found, b: Found) -> Path | None:
    """Write the report on a run that was judged by another into the folder of that one's sweep, if it was made to
    repeat the first; that folder. Anywhere else the runs belong to their owners, and a report at another tier stays."""
    of = a.document["run"]
    same = {key: of[key] for key in ("sweep", "trial", "attempt")}
    repeats = any(p["relation"] == "reproduces" and same.items() <= p.items() for p in b.document["parents"])
    if not repeats or len(b.path.parents) < 4:
        return None
    folder = b.path.parents[3]
    try:
        if (folder / REPORT).exists() and read_json(folder / REPORT).get("tier") != report.tier:
            return None
        report.save(folder)
    except RecordsError:
        return None
    return folder


def same_config(a: Found, b: Found) -> Report:
    """The config tier of two runs that are there: their fingerprints and seeds, and their inputs by content.

    A path that names an input of the same content is the same. What only the second has is no claim of the first.
    """
    paths = _inputs_of(a), _inputs_of(b)
    leaves = list(diff.leaves(a.document["identity"], b.document["identity"]))
    repointed = [c.what for c in leaves if c.what in paths[0] and paths[0][c.what] == paths[1].get(c.what)]
    changes = [diff.Change(f"identity.{c.what}", c.a, c.b) for c in leaves if c.what not in repointed]
    seeds = diff.leaves(a.document["seeds"], b.document["seeds"])
    changes += [diff.Change(f"seeds.{c.what}", c.a, c.b) for c in seeds if c.what not in {o.what for o in leaves}]
    data, uncompared = _inputs(a, b)
    changes += data
    fingerprints = [a.document["fingerprint"], b.document["fingerprint"]]
    facts = {
        "against": b.name,
        "fingerprints": fingerprints,
        "differences": [c.as_dict() for c in changes],
        "repointed": repointed,
        "uncompared": uncompared,
    }
    if changes or (fingerprints[0] != fingerprints[1] and not repointed):
        what = tree.shown([c.what for c in changes]) if changes else "fingerprint"
        lines = tuple(f"  {line}" for line in diff.listed(changes))
        return Report("config", a.name, "fail", f"{what} differ{'s' * (len(changes) < 2)} in {b.name}", facts, lines)
    if uncompared:
        why = f"the same config as {b.name}, but {len(uncompared)} inputs cannot be compared: {uncompared[0]}"
        return Report("config", a.name, "unjudged", why, facts)
    said = f"config but for the paths in {', '.join(repointed)}" if repointed else "fingerprint and inputs"
    return Report("config", a.name, "pass", f"the same {said} as {b.name}", facts)


def _inputs(a: Found, b: Found) -> tuple[list[diff.Change], list[str]]:
    """The inputs of the first run that have another content in the second, and those that cannot be told, a line
    each."""
    one, other = diff.by_role(a.document["inputs"]), diff.by_role(b.document["inputs"])
    unknown = {k for k, x in one.items() if k not in other or not (diff.told(x) and diff.told(other[k]))}
    unknown -= {k for k in unknown if k in other and diff.absent(one[k]) and diff.absent(other[k])}
    changes = diff.changed_inputs(a.document["inputs"], b.document["inputs"])
    differ = [diff.Change(f"inputs.{c.what}", c.a, c.b) for c in changes if c.what in one.keys() - unknown]
    return differ, [f"inputs.{k}: {one[k]['path']} has no hash in one of the records" for k in sorted(unknown)]


def _inputs_of(found: Found) -> dict[str, Any]:
    """The config keys that name an input, with its hash in the place of its path."""
    from sweeper.lineage import reproduce

    hashes = {str(row["path"]): Path(str(row["sha256"])) for row in found.document["inputs"] if row["sha256"]}
    return reproduce.naming(found.document, hashes)
