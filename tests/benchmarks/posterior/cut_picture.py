"""Draws the metric against the kept rank of runs that were cut afterwards, from the judge's lines.

    python -m tests.benchmarks.posterior.cut_picture --judge LINES... --output FILE.png

A line for each order of the triplets, its points the means that the table on the page has, with a
bar from the lowest to the highest seed (each the mean of the tasks); crosses are runs of the same
tasks and seeds that were trained at that rank.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from bayeslora_cli.reports.figures.style import STYLE
from tests.benchmarks.posterior.page_text import own
from tests.benchmarks.posterior.pool import Line, last_runs, read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {
    "learned-snr": "IVON, learned posterior, snr",
    "paper-snr": "IVON, the paper's settings, snr",
    "adamw": "AdamW, sensitivity",
}
TRAINED = {
    "learned-snr": {1.0: "learned-snr-r1", 2.0: "learned-snr"},
    "adamw": {1.0: "adamw-r1", 2.0: "adamw"},
}
ORDERS = {
    "sensitivity": ("C0", "o"), "snr": ("C3", "s"), "precision": ("C1", "^"),
    "singular-values": ("C2", "D"), "magnitude": ("C4", "v"),
}  # fmt: skip
"""Order of the triplets -> colour and marker. snr-abs is not drawn: it lies upon snr."""


class Seeds:
    """The tasks' own metrics of a row's runs, by seed."""

    def __init__(self) -> None:
        self.found: dict[int, list[float]] = defaultdict(list)

    def add(self, line: Line) -> None:
        self.found[line["seed"]].append(100 * own(line["task"], line["metrics"]))

    def means(self) -> list[float]:
        """Return each seed's mean over the tasks."""
        return [fmean(values) for values in self.found.values()]


def draw(axes: Axes, lines: Sequence[Line], row: str) -> None:
    """Draw a row's orders, and the rows that were trained at a rank."""
    found: dict[str, dict[float, Seeds]] = defaultdict(lambda: defaultdict(Seeds))
    for line in lines:
        if (line.get("kind"), line["row"]) == ("cut", row):
            found[line["by"]][line["rank"]].add(line)
    whole = found.pop("none")
    for by, (colour, marker) in ORDERS.items():
        if by in found:
            means = {rank: seeds.means() for rank, seeds in sorted((found[by] | whole).items())}
            values = [fmean(x) for x in means.values()]
            below = [y - min(x) for y, x in zip(values, means.values(), strict=True)]
            above = [max(x) - y for y, x in zip(values, means.values(), strict=True)]
            axes.errorbar([*means], values, yerr=(below, above), color=colour, marker=marker,
                          elinewidth=0.8, capsize=2, label=by)  # fmt: skip
    cut_runs = {(x["task"], x["seed"]) for x in lines if x.get("by") == "none" and x["row"] == row}
    points = {}
    for rank, name in TRAINED.get(row, {}).items():
        dev = [x for x in lines if (x.get("kind"), x["row"]) == ("dev", name)]
        if {(x["task"], x["seed"]) for x in dev} == cut_runs:
            points[rank] = fmean(100 * own(x["task"], x["metrics"]) for x in dev)
    if points:
        axes.plot([*points], [*points.values()], "kx", label="trained at that rank")
    axes.set_xscale("log", base=2)
    ranks = sorted({rank for by_rank in found.values() for rank in by_rank} | set(whole))
    axes.set_xticks(ranks, [f"{rank:g}" for rank in ranks])
    axes.set_title(PANELS[row])
    axes.set_xlabel("mean rank that is kept")
    axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--judge", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    typed = parser.parse_args()
    import matplotlib
    from matplotlib.figure import Figure

    lines = [x for x in last_runs(read_lines(typed.judge)) if "row" in x]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        panels = figure.subplots(1, len(PANELS), sharey=True)
        for axes, row in zip(panels, PANELS, strict=True):
            draw(axes, lines, row)
        panels[0].set_ylabel("the task's metric, mean of five tasks")
        panels[0].legend()
        figure.savefig(typed.output, dpi=150)


if __name__ == "__main__":
    main()
