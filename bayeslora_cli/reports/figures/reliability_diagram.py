"""Reliability diagrams: accuracy of the predictions against their confidence.

The bins are those of `calibration.reliability_bins`, by split: rows, mean confidence and accuracy,
from confidence 0 to 1; at the posterior's mean (`mean`) and over samples of it (`sampled`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bayeslora_cli.reports.figures.figure_file import check_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {"mean": "at the mean", "sampled": "over samples"}
OPTION, WITHOUT = "--reliability", "- for the terminal only"
"""The option that names the file, and what the user may give instead to need no file."""
FULL_BAR = 20
"""Number of characters of the bar for an accuracy of 1."""
# blue and vermilion of Okabe and Ito's palette, which the colour-blind tell apart
_COLOURS = {"mean": "#0072B2", "sampled": "#D55E00"}
_MARKERS = {"mean": "o", "sampled": "s"}

Bins = Sequence[Mapping[str, float]]


def text_diagram(found: Mapping[str, Mapping[str, Bins]]) -> str:
    """Draw diagrams in plain ASCII on 80 columns, one per split: one line per bin that has rows.

    Args:
        found: bins by split, for `mean` and perhaps `sampled`.
    """
    lines = []
    for split in found["mean"]:
        kinds = {_TITLES[at]: splits[split] for at, splits in found.items()}
        lines.append(f"reliability on {split}: # accuracy, | mean confidence")
        lines.append(
            f"{'confidence':10}"
            + "".join(f"  {'rows':>5} {title:{FULL_BAR + 5}}" for title in kinds)
        )
        count = len(found["mean"][split])
        for place, bins in enumerate(zip(*kinds.values(), strict=True)):
            if any(found_bin["rows"] for found_bin in bins):
                edges = f"{place / count:.2f}-{(place + 1) / count:.2f}"
                lines.append(f"{edges:10}" + "".join(f"  {_bar(b)}" for b in bins))
    return "\n".join(line.rstrip() for line in lines)


def _bar(found: Mapping[str, float]) -> str:
    """Write rows, accuracy and the bar of a bin."""
    if not found["rows"]:
        return f"{'-':>5} {'':{FULL_BAR + 5}}"
    marks = list(f"{'#' * round(found['accuracy'] * FULL_BAR):{FULL_BAR}}")
    marks[min(FULL_BAR - 1, int(found["confidence"] * FULL_BAR))] = "|"
    return f"{found['rows']:>5} {found['accuracy']:.2f} {''.join(marks)}"


def save_diagram(path: Path, found: Mapping[str, Mapping[str, Bins]], title: str) -> None:
    """Draw one diagram per split, beside each other, each above the histogram of its confidences.

    Args:
        path: the file; its directory is created if missing.
        found: bins by split, for `mean` and perhaps `sampled`.
    Raises:
        UserError: raised by `check_figure`, or the file cannot be written.
    """
    check_figure(path, OPTION, WITHOUT)
    from matplotlib.figure import Figure

    splits = list(found["mean"])
    figure = Figure(figsize=(0.6 + 4.0 * len(splits), 5.4), layout="constrained")
    figure.suptitle(title, fontsize=9)
    rows = figure.subplots(
        2, len(splits), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1)
    )
    for column, split in enumerate(splits):
        kinds = {at: bins[split] for at, bins in found.items()}
        _draw_accuracy(rows[0, column], split, kinds)
        _draw_histogram(rows[1, column], kinds)
    rows[0, 0].set_ylabel("accuracy")
    rows[1, 0].set_ylabel("share of rows")
    write_figure(figure, path, OPTION)


def _draw_accuracy(axes: Axes, split: str, kinds: Mapping[str, Bins]) -> None:
    axes.set_title(split, fontsize=10)
    axes.plot((0, 1), (0, 1), color="0.6", linewidth=1, linestyle="--", label="calibrated")
    for at, bins in kinds.items():
        filled = [b for b in bins if b["rows"]]
        total = sum(b["rows"] for b in filled)
        error = sum(b["rows"] * abs(b["accuracy"] - b["confidence"]) for b in filled) / total
        axes.plot(
            [b["confidence"] for b in filled],
            [b["accuracy"] for b in filled],
            color=_COLOURS[at],
            marker=_MARKERS[at],
            markersize=4,
            linewidth=1.5,
            label=f"{_TITLES[at]}, ECE {error:.3f}",
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.02, 1.02)
    axes.set_axisbelow(True)
    axes.grid(color="0.92")
    axes.legend(fontsize=8, loc="upper left")


def _draw_histogram(axes: Axes, kinds: Mapping[str, Bins]) -> None:
    for at, bins in kinds.items():
        total = sum(b["rows"] for b in bins)
        axes.stairs(
            [b["rows"] / total for b in bins],
            [place / len(bins) for place in range(len(bins) + 1)],
            color=_COLOURS[at],
            linewidth=1.5,
            fill=at == "mean",
            alpha=0.35 if at == "mean" else 1,
        )
    axes.set_ylim(0, None)
    axes.set_xlabel("confidence")
    axes.set_axisbelow(True)
    axes.grid(color="0.92")
