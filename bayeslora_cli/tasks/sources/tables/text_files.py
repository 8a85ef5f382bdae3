"""Reads tables from csv and tsv files, and the text of others."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
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
    lines = io.StringIO(read_text(source), newline="")
    return _delimited(source, option, csv_records(source, lines), "commas")


def read_tsv(source: str, option: str) -> Table:
    """Read a tsv file, whose first line names the columns.

    Raises:
        DataError: a row is malformed; the message names its line.
    """
    return _delimited(source, option, tsv_records(read_text(source).split("\n")), "tabs")


def csv_records(source: str, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield for each record the line where it starts, and its fields.

    Raises:
        DataError: a record is malformed.
    """
    csv.field_size_limit(_LONGEST_FIELD)  # 128 KiB by default, which a document can exceed
    reader = csv.reader(lines, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{source}, line {line}: the row that starts here is malformed ({error}); quote a "
                'field that holds a comma, a line break or a ", and double each " inside it'
            ) from error
        if fields is None:
            return
        if fields:
            yield line, fields


def tsv_records(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield for each line that is not empty its number and its fields."""
    for number, line in enumerate(lines, start=1):
        fields = line.removesuffix("\n").removesuffix("\r")
        if fields:
            yield number, fields.split("\t")


def _delimited(
    source: str, option: str, records: Iterator[tuple[int, list[str]]], separator: str
) -> Table:
    number, header = next(records)
    check_names(header, f"{source}, line {number}")
    rows = list(checked_fields(source, header, records, separator))
    if not rows:
        raise DataError(f"{source}: found no rows below the header; expected at least one")
    return table_of_fields(source, option, header, rows)


def checked_fields(
    source: str, header: list[str], records: Iterable[tuple[int, list[str]]], separator: str
) -> Iterator[tuple[int, list[str]]]:
    """Yield records, each behind its line, that have as many fields as the header.

    Args:
        separator: what separates fields, for messages.
    Raises:
        DataError: a record has more or fewer.
    """
    for number, fields in records:
        if len(fields) != len(header):
            raise DataError(
                f"{source}, line {number}: found {len(fields)} fields; expected {len(header)}, "
                f"separated by {separator}: {shown(header)}"
            )
        yield number, fields


def table_of_fields(
    source: str, option: str, header: list[str], records: Sequence[tuple[int, list[str]]]
) -> Table:
    """Make a table of records, each behind its line, with as many fields as the header."""
    columns = map(list, zip(*(fields for _, fields in records), strict=True))
    return Table(
        option=option,
        source=source,
        names=tuple(header),
        rows=len(records),
        read_column=dict(zip(header, columns, strict=True)).__getitem__,
        lines=[number for number, _ in records],
        spelled=True,
    )
