"""A task of the user's own: which columns it reads and what it predicts, told by its tables."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection
from typing import Any

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.table_reader import Table, shown
from bayeslora_cli.tasks.task import Examples, Task

TEXT_GUESSES: tuple[tuple[str, ...], ...] = (
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
LABEL_GUESSES = ("label", "labels", "class", "target", "score")
_FEW = 20  # rows below which a class of its own in every other row may be chance


def custom_task(
    table: Table, *, text_columns: tuple[str, ...] | None, label_column: str | None
) -> Task:
    """The task that a training table poses.

    Text, integers and true or false are classes: text in the order of its code points, integers in
    theirs, and those of a hub's `ClassLabel` in the order of its names. Numbers of which one or
    more is not an integer are scores, for regression. In csv and tsv, a column is of numbers when
    each of its fields is one.

    Args:
        table: the training table.
        text_columns: one or two columns; None guesses them by `TEXT_GUESSES`.
        label_column: the label's column; None guesses it by `LABEL_GUESSES`.

    Raises:
        DataError: a column is missing, or the labels are not such.
    """
    label = label_column or _guess_label(table, text_columns or ())
    texts = text_columns or _guess_texts(table, label)
    if len(texts) > 2 or len({*texts, label}) <= len(texts):
        raise DataError(
            f"{table.title}: asked for the text columns {shown(texts)} and the label column "
            f"{label!r}; give one or two text columns (--text-columns a,b) and another for the "
            "label (--label-column x)"
        )
    for name in texts:
        _check_column(table, name, "--text-columns")
    _check_column(table, label, "--label-column")
    classes = _classes(table, label)
    return Task(
        name="custom",
        text_columns=texts,
        label_column=label,
        classes=classes,
        metrics=("accuracy", "macro_f1") if classes else ("pearson", "spearman"),
        selecting="accuracy" if classes else "pearson_spearman",
    )


def table_examples(table: Table, task: Task, *, labelled: bool | None) -> Examples:
    """The rows of a table as examples of a task.

    An integer class is found by its decimal spelling, so that the tables of a task may be of
    different kinds.

    Args:
        table: the training table of `custom_task`, or another one with its columns.
        task: what `custom_task` returned.
        labelled: whether the table must have labels (True) or must be read without (False). None:
            it is read with them if it has the label's column and a label in any row of it.

    Raises:
        DataError: a column is missing, a text is none, or a label is missing or unknown.
    """
    for name in task.text_columns:
        _check_column(table, name, "which the task's text is in")
    texts = [_texts(table, name) for name in task.text_columns]
    if labelled:
        _check_column(table, task.label_column, "which the task's label is in")
    labels: list[Any] | None = None
    if labelled is not False and task.label_column in table.names:
        values = _label_values(table, task.label_column)
        if labelled or any(value is not None for value in values):
            labels = _labels(table, task, values)
    return Examples(first=texts[0], second=texts[1] if len(texts) == 2 else None, labels=labels)


# --- columns -----------------------------------------------------------------------------------


def _guess_texts(table: Table, label: str) -> tuple[str, ...]:
    for guess in TEXT_GUESSES:
        if set(guess) <= set(table.names) - {label}:
            return guess
    raise DataError(
        f"{table.title}: found the columns {shown(table.names)}, none of them known to hold "
        "text; name one or two by --text-columns a,b"
    )


def _guess_label(table: Table, texts: Collection[str]) -> str:
    for guess in LABEL_GUESSES:
        if guess in table.names and guess not in texts:
            return guess
    raise DataError(
        f"{table.title}: found the columns {shown(table.names)}, none of them known to hold "
        "labels; name it by --label-column x"
    )


def _check_column(table: Table, name: str, what: str) -> None:
    if name not in table.names:
        near = difflib.get_close_matches(name, table.names, n=1)
        raise DataError(
            f"{table.title}: has no column {name!r} ({what})"
            f"{f', but {near[0]!r}' if near else ''}; found {shown(table.names)}"
        )


def _texts(table: Table, name: str) -> list[str]:
    texts = table.read_column(name)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"{table.where(row)}: found {_short(text)} in the column {name!r}; expected text"
            )
    return texts


def _short(value: object) -> str:
    return repr(value)[:80]


# --- labels ------------------------------------------------------------------------------------


def _label_values(table: Table, name: str) -> list[Any]:
    """Each row's label, with a hub's class by its name; None where there is none."""
    values = table.read_column(name)
    names = table.class_names.get(name)
    if names is not None:  # -1 stands for no label
        return [names[value] if value in range(len(names)) else None for value in values]
    return [None if value in (None, "") or value != value else value for value in values]


def _missing(table: Table, name: str, row: int) -> DataError:
    return DataError(f"{table.where(row)}: found no label in the column {name!r}; expected one")


def _classes(table: Table, name: str) -> tuple[str, ...]:
    """The classes' names of a training table, () for regression."""
    values = _label_values(table, name)
    if table.spelled:
        numbers = [None if value is None else _number(value) for value in values]
        if numbers.count(None) == values.count(None):
            values = [None if number != number else number for number in numbers]
    first: dict[str, int] = {}  # kind of label: the row where it occurs first
    for row, value in enumerate(values):
        if value is None:
            raise _missing(table, name, row)
        kind = _kind(value)
        if kind is None:
            raise DataError(
                f"{table.where(row)}: found the label {_short(value)}; "
                "expected text, a finite number, or true or false"
            )
        first.setdefault(kind, row)
    if len(first) > 1:
        (kind, row), (other, later) = list(first.items())[:2]
        raise DataError(
            f"{table.where(later)}: found the label {_short(values[later])} ({other}), and "
            f"{_short(values[row])} ({kind}) at {table.where(row)}; expected labels of one kind"
        )
    found = set(values)
    if len(found) == 1:
        raise DataError(
            f"{table.title}: found only the label {_short(values[0])} in the column {name!r}, so "
            "there is nothing to learn; give rows of two or more classes"
        )
    if name in table.class_names:
        return table.class_names[name]
    if any(isinstance(value, float) for value in found):
        return ()
    if table.rows >= _FEW and len(found) > table.rows / 2:
        raise DataError(
            f"{table.title}: found {len(found)} different labels in {table.rows} rows of the "
            f"column {name!r}, which does not look like a label; name another by --label-column, "
            "or write scores for regression with a decimal point"
        )
    return tuple(_spelling(value) for value in sorted(found))


def _kind(value: object) -> str | None:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "true or false"
    if _score(value) is not None:
        return "a number"
    return None


def _labels(table: Table, task: Task, values: list[Any]) -> list[Any]:
    """Class indices, or scores."""
    index_of = {name: index for index, name in enumerate(task.classes)}
    # "01" and " 1" are the class 1, but only where classes are numbers
    spelled_numbers = table.spelled and all(_number(name) is not None for name in task.classes)
    labels = []
    for row, value in enumerate(values):
        if value is None:
            raise _missing(table, task.label_column, row)
        label: int | float | None
        if task.regression:
            label = _score(_number(value) if table.spelled else value)
            expected = "a finite number"
        else:
            label = index_of.get(_spelling(value))
            if label is None and spelled_numbers:
                label = index_of.get(str(_number(value)))
            expected = f"one of {shown(task.classes)}"
        if label is None:
            raise DataError(
                f"{table.where(row)}: found the label {_short(value)} in the column "
                f"{task.label_column!r}; expected {expected}"
            )
        labels.append(label)
    return labels


def _spelling(value: object) -> str:
    """A class's name by its label."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(text: str) -> int | float | None:
    """The number that a field of a csv file spells, NaN included."""
    if "_" in text or not text.isascii():  # what Python takes for a digit, and nobody else
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _score(value: object) -> float | None:
    """A finite number; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        score = float(value)
    except OverflowError:  # an integer beyond any float
        return None
    return score if math.isfinite(score) else None
