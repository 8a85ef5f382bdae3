"""Where the ranks went: a heatmap of each run at any step, with bit widths beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from bayeslora_cli.reports.page.html import Html, details, element, join, number, plot_text, table
from bayeslora_cli.reports.page.records import RunRecord
from bayeslora_cli.reports.page.sections.section import Section, figure
from bayeslora_cli.reports.ranks.grids import paper_order
from bayeslora_cli.reports.ranks.history import Ints
from bayeslora_cli.runs.rank_report import FLOAT_BITS, MatrixReport, RankReport
from bayeslora_cli.tasks.rank_correlation import Floats

NUMBERS = 400_000
"""Largest number of ranks in all histories together; longer ones are thinned."""
OUTSIDE = "–"
"""The column of matrices outside the layers."""


def ranks(records: Sequence[RunRecord]) -> Section | None:
    """Draw the heatmap with its slider; None if no run has ranks."""
    shown = [r for r in records if r.report is not None and r.changes is not None]
    if not shown:
        return None
    count = sum(len(r.report.matrices) for r in shown if r.report)
    most = max(2, NUMBERS // max(1, count))
    courses = [course for r in shown if (course := _course(r, most)) is not None]
    means = _means(shown, courses)
    height = 110 + 30 * max(len(course["kinds"]) for course in courses)
    tables = [_table(i, course) for i, course in enumerate([*means, *courses])]
    spec = {"runs": [*means, *courses], "height": height}
    note = "" if not any(course["thinned"] for course in courses) else (
        f" Of long histories the slider has {most} steps at even distances."
    )  # fmt: skip
    body = [
        element(
            "p",
            "Each cell is an adapted matrix: its kind by its layer (the column – holds matrices "
            "outside the layers). Point at a cell for the matrix's name, rank, share of the budget "
            f"and scores.{note}",
        ),
        figure(
            "ranks", "Ranks by matrix and layer", _described(courses), join(tables),
            height=height, controls=_controls([*means, *courses]),
        ),
    ]  # fmt: skip
    return Section(
        anchor="ranks", title="Where the ranks went", body=join(body), figures={"ranks": spec}
    )


def _course(record: RunRecord, most: int) -> dict[str, Any] | None:
    """Return one run's history as the page's script draws it; names are escaped for plotly."""
    if record.report is None or record.changes is None:
        return None
    steps, values, bits = record.changes
    kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), most)).round().astype(int))
    matrices = record.report.matrices
    last = record.steps_planned or record.steps_done
    found = {
        **_form(matrices),
        "name": record.name,
        "criterion": record.report.criterion,
        "steps": (steps[kept] + 1).tolist(),
        "last": max(int(last or 0), int(steps[-1]) + 1),
        "ranks": values[kept].astype(int).tolist(),
        "bits": None if bits is None else bits[kept].round(2).tolist(),
        "scores": None,
        "thinned": len(kept) < len(steps),
    }
    if all(m.scores is not None for m in matrices):
        found["scores"] = [_scores(m) for m in matrices]
    return found


def _form(matrices: Sequence[MatrixReport]) -> dict[str, Any]:
    """Return what does not change: the matrices, and the cells that they stand in."""
    kinds = paper_order(m.kind for m in (*_inside(matrices), *_outside(matrices)))
    layers = sorted({m.layer for m in matrices if m.layer is not None})
    columns = [*map(str, layers), *([OUTSIDE] if _outside(matrices) else [])]
    cells: list[list[list[int]]] = [[[] for _ in columns] for _ in kinds]
    for i, m in enumerate(matrices):
        place = len(columns) - 1 if m.layer is None else layers.index(m.layer)
        cells[kinds.index(m.kind)][place].append(i)
    return {
        "kinds": [_formula(kind) for kind in kinds],
        "columns": columns,
        "cells": cells,
        "matrices": [plot_text(m.name) for m in matrices],
        "initial": [m.init_rank for m in matrices],
        "places": [[m.kind, "" if m.layer is None else m.layer] for m in matrices],
    }


def _formula(kind: str) -> str:
    """Write W_q with its index below; other names as they are."""
    name, line, index = plot_text(kind).rpartition("_")
    return f"{name}<sub>{index}</sub>" if line and name.endswith("W") else plot_text(kind)


def _inside(matrices: Sequence[MatrixReport]) -> list[MatrixReport]:
    return [m for m in matrices if m.layer is not None]


def _outside(matrices: Sequence[MatrixReport]) -> list[MatrixReport]:
    return [m for m in matrices if m.layer is None]


def _scores(matrix: MatrixReport) -> dict[str, list[float]]:
    """Return the scores of kept and pruned triplets at the end, the largest first."""
    scores = matrix.scores or ()
    kept = sorted((s for s, k in zip(scores, matrix.kept, strict=True) if k), reverse=True)
    pruned = sorted((s for s, k in zip(scores, matrix.kept, strict=True) if not k), reverse=True)
    return {"kept": [*map(_three, kept)], "pruned": [*map(_three, pruned)]}


def _three(value: float) -> float:
    return float(f"{value:.3g}")


def _means(records: Sequence[RunRecord], courses: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the mean history of each group of runs that differ only in the seed."""
    groups: dict[Any, list[int]] = {}
    for i, record in enumerate(records):
        key = (record.column, record.group, tuple(courses[i]["matrices"]), courses[i]["last"])
        groups.setdefault(key, []).append(i)
    found = []
    for (column, group, _, _), members in groups.items():
        if len(members) < 2:
            continue
        own = [courses[i] for i in members]
        steps = sorted({step for course in own for step in course["steps"]})
        whole = [_at(steps, course, "ranks") for course in own]
        widths = None
        if all(course["bits"] is not None for course in own):
            widths = np.mean([_at(steps, c, "bits") for c in own], axis=0).round(2).tolist()
        found.append(
            {
                **own[0],
                "name": f"{column}, {group}, mean over {len(members)} seeds",
                "steps": steps,
                "ranks": np.mean(whole, axis=0).round(2).tolist(),
                "bits": widths,
                "scores": None,
            }
        )
    return found


def _at(steps: Sequence[int], course: Mapping[str, Any], what: str) -> Floats:
    """Return a run's numbers at other steps: (steps, matrices)."""
    own: Ints = np.array(course["steps"])
    places = np.maximum(np.searchsorted(own, np.array(steps), side="right") - 1, 0)
    return np.asarray(course[what], dtype=float)[places]


def _controls(courses: Sequence[Mapping[str, Any]]) -> Html:
    """Write the choice of the run, the slider and the line that says what it shows."""
    options = (element("option", course["name"], value=i) for i, course in enumerate(courses))
    many = len(courses) > 1
    chosen = element(
        "label", "Run ", element("select", *options, id="ranks-run"),
        hidden=not many, class_="control",
    )  # fmt: skip
    top = len(courses[0]["steps"]) - 1
    slider = element(
        "label",
        "Step ",
        element("input", type="range", id="ranks-step", min=0, max=top, value=top, step=1),
        class_="control slider",
        hidden=top == 0 and len(courses) == 1,
    )
    return element("div", chosen, slider, element("output", id="ranks-said"), class_="controls")


def _table(index: int, course: Mapping[str, Any]) -> Html:
    """Write the table of one run's matrices; the script fills in the slider's column."""
    final, total = course["ranks"][-1], sum(course["ranks"][-1]) or 1
    lost = _first_losses(course)
    scored = course["scores"] is not None
    rows = []
    for i, (name, (kind, layer)) in enumerate(
        zip(course["matrices"], course["places"], strict=True)
    ):
        row: list[object] = [
            element("span", Html(name)), kind, layer, course["initial"][i],
            element("span", f"{final[i]:g}", data_matrix=i),
            number(final[i], "g"), f"{final[i] / total:.1%}", lost[i],
        ]  # fmt: skip
        if scored:
            of_matrix = course["scores"][i]
            row += [_listed(of_matrix["kept"]), _listed(of_matrix["pruned"])]
        if course["bits"] is not None:
            row.append(number(course["bits"][-1][i], "g"))
        rows.append(row)
    heads = ["matrix", "kind", "layer", "first rank", "rank at the slider's step", "last rank",
             "share of the budget", "first loss at step"]  # fmt: skip
    heads += ["scores of kept triplets", "of pruned ones"] if scored else []
    heads += ["mean bit width"] if course["bits"] is not None else []
    caption = f"Ranks of {course['name']}"
    return element("div", table(caption, heads, rows), data_run=index)


def _first_losses(course: Mapping[str, Any]) -> list[object]:
    values = np.asarray(course["ranks"], dtype=float)
    fell = values < np.asarray(course["initial"], dtype=float)
    places = np.argmax(fell, axis=0)
    ever = np.asarray(fell.any(axis=0)).tolist()
    return [
        course["steps"][place] if fallen else "–"
        for place, fallen in zip(places.tolist(), ever, strict=True)
    ]


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "–"


def _described(courses: Sequence[Mapping[str, Any]]) -> str:
    course = courses[0]
    final, initial = course["ranks"][-1], sum(course["initial"])
    by_kind: dict[str, list[float]] = {}
    for rank, (kind, _) in zip(final, course["places"], strict=True):
        by_kind.setdefault(kind, []).append(rank)
    listed = ", ".join(f"{kind} {fmean(values):.2f}" for kind, values in by_kind.items())
    return (
        f"Heatmap of ranks, kinds of matrices by layers. {course['name']} keeps {sum(final):g} of "
        f"{initial} triplets at the last step; mean ranks by kind: {listed}."
    )


# ---- bit widths


def bit_widths(records: Sequence[RunRecord]) -> Section | None:
    """Tell the widths that gates have learned; None if nothing is quantized."""
    runs = [(r, r.report) for r in records if r.report is not None and _has_bits(r.report)]
    if not runs:
        return None
    parts: list[object] = [_costs([r for r, _ in runs])]
    for record, report in runs:
        operands = list(dict.fromkeys(name for m in report.matrices for name in m.bits or {}))
        kinds = paper_order(m.kind for m in report.matrices)
        rows: list[list[object]] = [
            [kind, *(number(_mean_width(report, kind, o), ".2f") for o in operands)]
            for kind in kinds
        ]
        rows.append(["all", *(number(_mean_width(report, None, o), ".2f") for o in operands)])
        widths = table(
            f"Mean width in bits, {record.name}: kinds of matrices by operand",
            ["kind", *operands], rows,
        )  # fmt: skip
        parts.append(details(record.name, widths, id=f"bits-{record.anchor}", open=len(parts) == 1))
    return Section(anchor="bits", title="Bit widths", body=join(parts))


def _costs(records: Sequence[RunRecord]) -> Html:
    places = {
        "mean rank": ("mean_rank", ".2f"), "mean width, bits": ("mean_bits", ".2f"),
    }  # fmt: skip
    costs = {
        "bit operations of the adapters": "adapter_relative",
        "with the base": "with_base_relative",
        "of the whole model": "model_relative",
        "storage": "storage_relative",
    }
    rows = []
    for r in records:
        result = r.result or {}
        cost = result.get("cost") or {}
        rows.append(
            [
                r.name,
                *(number(result.get(key), form) for key, form in places.values()),
                *(number(cost.get(key), ".2%") for key in costs.values()),
            ]
        )
    caption = f"Ranks, widths and cost, relative to {FLOAT_BITS} x {FLOAT_BITS} bits at first rank"
    return table(caption, ["run", *places, *costs], rows)


def _has_bits(report: RankReport) -> bool:
    return any(m.bits for m in report.matrices)


def _mean_width(report: RankReport, kind: str | None, operand: str) -> float | None:
    found = [
        m.bits[operand]
        for m in report.matrices
        if m.bits and operand in m.bits and kind in (None, m.kind)
    ]
    return fmean(found) if found else None
