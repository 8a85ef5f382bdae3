"""Draws a grid as an HTML table, for notebooks: kinds of matrices by layers (paper, figure 1)."""

from __future__ import annotations

from html import escape

from bayeslora_cli.reports.ranks.grids import Grid, bit_grid, rank_grid
from bayeslora_cli.reports.terminal_shading import Shading
from bayeslora_cli.runs.rank_report import RankReport

# every shaded cell has its own background and text colour, everything else uses the page's: so the
# table is readable on light and dark pages. Styles are in the cells, since notebook viewers drop
# style sheets.
_CELL = "padding:2px 6px;text-align:right;border:1px solid transparent"
_TABLE = "border-collapse:collapse;font-family:monospace;display:inline-table;margin-right:2em"


def heatmap_html(report: RankReport) -> str:
    """Draw a report's ranks, and its bit widths beside them, as HTML; all names are escaped."""
    grids = [rank_grid(report)]
    if (bits := bit_grid([report])) is not None:
        grids.append(bits)
    return "".join(map(grid_html, grids))


def grid_html(grid: Grid) -> str:
    """Draw a grid as a table with the grid's caption; rows and columns end in sums or means."""
    shading = Shading(top=max(map(abs, grid.numbers), default=0), signed=grid.signed,
                      colour=True, characters=False)  # fmt: skip

    def shaded(value: float | None) -> str:
        if value is None:
            return _cell("-")
        background, text = shading.colours(value)
        return _cell(grid.number(value), f";background:{background};color:{text}")

    last = "mean" if grid.averages else "sum"
    rows = [_row(_head("layer"), *(_head(str(n)) for n in grid.layers), _head(last))]
    for kind, values, whole in zip(grid.kinds, grid.values, grid.row_sums, strict=True):
        rows.append(_row(_head(kind), *map(shaded, values), _cell(grid.number(whole))))
    sums = (*grid.column_sums, grid.total)
    rows.append(_row(_head(last), *(_cell(grid.number(value)) for value in sums)))
    rows += [_row(_head(kind), shaded(value)) for kind, value in grid.outside]
    caption = f'<caption style="text-align:left;caption-side:bottom">{escape(grid.caption)}'
    return f'<table style="{_TABLE}">{caption}</caption>{"".join(rows)}</table>'


def _row(*cells: str) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def _cell(text: str, style: str = "") -> str:
    return f'<td style="{_CELL}{style}">{escape(text)}</td>'


def _head(text: str) -> str:
    return f'<th style="{_CELL}">{escape(text)}</th>'
