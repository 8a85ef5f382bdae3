"""Draws many heatmaps side by side on a page, without numbers in their cells."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, nan
from typing import TYPE_CHECKING

import numpy as np

from bayeslora_cli.reports.figures.style import (
    BAR,
    LINE,
    PAGE,
    RISING_MAP,
    SIZE,
    colour_bar,
    formula,
    left_of,
    new_axes,
    new_figure,
    wrapped,
    write_lines,
)
from bayeslora_cli.reports.ranks.grids import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

SMALL = 5.0
"""Font size in points."""
NARROWEST, ROW_HEIGHT = 0.075, 0.1
"""Smallest width of a layer's column, and height of a kind's row, in inches."""
GAP = 0.12
"""Space between two heatmaps, in inches."""
FEWEST = 5
"""Smallest number of rows that leaves room for the numbers of the colour bar beside them."""


def small_multiples(panels: Sequence[tuple[Grid, Sequence[str]]], tops: dict[str, float]) -> Figure:
    """Draw as many heatmaps per row as the page has room for; one unit shares its colours.

    Args:
        panels: for each heatmap a grid without negative numbers, and titles of one line or more.
        tops: by unit, the number that has the strongest colour.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    grids = [grid for grid, _ in panels]
    left = max(left_of((*g.kinds, *(kind for kind, _ in g.outside))) for g in grids)
    layers = max(1, *(len(grid.layers) for grid in grids))
    room = PAGE - BAR
    beside = max(1, int(room / (left + NARROWEST * layers + GAP)))
    wide = room / beside
    cell = (wide - left - GAP) / layers
    titles = [wrapped(titles, wide, SMALL) for _, titles in panels]
    line = LINE * SMALL / SIZE
    above = (max(map(len, titles)) + 1.2) * line  # with the layers' numbers
    tables = [rows_of(grid) for grid in grids]
    deep = ROW_HEIGHT * max(FEWEST, *map(len, tables))
    high = above + deep + 1.5 * GAP
    figure = new_figure(PAGE, ceil(len(panels) / beside) * high, ())
    top = float(figure.get_size_inches()[1])
    colours = {u: ScalarMappable(Normalize(0, most or 1.0), RISING_MAP) for u, most in tops.items()}
    for number, (grid, title, rows) in enumerate(zip(grids, titles, tables, strict=True)):
        x, y = number % beside * wide, top - number // beside * high
        write_lines(figure, title, top=y - 0.4 * line, left=x, size=SMALL)
        size = len(rows[0][1]) * cell, len(rows) * ROW_HEIGHT
        axes = new_axes(figure, x + left, y - above - size[1], *size)
        draw_small(axes, grid, rows, colours[grid.unit])
    for number, (unit, shades) in enumerate(colours.items()):  # beside the first rows
        foot = top - number * high - above - deep
        colour_bar(new_axes(figure, PAGE - BAR + 0.08, foot, 0.08, deep), shades, unit)
    return figure


def rows_of(grid: Grid) -> list[tuple[str, list[float]]]:
    """Return the rows of the kinds, an empty row, and those of matrices outside the layers.

    NaN: there is no such matrix.
    """
    inside = [
        (kind, [nan if value is None else value for value in row])
        for kind, row in zip(grid.kinds, grid.values, strict=True)
    ]
    blank = [nan] * max(1, len(grid.layers))
    outside = [(kind, [value, *blank[1:]]) for kind, value in grid.outside]
    return [*inside, *([("", blank)] if outside else []), *outside]


def draw_small(
    axes: Axes, grid: Grid, rows: Sequence[tuple[str, list[float]]], colours: ScalarMappable
) -> None:
    """Draw a heatmap without numbers in `axes`; only the first and last layer are named."""
    axes.spines[:].set_visible(False)
    shaded = colours.to_rgba(np.ma.masked_invalid([row for _, row in rows]))
    axes.pcolormesh(shaded, edgecolors="white", linewidth=0.3)
    axes.invert_yaxis()
    axes.set_yticks([i + 0.5 for i in range(len(rows))], [formula(kind) for kind, _ in rows])
    ends = sorted({0, len(grid.layers) - 1}) if grid.layers else []
    axes.set_xticks([i + 0.5 for i in ends], [str(grid.layers[i]) for i in ends])
    axes.tick_params(length=0, pad=1, labelsize=SMALL, top=True, bottom=False)
    axes.tick_params(labeltop=True, labelbottom=False)
