"""Numbers of a heatmap: kinds of matrices by layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bayeslora_cli.runs.rank_report import MatrixReport, RankReport

ROWS = ("W_q", "W_k", "W_v", "W_o", "W_f1", "W_f2")
"""The paper's rows; other kinds follow in order of appearance."""


OPERANDS = {
    "a matrix's operands": ("A", "B", "E", "W", "x", "a", "h"),
    "weights": ("A", "B", "E", "W"),
    "activations": ("x", "a", "h"),
}
ALL, *PARTS = OPERANDS
"""What a heatmap of bit widths is over: its name, and which operands there may be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What a heatmap shows: a number for each kind of matrix and layer."""

    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    """Numbers of the layers, as the model counts them: from 0."""
    values: tuple[tuple[float | None, ...], ...]
    """A row a kind, a column a layer; None: there is no such matrix."""
    outside: tuple[tuple[str, float], ...]
    """Kind and number of the matrices outside the layers."""
    caption: str
    """The line below."""
    signed: bool = False
    """The numbers are differences: a sign before each, colours from negative to positive."""
    unit: str = "rank"
    """What the numbers are, for the legend."""
    averages: bool = False
    """Rows and columns end in means instead of sums."""
    spread: Grid | None = None
    """Standard deviations of the numbers, a grid of the same form."""

    @property
    def numbers(self) -> list[float]:
        """All of them, those outside the layers last."""
        inside = [value for row in self.values for value in row if value is not None]
        return inside + [value for _, value in self.outside]

    @property
    def row_sums(self) -> list[float]:
        """A sum a kind, of its matrices in the layers."""
        return [self._whole(row) for row in self.values]

    @property
    def column_sums(self) -> list[float]:
        """A sum a layer."""
        return [self._whole(column) for column in zip(*self.values, strict=True)]

    @property
    def total(self) -> float:
        """The sum of all matrices in the layers."""
        return self._whole([value for row in self.values for value in row])

    def _whole(self, values: Sequence[float | None]) -> float:
        """The sum, or with `averages` the mean."""
        there = [value for value in values if value is not None]
        return sum(there) / (max(1, len(there)) if self.averages else 1)

    def number(self, value: float) -> str:
        """How a number of this grid or a sum of them is written: integers have no decimals."""
        whole = self.spread is None and all(float(v).is_integer() for v in self.numbers)
        whole = whole and not self.averages
        text = f"{value:+z.{0 if whole else 1}f}"
        return text if self.signed and float(text) else text[1:]

    @staticmethod
    def deviation(value: float) -> str:
        """How a standard deviation is written."""
        return f"{value:.1f}"


def rank_grid(report: RankReport) -> Grid:
    """The ranks of a report. Matrices that share kind and layer are summed, as in the totals."""
    inside: Counter[tuple[str, int]] = Counter()
    outside: Counter[str] = Counter()
    for matrix in report.matrices:
        if matrix.layer is None:
            outside[matrix.kind] += matrix.rank
        else:
            inside[matrix.kind, matrix.layer] += matrix.rank
    found = dict.fromkeys(kind for kind, _ in inside)
    kinds = (*(k for k in ROWS if k in found), *(k for k in found if k not in ROWS))
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


def bit_grid(reports: Sequence[RankReport], what: str = ALL) -> Grid | None:
    """Mean width of a matrix's operands, over reports of the same matrices; None: some have none.

    Matrices that share kind and layer are averaged.

    Args:
        what: which operands, a name of `OPERANDS`.
    """
    matrices = [m for report in reports for m in report.matrices]
    widths = [width for m in matrices if (width := m.width_of(OPERANDS[what])) is not None]
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
