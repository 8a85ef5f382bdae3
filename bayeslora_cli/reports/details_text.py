"""Tables of a split's details (`Objective.details`): by class or label, and confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

from bayeslora_cli.reports.terminal_text import harmless

WIDTH = 80
"""Columns of a terminal that the tables fit into."""
_LABEL = 24  # columns of a name, at most
_LEAST = 11  # columns of a name, even where the table then does not fit
_OF_CONFUSIONS = ("confusion", "confused")
_SHORT = 10  # columns of a name above a column of the confusion matrix, at most
LINES = 20
"""Most lines of a table."""


def details_text(result: Mapping[str, Any]) -> list[str]:
    """Write the details of an evaluation (`evaluate_run`), [] if there are none.

    They are those over the samples, if there are any.
    """
    by_place = result.get("details", {})
    found: Mapping[str, Mapping[str, Any]] = by_place.get("sampled", by_place.get("mean", {}))
    over = ", over samples" if "sampled" in by_place else ""
    lines = []
    for split, details in found.items():
        for name, records in details.items():
            if name not in _OF_CONFUSIONS and records and isinstance(records[0], Mapping):
                lines += ["", *_table((split if len(found) > 1 else name) + over, records)]
        if "confused" in details:
            lines += ["", *_confusions(details)]
    return lines


def _table(title: str, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write a line per record, which its first value names, and a column for each of the others.

    Of more than `LINES` classes those with the lowest F1 are shown, where they have one. A heading
    of two words takes two lines.
    """
    first_key, *columns = records[0]
    shown, note = list(records), []
    if len(records) > LINES:
        by = "f1" if "f1" in columns else columns[0]
        shown = sorted(records, key=lambda record: record[by])[:LINES]
        note = [f"the {LINES} of {len(records):,} with the lowest {by}; --json has all"]
    heads = [("", *key.split("_"))[-2:] for key in columns]
    cells = [[_number(record[key]) for key in columns] for record in shown]
    widths = [
        2 + max(*map(len, head), *(len(row[place]) for row in cells))
        for place, head in enumerate(heads)
    ]
    room = max(_LEAST, min(_LABEL, WIDTH - sum(widths)))
    names = [_name(record[first_key], room) for record in shown]
    first = max(map(cell_len, (_name(title, room), *names)))
    above = ["".join(f"{head[0]:>{w}}" for head, w in zip(heads, widths, strict=True))]
    lines = [" " * first + line for line in above if line.strip()]
    rows = [(_name(title, room), [head[1] for head in heads]), *zip(names, cells, strict=True)]
    for name, row in rows:
        numbers = (f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True))
        lines.append(set_cell_size(name, first) + "".join(numbers))
    return lines + note


def _number(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)


def _confusions(details: Mapping[str, Any]) -> list[str]:
    """Write the confusion matrix if it fits into a terminal, else the most frequent confusions."""
    names = [str(record["label"]) for record in details["classes"]]
    if "confusion" in details:
        heads = [_name(name, _SHORT) for name in names]
        width = 2 + max(len("label"), *map(cell_len, heads), *(
            len(f"{count:,}") for row in details["confusion"] for count in row
        ))  # fmt: skip
        first = max(len("predicted:"), *(cell_len(_name(name, _LABEL)) for name in names))
        if first + width * len(names) <= WIDTH and len(names) <= LINES:
            lines = [set_cell_size("predicted:", first) + "".join(_right(h, width) for h in heads)]
            for name, row in zip(names, details["confusion"], strict=True):
                cells = "".join(f"{count:{width},}" for count in row)
                lines.append(set_cell_size(_name(name, _LABEL), first) + cells)
            return lines
    pairs = details["confused"]
    if not pairs:
        return ["no row is predicted as another class than its label"]
    labels = [_name(pair["label"], _LABEL) for pair in pairs[: LINES // 2]]
    width = max(map(cell_len, ("most confused", *labels)))
    lines = [set_cell_size("most confused", width) + "  predicted" + " " * 15 + "     rows"]
    for label, pair in zip(labels, pairs, strict=False):
        wrong = set_cell_size(_name(pair["predicted"], _LABEL), _LABEL)
        lines.append(f"{set_cell_size(label, width)}  {wrong}{pair['rows']:>9,}")
    return lines


def _name(name: Any, most: int) -> str:
    """Write a name in at most so many columns, without what a terminal would obey."""
    text = " ".join(harmless(str(name)).split())
    return text if cell_len(text) <= most else set_cell_size(text, most - 1).rstrip() + "…"


def _right(text: str, width: int) -> str:
    return " " * (width - cell_len(text)) + text
