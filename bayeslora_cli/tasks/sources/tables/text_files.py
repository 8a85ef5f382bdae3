"""Reads tables from csv and tsv files, and the text of others."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.tables.table import Table, check_names, shown

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # spreadsheets write it in front of UTF-8
_LONGEST_FIELD = 2**31 - 1  # the largest limit that `csv` takes on every platform


def read_text(path: str) -> str:
    """Read a file in UTF-8.

    Raises:
        DataError: it cannot be read, is empty, or is no text in UTF-8.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    raw = raw.removeprefix(_BYTE_ORDER_MARK)
    try:
        text = raw.decode("utf-8")
        bad = raw.find(b"\0")  # valid UTF-8, but most often a sign of UTF-16
    except UnicodeDecodeError as error:
        bad = error.start
    if bad >= 0:
        number = raw.count(b"\n", 0, bad) + 1
        raise DataError(
            f"{path}, line {number}: found the byte 0x{raw[bad]:02x}; expected text in UTF-8"
        )
    if not text.strip():
        raise DataError(f"{path}: the file is empty; expected rows")
    return text


def read_csv(source: str, option: str) -> Table:
    """Read a csv file, whose first line names the columns.

    Raises:
        DataError: a row is malformed; the message names its line.
    """
    return _delimited(source, option, _csv_records(source), "commas")


def read_tsv(source: str, option: str) -> Table:
    """Read a tsv file, whose first line names the columns.

    Raises:
        DataError: a row is malformed; the message names its line.
    """
    return _delimited(source, option, _tsv_records(source), "tabs")


def _csv_records(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield for each record the line where it starts, and its fields."""
    csv.field_size_limit(_LONGEST_FIELD)  # 128 KiB by default, which a document can exceed
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{path}, line {line}: the row that starts here is malformed ({error}); quote a "
                'field that holds a comma, a line break or a ", and double each " inside it'
            ) from error
        if fields is None:
            return
        if fields:
            yield line, fields


def _tsv_records(path: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        fields = line.removesuffix("\r")
        if fields:
            yield number, fields.split("\t")


def _delimited(
    source: str, option: str, records: Iterator[tuple[int, list[str]]], separator: str
) -> Table:
    number, header = next(records)
    check_names(header, f"{source}, line {number}")
    columns: list[list[str]] = [[] for _ in header]
    lines = []
    for number, fields in records:
        if len(fields) != len(header):
            raise DataError(
                f"{source}, line {number}: found {len(fields)} fields; expected {len(header)}, "
                f"separated by {separator}: {shown(header)}"
            )
        lines.append(number)
        for column, value in zip(columns, fields, strict=True):
            column.append(value)
    if not lines:
        raise DataError(f"{source}: found no rows below the header; expected at least one")
    return Table(
        option=option,
        source=source,
        names=tuple(header),
        rows=len(lines),
        read_column=dict(zip(header, columns, strict=True)).__getitem__,
        lines=lines,
        spelled=True,
    )
