"""Reads questions with choices, one of which is the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import count, takewhile
from typing import Any

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.choice_tasks.questions import (
    LETTERS,
    Question,
    examples_of,
    letters,
)
from bayeslora_cli.tasks.sources.label_column import number_in, short
from bayeslora_cli.tasks.sources.rows.reader import RowReader, label_column, read_texts
from bayeslora_cli.tasks.sources.tables.table import Table, shown
from bayeslora_cli.tasks.task import Examples

_QUESTIONS = ("question",)
_CHOICES = ("choices", "options")
_ANSWERS = ("answer", "answerKey", "answer_key", "label", "correct")
_GROUPS = ("subject", "category")
_PROMPT = letters("Question: {text}")


class Choices(RowReader):
    """Rows of a question, its choices and the answer."""

    numbers = range(2, len(LETTERS) + 2)

    @property
    def expected(self) -> str:
        return "question, choices and answer"

    def columns(
        self, table: Table, asked: tuple[str, ...] | None, *, sure: bool = False
    ) -> tuple[str, ...] | None:
        """Return the columns of question and choices; refuse that of the answer among them."""
        answers = [name for name in asked or () if name in _ANSWERS]
        if answers:
            raise DataError(
                f"{table.title}: asked for the columns {shown(asked or ())}, of which "
                f"{answers[0]!r} holds the answer; name only those of question and choices"
            )
        return super().columns(table, asked, sure=sure)

    def usual_columns(self, table: Table, *, sure: bool = False) -> tuple[str, ...] | None:
        """Return the columns of question and choices; `answer` is found beside them."""
        question = next((name for name in _QUESTIONS if name in table.names), None)
        choices = next((name for name in _CHOICES if name in table.names), None)
        if question is None:
            return None
        if choices is not None:
            return question, choices
        lettered = _letters(table)
        return (question, *lettered) if len(lettered) > 1 else None

    def told(self, columns: tuple[str, ...], loss_on: str) -> str:
        """Write a clause on the columns."""
        return f"questions in the column {columns[0]} with choices in {', '.join(columns[1:])}"

    def classes(self, table: Table, columns: tuple[str, ...]) -> tuple[str, ...]:
        """Return a letter for each choice of the row that has most."""
        return LETTERS[: max(len(texts) for texts, _ in _all_choices(table, columns))]

    def read(
        self,
        table: Table,
        columns: tuple[str, ...],
        *,
        loss_on: str,
        labelled: bool | None,
        classes: tuple[str, ...] = (),
    ) -> Examples:
        """Read all rows; labels are the places of the right choices."""
        questions = read_texts(table, columns[0])
        found = _all_choices(table, columns)
        answer = label_column(table, _ANSWERS, labelled, what="answers", beside=columns)
        labels: list[int] | list[None] = [None] * table.rows
        if answer is not None:
            labels = _labels(table, answer, found)
        group = next((name for name in _GROUPS if name in table.names), None)
        groups = [""] * table.rows if group is None else map(str, table.read_column(group))
        rows = [
            Question(text=text, choices=tuple(choices), answer=answer, group=group)
            for text, (choices, _), answer, group in zip(
                questions, found, labels, groups, strict=True
            )
        ]
        return replace(examples_of(rows, _PROMPT), place=table.where)


class PlainChoices(Choices):
    """The same rows, and those of SWAG, as encoders read them: the question and each choice."""

    @property
    def expected(self) -> str:
        return "question, choices and answer, or SWAG's sent1, sent2, ending0, ending1, … and label"

    def usual_columns(self, table: Table, *, sure: bool = False) -> tuple[str, ...] | None:
        """Return the columns of the question and of the choices."""
        endings = _endings(table)
        if "sent1" in table.names and len(endings) > 1:
            return ("sent1", *(name for name in ("sent2",) if name in table.names), *endings)
        if {"ctx", "endings"} <= set(table.names):
            return "ctx", "endings"
        return super().usual_columns(table)

    def told(self, columns: tuple[str, ...], loss_on: str) -> str:
        """Write a clause on the columns."""
        return f"{super().told(columns, loss_on)}, for an encoder"

    def read(
        self,
        table: Table,
        columns: tuple[str, ...],
        *,
        loss_on: str,
        labelled: bool | None,
        classes: tuple[str, ...] = (),
    ) -> Examples:
        """Read all rows: questions as first texts, lists of choices, as JSON, as second ones."""
        found = super().read(table, columns, loss_on=loss_on, labelled=labelled)
        choices = [texts for texts, _ in _all_choices(table, columns)]
        for row, texts in enumerate(choices):
            if classes and len(texts) > len(classes):
                raise DataError(
                    f"{table.where(row)}: found {len(texts)} choices; the rows of the task have at "
                    f"most {len(classes)}"
                )
        return replace(
            found,
            first=read_texts(table, columns[0]),
            second=[json.dumps(texts, ensure_ascii=False) for texts in choices],
        )


def _endings(table: Table) -> tuple[str, ...]:
    """Return SWAG's columns ending0, ending1, ... of a table."""
    return tuple(takewhile(table.names.__contains__, map("ending{}".format, count())))


def _all_choices(table: Table, columns: tuple[str, ...]) -> list[tuple[list[str], list[str]]]:
    """Return each row's choices, and the names that its data set gives them."""
    if len(columns) == 2:
        values = table.read_column(columns[1])
    elif columns[1] == "sent2":  # SWAG's: it begins each of the endings
        begun = read_texts(table, columns[1])
        endings = zip(*(read_texts(table, name) for name in columns[2:]), strict=True)
        values = [[f"{b} {end}" for end in own] for b, own in zip(begun, endings, strict=True)]
    else:
        # rows with fewer choices leave the last columns empty
        values = [
            [text for text in row if text not in (None, "")]
            for row in zip(*map(table.read_column, columns[1:]), strict=True)
        ]
    return [_choices(table, row, value) for row, value in enumerate(values)]


def _letters(table: Table) -> tuple[str, ...]:
    """Return the columns A, B, ... of a table, one for each choice."""
    found = []
    for letter in LETTERS:
        if letter not in table.names:
            break
        found.append(letter)
    return tuple(found)


def _choices(table: Table, row: int, value: Any) -> tuple[list[str], list[str]]:
    """Return a row's choices, and the names that its data set gives them; [] if it gives none."""
    where = table.where(row)
    if isinstance(value, str):  # csv holds lists as JSON
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where}: found {short(value)} as choices; expected a list of texts, in csv as "
                "JSON"
            ) from error
    names: Any = []
    if isinstance(value, dict) and {"text", "label"} <= value.keys():
        names, value = value["label"], value["text"]
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise DataError(f"{where}: found {short(value)} as choices; expected a list of texts")
    texts: list[str] = value
    if not 2 <= len(texts) <= len(LETTERS):
        raise DataError(
            f"{where}: found {len(texts)} choice{'s' * (len(texts) != 1)}; expected 2 to "
            f"{len(LETTERS)}"
        )
    twice = [text for place, text in enumerate(texts) if text in texts[:place]]
    if twice:
        raise DataError(
            f"{where}: found the choice {short(twice[0])} twice; expected different ones"
        )
    return texts, [str(name) for name in names]


def _labels(table: Table, name: str, choices: Sequence[tuple[list[str], list[str]]]) -> list[int]:
    values = table.read_column(name)
    places = table.class_names.get(name) is not None
    return [
        _label(table, row, name, value, *found, is_place=places)
        for row, (value, found) in enumerate(zip(values, choices, strict=True))
    ]


def _label(
    table: Table,
    row: int,
    name: str,
    value: Any,
    texts: list[str],
    names: list[str],
    *,
    is_place: bool,
) -> int:
    """Return the place of the right choice.

    It may be given as the choice itself, as the name that the data set gives it, as a letter, or as
    its place, which counts from 0; they are tried in this order.
    """
    is_place = is_place or (isinstance(value, int) and not isinstance(value, bool))
    text = str(value).strip()
    if not is_place:
        for known in (texts, names, list(LETTERS[: len(texts)])):
            if text in known:
                return known.index(text)
    number = value if is_place else number_in(text)
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(texts):
        return number
    last = LETTERS[len(texts) - 1]
    raise DataError(
        f"{table.where(row)}: found the answer {short(value)} in the column {name!r}, which is "
        f"none of its {len(texts)} choices; expected the choice itself, its letter (A to "
        f"{last}), or its place (0 to {len(texts) - 1})"
    )


CHOICES = Choices()
PLAIN_CHOICES = PlainChoices()
