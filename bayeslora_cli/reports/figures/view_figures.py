"""Draws the views of `inspect-ranks` as figures for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bayeslora_cli.reports.figures.curves import history_figure, scores_figure
from bayeslora_cli.reports.figures.figure_file import check_figure, write_figure
from bayeslora_cli.reports.figures.rank_heatmap import panels_figure
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
from bayeslora_cli.reports.ranks.run_groups import Group
from bayeslora_cli.reports.ranks.score_distribution import Scores
from bayeslora_cli.reports.ranks.views import Difference, Panels, Ranks, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure


OPTION = "--output"


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
            return panels_figure([_panels(group) for group in groups])
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


def _panels(group: Group) -> list[tuple[Grid, list[str]]]:
    """Return the grids of a group's ranks and, with quantizers, of its bit widths of weights and
    of activations."""
    widths = ((what, bit_grid(group.reports, what)) for what in OPERAND_PARTS)
    return [
        (mean_grid(group), [group.label, group.facts()]),
        *(
            (grid, [group.label, f"bit widths of {what}"])
            for what, grid in widths
            if grid is not None
        ),
    ]
