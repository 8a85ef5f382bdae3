"""Makes a task from a user's tables: which columns it reads and what it predicts."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from bayeslora_cli.config.catalogue import OBJECTIVES, implementation
from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.label_column import LabelColumn, short
from bayeslora_cli.tasks.sources.table_reader import Table, shown
from bayeslora_cli.tasks.task import Examples, Task

if TYPE_CHECKING:
    from bayeslora_cli.tasks.objectives.objective import Objective

logger = logging.getLogger("bayeslora")

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
LABEL_GUESSES = (
    "label", "labels", "class", "target", "score", "sentiment", "category", "verdict", "topic",
    "intent", "emotion", "polarity", "rating", "stars", "gold_label",
)  # fmt: skip
# columns of tables for what this program does not do -> what that is
_OTHER_TABLES = {
    ("messages", "conversations", "prompt", "completion", "instruction", "chosen"): (
        "conversations or instructions, for the training of text generation"
    ),
    ("tokens", "ner_tags", "pos_tags", "tags"): "a label for each word, as of named entities",
    ("anchor", "positive", "negative", "query", "passage"): (
        "pairs or triplets for embeddings, with no label"
    ),
}


def custom_task(
    table: Table,
    *,
    text_columns: tuple[str, ...] | None,
    label_column: str | None,
    task_type: str | None = None,
) -> Task:
    """Make a task from a training table.

    Each kind of task decides which labels it claims (`Objective.claims`). Of the built-in kinds,
    classification claims text, integers, and true or false: text is ordered by code points,
    integers by size, and classes of a hub's `ClassLabel` keep the order of their names. Regression
    claims numbers if one or more is not an integer. A column of a csv or tsv file holds numbers if
    each of its fields is a number.

    Args:
        table: the training table.
        text_columns: one or two columns; None guesses them by `TEXT_GUESSES`.
        label_column: the label's column; None guesses it by `LABEL_GUESSES`.
        task_type: a key of `OBJECTIVES`; None: the kind that claims the labels, with a warning if
            they might also belong to another kind.

    Raises:
        DataError: a column is missing, or no kind of task has such labels.
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
    column = LabelColumn.of(table, label)
    name, kind = _kind(column, task_type)
    doubt = kind.doubt(column) if task_type is None else None
    if doubt is not None:
        logger.warning("%s: %s", column.title, doubt)
    return Task(
        name="custom",
        text_columns=texts,
        label_column=label,
        classes=kind.classes_of(column),
        metrics=kind.table_metrics,
        selecting=kind.table_selecting,
        objective=name,
    )


def table_examples(table: Table, task: Task, *, labelled: bool | None) -> Examples:
    """Read the rows of a table as examples of a task.

    Args:
        table: the training table of `custom_task`, or another one with its columns.
        task: what `custom_task` returned.
        labelled: True: the table must have labels. False: labels are not read. None: they are read
            if the table has the label's column with a label in any row.

    Raises:
        DataError: a column is missing, a value is not text, or a label is missing or unknown.
    """
    from bayeslora_cli.tasks.objectives.objective import objective_of  # imports torch

    for name in task.text_columns:
        _check_column(table, name, "which the task's text is in")
    texts = [_texts(table, name) for name in task.text_columns]
    if labelled:
        _check_column(table, task.label_column, "which the task's label is in")
    labels: list[Any] | None = None
    if labelled is not False and task.label_column in table.names:
        column = LabelColumn.of(table, task.label_column)
        if labelled or any(value is not None for value in column.values):
            for row, value in enumerate(column.values):
                if value is None:
                    raise column.missing(row)
            labels = objective_of(task).parse(column)
    return Examples(first=texts[0], second=texts[1] if len(texts) == 2 else None, labels=labels)


# --- columns -----------------------------------------------------------------------------------


def _guess_texts(table: Table, label: str) -> tuple[str, ...]:
    for guess in TEXT_GUESSES:
        if set(guess) <= set(table.names) - {label}:
            return guess
    raise DataError(
        f"{table.title}: found the columns {shown(table.names)}, none of them known to hold "
        f"text; name one or two by --text-columns a,b{_other_table(table)}"
    )


def _guess_label(table: Table, texts: Collection[str]) -> str:
    for guess in LABEL_GUESSES:
        if guess in table.names and guess not in texts:
            return guess
    raise DataError(
        f"{table.title}: found the columns {shown(table.names)}, none of them known to hold "
        f"labels; name it by --label-column x{_other_table(table)}"
    )


def _other_table(table: Table) -> str:
    """What a table seems to be for, where that is something else, as the end of a message."""
    for names, what in _OTHER_TABLES.items():
        if not set(names).isdisjoint(table.names):
            return (
                f". This looks like {what}; what is trained here predicts one class or one score "
                "per row, from one or two texts"
            )
    return ""


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
                f"{table.where(row)}: found {short(text)} in the column {name!r}; expected text"
            )
        if table.spelled and not text:
            raise DataError(
                f"{table.where(row)}: found an empty field in the column {name!r}; expected text "
                '(a text that is meant to be empty is "" in JSON Lines)'
            )
    return texts


# --- labels ------------------------------------------------------------------------------------


def _kind(column: LabelColumn, typed: str | None) -> tuple[str, type[Objective]]:
    """Return name and class of the kind of task that claims a training table's labels."""
    values = column.numbers()
    for row, value in enumerate(values):
        if value is None:
            raise column.missing(row)
    if typed is not None and (None in column.kinds() or len(column.kinds()) > 1):
        raise _unclaimed(column)
    for name in reversed(OBJECTIVES) if typed is None else (typed,):
        kind: type[Objective] = implementation(OBJECTIVES[name].implementation)
        if typed is not None or kind.claims(column):
            break
    else:
        raise _unclaimed(column)
    if all(value == values[0] for value in values):
        raise DataError(
            f"{column.title}: found only the label {short(values[0])} in the column "
            f"{column.name!r}, so there is nothing to learn; give rows of two or more classes"
        )
    return name, kind


def _unclaimed(column: LabelColumn) -> DataError:
    """Make the error that tells why no kind of task claims the labels."""
    where, values, kinds = column.table.where, column.numbers(), column.kinds()
    if None in kinds:
        row = kinds[None]
        return DataError(
            f"{where(row)}: found the label {short(values[row])}; "
            "expected text, a finite number, or true or false"
        )
    (kind, row), (other, later), *_ = [*kinds.items()]
    return DataError(
        f"{where(later)}: found the label {short(values[later])} ({other}), and "
        f"{short(values[row])} ({kind}) at {where(row)}; expected labels of one kind"
    )
