"""Draws a grid as a heatmap on the terminal: kinds of matrices by layers (paper, figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from math import ceil
from typing import TYPE_CHECKING

from rich.text import Text

from bayeslora_cli.reports.ranks.grids import Grid, bit_grid, rank_grid
from bayeslora_cli.reports.terminal_shading import Shading
from bayeslora_cli.reports.terminal_text import show
from bayeslora_cli.runs.rank_report import RankReport

if TYPE_CHECKING:
    from rich.console import Console

LAYER, SUM, MEAN, STD, ABSENT = "layer", "sum", "mean", " std", "-"
BESIDE = 4  # columns between two heatmaps


def beside(left: Text, right: Text, width: int) -> Text:
    """Put two drawings beside each other if `width` has room, else the second below the first."""
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
    """Draw a report's ranks, and its bit widths beside them; see `draw_grid`."""
    ranks = draw_grid(rank_grid(report), width=width, colour=colour, unicode=unicode)
    bits = bit_grid([report])
    if bits is None:
        return ranks
    return beside(ranks, draw_grid(bits, width=width, colour=colour, unicode=unicode), width)


def print_heatmap(report: RankReport, console: Console) -> None:
    """Print a report's ranks as the console allows; see `show`."""
    show(partial(heatmap, report), console)


def draw_grid(grid: Grid, *, width: int, colour: bool, unicode: bool) -> Text:
    """Draw a grid; layers that do not fit into `width` go into further blocks below.

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
    """Draws one grid; it knows its sizes in columns and draws its lines."""

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

        # widths in columns: of the names, of a number, of the rows' sums, of a cell
        self.names = 1 + max(len(n) for n in (LAYER, *grid.kinds, *(k for k, _ in grid.outside)))
        texts = [*map(str, grid.layers), *map(self.number, (*grid.numbers, *self.column_sums))]
        texts += map(grid.deviation, grid.spread.numbers if grid.spread else ())
        self.digits = max(map(len, texts), default=1)
        self.sums = MEAN if grid.averages else SUM
        self.last = 2 + max(len(self.sums), len(self.number(grid.total)))
        # a space and the number, then the shade; one more space if that needs no further block
        self.cell = 1 + self.digits + shades
        room, count = width - self.names - self.last, len(grid.layers)
        blocks = ceil(count / max(1, room // self.cell))
        if blocks == ceil(count / max(1, room // (self.cell + 1))):
            self.cell += 1
        self.per_block = ceil(count / max(1, blocks)) or 1
        """Layers per block, so that all blocks are about equally wide."""

    def block(self, start: int) -> list[Text]:
        """Draw the layers from the `start`-th on; the last block has the rows' sums."""
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
        """Draw one line per kind of matrix outside the layers."""
        lines = []
        for index, (kind, value) in enumerate(self.grid.outside):
            lines.append(self.shaded(kind, (value,)))
            if self.grid.spread:
                lines.append(self.below((value,), (self.grid.spread.outside[index][1],)))
        return lines

    def legend(self) -> list[Text]:
        """Draw the shades with the numbers at their ends; empty without shades."""
        shades = self.shading.legend(self.number)
        return [Text(f"{self.grid.unit:{self.names}}").append_text(shades)] if shades else []

    def plain(self, name: str, cells: Sequence[str], style: str) -> Text:
        """Draw a line of unshaded cells."""
        padded = (f"{f'{cell:>{1 + self.digits}}':{self.cell}}" for cell in cells)
        return Text(f"{name:{self.names}}" + "".join(padded), style)

    def shaded(self, name: str, values: Sequence[float | None]) -> Text:
        """Draw a line of shaded cells."""
        line = Text(f"{name:{self.names}}")
        for value in values:
            if value is None:
                line.append(f"{f'{ABSENT:>{1 + self.digits}}':{self.cell}}", self.dim)
            else:
                text = f"{self.number(value):>{1 + self.digits}}{self.shading.mark(value)}"
                line.append(f"{text:{self.cell}}", self.shading.style(value))
        return line

    def below(self, values: Sequence[float | None], spread: Sequence[float | None]) -> Text:
        """Draw the line of standard deviations below a line of shaded cells, in its colours."""
        line = Text(f"{STD:{self.names}}", self.dim)
        for value, deviation in zip(values, spread, strict=True):
            text = "" if deviation is None else self.grid.deviation(deviation)
            style = "" if value is None else self.shading.style(value)
            line.append(f"{f'{text:>{1 + self.digits}}':{self.cell}}", style)
        return line

    def end(self, line: Text, text: str) -> Text:
        """Append a sum to a line, in the last column."""
        return line.append(f"{text:>{self.last}}", self.bold)
