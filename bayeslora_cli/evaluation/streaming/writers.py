"""Writes rows with their predictions window by window: csv, tsv, JSON Lines or parquet."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bayeslora_cli.errors import StorageError, UserError
from bayeslora_cli.evaluation.prediction_files import flat, no_formula, tsv_field
from bayeslora_cli.runs.atomic_write import named

SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip
"""The form that a file's ending names."""
Columns = Mapping[str, Sequence[Any]]


class RowWriter(ABC):
    """Takes one window after the other; nothing of a window is written, or all of it."""

    @abstractmethod
    def write(self, columns: Columns, ours: int) -> None:
        """Write a window.

        Args:
            columns: by name, all of one length, in the order in which they are written.
            ours: number of columns, the last ones, that hold predictions.
        Raises:
            StorageError: it cannot be written.
            UserError: later windows have other columns than the form can hold.
        """

    @abstractmethod
    def close(self) -> None:
        """Write what the form needs behind the last row.

        Raises:
            StorageError: it cannot be written.
        """


class LineWriter(RowWriter):
    """Writes csv, tsv or JSON Lines: whole lines, flushed after each window."""

    def __init__(self, form: str, put: Callable[[bytes], None]) -> None:
        """`put` writes bytes, all of them."""
        self._form, self._put = form, put
        self._names: tuple[str, ...] | None = None

    def write(self, columns: Columns, ours: int) -> None:
        """Write the window's lines, behind the first a header in csv and tsv."""
        text = io.StringIO(newline="")
        rows = zip(*columns.values(), strict=True)
        if self._form == "jsonl":
            names = tuple(columns)
            for row in rows:
                text.write(_json(dict(zip(names, row, strict=True))) + "\n")
        else:
            self._delimited(text, columns, ours)
        self._put(text.getvalue().encode())

    def close(self) -> None:
        """Write nothing: each line stands for itself."""

    def _delimited(self, text: io.StringIO, columns: Columns, ours: int) -> None:
        names = tuple(columns)
        lines: list[Sequence[Any]] = []
        if self._names is None:
            self._names = names
            lines.append(names)
        elif names != self._names:
            other = sorted(set(names) ^ set(self._names)) or names
            raise UserError(
                f"not all rows have the column {other[0]!r}, and a {self._form} file has the same "
                "columns in each row; write JSON Lines, or name columns by --keep"
            )
        kept = len(names) - ours
        cells = [
            *([_cell(value) for value in column] for column in [*columns.values()][:kept]),
            *(
                [no_formula(v) if isinstance(v, str) else v for v in map(flat, column)]
                for column in [*columns.values()][kept:]
            ),
        ]
        lines += zip(*cells, strict=True)
        if self._form == "tsv":
            text.writelines("\t".join(map(tsv_field, line)) + "\n" for line in lines)
            return
        # before 3.13 the writer leaves a lone carriage return bare, where readers end a line
        plain = csv.writer(text, lineterminator="\n")
        quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        for line in lines:
            risky = any(isinstance(cell, str) and "\r" in cell for cell in line)
            (quoted if risky else plain).writerow(line)


class ParquetWriter(RowWriter):
    """Writes parquet, which is complete only when it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    def write(self, columns: Columns, ours: int) -> None:
        """Write the window as a group of rows."""
        import pyarrow
        import pyarrow.parquet

        try:
            schema = None if self._file is None else self._file.schema
            table = pyarrow.table({name: list(x) for name, x in columns.items()}, schema=schema)
            if self._file is None:
                table = _in_fp32(table, ours)
                self._file = pyarrow.parquet.ParquetWriter(self._path, table.schema)
            self._file.write_table(table)
        except OSError as error:
            raise StorageError(self._path, error) from error
        except (pyarrow.ArrowException, KeyError) as error:
            raise UserError(
                f"--output {self._path}: parquet has one type for all values of a column: "
                f"{str(error).splitlines()[0]}; write JSON Lines"
            ) from error

    def close(self) -> None:
        """Write the footer, without which no reader opens the file."""
        if self._file is not None:
            with named(self._path):
                self._file.close()


def form_of(path: Path) -> str:
    """Return the form that a file's ending names.

    Raises:
        UserError: it names none, or the file cannot be written.
    """
    form = SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise UserError(
            f"--output {path}: the ending {path.suffix!r} names no form; use one of "
            f"{', '.join(SUFFIXES)}"
        )
    if path.is_dir():
        raise UserError(f"--output {path}: is a directory; give the name of a file")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no directory {path.parent}")
    return form


def to_descriptor(descriptor: int, name: Path) -> Callable[[bytes], None]:
    """Return a function that writes all bytes to a file or pipe; to a file all of them or none.

    Raises:
        BrokenPipeError: by that function: nobody reads any more.
        StorageError: likewise: the disk is full.
    """

    def put(content: bytes) -> None:
        left = memoryview(content)
        while left:
            try:
                left = left[os.write(descriptor, left) :]
            except BrokenPipeError:
                raise
            except OSError as error:
                found = os.fstat(descriptor)
                if stat.S_ISREG(found.st_mode):  # take back the beginning of a row
                    os.ftruncate(descriptor, found.st_size - (len(content) - len(left)))
                raise StorageError(name, error) from error

    return put


def _in_fp32(table: Any, ours: int) -> Any:
    """Cast predicted lists of numbers to fp32, in which they were computed."""
    import pyarrow

    double, single = (pyarrow.list_(kind()) for kind in (pyarrow.float64, pyarrow.float32))
    kinds = table.schema
    for place in range(len(kinds) - ours, len(kinds)):
        if kinds.field(place).type == double:
            kinds = kinds.set(place, kinds.field(place).with_type(single))
    return table.cast(kinds)


def _cell(value: Any) -> Any:
    """Return a value as a field of csv or tsv: lists and objects as JSON, None as nothing."""
    return _json(value) if isinstance(value, list | dict | bool) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
