"""Reads rows some thousands at a time, from files of any size and from pipes, in constant memory.

A window is a `Table` of consecutive rows. On a pipe a window ends early if no further row is there
yet, so that whoever writes into it gets the answers to what was written.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.tables.arrow import parquet_windows
from bayeslora_cli.tasks.sources.tables.conll import Sentence, sentences, table_of_sentences
from bayeslora_cli.tasks.sources.tables.json_rows import json_lines, read_json, table_of_objects
from bayeslora_cli.tasks.sources.tables.table import CONLL as CONLL_SUFFIXES
from bayeslora_cli.tasks.sources.tables.table import Table, check_names
from bayeslora_cli.tasks.sources.tables.text_files import (
    checked_fields,
    csv_records,
    table_of_fields,
    tsv_records,
)

ROWS = 8192
"""Most rows of a window: enough that rows of one length share batches."""
CHARACTERS = 8_000_000
"""About the most characters of a window."""
STDIN = "-"
"""The name of standard input."""
TEXT, JSON_LINES, CONLL = "text", "jsonl", "conll"
FORMS = (TEXT, "csv", "tsv", JSON_LINES, "parquet", CONLL)
"""How rows may be written."""
_BY_SUFFIX = {
    ".txt": TEXT, ".csv": "csv", ".tsv": "tsv", ".jsonl": JSON_LINES, ".ndjson": JSON_LINES,
    ".json": JSON_LINES, ".parquet": "parquet", **dict.fromkeys(CONLL_SUFFIXES, CONLL),
}  # fmt: skip
_BYTES = 2**20  # read at a time
_PATIENCE = 0.05  # seconds in which a pipe's writer may go on before a window ends
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_Record = TypeVar("_Record")


def table_windows(
    source: str, option: str, text_columns: Sequence[str], form: str | None = None
) -> Iterator[Table]:
    """Read the rows of a file or of standard input as tables of consecutive rows.

    Args:
        source: a file, or `STDIN`.
        option: the name of the argument that gave it, for messages.
        text_columns: names of the columns of rows of text: a text a line, or two with a tab
            between.
        form: one of `FORMS`; None: by the file's ending; standard input holds JSON Lines if its
            first line is a JSON object, otherwise text.
    Raises:
        DataError: the source cannot be read, or a row is malformed; the rows before it have been
            yielded.
    """
    if source != STDIN:
        form = form or _form_of(source)
        try:
            with open(source, "rb") as file:
                beginning = file.read(_BYTES) if file.seekable() else b""
        except OSError as error:
            raise DataError(f"{option} {source}: {_reason(error)}") from error
        if form == "parquet":
            return parquet_windows(source, option, ROWS)
        # an array is read whole
        if form == JSON_LINES and beginning.removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] == b"[":
            return _parts(read_json(source, option))
    elif form == "parquet":
        raise DataError("parquet: cannot be read from standard input; give the file's name")
    return _line_windows(source, option, text_columns, form)


def _line_windows(
    source: str, option: str, text_columns: Sequence[str], form: str | None
) -> Iterator[Table]:
    name = "standard input" if source == STDIN else source
    descriptor = sys.stdin.fileno() if source == STDIN else os.open(source, os.O_RDONLY)
    try:
        lines = _Lines(descriptor, name)
        if form is None:
            form, first = _found(lines)
            text: Iterator[str] = chain(first, lines)
        else:
            text = iter(lines)
        yield from _of_lines(name, option, form, text, lines.waiting, text_columns)
    finally:
        if source != STDIN:
            os.close(descriptor)


def object_windows(rows: Iterable[Any], option: str, columns: Sequence[str]) -> Iterator[Table]:
    """Yield windows of rows from Python: texts, tuples of texts, or mappings by column.

    Raises:
        DataError: a row is none of these, or has another number of texts.
    """

    def objects() -> Iterator[tuple[int, dict[str, Any]]]:
        for place, row in enumerate(rows):
            if isinstance(row, dict):
                yield place, row
                continue
            texts = (row,) if isinstance(row, str) else tuple(row)
            if len(texts) != len(columns):
                raise DataError(
                    f"{option}, row {place}: found {len(texts)} texts; expected "
                    f"{' and '.join(columns)}"
                )
            yield place, dict(zip(columns, texts, strict=True))

    first = 0
    for part in _windows(objects(), lambda: True, _size_of_object):
        table = table_of_objects(option, option, part, unit="row", tell=False)
        yield replace(table, first=first)
        first += len(part)


class _Lines:
    """The lines of a file or pipe, as text with their ends, read as they come."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self._name = descriptor, name
        self._ready: deque[bytes] = deque()
        self._begun: list[bytes] = []  # of a line whose end has not come
        self._ended = False
        self._number = 0

    def __iter__(self) -> Iterator[str]:
        while self._ready or not self._ended:
            if self._ready:
                yield self._decoded(self._ready.popleft())
            else:
                self._read()

    def waiting(self) -> bool:
        """Return whether a line is there, or its end comes soon."""
        while not self._ready and not self._ended:
            if not select.select([self._descriptor], [], [], _PATIENCE)[0]:
                return False
            self._read()
        return True

    def _read(self) -> None:
        try:
            found = os.read(self._descriptor, _BYTES)
        except OSError as error:
            raise DataError(f"{self._name}: cannot be read: {error.strerror}") from error
        self._ended = not found
        *whole, rest = found.split(b"\n")
        if whole:
            whole[0] = b"".join((*self._begun, whole[0]))
            self._begun = []
        self._ready.extend(line + b"\n" for line in whole)
        if rest:
            self._begun.append(rest)
        if self._ended and self._begun:
            self._ready.append(b"".join(self._begun))
            self._begun = []

    def _decoded(self, line: bytes) -> str:
        self._number += 1
        if self._number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        try:
            text = line.decode()
            bad = line.find(b"\0")  # valid UTF-8, but most often a sign of UTF-16
        except UnicodeDecodeError as error:
            bad = error.start
        if bad >= 0:
            raise DataError(
                f"{self._name}, line {self._number}: found the byte 0x{line[bad]:02x}; expected "
                "text in UTF-8"
            )
        return text


def _of_lines(
    name: str,
    option: str,
    form: str,
    lines: Iterator[str],
    waiting: Callable[[], bool],
    text_columns: Sequence[str],
) -> Iterator[Table]:
    """Yield windows of rows that are written on lines."""
    if form == JSON_LINES:
        for rows in _windows(json_lines(name, lines), waiting, _size_of_object):
            yield table_of_objects(name, option, rows, unit="line", tell=False)
        return
    if form == CONLL:
        for found in _windows(sentences(name, lines), waiting, _size_of_sentence):
            yield table_of_sentences(name, option, found)
        return
    if form == TEXT:
        records = _texts(name, lines, text_columns)
        for texts in _windows(records, waiting, _size_of_fields):
            table = table_of_fields(name, option, list(text_columns), texts)
            yield replace(table, spelled=False)
        return
    if form == "csv":
        fields = csv_records(name, chain.from_iterable(io.StringIO(x, newline="") for x in lines))
    else:
        fields = tsv_records(lines)
    number, header = next(fields, (1, []))
    check_names(header, f"{name}, line {number}")
    separator = "commas" if form == "csv" else "tabs"
    whole = checked_fields(name, header, fields, separator)
    for part in _windows(whole, waiting, _size_of_fields):
        yield table_of_fields(name, option, header, part)


def _texts(
    name: str, lines: Iterable[str], columns: Sequence[str]
) -> Iterator[tuple[int, list[str]]]:
    """Yield the texts of each line, behind its number."""
    for number, line in enumerate(lines, start=1):
        text = line.removesuffix("\n").removesuffix("\r")
        fields = [text] if len(columns) == 1 else text.split("\t")
        if len(fields) != len(columns):
            raise DataError(
                f"{name}, line {number}: found {len(fields)} text{'s' * (len(fields) > 1)}; "
                f"expected {len(columns)}, {' and '.join(columns)}, with a tab between, or JSON "
                "Lines with these keys"
            )
        yield number, fields


def _windows(
    records: Iterator[_Record], waiting: Callable[[], bool], size: Callable[[_Record], int]
) -> Iterator[list[_Record]]:
    """Gather records to windows; those before a malformed one make a window of their own."""
    window: list[_Record] = []
    characters = 0
    malformed: DataError | None = None
    try:
        for record in records:
            window.append(record)
            characters += size(record)
            if len(window) >= ROWS or characters >= CHARACTERS or not waiting():
                yield window
                window, characters = [], 0
    except DataError as error:
        malformed = error
    if window:
        yield window
    if malformed is not None:
        raise malformed


def _size_of_fields(record: tuple[int, list[str]]) -> int:
    return sum(map(len, record[1]))


def _size_of_sentence(sentence: Sentence) -> int:
    return sum(sum(map(len, cells)) for cells in sentence[1])


def _size_of_object(record: tuple[int, dict[str, Any]]) -> int:
    return sum(len(value) for value in record[1].values() if isinstance(value, str | list))


def _form_of(source: str) -> str | None:
    form = _BY_SUFFIX.get(Path(source).suffix.lower())
    if form is None and os.path.isfile(source):
        raise DataError(
            f"{source}: its ending tells no form; name it {', '.join(_BY_SUFFIX)}, or give "
            f"--input-format {'|'.join(FORMS)}"
        )
    return form


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a directory; give one file"
    return f"cannot be read: {error.strerror}"


def _found(lines: _Lines) -> tuple[str, list[str]]:
    """Return the form of standard input, and the lines that were read to find it."""
    read = []
    for line in lines:
        read.append(line)
        if line.strip():
            break
    else:
        return TEXT, read
    try:
        next(json_lines("", [line]))
    except DataError:
        return TEXT, read
    return JSON_LINES, read


def _parts(table: Table) -> Iterator[Table]:
    """Divide a table into windows."""
    for start in range(0, table.rows, ROWS):
        yield table.part(slice(start, start + ROWS))
