"""Makes a task from a user's tables: which columns it reads and what it predicts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bayeslora_cli.config.catalogue import COMPLETIONS, OBJECTIVES, implementation
from bayeslora_cli.config.files.own_columns import LABELS, TEXT_COLUMNS, are_labelled_texts
from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.label_column import LabelColumn, listed_columns, short
from bayeslora_cli.tasks.sources.label_lists import indicator_columns
from bayeslora_cli.tasks.sources.rows.reader import RowReader, check_column, read_texts
from bayeslora_cli.tasks.sources.tables.table import Table, shown
from bayeslora_cli.tasks.task import Examples, Task

if TYPE_CHECKING:
    from bayeslora_cli.tasks.objectives.objective import Objective

logger = logging.getLogger("bayeslora")

# columns of tables for what this program does not do -> what that is
_OTHER_TABLES = {
    ("chosen", "rejected"): "pairs of answers, for training by preferences",
}


def custom_task(
    table: Table,
    *,
    text_columns: tuple[str, ...] | None,
    label_column: str | None,
    task_type: str | None = None,
    loss_on: str = COMPLETIONS,
) -> Task:
    """Make a task from a training table.

    Each kind of task decides which labels it claims (`Objective.claims`). Of the built-in kinds,
    classification claims text, integers, and true or false: text is ordered by code points,
    integers by size, and classes of a hub's `ClassLabel` keep the order of their names. Regression
    claims numbers if one or more is not an integer. A column of a csv or tsv file holds numbers if
    each of its fields is a number. Other kinds read rows of their own form
    (`ObjectiveEntry.rows`), unless the table has both text and labels in columns of usual names.

    Args:
        table: the training table.
        text_columns: one or two columns; None guesses them by `TEXT_COLUMNS`.
        label_column: the label's column; None guesses it by `LABELS`.
        task_type: a key of `OBJECTIVES`; None: the kind that claims the labels, with a warning if
            they might also belong to another kind.
        loss_on: the value of --loss-on, for the line that says what the rows are.

    Raises:
        DataError: a column is missing, or no kind of task has such labels.
    """
    form = _row_form(table, text_columns, label_column, task_type)
    if form is not None:
        return _task_of_rows(table, *form, loss_on)
    label = label_column or _guess_label(table, text_columns)
    texts = text_columns or _guess_texts(table, label)
    if len(texts) > 2 or len({*texts, label}) <= len(texts):
        raise DataError(
            f"{table.title}: asked for the text columns {shown(texts)} and the label column "
            f"{label!r}; give one or two text columns (--text-columns a,b) and another for the "
            "label (--label-column x)"
        )
    for name in texts:
        check_column(table, name, "--text-columns")
    for part in listed_columns(label, table.names):
        check_column(table, part, "--label-column")
    column = LabelColumn.of(table, label)
    name, kind = _kind(column, task_type)
    told = kind.told(column)
    if told and task_type is None:
        logger.info("%s: found %s (--task-type if it is another thing)", table.title, told)
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


def table_examples(
    table: Table, task: Task, *, labelled: bool | None, loss_on: str = COMPLETIONS
) -> Examples:
    """Read the rows of a table as examples of a task.

    Args:
        table: the training table of `custom_task`, or another one with its columns.
        task: what `custom_task` returned.
        labelled: True: the table must have labels. False: labels are not read. None: they are read
            if the table has the label's column with a label in any row.
        loss_on: the value of --loss-on.

    Raises:
        DataError: a column is missing, a value is not text, or a label is missing or unknown.
    """
    from bayeslora_cli.tasks.objectives.objective import objective_of  # imports torch

    reader = reader_of(task.objective)
    if reader is not None:
        columns: tuple[str, ...] | None = task.text_columns
        if not set(task.text_columns) <= set(table.names):
            if labelled is False:
                columns = reader.columns_to_predict(table, task.text_columns)
            else:
                columns = reader.columns(table, None, sure=True)
        if columns is None:
            raise _no_form(table, task.objective, reader)
        return reader.read(table, columns, loss_on=loss_on, labelled=labelled, classes=task.classes)
    for name in task.text_columns:
        check_column(table, name, "which the task's text is in")
    texts = [read_texts(table, name) for name in task.text_columns]
    if labelled:
        for name in listed_columns(task.label_column, table.names):
            check_column(table, name, "which the task's label is in")
    labels: list[Any] | None = None
    present = set(listed_columns(task.label_column, table.names)) <= set(table.names)
    if labelled is not False and present:
        column = LabelColumn.of(table, task.label_column)
        if labelled or any(value is not None for value in column.values):
            objective = objective_of(task)
            _check_present(column, column.values, objective)
            labels = objective.parse(column)
    return Examples(first=texts[0], second=texts[1] if len(texts) == 2 else None, labels=labels)


# --- rows of other forms -----------------------------------------------------------------------


def reader_of(objective: str) -> RowReader | None:
    """Return the reader of a kind's rows; None: they are texts with a label."""
    entry = OBJECTIVES.get(objective)
    found: RowReader | None = None
    if entry is not None and entry.rows is not None:
        found = implementation(entry.rows)
    return found


def _row_form(
    table: Table, texts: tuple[str, ...] | None, label: str | None, typed: str | None
) -> tuple[str, RowReader, tuple[str, ...]] | None:
    """Return the kind whose rows a training table holds, their reader and columns; None: the rows
    are texts with labels."""
    named = label is not None or texts is not None
    if typed is None and (named or are_labelled_texts(table.names) or _indicators(table, texts)):
        return None
    for name in OBJECTIVES if typed is None else (typed,):
        reader = reader_of(name)
        if reader is None:
            continue
        columns = reader.columns(table, texts, sure=typed is not None)
        if columns is not None:
            return name, reader, columns
        if typed is not None:
            raise _no_form(table, name, reader)
    return None


def _task_of_rows(
    table: Table, name: str, reader: RowReader, columns: tuple[str, ...], loss_on: str
) -> Task:
    kind: type[Objective] = implementation(OBJECTIVES[name].implementation)
    told = reader.told(columns, loss_on)
    logger.info("%s: found %s (--task-type if it is another thing)", table.title, told)
    return Task(
        name="custom",
        text_columns=columns,
        label_column="",
        classes=reader.classes(table, columns),
        metrics=kind.table_metrics,
        selecting=kind.table_selecting,
        objective=name,
    )


def _no_form(table: Table, kind: str, reader: RowReader) -> DataError:
    return DataError(
        f"{table.title}: found the columns {shown(table.names)}, and none with rows for "
        f"--task-type {kind}; expected {reader.expected}"
    )


# --- columns -----------------------------------------------------------------------------------


def _guess_texts(table: Table, label: str) -> tuple[str, ...]:
    for guess in TEXT_COLUMNS:
        if set(guess) <= set(table.names) - {label}:
            return guess
    raise DataError(
        f"{table.title}: found the columns {shown(table.names)}, none of them known to hold "
        f"text; name one or two by --text-columns a,b{_other_table(table)}"
    )


def _guess_label(table: Table, texts: tuple[str, ...] | None) -> str:
    for guess in LABELS:
        if guess in table.names and guess not in (texts or ()):
            return guess
    if several := _indicators(table, texts):
        return ",".join(several)
    raise DataError(
        f"{table.title}: found the columns {shown(table.names)}, none of them known to hold "
        f"labels; name it by --label-column NAME, or learn the text itself by --task-type causal"
        f"{_other_table(table)}"
    )


def _indicators(table: Table, texts: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the columns of 0 and 1 beside a table's texts, at least two; (): there are no such, or
    no texts."""
    if texts is None:
        texts = next((guess for guess in TEXT_COLUMNS if set(guess) <= set(table.names)), None)
    return () if texts is None else indicator_columns(table, texts)


def _other_table(table: Table) -> str:
    """What a table seems to be for, where that is something else, as the end of a message."""
    for names, what in _OTHER_TABLES.items():
        if not set(names).isdisjoint(table.names):
            return f". This looks like {what}, which is not trained here"
    return ""


# --- labels ------------------------------------------------------------------------------------


def _kind(column: LabelColumn, typed: str | None) -> tuple[str, type[Objective]]:
    """Return name and class of the kind of task that claims a training table's labels."""
    kind: type[Objective]
    for name in reversed(OBJECTIVES) if typed is None else (typed,):
        kind = implementation(OBJECTIVES[name].implementation)
        _check_present(column, column.numbers(), None if typed is None else kind)
        if kind.claims(column) if typed is None else kind.takes(column):
            break
    else:
        raise _unclaimed(column)
    values = column.numbers()
    if all(value == values[0] for value in values):
        raise DataError(
            f"{column.title}: found only the label {short(values[0])} in the column "
            f"{column.name!r}, so there is nothing to learn; give rows of two or more classes"
        )
    return name, kind


def _check_present(
    column: LabelColumn, values: Sequence[Any], kind: Objective | type[Objective] | None
) -> None:
    """Refuse rows without a label; an empty field of a column of texts may be one.

    Args:
        values: the labels, which may be read as numbers; None where there is none.
        kind: of the task; None: it is not known yet.
    """
    if kind is not None and kind.blank_is_label and any(isinstance(v, str) for v in values):
        return
    for row, value in enumerate(values):
        if value is None:
            several = kind is None and any(isinstance(v, str) and "|" in v for v in values)
            other = ", or --task-type multi-label if rows may have none or several"
            raise column.missing(row, other if several else "")


def _unclaimed(column: LabelColumn) -> DataError:
    """Make the error that tells why no kind of task claims the labels."""
    where, values, kinds = column.table.where, column.numbers(), column.kinds()
    if None in kinds:
        row = kinds[None]
        alone = next((first for name, first in kinds.items() if name is not None), None)
        if isinstance(values[row], list) and alone is not None and row < alone:
            return DataError(
                f"{where(alone)}: found the label {short(values[alone])}, and a list at "
                f"{where(row)}; expected a list of labels in each row, or in none"
            )
        return DataError(
            f"{where(row)}: found the label {short(values[row])}; "
            "expected text, a finite number, or true or false"
        )
    (kind, row), (other, later), *_ = [*kinds.items()]
    return DataError(
        f"{where(later)}: found the label {short(values[later])} ({other}), and "
        f"{short(values[row])} ({kind}) at {where(row)}; expected labels of one kind"
    )
