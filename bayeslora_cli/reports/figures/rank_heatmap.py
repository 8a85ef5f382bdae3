"""Draws figures of ranks and bit widths: kinds of matrices by layers (paper, figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from bayeslora_cli.reports.figures.small_multiples import small_multiples
from bayeslora_cli.reports.figures.style import (
    BAR,
    COLUMN,
    DIVERGING_MAP,
    LINE,
    MINUS,
    PAGE,
    RISING_MAP,
    colour_bar,
    formula,
    left_of,
    new_axes,
    new_figure,
    wrapped,
    write_lines,
)
from bayeslora_cli.reports.ranks.grids import Grid
from bayeslora_cli.reports.ranks.heatmap import MEAN, SUM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDEST = 24
"""Largest number of layers in a row; more layers go into further blocks below."""
LARGEST_DIGITS, SMALLEST_DIGITS = 6.5, 5.2
"""Size in points of a number in a cell. If a column has no room for it, the figure fills a page."""
TOTALS, ROW_HEIGHT = 0.33, 0.2
"""Width of the column of sums and height of a row, in inches."""
HEAD = 2.2 * LINE
"""Height of the line with the layers' numbers, in inches."""
MANY = 12
"""Largest number of heatmaps with numbers in a figure."""


def panels_figure(
    groups: Sequence[Sequence[tuple[Grid, Sequence[str]]]], what: str | None = None
) -> Figure:
    """Draw heatmaps with sums; heatmaps with the same unit share their colours.

    Two heatmaps are placed side by side if the page has room; if a group has several, the two
    belong to one group. Layers that do not fit go into further blocks. More than `MANY` heatmaps
    are drawn without numbers (`small_multiples`).

    Args:
        groups: for each group its panels: a grid and titles, one line each; long ones are broken.
        what: name of the numbers, about ten letters; None: their unit.
    """
    panels = [panel for group in groups for panel in group]
    strongest: dict[str, float] = {}
    for grid, _ in panels:
        most = max(map(abs, grid.numbers))
        strongest[grid.unit] = max(strongest.get(grid.unit, 0.0), most)
    if len(panels) > MANY:
        return small_multiples(panels, strongest)
    parts = [panels] if len(panels) == len(groups) else groups
    heatmaps = [
        [(_Heatmap(grid, strongest[grid.unit] or 1.0), titles) for grid, titles in part]
        for part in parts
    ]
    width = max(heatmap.width for part in heatmaps for heatmap, _ in part)
    beside = min(max(map(len, parts)), 2 if width == COLUMN else 1)
    rows = [
        part[start : start + beside] for part in heatmaps for start in range(0, len(part), beside)
    ]
    heights = [max(heatmap.height(titles) for heatmap, titles in row) for row in rows]
    figure = new_figure(width * beside, sum(heights), ())
    top = sum(heights)
    for row, height in zip(rows, heights, strict=True):
        for column, (heatmap, titles) in enumerate(row):
            heatmap.draw(figure, column * width, top, titles, what or heatmap.grid.unit)
        top -= height
    return figure


class _Heatmap:
    """Draws one grid; it knows its sizes in inches and draws its parts."""

    def __init__(self, grid: Grid, top: float) -> None:
        """`top`: the number that has the strongest colour."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        self.grid = grid
        self.number = lru_cache(lambda value: grid.number(value).replace("-", MINUS))
        self.colours = ScalarMappable(
            Normalize(-top if grid.signed else 0, top), DIVERGING_MAP if grid.signed else RISING_MAP
        )
        self.blocks = ceil(len(grid.layers) / WIDEST) or 1
        self.per_block = ceil(len(grid.layers) / self.blocks) or 1
        longest = max(_ems(self.number(v)) for v in (*grid.numbers, *grid.column_sums))
        self.left = left_of((*grid.kinds, *(kind for kind, _ in grid.outside)))
        for self.width in (COLUMN, PAGE):
            self.cell = (self.width - self.left - TOTALS - BAR) / self.per_block
            self.size = min(LARGEST_DIGITS, 0.88 * 72 * self.cell / longest)
            if self.size >= SMALLEST_DIGITS:
                break
        self.row = ROW_HEIGHT if grid.spread is None else 1.4 * ROW_HEIGHT
        self.outside = len(grid.outside) + 0.3 if grid.outside else 0.0

    def height(self, titles: Sequence[str]) -> float:
        """Return the height in inches, with titles and caption."""
        above, below = self.texts(titles)
        rows = len(self.grid.kinds) + 1.0  # with the sums
        height = (len(above) + len(below) + 1.7) * LINE + self.outside * self.row
        return height + self.blocks * (HEAD + rows * self.row)

    def texts(self, titles: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the lines of text above and below the heatmap."""
        return wrapped(titles, self.width), wrapped([self.grid.caption], self.width)

    def draw(
        self, figure: Figure, left: float, top: float, titles: Sequence[str], what: str
    ) -> None:
        """Draw title, blocks and caption, from `top` inches downwards."""
        above, below = self.texts(titles)
        rows = len(self.grid.kinds) + 1.0
        write_lines(figure, above, top=top - 0.4 * LINE, left=left)
        bottom = top - self.height(titles)
        write_lines(figure, below, top=bottom + (len(below) + 0.4) * LINE, left=left)

        y = top - (len(above) + 0.6) * LINE  # upper edge of the next part
        for start in range(0, max(1, len(self.grid.layers)), self.per_block):
            part = slice(start, start + self.per_block)
            is_last = part.stop >= len(self.grid.layers)
            depth = rows + (self.outside if is_last else 0)
            y -= HEAD + depth * self.row
            size = self.per_block * self.cell + TOTALS, depth * self.row
            axes = new_axes(figure, left + self.left, y, *size)
            axes.spines[:].set_visible(False)
            # in cells, from the upper left corner
            axes.set(xlim=(0, size[0] / self.cell), ylim=(depth, 0))
            self.block(axes, part, is_last=is_last)
            if start == 0:
                foot, tall = y + (depth - rows + 1) * self.row, (rows - 1) * self.row
                x = left + self.width - BAR + 0.08
                bar = new_axes(figure, x, foot, 0.08, max(tall, 0.5))
                colour_bar(bar, self.colours, what)

    def block(self, axes: Axes, part: slice, *, is_last: bool) -> None:
        """Draw some layers with their sums; the last block also has the rows' sums and the
        matrices outside the layers."""
        grid, count = self.grid, len(self.grid.kinds)
        whole = MEAN if grid.averages else SUM
        rows = [(i + 0.5, formula(kind)) for i, kind in enumerate(grid.kinds)]
        columns = [(j + 0.5, str(layer)) for j, layer in enumerate(grid.layers[part])]
        for i, row in enumerate(grid.values):
            for j, value in enumerate(row[part]):
                if value is not None:
                    spread = grid.spread.values[i][part][j] if grid.spread else None
                    self.shaded(axes, j, i, value, spread)
        if columns:
            rows.append((count + 0.5, whole))
            for (x, _), total in zip(columns, grid.column_sums[part], strict=True):
                self.label(axes, x, count + 0.5, self.number(total))
            middle = len(columns) / 2 / axes.get_xlim()[1]
            axes.set_xlabel("layer", labelpad=3.5, x=middle)
        if columns and is_last:
            columns.append(((len(columns) + axes.get_xlim()[1]) / 2, whole))
            for i, total in enumerate((*grid.row_sums, grid.total)):
                self.label(axes, columns[-1][0], i + 0.5, self.number(total))
        for i, (kind, value) in enumerate(grid.outside if is_last else ()):
            y = count + 1.3 + i
            rows.append((y + 0.5, formula(kind)))
            self.shaded(axes, 0, y, value, grid.spread.outside[i][1] if grid.spread else None)
        axes.set_xticks([x for x, _ in columns], [name for _, name in columns])
        axes.set_yticks([y for y, _ in rows], [name for _, name in rows])
        axes.tick_params(length=0, pad=2, bottom=False, labelbottom=False, labeltop=True)
        axes.xaxis.set_label_position("top")

    def shaded(self, axes: Axes, x: float, y: float, value: float, spread: float | None) -> None:
        """Draw one cell with its number, and its standard deviation below."""
        from matplotlib.patches import Rectangle

        colour = self.colours.to_rgba(np.array(value))
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.5))
        # relative luminance (Rec. 709, about linear); at 0.18 black and white contrast alike
        luminance = np.dot(np.power(colour[:3], 2.2), (0.2126, 0.7152, 0.0722))
        ink = "black" if luminance > 0.18 else "white"
        self.label(axes, x + 0.5, y + (0.5 if spread is None else 0.34), self.number(value), ink)
        if spread is not None:
            text = self.grid.deviation(spread)
            self.label(axes, x + 0.5, y + 0.75, text, ink, size=0.78 * self.size)

    def label(
        self, axes: Axes, x: float, y: float, text: str, ink: str = "black", size: float = 0
    ) -> None:
        axes.text(x, y, text, size=size or self.size, color=ink, ha="center", va="center_baseline")


def _ems(number: str) -> float:
    """Return the width of a number in ems of DejaVu Sans."""
    return sum({".": 0.32, MINUS: 0.84, "+": 0.84}.get(character, 0.64) for character in number)
