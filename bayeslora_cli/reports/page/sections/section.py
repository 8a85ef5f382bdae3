"""`Section`: a part of the page, with the specifications of its figures; what sections share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from textwrap import wrap
from typing import Any

from bayeslora_cli.reports.page.html import Html, details, element, plot_text
from bayeslora_cli.reports.page.records import RunRecord

Figure = Mapping[str, Any]
"""Traces and layout as plotly takes them. A colour "@NAME" is looked up in the page's scheme."""
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
ROW_LETTERS = 28
"""Letters in a line of a name beside the rows of a figure."""
FOLDED = 12
"""From more runs or figures than this on, the parts of a section on each data set are folded up."""
COLOURS = 8
"""Number of colours for groups of runs; dashes and symbols tell more groups apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page with its own heading."""

    anchor: str
    title: str
    body: Html
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """The specifications of its figures by name."""


def figure(
    name: str, title: object, text: str, numbers: Html, *, height: int, controls: Html | None = None
) -> Html:
    """Write the place of a figure, and below it the table of its numbers, folded up.

    Args:
        name: the figure's name in `Section.figures`.
        text: what the figure shows, in words, for those who do not see it.
        controls: what changes the figure, above it.
    """
    return element(
        "figure",
        element("figcaption", title),
        controls,
        element(
            "div", class_="plot", id=f"plot-{name}", data_figure=name, role="img",
            aria_label=text, style=f"height:{height}px",
        ),
        details("Numbers of this figure", numbers, id=f"numbers-{name}"),
    )  # fmt: skip


def layout(height: int, x: str, y: str, **more: Any) -> dict[str, Any]:
    """Return the layout of a figure with two axes; their titles are plain text."""
    axes = {
        "xaxis": {"title": {"text": plot_text(x)}, "zeroline": False, **more.pop("xaxis", {})},
        "yaxis": {"title": {"text": plot_text(y)}, "zeroline": False, **more.pop("yaxis", {})},
    }
    return {"height": height, "showlegend": False, **axes, **more}


def row_height(name: str) -> int:
    """Return the height in pixels of the row with this name."""
    return 20 + 15 * len(wrap(name, ROW_LETTERS))


def rows_height(names: Sequence[str]) -> int:
    """Return the height in pixels of a figure with a row for each name."""
    return 90 + sum(map(row_height, names))


def row_places(names: Sequence[str]) -> list[float]:
    """Return where on the axis of `name_axis` the middle of each row lies."""
    ends = accumulate(map(row_height, names))
    return [end - row_height(name) / 2 for name, end in zip(names, ends, strict=True)]


def name_axis(names: Sequence[str]) -> dict[str, Any]:
    """Return the axis beside the rows of a figure, the first name on top.

    It counts in pixels, so that a row is as high as the lines of its name.
    """
    return {
        "automargin": True,
        "range": [sum(map(row_height, names)), 0],
        "tickvals": row_places(names),
        "ticktext": ["<br>".join(map(plot_text, wrap(name, ROW_LETTERS))) for name in names],
        "title": {"text": ""},
    }


def colour(series: int) -> str:
    """Return the name of a group's colour."""
    return f"@series-{series % COLOURS}"


def dash(series: int) -> str:
    """Return the dash of a group's lines; groups of one colour have different ones."""
    return DASHES[(series // COLOURS + series) % len(DASHES)]


def symbol(series: int) -> str:
    """Return the symbol of a group's points."""
    return SYMBOLS[series % len(SYMBOLS)]


def legend(records: Sequence[RunRecord]) -> Html | None:
    """Write which colour each group of runs has; None if there is only one group."""
    groups = {record.series: record.group for record in records}
    if len(groups) < 2:
        return None
    return element(
        "ul",
        *(
            element("li", element("span", class_=f"line {dash(s)} series-{s % COLOURS}"), name)
            for s, name in sorted(groups.items())
        ),
        class_="legend",
    )


def by_data_set(anchor: str, parts: Mapping[str, Sequence[object]], count: int) -> list[object]:
    """Put a heading before what is shown of each data set; fold all but the first, if it is much.

    Args:
        anchor: of the section.
        parts: what is shown, by the data set's name.
        count: number of runs or figures in them all.
    """
    if len(parts) < 2:
        return [part for own in parts.values() for part in own]
    if count <= FOLDED:
        return [part for name, own in parts.items() for part in (element("h3", name), *own)]
    return [
        details(element("h3", name), *own, class_="run", id=f"{anchor}-{i}", open=i == 0)
        for i, (name, own) in enumerate(parts.items())
    ]


def by_column(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Put the runs on one data set together."""
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        found.setdefault(record.column, []).append(record)
    return found
