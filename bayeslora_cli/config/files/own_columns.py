"""Finds what a user's training file is for by the names of its columns, before it is read whole."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import OBJECTIVES

LABELS = (
    "label", "labels", "class", "target", "score", "sentiment", "category", "verdict", "topic",
    "intent", "emotion", "polarity", "rating", "stars", "gold_label",
)  # fmt: skip
"""Columns that are known to hold labels; the first that a table has is read."""
TEXT_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("sentence",),
    ("text",),
    ("review",),
    ("content",),
)
"""Columns that are known to hold the texts of labelled rows; the first that a table has are
read."""
_SAVED = "dataset_info.json"  # what `save_to_disk` of the library datasets writes
_CONLL = (".conll", ".bio", ".iob", ".iob2")  # files with a word and its tag per line
_FIRST = 2**20  # bytes in which the first row of a file ends


def kind_of(path: str) -> str | None:
    """Return the kind of task whose columns a file has; None: it is not known.

    A file of labelled texts, or one that cannot be read here, as a data set on the hub, is of no
    known kind: whoever reads it whole decides.
    """
    first = first_row(path)
    names = set(first)
    if not are_labelled_texts(names) and not _have_indicators(first):
        for name, entry in OBJECTIVES.items():
            if any(names.issuperset(columns) for columns in entry.columns):
                return name
    return None


def are_labelled_texts(names: Collection[str]) -> bool:
    """Return whether columns of these names hold both texts and labels."""
    labelled = not set(names).isdisjoint(LABELS)
    return labelled and any(set(texts).issubset(names) for texts in TEXT_COLUMNS)


def is_indicator(value: object) -> bool:
    """Return whether a value says yes or no: 0 or 1, true or false, also spelled as a number."""
    known = ("0", "1", "0.0", "1.0") if isinstance(value, str) else (0, 1)
    return isinstance(value, str | int | float) and value in known


def _have_indicators(row: Mapping[str, Any]) -> bool:
    """Return whether a first row has texts, and two or more values that are 0 or 1."""
    return any(set(texts).issubset(row) for texts in TEXT_COLUMNS) and (
        sum(map(is_indicator, row.values())) > 1
    )


def column_names(path: str) -> Collection[str]:
    """Return the names of a local file's columns, or of a saved data set's; () if they are not
    found."""
    return tuple(first_row(path))


def first_row(path: str) -> Mapping[str, Any]:
    """Return the first row of a local file by column; {} if there is none.

    Values are None where they are not known: of a saved data set, or of a file with only names.
    """
    for info in (Path(path, "train", _SAVED), Path(path, _SAVED)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return dict.fromkeys(json.loads(info.read_bytes())["features"])
    suffix = os.path.splitext(path)[1].lower()
    if not Path(path).is_file():  # reading a pipe would wait for a writer
        return {}
    if suffix in _CONLL:
        return dict.fromkeys(("tokens", "tags"))
    try:
        if suffix == ".parquet":
            from pyarrow.parquet import ParquetFile  # slow, and only for such files

            with ParquetFile(path) as table:
                rows: list[dict[str, Any]] = next(
                    (b.to_pylist() for b in table.iter_batches(batch_size=1)), []
                )
                return rows[0] if rows else dict.fromkeys(table.schema_arrow.names)
        with Path(path).open(encoding="utf-8-sig") as file:
            text = file.read(_FIRST).lstrip()
        if suffix == ".csv":
            lines = csv.reader(text.splitlines())
            return _row(next(lines, ()), next(lines, ()))
    # pyarrow's errors are ValueErrors or OSErrors
    except (OSError, ValueError, ImportError, csv.Error):
        return {}
    if suffix == ".tsv":
        names, values, *_ = [*text.split("\n", 2), ""]
        return _row(names.rstrip("\r").split("\t"), values.rstrip("\r").split("\t"))
    try:
        row, _ = json.JSONDecoder().raw_decode(text.removeprefix("[").lstrip())
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _row(names: Sequence[str], values: Sequence[str]) -> dict[str, Any]:
    """Return the values of a row by column, None where the row has fewer."""
    return dict(zip_longest(names, values[: len(names)]))
