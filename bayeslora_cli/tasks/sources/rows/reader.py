"""`RowReader`: reads tables whose rows are more than one or two texts and a label.

A kind of task names its reader in `config.catalogue.ObjectiveEntry.rows`.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import ClassVar

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.label_column import short
from bayeslora_cli.tasks.sources.tables.table import Table, shown
from bayeslora_cli.tasks.task import Examples


class RowReader(ABC):
    """Makes rows of a kind of task from a table."""

    numbers: ClassVar[Collection[int] | None] = None
    """Numbers of columns that users may name; None: any."""
    single_texts: ClassVar[bool] = False
    """Whether one text is a row to predict."""

    def columns(
        self, table: Table, asked: tuple[str, ...] | None, *, sure: bool = False
    ) -> tuple[str, ...] | None:
        """Return the columns of a table that hold such rows; None: they are in no known form.

        Args:
            asked: the columns that the user named; None: none.
            sure: whether the user named the kind of task, so that no other column casts doubt.
        Raises:
            DataError: a named column is missing, or more or fewer are named than such rows have.
        """
        if asked is None:
            return self.usual_columns(table, sure=sure)
        for name in asked:
            check_column(table, name, "--text-columns")
        if self.numbers is not None and len(asked) not in self.numbers:
            raise DataError(
                f"{table.title}: asked for the columns {shown(asked)}; expected {self.expected}"
            )
        return asked

    @abstractmethod
    def usual_columns(self, table: Table, *, sure: bool = False) -> tuple[str, ...] | None:
        """Return the columns of usual names that hold such rows; see `columns`."""

    def columns_to_predict(self, table: Table, columns: tuple[str, ...]) -> tuple[str, ...] | None:
        """Return the columns of rows to predict, which may be fewer than those to train on.

        Args:
            columns: those of the task, of which the table lacks one.
        """
        return self.columns(table, None, sure=True)

    def of_texts(self, table: Table, columns: tuple[str, ...]) -> Table:
        """Return rows to predict of a table of plain texts, whose one column is `text`; as it is if
        texts cannot be such rows.

        Args:
            columns: those of the task.
        """
        return table

    def classes(self, table: Table, columns: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the classes of a training table's rows; (): they have none.

        Raises:
            DataError: nothing can be learned from these rows.
        """
        return ()

    @abstractmethod
    def read(
        self,
        table: Table,
        columns: tuple[str, ...],
        *,
        loss_on: str,
        labelled: bool | None,
        classes: tuple[str, ...] = (),
    ) -> Examples:
        """Read all rows of a table.

        Args:
            columns: what `columns` returned for it.
            loss_on: the value of --loss-on.
            labelled: True: rows must have what is to be predicted. None: if the table has it.
            classes: the task's, by which labels are indexed.
        Raises:
            DataError: a row is not as expected; the message tells its place.
        """

    @abstractmethod
    def told(self, columns: tuple[str, ...], loss_on: str) -> str:
        """Write a clause on what the rows are and what is learned from them."""

    @property
    @abstractmethod
    def expected(self) -> str:
        """The columns in which such rows stand, for messages."""


def check_column(table: Table, name: str, what: str) -> None:
    """Check that a table has a column.

    Args:
        what: what the column is for, or the option that named it.
    Raises:
        DataError: it has none; the message names one of a similar name.
    """
    if name not in table.names:
        near = difflib.get_close_matches(name, table.names, n=1)
        raise DataError(
            f"{table.title}: has no column {name!r} ({what})"
            f"{f', but {near[0]!r}' if near else ''}; found {shown(table.names)}"
        )


def label_column(
    table: Table, names: Sequence[str], labelled: bool | None, *, what: str, beside: Sequence[str]
) -> str | None:
    """Return the first column of these names, which holds what is to be predicted; None: there is
    none, or it is not to be read.

    Args:
        labelled: as for `RowReader.read`.
        what: what it holds, for the message.
        beside: the columns of what it is predicted from, for the message.
    Raises:
        DataError: rows must have labels, and there is no such column.
    """
    if labelled is False:
        return None
    found = next((name for name in names if name in table.names), None)
    if found is None and labelled:
        raise DataError(
            f"{table.title}: has no column of {what} beside {', '.join(beside)}; found "
            f"{shown(table.names)}, expected one of {', '.join(names)}"
        )
    return found


def read_texts(table: Table, name: str) -> list[str]:
    """Read a column in which every value is text.

    Raises:
        DataError: one is not, or is empty in csv or tsv, where a missing value looks so.
    """
    texts = table.read_column(name)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"{table.where(row)}: found {short(text)} in the column {name!r}; expected text"
            )
        if table.spelled and not text:
            raise DataError(
                f"{table.where(row)}: found an empty field in the column {name!r}; expected text "
                '(a text that is meant to be empty is "" in JSON Lines)'
            )
    return texts
