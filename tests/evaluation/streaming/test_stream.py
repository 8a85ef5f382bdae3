"""What is asked of `predict`, before a model is loaded."""

from __future__ import annotations

import pytest

from bayeslora_cli.errors import UserError
from bayeslora_cli.evaluation.streaming.stream import PredictionRequest
from bayeslora_cli.tasks.task import Task


def test_numbers_of_columns_are_told_in_short():
    task = Task(
        name="custom", text_columns=("question", "choices"), label_column="answer",
        classes=("A", "B"), metrics=("accuracy",), selecting="accuracy", objective="choice",
    )  # fmt: skip
    PredictionRequest(text_columns=("question", "A", "B")).check(task)
    with pytest.raises(UserError, match="a row has 2 to 27 columns of texts"):
        PredictionRequest(text_columns=("question",)).check(task)
