"""The ranges of metrics, by which damaged results are recognised, and which end is the good one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SHARE, CORRELATION = (0.0, 1.0), (-1.0, 1.0)
RANGES: dict[str, tuple[float, float]] = {
    "accuracy": SHARE,
    "accuracy_norm": SHARE,
    "f1": SHARE,
    "macro_f1": SHARE,
    "matthews": CORRELATION,
    "pearson": CORRELATION,
    "spearman": CORRELATION,
    "pearson_spearman": CORRELATION,
    "ece": SHARE,
    "error_auroc": SHARE,
    "brier": (0.0, 2.0),
}
"""Smallest and largest value by name; other metrics may have any value."""
SMALLER_IS_BETTER = frozenset({"brier", "ece", "nll", "perplexity"})
"""Metrics whose smallest value is the best; of all others it is the largest."""
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
        low, high = RANGES.get(name, (-math.inf, math.inf)) if isinstance(name, str) else (0, 0)
        if name is None or (name, value) == (selecting, None):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{name} is {value!r}, no number"
        if not low - ROUNDING <= value <= high + ROUNDING:
            return f"{name} is {value}, not from {low:g} to {high:g}"
    return None
