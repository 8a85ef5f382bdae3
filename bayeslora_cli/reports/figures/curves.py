"""Figures of a history of ranks, and of the scores of the triplets."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from bayeslora_cli.reports.figures.style import (
    BAR,
    COLUMN,
    LINE,
    RISING_MAP,
    colour_bar,
    formula,
    left_of,
    new_axes,
    new_figure,
    wrapped,
)
from bayeslora_cli.reports.ranks.grids import paper_order
from bayeslora_cli.reports.ranks.history import History
from bayeslora_cli.reports.ranks.score_distribution import KEPT, PRUNED, Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {KEPT: "#1b7a6e", PRUNED: "#a8a8a8"}
FOOT, GAP = 0.36, 0.1
"""Inches below the lower panel, and between the panels."""


def history_figure(history: History) -> Figure:
    """Draw the budget over the steps, and below it images of every matrix's rank and bit width."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    matrices = [history.group.matrices[i] for i in history.order()]
    courses = history.courses()
    curve, image = 0.6, min(7.0, max(1.8, 0.045 * len(matrices)))
    titles = [
        history.group.label,
        history.group.facts(),
        "one row per matrix, layer 0 on top of its kind",
    ]
    lines = wrapped(titles, COLUMN)
    left = left_of(m.kind for m in matrices) + 0.16
    width = COLUMN - left - BAR - 0.05
    images = len(courses) * (image + GAP)
    figure = new_figure(COLUMN, len(lines) * LINE + 0.15 + curve + images + FOOT, lines)

    # steps count from 1, as on the terminal; a rank that holds from a step on begins at its number
    start, end = 1, history.group.reports[0].step + 2
    edges = np.append(history.steps + 1, end)
    above = new_axes(figure, left, FOOT + images, width, curve)
    above.stairs(history.budget, edges, baseline=None, color=COLOURS[KEPT], linewidth=1)
    above.set(xlim=(start, end), ylim=(0, None), ylabel="triplets")
    above.tick_params(labelbottom=False)

    kinds = [matrix.kind for matrix in matrices]
    starts = [i for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]
    middles = [(a + b) / 2 for a, b in pairwise([*starts, len(kinds)])]
    for number, course in enumerate(reversed(courses)):
        foot = FOOT + number * (image + GAP)
        axes = new_axes(figure, left, foot, width, image)
        top = course.top or 1.0
        axes.pcolormesh(
            edges, np.arange(len(matrices) + 1), course.values.T[history.order()],
            cmap=RISING_MAP, vmin=0, vmax=top, rasterized=True,
        )  # fmt: skip
        for first in starts[1:]:
            axes.axhline(first, color="white", linewidth=1.2)
        axes.set_yticks(middles, [formula(kinds[first]) for first in starts])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set(xlim=(start, end), ylim=(len(matrices), 0))
        if number:
            axes.tick_params(labelbottom=False)
        else:
            axes.set_xlabel("step")
        bar = new_axes(figure, COLUMN - BAR, foot, 0.08, min(image, 1.5))
        colour_bar(bar, ScalarMappable(Normalize(0, top), RISING_MAP), course.unit)
    return figure


def scores_figure(scores: Scores) -> Figure:
    """Draw the histogram of the scores with the threshold, and below it every score by kind."""
    kinds = paper_order(scores.kinds)
    bars, strip = 1.0, 0.2 * len(kinds)
    lines = wrapped([scores.group.label, scores.group.facts()], COLUMN)
    left = left_of(kinds) + 0.16
    width = COLUMN - left - 0.15
    figure = new_figure(COLUMN, len(lines) * LINE + 0.2 + bars + GAP + strip + FOOT, lines)
    above = new_axes(figure, left, FOOT + strip + GAP, width, bars)
    axes = new_axes(figure, left, FOOT, width, strip)
    histogram = scores.histogram()
    for panel in (above, axes):
        if histogram is not None:
            _score_axis(panel, histogram.edges[0], histogram.edges[-1])
        for threshold in scores.thresholds:
            if threshold:
                panel.axvline(threshold, color="black", linewidth=0.6, linestyle="--")

    if histogram is not None:
        base = np.zeros_like(histogram.kept)
        for name, counts in ((KEPT, histogram.kept), (PRUNED, histogram.pruned)):
            above.stairs(
                base + counts, histogram.edges, baseline=base, fill=True, color=COLOURS[name],
                label=name,
            )  # fmt: skip
            base = base + counts
        above.legend(frameon=False, handlelength=1)
    above.set_ylabel("triplets")
    above.tick_params(which="both", labelbottom=False)

    rows = np.array([kinds.index(kind) for kind in scores.kinds])
    # kept ones in the upper half of the row, pruned ones in the lower
    for name, mask, offset in ((KEPT, scores.kept, 0.3), (PRUNED, ~scores.kept, 0.7)):
        axes.plot(
            scores.values[mask], rows[mask] + offset, "|", color=COLOURS[name], markersize=4,
            markeredgewidth=0.5, rasterized=True,
        )  # fmt: skip
    axes.set(ylim=(len(kinds), 0), xlabel=f"score ({scores.group.reports[0].criterion})")
    axes.set_yticks(np.arange(len(kinds)) + 0.5, list(map(formula, kinds)))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def _score_axis(axes: Axes, low: float, high: float) -> None:
    """Make an axis logarithmic; if it spans few decades, write plain numbers."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axes.set(xscale="log", xlim=(low, high))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if high < 1000 * low:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high < 30 * low else (1, 3)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
