"""Recognises damaged results by the ranges of metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bayeslora_cli.config.catalogue import METRICS

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
