"""Figures for a paper, as .png, .svg or .pdf, whole or not at all."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.figures.curves import history_figure, scores_figure
from bayeslora_cli.reports.figures.rank_heatmap import panels_figure
from bayeslora_cli.reports.figures.style import DPI, MINUS, STYLE
from bayeslora_cli.reports.ranks.grids import PARTS, Grid, bit_grid
from bayeslora_cli.reports.ranks.group_grids import bit_difference_grid, difference_grid, mean_grid
from bayeslora_cli.reports.ranks.history import History
from bayeslora_cli.reports.ranks.run_groups import Group
from bayeslora_cli.reports.ranks.score_distribution import Scores
from bayeslora_cli.reports.ranks.views import Difference, Panels, Ranks, View
from bayeslora_cli.runs.atomic_write import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")


def check_figure(path: Path) -> None:
    """Whether a figure can go to `path`, before anything is computed.

    Raises:
        UserError: a suffix that names no format, a directory, or matplotlib is missing.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"--output {path}: the suffix {path.suffix!r} names no format of a figure; "
            f"use one of {', '.join(SUFFIXES)}"
        )
    if path.is_dir():
        raise UserError(f"--output {path}: is a directory; give the name of a file")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(f"--output {path}: figures need matplotlib; pip install 'bayeslora[plot]'")


def save_figure(view: View, path: Path) -> None:
    """Draw a view and write it, whole or not at all.

    Raises:
        UserError: as `check_figure` does, or the file cannot be written.
    """
    check_figure(path)
    import matplotlib

    # without the date: the same view gives the same file
    date = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix]
    with matplotlib.rc_context(STYLE):
        figure = draw_figure(view)
        try:
            with replacing(path) as temporary:
                figure.savefig(temporary, format=path.suffix[1:], dpi=DPI, metadata=date)
        except OSError as error:
            raise UserError(f"--output {path}: cannot be written: {error.strerror}") from error


def draw_figure(view: View) -> Figure:
    """The figure of a view, in the style that is set."""
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
    """The ranks, and of runs with quantizers the widths of weights and of activations."""
    widths = ((what, bit_grid(group.reports, what)) for what in PARTS)
    return [
        (mean_grid(group), [group.label, group.facts()]),
        *(
            (grid, [group.label, f"bit widths of {what}"])
            for what, grid in widths
            if grid is not None
        ),
    ]
