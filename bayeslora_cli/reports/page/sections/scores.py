"""Scores of the triplets with the threshold of pruning, and the state of the posteriors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.page.html import Html, details, element, join, number, table
from bayeslora_cli.reports.page.records import RunRecord
from bayeslora_cli.reports.page.sections.section import (
    FOLDED,
    Figure,
    Section,
    by_data_set,
    colour,
    figure,
    layout,
    name_axis,
    row_places,
    rows_height,
    symbol,
)
from bayeslora_cli.reports.ranks.run_groups import load_group
from bayeslora_cli.reports.ranks.score_distribution import QUANTILES, Scores, load_scores

logger = logging.getLogger("bayeslora")
HEIGHT = 280


def scores(records: Sequence[RunRecord]) -> Section | None:
    """Draw the distribution of the scores of each group; None if no run has scores."""
    figures: dict[str, Figure] = {}
    panels: dict[str, list[Html]] = {}
    for (column, group), members in _groups(records).items():
        found = _load(members)
        if found is None or np.ptp(found.values) == 0:  # one score for all: nothing was chosen
            continue
        name = f"scores-{len(figures)}"
        title = f"{column}, {group}" + (f", {len(members)} seeds" if len(members) > 1 else "")
        spec, text = _drawn(found, title)
        figures[name] = spec
        own = panels.setdefault(column, [])
        own.append(figure(name, title, text, _table(found, title), height=HEIGHT))
    if not panels:
        return None
    body = join(
        [
            element(
                "p",
                "Triplets by their importance score at the end, on a logarithmic scale. The dashed "
                "line is the threshold: the n-th largest score, if n triplets are kept. Triplets "
                "were chosen when the budget was reached, so some may lie on the other side.",
            ),
            element("ul", element("li", element("span", class_="swatch kept"), "kept"),
                    element("li", element("span", class_="swatch pruned"), "pruned"),
                    class_="legend"),
            *by_data_set(
                "scores",
                {column: [element("div", *own, class_="panels wide")]
                 for column, own in panels.items()},
                len(figures),
            ),
        ]
    )  # fmt: skip
    return Section(anchor="scores", title="Scores and threshold", body=body, figures=figures)


def _groups(records: Sequence[RunRecord]) -> dict[tuple[str, str], list[RunRecord]]:
    """Put finished runs with scores together that differ only in the seed."""
    found: dict[tuple[str, str], list[RunRecord]] = {}
    for r in records:
        scored = r.report is not None and all(m.scores is not None for m in r.report.matrices)
        if r.result is not None and scored:
            found.setdefault((r.column, r.group), []).append(r)
    return found


def _load(members: Sequence[RunRecord]) -> Scores | None:
    try:
        return load_scores(load_group([r.run.path for r in members]))
    except UserError as error:  # runs of a group that adapt different matrices
        logger.warning("%s", error)
        return None


def _drawn(found: Scores, title: str) -> tuple[Figure, str]:
    """Return the histogram and its description."""
    histogram = found.histogram()
    zeros = int((found.values == 0).sum())
    if histogram is None:
        return {"data": [], "layout": layout(HEIGHT, "score", "triplets")}, "All scores are 0."
    edges = np.log10(histogram.edges)
    middles, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    ranges = [
        f"{a:.3g} to {b:.3g}" for a, b in zip(histogram.edges, histogram.edges[1:], strict=False)
    ]
    traces = [
        {
            "type": "bar",
            "x": middles.tolist(),
            "y": counts.tolist(),
            "width": widths.tolist(),
            "customdata": ranges,
            "name": name,
            "marker": {"color": f"@{name}"},
            "hovertemplate": "score %{customdata}: %{y} " + name + "<extra></extra>",
        }
        for name, counts in (("kept", histogram.kept), ("pruned", histogram.pruned))
    ]
    marks = np.linspace(edges[0], edges[-1], 5)
    axis = {"tickvals": marks.tolist(), "ticktext": [f"{10**mark:.3g}" for mark in marks]}
    more: dict[str, Any] = {"barmode": "stack", "bargap": 0, "xaxis": axis}
    where = ""
    if found.threshold:
        at = float(np.log10(found.threshold))
        where = f" The threshold is {found.threshold:.4g}."
        more["shapes"] = [
            {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper",
             "line": {"color": "@text", "width": 2, "dash": "dash"}}
        ]  # fmt: skip
        more["annotations"] = [
            {"x": at, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False,
             "text": f"threshold {found.threshold:.3g}", "font": {"color": "@text"}}
        ]  # fmt: skip
    score = f"score ({found.group.reports[0].criterion})"
    text = (
        f"Histogram of the scores of {len(found.values)} triplets of {title}: "
        f"{int(found.kept.sum())} are kept, {zeros} scores are 0.{where}"
    )
    return {"data": traces, "layout": layout(HEIGHT, score, "triplets", **more)}, text


def _table(found: Scores, title: str) -> Html:
    data = found.to_json()
    rows: list[list[object]] = [
        [
            name,
            part["triplets"],
            part["kept"],
            *(number(part[quantile], ".4g") for quantile in QUANTILES),
        ]
        for name, part in data["quantiles"].items()
    ]
    parts = [table(f"Scores of {title}", ["part", "triplets", "kept", *QUANTILES], rows)]
    of_runs = zip(found.group.runs, found.thresholds, found.misplaced, strict=True)
    thresholds = [[run.path.name, number(t, ".6g"), m] for run, t, m in of_runs]
    heads = ["run", "threshold", "kept below it"]
    parts.append(table(f"Thresholds of {title}", heads, thresholds))
    return join(parts)


# ---- the posteriors


def posteriors(records: Sequence[RunRecord]) -> Section | None:
    """Tell how far each posterior has moved from its start; None if no run has one."""
    found = [(r, p) for r in records if isinstance(p := (r.result or {}).get("posterior"), dict)]
    if not found:
        return None
    names = [r.name for r, _ in found]
    rows, traces = [], []
    notes: dict[str, list[str]] = {}
    for (r, p), place in zip(found, row_places(names), strict=True):
        ratios = p.get("hessian_over_h0") or {}
        quantiles = [ratios.get(q) for q in ("q05", "median", "q95")]
        rows.append(
            [
                r.name,
                *(number(q, ".4g") for q in quantiles),
                number(p.get("sigma_ratio"), ".4g"),
                number(p.get("snr_magnitude_correlation"), ".4f"),
            ]
        )
        if p.get("note"):
            notes.setdefault(str(p["note"]), []).append(r.name)
        traces.append(_range(r, place, quantiles))
    numbers = table(
        "State of the posteriors",
        ["run", "h/h0, 5%", "median", "95%", "sigma, 95% over 5%", "snr against magnitude"],
        rows,
    )
    height = rows_height(names)
    spec = {
        "data": [t for t in traces if t],
        "layout": layout(
            height, "h / h0", "", xaxis={"type": "log", "exponentformat": "none"},
            yaxis=name_axis(names),
            shapes=[{"type": "line", "x0": 1, "x1": 1, "y0": 0, "y1": 1, "yref": "paper",
                     "line": {"color": "@muted", "width": 1, "dash": "dot"}}],
        ),
    }  # fmt: skip
    text = "Ranges from 5% to 95% of the Hessian over its start: " + "; ".join(
        f"{r.name}: {_spoken(p)}" for r, p in found[:8]
    )
    drawn = figure(
        "posterior", "The Hessian over its start, 5% to 95%", text,
        element("p", "The numbers are in the table above."), height=height,
    )  # fmt: skip
    body = join(
        [
            element(
                "p",
                "IVON's Hessian h over its initial value h0: at 1 it has not moved, and sigma is "
                "that of the settings. The last column is the rank correlation of the triplets' "
                "scores by snr and by magnitude: at 1 sigma changes no order.",
            ),
            numbers,
            details("Figure of all runs", drawn, id="posterior-figure")
            if len(found) > FOLDED
            else drawn,
            *(element("p", f"{', '.join(runs)}: {note}", class_="note")
              for note, runs in notes.items()),
        ]
    )  # fmt: skip
    return Section(
        anchor="posterior", title="The posterior", body=body, figures={"posterior": spec}
    )


def _range(record: RunRecord, place: float, quantiles: Sequence[Any]) -> dict[str, Any] | None:
    if not all(isinstance(q, int | float) and q > 0 for q in quantiles):
        return None
    low, median, high = quantiles
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [median],
        "y": [place],
        "error_x": {"type": "data", "symmetric": False, "array": [high - median],
                    "arrayminus": [median - low], "color": colour(record.series)},
        "marker": {"color": colour(record.series), "symbol": symbol(record.series), "size": 9},
        "customdata": [[low, high]],
        "hovertemplate": "median %{x:.4g}, 5% %{customdata[0]:.4g}, 95% %{customdata[1]:.4g}"
        "<extra></extra>",
    }  # fmt: skip


def _spoken(summary: Mapping[str, Any]) -> str:
    ratios = summary.get("hessian_over_h0") or {}
    return f"{number(ratios.get('q05'), '.3g').text} to {number(ratios.get('q95'), '.3g').text}"
