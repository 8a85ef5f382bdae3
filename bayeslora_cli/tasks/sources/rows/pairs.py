"""Reads pairs of texts that belong together, with or without a text that does not."""

from __future__ import annotations

import json

from bayeslora_cli.config.files.own_columns import TEXT_COLUMNS
from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.label_column import finite, number_in, short
from bayeslora_cli.tasks.sources.rows.reader import RowReader, read_texts
from bayeslora_cli.tasks.sources.tables.table import Table
from bayeslora_cli.tasks.task import Examples

_PAIRS = (("anchor", "positive"), ("query", "positive"), ("query", "passage"))
_TEXTS = (("sentence1", "sentence2"), ("text1", "text2"), ("question1", "question2"))
_NEGATIVE = "negative"
_SCORES = ("score", "similarity_score", "similarity", "label")


class Pairs(RowReader):
    """Rows of an anchor, its positive, and possibly a negative; or of two texts and a score, which
    tells how similar they are."""

    numbers = (2, 3)
    single_texts = True

    @property
    def expected(self) -> str:
        return "anchor and positive, and possibly negative (or --text-columns A,B or A,B,C)"

    def usual_columns(self, table: Table, *, sure: bool = False) -> tuple[str, ...] | None:
        """Return the columns of the anchor, the positive and, if there is one, the negative."""
        known = (*_PAIRS, *_TEXTS) if sure else _PAIRS
        found = next((pair for pair in known if set(pair) <= set(table.names)), None)
        if found is None:
            return None
        return (*found, _NEGATIVE) if _NEGATIVE in table.names else found

    def columns_to_predict(self, table: Table, columns: tuple[str, ...]) -> tuple[str, ...] | None:
        """Return the columns of a pair, or else the one of the anchor or of a usual name."""
        single = [names[0] for names in TEXT_COLUMNS if len(names) == 1]
        found = next(((name,) for name in (columns[0], *single) if name in table.names), None)
        return super().columns_to_predict(table, columns) or found

    def told(self, columns: tuple[str, ...], loss_on: str) -> str:
        """Write a clause on the columns."""
        return f"texts that belong together in the columns {', '.join(columns)}"

    def classes(self, table: Table, columns: tuple[str, ...]) -> tuple[str, ...]:
        """Return (); refuse rows to train on that have different scores."""
        if (name := _score_column(table)) is not None:
            raise DataError(
                f"{table.title}: has the column {name!r}; the texts of each row to train on belong "
                "together: leave out the rows whose texts do not, and the column. Rows with scores "
                "can be evaluated on (--eval-file)"
            )
        return ()

    def read(
        self,
        table: Table,
        columns: tuple[str, ...],
        *,
        loss_on: str,
        labelled: bool | None,
        classes: tuple[str, ...] = (),
    ) -> Examples:
        """Read all rows: anchors as first texts, lists of the others, as JSON, as second ones; None
        if there are no others.

        Labels are scores, or 0 where there are none.
        """
        anchors, *others = (read_texts(table, name) for name in columns)
        return Examples(
            first=anchors,
            second=[json.dumps(own, ensure_ascii=False) for own in zip(*others, strict=True)]
            or None,
            labels=None if labelled is False else _scores(table),
            place=table.where,
        )


def _score_column(table: Table) -> str | None:
    """Return the column of scores; None: there is none, or all values in it are the same."""
    name = next((name for name in _SCORES if name in table.names), None)
    return name if name and len(set(map(str, table.read_column(name)))) > 1 else None


def _scores(table: Table) -> list[float] | list[int]:
    """Return the rows' scores; 0 for each, an integer, if they have none."""
    if (name := _score_column(table)) is None:
        return [0] * table.rows
    scores = []
    for row, value in enumerate(table.read_column(name)):
        score = finite(number_in(value) if table.spelled and isinstance(value, str) else value)
        if score is None:
            raise DataError(
                f"{table.where(row)}: found {short(value)} in the column {name!r}; expected a "
                "finite number, the score of the texts' similarity"
            )
        scores.append(score)
    return scores


PAIRS = Pairs()
