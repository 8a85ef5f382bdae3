"""Draws heatmaps of many methods on many tasks: one row per task, one column per method (paper,
figure 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from bayeslora_cli.reports.figures.small_multiples import (
    FEWEST,
    GAP,
    NARROWEST,
    ROW_HEIGHT,
    SMALL,
    draw_small,
    rows_of,
)
from bayeslora_cli.reports.figures.style import (
    BAR,
    LINE,
    PAGE,
    RISING_MAP,
    SIZE,
    colour_bar,
    left_of,
    new_axes,
    new_figure,
    wrapped,
    write_lines,
)
from bayeslora_cli.reports.ranks.grids import Grid

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

TASK = 0.22
"""Width of a task's name, which is written upwards, in inches."""
_LINE = LINE * SMALL / SIZE
"""Height of a line of small text, in inches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cells:
    """Heatmaps of one quantity: ranks, or bit widths."""

    heading: str
    """Heading: the quantity, and the number of runs."""
    grids: Mapping[tuple[str, str], Grid]
    """Grids by task and method, both in order; a method may lack some tasks."""


def method_grid(parts: Sequence[Cells]) -> Figure:
    """Draw the parts below each other, each as wide as a page.

    If all heatmaps in a row have the same row names, the names are written once. Methods that do
    not fit side by side continue below. Numbers of one unit share their colours.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    strongest: dict[str, float] = {}
    for part in parts:
        for grid in part.grids.values():
            strongest[grid.unit] = max(strongest.get(grid.unit, 0.0), *map(abs, grid.numbers))
    colours = {
        unit: ScalarMappable(Normalize(0, most or 1.0), RISING_MAP)
        for unit, most in strongest.items()
    }
    blocks = [block for part in parts for block in _blocks(part)]
    figure = new_figure(PAGE, sum(block.height for block in blocks), ())
    top = float(figure.get_size_inches()[1])
    shown: set[str] = set()
    for block in blocks:
        block.draw(figure, top, colours[block.unit], with_bar=block.unit not in shown)
        shown.add(block.unit)
        top -= block.height
    return figure


def _blocks(part: Cells) -> list[_Block]:
    """Split the methods into blocks of about equal width that fit a page side by side."""
    tasks = tuple(dict.fromkeys(task for task, _ in part.grids))
    methods = tuple(dict.fromkeys(method for _, method in part.grids))
    grids = list(part.grids.values())
    left = max(left_of((*g.kinds, *(kind for kind, _ in g.outside))) for g in grids)
    names = {(g.kinds, tuple(kind for kind, _ in g.outside)) for g in grids}
    layers = max(1, *(len(grid.layers) for grid in grids))
    room = PAGE - BAR - TASK
    needed = NARROWEST * layers + GAP
    if len(names) == 1:
        most = max(1, int((room - left) / needed))
    else:
        most = max(1, int(room / (left + needed)))
    count = ceil(len(methods) / most)
    size = ceil(len(methods) / count)
    return [
        _Block(
            part,
            tasks,
            methods[start : start + size],
            left,
            own_names=len(names) > 1,
            columns=size,
            layers=layers,
        )
        for start in range(0, len(methods), size)
    ]


class _Block:
    """Draws some methods of a part; it knows its sizes in inches."""

    def __init__(
        self,
        part: Cells,
        tasks: Sequence[str],
        methods: Sequence[str],
        left: float,
        *,
        own_names: bool,
        columns: int,
        layers: int,
    ) -> None:
        """`own_names`: every heatmap shows its rows' names; else only the first in a row does."""
        self.part, self.tasks, self.methods = part, tasks, methods
        self.left, self.own_names = left, own_names
        shared = 0.0 if own_names else left
        self.wide = (PAGE - BAR - TASK - shared) / columns
        self.cell = min(0.16, (self.wide - GAP - (left if own_names else 0.0)) / layers)
        grids = part.grids.values()
        self.unit = next(iter(grids)).unit
        self.titles = [wrapped([method], self.wide + 0.1, SMALL) for method in methods]
        self.head = (0.6 + max(map(len, self.titles))) * _LINE
        self.deep = ROW_HEIGHT * max(FEWEST, *(len(rows_of(grid)) for grid in grids))
        self.row = self.deep + 1.4 * _LINE + GAP  # with the layers' numbers
        self.height = self.head + len(tasks) * self.row + 1.4 * _LINE + GAP

    def draw(self, figure: Figure, top: float, colours: ScalarMappable, *, with_bar: bool) -> None:
        """Draw the heading, the methods, and one row of heatmaps per task."""
        write_lines(figure, [self.part.heading], top=top - 0.3 * _LINE, size=SMALL)
        top -= 1.4 * _LINE
        shared = 0.0 if self.own_names else self.left
        for column, title in enumerate(self.titles):
            x = TASK + shared + column * self.wide + (self.left if self.own_names else 0.0)
            write_lines(figure, title, top=top - 0.3 * _LINE, left=x - 0.1, size=SMALL)
        top -= self.head
        width, height = figure.get_size_inches()
        for task in self.tasks:
            at = top - 1.4 * _LINE
            middle = (at - self.deep / 2) / height
            figure.text(
                0.1 / width, middle, task, size=SIZE, rotation=90, va="center", parse_math=False
            )
            named = self.own_names
            for column, method in enumerate(self.methods):
                grid = self.part.grids.get((task, method))
                if grid is None:
                    continue
                rows = rows_of(grid)
                size = len(rows[0][1]) * self.cell, len(rows) * ROW_HEIGHT
                x = TASK + shared + column * self.wide + (self.left if self.own_names else 0.0)
                axes = new_axes(figure, x, at - size[1], *size)
                draw_small(axes, grid, rows, colours)
                if named and not self.own_names:
                    axes.set_yticks([])
                named = True
            if with_bar and task == self.tasks[0]:
                bar = new_axes(figure, PAGE - BAR + 0.08, at - self.deep, 0.08, self.deep)
                colour_bar(bar, colours, self.unit)
            top -= self.row
