"""Style and sizes that all figures share, axes placed in inches, names of matrices as formulas."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

# inches: the width of a column and of a page of the usual two-column papers
COLUMN, PAGE = 3.4, 6.9
LEFT, BAR = 0.37, 0.46
"""Width in inches of the rows' names if they are formulas, and of the colour bar with numbers."""
LETTER = 0.058
"""Approximate width of a letter of a row's name, in inches."""
LINE = 0.13
"""Height of a line of text, in inches."""
SIZE = 7.0
"""Font size in points."""
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # which comes with matplotlib
    "font.size": SIZE,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 7,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "xtick.major.size": 2,
    "xtick.minor.width": 0.4,
    "xtick.minor.size": 1.2,
    "ytick.major.width": 0.5,
    "ytick.major.size": 2,
    "mathtext.fontset": "stix",
    "pdf.fonttype": 42,  # TrueType, which publishers require
    "svg.hashsalt": "bayeslora",  # the same ids in the same figure
}
MINUS = "\N{MINUS SIGN}"
RISING_MAP, DIVERGING_MAP = "YlGnBu", "RdBu_r"
"""matplotlib's colour maps of ranks and of differences; small numbers are light, also in print."""


def new_figure(width: float, height: float, titles: Sequence[str]) -> Figure:
    """Make a figure, sizes in inches, with lines of text at its top; $ stays a plain character."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    write_lines(figure, titles, top=height - 0.4 * LINE)
    return figure


def write_lines(
    figure: Figure, lines: Sequence[str], *, top: float, left: float = 0.0, size: float = SIZE
) -> None:
    """Write lines of text of font size `size` from `top` inches downwards."""
    width, height = figure.get_size_inches()
    for number, line in enumerate(lines):
        x, y = left + 0.1, top - number * LINE * size / SIZE
        figure.text(x / width, y / height, line, va="top", size=size, parse_math=False)


def new_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Place axes, in inches, without a frame at the top and on the right."""
    w, h = figure.get_size_inches()
    axes = figure.add_axes((left / w, bottom / h, width / w, height / h))
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def colour_bar(axes: Axes, mappable: ScalarMappable, what: str) -> None:
    """Fill `axes` with the colours, and write above them what they mean."""
    from matplotlib.ticker import MaxNLocator

    bar = axes.figure.colorbar(mappable, cax=axes, ticks=MaxNLocator(6, integer=True))
    bar.outline.set_visible(False)
    axes.tick_params(pad=1.5, labelsize=6)
    axes.set_title(what, size=6.5, loc="left", pad=4)


def wrapped(texts: Sequence[str], width: float, size: float = SIZE) -> list[str]:
    """Break texts into lines that fit `width` inches; each text begins a new line."""
    columns = int(72 * (width - 0.2) / (0.53 * size))
    return [line for text in texts for line in wrap(text, columns)]


def left_of(kinds: Iterable[str]) -> float:
    """Return the inches for the rows' names: `LEFT`, or more for long names without a formula."""
    plain = [len(kind) for kind in kinds if not formula(kind).startswith("$")]
    return max([LEFT, *(0.09 + LETTER * letters for letters in plain)])


def formula(kind: str) -> str:
    """Write W_q as a formula; leave other names as they are."""
    found = re.fullmatch(r"W_(\w+)", kind)
    if found is None:
        return kind.replace("$", r"\$")
    # a letter, with a number or without; words such as "up" are upright
    index = found[1] if re.fullmatch(r"\w\d?", found[1]) else rf"\mathrm{{{found[1]}}}"
    return f"$W_{{{index}}}$"
