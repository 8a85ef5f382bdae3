"""Reads files in CoNLL's form: a word and its tag per line, a blank line behind each sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.tables.table import Table
from bayeslora_cli.tasks.sources.tables.text_files import read_text

WORDS, TAGS = NAMES = ("tokens", "tags")
_DOCUMENT = "-DOCSTART-"  # a line between documents in CoNLL-2003's files


def read_conll(source: str, option: str) -> Table:
    """Read a table of the columns `tokens` and `tags`.

    Of several columns, separated by tabs or by blanks, the first is the word and the last its tag.
    Lines before a sentence that begin with "# " are remarks.

    Raises:
        DataError: a line has only one column while others have more; its number is told.
    """
    found = list(sentences(source, read_text(source).split("\n")))
    if not found:
        raise DataError(f"{option} {source}: found no rows; expected at least one")
    return table_of_sentences(source, option, found)


Sentence = tuple[int, list[list[str]]]
"""The number of a sentence's first line, and the columns of each of its words."""


def sentences(source: str, lines: Iterable[str]) -> Iterator[Sentence]:
    """Yield the sentences of a file's lines as they come; see `read_conll`.

    Raises:
        DataError: raised by `read_conll`.
    """
    begun: Sentence | None = None
    columns = 0
    for number, line in enumerate(lines, start=1):
        cells = line.split("\t") if "\t" in line.strip() else line.split()
        cells = [cell.strip() for cell in cells]
        if not line.strip() or cells[0] == _DOCUMENT:
            if begun is not None:
                yield begun
            begun = None
            continue
        if begun is None and line.startswith("# "):
            continue
        if not cells[0] or not cells[-1]:
            raise DataError(f"{source}, line {number}: found an empty field; expected word and tag")
        columns = columns or len(cells)
        if (len(cells) > 1) != (columns > 1):
            expected = "a word and its tag" if len(cells) == 1 else "one word, as before"
            raise DataError(
                f"{source}, line {number}: found {line.strip()[:80]!r}; expected {expected}"
            )
        begun = begun or (number, [])
        begun[1].append(cells)
    if begun is not None:
        yield begun


def table_of_sentences(source: str, option: str, found: Sequence[Sentence]) -> Table:
    """Make a table of sentences, at least one."""
    columns = {WORDS: [[cells[0] for cells in own] for _, own in found]}
    if len(found[0][1][0]) > 1:
        columns[TAGS] = [[cells[-1] for cells in own] for _, own in found]
    return Table(
        option=option,
        source=source,
        names=tuple(columns),
        rows=len(found),
        read_column=lambda name: list(columns[name]),
        lines=[number for number, _ in found],
    )
