"""Reads tables from JSON Lines, and from a JSON array of objects."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import repeat
from typing import Any

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.tables.table import Table, check_names
from bayeslora_cli.tasks.sources.tables.text_files import read_text

logger = logging.getLogger("bayeslora")
_TOLD = 5  # keys that not all rows have


def read_json(source: str, option: str) -> Table:
    """Read an object per line, or a whole file that is one array of objects.

    A key that a row lacks is null there, which one line of the log says: keys may be optional, such
    as alpaca's `input`, and where a value is needed its reader refuses null.

    Raises:
        DataError: the file is not such JSON; the message names the line or the row.
    """
    text = read_text(source)
    array = text.lstrip().startswith("[")
    if array:
        return table_of_objects(source, option, _array(source, text), unit="row")
    rows = json_lines(source, text.split("\n"), partial(_is_one_object, text))
    return table_of_objects(source, option, rows, unit="line")


def table_of_objects(
    source: str,
    option: str,
    objects: Iterable[tuple[int, dict[str, Any]]],
    *,
    unit: str,
    tell: bool = True,
) -> Table:
    """Make a table of objects, each behind its place.

    Args:
        unit: what places count, line or row.
        tell: whether one line of the log says which keys rows lack.
    """
    columns: dict[str, list[Any]] = {}
    lacking: dict[str, tuple[int, int]] = {}  # number of rows, and the first of them
    places: list[int] = []

    def pad(name: str, rows: int) -> None:
        column = columns[name]
        if len(column) < rows:
            count, first = lacking.get(name, (0, len(column)))
            lacking[name] = count + rows - len(column), first
            column.extend(repeat(None, rows - len(column)))

    for place, row in objects:
        if not places:
            check_names(list(row), f"{source}, {unit} {place}")
        for name, value in row.items():
            columns.setdefault(name, [])
            pad(name, len(places))
            columns[name].append(value)
        places.append(place)
    for name in columns:
        pad(name, len(places))
    if lacking and tell:
        told = [
            f"{name[:40]!r} in {count:,} of {len(places):,} rows ({unit} {places[first]}, for one)"
            for name in columns
            if name in lacking
            for count, first in (lacking[name],)
        ]
        more = f", and {len(told) - _TOLD} other keys" if len(told) > _TOLD else ""
        logger.info(
            "%s %s: found no key %s: it is null there", option, source,
            ", ".join(told[:_TOLD]) + more,
        )  # fmt: skip
    return Table(
        option=option,
        source=source,
        names=tuple(columns),
        rows=len(places),
        read_column=columns.__getitem__,
        lines=places if unit == "line" else None,
    )


def json_lines(
    source: str, lines: Iterable[str], is_one_object: Callable[[], bool] = lambda: False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the object of each line that is not blank, behind the line's number.

    Args:
        is_one_object: tells, when a line is not JSON, whether all lines together are one object.
    Raises:
        DataError: a line holds no object.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
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
            if is_one_object():
                reason = "but for the whole file, which is one object"
            raise DataError(
                f"{where}: not JSON ({reason}); expected one object per line"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: found {line.strip()[:80]!r}; expected a JSON object")
        yield number, row


def _is_one_object(text: str) -> bool:
    """Return whether a file is one JSON object over several lines, such as {"data": [...]}."""
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _array(source: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of an array, as pandas and many exports write it, behind their places."""
    try:
        rows = json.loads(text)
        if "\\u" in text:
            json.dumps(rows, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{source}: found half of a surrogate pair; expected pairs") from error
    except (ValueError, RecursionError) as error:
        line, reason = getattr(error, "lineno", 1), getattr(error, "msg", error)
        raise DataError(
            f"{source}, line {line}: not JSON ({reason}); expected one array of objects, or one "
            "object per line"
        ) from error
    if not rows:
        raise DataError(f"{source}: found no rows; expected at least one")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{source}, row {number}: found {str(row)[:80]!r}; expected an object")
        yield number, row
