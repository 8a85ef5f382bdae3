"""`LabelColumn`: the labels of a table as it holds them; the kind of task gives them a meaning."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from bayeslora_cli.config.files.own_columns import is_indicator
from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.tables.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelColumn:
    """A column of labels. If a hub data set stores class indices, this column holds their names.

    Several columns of 0 and 1, one for each class, are one column of lists of their names.
    """

    table: Table
    name: str
    values: Sequence[Any]
    """Each row's label; None if it has none."""
    several: bool = False
    """Whether it stands for several columns of 0 and 1, whose names `name` lists."""

    @staticmethod
    def of(table: Table, name: str) -> LabelColumn:
        """Read the column `name`, or the columns of 0 and 1 that it lists.

        Raises:
            DataError: a listed column has another value.
        """
        columns = listed_columns(name, table.names)
        if len(columns) > 1:
            lists = _read_indicators(table, columns)
            return LabelColumn(table=table, name=name, values=lists, several=True)
        values = table.read_column(name)
        names = table.class_names.get(name)
        if names is not None:
            found = [_named(value, names) for value in values]
        else:
            found = [None if value in (None, "") or value != value else value for value in values]
        return LabelColumn(table=table, name=name, values=found)

    @property
    def title(self) -> str:
        """The table as the user typed it, for messages about the whole table."""
        return self.table.title

    @property
    def spelled(self) -> bool:
        """Whether all values are text, in which numbers are spelled out, as in csv and tsv."""
        return self.table.spelled and not self.several

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, if the data set has them."""
        if self.several:
            return listed_columns(self.name, self.table.names)
        return self.table.class_names.get(self.name)

    def numbers(self) -> Sequence[Any]:
        """The values, or the numbers if every field of a csv spells a number.

        A NaN becomes None.
        """
        if not self.spelled:
            return self.values
        found = [None if value is None else number_in(value) for value in self.values]
        if found.count(None) != list(self.values).count(None):
            return self.values
        return [None if number != number else number for number in found]

    def kinds(self) -> dict[str | None, int]:
        """Each kind of label (text, a number, true or false; None: any other) with the first row
        that has it."""
        first: dict[str | None, int] = {}
        for row, value in enumerate(self.numbers()):
            first.setdefault(_kind(value), row)
        return first

    def has_fractions(self) -> bool:
        """Whether any value is a number with a fraction or written as one, such as 0.5 and 1.0.

        Of equal values, the first decides.
        """
        return any(isinstance(value, float) for value in set(self.numbers()))

    def missing(self, row: int, other: str = "") -> DataError:
        """Make the error about a row without a label; `other`: what else may be meant."""
        return DataError(
            f"{self.table.where(row)}: found no label in the column {self.name!r}; expected one"
            f"{other}"
        )

    def unexpected(self, row: int, expected: str) -> DataError:
        """Make the error about one label; it tells what was `expected` instead."""
        return DataError(
            f"{self.table.where(row)}: found the label {short(self.values[row])} in the column "
            f"{self.name!r}; expected {expected}"
        )


def listed_columns(name: str, names: Collection[str]) -> tuple[str, ...]:
    """Return the columns that the name of a label's column lists, with commas; else only itself."""
    if name in names or "," not in name:
        return (name,)
    return tuple(part.strip() for part in name.split(","))


def _read_indicators(table: Table, columns: Sequence[str]) -> list[list[str] | None]:
    """Return the names of those columns in which a row has a 1; None: all are empty there."""
    values = [table.read_column(name) for name in columns]
    found: list[list[str] | None] = []
    for row, own in enumerate(zip(*values, strict=True)):
        if all(value in (None, "") for value in own):
            found.append(None)
            continue
        for name, value in zip(columns, own, strict=True):
            if not is_indicator(value):
                raise DataError(
                    f"{table.where(row)}: found {short(value)} in the column {name!r}; expected 0 "
                    "or 1, as in each of several label columns"
                )
        found.append([n for n, value in zip(columns, own, strict=True) if float(value)])
    return found


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return the name of a class index, or of each of a list; None for -1, which means no label."""
    if isinstance(value, list):
        return [names[index] for index in value]
    return names[value] if value in range(len(names)) else None


def short(value: object) -> str:
    """Shorten a value for a message."""
    return repr(value)[:80]


def spelling(value: object) -> str:
    """Return the name of the class that a label stands for."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def number_in(text: str) -> int | float | None:
    """Return the number that a field of a csv file spells, NaN included; None: it spells none."""
    # only Python accepts underscores and other alphabets' digits as numbers
    if "_" in text or not text.isascii():
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def finite(value: object) -> float | None:
    """Return a finite number as a float; None for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        score = float(value)
    except OverflowError:  # an integer beyond any float
        return None
    return score if math.isfinite(score) else None


def _kind(value: object) -> str | None:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "true or false"
    return None if finite(value) is None else "a number"
