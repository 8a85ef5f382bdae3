"""Heatmaps of groups of runs: means and differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bayeslora_cli.reports.ranks.grids import Grid, bit_grid, rank_grid
from bayeslora_cli.reports.ranks.run_groups import Group
from bayeslora_cli.tasks.rank_correlation import Floats


def mean_grid(group: Group) -> Grid:
    """Mean ranks with their standard deviations (n - 1) over the runs; of one run, its ranks."""
    grids = [rank_grid(report) for report in group.reports]
    if len(grids) == 1:
        return grids[0]
    count, kept = len(group.matrices), float(group.ranks.sum(axis=1).mean())
    spread = _filled(grids[0], *(x.std(axis=0, ddof=1) for x in _numbers(grids)))
    return _filled(
        grids[0],
        *(x.mean(axis=0) for x in _numbers(grids)),
        caption=f"{kept:.1f} of {group.initial} triplets kept ({kept / group.initial:.0%}), "
        f"mean rank {kept / count:.2f} of {count} matrices; mean and std over {len(grids)} runs",
        spread=spread,
    )


def difference_grid(a: Group, b: Group) -> Grid:
    """Mean rank in `a` minus mean rank in `b`, which adapt the same matrices."""
    ours, theirs = ([rank_grid(report) for report in group.reports] for group in (a, b))
    means = [
        x.mean(axis=0) - y.mean(axis=0)
        for x, y in zip(_numbers(ours), _numbers(theirs), strict=True)
    ]
    size = float(np.abs(a.ranks.mean(axis=0) - b.ranks.mean(axis=0)).mean())
    return _filled(
        ours[0],
        *means,
        caption=f"mean ranks, A minus B; mean absolute difference {size:.2f} "
        f"over {len(a.matrices)} matrices",
        signed=True,
    )


def bit_difference_grid(a: Group, b: Group) -> Grid | None:
    """Mean width in `a` minus mean width in `b`; None: one of them has none."""
    ours, theirs = bit_grid(a.reports), bit_grid(b.reports)
    if ours is None or theirs is None:
        return None
    means = [x[0] - y[0] for x, y in zip(_numbers([ours]), _numbers([theirs]), strict=True)]
    return _filled(
        ours,
        *means,
        caption="mean widths of a matrix's operands, A minus B",
        signed=True,
        unit="bits",
        averages=True,
    )


def _numbers(grids: Sequence[Grid]) -> tuple[Floats, Floats]:
    """(grids, kinds, layers), nan where there is no matrix, and (grids, outside)."""
    return (
        np.array([grid.values for grid in grids], dtype=float),
        np.array([[value for _, value in grid.outside] for grid in grids], dtype=float),
    )


def _filled(like: Grid, inside: Floats, outside: Floats, **rest: Any) -> Grid:
    """A grid of the form of `like` with other numbers."""
    return Grid(
        kinds=like.kinds,
        layers=like.layers,
        values=tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in inside),
        outside=tuple((k, float(v)) for (k, _), v in zip(like.outside, outside, strict=True)),
        **{"caption": "", **rest},
    )
