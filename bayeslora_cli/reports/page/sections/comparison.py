"""Groups of runs side by side: the score of each seed, and the paired differences of the groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.page.html import Html, element, join, number, table
from bayeslora_cli.reports.page.sections.section import (
    Figure,
    Section,
    colour,
    figure,
    layout,
    name_axis,
    row_places,
    rows_height,
    symbol,
)
from bayeslora_cli.reports.results.outcomes import GROUPS
from bayeslora_cli.reports.results.paired_test import LEVEL, compare, verdict
from bayeslora_cli.reports.results.rows import Results, Row

ALL_PAIRS = 5
"""Up to this many groups each is compared with each; of more, the best with each other."""


def comparison(results: Results) -> Section | None:
    """Draw scores and differences; None if there are no two groups with a data set in common."""
    if len(results.rows) < 2:
        return None
    figures: dict[str, Figure] = {}
    panels: list[Html] = []
    for column in [c for c in results.columns if c not in GROUPS]:
        rows = [(i, row) for i, row in enumerate(results.rows) if column in row.cells]
        if len(rows) < 2:
            continue
        name = f"seeds-{len(panels)}"
        smaller = column in results.smaller_is_better
        unit = "less is better" if smaller else "percent"
        names = [row.name for _, row in rows]
        height = rows_height(names)
        axes = layout(height, unit, "", yaxis=name_axis(names))
        figures[name] = {"data": list(_points(rows, column)), "layout": axes}
        means = [f"{row.name} {row.cells[column].mean:{row.cells[column].form}}" for _, row in rows]
        text = f"The score of each seed on {column}, and the mean by method: {', '.join(means)}."
        panels.append(
            figure(name, f"Every seed on {column}", text, _seeds(rows, column), height=height)
        )
    parts: list[object] = [element("div", *panels, class_="panels wide")]
    found = [(smaller, tests) for smaller in (False, True) if (tests := _tests(results, smaller))]
    for smaller, tests in found:
        name = "differences-less" if smaller else "differences"
        figures[name], section = _differences(name, tests, smaller)
        parts += section
    if not figures:
        return None
    return Section(anchor="comparison", title="Side by side", body=join(parts), figures=figures)


def _points(rows: Sequence[tuple[int, Row]], column: str) -> Iterator[dict[str, Any]]:
    for (series, row), place in zip(rows, row_places([row.name for _, row in rows]), strict=True):
        cell = row.cells[column]
        yield {
            "type": "scatter",
            "mode": "markers",
            "x": list(cell.scores.values()),
            "y": [place] * len(cell.scores),
            "customdata": list(cell.scores),
            "marker": {"color": colour(series), "symbol": symbol(series), "size": 9,
                       "opacity": 0.75},
            "hovertemplate": "seed %{customdata}: %{x:.4g}<extra></extra>",
        }  # fmt: skip
        yield {
            "type": "scatter",
            "mode": "markers",
            "x": [cell.mean],
            "y": [place],
            "marker": {"color": "@text", "symbol": "line-ns-open", "size": 22,
                       "line": {"width": 2, "color": "@text"}},
            "hovertemplate": "mean %{x:.4g}<extra></extra>",
        }  # fmt: skip


def _seeds(rows: Sequence[tuple[int, Row]], column: str) -> Any:
    form = rows[0][1].cells[column].form
    seeds = sorted({seed for _, row in rows for seed in row.cells[column].scores})
    cells = (
        [
            row.name,
            *(number(row.cells[column].scores.get(seed), form) for seed in seeds),
            number(row.cells[column].mean, form),
            number(row.cells[column].std, form),
        ]
        for _, row in rows
    )
    heads = ["method", *(f"seed {seed}" for seed in seeds), "mean", "standard deviation"]
    return table(f"Scores of each seed on {column}", heads, cells)


def _tests(results: Results, smaller: bool) -> list[dict[str, Any]]:
    """Test the pairs of groups that have a data set and a seed in common.

    Args:
        smaller: over the data sets of which the smallest score is the best, or over the others.
    """
    rows = [
        replace(row, outcomes=own)
        for row in results.rows
        if (own := tuple(o for o in row.outcomes if o.smaller_is_better is smaller))
    ]
    pairs = list(combinations(rows, 2))
    if len(rows) > ALL_PAIRS:
        column = next(c for c in results.columns if any(c in row.cells for row in rows))
        there = [row for row in rows if column in row.cells]
        best = max(there, key=lambda row: (-1 if smaller else 1) * row.cells[column].mean)
        pairs = [(best, row) for row in rows if row is not best]
    found = []
    for a, b in pairs:
        try:
            test = compare(a, b)
        except UserError:  # nothing in common
            continue
        if test["pairs"] > 1:  # a single pair says nothing about noise
            found.append(test)
    return found


def _differences(
    name: str, tests: Sequence[dict[str, Any]], smaller: bool
) -> tuple[Figure, list[object]]:
    """Return the figure called `name`, and its part of the page.

    Args:
        smaller: whether the smallest scores are the best.
    """
    of = ", of scores of which less is better" if smaller else ""
    form = "+.4f" if smaller else "+.2f"
    pairs = [f"{t['a']} − {t['b']}" for t in tests]
    height = rows_height(pairs)
    traces = []
    for place, test in zip(row_places(pairs), tests, strict=True):
        low, high = test["interval"] or (test["difference"], test["difference"])
        tone = "@kept" if test["significant"] else "@muted"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [test["difference"]],
                "y": [place],
                "error_x": {"type": "data", "symmetric": False, "color": tone,
                            "array": [high - test["difference"]],
                            "arrayminus": [test["difference"] - low]},
                "marker": {"color": tone, "size": 10,
                           "symbol": "circle" if test["significant"] else "circle-open"},
                "customdata": [[low, high, test["pairs"]]],
                "hovertemplate": "%{x:+.4g}, 95% %{customdata[0]:+.4g} to %{customdata[1]:+.4g}, "
                "%{customdata[2]} pairs<extra></extra>",
            }
        )  # fmt: skip
    zero = {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper",
            "line": {"color": "@muted", "width": 1, "dash": "dot"}}  # fmt: skip
    spec = {"data": traces,
            "layout": layout(height, "difference of the scores", "",
                             yaxis=name_axis(pairs), shapes=[zero])}  # fmt: skip
    rows = [
        [
            f"{test['a']} minus {test['b']}" if part == "together" else part,
            found["pairs"],
            number(found["difference"], form),
            " to ".join(format(end, form) for end in found["interval"] or ()) or "–",
            number(found["wilcoxon"]),
            number(found["t"]),
            verdict(found),
        ]
        for test in tests
        for part, found in (
            ("together", test),
            *(((f"… on {task}", t) for task, t in test["tasks"].items())
              if len(test["tasks"]) > 1 else ()),
        )
    ]  # fmt: skip
    spoken = "; ".join(f"{t['a']} minus {t['b']}: {t['difference']:{form}}" for t in tests[:10])
    numbers = table(
        f"Paired differences, over the data sets and seeds that both have{of}",
        ["pair", "pairs", "difference", "95% interval", "Wilcoxon p", "t-test p", "verdict"],
        rows,
    )
    note = (
        "A filled circle is a difference that is more than noise. Of many tests "
        f"{LEVEL:.0%} say so by chance alone; tests here: {len(tests)}."
    )
    return spec, [
        element("h3", f"Paired differences{of}"),
        figure(
            name, "Differences between methods, seed by seed, with 95% intervals",
            f"Differences with 95% intervals: {spoken}.", numbers, height=height,
        ),
        element("p", note, class_="note"),
    ]  # fmt: skip
