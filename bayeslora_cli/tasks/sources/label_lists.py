"""Labels of rows that have any number of classes: lists, separated names, columns of 0 and 1."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from bayeslora_cli.config.files.own_columns import is_indicator
from bayeslora_cli.tasks.sources.label_column import LabelColumn, number_in, spelling
from bayeslora_cli.tasks.sources.tables.table import Table

SEPARATORS = "|;,"
"""Between the names of one row's classes; of several the first that any row has."""


def as_list(value: object) -> list[Any] | None:
    """Return a list of labels, also one that is spelled as JSON; None: it is none."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return list(value) if isinstance(value, list | tuple) else None


def label_lists(values: Sequence[Any]) -> bool:
    """Return whether all labels are lists of texts or of whole numbers."""
    return all(
        (parts := as_list(value)) is not None and all(isinstance(p, str | int) for p in parts)
        for value in values
    )


def names_of(column: LabelColumn, classes: Collection[str] = ()) -> list[list[str]]:
    """Return the names of the classes of each row.

    Lists of 0 and 1 that are all of one length, in one of which a number stands twice, tell for
    each class whether the row has it: classes are then named by their places, from 0.

    Args:
        classes: of the task, if they are known; a text that is one of them is not divided.
    Raises:
        DataError: a label is neither a list nor text.
    """
    values = column.values
    parts = [as_list(value) for value in values]
    if all(part is not None for part in parts) and _are_vectors(parts):
        return [[str(k) for k, on in enumerate(part or ()) if on] for part in parts]
    separator = _separator([value for value in values if isinstance(value, str)])
    found = []
    for row, (value, part) in enumerate(zip(values, parts, strict=True)):
        if part is not None and all(isinstance(name, str | int) for name in part):
            found.append([spelling(name) for name in part])
        elif value is None:
            found.append([])
        elif isinstance(value, str | int) and part is None:
            found.append(_divided(spelling(value), separator, classes))
        else:
            raise column.unexpected(row, "a list of texts or whole numbers, or text")
    return found


def sorted_names(names: Collection[str]) -> tuple[str, ...]:
    """Sort names of classes by code points, or by size if all of them spell numbers."""
    numbers = {name: number_in(name) for name in names}
    if all(number is not None and number == number for number in numbers.values()):
        return tuple(sorted(names, key=lambda name: (numbers[name], name)))
    return tuple(sorted(names))


def _divided(text: str, separator: str | None, classes: Collection[str]) -> list[str]:
    if text in classes:
        return [text]
    order = (*((separator,) if separator else ()), *(SEPARATORS if classes else ()))
    ways = [[part.strip() for part in text.split(s) if part.strip()] for s in order]
    for names in ways:
        if set(names) <= set(classes):
            return names
    return ways[0] if ways else [text]


def _separator(texts: Sequence[str]) -> str | None:
    """Return the first separator that any text has; None: none has any."""
    return next((s for s in SEPARATORS if any(s in text for text in texts)), None)


def _are_vectors(rows: Sequence[list[Any] | None]) -> bool:
    lists = [row or [] for row in rows]
    alike = len({len(row) for row in lists}) == 1 and len(lists[0]) > 1
    twice = any(len(set(map(str, row))) < len(row) for row in lists)
    return alike and twice and all(value in (0, 1) for row in lists for value in row)


def indicator_columns(table: Table, beside: Collection[str]) -> tuple[str, ...]:
    """Return the columns that hold only 0 and 1, at least two of them, in the table's order; ().

    Args:
        beside: columns that are not looked at, as those of texts.
    """
    found = [
        name
        for name in table.names
        if name and name not in beside and all(map(is_indicator, table.read_column(name)))
    ]
    return tuple(found) if len(found) > 1 else ()
