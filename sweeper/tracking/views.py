"""The comparison as MLflow's UI opens it: which charts, columns and runs, kept as tags of the experiment.

Guarantees: plain JSON, known without MLflow; the same tags each time, so that they are written once.

MLflow 3.17 opens what `?viewStateShareKey=KEY` names from the experiment's tag `mlflow.sharedViewState.KEY` (its button
"Share"; server/js, the state's keys are those of `ExperimentPageUIState` and of the search above the table). The charts
of a page that is opened without it are one for each metric, in the order of the alphabet.

Parallel coordinates leave out every run that lacks one of the axes, and non-numbers where most runs have numbers: that
is why each trial has `lr`, `kl` and `tp` as parameters, whether or not they vary.
"""

from __future__ import annotations

import json
from typing import Any

PREFIX = "mlflow.sharedViewState."
TRIALS, ARMS = "sweeper", "sweeper-arms"
"""The views: every trial by itself, and the arms with the mean of their trials."""
AXES = ("lr", "kl", "tp")
KIND = "mlflow.experimentKind"
"""Without it the UI asks what kind of experiment this is."""


def tags() -> dict[str, str]:
    """The experiment's tags."""
    return {
        KIND: "custom_model_development",
        f"{PREFIX}{TRIALS}": json.dumps(_view(group=False)),
        f"{PREFIX}{ARMS}": json.dumps(_view(group=True)),
    }


def page(experiment: str, view: str = TRIALS) -> str:
    """The part of the comparison's address that follows the server's."""
    return f"/#/experiments/{experiment}/runs?viewStateShareKey={view}&compareRunsMode=CHART"


def _view(*, group: bool) -> dict[str, Any]:
    section = {"uuid": "sweeper", "name": "Sweep", "display": True, "isReordered": False, "deleted": False}
    section |= {"columns": 2}
    arm = {"mode": "tag", "groupByData": "sweeper.arm"}
    return {
        "searchFilter": "tags.`sweeper.kind` != 'sweep'",
        "orderByKey": "metrics.`score`",  # by the time they started, trials would be folded into their sweep
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            "attributes.`Dataset`",
            "tags.`sweeper.arm`",
            "tags.`sweeper.state`",
            *(f"params.`{axis}`" for axis in AXES),
            "metrics.`score`",
        ],
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": True,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [arm]} if group else None,
        "compareRunSections": [section],
        "isAccordionReordered": True,  # else the sections of all other metrics come first
        "compareRunCharts": [
            _line("score"),
            {**_chart("parallel", "PARALLEL"), "selectedParams": list(AXES), "selectedMetrics": ["score"]},
            _line("reward"),
        ],
    }


def _chart(name: str, kind: str) -> dict[str, Any]:
    return {
        "uuid": f"sweeper-{name}",
        "type": kind,
        "metricSectionId": "sweeper",
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
    }


def _line(metric: str) -> dict[str, Any]:
    return {
        **_chart(metric, "LINE"),
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
        "range": {},
    }
