"""Multiple choice by an encoder: a score for each choice, cross entropy over a row's choices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.tasks.objectives.classification import Classification
from bayeslora_cli.tasks.sources.label_column import LabelColumn
from bayeslora_cli.tasks.task import Examples

MISSING = -1e9
"""The logit of a choice that a row does not have: its probability is 0."""


class MultipleChoice(Classification):
    """A row is a question with its choices, each of which is a sequence with the question.

    Labels are the places of the right choices (n,); predictions are probabilities (n, classes),
    where the classes are the letters of the choices that a row may have.
    """

    table_metrics = ("accuracy",)
    table_selecting = "accuracy"
    selectable = ("accuracy", "nll", "ece", "brier")
    problem_type = ""
    weighs_classes = False
    sequences = 2

    @classmethod
    def claims(cls, column: LabelColumn) -> bool:
        """Claim no labels: rows of choices are recognised by their columns."""
        return False

    def model_options(self) -> dict[str, Any]:
        """Return {}: the head has one output, the score of a choice."""
        return {}

    def predict(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits (b, k), filled up to the number of choices that a row may have."""
        return F.pad(logits, (0, self.outputs - logits.shape[1]), value=MISSING)

    def readable(self, examples: Examples, row: int, item: int = 0) -> list[str]:
        """Return the question, and each choice behind its letter."""
        assert examples.second is not None
        choices = zip(self.classes, json.loads(examples.second[row]), strict=False)
        return [examples.first[row], *(f"{letter}: {text}" for letter, text in choices)]
