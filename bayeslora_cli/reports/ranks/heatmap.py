"""Ranks as a heatmap in the terminal, as in the paper's figure: kinds of matrices by layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import ceil
from typing import TYPE_CHECKING

from rich.text import Text

from bayeslora_cli.reports.terminal_shading import Shading, show
from bayeslora_cli.runs.rank_report import MatrixReport, RankReport

if TYPE_CHECKING:
    from rich.console import Console

ROWS = ("W_q", "W_k", "W_v", "W_o", "W_f1", "W_f2")
"""The paper's rows; other kinds follow in order of appearance."""
LAYER, SUM, MEAN, STD, ABSENT = "layer", "sum", "mean", " std", "-"
BESIDE = 4  # columns between two heatmaps
OPERANDS = {
    "a matrix's operands": ("A", "B", "E", "W", "x", "a", "h"),
    "weights": ("A", "B", "E", "W"),
    "activations": ("x", "a", "h"),
}
"""What a heatmap of bit widths is over: its name, and which operands there may be."""
ALL, *PARTS = OPERANDS


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


def beside(left: Text, right: Text, width: int) -> Text:
    """Two drawings beside each other where `width` has room, else the second below the first."""
    lines, others = left.split(), right.split()
    wide = max(line.cell_len for line in lines) + BESIDE
    if wide + max(line.cell_len for line in others) > width:
        return Text("\n").join([left, Text(), right])
    joined = []
    for index in range(max(len(lines), len(others))):
        line = lines[index] if index < len(lines) else Text()
        if index < len(others) and others[index].cell_len:
            line = line + Text(" " * (wide - line.cell_len)) + others[index]
        joined.append(line)
    return Text("\n").join(joined)


def heatmap(report: RankReport, *, width: int, colour: bool, unicode: bool) -> Text:
    """Draw a report's ranks, and its bit widths beside them; see `draw`."""
    ranks = draw(rank_grid(report), width=width, colour=colour, unicode=unicode)
    bits = bit_grid([report])
    if bits is None:
        return ranks
    return beside(ranks, draw(bits, width=width, colour=colour, unicode=unicode), width)


def print_heatmap(report: RankReport, console: Console) -> None:
    """Print a report's ranks as the console allows; see `show`."""
    show(partial(heatmap, report), console)


def draw(grid: Grid, *, width: int, colour: bool, unicode: bool) -> Text:
    """Draw a grid; layers that do not fit beside each other go into blocks below each other.

    Args:
        width: columns of the terminal.
        colour: shade the cells' backgrounds; else the text has no styles at all.
        unicode: without colour, shade the cells by a character after the number.
    Returns:
        Lines without a newline at the end.
    """
    drawing = _Drawing(grid, width=width, colour=colour, shades=unicode and not colour)
    lines: list[Text] = []
    for start in range(0, len(grid.layers), drawing.per_block):
        lines += [*drawing.block(start), Text()]
    lines += drawing.outside()
    if drawing.shading.top:
        lines += drawing.legend()
    lines.append(Text(grid.caption))
    if not colour:  # a coloured cell may end in a space
        for line in lines:
            line.rstrip()
    return Text("\n").join(lines)


class _Drawing:
    """A grid with the measures of its drawing."""

    def __init__(self, grid: Grid, *, width: int, colour: bool, shades: bool) -> None:
        self.grid = grid
        self.bold, self.dim = ("bold", "dim") if colour else ("", "")
        self.number = lru_cache(grid.number)
        self.row_sums, self.column_sums = grid.row_sums, grid.column_sums
        self.shading = Shading(
            top=max(map(abs, grid.numbers), default=0),
            signed=grid.signed,
            colour=colour,
            characters=shades,
        )

        # columns: of the names, of a number, of the rows' sums, of a cell
        self.names = 1 + max(len(n) for n in (LAYER, *grid.kinds, *(k for k, _ in grid.outside)))
        texts = [*map(str, grid.layers), *map(self.number, (*grid.numbers, *self.column_sums))]
        texts += map(grid.deviation, grid.spread.numbers if grid.spread else ())
        self.digits = max(map(len, texts), default=1)
        self.sums = MEAN if grid.averages else SUM
        self.last = 2 + max(len(self.sums), len(self.number(grid.total)))
        # a space and the number, then the shade; a space more where it costs no further block
        self.cell = 1 + self.digits + shades
        room, count = width - self.names - self.last, len(grid.layers)
        blocks = ceil(count / max(1, room // self.cell))
        if blocks == ceil(count / max(1, room // (self.cell + 1))):
            self.cell += 1
        self.per_block = ceil(count / max(1, blocks)) or 1
        """Layers of a block, so that all blocks are about as wide."""

    def block(self, start: int) -> list[Text]:
        """The lines of the layers from the `start`-th on; the last block has the rows' sums."""
        grid = self.grid
        part = slice(start, start + self.per_block)
        is_last = part.stop >= len(grid.layers)
        head = self.plain(LAYER, [str(n) for n in grid.layers[part]], self.dim)
        lines = [self.end(head, self.sums) if is_last else head]
        for index, (kind, row) in enumerate(zip(grid.kinds, grid.values, strict=True)):
            line = self.shaded(kind, row[part])
            lines.append(self.end(line, self.number(self.row_sums[index])) if is_last else line)
            if grid.spread:
                lines.append(self.below(row[part], grid.spread.values[index][part]))
        foot = self.plain(self.sums, [self.number(v) for v in self.column_sums[part]], self.bold)
        lines.append(self.end(foot, self.number(grid.total)) if is_last else foot)
        return lines

    def outside(self) -> list[Text]:
        """A line a kind of matrix outside the layers."""
        lines = []
        for index, (kind, value) in enumerate(self.grid.outside):
            lines.append(self.shaded(kind, (value,)))
            if self.grid.spread:
                lines.append(self.below((value,), (self.grid.spread.outside[index][1],)))
        return lines

    def legend(self) -> list[Text]:
        """The shades and what they stand for; nothing where the numbers stand alone."""
        shades = self.shading.legend(self.number)
        return [Text(f"{self.grid.unit:{self.names}}").append_text(shades)] if shades else []

    def plain(self, name: str, cells: Sequence[str], style: str) -> Text:
        """A line of unshaded cells."""
        padded = (f"{f'{cell:>{1 + self.digits}}':{self.cell}}" for cell in cells)
        return Text(f"{name:{self.names}}" + "".join(padded), style)

    def shaded(self, name: str, values: Sequence[float | None]) -> Text:
        """A line of shaded cells."""
        line = Text(f"{name:{self.names}}")
        for value in values:
            if value is None:
                line.append(f"{f'{ABSENT:>{1 + self.digits}}':{self.cell}}", self.dim)
            else:
                text = f"{self.number(value):>{1 + self.digits}}{self.shading.mark(value)}"
                line.append(f"{text:{self.cell}}", self.shading.style(value))
        return line

    def below(self, values: Sequence[float | None], spread: Sequence[float | None]) -> Text:
        """The line of standard deviations below a line of shaded cells, in its colours."""
        line = Text(f"{STD:{self.names}}", self.dim)
        for value, deviation in zip(values, spread, strict=True):
            text = "" if deviation is None else self.grid.deviation(deviation)
            style = "" if value is None else self.shading.style(value)
            line.append(f"{f'{text:>{1 + self.digits}}':{self.cell}}", style)
        return line

    def end(self, line: Text, text: str) -> Text:
        """The line with a sum in the last column."""
        return line.append(f"{text:>{self.last}}", self.bold)
