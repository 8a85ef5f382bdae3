"""Reads a table: a file in csv, tsv, JSON Lines or parquet, or a split of a data set on the hub.

`tabular` decides what the columns mean.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bayeslora_cli.errors import DataError, MissingSplitError, UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
HUB_FORM = "owner/name[:config][@split]"
_HUB_NAME = re.compile(
    r"(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<config>[^:@/\\]+))?(@(?P<split>[^:@/\\]+))?",
    re.ASCII,
)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # spreadsheets write it in front of UTF-8
_LONGEST_FIELD = 2**31 - 1  # the largest limit that `csv` takes on every platform


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows with named columns. Values are those of the source; in csv and tsv all are text."""

    option: str
    """The option that named the source."""
    source: str
    """The file, or the hub's name and split, for messages."""
    names: tuple[str, ...]
    """Names of the columns, each once; pandas gives its index an empty name."""
    rows: int
    """Number of rows, at least one."""
    read_column: Callable[[str], list[Any]]
    """Reads a column's values by its name. Only used columns are read: others may be images."""
    lines: Sequence[int] | None = None
    """The line on which each row starts, from 1; None: the source has no lines."""
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Class names of the columns that hold class indices, as the hub lists them."""
    spelled: bool = False
    """Whether numbers are spelled out as text, as in csv and tsv."""

    @property
    def title(self) -> str:
        """The table as the user typed it, for messages about the whole table."""
        return f"{self.option} {self.source}"

    def where(self, row: int) -> str:
        """Return the place of a row, which counts from 0, for messages."""
        if self.lines is None:
            return f"{self.source}, row {row}"
        return f"{self.source}, line {self.lines[row]}"


def read_table(source: str, option: str, *, split: str) -> Table:
    r"""Read the table that a user named.

    A csv file has a header line and may quote fields. In a tsv file, as in GLUE's, a quotation mark
    is an ordinary character, and a line ends only at "\n". Both are in UTF-8, and so is JSON Lines,
    which has one object per line, all with the same keys. Blank lines are skipped.

    Args:
        source: an existing file with one of `SUFFIXES`, or a data set on the hub (or in its local
            cache), written as `HUB_FORM`.
        option: the option that names the source, such as `--train-file`.
        split: the hub's split, unless `source` names one.

    Raises:
        DataError: the file cannot be read as its suffix says, or the split does not exist.
        UserError: the hub's data set cannot be loaded.
    """
    suffix = os.path.splitext(source)[1].lower()
    if os.path.isdir(source):
        raise DataError(f"{option} {source}: is a directory; give one file ({', '.join(SUFFIXES)})")
    if not os.path.exists(source):
        hub = _HUB_NAME.fullmatch(source)
        if hub is None or suffix in SUFFIXES:
            raise DataError(f"{option} {source}: no such file")
        return _read_hub(source, option, hub["name"], hub["config"], hub["split"] or split)
    if not os.path.isfile(source):  # reading a pipe would wait for a writer
        raise DataError(
            f"{option} {source}: is not a regular file; give one ({', '.join(SUFFIXES)})"
        )
    if suffix not in SUFFIXES:
        raise DataError(
            f"{option} {source}: found a file with the suffix {suffix!r}; "
            f"expected one of {', '.join(SUFFIXES)}"
        )
    if suffix == ".parquet":
        return _read_parquet(source, option)
    if suffix == ".csv":
        return _delimited(source, option, _csv_records(source), "commas")
    if suffix == ".tsv":
        return _delimited(source, option, _tsv_records(source), "tabs")
    return _read_json_lines(source, option)


# --- text files --------------------------------------------------------------------------------


def _read_text(path: str) -> str:
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


def _csv_records(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield for each record the line where it starts, and its fields."""
    csv.field_size_limit(_LONGEST_FIELD)  # 128 KiB by default, which a document can exceed
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
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
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        fields = line.removesuffix("\r")
        if fields:
            yield number, fields.split("\t")


def _delimited(
    source: str, option: str, records: Iterator[tuple[int, list[str]]], separator: str
) -> Table:
    number, header = next(records)
    _check_names(header, f"{source}, line {number}")
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


def _read_json_lines(source: str, option: str) -> Table:
    text = _read_text(source)
    if text.lstrip().startswith("["):
        return _read_json_array(source, option, text)
    columns: dict[str, list[Any]] = {}
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _json_object(line, f"{source}, line {number}")
        if not lines:
            _check_names(list(row), f"{source}, line {number}")
            columns = {name: [] for name in row}
        for name in columns.keys() ^ row.keys():
            has, lacks = (number, lines[0]) if name in row else (lines[0], number)
            raise DataError(
                f"{source}, line {lacks}: found no key {name!r}, which line {has} has; expected "
                "the same keys in every line (null for no value)"
            )
        lines.append(number)
        for name, value in row.items():
            columns[name].append(value)
    return Table(
        option=option,
        source=source,
        names=tuple(columns),
        rows=len(lines),
        read_column=columns.__getitem__,
        lines=lines,
    )


def _read_json_array(source: str, option: str, text: str) -> Table:
    """A whole file that is one array of objects, as pandas and many exports write it."""
    try:
        rows = json.loads(text)
        if "\\u" in text:
            json.dumps(rows, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{source}: found half of a surrogate pair; expected pairs") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{source}, line 1: not JSON ({error}); expected one "
            "array of objects, or one object per line"
        ) from error
    if not rows:
        raise DataError(f"{source}: found no rows; expected at least one")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{source}, row {number}: found {str(row)[:80]!r}; expected an object")
        for name in row.keys() ^ rows[0].keys():
            has = "has" if name in row else "lacks"
            raise DataError(
                f"{source}, row {number}: {has} the key {name!r}, unlike row 0; expected the same "
                "keys in every row (null for no value)"
            )
    _check_names(list(rows[0]), f"{source}, row 0")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return Table(
        option=option,
        source=source,
        names=tuple(columns),
        rows=len(rows),
        read_column=columns.__getitem__,
    )


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        # an escape can be half of a surrogate pair, which cannot be written to a file
        if "\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: found half of a surrogate pair; expected \\ud83d and the like in pairs"
        ) from error
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)  # without a line number of its own
        raise DataError(f"{where}: not JSON ({reason}); expected one object per line") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {line.strip()[:80]!r}; expected a JSON object")
    return row


def _check_names(names: Sequence[str], where: str) -> None:
    if not names:
        raise DataError(f"{where}: found no columns; expected a name for each")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{where}: found the column {twice[0]!r} twice; expected different names")


def shown(names: Sequence[str]) -> str:
    """List names for a message, shortened."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(repr(name[:40]) for name in names[:20]) or "none") + more


# --- Arrow -------------------------------------------------------------------------------------


def _read_parquet(source: str, option: str) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        # not `read_table`, which adds columns if a folder is named like a partition
        with pyarrow.parquet.ParquetFile(source) as file:
            table = file.read()
        table.validate(full=True)  # text that is not UTF-8
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{option} {source}: cannot be read as parquet ({_first_line(error)}); write it again"
        ) from error
    return _from_arrow(table, option, source, {})


def _from_arrow(
    table: Any, option: str, source: str, class_names: dict[str, tuple[str, ...]]
) -> Table:
    _check_names(table.column_names, source)
    if not table.num_rows:
        raise DataError(f"{option} {source}: found no rows; expected at least one")
    return Table(
        option=option,
        source=source,
        names=tuple(table.column_names),
        rows=table.num_rows,
        read_column=lambda name: list(table.column(name).to_pylist()),
        class_names=class_names,
    )


def _read_hub(source: str, option: str, name: str, config: str | None, split: str) -> Table:
    try:
        import datasets  # slow, and not needed for files

        loaded = datasets.load_dataset(name, config)
    # Offline mode, no network, no such name, a config missing, a broken download: OSError,
    # ValueError, the HTTP client's and the library's own classes, by version; no code of ours.
    except Exception as error:
        raise UserError(
            f"{option} {source}: no such file, and no data set that can be loaded from the Hugging "
            f"Face hub or its cache: {_first_line(error)}. Give a file ({', '.join(SUFFIXES)}), or "
            f"{HUB_FORM}"
        ) from error
    if split not in loaded:
        raise MissingSplitError(
            f"{option} {source}: found the splits {', '.join(loaded)}, and no {split!r}; "
            f"name one of them: {HUB_FORM}"
        )
    data = loaded[split]
    class_names = {
        column: tuple(feature.names)
        for column, feature in data.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    title = source if "@" in source else f"{source}@{split}"
    return _from_arrow(data.with_format("arrow")[:], option, title, class_names)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
