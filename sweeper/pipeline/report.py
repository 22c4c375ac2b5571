"""Stage `report`: one page, self-contained, with the figures, the table of trials, the curves and what they came from.

Guarantees: made of what the earlier stages wrote and of nothing else, so it can be made anywhere from what `dvc pull`
brings; no absolute path, no host and no time of its making is in it; every value is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sweeper.pipeline import places, select, sweep
from sweeper.report.plots import draw
from sweeper.report.standings import reason_of, standings
from sweeper.report.table import lines

PAGE, PICTURE = "index.html", "curves.png"
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}th,td{padding:.2rem .8rem;text-align:left}"
    "th,td{border-bottom:1px solid #ddd}"
    "img{max-width:100%}code{font-size:90%;overflow-wrap:anywhere}td.n{text-align:right}.best{font-weight:600}"
)


def run() -> int:
    """Write the page and the picture; returns the exit code.

    Raises:
        SweeperError: What it is made of is not here.
    """
    metrics, best = places.read(places.METRICS), places.read(places.BEST / select.ABOUT)
    about, rows = sweep.load(places.SWEEP)
    lineage_of = select.record(best)
    lineage = places.read(lineage_of) if lineage_of.is_file() else {}
    with places.replaced(places.REPORT) as folder:
        picture(rows, folder / PICTURE)
        shown = page(metrics, best, about, rows, lineage, (folder / PICTURE).read_bytes())
        (folder / PAGE).write_text(shown, encoding="utf-8")
    print(f"report: {places.REPORT / PAGE}")
    return 0


def picture(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Every trial's curves; trials that differ in their seed alone share a colour."""
    made = io.BytesIO()
    draw({o.trial.id: (o.trial.point.varied, o.curve) for o in sweep.outcomes(rows)}, "default", made)
    out.write_bytes(made.getvalue())


def page(
    metrics: Mapping[str, Any],
    best: Mapping[str, Any],
    about: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    lineage: Mapping[str, Any],
    png: bytes,
) -> str:
    """The page as HTML."""
    trials = sweep.outcomes(rows)
    found = standings(trials, sweep.asked_for(about))
    ranked = [t for c in found.candidates for t in c.trials] + [t for arm in found.arms for t in arm.finals]
    test, step = metrics["test"], best["step"]
    interval = f" (95%: {test['low']:.3f} to {test['high']:.3f})" if "low" in test else ""
    parts = [
        f"<h1>{escape(str(best['label']))}</h1>",
        f"<p>Held-out score <b>{test['score']:.3f}</b>{interval} over {test['seeds']} seeds that nothing was chosen "
        f"by; validation score {metrics['validation']['score']:.3f} at step {step}, which it was chosen by.</p>",
        f"<h2>Sweep {escape(about['name'])}</h2>",
        f"<p><code>python sweep.py {escape(' '.join(about['overrides']))}</code></p>",
        _table(
            ("trial", "", "state", "seed", "score", "before", "best", "steps"),
            (
                (
                    t.trial.id,
                    t.trial.label,
                    f"{t.state}: {reason_of(t)}" if reason_of(t) else t.state,
                    t.trial.seed,
                    t.curve.final_score,
                    t.curve.first_score,
                    (t.curve.best(about["mode"]) or (0, None))[1],
                    t.curve.step,
                )
                for t in ranked
            ),
            marked=str(best["from"]).rpartition("/")[2],
        ),
        *(f"<p>{escape(line)}</p>" for line in lines(found)),
        f'<img alt="validation score and training reward by step" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode()}">',
        "<h2>What it is made of</h2>",
        _table(("", ""), facts(best, lineage)),
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(about["name"])}</title>'
    return f"{head}<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"


def facts(best: Mapping[str, Any], lineage: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Where the best checkpoint is from: hashes, commit, packages."""
    code, environment = lineage.get("code") or {}, lineage.get("environment") or {}
    found: list[tuple[str, Any]] = [
        ("checkpoint", f"{places.BEST / select.CHECKPOINT / best['checkpoint']}, sha256 {best['digest']}"),
        ("trial", f"{best['from']}/{best['attempt']}"),
        ("fingerprint", best["fingerprint"]),
    ]
    if code:
        tree = " with a patch" if code.get("dirty") else ""
        found.append(("code", f"commit {code.get('commit') or 'unknown'}{tree}, package {code.get('package_sha256')}"))
    found += [(str(i.get("role")), f"sha256 {i.get('sha256')}") for i in lineage.get("inputs") or ()]
    if engine := environment.get("engine"):
        found.append(("engine", f"{engine.get('name')} {engine.get('version')}"))
    if environment:
        found.append(("Python", environment.get("python")))
    return [(name, value) for name, value in found if value is not None]


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]], marked: str = "") -> str:
    made = [f"<tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>"]
    for row in rows:
        cells = "".join(
            f'<td class="n">{value:.3f}</td>' if isinstance(value, float) else f"<td>{escape(_text(value))}</td>"
            for value in row
        )
        made.append(f"<tr{' class=best' if marked and row[0] == marked else ''}>{cells}</tr>")
    return f"<table>{''.join(made)}</table>"


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
