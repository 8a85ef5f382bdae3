"""Finds the settings that tell groups of runs on the same data apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def telling(names: Sequence[str], data: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[str, ...]:
    """Return the settings in which runs on the same data differ.

    A setting is left out if the others tell apart all runs on the same data, and it would only part
    runs on different data, as the learning rates of two tasks' presets do.

    Args:
        names: settings in their order.
        data: for each data set the settings of its runs.
    """
    kept = tuple(n for n in names if any(len(_distinct((n,), alike)) > 1 for alike in data))
    for name in kept:
        others = tuple(other for other in kept if other != name)
        if all(len(_distinct(others, a)) == len(_distinct(kept, a)) for a in data) and (
            len(set().union(*(_distinct(others, a) for a in data)))
            < len(set().union(*(_distinct(kept, a) for a in data)))
        ):
            kept = others
    return kept


def _distinct(names: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> set[tuple[str, ...]]:
    return {tuple(str(settings.get(name)) for name in names) for settings in runs}
