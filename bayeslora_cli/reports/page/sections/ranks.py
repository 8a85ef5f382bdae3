"""Where the ranks went: a heatmap of each run at any step, with bit widths beside it.

The page's script draws it, and writes the table of the run that is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from bayeslora_cli.reports.page.html import Html, clean, element, join, number, plot_text, table
from bayeslora_cli.reports.page.records import RunRecord
from bayeslora_cli.reports.page.sections.section import Section, figure
from bayeslora_cli.reports.ranks.grids import paper_order
from bayeslora_cli.reports.ranks.history import Ints
from bayeslora_cli.runs.rank_report import MatrixReport
from bayeslora_cli.tasks.rank_correlation import Floats

LETTERS = 1_000_000
"""About the largest number of letters of all histories in the page; longer ones are thinned."""
SCORES = 50_000
"""Largest number of scores; of more, each group shows those of its first seed only."""
OUTSIDE = "–"
"""The column of matrices outside the layers."""
HEADS = ("matrix", "kind", "layer", "first rank", "rank at the slider's step", "last rank",
         "share of the budget", "first loss at step", "scores of kept triplets", "of pruned ones",
         "mean bit width")  # fmt: skip
"""Columns of the table; the last three of runs that have scores, and widths."""

Course = dict[str, Any]
"""A run's history as the page's script draws it."""


def ranks(records: Sequence[RunRecord]) -> Section | None:
    """Draw the heatmap with its slider; None if no run has ranks."""
    shown = [r for r in records if r.report is not None and r.changes is not None]
    if not shown:
        return None
    runs = [course for r in shown if (course := _course(r)) is not None]
    means = _means(shown, runs)
    fewer = _drop_scores(shown, runs)
    courses = [*means, *runs]
    forms = _share_forms(courses)
    most = _thin(courses)
    first = next((i for i, course in enumerate(courses) if len(course["steps"]) > 1), 0)
    height = 110 + 30 * max(len(form["kinds"]) for form in forms)
    notes = [
        f" Of long histories the slider has {most} steps at even distances." if most else "",
        " Scores are those of the first seed of each method." if fewer else "",
    ]
    body = [
        element(
            "p",
            "Each cell is an adapted matrix: its kind by its layer (the column – holds matrices "
            "outside the layers). Point at a cell for the matrix's name, rank, share of the budget "
            f"and scores.{''.join(notes)}",
        ),
        figure(
            "ranks", "Ranks by matrix and layer", _described(courses[first], forms),
            element("div", _table(courses[first], forms), id="ranks-table"),
            height=height, controls=_controls(courses, first),
        ),
    ]  # fmt: skip
    spec = {"runs": courses, "forms": forms, "heads": HEADS, "height": height}
    return Section(
        anchor="ranks", title="Where the ranks went", body=join(body), figures={"ranks": spec}
    )


def _course(record: RunRecord) -> Course | None:
    if record.report is None or record.changes is None:
        return None
    steps, values, bits = record.changes
    matrices = record.report.matrices
    last = record.steps_planned or record.steps_done
    scored = all(m.scores is not None for m in matrices)
    return {
        "form": _form(matrices),
        "name": record.name,
        "steps": (steps + 1).tolist(),
        "last": max(int(last or 0), int(steps[-1]) + 1),
        "ranks": values.astype(int).tolist(),
        "bits": None if bits is None else bits.round(1).tolist(),
        "scores": [_scores(m) for m in matrices] if scored else None,
    }


def _drop_scores(records: Sequence[RunRecord], courses: Sequence[Course]) -> bool:
    """Leave the scores only to the first seed of each group, if there are too many of them."""
    initial = (sum(c["form"]["initial"]) for c in courses if c["scores"] is not None)
    if sum(initial) <= SCORES:
        return False
    seen = set()
    for record, course in zip(records, courses, strict=True):
        place = (record.column, record.group)
        if place in seen:
            course["scores"] = None
        seen.add(place)
    return True


def _share_forms(courses: Sequence[Course]) -> list[dict[str, Any]]:
    """Replace equal forms by their place in the list that is returned."""
    forms: list[dict[str, Any]] = []
    for course in courses:
        if course["form"] not in forms:
            forms.append(course["form"])
        course["form"] = forms.index(course["form"])
    return forms


def _thin(courses: Sequence[Course]) -> int | None:
    """Thin long histories; return the number of steps that these have left, or None."""
    widths = (sum(len(str(v)) + 1 for what in ("ranks", "bits") for v in (c[what] or [[]])[-1])
              for c in courses)  # fmt: skip
    most = max(2, LETTERS // max(1, sum(widths)))
    long = [course for course in courses if len(course["steps"]) > most]
    for course in long:
        kept = np.linspace(0, len(course["steps"]) - 1, most).round().astype(int).tolist()
        for what in ("steps", "ranks", "bits"):
            if course[what] is not None:
                course[what] = [course[what][i] for i in kept]
    return most if long else None


def _form(matrices: Sequence[MatrixReport]) -> dict[str, Any]:
    """Return what no step changes: the matrices, and the cells that they stand in."""
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
        "matrices": [clean(m.name) for m in matrices],
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


def _means(records: Sequence[RunRecord], courses: Sequence[Course]) -> list[Course]:
    """Return the mean history of each group of runs that differ only in the seed."""
    groups: dict[Any, list[Course]] = {}
    for record, course in zip(records, courses, strict=True):
        key = (record.column, record.group, tuple(course["form"]["matrices"]), course["last"])
        groups.setdefault(key, []).append(course)
    found = []
    for (column, group, _, _), own in groups.items():
        if len(own) < 2:
            continue
        steps = sorted({step for course in own for step in course["steps"]})
        widths = None
        if all(course["bits"] is not None for course in own):
            widths = np.mean([_at(steps, c, "bits") for c in own], axis=0).round(1).tolist()
        ranks = np.mean([_at(steps, c, "ranks") for c in own], axis=0).round(3)
        found.append(
            {
                **own[0],
                "name": f"{column}, {group}, mean over {len(own)} seeds",
                "steps": steps,
                "ranks": [[int(v) if v.is_integer() else v for v in row] for row in ranks.tolist()],
                "bits": widths,
                "scores": None,
            }
        )
    return found


def _at(steps: Sequence[int], course: Course, what: str) -> Floats:
    """Return a run's numbers at other steps: (steps, matrices)."""
    own: Ints = np.array(course["steps"])
    places = np.maximum(np.searchsorted(own, np.array(steps), side="right") - 1, 0)
    return np.asarray(course[what], dtype=float)[places]


def _controls(courses: Sequence[Course], first: int) -> Html:
    """Write the choice of the run, the slider and the line that says what it shows."""
    options = (
        element("option", course["name"], value=i, selected=i == first)
        for i, course in enumerate(courses)
    )
    chosen = element(
        "label", "Run ", element("select", *options, id="ranks-run"),
        hidden=len(courses) < 2, class_="control",
    )  # fmt: skip
    top = len(courses[first]["steps"]) - 1
    slider = element(
        "label",
        "Step ",
        element("input", type="range", id="ranks-step", min=0, max=top, value=top, step=1),
        class_="control slider",
        hidden=top == 0,
    )
    said = element("output", id="ranks-said", for_="ranks-step ranks-run")
    return element("div", chosen, slider, said, class_="controls")


def _table(course: Course, forms: Sequence[Mapping[str, Any]]) -> Html:
    """Write the table of one run's matrices at its last step, as the page's script does for others.

    Its columns are `HEADS`.
    """
    form, final = forms[course["form"]], course["ranks"][-1]
    total = sum(final) or 1
    scored, wide = course["scores"] is not None, course["bits"] is not None
    rows = []
    for i, (name, (kind, layer)) in enumerate(zip(form["matrices"], form["places"], strict=True)):
        row: list[object] = [
            name, kind, layer, form["initial"][i], f"{final[i]:g}", number(final[i], "g"),
            f"{final[i] / total:.1%}", _first_loss(course, form["initial"][i], i),
        ]  # fmt: skip
        if scored:
            row += [_listed(course["scores"][i][which]) for which in ("kept", "pruned")]
        if wide:
            row.append(number(course["bits"][-1][i], "g"))
        rows.append(row)
    heads = [*HEADS[:8], *(HEADS[8:10] if scored else ()), *(HEADS[10:] if wide else ())]
    return table(f"Ranks of {course['name']}", heads, rows)


def _first_loss(course: Course, initial: int, matrix: int) -> object:
    steps = zip(course["steps"], course["ranks"], strict=True)
    return next((step for step, ranks in steps if ranks[matrix] < initial), OUTSIDE)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "–"


def _described(course: Course, forms: Sequence[Mapping[str, Any]]) -> str:
    form, final = forms[course["form"]], course["ranks"][-1]
    by_kind: dict[str, list[float]] = {}
    for rank, (kind, _) in zip(final, form["places"], strict=True):
        by_kind.setdefault(kind, []).append(rank)
    listed = ", ".join(f"{kind} {fmean(values):.2f}" for kind, values in by_kind.items())
    return (
        f"Heatmap of ranks, kinds of matrices by layers. {course['name']} keeps {sum(final):g} of "
        f"{sum(form['initial'])} triplets at the last step; mean ranks by kind: {listed}."
    )
