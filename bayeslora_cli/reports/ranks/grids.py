"""Computes the numbers of heatmaps, kinds of matrices by layers, of a run or of groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayeslora_cli.reports.ranks.run_groups import Group
from bayeslora_cli.runs.rank_report import MatrixReport, RankReport
from bayeslora_cli.tasks.rank_correlation import Floats

PAPER_KINDS = ("W_q", "W_k", "W_v", "W_o", "W_f1", "W_f2")
"""Rows of the paper's figure 1, in its order."""
OPERAND_GROUPS = {
    "a matrix's operands": ("A", "B", "E", "W", "x", "a", "h"),
    "weights": ("A", "B", "E", "W"),
    "activations": ("x", "a", "h"),
}
"""Operands whose widths a heatmap may average, by the name of the group."""
ALL_OPERANDS, *OPERAND_PARTS = OPERAND_GROUPS


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Numbers of a heatmap: one for each kind of matrix and layer."""

    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    """Numbers of the layers, as the model counts them: from 0."""
    values: tuple[tuple[float | None, ...], ...]
    """One row per kind, one column per layer; None: there is no such matrix."""
    outside: tuple[tuple[str, float], ...]
    """Kind and number of the matrices outside the layers."""
    caption: str
    """The line below the heatmap."""
    signed: bool = False
    """Whether the numbers are differences: each has a sign, and the colours show it."""
    unit: str = "rank"
    """What the numbers are, for the legend."""
    averages: bool = False
    """Whether rows and columns end in means instead of sums."""
    spread: Grid | None = None
    """Standard deviations of the numbers, a grid of the same form."""

    @property
    def numbers(self) -> list[float]:
        """All numbers; those outside the layers come last."""
        inside = [value for row in self.values for value in row if value is not None]
        return inside + [value for _, value in self.outside]

    @property
    def row_sums(self) -> list[float]:
        """The sum of each kind's matrices in the layers."""
        return [self._whole(row) for row in self.values]

    @property
    def column_sums(self) -> list[float]:
        """The sum of each layer."""
        return [self._whole(column) for column in zip(*self.values, strict=True)]

    @property
    def total(self) -> float:
        """The sum of all matrices in the layers."""
        return self._whole([value for row in self.values for value in row])

    def _whole(self, values: Sequence[float | None]) -> float:
        """Return the sum, or with `averages` the mean."""
        there = [value for value in values if value is not None]
        return sum(there) / (max(1, len(there)) if self.averages else 1)

    def number(self, value: float) -> str:
        """Write a number of this grid or a sum; a grid of integers has no decimals."""
        whole = self.spread is None and all(float(v).is_integer() for v in self.numbers)
        whole = whole and not self.averages
        text = f"{value:+z.{0 if whole else 1}f}"
        return text if self.signed and float(text) else text[1:]

    @staticmethod
    def deviation(value: float) -> str:
        """Write a standard deviation."""
        return f"{value:.1f}"


def paper_order(kinds: Iterable[str]) -> tuple[str, ...]:
    """List each kind once: the paper's kinds first, the others in order of appearance."""
    found = dict.fromkeys(kinds)
    return (*(k for k in PAPER_KINDS if k in found), *(k for k in found if k not in PAPER_KINDS))


def rank_grid(report: RankReport) -> Grid:
    """Build the grid of a report's ranks; matrices of the same kind and layer are summed."""
    inside: Counter[tuple[str, int]] = Counter()
    outside: Counter[str] = Counter()
    for matrix in report.matrices:
        if matrix.layer is None:
            outside[matrix.kind] += matrix.rank
        else:
            inside[matrix.kind, matrix.layer] += matrix.rank
    kinds = paper_order(kind for kind, _ in inside)
    layers = tuple(sorted({layer for _, layer in inside}))
    return Grid(
        kinds=kinds,
        layers=layers,
        values=tuple(tuple(inside.get((kind, layer)) for layer in layers) for kind in kinds),
        outside=tuple(outside.items()),
        caption=_budget_line(report.matrices),
    )


def _budget_line(matrices: Sequence[MatrixReport]) -> str:
    if not matrices:
        return "no adapted matrices"
    kept, initial = sum(m.rank for m in matrices), sum(m.init_rank for m in matrices)
    return (
        f"{kept} of {initial} triplets kept ({kept / initial:.0%}), "
        f"mean rank {kept / len(matrices):.2f} of {len(matrices)} matrices"
    )


def bit_grid(reports: Sequence[RankReport], what: str = ALL_OPERANDS) -> Grid | None:
    """Build the grid of mean widths in bits, over a matrix's operands and over the reports.

    Matrices of the same kind and layer are averaged.

    Args:
        reports: of runs that adapt the same matrices.
        what: which operands, a name in `OPERAND_GROUPS`.
    Returns:
        The grid, or None if any matrix has none of these operands quantized.
    """
    matrices = [m for report in reports for m in report.matrices]
    widths = [width for m in matrices if (width := m.width_of(OPERAND_GROUPS[what])) is not None]
    if not widths or len(widths) < len(matrices):
        return None
    found: dict[tuple[str, int | None], list[float]] = {}
    for m, width in zip(matrices, widths, strict=True):
        found.setdefault((m.kind, m.layer), []).append(width)
    means = {place: sum(values) / len(values) for place, values in found.items()}
    form = rank_grid(reports[0])
    mean = sum(widths) / len(widths)
    runs = f"; mean over {len(reports)} runs" if len(reports) > 1 else ""
    return Grid(
        kinds=form.kinds,
        layers=form.layers,
        values=tuple(tuple(means.get((k, layer)) for layer in form.layers) for k in form.kinds),
        outside=tuple((kind, means[kind, None]) for kind, _ in form.outside),
        caption=f"mean width {mean:.2f} bits of {what}{runs}",
        unit="bits",
        averages=True,
    )


def mean_grid(group: Group) -> Grid:
    """Build the grid of mean ranks and standard deviations (n - 1); for one run, of its ranks."""
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
    """Build the grid of mean rank in `a` minus mean rank in `b`, which adapt the same matrices."""
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
    """Build the grid of mean width in `a` minus that in `b`; None: one of them has no widths."""
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
    """Stack the numbers in the layers (grids, kinds, layers), NaN without a matrix, and those
    outside (grids, matrices)."""
    return (
        np.array([grid.values for grid in grids], dtype=float),
        np.array([[value for _, value in grid.outside] for grid in grids], dtype=float),
    )


def _filled(like: Grid, inside: Floats, outside: Floats, **rest: Any) -> Grid:
    """Return a grid with the rows and columns of `like` and other numbers."""
    return Grid(
        kinds=like.kinds,
        layers=like.layers,
        values=tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in inside),
        outside=tuple((k, float(v)) for (k, _), v in zip(like.outside, outside, strict=True)),
        **{"caption": "", **rest},
    )
