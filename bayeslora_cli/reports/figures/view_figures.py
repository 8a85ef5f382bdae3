"""Draws the views of `inspect-ranks` as figures for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bayeslora_cli.reports.figures.curves import history_figure, scores_figure
from bayeslora_cli.reports.figures.figure_file import check_figure, write_figure
from bayeslora_cli.reports.figures.method_grid import Cells, method_grid
from bayeslora_cli.reports.figures.rank_heatmap import MANY, panels_figure
from bayeslora_cli.reports.figures.style import MINUS, STYLE
from bayeslora_cli.reports.ranks.grids import (
    OPERAND_PARTS,
    Grid,
    bit_difference_grid,
    bit_grid,
    difference_grid,
    mean_grid,
)
from bayeslora_cli.reports.ranks.history import History
from bayeslora_cli.reports.ranks.run_groups import Group, in_order
from bayeslora_cli.reports.ranks.score_distribution import Scores
from bayeslora_cli.reports.ranks.views import Difference, Panels, Ranks, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure


OPTION = "--output"
_WIDTHS = "bit widths"


def save_figure(view: View, path: Path) -> None:
    """Draw a view and write the file that `--output` names; the same view gives the same file.

    Raises:
        UserError: raised by `check_figure`, or the file cannot be written.
    """
    check_figure(path, OPTION)
    import matplotlib

    # without None these formats would record the date
    date = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix]
    with matplotlib.rc_context(STYLE):
        write_figure(draw_figure(view), path, OPTION, date)


def draw_figure(view: View) -> Figure:
    """Draw a view, in the style that is set in matplotlib."""
    match view:
        case Ranks(group=group):
            return panels_figure([_panels(group)])
        case Panels(groups=groups):
            return _panels_figure(in_order(groups))
        case Difference(a=a, b=b):
            titles = [f"A: {a.label}", a.facts(), f"B: {b.label}", b.facts()]
            panels = [(difference_grid(a, b), titles)]
            if (bits := bit_difference_grid(a, b)) is not None:
                widths = [f"A: {a.label}", "bit widths", f"B: {b.label}", "bit widths"]
                panels.append((bits, widths))
            return panels_figure([panels], f"A {MINUS} B")
        case History():
            return history_figure(view)
        case Scores():
            return scores_figure(view)
    raise AssertionError(view)


def _panels_figure(groups: Sequence[Group]) -> Figure:
    """Draw tasks as rows and methods as columns, or each group with its own titles.

    Two methods on a few tasks fit a page with numbers in the cells, and so do the methods of one
    task.
    """
    panels = [_panels(group) for group in groups]
    names = [group.name for group in groups if group.name is not None]
    tasks, methods = {name.task for name in names}, {name.method for name in names}
    few = sum(map(len, panels)) <= MANY and len(methods) <= 2
    if len(names) < len(groups) or len(tasks) == 1 or (few and len(groups) == 2 * len(tasks)):
        return panels_figure(panels)
    parts: dict[str, dict[tuple[str, str], Grid]] = {}
    for name, found in zip(names, panels, strict=True):
        for grid, titles in found:
            what = titles[1] if len(titles) > 1 and titles[1].startswith(_WIDTHS) else "ranks"
            parts.setdefault(what, {})[name.task, name.method] = grid
    counts = sorted({len(group.runs) for group in groups})
    over = f"mean over {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} runs"
    cells = [
        Cells(heading=f"{what}, {over}" if counts[-1] > 1 else what, grids=grids)
        for what, grids in parts.items()
    ]
    return method_grid(cells)


def _panels(group: Group) -> list[tuple[Grid, list[str]]]:
    """Return the grids of a group's ranks and, with quantizers, of its bit widths of weights and
    of activations."""
    widths = ((what, bit_grid(group.reports, what)) for what in OPERAND_PARTS)
    return [
        (mean_grid(group), [group.heading, group.facts()]),
        *(
            (grid, [group.heading, f"{_WIDTHS} of {what}"])
            for what, grid in widths
            if grid is not None
        ),
    ]
