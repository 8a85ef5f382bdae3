"""Reads rows of words, each of which has a tag, as those of named entities."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.label_column import short, spelling
from bayeslora_cli.tasks.sources.rows.reader import RowReader, label_column
from bayeslora_cli.tasks.sources.tables.table import Table, shown
from bayeslora_cli.tasks.task import Examples

_WORDS = ("tokens", "words")
_TEXTS = ("text", "sentence")
"""Columns of sentences, if the kind of task is known: those of rows to predict."""
_TAGS = ("ner_tags", "tags", "labels", "pos_tags")


class Tags(RowReader):
    """Rows of a list of words and a list of as many tags."""

    numbers = (1, 2)

    @property
    def expected(self) -> str:
        return "tokens and tags (or --text-columns TOKENS,TAGS)"

    def usual_columns(self, table: Table, *, sure: bool = False) -> tuple[str, ...] | None:
        """Return the column of the words; that of the tags stands behind it only if it is named."""
        known = (*_WORDS, *(_TEXTS if sure else ()))
        words = next((name for name in known if name in table.names), None)
        if words is None or not (sure or set(_TAGS) & set(table.names)):
            return None
        return (words,)

    def of_texts(self, table: Table, columns: tuple[str, ...]) -> Table:
        """Return rows of the words of each text, with spaces between."""
        texts: list[str] = table.read_column("text")
        words = {columns[0]: [text.split() for text in texts]}
        return replace(table, names=tuple(words), read_column=words.__getitem__)

    def told(self, columns: tuple[str, ...], loss_on: str) -> str:
        """Write a clause on the columns."""
        return f"words in the column {columns[0]}, each of which has a tag"

    def classes(self, table: Table, columns: tuple[str, ...]) -> tuple[str, ...]:
        """Return the tags, O before all others, those of one kind of entity together."""
        name = _tags_of(table, columns, labelled=True)
        assert name is not None
        if (known := table.class_names.get(name)) is not None:
            return known
        found = {tag for _, tags in _rows(table, columns[0], name) for tag in tags or ()}
        if len(found) < 2:
            raise DataError(
                f"{table.title}: found {len(found)} tag in the column {name!r}, so there is "
                "nothing to learn; give rows of two or more tags"
            )
        return tuple(sorted(found, key=_order))

    def read(
        self,
        table: Table,
        columns: tuple[str, ...],
        *,
        loss_on: str,
        labelled: bool | None,
        classes: tuple[str, ...] = (),
    ) -> Examples:
        """Read all rows; labels are the indices of each word's tag."""
        name = _tags_of(table, columns, labelled=labelled)
        index_of = {tag: index for index, tag in enumerate(classes)}
        texts: list[str] = []
        labels: list[tuple[int, ...]] = []
        for row, (words, tags) in enumerate(_rows(table, columns[0], name)):
            texts.append(json.dumps(words, ensure_ascii=False))
            for tag in tags or ():
                if tag not in index_of:
                    raise DataError(
                        f"{table.where(row)}: found the tag {short(tag)} in the column {name!r}; "
                        f"expected one of {shown(classes)}"
                    )
            labels.append(tuple(index_of[tag] for tag in tags or ()))
        return Examples(
            first=texts,
            second=None,
            labels=None if name is None else list(labels),
            place=table.where,
        )


def _order(tag: str) -> tuple[bool, str, str]:
    """Return what tags are sorted by."""
    return tag != "O", tag[2:] if tag[1:2] == "-" else tag, tag


def _tags_of(table: Table, columns: tuple[str, ...], *, labelled: bool | None) -> str | None:
    """Return the column of the tags; None: there is none, or it is not to be read."""
    words, *named = columns
    return label_column(table, named or _TAGS, labelled, what="tags", beside=[words])


def _rows(table: Table, words: str, tags: str | None) -> list[tuple[list[str], list[str] | None]]:
    """Return the words and the tags of each row; None: no tags are read."""
    names = None if tags is None else table.class_names.get(tags)
    others = [None] * table.rows if tags is None else table.read_column(tags)
    found: list[tuple[list[str], list[str] | None]] = []
    for row, (own, beside) in enumerate(zip(table.read_column(words), others, strict=True)):
        where = table.where(row)
        texts = _list(own)
        if texts is None and tags is None and isinstance(own, str):
            texts = own.split()  # a sentence to predict
        if not texts or not all(isinstance(word, str) and word for word in texts):
            raise DataError(
                f"{where}: found {short(own)} in the column {words!r}; expected a list of words, "
                "none of them empty"
            )
        if tags is None:
            found.append((texts, None))
            continue
        marks = _list(beside)
        if marks is None or not all(isinstance(tag, str | int) for tag in marks):
            raise DataError(
                f"{where}: found {short(beside)} in the column {tags!r}; expected a list of tags"
            )
        if len(marks) != len(texts):
            raise DataError(
                f"{where}: found {len(texts)} words and {len(marks)} tags; expected a tag for each "
                "word"
            )
        own_names = [names[mark] if names and isinstance(mark, int) else mark for mark in marks]
        found.append((texts, [spelling(name) for name in own_names]))
    return found


def _list(value: Any) -> list[Any] | None:
    """Return a list, which csv and tsv hold as JSON; None: it is none."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


TAGS = Tags()
