"""Learning curves: the loss, every metric of the evaluations, and what the allocation logs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from bayeslora_cli.reports.page.html import Html, element, join, number, plot_text, table
from bayeslora_cli.reports.page.records import RunRecord, is_number
from bayeslora_cli.reports.page.sections.section import (
    Figure,
    Section,
    by_column,
    by_data_set,
    colour,
    dash,
    figure,
    layout,
    legend,
    symbol,
)

HEIGHT = 260
LOGGED = {
    "loss": "training loss",
    "budget": "ranks in use, all matrices",
    "rank": "mean rank",
    "bits": "mean bit width",
    "lr": "learning rate",
}
"""Keys of log intervals that are drawn, with their titles."""
POINTS = 10_000
"""Largest number of points of all curves together; longer logs are thinned."""

Curve = tuple[list[int], list[float]]
"""Steps, counted from 1, and values."""


def curves(records: Sequence[RunRecord]) -> Section | None:
    """Draw a figure per quantity and data set; None if nothing is logged yet."""
    logged = [record for record in records if record.log]
    if not logged:
        return None
    figures: dict[str, Figure] = {}
    parts: dict[str, list[object]] = {}
    columns = by_column(logged)
    most = max(5, POINTS // len(logged) // 8)
    for place, (column, runs) in enumerate(columns.items()):
        end = max(r.steps_planned or r.steps_done for r in runs)
        whole = {"range": [0, 1.02 * max(end, 1)]}
        panels: list[Html] = []
        for key, title, found in _quantities(runs):
            name = f"curve-{place}-{len(panels)}"
            thin = [(run, _thinned(curve, most)) for run, curve in found]
            figures[name] = {
                "data": _traces(thin),
                "layout": layout(HEIGHT, "step", "", xaxis=whole, yaxis=_range_of(thin)),
            }
            numbers = table(
                f"{title} by step", ["step", *(run.name for run, _ in thin)], _rows(thin)
            )
            panels.append(figure(name, title, _described(key, title, found), numbers,
                                 height=HEIGHT))  # fmt: skip
        named, drawn = legend(runs), element("div", *panels, class_="panels")
        parts[column] = [drawn] if named is None else [named, drawn]
    body = join(by_data_set("curves", parts, len(logged)))
    return Section(anchor="curves", title="Learning curves", body=body, figures=figures)


def _quantities(
    runs: Sequence[RunRecord],
) -> Iterable[tuple[str, str, list[tuple[RunRecord, Curve]]]]:
    """Yield key, title and curves of each quantity that any of the runs has logged."""
    metrics: dict[tuple[str, str], None] = {}
    for run in runs:
        for line in run.evaluations:
            for split, values in line["metrics"].items():
                metrics |= dict.fromkeys((split, m) for m in values)
    splits = {split for split, _ in metrics}
    for key, title in LOGGED.items():
        found = [(run, _logged(run, key)) for run in runs]
        if there := [(run, curve) for run, curve in found if curve[0]]:
            yield key, title, there
        if key != "loss":
            continue
        for split, metric in metrics:
            measured = [(run, _measured(run, split, metric)) for run in runs]
            title = metric.replace("_", " ") + (f", {split}" if len(splits) > 1 else "")
            yield metric, title, [(run, curve) for run, curve in measured if curve[0]]


def _logged(run: RunRecord, key: str) -> Curve:
    lines = [line for line in run.intervals if is_number(line.get(key))]
    return [int(line["step"]) + 1 for line in lines], [float(line[key]) for line in lines]


def _measured(run: RunRecord, split: str, metric: str) -> Curve:
    steps, values = [], []
    for line in run.evaluations:
        of_split = line["metrics"].get(split)
        value: Any = of_split.get(metric) if isinstance(of_split, Mapping) else None
        if is_number(value):
            steps.append(int(line["step"]) + 1)
            values.append(float(value))
    return steps, values


def _thinned(curve: Curve, most: int) -> Curve:
    """Keep at most about `most` points, at even distances, the last one among them."""
    steps, values = curve
    stride = max(1, -(-len(steps) // most))
    kept = [i for i in range(len(steps)) if (len(steps) - 1 - i) % stride == 0]
    return [steps[i] for i in kept], [values[i] for i in kept]


def _range_of(found: Sequence[tuple[RunRecord, Curve]]) -> dict[str, Any]:
    """Return the axis of curves that do not move, near their value; otherwise it is fitted."""
    values = {value for _, (_, own) in found for value in own}
    if len(values) > 1:
        return {}
    (value,) = values
    away = abs(value) / 20 or 0.05
    return {"range": [value - away, value + away]}


def _traces(found: Sequence[tuple[RunRecord, Curve]]) -> list[dict[str, Any]]:
    """Draw each run's curve; those of several seeds thin, behind their mean."""
    groups: dict[str, list[tuple[RunRecord, Curve]]] = {}
    for run, curve in found:
        groups.setdefault(run.group, []).append((run, curve))
    thin: list[dict[str, Any]] = []
    thick: list[dict[str, Any]] = []
    for members in groups.values():
        alone = len(members) == 1
        lines = thick if alone else thin
        lines += [_line(run, f"seed {run.config.seed}", curve, alone) for run, curve in members]
        if not alone:
            run = members[0][0]
            thick.append(_line(run, f"mean of {len(members)} seeds", _mean(members), True))
    return [*thin, *thick]


def _mean(members: Sequence[tuple[RunRecord, Curve]]) -> Curve:
    """Return the mean at the steps that all curves have."""
    by_step = [dict(zip(*curve, strict=True)) for _, curve in members]
    steps = [step for step in by_step[0] if all(step in values for values in by_step)]
    return steps, [fmean(values[step] for values in by_step) for step in steps]


def _line(run: RunRecord, what: str, curve: Curve, thick: bool) -> dict[str, Any]:
    steps, values = curve
    tone = colour(run.series)
    return {
        "type": "scatter",
        "mode": "lines+markers" if thick and len(steps) <= 60 else "lines",
        "x": steps,
        "y": values,
        "name": plot_text(f"{run.group}, {what}"),
        "opacity": 1 if thick else 0.35,
        "line": {"color": tone, "dash": dash(run.series), "width": 2 if thick else 1},
        "marker": {"color": tone, "symbol": symbol(run.series), "size": 5},
        "hovertemplate": "step %{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
    }


def _rows(found: Sequence[tuple[RunRecord, Curve]]) -> Iterable[list[object]]:
    by_step = [dict(zip(*curve, strict=True)) for _, curve in found]
    for step in sorted({step for values in by_step for step in values}):
        yield [step, *(number(values.get(step), ".6g") for values in by_step)]


def _described(key: str, title: str, found: Sequence[tuple[RunRecord, Curve]]) -> str:
    """Say in words how the curves go; of many runs only their range."""
    if len(found) <= 4:
        courses = (
            f"{run.name}: from {values[0]:.4g} at step {steps[0]} to {values[-1]:.4g} at step "
            f"{steps[-1]}"
            for run, (steps, values) in found
        )
        return f"Line chart of {title} over steps. " + "; ".join(courses) + "."
    last = [values[-1] for _, (_, values) in found]
    return (
        f"Line chart of {title} over steps for {len(found)} runs; at the end it lies between "
        f"{min(last):.4g} and {max(last):.4g}."
    )
