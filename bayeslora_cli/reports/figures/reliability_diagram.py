"""Reliability diagrams: how often a prediction is right, against how confident it is.

The bins are `metrics.reliability_bins`: lists of rows, mean confidence and accuracy, from
confidence 0 to 1, by split; at the posterior's mean (`mean`) and over samples (`sampled`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bayeslora_cli.errors import UserError
from bayeslora_cli.runs.atomic_write import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
TITLES = {"mean": "at the mean", "sampled": "over samples"}
BAR = 20
"""Characters of an accuracy of 1."""
# blue and vermilion of Okabe and Ito's palette, which the colour-blind tell apart
_COLOURS = {"mean": "#0072B2", "sampled": "#D55E00"}
_MARKERS = {"mean": "o", "sampled": "s"}

Bins = Sequence[Mapping[str, float]]


def check_figure(path: Path) -> None:
    """Whether a diagram can be drawn to `path`, before anything is computed.

    Raises:
        UserError: a suffix that names no format, a directory, or no matplotlib.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"--reliability {path}: the suffix {path.suffix!r} names no format; "
            f"use one of {', '.join(SUFFIXES)}, or - for the terminal alone"
        )
    if path.is_dir():
        raise UserError(f"--reliability {path}: is a directory; give the name of a file")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            f"--reliability {path}: needs matplotlib: pip install 'bayeslora[plot]'; "
            "--reliability - draws on the terminal"
        )


def diagram(found: Mapping[str, Mapping[str, Bins]]) -> str:
    """Diagrams in plain ASCII on 80 columns, one a split: a line a bin that has rows.

    Args:
        found: bins by split, for `mean` and perhaps `sampled`.
    """
    lines = []
    for split in found["mean"]:
        kinds = {TITLES[at]: splits[split] for at, splits in found.items()}
        lines.append(f"reliability on {split}: # accuracy, | mean confidence")
        lines.append(
            f"{'confidence':10}" + "".join(f"  {'rows':>5} {title:{BAR + 5}}" for title in kinds)
        )
        count = len(found["mean"][split])
        for place, bins in enumerate(zip(*kinds.values(), strict=True)):
            if any(found_bin["rows"] for found_bin in bins):
                edges = f"{place / count:.2f}-{(place + 1) / count:.2f}"
                lines.append(f"{edges:10}" + "".join(f"  {_bar(b)}" for b in bins))
    return "\n".join(line.rstrip() for line in lines)


def _bar(found: Mapping[str, float]) -> str:
    """Rows, accuracy and the bar of a bin."""
    if not found["rows"]:
        return f"{'-':>5} {'':{BAR + 5}}"
    marks = list(f"{'#' * round(found['accuracy'] * BAR):{BAR}}")
    marks[min(BAR - 1, int(found["confidence"] * BAR))] = "|"
    return f"{found['rows']:>5} {found['accuracy']:.2f} {''.join(marks)}"


def draw(path: Path, found: Mapping[str, Mapping[str, Bins]], title: str) -> None:
    """Draw the diagrams, one a split beside each other, each above its confidences' histogram.

    Args:
        path: a file of `SUFFIXES`; its directory is made where there is none.
        found: bins by split, for `mean` and perhaps `sampled`.
    Raises:
        UserError: as `check_figure` does, or the file cannot be written.
    """
    check_figure(path)
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
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=200)
    except OSError as error:
        raise UserError(f"--reliability {path}: cannot be written: {error.strerror}") from error


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
            label=f"{TITLES[at]}, ECE {error:.3f}",
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
