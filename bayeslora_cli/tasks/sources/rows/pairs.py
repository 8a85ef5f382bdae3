"""Reads pairs of texts that belong together, with or without a text that does not."""

from __future__ import annotations

import json

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.rows.reader import RowReader, check_column, read_texts
from bayeslora_cli.tasks.sources.tables.table import Table, shown
from bayeslora_cli.tasks.task import Examples

_PAIRS = (("anchor", "positive"), ("query", "positive"), ("query", "passage"))
_NEGATIVE = "negative"


class Pairs(RowReader):
    """Rows of an anchor, its positive, and possibly a negative."""

    @property
    def expected(self) -> str:
        return "anchor and positive, and possibly negative (or --text-columns A,B or A,B,C)"

    def columns(
        self, table: Table, asked: tuple[str, ...] | None, *, sure: bool = False
    ) -> tuple[str, ...] | None:
        """Return the columns of the anchor, the positive and, if there is one, the negative."""
        if asked is not None:
            for name in asked:
                check_column(table, name, "--text-columns")
            if len(asked) not in (2, 3):
                raise DataError(
                    f"{table.title}: asked for the columns {shown(asked)}; expected {self.expected}"
                )
            return asked
        found = next((pair for pair in _PAIRS if set(pair) <= set(table.names)), None)
        if found is None:
            return None
        return (*found, _NEGATIVE) if _NEGATIVE in table.names else found

    def told(self, columns: tuple[str, ...], loss_on: str) -> str:
        """Write a clause on the columns."""
        return f"texts that belong together in the columns {', '.join(columns)}"

    def read(
        self,
        table: Table,
        columns: tuple[str, ...],
        *,
        loss_on: str,
        labelled: bool | None,
        classes: tuple[str, ...] = (),
    ) -> Examples:
        """Read all rows: anchors as first texts, lists of the others, as JSON, as second ones."""
        anchors, *others = (read_texts(table, name) for name in columns)
        return Examples(
            first=anchors,
            second=[json.dumps(own, ensure_ascii=False) for own in zip(*others, strict=True)],
            labels=None if labelled is False else [0] * table.rows,
            place=table.where,
        )


PAIRS = Pairs()
