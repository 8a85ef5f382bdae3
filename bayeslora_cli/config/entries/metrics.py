"""All metrics of predictions, by the names that files have for them; a table of the catalogue."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SHARE, _CORRELATION = (0.0, 1.0), (-1.0, 1.0)
_NOT_NEGATIVE = (0.0, math.inf)
_FUNCTIONS = "bayeslora_cli.tasks.metrics"
_OF_PROBABILITIES = "bayeslora_cli.tasks.calibration"


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricEntry:
    """A number that tells how good the predictions of a split are."""

    implementation: str | None = None
    """Place of a function of predictions and labels that returns a float, as module:name; None:
    the kinds of task that have this metric compute it in their own way."""
    of_probabilities: bool = False
    """Whether that function takes class probabilities, what `Objective.expected` returns; otherwise
    it takes decisions, in the form of the labels."""
    range: tuple[float, float] = (-math.inf, math.inf)
    """Smallest and largest value, by which damaged results are recognised."""
    smaller_is_better: bool = False
    """Whether the smallest value is the best, not the largest."""
    classes: int | None = None
    """The number of classes that it is for; None: any."""


METRICS: dict[str, MetricEntry] = {
    "accuracy": MetricEntry(implementation=f"{_FUNCTIONS}:accuracy", range=_SHARE),
    "f1": MetricEntry(implementation=f"{_FUNCTIONS}:f1", range=_SHARE, classes=2),
    "macro_f1": MetricEntry(implementation=f"{_FUNCTIONS}:macro_f1", range=_SHARE),
    "weighted_f1": MetricEntry(implementation=f"{_FUNCTIONS}:weighted_f1", range=_SHARE),
    "matthews": MetricEntry(implementation=f"{_FUNCTIONS}:matthews", range=_CORRELATION),
    "auroc": MetricEntry(
        implementation=f"{_FUNCTIONS}:class_auroc", of_probabilities=True, range=_SHARE
    ),
    "pearson": MetricEntry(implementation=f"{_FUNCTIONS}:pearson", range=_CORRELATION),
    "spearman": MetricEntry(implementation=f"{_FUNCTIONS}:spearman", range=_CORRELATION),
    "pearson_spearman": MetricEntry(
        implementation=f"{_FUNCTIONS}:pearson_spearman", range=_CORRELATION
    ),
    "mae": MetricEntry(
        implementation=f"{_FUNCTIONS}:mae", range=_NOT_NEGATIVE, smaller_is_better=True
    ),
    "rmse": MetricEntry(
        implementation=f"{_FUNCTIONS}:rmse", range=_NOT_NEGATIVE, smaller_is_better=True
    ),
    "nll": MetricEntry(smaller_is_better=True),
    "ece": MetricEntry(
        implementation=f"{_OF_PROBABILITIES}:ece",
        of_probabilities=True,
        range=_SHARE,
        smaller_is_better=True,
    ),
    "brier": MetricEntry(
        implementation=f"{_OF_PROBABILITIES}:brier",
        of_probabilities=True,
        range=(0.0, 2.0),
        smaller_is_better=True,
    ),
    "error_auroc": MetricEntry(range=_SHARE),
    "accuracy_norm": MetricEntry(range=_SHARE),
    "mrr": MetricEntry(range=_SHARE),
    "recall_at_5": MetricEntry(range=_SHARE),
    "entity_f1": MetricEntry(range=_SHARE),
    "entity_precision": MetricEntry(range=_SHARE),
    "entity_recall": MetricEntry(range=_SHARE),
    "micro_f1": MetricEntry(range=_SHARE),
    "subset_accuracy": MetricEntry(range=_SHARE),
    "perplexity": MetricEntry(smaller_is_better=True),
}
_OTHER_NAMES = {"mcc": "matthews", "macro": "macro_f1", "auc": "auroc", "roc_auc": "auroc"}


def metric_name(text: str) -> str:
    """Return the name of a metric in files: `macro-f1` is macro_f1, and `MCC` is matthews."""
    name = text.strip().lower().replace("-", "_")
    return _OTHER_NAMES.get(name, name)


def smaller_is_better(name: Any) -> bool:
    """Return whether a metric's smallest value is its best; of unknown ones it is the largest."""
    return isinstance(name, str) and name in METRICS and METRICS[name].smaller_is_better


ROUNDING = 1e-6


def outside(record: Any, selecting: Any) -> str | None:
    """Return what is impossible in an evaluation's record; None: nothing.

    Args:
        record: a record of result.json: `metrics` by split and name, and the `value` of the metric
            that selects the best evaluation.
        selecting: the name of that metric.
    """
    if not isinstance(record, Mapping):
        return "has no value"
    splits = record.get("metrics", {})
    if not isinstance(splits, Mapping) or not all(isinstance(m, Mapping) for m in splits.values()):
        return "metrics are not by split and name"
    values = [(name, value) for found in splits.values() for name, value in found.items()]
    for name, value in [*values, (selecting, record.get("value"))]:
        low, high = _range(name)
        if name is None or (name, value) == (selecting, None):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{name} is {value!r}, no number"
        if not low - ROUNDING <= value <= high + ROUNDING:
            return f"{name} is {value}, not from {low:g} to {high:g}"
    return None


def _range(name: Any) -> tuple[float, float]:
    """Return the smallest and the largest value of a metric; an unknown one may have any."""
    if not isinstance(name, str):
        return 0, 0
    return METRICS[name].range if name in METRICS else (-math.inf, math.inf)
