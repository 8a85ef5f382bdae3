"""Finds what a user's training file is for by the names of its columns, before it is read whole."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

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
_FIRST = 2**20  # bytes in which the first row of a file ends


def kind_of(path: str) -> str | None:
    """Return the kind of task whose columns a file has; None: it is not known.

    A file of labelled texts, or one that cannot be read here, as a data set on the hub, is of no
    known kind: whoever reads it whole decides.
    """
    names = set(column_names(path))
    if not are_labelled_texts(names):
        for name, entry in OBJECTIVES.items():
            if any(names.issuperset(columns) for columns in entry.columns):
                return name
    return None


def are_labelled_texts(names: Collection[str]) -> bool:
    """Return whether columns of these names hold both texts and labels."""
    labelled = not set(names).isdisjoint(LABELS)
    return labelled and any(set(texts).issubset(names) for texts in TEXT_COLUMNS)


def column_names(path: str) -> Collection[str]:
    """Return the names of a local file's columns, from its first row, or of a saved data set's; ()
    if they are not found."""
    for info in (Path(path, "train", _SAVED), Path(path, _SAVED)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return tuple(json.loads(info.read_bytes())["features"])
    suffix = os.path.splitext(path)[1].lower()
    if not Path(path).is_file():  # reading a pipe would wait for a writer
        return ()
    try:
        if suffix == ".parquet":
            from pyarrow.parquet import read_schema  # slow, and only for such files

            return tuple(read_schema(path).names)
        with Path(path).open(encoding="utf-8-sig") as file:
            text = file.read(_FIRST).lstrip()
        if suffix == ".csv":
            return tuple(next(csv.reader(text.splitlines()), ()))
    # pyarrow's errors are ValueErrors or OSErrors
    except (OSError, ValueError, ImportError, csv.Error):
        return ()
    if suffix == ".tsv":
        return tuple(text.split("\n", 1)[0].rstrip("\r").split("\t"))
    try:
        row, _ = json.JSONDecoder().raw_decode(text.removeprefix("[").lstrip())
    except ValueError:
        return ()
    return tuple(row) if isinstance(row, dict) else ()
