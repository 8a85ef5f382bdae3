"""Ranks as a heatmap in the terminal, as in the paper's figure: kinds of matrices by layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from rich.text import Text

from bayeslora_cli.report import MatrixReport, RankReport

if TYPE_CHECKING:
    from rich.console import Console

ROWS = ("W_q", "W_k", "W_v", "W_o", "W_f1", "W_f2")
"""The paper's rows; other kinds follow in order of appearance."""
# Background and text of a cell, from rank 0 (grey) to the largest. The colours are of the 256 of
# xterm, so a terminal with fewer than 2^24 shows the same ones; their lightness rises evenly.
RAMP = (
    ("#1c1c1c", "#949494"),
    ("#5f0087", "#ffffff"),
    ("#005f87", "#ffffff"),
    ("#008787", "#000000"),
    ("#00af87", "#000000"),
    ("#5fd787", "#000000"),
    ("#d7ff5f", "#000000"),
)
SHADES = " ░▒▓█"
LAYER, SUM, ABSENT = "layer", "sum", "-"


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


def heatmap(report: RankReport, *, width: int, colour: bool, unicode: bool) -> Text:
    """Draw a report's ranks; see `draw`."""
    return draw(rank_grid(report), width=width, colour=colour, unicode=unicode)


def print_heatmap(report: RankReport, console: Console) -> None:
    """Print a report's ranks as the console allows.

    Colours need a terminal of 256 of them and no NO_COLOR; without them the output has no control
    characters. An encoding other than UTF-8 gets ASCII.
    """
    text = heatmap(
        report,
        width=console.width,
        colour=not console.no_color and console.color_system in ("256", "truecolor"),
        unicode=not console.options.ascii_only,
    )
    console.print(text, soft_wrap=True)


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
    if drawing.top:
        lines += drawing.legend()
    lines.append(Text(grid.caption))
    if not colour:  # a coloured cell may end in a space
        for line in lines:
            line.rstrip()
    return Text("\n").join(lines)


class _Drawing:
    """A grid with the measures of its drawing."""

    def __init__(self, grid: Grid, *, width: int, colour: bool, shades: bool) -> None:
        self.grid, self.colour, self.shades = grid, colour, shades
        self.bold, self.dim = ("bold", "dim") if colour else ("", "")
        self.row_sums = [sum(v or 0 for v in row) for row in grid.values]
        self.column_sums = [
            sum(v or 0 for v in column) for column in zip(*grid.values, strict=True)
        ]
        values = [v for row in grid.values for v in row if v is not None]
        values += [v for _, v in grid.outside]
        self.top = max(values, default=0)
        """The value of the strongest shade."""
        self.decimals = 0 if all(float(v).is_integer() for v in values) else 1

        # columns: of the names, of a number, of the rows' sums, of a cell
        self.names = 1 + max(len(n) for n in (LAYER, *grid.kinds, *(k for k, _ in grid.outside)))
        texts = [*map(str, grid.layers), *map(self.number, (*values, *self.column_sums))]
        self.digits = max(map(len, texts), default=1)
        self.last = 2 + max(len(SUM), len(self.number(sum(self.row_sums))))
        # a space and the number, then the shade; a space more where it costs no further block
        self.cell = 1 + self.digits + shades
        room, count = width - self.names - self.last, len(grid.layers)
        blocks = ceil(count / max(1, room // self.cell))
        if blocks == ceil(count / max(1, room // (self.cell + 1))):
            self.cell += 1
        self.per_block = ceil(count / max(1, blocks)) or 1
        """Layers of a block, so that all blocks are about as wide."""

    def number(self, value: float) -> str:
        return f"{value:.{self.decimals}f}"

    def block(self, start: int) -> list[Text]:
        """The lines of the layers from the `start`-th on; the last block has the rows' sums."""
        grid = self.grid
        part = slice(start, start + self.per_block)
        is_last = part.stop >= len(grid.layers)
        head = self.plain(LAYER, [str(n) for n in grid.layers[part]], self.dim)
        lines = [self.end(head, SUM) if is_last else head]
        for kind, row, total in zip(grid.kinds, grid.values, self.row_sums, strict=True):
            line = self.shaded(kind, row[part])
            lines.append(self.end(line, self.number(total)) if is_last else line)
        foot = self.plain(SUM, [self.number(v) for v in self.column_sums[part]], self.bold)
        lines.append(self.end(foot, self.number(sum(self.row_sums))) if is_last else foot)
        return lines

    def outside(self) -> list[Text]:
        """A line a kind of matrix outside the layers."""
        return [self.shaded(kind, (value,)) for kind, value in self.grid.outside]

    def legend(self) -> list[Text]:
        """The shades from 0 to the largest rank; nothing where the numbers stand alone."""
        if not self.colour and not self.shades:
            return []
        line = Text(f"{'rank':{self.names}}0 ")
        for background, _ in RAMP if self.colour else ():
            line.append("  ", f"on {background}")
        if self.shades:
            line.append(SHADES.strip())
        return [line.append(f" {self.number(self.top)}")]

    def plain(self, name: str, cells: Sequence[str], style: str) -> Text:
        """A line of unshaded cells."""
        padded = (f"{f'{cell:>{1 + self.digits}}':{self.cell}}" for cell in cells)
        return Text(f"{name:{self.names}}" + "".join(padded), style)

    def shaded(self, name: str, values: Sequence[float | None]) -> Text:
        """A line of shaded cells."""
        line = Text(f"{name:{self.names}}")
        for value in values:
            text = f"{ABSENT if value is None else self.number(value):>{1 + self.digits}}"
            if self.shades:
                text += SHADES[self.level(value or 0, len(SHADES))]
            style = self.dim
            if self.colour and value is not None:
                background, foreground = RAMP[self.level(value, len(RAMP))]
                style = f"{foreground} on {background}"
            line.append(f"{text:{self.cell}}", style)
        return line

    def end(self, line: Text, text: str) -> Text:
        """The line with a sum in the last column."""
        return line.append(f"{text:>{self.last}}", self.bold)

    def level(self, value: float, levels: int) -> int:
        """Index of the shade of `value`; the first is that of 0 alone."""
        return ceil(value / self.top * (levels - 1)) if value else 0
