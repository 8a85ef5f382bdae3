"""Predictions on the validation rows: reliability diagrams, and the examples that stand out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bayeslora_cli.reports.page.html import Html, details, element, join, number, plot_text, table
from bayeslora_cli.reports.page.predictions import Bins, Example, RunPredictions
from bayeslora_cli.reports.page.records import RunRecord
from bayeslora_cli.reports.page.sections.section import (
    Figure,
    Section,
    colour,
    figure,
    layout,
    legend,
    symbol,
)

HEIGHT = 340
AT = {"mean": "at the mean", "sampled": "over samples"}
Found = Sequence[tuple[RunRecord, RunPredictions]]


def calibration(found: Found) -> Section | None:
    """Draw reliability diagrams by data set and split; None if no run has predictions.

    Runs whose predictions have no confidence only have their metrics here.
    """
    places: dict[tuple[str, str], list[tuple[RunRecord, RunPredictions]]] = {}
    for record, predicted in found:
        for split in predicted.bins.get("mean", {}):
            places.setdefault((record.column, split), []).append((record, predicted))
    if not found:
        return None
    figures: dict[str, Figure] = {}
    panels: list[Html] = []
    for (column, split), runs in places.items():
        name = f"reliability-{len(panels)}"
        figures[name] = _diagram(runs, split)
        panels.append(
            figure(name, f"Accuracy by confidence, {column}, {split}", _described(runs, split),
                   _bins(runs, split), height=HEIGHT)
        )  # fmt: skip
        figures[f"{name}-rows"] = _confidences(runs, split)
        panels.append(
            figure(f"{name}-rows", f"How sure, {column}, {split}",
                   "Share of the rows in each bin of confidence; the numbers are those of the "
                   "figure before.", element("p", "The numbers are those of the figure before."),
                   height=HEIGHT)
        )  # fmt: skip
    diagrams = [
        element(
            "p",
            "Accuracy of the rows in each bin of confidence. On the dotted diagonal a run is right "
            "as often as it says; below it, it is too sure. Larger points hold more rows.",
        ),
        legend([record for record, _ in found]),
        element("div", *panels, class_="panels wide"),
    ]
    parts = [*(diagrams if panels else []), _metrics(found)]
    return Section(
        anchor="calibration",
        title="Calibration" if panels else "Predictions",
        body=join(part for part in parts if part is not None),
        figures=figures,
    )


def _diagram(runs: Found, split: str) -> Figure:
    traces: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip",
         "line": {"color": "@muted", "dash": "dot", "width": 1}}
    ]  # fmt: skip
    for record, predicted in runs:
        for at, by_split in predicted.bins.items():
            bins = [b for b in by_split.get(split, ()) if b["rows"]]
            most = max((b["rows"] for b in bins), default=1)
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "x": [b["confidence"] for b in bins],
                    "y": [b["accuracy"] for b in bins],
                    "customdata": [b["rows"] for b in bins],
                    "name": plot_text(f"{record.group}, seed {record.config.seed}, {AT[at]}"),
                    "line": {"color": colour(record.series), "width": 1.5,
                             "dash": "solid" if at == "mean" else "dash"},
                    "marker": {"color": colour(record.series), "symbol": symbol(record.series),
                               "size": [5 + 9 * (b["rows"] / most) ** 0.5 for b in bins]},
                    "hovertemplate": "confidence %{x:.3f}, accuracy %{y:.3f}, %{customdata} rows"
                    "<extra>%{fullData.name}</extra>",
                }
            )  # fmt: skip
    whole = {"range": [-0.02, 1.02]}
    axes = {"xaxis": whole, "yaxis": dict(whole)}
    return {"data": traces, "layout": layout(HEIGHT, "confidence", "accuracy", **axes)}


def _confidences(runs: Found, split: str) -> Figure:
    """Draw the share of rows in each bin of confidence."""
    traces = []
    for record, predicted in runs:
        for at, by_split in predicted.bins.items():
            bins = by_split.get(split, ())
            total = sum(b["rows"] for b in bins) or 1
            shares = [b["rows"] / total for b in bins]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": [place / len(bins) for place in range(len(bins) + 1)],
                    "y": [*shares, shares[-1]] if shares else [],
                    "name": plot_text(f"{record.group}, seed {record.config.seed}, {AT[at]}"),
                    "line": {"shape": "hv", "color": colour(record.series), "width": 2,
                             "dash": "solid" if at == "mean" else "dash"},
                    "hovertemplate": "from %{x:.2f}: %{y:.1%} of the rows"
                    "<extra>%{fullData.name}</extra>",
                }
            )  # fmt: skip
    axes = {"xaxis": {"range": [0, 1.01]}, "yaxis": {"tickformat": ".0%", "rangemode": "tozero"}}
    return {"data": traces, "layout": layout(HEIGHT, "confidence", "share of rows", **axes)}


def _error(bins: Bins) -> float:
    """Return the expected calibration error of bins."""
    total = sum(b["rows"] for b in bins) or 1
    return sum(b["rows"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / total


def _described(runs: Found, split: str) -> str:
    told = "; ".join(
        f"{record.name}, {AT[at]}: expected calibration error {_error(by_split[split]):.3f}"
        for record, predicted in runs[:8]
        for at, by_split in predicted.bins.items()
        if split in by_split
    )
    return f"Reliability diagram, accuracy by confidence. {told}."


def _bins(runs: Found, split: str) -> Html:
    rows = []
    for record, predicted in runs:
        for at, by_split in predicted.bins.items():
            bins = by_split.get(split, ())
            for place, found in enumerate(bins):
                if found["rows"]:
                    edges = f"{place / len(bins):.2f} to {(place + 1) / len(bins):.2f}"
                    rows.append(
                        [f"{record.name}, {AT[at]}", edges, found["rows"],
                         number(found["confidence"]), number(found["accuracy"])]
                    )  # fmt: skip
    return table(
        f"Bins of confidence, {split}", ["run", "bin", "rows", "confidence", "accuracy"], rows
    )


def _metrics(found: Found) -> Html:
    """Write the metrics of this evaluation, at the mean and over samples."""
    names: dict[str, None] = {}
    for _, predicted in found:
        for by_split in predicted.metrics.values():
            for values in by_split.values():
                names |= dict.fromkeys(values)
    rows = [
        [f"{record.name}, {split}, {AT[at]}", *(number(values.get(n)) for n in names)]
        for record, predicted in found
        for at, by_split in predicted.metrics.items()
        for split, values in by_split.items()
    ]
    heads = ["run", *(name.replace("_", " ") for name in names)]
    return table("Metrics of the evaluation for this page", heads, rows)


# ---- examples


def examples(found: Found, notes: Mapping[str, int]) -> Section | None:
    """Show rows that a run is least sure of, and most wrong about; of each group the first seed.

    Args:
        notes: why runs have no predictions, with the number of these.
    """
    parts: list[object] = []
    seen = set()
    for record, predicted in found:
        place = (record.column, record.group)
        if place in seen or not (predicted.least_sure or predicted.most_wrong):
            continue
        seen.add(place)
        tables = [
            _examples(f"{title}, {record.name}", predicted.measures[kind], rows)
            for kind, title, rows in (
                ("unsure", "Least sure of", predicted.least_sure),
                ("wrong", "Most wrong about", predicted.most_wrong),
            )
            if rows
        ]
        parts.append(
            details(element("h3", record.name), *tables, class_="run",
                    id=f"examples-{record.anchor}", open=not parts)
        )  # fmt: skip
    parts += [
        element("p", f"{count} {'runs' if count > 1 else 'run'} without predictions: {reason}",
                class_="note")
        for reason, count in notes.items()
    ]  # fmt: skip
    if not parts:
        return None
    return Section(anchor="examples", title="Examples", body=join(parts))


def _examples(caption: str, measure: str, rows: Sequence[Example]) -> Html:
    columns = [
        (head, values)
        for head, values in (
            ("label", [row.label for row in rows]),
            ("predicted", [row.predicted for row in rows]),
        )
        if any(value is not None for value in values)
    ]
    heads = ["text", *(head for head, _ in columns), measure, "row"]
    return table(
        caption,
        heads,
        (
            [
                element("div", *(element("p", text, dir="auto") for text in row.texts),
                        class_="texts"),
                *("" if values[i] is None else values[i] for _, values in columns),
                number(row.measure, ".4f"),
                f"{row.split} {row.row}",
            ]
            for i, row in enumerate(rows)
        ),
    )  # fmt: skip
